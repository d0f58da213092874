"""Group policy: TEKs and KEK as both sides hold them, to and from SA and KD payloads.

RFC 6407 sections 5.2 to 5.6. "A GDOI implementation MUST abort if it encounters an attribute or
capability that it does not understand" (sections 5.3.2 and 5.4): whatever is not listed here is a
:class:`~gdoi_plugin.protocol.errors.PolicyError` that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ..crypto.cipher import BLOCK
from ..crypto.secret import Secret
from ..crypto.signature import Scheme
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.group_sa import (
    Endpoint,
    EspTek,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaKek,
    SaTek,
)
from ..wire.key_download import KeyDownload, KeyPacket
from ..wire.registry import (
    GDOI_PORT,
    AddressPreservation,
    AuthAlgorithm,
    EncapsulationMode,
    EspTransform,
    GapAttribute,
    IdType,
    KekAlgorithm,
    KekAttribute,
    KekKeyAttribute,
    KeyPacketType,
    LifeType,
    SaAttribute,
    SaDirection,
    SigAlgorithm,
    SigHash,
    TekKeyAttribute,
    TekProtocol,
    name_of,
)
from .actions import IPAddress
from .errors import PolicyError

IPNetwork = IPv4Network | IPv6Network
UDP = 17
MIN_ESP_SPI = 256  # RFC 4303 section 2.1: 1 to 255 are reserved, 0 is local
GCM_SALT = 4  # RFC 4106 section 8.1: KEYMAT is key | salt
# RFC 6407 section 5.5.1.1.1: the outer destination is the group's. (In transport mode there is one
# header only; the outer source of a tunnel is the sender itself in either case.)
_PRESERVED = (AddressPreservation.DESTINATION_ONLY, AddressPreservation.SOURCE_AND_DESTINATION)
KEK_KEY_LENGTHS = (128, 192, 256)
NO_KEK_LIFETIME = 0xFFFFFFFF  # the longest that KEK_KEY_LIFETIME's four octets can say
DEFAULT_LIFETIME = 28800  # RFC 2407 section 4.5: SA Life Duration where it is not specified


@dataclass(frozen=True, slots=True)
class TekSuite:
    """An ESP transform, named by swanctl's keyword. Lengths of keys in octets."""

    keyword: str
    transform_id: EspTransform
    key_bits: int
    encryption_octets: int
    authentication: AuthAlgorithm | None = None
    integrity_octets: int = 0
    counter_mode: bool = False


TEK_SUITES = {
    suite.keyword: suite
    for suite in (
        TekSuite(
            f"aes{bits}-sha256",
            EspTransform.ESP_AES_CBC,
            bits,
            bits // 8,
            AuthAlgorithm.HMAC_SHA2_256,
            32,
        )
        for bits in (128, 256)
    )
} | {
    f"aes{bits}gcm16": TekSuite(
        f"aes{bits}gcm16",
        EspTransform.ESP_AES_GCM_16,
        bits,
        bits // 8 + GCM_SALT,
        counter_mode=True,
    )
    for bits in (128, 256)
}


@dataclass(frozen=True, slots=True)
class Flow:
    """What a TEK protects: the selectors of a SAT. ``source`` None serves any sender."""

    source: IPNetwork | None
    destination: IPAddress
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0

    def __str__(self) -> str:
        source = "any" if self.source is None else str(self.source)
        text = f"{source} -> {self.destination}"
        if self.protocol:
            text += f" proto {self.protocol} ports {self.source_port}:{self.destination_port}"
        return text


@dataclass(frozen=True, slots=True)
class Tek:
    """One data-security SA. ``lifetime`` in seconds from now on, as the peer was told it."""

    spi: bytes
    flow: Flow
    suite: TekSuite
    encryption_key: Secret
    integrity_key: Secret | None
    lifetime: int
    mode: EncapsulationMode = EncapsulationMode.TRANSPORT
    direction: SaDirection = SaDirection.SYMMETRIC
    lifetime_kilobytes: int | None = None

    @property
    def name(self) -> str:
        """For logs: the SPI as ``ip xfrm`` writes it."""
        return f"0x{self.spi.hex()}"


