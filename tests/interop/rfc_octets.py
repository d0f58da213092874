"""GDOI's octets, written from the RFC texts alone: encoder and strict decoder.

Nothing here may import gdoi_plugin: the interop tests are worth something only because two
readings of the RFCs meet. The decoder refuses (Violation) whatever the RFCs forbid a sender;
it is no model of what a receiver should tolerate.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

# ISAKMP and GDOI payload types; RFC 2408 3.1, RFC 6407 5.
SA, PROPOSAL, TRANSFORM, KE, ID, HASH, SIG, NONCE, NOTIFY, DELETE, VENDOR = (
    1,
    2,
    3,
    4,
    5,
    8,
    9,
    10,
    11,
    12,
    13,
)
SAK, SAT, KD, SEQ, GAP = 15, 16, 17, 18, 22
# Exchanges; RFC 2408 3.1, RFC 6407 3.2.1 and 4.2, RFC 8263 3.1.
MAIN, INFORMATIONAL, PULL, PUSH, PUSH_ACK = 2, 5, 32, 33, 35
ENCRYPTED = 1
GDOI, IPSEC = 2, 1
ID_IPV4, ID_SUBNET4, ID_KEY_ID, ID_OID = 1, 4, 11, 13
KD_TEK, KD_KEK, KD_LKH, KD_SID = 1, 2, 3, 4
KEK_ACK_REQUESTED = 9

Payload = tuple[int, bytes]  # type, and what follows the generic header


class Violation(AssertionError):
    """The other side sent what an RFC forbids."""


def must(truth: object, rule: str) -> None:
    if not truth:
        raise Violation(rule)


# -- header and payload chain ----------------------------------------------------------------------


class Header(NamedTuple):
    """RFC 2408 3.1."""

    cky_i: bytes
    cky_r: bytes
    next: int
    exchange: int
    flags: int
    message_id: int
    length: int

    def pack(self) -> bytes:
        return self.cky_i + self.cky_r + struct.pack("!BBBBII", self.next, 0x10, *self[3:])


def read_header(datagram: bytes) -> Header:
    must(len(datagram) >= 28, "RFC 2408 3.1: a header has 28 octets")
    following, version, exchange, flags, message_id, length = struct.unpack(
        "!BBBBII", datagram[16:28]
    )
    must(version == 0x10, "RFC 2408 3.1: version 1.0")
    must(length == len(datagram), "RFC 2408 5.1: Length must be the datagram's")
    must(not flags & ~ENCRYPTED, "RFC 2408 3.1: only the encryption bit has a use here")
    return Header(datagram[:8], datagram[8:16], following, exchange, flags, message_id, length)


def chain(payloads: list[Payload]) -> bytes:
    """Generic headers (RFC 2408 3.2), each naming the next."""
    following = [*kinds(payloads), 0][1:]
    return b"".join(
        struct.pack("!BBH", after, 0, len(body) + 4) + body
        for (_, body), after in zip(payloads, following, strict=True)
    )


def unchain(first: int, octets: bytes, *, padded: bool = False) -> list[Payload]:
    """All payloads. After the last one: zero padding, less than a block, only if allowed."""
    found, rest = [], octets
    while first:
        must(len(rest) >= 4, f"RFC 2408 3.2: payload {first} lacks its generic header")
        following, reserved, length = struct.unpack("!BBH", rest[:4])
        must(reserved == 0, f"RFC 2408 3.2: RESERVED of payload {first} must be zero")
        must(4 <= length <= len(rest), f"RFC 2408 3.2: length {length} of payload {first}")
        found.append((first, rest[4:length]))
        first, rest = following, rest[length:]
    must(padded or not rest, "octets after the last payload")
    must(len(rest) < 16 and not any(rest), "RFC 2409 B: padding is zeros up to the block")
    return found


def kinds(payloads: list[Payload]) -> list[int]:
    return [kind for kind, _ in payloads]


# -- attributes ------------------------------------------------------------------------------------


class Attribute(NamedTuple):
    """RFC 2408 3.3; basic: two octets in place of a length."""

    kind: int
    data: bytes
    basic: bool

    @property
    def value(self) -> int:
        return int.from_bytes(self.data, "big")


def tv(kind: int, value: int) -> bytes:
    return struct.pack("!HH", 0x8000 | kind, value)


def tlv(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def read_attributes(octets: bytes) -> list[Attribute]:
    found = []
    while octets:
        must(len(octets) >= 4, "RFC 2408 3.3: an attribute has at least four octets")
        kind, value = struct.unpack("!HH", octets[:4])
        if kind & 0x8000:
            found.append(Attribute(kind & 0x7FFF, octets[2:4], True))
            octets = octets[4:]
        else:
            must(len(octets) >= 4 + value, "RFC 2408 3.3: attribute longer than its payload")
            found.append(Attribute(kind, octets[4 : 4 + value], False))
            octets = octets[4 + value :]
    return found


def once(attributes: list[Attribute], basic: set[int], variable: set[int], rule: str) -> None:
    """Each attribute at most once, known, and in the encoding its table says."""
    seen = [attribute.kind for attribute in attributes]
    must(len(seen) == len(set(seen)), f"{rule}: an attribute twice in {seen}")
    for kind, data, is_basic in attributes:
        must(kind in basic | variable, f"{rule}: attribute {kind} is not defined")
        # RFC 2409 A: basic must not be encoded as variable; the reverse is allowed if it fits.
        must(is_basic or kind in variable, f"{rule}: attribute {kind} is basic, came as {data!r}")


# -- phase 1 security association ------------------------------------------------------------------

HASHES = {4: "sha256", 5: "sha384", 6: "sha512"}
HASH_NUMBERS = {name: number for number, name in HASHES.items()}


class Suite(NamedTuple):
    """Phase-1 policy: key bits of AES-CBC, hash, Diffie-Hellman group's number."""

    bits: int
    hash: str
    group: int


