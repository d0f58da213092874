"""Our `gdoi-gcks`, a process of its own on loopback, against the member written from the RFCs.

::

    127.x.y.1:5848                        127.x.y.2 .. .9:5848
    gdoi-gcks (ours) <---- UDP ----> rfc_peer.Member, in this process
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from .rfc_octets import (
    KEK_ACK_REQUESTED,
    MAIN,
    PULL,
    PUSH,
    VENDOR,
    Attribute,
    Suite,
    address,
    suite_attributes,
    tv,
)
from .rfc_peer import LIFETIME_TLV, LIFETIME_TV, Member, Notified, Push, Silence
from .running import Daemon, daemon, wait_for

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
PORT = 5848
SERVER = (f"{NET}.1", PORT)
PSK = b"a pre-shared key of two readings"
VIDEO, ECDSA, PLAIN, CAST, ENDING = 1234, 2, 3, 4, 5
CAST_ADDRESS = f"239.192.{secrets.randbelow(250)}.{secrets.randbelow(250)}"
SHORT = 0.7  # seconds of silence that count as no answer
GROUPS = {"modp2048": 14, "modp3072": 15, "modp4096": 16, "ecp256": 19, "ecp384": 20}
SUITES = {
    f"aes{bits}-{name}-{group}": Suite(bits, name, number)
    for bits in (128, 256)
    for name in ("sha256", "sha384", "sha512")
    for group, number in GROUPS.items()
}


# Every KEK with every signature; of the long RSA keys one each, they take a second to make.
SIGNATURES = ["rsa2048-sha256", "rsa2048-sha384", "rsa2048-sha512"]
SIGNATURES += ["ecdsa256", "ecdsa384", "ecdsa521"]
LONG = {
    "aes192-rsa3072-sha384": (90, "aes192", "rsa3072-sha384"),
    "aes256-rsa4096-sha512": (91, "aes256", "rsa4096-sha512"),
}
SEALED = LONG | {
    f"{kek}-{signature}": (100 + 10 * n + m, kek, signature)
    for n, signature in enumerate(SIGNATURES)
    for m, kek in enumerate(("aes128", "aes192", "aes256"))
}


def host(number: int) -> tuple[str, int]:
    return f"{NET}.{number}", PORT


def group(name: str, number: int, rekey: str, proposal: str = "aes256-sha256") -> str:
    members = [host(n)[0] for n in range(2, 8)]
    source = f'source = "{members[0]}"\n' if "gcm" in proposal else ""
    return f"""
