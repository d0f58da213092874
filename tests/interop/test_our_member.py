"""Our member's engine over UDP on loopback, against the key server written from the RFCs.

The quirks are what other key servers are known, or free, to do.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from .engine_shell import PORT, World, open_socket
from .rfc_crypto import Kek, SigningKey, inform
from .rfc_key_server import BLANK, AhTek, GmacTek, Quirks, Tek
from .rfc_octets import (
    DELETE,
    GDOI,
    ID_IPV4,
    ID_SUBNET4,
    INFORMATIONAL,
    MAIN,
    NOTIFY,
    PULL,
    VENDOR,
    Header,
    Payload,
    Selector,
    chain,
    pack_delete,
    pack_notify,
    tlv,
    tv,
)

GROUPS = ("modp2048", "modp3072", "modp4096", "ecp256", "ecp384")
HASHES = ("sha256", "sha384", "sha512")
SUITES = [
    f"aes{bits}-{HASHES[(n + bits) % 3]}-{group}"
    for bits in (128, 256)
    for n, group in enumerate(GROUPS)
]
EMPTY = Selector(ID_IPV4, 0, b"")


CURVES = {"ecdsa": ec.SECP256R1(), "ecdsa384": ec.SECP384R1(), "ecdsa521": ec.SECP521R1()}
RSA_BITS = {"rsa": 2048, "rsa3072": 3072, "rsa4096": 4096}


@cache
def signer(kind: str = "ecdsa") -> SigningKey:
    if kind in RSA_BITS:
        return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS[kind])
    return ec.generate_private_key(CURVES[kind])


def new_world(kind: str = "ecdsa", **options: Any) -> World:
    world = World(signer(kind), **options)
    world.server.teks = [Tek("239.192.1.1")]
    return world


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def push_teks(world: World, *teks: Tek, sign_length_as_sent: bool = False) -> bytes:
    """A PUSH with these TEKs and whatever GAP the quirks say."""
    policy = [*world.server.gap(), *(tek.sat() for tek in teks)]
    return world.server.push(
        policy, [tek.packet() for tek in teks], sign_length_as_sent=sign_length_as_sent
    )


def rollover(
    world: World, *teks: Tek, spi: bytes | None = None, deletes: bool = False, seq: int = 0
) -> tuple[bytes, Kek]:
    """The PUSH that brings a new KEK, under the old one, and the new one."""
    server = world.server
    old, new = server.kek, server.new_kek()
    new.seq = seq
    policy = [server.sak(new), *server.gap(), *(tek.sat() for tek in teks)]
    keys = [server.kek_packet(new, spi), *(tek.packet() for tek in teks)]
    gone = [pack_delete(0, [old.spi])] if deletes else []
    return server.push(policy, keys, deletes=gone, next_kek=new), new


def clear_notify(datagram: bytes) -> bytes:
    """What anybody could send: an error notification in clear, with the cookies seen."""
    body = chain([(NOTIFY, pack_notify(24, doi=0))])
    cookies = datagram[:8], datagram[8:16]
    return Header(*cookies, NOTIFY, INFORMATIONAL, 0, 0, 28 + len(body)).pack() + body


# -- registration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITES)
def test_suite(name: str) -> None:
    with new_world(proposals=[name]) as world:
        world.register()
        (tek,) = world.server.teks
        assert world.agent.held == {tek.spi: tek.key}
        world.acked(push_teks(world, Tek("239.192.1.1")))


@pytest.mark.parametrize("index", range(6))
def test_any_of_its_offers(index: int) -> None:
    """The chosen transform comes back as it was offered, whichever it is."""
    with new_world(quirks=Quirks(choose=lambda _: index)) as world:
        world.register()


def test_a_group_without_a_rekey_sa() -> None:
    """RFC 6407 5.2.1: "all SA updates would be performed using the Registration SA"."""
    with new_world(quirks=Quirks(rekeys=False)) as world:
        world.register()
        (first,) = world.server.teks
        assert world.agent.held == {first.spi: first.key}
        assert world.agent.engine.kek is None
        world.server.teks = [second := Tek("239.192.1.1")]
        world.agent.skew = 3590.0  # of the TEK's 3,600 seconds
        world.until(lambda: second.spi in world.agent.held, "the member to register again")


def test_gmac() -> None:
    with new_world() as world:
        world.server.teks = [GmacTek("239.192.1.1")]
        world.register()
        for _ in range(2):
            (tek,) = world.server.teks
            assert world.agent.held[tek.spi] == tek.key + tek.auth[:4]
            world.server.teks = [GmacTek("239.192.1.1", bits=256)]
            world.acked(push_teks(world, *world.server.teks))


SIGNATURES = [(kind, digest) for kind in RSA_BITS for digest in (3, 4, 5)] + [
    (kind, 0) for kind in CURVES
]


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize(("kind", "sig_hash"), SIGNATURES)
@pytest.mark.parametrize("as_sent", [False, True], ids=["Length without padding", "Length as sent"])
def test_push(bits: int, kind: str, sig_hash: int, as_sent: bool) -> None:
    """Every KEK with every signature; the other of the two readings of the signed Length too."""
    with new_world(kind, bits=bits, sig_hash=sig_hash) as world:
        world.register()
        for _ in range(2):
            tek = Tek("239.192.1.1", bits=128 if bits == 128 else 256)
            world.acked(push_teks(world, tek, sign_length_as_sent=as_sent))
            assert world.agent.held[tek.spi] == tek.key
        datagram, new = rollover(world, deletes=True)
        world.acked(datagram)
        world.acked(push_teks(world, Tek("239.192.1.1"), sign_length_as_sent=as_sent))
        assert new.seq == 1


def test_retransmission(world: World) -> None:
    """Every first datagram of the member is lost; the second is the same, octet by octet."""
    lost: list[bytes] = []

    def lose(datagram: bytes) -> bool:
        if datagram in lost:
            return False
        lost.append(datagram)
        world.agent.skew += 30  # its timer's patience, not ours
        return True

    world.lose = lose
    world.register()
    assert world.received == lost
    assert [d[18] for d in lost] == [MAIN, MAIN, MAIN, PULL, PULL]


def test_every_answer_twice(world: World) -> None:
    for_good = world.server.handle

    def twice(datagram: bytes) -> None:
        answer = for_good(datagram, world.here)
        if answer is not None:
            world.send(answer)

    world.before_answer = twice
    world.register()
    world.settle()
    assert len(world.server.members) == 1


def test_clear_notify_ends_nothing(world: World) -> None:
    world.before_answer = lambda datagram: world.send(clear_notify(datagram))
    world.register()
    isakmp = world.server.isakmp()
    world.send(clear_notify(isakmp.cky_i + isakmp.cky_r))
    world.settle()
    world.acked(push_teks(world, Tek("239.192.1.1")))
    assert world.agent.names().count("registered") == 1
    assert "registration-failed" not in world.agent.names()


def test_policy_that_is_refused(world: World) -> None:
    """RFC 6407 3.3: a Delete of the phase-1 SA; before it a notify that says why."""
    nothing = tv(1, 1) + tlv(2, bytes(4))
    world.server.teks = [Tek("239.192.1.1", lifetime=nothing)]
    world.agent.start()
    world.until(lambda: bool(world.server.deleted), "the Delete")
    world.settle()
    isakmp = world.server.isakmp()
    (gone,), (why,) = world.server.deleted, world.server.notified
    assert gone.spis == [isakmp.cky_i + isakmp.cky_r]
    assert why.kind == 14
    assert why.data.decode().endswith("has a lifetime of 0 seconds")


def test_ah(world: World) -> None:
    world.register()
    tek = AhTek("239.192.1.9")
    world.acked(push_teks(world, tek))
    held = world.agent.engine.rollover.held[tek.spi].tek
    assert (held.suite.keyword, len(held.encryption_key)) == ("sha256", 0)
    assert held.integrity_key is not None
    assert held.integrity_key.reveal() == tek.auth


def test_protected_notify_ends_the_attempt(world: World) -> None:
    """An error under the phase-1 SA does; the member tries again by itself."""
    said: list[bytes] = []

    def refuse(datagram: bytes) -> None:
        if datagram[18] == PULL and not said:
            notify = pack_notify(18, doi=GDOI)
            said.append(inform(world.server.isakmp(), 0x1234, (NOTIFY, notify)))
            world.send(said[0])

    world.before_answer = refuse
    world.agent.start()
    world.until(lambda: "registration-failed" in world.agent.names(), "the failure")
    world.agent.skew += 60
    world.until(lambda: "registered" in world.agent.names(), "the second attempt")


def test_status_notify_ends_nothing(world: World) -> None:
    """INITIAL-CONTACT and RESPONDER-LIFETIME of the IPsec DOI, under the phase-1 SA."""
    world.register()
    for mid, kind in ((0x77, 24578), (0x78, 24576)):
        isakmp = world.server.isakmp()
        notify = pack_notify(kind, isakmp.cky_i + isakmp.cky_r, 1)
        world.send(inform(isakmp, mid, (NOTIFY, notify)))
    world.settle()
    world.acked(push_teks(world, Tek("239.192.1.1")))


def test_phase1_deleted_by_the_key_server(world: World) -> None:
    """The registration's SA goes; the group and its rekeys stay."""
    world.register()
    isakmp = world.server.isakmp()
    body = pack_delete(1, [isakmp.cky_i + isakmp.cky_r], 0)
    world.send(inform(isakmp, 0x99, (DELETE, body)))
    world.settle()
    world.acked(push_teks(world, Tek("239.192.1.1")))