@dataclass(frozen=True, slots=True)
class Kek:
    """A Rekey SA: what SAK and the KEK key packet say. ``lifetime`` in seconds."""

    spi: bytes
    iv: bytes = field(repr=False)
    key: Secret
    scheme: Scheme
    public_der: bytes = field(repr=False)
    lifetime: int
    # The multicast group, or the member; None in a PUSH that goes to many members by unicast.
    destination: IPAddress | None = None
    source: IPAddress | None = None
    port: int = GDOI_PORT
    ack_type: int | None = None

    @property
    def name(self) -> str:
        return self.spi.hex()


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """What one PULL or PUSH carries. Delays in seconds, None where there is no GAP."""

    kek: Kek | None
    teks: tuple[Tek, ...]
    activation_delay: int | None = None
    deactivation_delay: int | None = None


# -- encoding ------------------------------------------------------------------------------------


def encode_sa(policy: GroupPolicy) -> GroupSecurityAssociation:
    sak = None if policy.kek is None else _encode_sak(policy.kek)
    delays = (
        (GapAttribute.ACTIVATION_TIME_DELAY, policy.activation_delay),
        (GapAttribute.DEACTIVATION_TIME_DELAY, policy.deactivation_delay),
    )
    present = tuple(Attribute(kind, value) for kind, value in delays if value is not None)
    gap = GroupAssociatedPolicy(present) if present else None
    return GroupSecurityAssociation(sak, gap, tuple(_encode_sat(tek) for tek in policy.teks))


def encode_kd(policy: GroupPolicy) -> KeyDownload:
    packets = [] if policy.kek is None else [_encode_kek_packet(policy.kek)]
    packets += [_encode_tek_packet(tek) for tek in policy.teks]
    return KeyDownload(tuple(packets))


def _address_endpoint(address: IPAddress, port: int) -> Endpoint:
    kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
    return Endpoint(kind, port, address.packed)


def _any_source(version: int, port: int) -> Endpoint:
    # RFC 6407 section 5.5.1: "3 octets or zero for multiple-source multicast groups that use a
    # common TEK for all senders"; its predecessor spelled out three octets of zero.
    return Endpoint(IdType.ID_IPV4_ADDR if version == 4 else IdType.ID_IPV6_ADDR, port, bytes(3))


def _source_endpoint(flow: Flow) -> Endpoint:
    network = flow.source
    if network is None:
        return _any_source(flow.destination.version, flow.source_port)
    if network.prefixlen == network.max_prefixlen:
        return _address_endpoint(network.network_address, flow.source_port)
    kind = IdType.ID_IPV4_ADDR_SUBNET if network.version == 4 else IdType.ID_IPV6_ADDR_SUBNET
    data = network.network_address.packed + network.netmask.packed
    return Endpoint(kind, flow.source_port, data)


def _encode_sak(kek: Kek) -> SaKek:
    attributes = [
        Attribute(KekAttribute.KEK_ALGORITHM, KekAlgorithm.KEK_ALG_AES),
        Attribute(KekAttribute.KEK_KEY_LENGTH, 8 * len(kek.key)),
        attr.uint32(KekAttribute.KEK_KEY_LIFETIME, kek.lifetime),
        Attribute(KekAttribute.SIG_HASH_ALGORITHM, kek.scheme.hash),
        Attribute(KekAttribute.SIG_ALGORITHM, kek.scheme.algorithm),
        Attribute(KekAttribute.SIG_KEY_LENGTH, kek.scheme.key_length),
    ]
    if kek.ack_type is not None:
        attributes.append(Attribute(KekAttribute.KEK_ACK_REQUESTED, kek.ack_type))
    # An address ID is a whole address: only an SAT's SRC may be "3 octets or zero".
    nowhere = IPv6Address(0) if kek.source and kek.source.version == 6 else IPv4Address(0)
    source, destination = (
        _address_endpoint(address or nowhere, kek.port) for address in (kek.source, kek.destination)
    )
    return SaKek(UDP, source, destination, kek.spi, tuple(attributes))