[[group]]
name = "{name}"
id = {number}
members = {members}
[group.rekey]
port = {PORT}
retransmissions = 0
activation_delay = "7s"
deactivation_delay = "21s"
{rekey}
[[group.tek]]
destination = "239.192.1.{number % 256}"
proposal = "{proposal}"
{source}
[[group.tek]]
destination = "239.192.2.{number % 256}"
proposal = "aes128-sha256"
lifetime = "2h"
"""


CONFIG = f"""
[key_server]
address = "{SERVER[0]}"
port = {PORT}
state = "@/state.sqlite"
control = "@/control"
proposals = {list(SUITES)}
[[peer]]
address = "{NET}.0/24"
psk = "{PSK.decode()}"
{group("video", VIDEO, "")}
{group("ecdsa", ECDSA, 'signature = "ecdsa256"' + chr(10) + 'kek = "aes128"', "aes256gcm16")}
{group("plain", PLAIN, 'ack = "none"' + chr(10) + 'signature = "ecdsa256"')}
{group("cast", CAST, f'address = "{CAST_ADDRESS}"' + chr(10) + 'signature = "ecdsa256"')}
{group("ending", ENDING, 'signature = "ecdsa256"')}
"""
CONFIG += "".join(
    group(name, number, f'kek = "{kek}"\nsignature = "{signature}"')
    for name, (number, kek, signature) in SEALED.items()
)


@pytest.fixture(scope="module")
def gcks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon("gdoi-gcks", CONFIG, tmp_path_factory.mktemp("gcks")) as running:
        yield running
        assert running.events("bug") == []


def member(number: int = 2, suite: Suite = SUITES["aes128-sha256-ecp256"]) -> Member:
    return Member(host(number), SERVER, PSK, suite)


def registered(gcks: Daemon, name: str) -> set[str]:
    return {entry["identity"] for entry in gcks.ctl("members", "--group", name)}


def drain(peer: Member) -> None:
    """Whatever still comes, until nothing does."""
    with contextlib.suppress(Silence):
        while True:
            peer.receive(MAIN, PULL, timeout=0.3)


# -- phase 1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.usefixtures("gcks")
def test_suite(name: str) -> None:
    """Every suite: main mode and a registration, every request sent twice."""
    with member(suite=SUITES[name]) as peer:
        peer.repeat = True
        peer.phase1()
        assert peer.suite == SUITES[name]
        pulled = peer.pull(PLAIN)
        assert pulled.seq is not None
        peer.delete()


@pytest.mark.parametrize("first", [0, 1, 200])
@pytest.mark.usefixtures("gcks")
def test_transform_numbers(first: int) -> None:
    """The second of three is the only one it can take; number and octets come back as sent."""
    with member() as peer:
        good = suite_attributes(peer.suite, LIFETIME_TLV)
        weak = tv(1, 5) + tv(2, 2) + tv(3, 1) + tv(4, 2)  # 3DES, SHA, 1024 bits
        alien = tv(1, 7) + tv(14, 192) + tv(2, 4) + tv(3, 65001) + tv(4, 30)
        peer.transforms = [(first, weak), (first + 1, good), (first + 2, alien)]
        peer.phase1()
        peer.pull(PLAIN)


@pytest.mark.usefixtures("gcks")
def test_no_proposal_chosen() -> None:
    with member() as peer:
        peer.transforms = [(1, tv(1, 5) + tv(2, 2) + tv(3, 1) + tv(4, 2))]
        with pytest.raises(Notified) as told:
            peer.phase1()
    assert told.value.notification.kind == 14
    assert not told.value.protected


@pytest.mark.parametrize(
    "lifetime",
    [LIFETIME_TLV, LIFETIME_TV, struct.pack("!HHH", 12, 2, 28800)],
    ids=["four octets", "basic", "two octets"],
)
@pytest.mark.usefixtures("gcks")
def test_lifetime_encodings(lifetime: bytes) -> None:
    with member() as peer:
        peer.transforms = [(1, suite_attributes(peer.suite, lifetime))]
        peer.phase1()
        peer.pull(PLAIN)


@pytest.mark.usefixtures("gcks")
def test_order_of_attributes_is_free() -> None:
    with member() as peer:
        attributes = tv(4, 19) + tv(3, 1) + tv(11, 1) + LIFETIME_TLV + tv(14, 128)
        peer.transforms = [(1, attributes + tv(2, 4) + tv(1, 7))]
        peer.phase1()
        peer.pull(PLAIN)


@pytest.mark.usefixtures("gcks")
def test_without_a_lifetime() -> None:
    with member() as peer:
        attributes = tv(1, 7) + tv(14, 128) + tv(2, 4) + tv(3, 1) + tv(4, 19)
        peer.transforms = [(1, attributes)]
        peer.phase1()
        peer.pull(PLAIN)


@pytest.mark.usefixtures("gcks")
def test_vendor_ids_and_initial_contact() -> None:
    with member() as peer:
        peer.more_in_1 = [(VENDOR, secrets.token_bytes(n)) for n in (4, 8, 16, 20, 128)]
        peer.more_in_3 = [(VENDOR, secrets.token_bytes(16)), (VENDOR, b"x")]
        peer.initial_contact = True
        peer.phase1()
        peer.pull(PLAIN)


@pytest.mark.parametrize("kind", [20, 130], ids=["NAT-D", "private use"])
@pytest.mark.usefixtures("gcks")
def test_unknown_payload(kind: int) -> None:
    """Payloads of extensions it does not know do not end main mode."""
    with member() as peer:
        peer.more_in_3 = [(kind, secrets.token_bytes(32)), (kind, secrets.token_bytes(32))]
        peer.phase1()
        peer.pull(PLAIN)


@pytest.mark.parametrize(("phase1", "pull"), [(8, 8), (128, 128), (256, 127)])
@pytest.mark.usefixtures("gcks")
def test_nonce_sizes(phase1: int, pull: int) -> None:
    with member() as peer:
        peer.nonce_size = phase1
        peer.phase1()
        peer.pull(PLAIN, nonce=pull)


@pytest.mark.parametrize("size", [7, 129])
@pytest.mark.usefixtures("gcks")
def test_nonce_beyond_the_limits(size: int) -> None:
    """RFC 6407 5.8: MUST be a value between 8 and 128 octets."""
    with member() as peer:
        peer.phase1()
        peer.patience = SHORT
        with pytest.raises((Silence, Notified)):
            peer.pull(PLAIN, nonce=size)


def reserved(datagram: bytes) -> bytes:
    """RESERVED of the first payload's generic header."""
    return datagram[:29] + b"\1" + datagram[30:]


def too_long(datagram: bytes) -> bytes:
    return datagram + bytes(1)


