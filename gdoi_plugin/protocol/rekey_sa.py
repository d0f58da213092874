"""The Rekey SA: SAK and KEK key packet, RFC 6407 sections 5.3 and 5.6.2."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from ..crypto.cipher import BLOCK
from ..crypto.secret import Secret
from ..crypto.signature import Scheme
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.group_sa import SaKek
from ..wire.key_download import KeyDownload, KeyPacket
from ..wire.registry import (
    GDOI_PORT,
    KekAlgorithm,
    KekAttribute,
    KekKeyAttribute,
    KeyPacketType,
    SigAlgorithm,
    SigHash,
    name_of,
)
from .actions import IPAddress
from .endpoints import address_endpoint, read_network
from .errors import PolicyError

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

    @property
    def name(self) -> str:
        return self.spi.hex()


def encode_sak(kek: Kek) -> SaKek:
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
        address_endpoint(address or nowhere, kek.port) for address in (kek.source, kek.destination)
    )
    return SaKek(UDP, source, destination, kek.spi, tuple(attributes))


def encode_kek_packet(kek: Kek) -> KeyPacket:
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


def read_kek(sak: SaKek, kd: KeyDownload, other_spi: bytes | None, *, pull: bool) -> Kek:
    values, scheme = read_sak(sak, pull=pull)
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
    source = read_network(sak.source, "SAK SRC")
    destination = read_network(sak.destination, "SAK DST")
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