def suite_attributes(suite: Suite, lifetime: bytes, method: int = 1) -> bytes:
    """`lifetime`: the encoded Life Duration, already with its attribute header."""
    return (
        tv(1, 7)
        + tv(14, suite.bits)
        + tv(2, HASH_NUMBERS[suite.hash])
        + tv(3, method)
        + tv(4, suite.group)
        + tv(11, 1)
        + lifetime
    )


def pack_phase1_sa(transforms: list[tuple[int, bytes]]) -> bytes:
    """The body of the SA payload: DOI, situation, one proposal (RFC 2409 5), its transforms."""
    bodies = [(TRANSFORM, struct.pack("!BBH", number, 1, 0) + a) for number, a in transforms]
    proposal = struct.pack("!BBBB", 1, 1, 0, len(transforms)) + chain(bodies)
    return struct.pack("!II", GDOI, 0) + chain([(PROPOSAL, proposal)])


def read_phase1_sa(body: bytes) -> list[tuple[int, bytes]]:
    """The transforms: number and attributes as received."""
    must(len(body) >= 8, "RFC 2408 3.4: DOI and situation")
    doi, situation = struct.unpack("!II", body[:8])
    must(doi == GDOI, "RFC 6407 3.3: phase 1 is initiated using the GDOI DOI")
    must(situation == 0, "RFC 6407 5.2: Situation MUST be zero")
    proposals = unchain(PROPOSAL, body[8:])
    must(kinds(proposals) == [PROPOSAL], "RFC 2409 5: one proposal in phase 1")
    proposal = proposals[0][1]
    number, protocol, spi_size, count = proposal[:4]
    must(protocol == 1, "RFC 2407 4.4.1: PROTO_ISAKMP")
    must(spi_size <= 16, "RFC 2408 3.5: SPI size up to sixteen")
    transforms = unchain(TRANSFORM, proposal[4 + spi_size :])
    must(number in (0, 1), "one proposal, numbered 1 (or 0)")
    must(set(kinds(transforms)) == {TRANSFORM}, "RFC 2408 3.6: only transforms in a proposal")
    must(len(transforms) == count, "RFC 2408 3.5: # of Transforms")
    found = []
    for _, transform in transforms:
        number, identifier, reserved2 = struct.unpack("!BBH", transform[:4])
        must(identifier == 1, "RFC 2407 4.4.2: KEY_IKE")
        must(reserved2 == 0, "RFC 2408 3.6: RESERVED2 set to 0")
        found.append((number, transform[4:]))
    numbers = [number for number, _ in found]
    must(len(numbers) == len(set(numbers)), "RFC 2408 3.6: each transform has a unique number")
    return found


