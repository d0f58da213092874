"""The Rekey SA: SAK and KEK or LKH key packet, RFC 6407 sections 5.3, 5.6.2 and 5.6.3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from ..crypto.cipher import BLOCK
from ..crypto.lkh import Node
from ..crypto.secret import Secret
from ..crypto.signature import Scheme, find_scheme
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.group_sa import SaKek
from ..wire.key_download import KeyDownload, KeyPacket
from ..wire.registry import (
    GDOI_PORT,
    KekAlgorithm,
    KekAttribute,
    KekKeyAttribute,
    KekManagement,
    KeyPacketType,
    SigAlgorithm,
    SigHash,
    name_of,
)
from .actions import IPAddress
from .endpoints import IPNetwork, address_endpoint, read_network
from .errors import PolicyError
from .lkh_keys import encode_download, encode_updates, read_download, read_updates

UDP = 17
KEK_KEY_LENGTHS = (128, 192, 256)
NO_KEK_LIFETIME = 0xFFFFFFFF  # the longest that KEK_KEY_LIFETIME's four octets can say


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
    # With LKH: a member's keys from its leaf to this KEK, which is the last one.
    path: tuple[Node, ...] = ()

    @property
    def name(self) -> str:
        return self.spi.hex()

    @property
    def leaf(self) -> Secret | None:
        """RFC 8263 section 2.2: the first key of the LKH_DOWNLOAD_ARRAY, the member's own."""
        return self.path[0].key if self.path else None


def encode_sak(kek: Kek, management: KekManagement | None = None) -> SaKek:
    """``management`` has its place in a PUSH only (RFC 6407 section 5.3)."""
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
    if management is not None:
        attributes.insert(0, Attribute(KekAttribute.KEK_MANAGEMENT_ALGORITHM, management))
    # An address ID is a whole address: only an SAT's SRC may be "3 octets or zero".
    nowhere = IPv6Address(0) if kek.source and kek.source.version == 6 else IPv4Address(0)
    source, destination = (
        address_endpoint(address or nowhere, kek.port) for address in (kek.source, kek.destination)
    )
    return SaKek(UDP, source, destination, kek.spi, tuple(attributes))


def encode_kek_packet(kek: Kek, updates: Sequence[bytes] = ()) -> KeyPacket:
    """The KEK itself, a member's path to it, or the ``updates`` by which members derive it."""
    if updates:
        return encode_updates(kek.spi, updates, kek.public_der)
    if kek.path:
        return encode_download(kek.spi, kek.path, kek.public_der)
    return KeyPacket(
        KeyPacketType.KEK,
        kek.spi,
        (
            # RFC 6407 section 5.6.2.1: IV | key
            Attribute(KekKeyAttribute.KEK_ALGORITHM_KEY, kek.iv + kek.key.reveal()),
            Attribute(KekKeyAttribute.SIG_ALGORITHM_KEY, kek.public_der),
        ),
    )


def read_sak(sak: SaKek, *, pull: bool) -> tuple[dict[int, int], Scheme]:
    """KEK attributes by number, and the signature scheme."""
    if not any(sak.spi):
        # In a Delete it stands for every KEK (RFC 6407 section 5.9); no cookies are zero.
        raise PolicyError("SAK with an SPI of zero")
    found = attr.unique(sak.attributes, "SAK")
    values = {kind: attribute.number() for kind, attribute in found.items()}
    for kind in values:
        if kind not in set(KekAttribute):
            raise PolicyError(f"KEK attribute {kind} is unknown")
    # RFC 6407 section 5.3 has it ignored in a GROUPKEY-PULL; elsewhere section 5.3.2 holds:
    # "MUST abort if it encounters [...] a capability that it does not understand"
    management = values.get(KekAttribute.KEK_MANAGEMENT_ALGORITHM)
    if management not in (None, KekManagement.LKH) and not pull:
        raise PolicyError(f"KEK_MANAGEMENT_ALGORITHM {management} is not supported")
    if values.get(KekAttribute.KEK_ALGORITHM) != KekAlgorithm.KEK_ALG_AES:
        algorithm = name_of(KekAlgorithm, values.get(KekAttribute.KEK_ALGORITHM, 0))
        raise PolicyError(f"KEK_ALGORITHM {algorithm}, must be KEK_ALG_AES")
    if values.get(KekAttribute.KEK_KEY_LENGTH) not in KEK_KEY_LENGTHS:
        raise PolicyError(f"KEK_KEY_LENGTH {values.get(KekAttribute.KEK_KEY_LENGTH)}")
    return values, _read_scheme(values)