def test_member_that_stops_deletes_its_phase1(world: World) -> None:
    world.register()
    world.agent.perform(world.agent.engine.stop())
    world.settle()
    isakmp = world.server.isakmp()
    (gone,) = world.server.deleted
    assert (gone.doi, gone.protocol) in ((0, 1), (GDOI, 1))
    assert gone.spis == [isakmp.cky_i + isakmp.cky_r]


# -- what other key servers do ---------------------------------------------------------------------

LIFETIMES = {
    "four octets": (tlv(4, (86400).to_bytes(4, "big")), 86400),
    "basic": (tv(4, 3600), 3600),
    "two octets": (tlv(4, (3600).to_bytes(2, "big")), 3600),
}
SOURCES = {
    "nothing": BLANK,
    "three zeros": Selector(0, 0, bytes(3)),
    "IPv4 of none": EMPTY,
    "IPv4 of three zeros": Selector(ID_IPV4, 0, bytes(3)),
    "IPv4 of four zeros": Selector(ID_IPV4, 0, bytes(4)),
    "subnet 0/0": Selector(ID_SUBNET4, 0, bytes(8)),
    "subnet": Selector(ID_SUBNET4, 0, bytes([127, 0, 0, 0, 255, 0, 0, 0])),
}
# With the seconds after which the member sends with a new TEK.
GAPS = {
    "no GAP": (None, 0),
    "empty": (b"", 0),
    "SENDER_ID_REQUEST": (tv(3, 0), 0),
    "ATD alone": (tv(1, 3), 3),
    "all": (tv(1, 3) + tv(2, 9) + tv(3, 0), 3),
}
KILOBYTES = tv(1, 2) + tlv(2, (1 << 20).to_bytes(4, "big"))
TEK_LIFETIMES = {
    "basic": (tv(1, 1) + tv(2, 3600), None),
    "two octets": (tv(1, 1) + tlv(2, (3600).to_bytes(2, "big")), None),
    "and kilobytes": (tv(1, 1) + tv(2, 3600) + KILOBYTES, 1 << 20),
    "kilobytes first": (KILOBYTES + tv(1, 1) + tv(2, 3600), 1 << 20),
}