def read_suite(octets: bytes, method: int = 1) -> Suite:
    attributes = read_attributes(octets)
    once(attributes, {1, 2, 3, 4, 11, 14}, {12}, "RFC 2409 A")
    value = {a.kind: a.value for a in attributes}
    must(value[1] == 7 and value[14] in (128, 256), "AES-CBC with a key length")
    must(value[3] == method, "RFC 2409 A: the authentication method offered")
    must((11 in value) == (12 in value), "RFC 2409 A: life type and duration belong together")
    return Suite(value[14], HASHES[value[2]], value[4])


# -- identities, notifications, deletes ------------------------------------------------------------


def pack_id(kind: int, data: bytes, protocol: int = 0, port: int = 0) -> bytes:
    return struct.pack("!BBH", kind, protocol, port) + data


def read_id(body: bytes) -> tuple[int, int, int, bytes]:
    must(len(body) >= 4, "RFC 2407 4.6.2: an ID has four octets before its data")
    kind, protocol, port = struct.unpack("!BBH", body[:4])
    must(kind != ID_IPV4 or len(body) == 8, "RFC 2407 4.6.2.2: four octets of address")
    return kind, protocol, port, body[4:]


class Notification(NamedTuple):
    doi: int
    protocol: int
    kind: int
    spi: bytes
    data: bytes


def pack_notify(kind: int, spi: bytes = b"", doi: int = GDOI, data: bytes = b"") -> bytes:
    return struct.pack("!IBBH", doi, 1, len(spi), kind) + spi + data


def read_notify(body: bytes) -> Notification:
    must(len(body) >= 8, "RFC 2408 3.14: eight octets before SPI and data")
    doi, protocol, size, kind = struct.unpack("!IBBH", body[:8])
    must(len(body) >= 8 + size, "RFC 2408 3.14: SPI Size")
    return Notification(doi, protocol, kind, body[8 : 8 + size], body[8 + size :])


class Deletion(NamedTuple):
    doi: int
    protocol: int
    spis: list[bytes]


def pack_delete(protocol: int, spis: list[bytes], doi: int = GDOI) -> bytes:
    return struct.pack("!IBBH", doi, protocol, len(spis[0]), len(spis)) + b"".join(spis)


def read_delete(body: bytes) -> Deletion:
    must(len(body) >= 8, "RFC 2408 3.15: eight octets before the SPIs")
    doi, protocol, size, count = struct.unpack("!IBBH", body[:8])
    must(count, "RFC 2408 3.15: a Delete without SPIs")
    must(len(body) == 8 + size * count, "RFC 2408 3.15: SPI Size times # of SPIs")
    return Deletion(doi, protocol, [body[8 + n * size :][:size] for n in range(count)])


def pack_seq(number: int) -> bytes:
    return struct.pack("!I", number)


def read_seq(body: bytes) -> int:
    must(len(body) == 4, "RFC 6407 5.7: Payload Length MUST be a value of 8")
    return int.from_bytes(body, "big")


# -- group SA --------------------------------------------------------------------------------------


SAT_SOURCE = "RFC 6407 5.5.1, SRC"


class Selector(NamedTuple):
    """SRC or DST of SAK and SAT: ID type, port, data."""

    kind: int
    port: int
    data: bytes

    def pack(self) -> bytes:
        return struct.pack("!BHB", self.kind, self.port, len(self.data)) + self.data