def version_2(datagram: bytes) -> bytes:
    return datagram[:17] + b"\x20" + datagram[18:]


@pytest.mark.parametrize("spoil", [reserved, too_long, version_2])
@pytest.mark.usefixtures("gcks")
def test_spoilt_header(spoil: Callable[[bytes], bytes]) -> None:
    """RFC 2408 5.1: Length other than the datagram's; 5.2: version; 5.3: RESERVED not zero."""
    with member() as peer:
        peer.patience = SHORT
        peer.spoil = spoil
        with pytest.raises((Silence, Notified)):
            peer.phase1()


@pytest.mark.usefixtures("gcks")
def test_transform_with_an_attribute_more() -> None:
    """A prf of its own, which nobody has: the offer without one is to be chosen."""
    with member() as peer:
        good = suite_attributes(peer.suite, LIFETIME_TLV)
        peer.transforms = [(1, good + tv(13, 1)), (2, good + tv(16400, 7)), (3, good)]
        peer.phase1()


@pytest.mark.usefixtures("gcks")
def test_wrong_pre_shared_key() -> None:
    with member() as peer:
        peer.patience = SHORT
        peer.psk = b"another"
        with pytest.raises((Silence, Notified)):
            peer.phase1()


# -- registration ----------------------------------------------------------------------------------


def test_policy(gcks: Daemon) -> None:
    """What the decoder does not insist on: the values, as configured."""
    with member(7) as peer:
        peer.phase1()
        pulled = peer.pull(ECDSA)
        sak, gap, sats = pulled.sa.sak, pulled.sa.gap, pulled.sa.sats
        assert sak is not None
        assert pulled.seq == 0
        assert (sak.protocol, sak.source.port, sak.destination.port) == (17, PORT, PORT)
        assert sak.source.data == address(SERVER[0])
        assert sak.destination.data == address(peer.local[0])
        assert (sak.get(2), sak.get(3), sak.get(6), sak.get(7)) == (3, 128, 4, 256)
        assert 0 < sak.get(4) <= 86400
        assert sak.get(KEK_ACK_REQUESTED) == 1
        assert gap == [Attribute(1, b"\0\7", True), Attribute(2, b"\0\x15", True)]
        gcm, cbc = sats
        assert (gcm.transform, gcm.get(6), gcm.get(5), gcm.get(4)) == (20, 256, 0, 2)
        assert gcm.source.data == address(host(2)[0])
        assert gcm.destination.data == address(f"239.192.1.{ECDSA}")
        assert (cbc.transform, cbc.get(6), cbc.get(5), cbc.get(4)) == (12, 128, 5, 2)
        assert (gcm.get(1), cbc.get(1)) == (1, 1)
        assert 0 < gcm.get(2) <= 3600 < cbc.get(2) <= 7200
        assert all(int.from_bytes(sat.spi, "big") > 255 for sat in sats)
        assert host(7)[0] in registered(gcks, "ecdsa")


@pytest.mark.usefixtures("gcks")
def test_no_attribute_9_without_acks() -> None:
    """A strict RFC 6407 member would abort at an attribute it does not know (5.3.2)."""
    with member() as peer:
        peer.phase1()
        sak = peer.pull(PLAIN).sa.sak
        assert sak is not None
        assert KEK_ACK_REQUESTED not in [attribute.kind for attribute in sak.attributes]


@pytest.mark.usefixtures("gcks")
def test_several_pulls_in_one_phase1() -> None:
    """RFC 6407 3: there MAY be multiple GROUPKEY-PULL exchanges for a given Phase 1 SA."""
    with member() as peer:
        peer.repeat = True
        peer.phase1()
        first, second = peer.pull(PLAIN), peer.pull(PLAIN)
        assert first.keys == second.keys
        peer.pull(VIDEO)


@pytest.mark.usefixtures("gcks")
def test_everything_once_more() -> None:
    """All that was ever sent comes again, late: the SA and the next registration do not care."""
    with member() as peer:
        peer.phase1()
        first = peer.pull(PLAIN)
        for datagram in list(peer.sent) + list(reversed(peer.sent)):
            peer.send(datagram)
        drain(peer)
        assert peer.pull(PLAIN).keys == first.keys


@pytest.mark.parametrize("gap", [tv(3, 0), tv(3, 1)], ids=["none", "one"])
@pytest.mark.usefixtures("gcks")
def test_sender_id_request(gap: bytes) -> None:
    """Without a counter mode there are none; the request must not end the registration."""
    with member() as peer:
        peer.phase1()
        peer.pull(PLAIN, gap=gap)


