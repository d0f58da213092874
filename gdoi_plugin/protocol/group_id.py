"""What a group is called in GROUPKEY-PULL: RFC 6407 section 5.1, RFC 8052 section 2.1."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..wire.buffer import Buffer, DecodeError
from ..wire.identification import Identification
from ..wire.oid import Oid
from ..wire.registry import IdType, name_of
from .actions import IPAddress

NUMBER_OCTETS = 4  # RFC 6407 section 5.1: "MUST specify a 4-octet group identifier"
_FORMS = "a number, an IPv4 or IPv6 address, or oid:1.2.3 with :HEX for its payload"
_LENGTHS = {IdType.ID_KEY_ID: NUMBER_OCTETS, IdType.ID_IPV4_ADDR: 4, IdType.ID_IPV6_ADDR: 16}


@dataclass(frozen=True, slots=True)
class GroupId:
    """An ID payload's type and data. Groups are the same where both are."""

    id_type: int
    data: bytes

    @classmethod
    def of_number(cls, number: int) -> GroupId:
        """The 4-octet ID_KEY_ID that every implementation has."""
        return cls(IdType.ID_KEY_ID, number.to_bytes(NUMBER_OCTETS, "big"))

    @classmethod
    def of_address(cls, address: IPAddress) -> GroupId:
        kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
        return cls(kind, address.packed)

    @classmethod
    def of_oid(cls, oid: Oid) -> GroupId:
        buf = Buffer()
        oid.push(buf)
        return cls(IdType.ID_OID, buf.data)

    @classmethod
    def parse(cls, text: str) -> GroupId:
        """As :meth:`__str__` writes it. Raises ValueError that says what is allowed."""
        kind, colon, rest = text.partition(":")
        if text.isascii() and text.isdecimal() and int(text) <= 0xFFFFFFFF:
            return cls.of_number(int(text))
        if colon and kind == "oid":
            return cls.of_oid(Oid.parse(rest))
        try:
            if "%" not in text:
                return cls.of_address(ip_address(text))
        except ValueError:
            pass
        raise ValueError(f"{text!r} names no group; must be {_FORMS}")

    @classmethod
    def of_payload(cls, payload: Identification) -> GroupId:
        """Raises DecodeError for a type that names no group, or data that its type cannot have."""
        kind, data = payload.id_type, payload.data
        if kind == IdType.ID_OID:
            buf = Buffer(data)
            Oid.pull(buf)
            buf.expect_end("ID_OID")
        elif kind in _LENGTHS:
            if len(data) != _LENGTHS[IdType(kind)]:
                raise DecodeError(f"group ID {name_of(IdType, kind)} of {len(data)} octets", 0)
        else:
            raise DecodeError(f"group ID of type {name_of(IdType, kind)}, must be {_FORMS}", 0)
        return cls(kind, data)

    def payload(self) -> Identification:
        return Identification(self.id_type, self.data)

    @property
    def number(self) -> int | None:
        """Of an ID_KEY_ID."""
        if self.id_type == IdType.ID_KEY_ID:
            return int.from_bytes(self.data, "big")
        return None

    @property
    def key(self) -> int:
        """For stores: the number itself, else 62 bits of a hash above all numbers. Below 2**63."""
        if (number := self.number) is not None:
            return number
        digest = sha256(bytes((self.id_type,)) + self.data).digest()
        return 1 << 62 | int.from_bytes(digest[:8], "big") >> 2

    def __str__(self) -> str:
        if (number := self.number) is not None:
            return str(number)
        if self.id_type == IdType.ID_OID:
            return f"oid:{Oid.pull(Buffer(self.data))}"
        if self.id_type == IdType.ID_IPV4_ADDR:
            return str(IPv4Address(self.data))
        return str(IPv6Address(self.data))