def _selector(octets: bytes, where: str) -> tuple[Selector, bytes]:
    must(len(octets) >= 4 and len(octets) >= 4 + octets[3], f"{where}: ID data length")
    kind, port, length = struct.unpack("!BHB", octets[:4])
    data = octets[4 : 4 + length]
    if where == SAT_SOURCE and length in (0, 3):
        must(not any(data), f"{where}: '3 octets or zero' for many senders: zeros, of any type")
    else:
        sizes = {ID_IPV4: (4,), ID_SUBNET4: (8,)}
        must(length in sizes.get(kind, ()), f"{where}: ID type {kind} with {length} octets")
    return Selector(kind, port, data), octets[4 + length :]


@dataclass(frozen=True)
class Sak:
    """RFC 6407 5.3."""

    protocol: int
    source: Selector
    destination: Selector
    spi: bytes
    attributes: list[Attribute]

    def get(self, kind: int, default: int = 0) -> int:
        return next((a.value for a in self.attributes if a.kind == kind), default)


@dataclass(frozen=True)
class Sat:
    """RFC 6407 5.5.1, ESP."""

    protocol: int
    source: Selector
    destination: Selector
    transform: int
    spi: bytes
    attributes: list[Attribute]

    def get(self, kind: int, default: int = 0) -> int:
        return next((a.value for a in self.attributes if a.kind == kind), default)


@dataclass(frozen=True)
class IecSat:
    """RFC 8052 2.2, GDOI_PROTO_IEC_61850."""

    oid: bytes
    payload: bytes
    spi: bytes
    auth: int
    enc: int
    lifetime: int
    attributes: list[Attribute]

    def get(self, kind: int) -> int:
        return next((a.value for a in self.attributes if a.kind == kind), 0)


# RFC 8052 2.3: octets of TEK_INTEGRITY_KEY by Auth Alg, of TEK_ALGORITHM_KEY by Enc Alg
IEC_AUTH = {1: 0, 2: 32, 3: 32, 4: 20, 5: 36}
IEC_ENC = {1: 0, 2: 16, 3: 32, 4: 20, 5: 36}


@dataclass(frozen=True)
class GroupSa:
    sak: Sak | None
    gap: list[Attribute] | None
    sats: list[Sat]
    applications: list[IecSat]


def pack_sak(
    protocol: int, source: Selector, destination: Selector, spi: bytes, attributes: bytes
) -> bytes:
    head = bytes([protocol]) + source.pack() + destination.pack()
    return head + spi + bytes(4) + attributes


def pack_sat(
    source: Selector, destination: Selector, transform: int, spi: bytes, attributes: bytes
) -> bytes:
    """Protocol-ID ESP, any upper protocol."""
    ends = source.pack() + destination.pack()
    return bytes([1, 0]) + ends + bytes([transform]) + spi + attributes


def pack_group_sa(payloads: list[Payload]) -> bytes:
    first = payloads[0][0] if payloads else 0
    return struct.pack("!IIHH", GDOI, 0, first, 0) + chain(payloads)


def read_group_sa(body: bytes) -> GroupSa:
    must(len(body) >= 12, "RFC 6407 5.2: twelve octets before the SA Attribute payloads")
    doi, situation, first, reserved = struct.unpack("!IIHH", body[:12])
    must(doi == GDOI, "RFC 6407 5.2: DOI is the GDOI, which is value 2")
    must(situation == 0, "RFC 6407 5.2: Situation MUST be zero")
    must(reserved == 0, "RFC 6407 5.2: RESERVED2 MUST be zero")
    must(first in (SAK, SAT, GAP), "RFC 6407 5.2: code for an SA Attribute payload type")
    payloads = unchain(first, body[12:])
    order = [(SAK, GAP, SAT).index(kind) for kind in kinds(payloads)]
    must(order == sorted(order), "RFC 6407 5.2.1: the order MUST be SAK, GAP, SATs")
    must(order.count(0) <= 1 and order.count(1) <= 1, "RFC 6407 5.2.1: one SAK, one GAP at most")
    must({0, 2} & set(order), "RFC 6407 5.2.1: either one SAK or SAT payload MUST be present")
    saks = [_read_sak(body) for kind, body in payloads if kind == SAK]
    gaps = [read_attributes(body) for kind, body in payloads if kind == GAP]
    for gap in gaps:
        once(gap, {1, 2, 3}, set(), "RFC 6407 5.4")
    bodies = [body for kind, body in payloads if kind == SAT]
    sats = [_read_sat(body) for body in bodies if body[0] != 3]
    applications = [_read_iec_sat(body[1:]) for body in bodies if body[0] == 3]
    return GroupSa(saks[0] if saks else None, gaps[0] if gaps else None, sats, applications)


