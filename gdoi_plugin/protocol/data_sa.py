"""Data-security SAs: SAT and TEK key packet, RFC 6407 sections 5.5 and 5.6.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..crypto.secret import Secret
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.group_sa import Endpoint, EspTek, SaTek
from ..wire.key_download import KeyDownload, KeyPacket
from ..wire.registry import (
    AddressPreservation,
    AhTransform,
    EncapsulationMode,
    EspTransform,
    IdType,
    KeyPacketType,
    LifeType,
    SaAttribute,
    SaDirection,
    TekKeyAttribute,
    TekProtocol,
    name_of,
)
from .actions import IPAddress
from .endpoints import (
    IPNetwork,
    address_endpoint,
    any_source,
    is_link_control,
    read_address,
    read_network,
)
from .errors import PolicyError
from .iec_tek import IecTek
from .suites import AH_SUITES, ESP_SUITES, TEK_SUITES, TekSuite

_ATTRIBUTES = frozenset(SaAttribute)
_SUITES: dict[tuple[int, int, int | None, int | None], TekSuite] = {
    (suite.protocol, suite.transform_id, suite.key_bits, suite.authentication): suite
    for suite in TEK_SUITES.values()
}
MIN_ESP_SPI = 256  # RFC 4303 section 2.1: 1 to 255 are reserved, 0 is local
# RFC 6407 section 5.5.1.1.1: the outer destination is the group's. (In transport mode there is one
# header only.)
_PRESERVED = (AddressPreservation.DESTINATION_ONLY, AddressPreservation.SOURCE_AND_DESTINATION)
MAX_LIFETIME = 0xFFFFFFFF  # 136 years, the most that four octets can say
MAX_KILOBYTES = (2**64 - 1) // 1024  # the most that the kernel's count of octets can say
ESN_64_BIT = 1  # RFC 4304 section 2, the one value
DEFAULT_LIFETIME = 28800  # RFC 2407 section 4.5: SA Life Duration where it is not specified


@dataclass(frozen=True, slots=True)
class Flow:
    """What a TEK protects: the selectors of a SAT. ``source`` None serves any sender.

    A rekey looks each flow up in a dozen tables, and addresses take long to hash: done once.
    """

    source: IPNetwork | None
    destination: IPAddress
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ports = (self.protocol, self.source_port, self.destination_port)
        object.__setattr__(self, "_hash", hash((self.source, self.destination, ports)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def one_sender(self) -> bool:
        return self.source is not None and self.source.prefixlen == self.source.max_prefixlen

    def overlaps(self, other: Flow) -> bool:
        """Whether a packet may be of both."""
        if self.destination != other.destination:
            return False
        if self.source and other.source and not _share(self.source, other.source):
            return False
        mine = (self.protocol, self.source_port, self.destination_port)
        theirs = (other.protocol, other.source_port, other.destination_port)
        return all(a == b or not (a and b) for a, b in zip(mine, theirs, strict=True))

    def __str__(self) -> str:
        source = "any" if self.source is None else str(self.source)
        text = f"{source} -> {self.destination}"
        if self.protocol:
            text += f" proto {self.protocol} ports {self.source_port}:{self.destination_port}"
        return text


def _share(one: IPNetwork, other: IPNetwork) -> bool:
    return one.network_address in other or other.network_address in one


@dataclass(frozen=True, slots=True)
class Tek:
    """One data-security SA. ``lifetime`` in seconds from now on, as the peer was told it.

    ``encryption_key`` is empty in AH, ``integrity_key`` None where one key does both.
    """

    spi: bytes
    flow: Flow
    suite: TekSuite
    encryption_key: Secret
    integrity_key: Secret | None
    lifetime: int
    mode: EncapsulationMode = EncapsulationMode.TRANSPORT
    direction: SaDirection = SaDirection.SYMMETRIC
    lifetime_kilobytes: int | None = None
    # Of a tunnel; the default is what RFC 6407 section 5.5.1.1.1 makes of a missing attribute.
    preservation: AddressPreservation = AddressPreservation.SOURCE_AND_DESTINATION
    esn: bool = False  # sequence numbers of 64 bits, RFC 4303 section 2.2.1

    @property
    def protocol(self) -> TekProtocol:
        return self.suite.protocol

    def sent_by(self, host: IPAddress) -> bool:
        """RFC 6407 section 5.5.1.1.2, and a TEK with sources serves those alone."""
        if self.direction is SaDirection.RECEIVER_ONLY:
            return False
        return self.flow.source is None or host in self.flow.source

    @property
    def name(self) -> str:
        """For logs: the SPI as ``ip xfrm`` writes it."""
        return f"0x{self.spi.hex()}"


AnyTek = Tek | IecTek


def _source_endpoint(flow: Flow) -> Endpoint:
    network = flow.source
    if network is None:
        return any_source(flow.destination.version, flow.source_port)
    if network.prefixlen == network.max_prefixlen:
        return address_endpoint(network.network_address, flow.source_port)
    kind = IdType.ID_IPV4_ADDR_SUBNET if network.version == 4 else IdType.ID_IPV6_ADDR_SUBNET
    data = network.network_address.packed + network.netmask.packed
    return Endpoint(kind, flow.source_port, data)


def encode_sat(tek: Tek) -> SaTek:
    attributes = [
        Attribute(SaAttribute.SA_LIFE_TYPE, LifeType.SECONDS),
        attr.uint32(SaAttribute.SA_LIFE_DURATION, tek.lifetime),
    ]
    if tek.lifetime_kilobytes is not None:
        attributes += [
            Attribute(SaAttribute.SA_LIFE_TYPE, LifeType.KILOBYTES),
            attr.uint32(SaAttribute.SA_LIFE_DURATION, tek.lifetime_kilobytes),
        ]
    attributes.append(Attribute(SaAttribute.ENCAPSULATION_MODE, tek.mode))
    if tek.suite.key_bits is not None:
        attributes.append(Attribute(SaAttribute.KEY_LENGTH, tek.suite.key_bits))
    if tek.suite.authentication is not None:
        attributes.append(Attribute(SaAttribute.AUTHENTICATION_ALGORITHM, tek.suite.authentication))
    if tek.direction is not SaDirection.SYMMETRIC:
        attributes.append(Attribute(SaAttribute.SA_DIRECTION, tek.direction))
    if tek.preservation is not AddressPreservation.SOURCE_AND_DESTINATION:
        attributes.append(Attribute(SaAttribute.ADDRESS_PRESERVATION, tek.preservation))
    if tek.esn:
        attributes.append(Attribute(SaAttribute.EXTENDED_SEQUENCE_NUMBER, ESN_64_BIT))
    flow = tek.flow
    body = EspTek(
        flow.protocol,
        _source_endpoint(flow),
        address_endpoint(flow.destination, flow.destination_port),
        tek.suite.transform_id,
        tek.spi,
        tuple(attributes),
    )
    return SaTek(tek.protocol, body)


def _is_gmac(tek: AnyTek) -> bool:
    return isinstance(tek, Tek) and tek.suite.transform_id is EspTransform.ESP_NULL_AUTH_AES_GMAC


def encode_tek_packet(tek: AnyTek) -> KeyPacket:
    """RFC 6407 section 5.6.1.2 has AES-GMAC's KEYMAT as an integrity key: it encrypts nothing."""
    attributes = []
    if tek.encryption_key and _is_gmac(tek):
        keymat = tek.encryption_key.reveal()
        attributes.append(Attribute(TekKeyAttribute.TEK_INTEGRITY_KEY, keymat))
    elif tek.encryption_key:
        attributes.append(Attribute(TekKeyAttribute.TEK_ALGORITHM_KEY, tek.encryption_key.reveal()))
    if tek.integrity_key is not None:
        attributes.append(Attribute(TekKeyAttribute.TEK_INTEGRITY_KEY, tek.integrity_key.reveal()))
    return KeyPacket(KeyPacketType.TEK, tek.spi, tuple(attributes))


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
                # Eight octets may say more than the kernel's clock can add up.
                found.seconds = min(number, MAX_LIFETIME)
            elif life_type == LifeType.KILOBYTES:
                found.kilobytes = min(number, MAX_KILOBYTES)
            else:
                raise PolicyError(f"SA Life Duration of life type {life_type}")
        elif attribute.type == SaAttribute.GROUP_DESCRIPTION:
            continue  # RFC 6407 section 5.5.1: ignored if received
        elif attribute.type not in _ATTRIBUTES:
            raise PolicyError(f"SA attribute {attribute.type} is unknown or not supported")
        elif attribute.type in found.values:
            raise PolicyError(f"SA attribute {attribute.type} twice")
        else:
            found.values[attribute.type] = number
    return found