@pytest.mark.usefixtures("gcks")
def test_unknown_group() -> None:
    with member() as peer:
        peer.phase1()
        with pytest.raises(Notified) as told:
            peer.pull(4711)
        assert told.value.protected
        said = told.value.notification
        assert said.kind < 8192
        assert said.protocol == 1
        assert said.spi in (b"", peer.isakmp.cky_i + peer.isakmp.cky_r)
        peer.pull(PLAIN)  # the phase-1 SA is as good as before


def test_member_not_admitted(gcks: Daemon) -> None:
    with member(9) as peer:
        peer.phase1()
        with pytest.raises(Notified) as told:
            peer.pull(VIDEO)
    assert told.value.protected
    assert told.value.notification.kind < 8192
    assert host(9)[0] not in registered(gcks, "video")


def test_wrong_hash_3(gcks: Daemon) -> None:
    """RFC 6407 3.2: no record of the GM before Nr came back properly in the HASH payload."""
    with member(6) as peer:
        peer.phase1()
        peer.patience = SHORT
        with pytest.raises((Silence, Notified)):
            peer.pull(ECDSA, spoil=True)
        assert host(6)[0] not in registered(gcks, "ecdsa")


@pytest.mark.usefixtures("gcks")
def test_delete_ends_phase1() -> None:
    with member() as peer:
        peer.phase1()
        peer.pull(PLAIN)
        peer.delete()
        peer.patience = SHORT
        with pytest.raises((Silence, Notified)):
            peer.pull(PLAIN)


# -- rekeys ----------------------------------------------------------------------------------------


def rekeyed(gcks: Daemon, name: str, peers: list[Member], *options: str) -> list[Push]:
    """One rekey that every one of these members acknowledges, as the key server says."""
    asked = gcks.start_ctl("rekey", "--group", name, *options)
    pushes = [peer.push() for peer in peers]
    for peer, push in zip(peers, pushes, strict=True):
        assert push.ack == 1
        peer.send(peer.ack(push))
    (done,) = gcks.answer(asked)
    assert done["missing"] == []
    assert int(done["acknowledged"]) == len(peers)
    assert int(done["seq"]) == pushes[0].seq
    return pushes


def rekeyed_at_once(gcks: Daemon, name: str, peer: Member, **options: str) -> Push:
    """The same with one member, from the control socket to the log."""
    asked = gcks.ask("rekey", group=name, **options)
    push = peer.push()
    peer.send(peer.ack(push))
    while push.seq < int(asked["seq"]):
        push = peer.push()
        peer.send(peer.ack(push))
    wait_for(lambda: closed(gcks, name, int(asked["epoch"])), "the key server to count the ACK")
    assert closed(gcks, name, int(asked["epoch"])) == [(1, 1)]
    return push


def closed(gcks: Daemon, name: str, epoch: int) -> list[tuple[int, int]]:
    return [
        (record["expected"], record["acknowledged"])
        for record in gcks.events("rekey-closed")
        if (record["group"], record["epoch"]) == (name, epoch)
    ]


@pytest.mark.parametrize("name", ["video", "ecdsa"])
def test_rekeys(gcks: Daemon, name: str) -> None:
    """New TEKs, a new KEK, new TEKs under the new KEK: RSA with AES-256, ECDSA with AES-128."""
    number = {"video": VIDEO, "ecdsa": ECDSA}[name]
    with member(2) as one, member(7) as two:
        for peer in (one, two):
            peer.phase1()
            peer.pull(number)
        known = registered(gcks, name)
        assert known == {host(2)[0], host(7)[0]}
        first_teks = set(one.teks)
        (first, _) = rekeyed(gcks, name, [one, two])
        assert first.sa is not None
        assert first.sa.gap is not None
        assert len(first.sa.sats) == 2
        assert not {sat.spi for sat in first.sa.sats} & first_teks

        (second, _) = rekeyed(gcks, name, [one, two], "--kek")
        assert second.kek is first.kek
        assert second.sa is not None
        assert second.sa.sak is not None
        sak = second.sa.sak
        assert sak.spi != first.kek.spi
        # RFC 8263 5: each time the SA KEK is delivered.
        assert sak.get(KEK_ACK_REQUESTED) == 1

        (third, _) = rekeyed(gcks, name, [one, two])
        assert third.kek.spi == sak.spi
        assert third.seq == 1

        (entry,) = (e for e in gcks.ctl("members", "--group", name) if e["address"] == host(7)[0])
        assert int(entry["acknowledged"]) == 3
        assert int(entry["missed"]) == 0
        last = gcks.ctl("rekeys", "--group", name)[-1]
        assert set(last["acknowledged-by"]) == {host(2)[0], host(7)[0]}

        # Who registers now gets the SEQ of the last PUSH under this KEK, and the same keys.
        two.phase1()
        again = two.pull(number)
        assert again.seq == 1
        assert {sat.spi for sat in again.sa.sats} <= set(one.teks)