def _read_sak(body: bytes) -> Sak:
    source, rest = _selector(body[1:], "RFC 6407 5.3, SRC")
    destination, rest = _selector(rest, "RFC 6407 5.3, DST")
    spi, reserved2, rest = rest[:16], rest[16:20], rest[20:]
    must(len(reserved2) == 4, "RFC 6407 5.3: SPI (16 octets) and RESERVED2 (4)")
    must(not any(reserved2), "RFC 6407 5.3: RESERVED2 MUST be zero")
    attributes = read_attributes(rest)
    once(attributes, {1, 2, 3, 5, 6, 7, KEK_ACK_REQUESTED}, {4}, "RFC 6407 5.3")
    present = {attribute.kind for attribute in attributes}
    must({2, 6} <= present, "RFC 6407 5.3: KEK_ALGORITHM and SIG_ALGORITHM MUST be included")
    for attribute in attributes:
        if attribute.kind == 4:
            must(not attribute.basic, "RFC 6407 5.3: KEK_KEY_LIFETIME is V")
            must(len(attribute.data) == 4, "RFC 6407 5.3.4: the value is a 4-octet number")
    return Sak(body[0], source, destination, spi, attributes)


def _read_sat(body: bytes) -> Sat:
    must(body[0] == 1, "RFC 6407 5.5: GDOI_PROTO_IPSEC_ESP")
    source, rest = _selector(body[2:], SAT_SOURCE)
    destination, rest = _selector(rest, "RFC 6407 5.5.1, DST")
    must(len(rest) >= 5, "RFC 6407 5.5.1: transform ID and SPI")
    attributes = read_attributes(rest[5:])
    # Numbers above 9 are IANA's; 3, Group Description, MUST NOT be sent (5.5.1).
    once(attributes, {1, 4, 5, 6, 7, 12, 13}, {2}, "RFC 2407 4.5")
    order = [attribute.kind for attribute in attributes]
    must(
        2 not in order or order[order.index(2) - 1] == 1,
        "RFC 2407 4.5: Life Duration MUST always follow a Life Type",
    )
    return Sat(body[1], source, destination, rest[0], rest[1:5], attributes)


def pack_oid(dotted: str) -> bytes:
    """X.690 8.19."""
    first, second, *rest = (int(number) for number in dotted.split("."))
    body = b""
    for number in (40 * first + second, *rest):
        digits = [number >> shift & 0x7F for shift in range(28, -1, -7)]
        while len(digits) > 1 and not digits[0]:
            digits.pop(0)
        body += bytes([*(0x80 | digit for digit in digits[:-1]), digits[-1]])
    return bytes([6, len(body)]) + body


def pack_iec_sat(
    oid: bytes, payload: bytes, spi: bytes, kinds: tuple[int, int], life: int, attributes: bytes
) -> bytes:
    """Protocol-ID 3; `kinds`: Auth Alg and Enc Alg."""
    selector = bytes([3, len(oid)]) + oid + struct.pack("!H", len(payload)) + payload
    return selector + spi + struct.pack("!HHI", *kinds, life) + attributes