def read_sat(sat: SaTek) -> Tek:
    """The policy of one SAT, with empty keys."""
    if not isinstance(sat.tek, EspTek):
        kind = name_of(TekProtocol, sat.protocol_id)
        raise PolicyError(f"SAT protocol {kind}, must be ESP, AH or IEC 61850")
    body = sat.tek
    found = _read_attributes(body.attributes)
    suite = _find_suite(sat.protocol_id, body.transform_id, found.values)
    spi = int.from_bytes(body.spi, "big")
    if spi < MIN_ESP_SPI:
        raise PolicyError(f"SAT SPI {spi} is reserved")
    if not found.seconds:
        raise PolicyError(f"SAT 0x{spi:08x} has a lifetime of 0 seconds")
    destination = read_address(body.destination, "SAT DST")
    if not destination.is_multicast:
        raise PolicyError(f"SAT 0x{spi:08x}: destination {destination} is not multicast")
    if is_link_control(destination):
        raise PolicyError(f"SAT 0x{spi:08x}: destination {destination} is for the link's control")
    source = read_network(body.source, "SAT SRC")
    if source is not None and source.version != destination.version:
        raise PolicyError(f"SAT 0x{spi:08x}: source {source} and destination {destination}")
    mode, direction, preservation = _read_enums(found.values, spi)
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
        preservation=preservation,
        esn=_read_esn(found.values, flow, spi),
    )


