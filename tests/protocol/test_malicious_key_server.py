"""A key server that signs anything: what a member takes, what it refuses, and what it may cost."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import FrameType

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from gdoi_xfrm import Lifetime

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.protocol import acknowledger as acknowledger_module
from gdoi_plugin.protocol import rollover
from gdoi_plugin.protocol.actions import Drop, Send
from gdoi_plugin.protocol.policy import Flow, GroupPolicy, Kek, encode_kd, encode_sa
from gdoi_plugin.protocol.push import ALL_KEKS, all_teks
from gdoi_plugin.protocol.rekey_sas import MAX_PREVIOUS
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import (
    MAX_SATS,
    Endpoint,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaTek,
)
from gdoi_plugin.wire.header import MAX_MESSAGE
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import Doi, TekProtocol
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.protocol.test_push import new_kek, new_tek, ready, with_sat
from tests.protocol.test_push_refused import TEK, sak_attributes, sat_attributes
from tests.support.forge import multicast, only_drop, push, push_policy, seal_push
from tests.support.insider import as_key_server
from tests.support.worlds import ECDSA, FLOW, RSA, SERVER, World, signer, wired

ESP = TekProtocol.GDOI_PROTO_IPSEC_ESP


def teks(count: int, first: int = 0x1000) -> GroupPolicy:
    return GroupPolicy(None, tuple(new_tek(first + n) for n in range(count)), 0xFFFF, 0xFFFF)


def refused(world: World, datagram: bytes, why: str) -> None:
    """Loudly, without an ACK, and with the SAs as they were."""
    before = dict(world.member.kernel.sas)
    actions = multicast(world, datagram)
    assert world.member.dropped()[-1] is Drop.UNACCEPTABLE_POLICY
    assert why in str(world.member.events("rekey-refused")[-1].fields["error"])
    assert not any(isinstance(action, Send) for action in actions)
    assert world.member.kernel.sas == before


def refused_pull(sa: GroupSecurityAssociation, kd: KeyDownload | None, why: str) -> None:
    """The same in GROUPKEY-PULL: in message 2, or where ``kd`` is given in message 4."""
    wire, world = wired()
    world.start()
    wire.pass_on(7)
    wire.waiting.clear()
    offer = as_key_server(world.member.group, [Nonce(bytes(range(16))), sa])
    world.member.hear(offer, SERVER)
    if kd is not None:
        wire.waiting.clear()
        keys = as_key_server(world.member.group, [SequenceNumber(0), kd])
        world.member.hear(keys, SERVER)
    failed = world.member.events("registration-failed")
    assert len(failed) == 1
    assert why in str(failed[0].fields["error"])
    assert world.member.kernel.sas == {}
    assert world.member.group.kek is None
    assert wire.waiting, "the key server is told"


def test_a_thousand_sats_are_refused() -> None:
    _, world = ready()
    sats = tuple(sat for _ in range(4) for sat in encode_sa(teks(MAX_SATS)).sats)[:1000]
    refused(
        world, push(world, GroupSecurityAssociation(None, None, sats), encode_kd(teks(1))), "SATs"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"lifetime": 0}, "lifetime of 0"), ({"spi": bytes(4)}, "reserved")],
    ids=["lifetime 0", "SPI 0"],
)
def test_impossible_values_are_refused(changes: dict[str, object], why: str) -> None:
    _, world = ready()
    policy = GroupPolicy(None, (replace(new_tek(), **changes),))  # type: ignore[arg-type]
    refused(world, push_policy(world, policy), why)


def test_the_same_spi_twice_is_refused() -> None:
    _, world = ready()
    refused(world, push_policy(world, GroupPolicy(None, (new_tek(), new_tek()))), "same SPI")


def test_a_cipher_of_yesterday_is_refused() -> None:
    _, world = ready()
    policy = GroupPolicy(None, (new_tek(),))
    (sat,) = encode_sa(policy).sats
    for transform in (2, 3, 11):  # ESP_DES, ESP_3DES, ESP_NULL
        weak = SaTek(sat.protocol_id, replace(sat.tek, transform_id=transform))  # type: ignore[type-var]
        sa = GroupSecurityAssociation(None, None, (weak,))
        refused(world, push(world, sa, encode_kd(policy)), "transform")


# -- what a TEK may protect ----------------------------------------------------------------------


def tek_for(destination: str, source: str | None = None) -> GroupPolicy:
    network = None if source is None else ip_network(source)
    return GroupPolicy(None, (new_tek(flow=Flow(network, ip_address(destination))),))


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        ("224.0.0.1", "link's control"),  # all hosts: IGMP queries
        ("224.0.0.5", "link's control"),  # OSPF
        ("224.0.0.22", "link's control"),  # IGMPv3 reports
        ("224.0.0.255", "link's control"),
        ("ff01::1", "link's control"),
        ("ff02::1", "link's control"),  # all nodes: router advertisements
        ("ff02::16", "link's control"),  # MLDv2 reports
        ("ff02::1:ff00:1", "link's control"),  # neighbour solicitations
        ("10.0.0.2", "not multicast"),  # the member itself
        ("10.0.0.1", "not multicast"),  # its key server
        ("127.0.0.1", "not multicast"),
        ("10.0.0.255", "not multicast"),
        ("255.255.255.255", "not multicast"),
        ("240.0.0.1", "not multicast"),
        ("fe80::1", "not multicast"),
        ("::1", "not multicast"),
        ("::ffff:239.1.1.1", "not multicast"),
        ("0.0.0.0", "one exact address"),  # noqa: S104
        ("::", "one exact address"),
    ],
)
def test_no_key_server_cuts_a_member_off(destination: str, why: str) -> None:
    _, world = ready()
    policy = tek_for(destination)
    refused(world, push_policy(world, policy), why)
    refused_pull(encode_sa(policy), None, why)


@pytest.mark.parametrize("destination", ["224.0.1.1", "239.255.255.250", "ff12::1", "ff05::2"])
def test_what_is_next_to_them_may_be_protected(destination: str) -> None:
    _, world = ready()
    multicast(world, push_policy(world, tek_for(destination)))
    assert new_tek().spi in world.member.kernel.sas


def test_a_source_of_the_other_family_is_refused() -> None:
    _, world = ready()
    for destination, source in (("239.1.1.1", "2001:db8::/32"), ("ff15::1", "10.0.0.0/8")):
        policy = tek_for(destination, source)
        refused(world, push_policy(world, policy), "and destination")
        refused_pull(encode_sa(policy), None, "and destination")


@pytest.mark.parametrize(
    ("kind", "octets"), [(1, 4), (4, 8), (5, 16), (6, 32), (1, 3), (5, 3), (2, 0), (11, 255)]
)
def test_a_source_of_zeros_is_anybody_of_the_destinations_family(kind: int, octets: int) -> None:
    _, world = ready()
    sa = encode_sa(TEK)
    sa = with_sat(sa, source=Endpoint(kind, 0, bytes(octets)))
    multicast(world, push(world, sa, encode_kd(TEK)))
    held = world.member.group.rollover.held[new_tek().spi]
    assert held.tek.flow == Flow(None, FLOW.destination)


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2**32 - 1, 2**32, 2**64 - 1])
def test_the_longest_lifetimes_are_those_of_four_octets(seconds: int) -> None:
    _, world = ready()
    policy = GroupPolicy(new_kek(), (new_tek(),), 0, 0)
    sa = encode_sa(policy)
    long = Attribute(2, seconds.to_bytes(8, "big"))
    kilobytes = (Attribute(1, 2), long)
    sa = sat_attributes(sa, Attribute(1, 1), long, *kilobytes)
    sa = sak_attributes(sa, Attribute(4, long.octets()), without=4)
    multicast(world, push(world, sa, encode_kd(policy)))
    group = world.member.group
    tek = group.rollover.held[new_tek().spi].tek
    assert tek.lifetime == 2**32 - 1
    assert group.kek is not None
    assert group.kek.kek.lifetime == 2**32 - 1
    assert group.kek.expires == world.now + 2**32 - 1
    # What the kernel is told it can count.
    assert tek.lifetime_kilobytes is not None
    assert Lifetime(hard_bytes=tek.lifetime_kilobytes * 1024).hard_bytes
    # Nine octets are no number.
    sa = sat_attributes(encode_sa(TEK), Attribute(1, 1), Attribute(2, bytes(8) + b"\1"))
    refused(world, seal_new(1, sa, encode_kd(TEK)), "number of 9 octets")


def seal_new(seq: int, *parts: Body) -> bytes:
    """Under the KEK of ``new_kek``, which the member has by now."""
    return seal_push(new_kek(), signer(ECDSA, 7), [SequenceNumber(seq), *parts])


@pytest.mark.parametrize("value", [65535, (65536).to_bytes(4, "big"), b"\xff" * 8])
def test_the_longest_delays_are_those_of_two_octets(value: int | bytes) -> None:
    _, world = ready()
    (old,) = world.member.kernel.sas
    gap = GroupAssociatedPolicy((Attribute(1, value), Attribute(2, value)))
    multicast(world, push(world, replace(encode_sa(TEK), gap=gap), encode_kd(TEK)))
    held = world.member.group.rollover.held
    # ATD and DTD end before its lifetime does, or with it: there is always one that sends.
    assert set(held) == {old, new_tek().spi}
    assert held[new_tek().spi].active_from <= world.now + 65535
    retire_at = held[old].retire_at
    assert retire_at is not None
    assert retire_at <= world.now + 65535
    sending = world.member.kernel.sending(FLOW)
    assert sending is not None
    assert sending.spi == old


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ((Attribute(1, b""),), "number of 0 octets"),
        ((Attribute(1, bytes(9)),), "number of 9 octets"),
        ((Attribute(1, 1), Attribute(1, 2)), "attribute 1 twice"),
        ((Attribute(4, 1),), "GAP attribute 4"),
        ((Attribute(0x7FFF, b"x" * 500),), "GAP attribute 32767"),
        (tuple(Attribute(n, 1) for n in range(100, 165)), "more than 64 attributes"),
    ],
    ids=["empty", "9 octets", "twice", "unknown", "long", "65 attributes"],
)
def test_a_gap_of_rubbish_is_refused(attributes: tuple[Attribute, ...], why: str) -> None:
    _, world = ready()
    sa = replace(encode_sa(TEK), gap=GroupAssociatedPolicy(attributes))
    refused(world, push(world, sa, encode_kd(TEK)), why)


@pytest.mark.parametrize("seq", [1000, 2**31, 2**32 - 1])
def test_a_seq_that_jumps_is_taken_and_said(seq: int) -> None:
    _, world = ready()
    actions = multicast(world, push(world, encode_sa(TEK), encode_kd(TEK), seq=seq))
    assert new_tek().spi in world.member.kernel.sas
    assert world.member.events("rekey-received")[-1].fields["seq"] == seq
    assert any(isinstance(action, Send) for action in actions), "acknowledged"
    # What is not beyond it is a replay from now on, for good; a new KEK by PULL begins anew.
    assert only_drop(multicast(world, push(world, seq=seq))) is Drop.REPLAY
    assert only_drop(multicast(world, push(world, seq=seq - 1))) is Drop.REPLAY


# -- the KEK and its keys ------------------------------------------------------------------------


def rsa_key(bits: int, exponent: int) -> bytes:
    """A public key that nobody could make: the modulus is any odd number of so many bits."""
    numbers = rsa.RSAPublicNumbers(exponent, (1 << bits - 1) + 1)
    return numbers.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def other_keys() -> dict[str, tuple[bytes, str]]:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    edwards = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(der, spki)
    no_key, no_der = "is no key for signature algorithm", "not a DER SubjectPublicKeyInfo"
    return {
        "P-384": (signer(SCHEMES["ecdsa384"]).public_der, "key on curve secp384r1"),
        "RSA": (signer(RSA).public_der, no_key),
        "Ed25519": (edwards, no_key),
        "cut short": (signer(ECDSA).public_der[:-1], no_der),
        "a private key": (signer(ECDSA).private_der().reveal(), no_der),
        "nothing": (b"", no_der),
        "60,000 octets": (bytes(60_000), no_der),
    }


@pytest.mark.parametrize("name", other_keys())
def test_sig_algorithm_key_of_another_type_is_refused(name: str) -> None:
    _, world = ready()
    key, why = other_keys()[name]
    policy = GroupPolicy(new_kek(public_der=key), ())
    before = world.member.group.kek
    refused(world, push_policy(world, policy), why)
    assert world.member.group.kek is before


@pytest.mark.parametrize(
    ("bits", "exponent", "why"),
    [
        (2048, 3, "exponent"),
        (2048, 17, "exponent"),
        (2048, 65535, "exponent"),
        (2048, 2**64 + 1, "exponent"),
        (1024, 65537, "1024 bits"),
        (2047, 65537, "2047 bits"),
        (8192, 65537, "8192 bits"),
    ],
)
def test_weak_and_costly_rsa_keys_are_refused(bits: int, exponent: int, why: str) -> None:
    _, world = ready()
    scheme = replace(RSA, key_length=0)
    policy = GroupPolicy(new_kek(scheme=scheme, public_der=rsa_key(bits, exponent)), ())
    refused(world, push_policy(world, policy), why)


def tlv(tag: int, octets: bytes) -> bytes:
    """DER with a length of two octets, as long as it may be written so."""
    assert len(octets) >= 128
    return bytes((tag, 0x82)) + len(octets).to_bytes(2, "big") + octets


@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_an_rsa_exponent_of_one_is_refused(exponent: int) -> None:
    """Everything would be its own signature. The library makes no such key: DER by hand."""
    good = signer(RSA).public_der
    algorithm, modulus = good[4:19], good[28:-5]
    key = tlv(0x30, modulus + bytes((2, 1, exponent)))
    assert tlv(0x30, algorithm + tlv(3, b"\0" + tlv(0x30, modulus + good[-5:]))) == good
    der = tlv(0x30, algorithm + tlv(3, b"\0" + key))
    _, world = ready()
    policy = GroupPolicy(new_kek(scheme=RSA, public_der=der), ())
    refused(world, push_policy(world, policy), "not a DER SubjectPublicKeyInfo")


SAK = GroupPolicy(new_kek(), ())


@pytest.mark.parametrize(
    ("attribute", "why"),
    [
        (Attribute(2, 1), "KEK_ALG_DES"),
        (Attribute(2, 2), "KEK_ALG_3DES"),
        (Attribute(2, 0), "KEK_ALGORITHM 0"),
        (Attribute(3, 64), "KEK_KEY_LENGTH 64"),
        (Attribute(3, 129), "KEK_KEY_LENGTH 129"),
        (Attribute(3, 0xFFFF), "KEK_KEY_LENGTH 65535"),
        (Attribute(5, 1), "SIG_HASH_MD5"),
        (Attribute(5, 2), "SIG_HASH_SHA1"),
        (Attribute(6, 0), "signature 0"),
        (Attribute(7, 512), "key of 512 bits"),
        (Attribute(0x7FFF, b"x"), "KEK attribute 32767"),
    ],
    ids=str,
)
def test_a_sak_beyond_what_is_safe_or_known_is_refused(attribute: Attribute, why: str) -> None:
    _, world = ready()
    sa = sak_attributes(encode_sa(SAK), attribute, without=attribute.type)
    refused(world, push(world, sa, encode_kd(SAK)), why)
    refused_pull(sa, None, why)


@pytest.mark.parametrize("bits", [192, 256])
def test_a_kek_of_another_length_than_its_sak_says_is_refused(bits: int) -> None:
    _, world = ready()
    sa = sak_attributes(encode_sa(SAK), Attribute(3, bits), without=3)
    refused(world, push(world, sa, encode_kd(SAK)), "KEK_ALGORITHM_KEY of 32 octets")
    refused_pull(sa, encode_kd(SAK), "KEK_ALGORITHM_KEY of 32 octets")


def test_a_kek_with_an_spi_of_zero_is_refused() -> None:
    """A Delete could not name it, and no PUSH has cookies of zero."""
    policy = GroupPolicy(new_kek(spi=bytes(16)), ())
    _, world = ready()
    refused(world, push_policy(world, policy), "SPI of zero")
    refused_pull(encode_sa(policy), None, "SPI of zero")


# -- the TEK's transform and keys ----------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 4, 8, 9, 0, 0xFFFF])
def test_an_hmac_of_yesterday_is_refused(number: int) -> None:
    """MD5, SHA-1, DES-MAC, KPDK, RIPEMD, AES-XCBC and what has no name."""
    _, world = ready()
    sa = sat_attributes(encode_sa(TEK), Attribute(5, number), without=5)
    refused(world, push(world, sa, encode_kd(TEK)), f"authentication algorithm {number}")
    refused_pull(sa, None, f"authentication algorithm {number}")


@pytest.mark.parametrize("bits", [0, 64, 127, 160, 512, 0xFFFF])
def test_an_aes_key_length_that_there_is_not_is_refused(bits: int) -> None:
    _, world = ready()
    sa = sat_attributes(encode_sa(TEK), Attribute(6, bits), without=6)
    refused(world, push(world, sa, encode_kd(TEK)), f"key length {bits}")
    refused_pull(sa, None, f"key length {bits}")


@pytest.mark.parametrize(("cipher", "integrity"), [(0, 32), (31, 32), (33, 32), (32, 0), (32, 33)])
def test_keys_of_another_length_than_the_transforms_are_refused(
    cipher: int, integrity: int
) -> None:
    keys = Secret(bytes(cipher)), Secret(bytes(integrity))
    policy = GroupPolicy(None, (new_tek(encryption_key=keys[0], integrity_key=keys[1]),))
    _, world = ready()
    why = f"keys of {cipher} and {integrity} octets"
    refused(world, push_policy(world, policy), why)
    refused_pull(encode_sa(policy), encode_kd(policy), why)


# -- what it takes away --------------------------------------------------------------------------


def test_a_push_that_deletes_everything_leaves_a_member_that_registers_again() -> None:
    wire, world = ready()
    ah = TekProtocol.GDOI_PROTO_IPSEC_AH
    multicast(world, push(world, deletes=[all_teks(ESP), all_teks(ah), ALL_KEKS]))
    group = world.member.group
    assert world.member.kernel.sas == {}
    assert (group.kek, group.previous, dict(group.rollover.held)) == (None, {}, {})
    assert world.member.events("group-deleted")
    wire.run(2.1)
    wire.settle()
    assert len(world.member.events("registered")) == 2
    assert world.converged()


def test_a_push_that_replaces_the_key_it_deletes_keeps_the_new_one() -> None:
    _, world = ready()
    multicast(world, push_policy(world, GroupPolicy(new_kek(), (), 0, 0), [ALL_KEKS]))
    group = world.member.group
    assert group.kek is not None
    assert group.kek.kek.spi == new_kek().spi
    assert group.previous == {}


def test_deletes_by_the_thousand_delete_what_they_name_once() -> None:
    _, world = ready()
    (held,) = world.member.kernel.sas
    many = tuple(number.to_bytes(4, "big") for number in range(0x2000, 0x2000 + 1023))
    deletes: list[Body] = [Delete(Doi.GDOI, ESP, (*many, held))] * 8
    multicast(world, push(world, deletes=deletes))
    assert world.member.kernel.sas == {}


def test_ever_new_teks_fill_no_more_than_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rollover.MAX_HELD >= 4 * MAX_SATS, "room for what overlaps"
    monkeypatch.setattr(rollover, "MAX_HELD", 200)
    _, world = ready()
    for number in range(3):
        multicast(world, push_policy(world, teks(64, 0x1000 + number * 64)))
    assert len(world.member.kernel.sas) == 3 * 64 + 1
    refused(world, push_policy(world, teks(64, 0x900000)), "too many")


def test_ever_new_keks_push_out_the_oldest() -> None:
    _, world = ready()
    under, signing = world.group.current_kek().kek, world.group.current_kek().signer
    for number in range(1, 3 * MAX_PREVIOUS):
        kek: Kek = new_kek(spi=number.to_bytes(8, "big") * 2)
        policy = GroupPolicy(kek, (new_tek(0x1000 + number),), 0, 0)
        payloads: list[Body] = [SequenceNumber(1), encode_sa(policy), encode_kd(policy)]
        multicast(world, seal_push(under, signing, payloads))
        assert world.member.group.kek is not None
        assert world.member.group.kek.kek.spi == kek.spi
        under, signing = kek, signer(ECDSA, 7)
    assert len(world.member.group.previous) == MAX_PREVIOUS


def test_a_flood_of_rekeys_owes_a_bounded_number_of_acks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledger_module, "MAX_WAITING", 8)
    _, world = ready()
    acknowledger = world.member.group.acknowledger
    acknowledger.jitter = 5.0
    for _ in range(30):
        multicast(world, push_policy(world, GroupPolicy(None, (new_tek(),), 0, 0)))
    assert 0 < len(acknowledger.deadlines) <= 8


# -- what one datagram may cost ------------------------------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """Functions called: a clock that no busy machine disturbs."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def cost(count: int) -> tuple[int, int]:
    """Calls and octets of memory that a PUSH with ``count`` SATs costs a member."""
    _, world = ready()
    datagram = push_policy(world, teks(count))
    assert len(datagram) <= MAX_MESSAGE
    calls = calls_of(lambda: multicast(world, datagram))
    assert len(world.member.kernel.sas) == count + 1
    _, world = ready()
    datagram = push_policy(world, teks(count))
    tracemalloc.start()
    multicast(world, datagram)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return calls, peak


def test_work_and_memory_grow_with_the_size_of_a_push_and_not_with_its_square() -> None:
    half, whole = cost(MAX_SATS // 2), cost(MAX_SATS)
    assert whole[0] < 2.5 * half[0], "calls"
    assert whole[1] < 2.5 * half[1], "memory"
    assert whole[1] < 16 << 20