def _read_iec_sat(body: bytes) -> IecSat:
    oid, rest = body[1 : 1 + body[0]], body[1 + body[0] :]
    must(oid[:1] == b"\6" and oid[1] == len(oid) - 2, "RFC 8052 2.2: an ObjectIdentifier in DER")
    size = int.from_bytes(rest[:2], "big")
    payload, rest = rest[2 : 2 + size], rest[2 + size :]
    must(len(rest) >= 12, "RFC 8052 2.2: SPI, Auth Alg, Enc Alg, Remaining Lifetime")
    auth, enc, lifetime = struct.unpack("!HHI", rest[4:12])
    must(auth in IEC_AUTH and enc in IEC_ENC, "RFC 8052 4: registered algorithms")
    must(enc not in (2, 3) or auth != 1, "RFC 8052 2.2.3: MUST NOT be used with NONE")
    attributes = read_attributes(rest[12:])
    once(attributes, {2}, {1}, "RFC 8052 4: SA_ATD is variable, SA_KDA basic")
    sat = IecSat(oid, payload, rest[:4], auth, enc, lifetime, attributes)
    must(sat.get(2) <= 100, "RFC 8052 2.2.4.2: a number between 0 and 100")
    return sat


# -- key download ----------------------------------------------------------------------------------


class KeyPacket(NamedTuple):
    """RFC 6407 5.6: KD type, SPI, attributes by number."""

    kind: int
    spi: bytes
    keys: dict[int, bytes]
    updates: tuple[bytes, ...] = ()  # of type LKH, as many LKH_UPDATE_ARRAYs as there are
    bits: int = 0  # of type SID: NUMBER_OF_SID_BITS
    sids: tuple[int, ...] = ()


def pack_kd(packets: list[KeyPacket]) -> bytes:
    body = b""
    for packet in packets:
        attributes = b"".join(tlv(2, array) for array in packet.updates)
        attributes += b"".join(tlv(kind, data) for kind, data in packet.keys.items())
        if packet.kind == KD_SID:
            octets = (packet.bits + 7) // 8
            values = b"".join(tlv(2, sid.to_bytes(octets, "big")) for sid in packet.sids)
            attributes = tv(1, packet.bits) + values
        length = 5 + len(packet.spi) + len(attributes)
        head = struct.pack("!BBHB", packet.kind, 0, length, len(packet.spi))
        body += head + packet.spi + attributes
    return struct.pack("!HH", len(packets), 0) + body


def read_kd(body: bytes) -> list[KeyPacket]:
    must(len(body) >= 4, "RFC 6407 5.6: count and RESERVED2")
    count, reserved2 = struct.unpack("!HH", body[:4])
    must(reserved2 == 0, "RFC 6407 5.6: RESERVED2 unused, zero")
    packets, rest = [], body[4:]
    while rest:
        must(len(rest) >= 5, "RFC 6407 5.6: a key packet has five octets at least")
        kind, reserved, length, size = struct.unpack("!BBHB", rest[:5])
        must(reserved == 0, "RFC 6407 5.6: RESERVED of a key packet set to zero")
        must(5 + size <= length <= len(rest), "RFC 6407 5.6: KD Length")
        must(
            size == {KD_TEK: 4, KD_KEK: 16, KD_LKH: 16, KD_SID: 0}.get(kind),
            "RFC 6407 5.6: SPI Size by type",
        )
        attributes = read_attributes(rest[5 + size : length])
        if kind == KD_SID:
            packets.append(_read_sids(attributes))
            rest = rest[length:]
            continue
        must(not any(a.basic for a in attributes), "RFC 6407 5.6: keys are variable")
        updates = [a for a in attributes if kind == KD_LKH and a.kind == 2]
        others = [a for a in attributes if a not in updates]
        once(others, set(), {1, 2, 3}, "RFC 6407 5.6.1, 5.6.2, 5.6.3")
        keys = {a.kind: a.data for a in others}
        arrays = tuple(a.data for a in updates)
        packets.append(KeyPacket(kind, rest[5 : 5 + size], keys, arrays))
        rest = rest[length:]
    must(len(packets) == count, "RFC 6407 5.6: Number of Key Packets")
    must([p.kind for p in packets].count(KD_KEK) <= 1, "RFC 6407 5.6.2: only one KEK packet")
    must([p.kind for p in packets].count(KD_LKH) <= 1, "RFC 6407 5.6.3: only one LKH packet")
    return packets