@pytest.mark.parametrize("name", LIFETIMES)
def test_kek_lifetime(name: str) -> None:
    encoded, seconds = LIFETIMES[name]
    with new_world(quirks=Quirks(lifetime=encoded)) as world:
        world.register()
        held = world.agent.engine.kek
        assert held is not None
        assert held.kek.lifetime == seconds
        world.acked(push_teks(world, Tek("239.192.1.1")))


@pytest.mark.parametrize("name", SOURCES)
def test_source(name: str) -> None:
    with new_world() as world:
        world.server.teks = [Tek("239.192.1.1", source=SOURCES[name])]
        world.register()
        tek = Tek("239.192.1.1", source=SOURCES[name])
        world.acked(push_teks(world, tek))
        assert world.agent.held[tek.spi] == tek.key


@pytest.mark.parametrize("name", GAPS)
def test_gap(name: str) -> None:
    encoded, seconds = GAPS[name]
    with new_world(quirks=Quirks(gap=encoded)) as world:
        world.register()
        tek, before = Tek("239.192.1.1"), world.agent.now()
        world.acked(push_teks(world, tek))
        active = world.agent.engine.rollover.held[tek.spi].active_from
        assert before + seconds <= active <= world.agent.now() + seconds


@pytest.mark.parametrize("name", TEK_LIFETIMES)
def test_tek_lifetime(name: str) -> None:
    encoded, kilobytes = TEK_LIFETIMES[name]
    with new_world() as world:
        world.server.teks = [Tek("239.192.1.1", lifetime=encoded)]
        world.register()
        (held,) = world.agent.engine.rollover.held.values()
        assert (held.tek.lifetime, held.tek.lifetime_kilobytes) == (3600, kilobytes)


