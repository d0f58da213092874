"""What the worst datagram may cost, whoever sends it: memory and work linear in its octets.

Work is counted in functions called: a clock that no busy machine disturbs. Each case is the largest
message of its kind that passes as many checks as its limits allow, once at half and once at full
size.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Action
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.certificate import MAX_AUTHORITY, MAX_CERTIFICATE, CertificateRequest
from gdoi_plugin.wire.delete import MAX_DELETE_SPIS, Delete
from gdoi_plugin.wire.group_sa import (
    MAX_SATS,
    Endpoint,
    EspTek,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaTek,
)
from gdoi_plugin.wire.header import MAX_MESSAGE, Header, pull_header
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.lkh import LkhKey, LkhUpdateArray
from gdoi_plugin.wire.message import encode_clear, pull_clear
from gdoi_plugin.wire.notification import MAX_NOTIFY_DATA, Notification
from gdoi_plugin.wire.opaque import KeyExchange, NatDiscovery, Nonce, VendorId
from gdoi_plugin.wire.payload import MAX_PAYLOADS, Body
from gdoi_plugin.wire.registry import (
    CertEncoding,
    Doi,
    ExchangeType,
    IdType,
    KeyPacketType,
    LkhKeyAttribute,
    NotifyType,
    Protocol,
    SaAttribute,
    TekProtocol,
)
from gdoi_plugin.wire.sa import Proposal, SecurityAssociation, Transform
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.protocol.test_certificates import Pair
from tests.protocol.test_malicious_key_server import calls_of
from tests.support.clone import clone
from tests.support.forge import seal_push
from tests.support.insider import (
    Raw,
    acknowledge,
    as_either,
    as_key_server,
    as_member_3,
    main_mode_exchange,
    member_sa,
    rewound,
    seal_main_mode,
    server_sa,
)
from tests.support.pki import ROOT, certificates, issue
from tests.support.simnet import Host
from tests.support.worlds import REKEY, SERVER, World, member_peer, wired

GM = member_peer(0)
ROOM = 62_500
# Python's objects for what fills an octet or two of a datagram: tuples, an int, an Attribute.
PEAK_PER_OCTET, PEAK_CONSTANT = 32, 128 << 10
CALLS_PER_OCTET, CALLS_CONSTANT = 8, 20_000


@cache
def after(messages: int) -> World:
    wire, world = wired()
    world.start()
    wire.pass_on(messages)
    return world


def cookies_of(world: World) -> Header:
    """Of the main mode under way."""
    sent = world.network.sent[1][1].datagram
    return Header(sent[:8], sent[8:16], 0, ExchangeType.MAIN_MODE)


# -- what fills a datagram -----------------------------------------------------------------------


def soup(octets: int, first: Sequence[Body | Raw] = (), kind: Any = VendorId) -> list[Body | Raw]:
    """As many payloads as a message may have, after ``first``, equally long."""
    number = MAX_PAYLOADS - len(first) - 2  # room for HASH, or SEQ and SIG
    return [*first, *(kind(bytes([n]) * (octets // number - 4)) for n in range(number))]


def offers(octets: int, per_transform: int) -> SecurityAssociation:
    """Attributes of four octets, in transforms, in all the proposals there may be."""
    attributes = tuple(Attribute(n + 20, 1) for n in range(per_transform))
    size = 8 + 4 * per_transform
    count = octets // size // 8
    transforms = tuple(Transform(n % 256, 1, attributes) for n in range(min(count, 255)))
    return SecurityAssociation(
        Doi.GDOI, 0, tuple(Proposal(1, 1, b"", transforms) for _ in range(8))
    )


def sats(octets: int) -> GroupSecurityAssociation:
    """Attributes that are read and ignored (RFC 6407 section 5.5.1), as many as fit."""
    each = octets // MAX_SATS - 32
    address = Endpoint(IdType.ID_IPV4_ADDR, 0, REKEY.host.packed)
    ignored = (Attribute(SaAttribute.GROUP_DESCRIPTION, 1),) * min(each // 4, 64)
    bodies = (
        EspTek(0, address, address, 12, number.to_bytes(4, "big"), ignored)
        for number in range(0x1000, 0x1000 + MAX_SATS)
    )
    return GroupSecurityAssociation(
        None, None, tuple(SaTek(TekProtocol.GDOI_PROTO_IPSEC_ESP, body) for body in bodies)
    )


def packets(octets: int) -> KeyDownload:
    """Key packets with as many attributes as fit, none of them known."""
    attributes = tuple(Attribute(n + 20, 1) for n in range((octets // 264 - 9) // 4))
    spis = (number.to_bytes(4, "big") for number in range(264))
    return KeyDownload(tuple(KeyPacket(KeyPacketType.TEK, spi, attributes) for spi in spis))


def arrays(octets: int) -> KeyDownload:
    """LKH_UPDATE_ARRAYs by the thousand."""
    buf = Buffer()
    LkhUpdateArray(7, 7, (LkhKey(3, 3, 3, bytes(32)),)).push(buf)
    attribute = Attribute(LkhKeyAttribute.LKH_UPDATE_ARRAY, buf.data)
    count = octets // (4 + len(buf.data))
    return KeyDownload((KeyPacket(KeyPacketType.LKH, bytes(16), (attribute,) * count),))


def deletes(octets: int, spi: int, size: int, protocol: int) -> list[Body | Raw]:
    """The most SPIs that Deletes can name: ``spi`` again and again, or each another."""
    count = min(octets // 60 // size, MAX_DELETE_SPIS)
    modulus = 256**size
    named = tuple(((spi * n) % modulus).to_bytes(size, "big") for n in range(count))
    return [Delete(Doi.GDOI, protocol, named)] * 60


def notifies(octets: int, kind: int, cookies: bytes) -> list[Body | Raw]:
    data = octets * MAX_NOTIFY_DATA // ROOM
    return [
        Notification(Doi.IPSEC, Protocol.PROTO_ISAKMP, cookies, kind, bytes([n]) * data)
        for n in range(60)
    ]


def questions(octets: int, cookies: bytes) -> list[Body | Raw]:
    """R-U-THERE, each with a newer number: every one wants an answer."""
    return [
        Notification(Doi.IPSEC, 1, cookies, NotifyType.R_U_THERE, (n + 1).to_bytes(4, "big"))
        for n in range(octets * 60 // ROOM)
    ]


# -- the cases -----------------------------------------------------------------------------------

# Octets to fill; gives the host in its state, the datagram, and where it arrives.
Case = Callable[[int], tuple[Host, bytes]]


def to_server(
    messages: int, make: Callable[[World, int], bytes], octets: int
) -> tuple[Host, bytes]:
    world = clone(after(messages))
    return world.server, make(world, octets)


def to_member(
    messages: int, make: Callable[[World, int], bytes], octets: int
) -> tuple[Host, bytes]:
    world = clone(after(messages))
    return world.member, make(world, octets)


def main_1(_: World, octets: int, per_transform: int = 0) -> bytes:
    header = Header(b"\1" * 8, bytes(8), 0, ExchangeType.MAIN_MODE)
    return encode_clear(header, [offers(octets * 8000 // ROOM, per_transform)])


def main_1_too_long(_: World, octets: int) -> bytes:
    header = Header(b"\1" * 8, bytes(8), 0, ExchangeType.MAIN_MODE)
    return encode_clear(header, [offers(octets, 60)])


def main_2(world: World, octets: int, per_transform: int) -> bytes:
    return encode_clear(cookies_of(world), [offers(octets, per_transform)])


def keys(world: World, octets: int, kind: Any) -> bytes:
    """Message 3 or 4 with a KE that is right, and everything that may stand beside it."""
    sent = next(s.datagram for _, s in world.network.sent if s.datagram[16] == 4)
    public = pull_clear(pull_header(sent), sent).payloads[0].body
    checks = [NatDiscovery(bytes([n]) * 64) for n in range(30)]
    first: list[Body | Raw] = [KeyExchange(public), Nonce(bytes(32)), *checks]
    left = octets - 30 * 68 - 200
    return encode_clear(cookies_of(world), soup(left, first, kind))  # type: ignore[arg-type]


def request(data: bytes) -> CertificateRequest:
    return CertificateRequest(CertEncoding.X509_SIGNATURE, data[:MAX_AUTHORITY])


def proof(world: World, octets: int) -> bytes:
    """Message 5 or 6 whose HASH is wrong, with notifies all over."""
    exchange = main_mode_exchange(world.member.group)
    if len(world.network.sent) == 5:
        exchange = rewound(exchange)
    first: list[Body | Raw] = [Raw(5, b"\1\0\0\0" + GM.host.packed), Raw(8, bytes(32))]
    return seal_main_mode(exchange, [*first, *notifies(octets, 24578, bytes(16))])


def under(exchange: ExchangeType, payloads: Callable[[int, bytes], Any], at: str) -> Any:
    """A phase-2 message 1 of who has the keys."""

    def make(world: World, octets: int) -> bytes:
        sa = server_sa(world.server.engine) if at == "server" else member_sa(world.member.group)
        return as_either(sa, exchange, 77, payloads(octets, sa.cookies))

    return make


INFORMATIONALS: dict[str, Callable[[int, bytes], Any]] = {
    "vendor IDs": lambda n, _: soup(n),
    "errors": lambda n, c: notifies(n, NotifyType.AUTHENTICATION_FAILED, c),
    "questions": questions,
    "deletes": lambda n, _: deletes(n, 3, 1, 0),
    "cookies deleted": lambda n, _: deletes(n, 3, 16, 1),
}


def pushed(payloads: Callable[[int], Sequence[Body | Raw]]) -> Callable[[World, int], bytes]:
    def make(world: World, octets: int) -> bytes:
        held = world.group.current_kek()
        return seal_push(held.kek, held.signer, [SequenceNumber(9), *payloads(octets)])  # type: ignore[list-item]

    return make


CASES: dict[str, Case] = {
    "main mode 1, transforms": partial(to_server, 0, main_1),
    "main mode 1, attributes": partial(to_server, 0, partial(main_1, per_transform=60)),
    "main mode 1, too long": partial(to_server, 0, main_1_too_long),
    "main mode 2, transforms": partial(to_member, 1, partial(main_2, per_transform=23)),
    "main mode 2, attributes": partial(to_member, 1, partial(main_2, per_transform=60)),
    "main mode 3, vendor IDs": partial(to_server, 2, partial(keys, kind=VendorId)),
    "main mode 3, CERTREQ": partial(to_server, 2, partial(keys, kind=request)),
    "main mode 4, vendor IDs": partial(to_member, 3, partial(keys, kind=VendorId)),
    "main mode 4, CERTREQ": partial(to_member, 3, partial(keys, kind=request)),
    "main mode 5": partial(to_server, 4, proof),
    "main mode 6": partial(to_member, 5, proof),
    "PULL 1": partial(
        to_server, 6, under(ExchangeType.GROUPKEY_PULL, lambda n, _: soup(n), "server")
    ),
    "PULL 2": partial(
        to_member, 7, lambda w, n: as_key_server(w.member.group, [Nonce(bytes(32)), sats(n)])
    ),
    "PULL 3": partial(
        to_server,
        8,
        lambda w, n: as_member_3(
            w.server.engine,
            [GroupAssociatedPolicy(tuple(Attribute(4, bytes(n // 64 - 4)) for _ in range(64)))],
        ),
    ),
    "PULL 4, packets": partial(
        to_member,
        9,
        lambda w, n: as_key_server(w.member.group, [SequenceNumber(0), packets(n)]),
    ),
    "PULL 4, arrays": partial(
        to_member, 9, lambda w, n: as_key_server(w.member.group, [SequenceNumber(0), arrays(n)])
    ),
    **{
        f"Informational, {name} to a {who}": partial(
            {"server": to_server, "member": to_member}[who],
            10,
            under(ExchangeType.INFORMATIONAL, payloads, who),
        )
        for who in ("server", "member")
        for name, payloads in INFORMATIONALS.items()
    },
    "PUSH, SATs": partial(to_member, 10, pushed(lambda n: [sats(n), KeyDownload(())])),
    "PUSH, packets": partial(to_member, 10, pushed(lambda n: [sats(8192), packets(n - 12_000)])),
    "PUSH, deletes": partial(to_member, 10, pushed(lambda n: deletes(n, 3, 4, 1))),
    "PUSH, the shortest deletes": partial(to_member, 10, pushed(lambda n: deletes(n, 3, 1, 1))),
    "PUSH, everything deleted": partial(to_member, 10, pushed(lambda n: deletes(n, 0, 1, 1))),
    "PUSH, KEKs deleted": partial(to_member, 10, pushed(lambda n: deletes(n, 0, 1, 0))),
    "PUSH, vendor IDs": partial(to_member, 10, pushed(soup)),
    "ACK": partial(to_server, 10, lambda w, n: acknowledge(w.group.current_kek().kek, soup(n))),
}


def hear(host: Host, datagram: bytes) -> list[Action]:
    assert len(datagram) <= MAX_MESSAGE
    return host.hear(datagram, SERVER if host.address == GM else GM)


def calls(case: Case, octets: int) -> tuple[int, int]:
    """Functions called, and how long the datagram was."""
    host, datagram = case(octets)
    return calls_of(lambda: hear(host, datagram)), len(datagram)


def peak(case: Case, octets: int) -> tuple[int, int]:
    host, datagram = case(octets)
    tracemalloc.start()
    hear(host, datagram)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most, len(datagram)


# CERTs and CERTREQs of a leaf with many names, below as many CAs as there may be.
GCKS = issue("gcks", ROOT, number=2, names=["10.0.0.1"])
CA = issue("ca", ROOT, ca=True, number=50)


def with_certificate(octets: int) -> tuple[Pair, bytes]:
    names = [f"{number:04}.example.org" for number in range(octets * MAX_CERTIFICATE // ROOM // 20)]
    member = replace(issue("gm1", CA, number=1, names=names), between=(CA.certificate,) * 7)
    pair = Pair(certificates(member), certificates(GCKS))
    return pair, pair.fifth()


def test_a_certificate_full_of_names() -> None:
    counted = []
    for octets in (ROOM // 2, ROOM):
        pair, fifth = with_certificate(octets)
        counted.append(calls_of(lambda: pair.sixth(fifth)))  # noqa: B023 -- called at once
        assert pair.responder.sa is not None
    half, whole = counted
    assert whole < 2.6 * half
    pair, fifth = with_certificate(ROOM)
    tracemalloc.start()
    pair.sixth(fifth)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= PEAK_PER_OCTET * len(fifth) + PEAK_CONSTANT
    assert whole <= CALLS_PER_OCTET * len(fifth) + CALLS_CONSTANT


@pytest.mark.parametrize("name", ["main mode 3, vendor IDs", "main mode 4, vendor IDs"])
def test_nothing_of_a_strangers_vendor_ids_is_kept(name: str) -> None:
    """Half-open exchanges are many: what a long message leaves behind is not long."""
    host, datagram = CASES[name](ROOM)
    hear(host, datagram)
    host, datagram = CASES[name](ROOM)
    tracemalloc.start()
    hear(host, datagram)
    host.actions.clear()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 16 << 10


@pytest.mark.parametrize("name", CASES)
def test_work_is_linear(name: str) -> None:
    (half, _), (whole, length) = calls(CASES[name], ROOM // 2), calls(CASES[name], ROOM)
    assert whole < 2.6 * half
    assert whole <= CALLS_PER_OCTET * length + CALLS_CONSTANT


@pytest.mark.parametrize("name", CASES)
def test_memory_is_bounded(name: str) -> None:
    most, length = peak(CASES[name], ROOM)
    assert most <= PEAK_PER_OCTET * length + PEAK_CONSTANT