def _read_sids(attributes: list[Attribute]) -> KeyPacket:
    """RFC 6407 5.6.4: NUMBER_OF_SID_BITS is basic, SID_VALUE variable."""
    bits = [a.value for a in attributes if a.kind == 1 and a.basic]
    must(len(bits) == 1, "RFC 6407 5.6.4.1: NUMBER_OF_SID_BITS, applied to each SID value")
    must(bits[0] in (8, 12, 16), "RFC 6054 3: lengths of 8, 12, and 16 bits")
    values = [a for a in attributes if a.kind != 1]
    must(values, "RFC 6407 5.6.4.4: at least one SID_VALUE")
    must(all(a.kind == 2 and not a.basic for a in values), "RFC 6407 5.6.4: SID_VALUE is V")
    must(all(len(a.data) == (bits[0] + 7) // 8 for a in values), "as many octets as the bits need")
    sids = tuple(int.from_bytes(a.data, "big") for a in values)
    must(all(sid < 1 << bits[0] for sid in sids), "RFC 6407 5.6.4.1: represented in so many bits")
    return KeyPacket(KD_SID, b"", {}, (), bits[0], sids)


def check_sids(sa: GroupSa, packets: list[KeyPacket], host: str, asked: int) -> None:
    """RFC 6407 3.5: for a sender in a counter mode (GCM, GMAC), and as many as it asked for."""
    modes = [sat for sat in sa.sats if sat.transform in (18, 19, 20, 23)]
    sends = any(sat.source.data == address(host) for sat in modes)
    found = [packet for packet in packets if packet.kind == KD_SID]
    must(len(found) == sends, f"RFC 6407 3.5: {len(found)} SID packets, a sender: {sends}")
    if sends:
        wanted = max(1, asked)
        must(len(found[0].sids) == wanted, f"RFC 6407 3.5: {found[0].sids}, asked for {asked}")


def check_keys(sa: GroupSa, packets: list[KeyPacket]) -> None:
    """RFC 6407 3.2, 5.6: a packet for every SA and none besides, keys of the announced sizes."""
    wanted = {(KD_TEK, sat.spi) for sat in sa.sats}
    wanted |= {(KD_TEK, iec.spi) for iec in sa.applications}
    if sa.sak is not None:
        lkh = any(packet.kind == KD_LKH for packet in packets)
        wanted.add((KD_LKH if lkh else KD_KEK, sa.sak.spi))
    got = [(packet.kind, packet.spi) for packet in packets if packet.kind != KD_SID]
    must(len(got) == len(set(got)), "RFC 6407 5.6: a key packet twice")
    must(set(got) == wanted, f"RFC 6407 5.6: SPIs {got} match SAK and SATs {wanted}")
    keys = {(packet.kind, packet.spi): packet.keys for packet in packets}
    for sat in sa.sats:
        tek = keys[KD_TEK, sat.spi]
        # RFC 4106 8.1: the key of GCM is followed by four octets of salt.
        salt = 4 if sat.transform in (18, 19, 20) else 0
        must(len(tek[1]) == sat.get(6) // 8 + salt, "RFC 6407 5.6.1.1: cipher key and its length")
        size = {5: 32, 6: 48, 7: 64}.get(sat.get(5))
        must(len(tek.get(2, b"")) == (size or 0), "RFC 6407 5.6.1.2: key as long as the hash")
    for iec in sa.applications:
        tek = keys[KD_TEK, iec.spi]
        sizes = len(tek.get(2, b"")), len(tek.get(1, b""))
        must(sizes == (IEC_AUTH[iec.auth], IEC_ENC[iec.enc]), "RFC 8052 2.3: sizes of the keys")
    if sa.sak is not None and (KD_KEK, sa.sak.spi) in keys:
        kek = keys[KD_KEK, sa.sak.spi]
        must(len(kek[1]) == 16 + sa.sak.get(3) // 8, "RFC 6407 5.6.2.1: explicit IV, then the key")
        must(set(kek) == {1, 2}, "RFC 6407 5.6.2: one attribute for each type in the SAK")


def address(text: str) -> bytes:
    return IPv4Address(text).packed