def _read_enums(
    values: dict[int, int], spi: int
) -> tuple[EncapsulationMode, SaDirection, AddressPreservation]:
    try:
        mode = EncapsulationMode(
            values.get(SaAttribute.ENCAPSULATION_MODE, EncapsulationMode.TRANSPORT)
        )
        # RFC 6407 section 5.5.1.1.2: no attribute means Symmetric
        direction = SaDirection(values.get(SaAttribute.SA_DIRECTION, SaDirection.SYMMETRIC))
        preservation = AddressPreservation(
            values.get(SaAttribute.ADDRESS_PRESERVATION, AddressPreservation.SOURCE_AND_DESTINATION)
        )
    except ValueError as error:
        raise PolicyError(f"SAT 0x{spi:08x}: {error}") from None
    if mode is EncapsulationMode.TUNNEL and preservation not in _PRESERVED:
        raise PolicyError(
            f"SAT 0x{spi:08x}: tunnel to another address than the group ({preservation.name})"
        )
    return mode, direction, preservation


def _read_esn(values: dict[int, int], flow: Flow, spi: int) -> bool:
    value = values.get(SaAttribute.EXTENDED_SEQUENCE_NUMBER)
    if value is None:
        return False
    if value != ESN_64_BIT:
        # RFC 4304 section 3: "any attribute value but the value for 64-bit sequence numbers, the
        # security association setup MUST be aborted"
        raise PolicyError(f"SAT 0x{spi:08x}: Extended Sequence Number {value}, must be 1")
    if not flow.one_sender:
        # A receiver keeps one count, and of several senders each has its own.
        raise PolicyError(f"SAT 0x{spi:08x}: 64-bit sequence numbers for several senders, {flow}")
    return True


def _find_suite(protocol: int, transform_id: int, values: dict[int, int]) -> TekSuite:
    length = values.get(SaAttribute.KEY_LENGTH)
    authentication = values.get(SaAttribute.AUTHENTICATION_ALGORITHM)
    suite = _SUITES.get((protocol, transform_id, length, authentication))
    if suite is not None:
        return suite
    esp = protocol == TekProtocol.GDOI_PROTO_IPSEC_ESP
    kind = name_of(EspTransform, transform_id) if esp else name_of(AhTransform, transform_id)
    supported = ", ".join(ESP_SUITES if esp else AH_SUITES)
    raise PolicyError(
        f"{'ESP' if esp else 'AH'} transform {kind} with key length {length} and authentication"
        f" algorithm {authentication}; supported: {supported}"
    )


def tek_packets(kd: KeyDownload) -> dict[bytes, list[KeyPacket]]:
    """The TEK key packets by SPI."""
    found: dict[bytes, list[KeyPacket]] = {}
    for packet in kd.packets:
        if packet.kd_type == KeyPacketType.TEK:
            found.setdefault(packet.spi, []).append(packet)
    return found


def read_keys(tek: AnyTek, packets_by_spi: Mapping[bytes, Sequence[KeyPacket]]) -> AnyTek:
    """The same with its keys."""
    packets = packets_by_spi.get(tek.spi, ())
    wanted = (tek.suite.encryption_octets, tek.suite.integrity_octets)
    if not packets and not any(wanted):
        return tek  # RFC 8052 section 3: NONE twice, nothing to download
    if len(packets) != 1:
        raise PolicyError(f"{len(packets)} TEK key packets for SPI {tek.name}, must be one")
    keys = attr.unique(packets[0].attributes, "TEK key packet")
    algorithm = keys.pop(TekKeyAttribute.TEK_ALGORITHM_KEY, None)
    integrity = keys.pop(TekKeyAttribute.TEK_INTEGRITY_KEY, None)
    if keys:
        raise PolicyError(f"TEK {tek.name}: key attribute {min(keys)} is unknown")
    if algorithm is None and _is_gmac(tek):
        # Where section 5.6.1.2 has it; with an ESP transform it may be called the cipher's as well.
        algorithm, integrity = integrity, None
    encryption_key = algorithm.octets() if algorithm else b""
    integrity_key = integrity.octets() if integrity else b""
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