def _read_scheme(values: dict[int, int]) -> Scheme:
    algorithm = values.get(KekAttribute.SIG_ALGORITHM, 0)
    digest = values.get(KekAttribute.SIG_HASH_ALGORITHM)
    length = values.get(KekAttribute.SIG_KEY_LENGTH, 0)
    scheme = find_scheme(algorithm, digest, length)
    if scheme is None:
        told = "no hash" if digest is None else name_of(SigHash, digest)
        kind = name_of(SigAlgorithm, algorithm)
        raise PolicyError(f"signature {kind} with {told} and a key of {length} bits")
    return scheme


def read_kek(sak: SaKek, kd: KeyDownload, held: Kek | None, *, pull: bool) -> Kek:
    """``held`` is the KEK that the message came under: implementations exist that label the new
    KEK's key packet with its SPI. Raises NotOurs for LKH updates that are all for other members.
    """
    values, scheme = read_sak(sak, pull=pull)
    packet = _kek_packet(sak, kd, held)
    octets = BLOCK + values[KekAttribute.KEK_KEY_LENGTH] // 8
    path: tuple[Node, ...] = ()
    public_der: bytes | None
    if packet.kd_type == KeyPacketType.LKH:
        if pull:
            path, public_der = read_download(packet, octets)
        else:
            path, public_der = read_updates(packet, octets, held.path if held else ())
        material = path[-1].material
        if public_der is None and held is not None and held.scheme == scheme:
            public_der = held.public_der  # RFC 6407 section 5.6.3.3: it "may be useful"
        if public_der is None:
            raise PolicyError("LKH key packet lacks SIG_ALGORITHM_KEY")
    elif KekAttribute.KEK_MANAGEMENT_ALGORITHM in values and not pull:
        raise PolicyError("KEK_MANAGEMENT_ALGORITHM LKH without a key packet of type LKH")
    else:
        material, public_der = _read_kek_packet(packet, octets)
    # RFC 6407 section 5.3: optional. Without one the KEK holds until another takes its place.
    lifetime = values.get(KekAttribute.KEK_KEY_LIFETIME, NO_KEK_LIFETIME)
    if not lifetime:
        raise PolicyError("KEK_KEY_LIFETIME is zero")
    # Eight octets may say a time that no calendar has.
    lifetime = min(lifetime, NO_KEK_LIFETIME)
    source = read_network(sak.source, "SAK SRC")
    destination = read_network(sak.destination, "SAK DST")
    return Kek(
        spi=sak.spi,
        iv=material[:BLOCK],
        key=Secret(material[BLOCK:]),
        scheme=scheme,
        public_der=public_der,
        lifetime=lifetime,
        destination=None if destination is None else destination.network_address,
        source=_one_host(source),
        port=sak.destination.port or GDOI_PORT,
        ack_type=values.get(KekAttribute.KEK_ACK_REQUESTED),
        path=path,
    )


def _one_host(network: IPNetwork | None) -> IPAddress | None:
    """A subnet says no more than that the rekeys come from somewhere."""
    if network is None or network.prefixlen != network.max_prefixlen:
        return None
    return network.network_address


def _kek_packet(sak: SaKek, kd: KeyDownload, held: Kek | None) -> KeyPacket:
    """RFC 6407 sections 5.6.2 and 5.6.3: "there MUST be only one present", of either type."""
    packets = [p for p in kd.packets if p.kd_type in (KeyPacketType.KEK, KeyPacketType.LKH)]
    if len(packets) != 1 or packets[0].spi not in (sak.spi, held.spi if held else None):
        raise PolicyError(f"{len(packets)} KEK key packets for the SAK's SPI, must be one")
    return packets[0]


def _read_kek_packet(packet: KeyPacket, octets: int) -> tuple[bytes, bytes]:
    """IV | key, and the public key."""
    keys = attr.unique(packet.attributes, "KEK key packet")
    for kind in keys:
        if kind not in set(KekKeyAttribute):
            raise PolicyError(f"KEK key attribute {kind} is unknown")
    if len(keys) != len(KekKeyAttribute):
        raise PolicyError("KEK key packet lacks KEK_ALGORITHM_KEY or SIG_ALGORITHM_KEY")
    material = keys[KekKeyAttribute.KEK_ALGORITHM_KEY].octets()
    if len(material) != octets:
        raise PolicyError(f"KEK_ALGORITHM_KEY of {len(material)} octets, must be {octets}")
    return material, keys[KekKeyAttribute.SIG_ALGORITHM_KEY].octets()