@pytest.mark.parametrize("name", SEALED)
def test_kek_and_signature(gcks: Daemon, name: str) -> None:
    """A rekey, and one under the KEK and the signing key that another rekey has brought."""
    number, kek, signature = SEALED[name]
    kind, _, digest = signature.partition("-")
    with member(2) as one:
        one.phase1()
        sak = one.pull(number).sa.sak
        assert sak is not None
        assert sak.get(3) == int(kek.removeprefix("aes"))
        assert sak.get(7) == int(kind.removeprefix("rsa").removeprefix("ecdsa"))
        assert sak.get(6) == {"ecdsa256": 4, "ecdsa384": 5, "ecdsa521": 6}.get(kind, 1)
        assert not digest or sak.get(5) == {"sha256": 3, "sha384": 4, "sha512": 5}[digest]
        first = rekeyed_at_once(gcks, name, one, kek="yes")
        second = rekeyed_at_once(gcks, name, one)
        assert second.kek.spi != first.kek.spi
        assert second.kek.signing_key != first.kek.signing_key


def test_acks_that_do_not_count(gcks: Daemon) -> None:
    """A wrong HASH, a SEQ never sent, somebody else's identity; then the right one."""
    with member(3) as peer:
        peer.phase1()
        peer.pull(ENDING)
        asked = gcks.start_ctl("rekey", "--group", "ending")
        push = peer.push()
        right = peer.ack(push)
        dropped = len(gcks.events("dropped"))
        peer.send(right[:-13] + bytes([right[-13] ^ 1]) + right[-12:])
        peer.send(peer.ack(replace(push, seq=push.seq + 1)))
        peer.send(peer.ack(push, identity=host(4)[0]))
        peer.send(right[:40] + bytes([right[40] ^ 0x80]) + right[41:])
        wait_for(lambda: len(gcks.events("dropped")) >= dropped + 4, "four ACKs to be dropped")
        assert asked.poll() is None
        peer.send(right)
        (done,) = gcks.answer(asked)
        assert int(done["acknowledged"]) == 1
        reasons = [record["reason"] for record in gcks.events("dropped")[dropped:]]
        assert all(reason.startswith("ack-") or reason == "malformed" for reason in reasons)


def test_no_ack_wanted(gcks: Daemon) -> None:
    with member(2) as peer:
        peer.phase1()
        pulled = peer.pull(PLAIN)
        with gcks.start_ctl("rekey", "--group", "plain") as asked:
            push = peer.push()
            gcks.answer(asked)
        assert push.seq == (pulled.seq or 0) + 1
        assert push.ack == 0


def test_multicast(gcks: Daemon) -> None:
    """The same rekey by multicast, over lo."""
    with (
        member(2) as peer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind((CAST_ADDRESS, PORT))
        joined = address(CAST_ADDRESS) + address(SERVER[0])
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        listener.settimeout(10)
        peer.phase1()
        sak = peer.pull(CAST).sa.sak
        assert sak is not None
        assert sak.destination.data == address(CAST_ADDRESS)
        asked = gcks.start_ctl("rekey", "--group", "cast", "--kek")
        datagram, source = listener.recvfrom(65535)
        assert source == SERVER
        push = peer.push(datagram)
        assert push.sa is not None
        assert push.sa.sak is not None
        assert push.sa.sak.destination.data == address(CAST_ADDRESS)
        peer.send(peer.ack(push))
        (done,) = gcks.answer(asked)
        assert int(done["acknowledged"]) == 1


def test_group_deleted(gcks: Daemon) -> None:
    """RFC 6407 5.9: all TEKs by SPI zero, then the KEK; SA and KD MUST be omitted."""
    with member(3) as peer:
        peer.phase1()
        peer.pull(ENDING)
        gcks.ask("delete-group", group="ending")
        push = peer.push()
        assert push.sa is None
        assert [(d.protocol, any(b"".join(d.spis))) for d in push.deletions] == [
            (1, False),
            (0, False),
        ]
        assert [len(d.spis[0]) for d in push.deletions] == [4, 16]


@pytest.mark.usefixtures("gcks")
def test_exchange_34_is_ignored() -> None:
    with member() as peer:
        peer.phase1()
        beat = bytearray(peer.isakmp.seal(PUSH + 1, 5, [(VENDOR, bytes(12))]))
        peer.send(bytes(beat))
        peer.pull(PLAIN)