def _encode_sat(tek: Tek) -> SaTek:
    attributes = [
        Attribute(SaAttribute.SA_LIFE_TYPE, LifeType.SECONDS),
        attr.uint32(SaAttribute.SA_LIFE_DURATION, tek.lifetime),
        Attribute(SaAttribute.ENCAPSULATION_MODE, tek.mode),
        Attribute(SaAttribute.KEY_LENGTH, tek.suite.key_bits),
    ]
    if tek.suite.authentication is not None:
        attributes.append(Attribute(SaAttribute.AUTHENTICATION_ALGORITHM, tek.suite.authentication))
    if tek.direction is not SaDirection.SYMMETRIC:
        attributes.append(Attribute(SaAttribute.SA_DIRECTION, tek.direction))
    flow = tek.flow
    body = EspTek(
        flow.protocol,
        _source_endpoint(flow),
        _address_endpoint(flow.destination, flow.destination_port),
        tek.suite.transform_id,
        tek.spi,
        tuple(attributes),
    )
    return SaTek(TekProtocol.GDOI_PROTO_IPSEC_ESP, body)


def _encode_kek_packet(kek: Kek) -> KeyPacket:
    return KeyPacket(
        KeyPacketType.KEK,
        kek.spi,
        (
            # RFC 6407 section 5.6.2.1: IV | key
            Attribute(KekKeyAttribute.KEK_ALGORITHM_KEY, kek.iv + kek.key.reveal()),
            Attribute(KekKeyAttribute.SIG_ALGORITHM_KEY, kek.public_der),
        ),
    )


def _encode_tek_packet(tek: Tek) -> KeyPacket:
    attributes = [Attribute(TekKeyAttribute.TEK_ALGORITHM_KEY, tek.encryption_key.reveal())]
    if tek.integrity_key is not None:
        attributes.append(Attribute(TekKeyAttribute.TEK_INTEGRITY_KEY, tek.integrity_key.reveal()))
    return KeyPacket(KeyPacketType.TEK, tek.spi, tuple(attributes))


# -- decoding ------------------------------------------------------------------------------------


def read_policy(
    sa: GroupSecurityAssociation,
    kd: KeyDownload,
    *,
    pull: bool = False,
    other_kek_spi: bytes | None = None,
) -> GroupPolicy:
    """Policy and keys matched by SPI. Raises PolicyError, or DecodeError for malformed values.

    ``pull``: from a GROUPKEY-PULL. ``other_kek_spi`` is the SPI of the KEK in use:
    implementations exist that label the new KEK's key packet with it.
    """
    kek = None if sa.sak is None else _read_kek(sa.sak, kd, other_kek_spi, pull=pull)
    teks = tuple(_read_tek(sat, kd) for sat in sa.sats)
    if len({tek.spi for tek in teks}) != len(teks):
        raise PolicyError("two SATs with the same SPI")
    activation, deactivation = _read_gap(sa.gap)
    return GroupPolicy(kek, teks, activation, deactivation)


def check_sa(sa: GroupSecurityAssociation) -> None:
    """The policy of PULL message 2 alone, before there are keys. Raises PolicyError."""
    if sa.sak is not None:
        _read_sak(sa.sak, pull=True)
    for sat in sa.sats:
        _read_sat(sat)
    _read_gap(sa.gap)


def _read_gap(gap: GroupAssociatedPolicy | None) -> tuple[int | None, int | None]:
    if gap is None:
        return None, None
    values = attr.unique(gap.attributes, "GAP")
    delays = []
    for kind in (GapAttribute.ACTIVATION_TIME_DELAY, GapAttribute.DEACTIVATION_TIME_DELAY):
        attribute = values.pop(kind, None)
        delays.append(None if attribute is None else min(attribute.number(), 0xFFFF))
    values.pop(GapAttribute.SENDER_ID_REQUEST, None)  # only a member asks; zero is seen from peers
    if values:
        raise PolicyError(f"GAP attribute {min(values)} is unknown")
    return delays[0], delays[1]