def test_vendor_ids() -> None:
    with new_world(quirks=Quirks(vendor_ids=True)) as world:
        world.register()


@pytest.mark.parametrize("size", [8, 128])
def test_nonce_sizes(size: int) -> None:
    with new_world(quirks=Quirks(nonce=size)) as world:
        world.register()


@pytest.mark.parametrize("size", [7, 129])
def test_nonce_beyond_the_limits(size: int) -> None:
    """RFC 6407 5.8: MUST be a value between 8 and 128 octets."""
    with new_world(quirks=Quirks(nonce=size)) as world:
        world.agent.start()
        world.until(lambda: world.agent.dropped, "message 2 to be dropped")
        assert f" of {size} octets" in world.agent.dropped[0].detail
        assert world.server.members == []


def test_push_from_elsewhere(world: World) -> None:
    """RFC 8263 3: the PUSH's source address and port become the ACK's destination."""
    world.register()
    elsewhere = (world.here[0].rpartition(".")[0] + ".77", PORT + 9)
    with open_socket(elsewhere) as another:
        another.sendto(push_teks(world, Tek("239.192.1.1")), world.here)
        world.settle()
        datagram, source = another.recvfrom(65535)
    assert source == world.here
    world.server.handle(datagram, source)
    assert [ack.seq for ack in world.server.acks] == [1]


def test_first_push_resends_what_is_known(world: World) -> None:
    world.register()
    (tek,) = world.server.teks
    world.acked(push_teks(world, tek))
    assert world.agent.held == {tek.spi: tek.key}


def test_sak_in_every_push(world: World) -> None:
    """The unchanged KEK, its key included, together with TEKs new and known."""
    world.register()
    server = world.server
    for _ in range(3):
        teks = [*server.teks, Tek("239.192.1.1")]
        policy = [server.sak(), *server.gap(), *(tek.sat() for tek in teks)]
        keys = [server.kek_packet(server.kek), *(tek.packet() for tek in teks)]
        world.acked(server.push(policy, keys))
        server.teks = teks[-1:]
        assert teks[-1].spi in world.agent.held