def _read_address(endpoint: Endpoint, what: str) -> IPAddress:
    """One address: an address ID, or a subnet of one host."""
    network = _read_network(endpoint, what)
    if network is None or network.prefixlen != network.max_prefixlen:
        raise PolicyError(f"{what}: Linux needs one exact address, got {network or 'any'}")
    return network.network_address


def _read_network(endpoint: Endpoint, what: str) -> IPNetwork | None:
    """None for "any": no data, zeros, or a subnet of everything."""
    data = endpoint.data
    if not any(data):
        return None
    try:
        if endpoint.id_type == IdType.ID_IPV4_ADDR and len(data) == 4:
            return IPv4Network(IPv4Address(data))
        if endpoint.id_type == IdType.ID_IPV6_ADDR and len(data) == 16:
            return IPv6Network(IPv6Address(data))
        if endpoint.id_type == IdType.ID_IPV4_ADDR_SUBNET and len(data) == 8:
            mask = int.from_bytes(data[4:], "big")
            prefix = mask.bit_count()
            if mask == (1 << 32) - (1 << (32 - prefix)):
                return IPv4Network((IPv4Address(data[:4]), prefix))
        if endpoint.id_type == IdType.ID_IPV6_ADDR_SUBNET and len(data) == 32:
            mask = int.from_bytes(data[16:], "big")
            prefix = mask.bit_count()
            if mask == (1 << 128) - (1 << (128 - prefix)):
                return IPv6Network((IPv6Address(data[:16]), prefix))
    except ValueError:
        pass
    kind = name_of(IdType, endpoint.id_type)
    raise PolicyError(f"{what}: {kind} of {len(data)} octets is no address or subnet")


def _read_sak(sak: SaKek, *, pull: bool) -> tuple[dict[int, int], Scheme]:
    """KEK attributes by number, and the signature scheme."""
    found = attr.unique(sak.attributes, "SAK")
    values = {kind: attribute.number() for kind, attribute in found.items()}
    for kind in values:
        if kind not in set(KekAttribute):
            raise PolicyError(f"KEK attribute {kind} is unknown")
    if KekAttribute.KEK_MANAGEMENT_ALGORITHM in values and not pull:
        # RFC 6407 section 5.3 has it ignored in a GROUPKEY-PULL; elsewhere section 5.3.2 holds:
        # "MUST abort if it encounters [...] a capability that it does not understand"
        number = values[KekAttribute.KEK_MANAGEMENT_ALGORITHM]
        raise PolicyError(f"KEK_MANAGEMENT_ALGORITHM {number} is not supported")
    if values.get(KekAttribute.KEK_ALGORITHM) != KekAlgorithm.KEK_ALG_AES:
        algorithm = name_of(KekAlgorithm, values.get(KekAttribute.KEK_ALGORITHM, 0))
        raise PolicyError(f"KEK_ALGORITHM {algorithm}, must be KEK_ALG_AES")
    if values.get(KekAttribute.KEK_KEY_LENGTH) not in KEK_KEY_LENGTHS:
        raise PolicyError(f"KEK_KEY_LENGTH {values.get(KekAttribute.KEK_KEY_LENGTH)}")
    return values, _read_scheme(values)


def _read_scheme(values: dict[int, int]) -> Scheme:
    algorithm = values.get(KekAttribute.SIG_ALGORITHM)
    digest = values.get(KekAttribute.SIG_HASH_ALGORITHM)
    length = values.get(KekAttribute.SIG_KEY_LENGTH, 0)
    if algorithm == SigAlgorithm.SIG_ALG_ECDSA_256:
        # RFC 6407 section 5.3.5: the hash is implicit, SIG_HASH_ALGORITHM optional.
        if digest not in (None, SigHash.SIG_HASH_SHA256):
            raise PolicyError(f"ECDSA-256 with SIG_HASH_ALGORITHM {digest}")
        return Scheme(SigAlgorithm.SIG_ALG_ECDSA_256, SigHash.SIG_HASH_SHA256, length or 256)
    if algorithm == SigAlgorithm.SIG_ALG_RSA and digest == SigHash.SIG_HASH_SHA256:
        return Scheme(SigAlgorithm.SIG_ALG_RSA, SigHash.SIG_HASH_SHA256, length)
    kind = name_of(SigAlgorithm, algorithm or 0)
    raise PolicyError(f"signature {kind} with {name_of(SigHash, digest or 0)}")


def _read_kek(sak: SaKek, kd: KeyDownload, other_spi: bytes | None, *, pull: bool) -> Kek:
    values, scheme = _read_sak(sak, pull=pull)
    packets = [p for p in kd.packets if p.kd_type == KeyPacketType.KEK]
    # RFC 6407 section 5.6.2: "there MUST be only one present"
    if len(packets) != 1 or packets[0].spi not in (sak.spi, other_spi):
        raise PolicyError(f"{len(packets)} KEK key packets for the SAK's SPI, must be one")
    keys = attr.unique(packets[0].attributes, "KEK key packet")
    for kind in keys:
        if kind not in set(KekKeyAttribute):
            raise PolicyError(f"KEK key attribute {kind} is unknown")
    if len(keys) != len(KekKeyAttribute):
        raise PolicyError("KEK key packet lacks KEK_ALGORITHM_KEY or SIG_ALGORITHM_KEY")
    material = keys[KekKeyAttribute.KEK_ALGORITHM_KEY].octets()
    length = values[KekAttribute.KEK_KEY_LENGTH] // 8
    if len(material) != BLOCK + length:
        raise PolicyError(f"KEK_ALGORITHM_KEY of {len(material)} octets, must be {BLOCK + length}")
    # RFC 6407 section 5.3: optional. Without one the KEK holds until another takes its place.
    lifetime = values.get(KekAttribute.KEK_KEY_LIFETIME, NO_KEK_LIFETIME)
    if not lifetime:
        raise PolicyError("KEK_KEY_LIFETIME is zero")
    source = _read_network(sak.source, "SAK SRC")
    destination = _read_network(sak.destination, "SAK DST")
    return Kek(
        spi=sak.spi,
        iv=material[:BLOCK],
        key=Secret(material[BLOCK:]),
        scheme=scheme,
        public_der=keys[KekKeyAttribute.SIG_ALGORITHM_KEY].octets(),
        lifetime=lifetime,
        destination=None if destination is None else destination.network_address,
        source=None if source is None else source.network_address,
        port=sak.destination.port or GDOI_PORT,
        ack_type=values.get(KekAttribute.KEK_ACK_REQUESTED),
    )


@dataclass(slots=True)
class _SatValues:
    """IPsec SA attributes of one SAT; life type and duration come in pairs, in order."""

    seconds: int = DEFAULT_LIFETIME
    kilobytes: int | None = None
    values: dict[int, int] = field(default_factory=dict)


def _read_attributes(attributes: Sequence[Attribute]) -> _SatValues:
    found = _SatValues()
    life_type: int | None = None
    for attribute in attributes:
        number = attribute.number()
        if attribute.type == SaAttribute.SA_LIFE_TYPE:
            life_type = number
        elif attribute.type == SaAttribute.SA_LIFE_DURATION:
            if life_type == LifeType.SECONDS:
                found.seconds = number
            elif life_type == LifeType.KILOBYTES:
                found.kilobytes = number
            else:
                raise PolicyError(f"SA Life Duration of life type {life_type}")
        elif attribute.type == SaAttribute.GROUP_DESCRIPTION:
            continue  # RFC 6407 section 5.5.1: ignored if received
        elif attribute.type not in set(SaAttribute):
            raise PolicyError(f"SA attribute {attribute.type} is unknown or not supported")
        elif attribute.type in found.values:
            raise PolicyError(f"SA attribute {attribute.type} twice")
        else:
            found.values[attribute.type] = number
    return found