@pytest.mark.parametrize("deletes", [False, True], ids=["", "old KEK deleted"])
@pytest.mark.parametrize("old_spi", [False, True], ids=["", "KD with the old SPI"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["SEQ from 1", "SEQ goes on"])
@pytest.mark.parametrize("with_tek", [False, True], ids=["KEK alone", "KEK and TEK"])
def test_new_kek(world: World, deletes: bool, old_spi: bool, goes_on: bool, with_tek: bool) -> None:
    world.register()
    world.acked(push_teks(world, Tek("239.192.1.1")))
    old = world.server.kek
    teks = [Tek("239.192.1.1")] if with_tek else []
    seq = old.seq + 1 if goes_on else 0
    spi = old.spi if old_spi else None
    datagram, new = rollover(world, *teks, spi=spi, deletes=deletes, seq=seq)
    world.acked(datagram)
    world.acked(push_teks(world, Tek("239.192.1.1")))
    assert new.seq == (3 if goes_on else 1)
    # And once more, now from the KEK that came by PUSH.
    datagram, _ = rollover(world, deletes=deletes)
    world.acked(datagram)
    world.acked(push_teks(world, Tek("239.192.1.1")))


@pytest.mark.parametrize("ack", [1, 3], ids=["KEK_SHA256", "KEK_SHA512"])
def test_ack_types(ack: int) -> None:
    """RFC 8263 2.1 and 2.3."""
    with new_world(ack=ack) as world:
        world.register()
        world.acked(push_teks(world, Tek("239.192.1.1")))


@pytest.mark.parametrize("ack", [0, 2, 77, 200])
def test_no_ack(ack: int) -> None:
    """None asked for, LKH without an LKH, unassigned, private: it takes part without."""
    with new_world(ack=ack) as world:
        world.register()
        tek = Tek("239.192.1.1")
        world.silent(push_teks(world, tek))
        assert tek.spi in world.agent.held


def test_ack_asked_for_by_push_alone() -> None:
    """As IEC 62351-9 notes say; and RFC 8263 7.2: the most recently received SA KEK decides."""
    with new_world(quirks=Quirks(ack_in_pull=0)) as world:
        world.register()
        server = world.server
        world.silent(push_teks(world, Tek("239.192.1.1")))
        tek = Tek("239.192.1.1")
        keys = [server.kek_packet(server.kek), tek.packet()]
        world.acked(server.push([server.sak(), tek.sat()], keys))
        datagram, _ = rollover(world, Tek("239.192.1.1"))
        world.acked(datagram)
        world.acked(push_teks(world, Tek("239.192.1.1")))


def test_ack_asked_for_no_longer(world: World) -> None:
    world.register()
    server = world.server
    world.acked(push_teks(world, Tek("239.192.1.1")))
    tek = Tek("239.192.1.1")
    keys = [server.kek_packet(server.kek), tek.packet()]
    world.silent(server.push([server.sak(ack=0), tek.sat()], keys))
    assert tek.spi in world.agent.held


# -- deletes ---------------------------------------------------------------------------------------


def test_delete_alone(world: World) -> None:
    """SEQ, D, SIG only; with ECDSA and two SPIs the message needs no padding at all."""
    first, second = Tek("239.192.1.1"), Tek("239.192.1.2")
    world.server.teks = [first, second]
    world.register()
    assert set(world.agent.held) == {first.spi, second.spi}
    datagram = world.server.push(None, deletes=[pack_delete(1, [second.spi, bytes([9] * 4)])])
    assert len(datagram) == 28 + 96
    world.acked(datagram)
    assert set(world.agent.held) == {first.spi}


def test_delete_everything(world: World) -> None:
    """RFC 6407 5.9, SPI zero for both; RFC 8263 4: acknowledged although the KEK goes."""
    world.register()
    gone = [pack_delete(1, [bytes(4)]), pack_delete(0, [bytes(16)])]
    world.acked(world.server.push(None, deletes=gone))
    assert world.agent.held == {}
    assert "group-deleted" in world.agent.names()


# -- what must not be acknowledged -----------------------------------------------------------------


def test_kernel_that_refuses(world: World) -> None:
    world.register()
    before = dict(world.agent.held)
    world.agent.kernel = lambda _: "EEXIST"
    world.silent(push_teks(world, Tek("239.192.1.1")))
    assert world.agent.held == before
    assert "install-failed" in world.agent.names()
    # It comes back by itself, and then acknowledges again.
    world.agent.kernel = lambda _: None
    world.agent.skew += 5
    world.until(lambda: world.agent.names().count("registered") == 2, "a new registration")
    world.acked(push_teks(world, Tek("239.192.1.1")))


def test_replay_and_forgery(world: World) -> None:
    """A PUSH again, one with a lower SEQ, one octet turned anywhere: nothing happens."""
    world.register()
    first = push_teks(world, Tek("239.192.1.1"))
    second = push_teks(world, Tek("239.192.1.1"))
    world.acked(second)
    world.silent(first)
    world.silent(second)
    tek = Tek("239.192.1.1")
    third = push_teks(world, tek)
    for offset in range(16, len(third), 7):
        forged = third[:offset] + bytes([third[offset] ^ 0x10]) + third[offset + 1 :]
        world.send(forged)
    world.settle()
    assert tek.spi not in world.agent.held
    world.acked(third)


def test_signed_by_another(world: World) -> None:
    world.register()
    server = world.server
    right = server.signer
    server.signer = ec.generate_private_key(ec.SECP256R1())
    tek = Tek("239.192.1.1")
    world.silent(push_teks(world, tek))
    assert tek.spi not in world.agent.held
    server.signer = right
    server.kek.seq -= 1
    world.acked(push_teks(world, tek))


def test_key_for_an_sa_not_described(world: World) -> None:
    """SPIs of key packets MUST match the SAs'; a TEK without a key is no policy."""
    world.register()
    server = world.server
    tek, other = Tek("239.192.1.1"), Tek("239.192.1.1")
    world.silent(server.push([tek.sat()], [other.packet()]))
    assert not {tek.spi, other.spi} & set(world.agent.held)


def test_unknown_attributes_abort(world: World) -> None:
    """RFC 6407 5.3.2, 5.4: MUST abort if it encounters an attribute it does not understand."""
    world.register()
    tek = Tek("239.192.1.1")
    gap: Payload = (22, tv(77, 1))
    world.silent(world.server.push([gap, tek.sat()], [tek.packet()]))
    assert tek.spi not in world.agent.held


# -- things in between -----------------------------------------------------------------------------


def test_exchange_34_in_between(world: World) -> None:
    def beat(datagram: bytes) -> None:
        body = chain([(VENDOR, secrets.token_bytes(8))])
        header = Header(datagram[:8], datagram[8:16], VENDOR, 34, 0, 0, 28 + len(body))
        world.send(header.pack() + body)

    world.before_answer = beat
    world.register()
    beat(world.server.kek.spi)
    world.acked(push_teks(world, Tek("239.192.1.1")))


# -- readings of the RFCs that were found to differ ------------------------------------------------


def test_kek_management_algorithm_in_a_pull() -> None:
    """RFC 6407 5.3: MUST NOT be included in a GROUPKEY-PULL, and MUST be ignored if present."""
    with new_world(quirks=Quirks(more_sak=tv(1, 1))) as world:
        world.register()


def test_kek_without_a_lifetime() -> None:
    """RFC 6407 5.3: KEK_ALGORITHM and SIG_ALGORITHM MUST be included; others are OPTIONAL."""
    with new_world(quirks=Quirks(lifetime=b"")) as world:
        world.register()
        held = world.agent.engine.kek
        assert held is not None
        assert held.kek.lifetime == 2**32 - 1


def test_tek_without_a_lifetime() -> None:
    """RFC 2407 4.5: if unspecified, the default value shall be assumed to be 28800 seconds."""
    with new_world() as world:
        world.server.teks = [Tek("239.192.1.1", lifetime=b"")]
        world.register()
        (held,) = world.agent.engine.rollover.held.values()
        assert held.tek.lifetime == 28800