def _read_sat(sat: SaTek) -> Tek:
    """The policy of one SAT, with empty keys."""
    if sat.protocol_id != TekProtocol.GDOI_PROTO_IPSEC_ESP or not isinstance(sat.tek, EspTek):
        raise PolicyError(f"SAT protocol {name_of(TekProtocol, sat.protocol_id)}, must be ESP")
    body = sat.tek
    found = _read_attributes(body.attributes)
    suite = _find_suite(body.transform_id, found.values)
    spi = int.from_bytes(body.spi, "big")
    if spi < MIN_ESP_SPI:
        raise PolicyError(f"SAT SPI {spi} is reserved")
    if not found.seconds:
        raise PolicyError(f"SAT 0x{spi:08x} has a lifetime of 0 seconds")
    destination = _read_address(body.destination, "SAT DST")
    if not destination.is_multicast:
        raise PolicyError(f"SAT 0x{spi:08x}: destination {destination} is not multicast")
    source = _read_network(body.source, "SAT SRC")
    if source is not None and source.version != destination.version:
        raise PolicyError(f"SAT 0x{spi:08x}: source {source} and destination {destination}")
    try:
        mode = EncapsulationMode(
            found.values.get(SaAttribute.ENCAPSULATION_MODE, EncapsulationMode.TRANSPORT)
        )
        # RFC 6407 section 5.5.1.1.2: no attribute means Symmetric
        direction = SaDirection(found.values.get(SaAttribute.SA_DIRECTION, SaDirection.SYMMETRIC))
    except ValueError as error:
        raise PolicyError(f"SAT 0x{spi:08x}: {error}") from None
    preserved = found.values.get(
        SaAttribute.ADDRESS_PRESERVATION, AddressPreservation.SOURCE_AND_DESTINATION
    )
    if mode is EncapsulationMode.TUNNEL and preserved not in _PRESERVED:
        kind = name_of(AddressPreservation, preserved)
        raise PolicyError(f"SAT 0x{spi:08x}: tunnel to another address than the group ({kind})")
    flow = Flow(source, destination, body.protocol, body.source.port, body.destination.port)
    return Tek(
        spi=body.spi,
        flow=flow,
        suite=suite,
        encryption_key=Secret(b""),
        integrity_key=None,
        lifetime=found.seconds,
        mode=mode,
        direction=direction,
        lifetime_kilobytes=found.kilobytes or None,
    )


def _find_suite(transform_id: int, values: dict[int, int]) -> TekSuite:
    length = values.get(SaAttribute.KEY_LENGTH)
    authentication = values.get(SaAttribute.AUTHENTICATION_ALGORITHM)
    for suite in TEK_SUITES.values():
        if (suite.transform_id, suite.key_bits, suite.authentication) == (
            transform_id,
            length,
            authentication,
        ):
            return suite
    raise PolicyError(
        f"ESP transform {name_of(EspTransform, transform_id)} with key length {length} and"
        f" authentication algorithm {authentication}; supported: {', '.join(TEK_SUITES)}"
    )


def _read_tek(sat: SaTek, kd: KeyDownload) -> Tek:
    tek = _read_sat(sat)
    packets = [p for p in kd.packets if p.kd_type == KeyPacketType.TEK and p.spi == tek.spi]
    if len(packets) != 1:
        raise PolicyError(f"{len(packets)} TEK key packets for SPI {tek.name}, must be one")
    keys = attr.unique(packets[0].attributes, "TEK key packet")
    algorithm = keys.pop(TekKeyAttribute.TEK_ALGORITHM_KEY, None)
    integrity = keys.pop(TekKeyAttribute.TEK_INTEGRITY_KEY, None)
    if keys:
        raise PolicyError(f"TEK {tek.name}: key attribute {min(keys)} is unknown")
    encryption_key = algorithm.octets() if algorithm else b""
    integrity_key = integrity.octets() if integrity else b""
    wanted = (tek.suite.encryption_octets, tek.suite.integrity_octets)
    if (len(encryption_key), len(integrity_key)) != wanted:
        raise PolicyError(
            f"TEK {tek.name}: keys of {len(encryption_key)} and {len(integrity_key)} octets,"
            f" {tek.suite.keyword} wants {wanted[0]} and {wanted[1]}"
        )
    return replace(
        tek,
        encryption_key=Secret(encryption_key),
        integrity_key=Secret(integrity_key) if integrity_key else None,
    )
