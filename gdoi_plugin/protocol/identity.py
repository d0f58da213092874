"""Phase-1 identities, RFC 2407 section 4.6.2, as configuration and log write them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from ..crypto import distinguished_name
from ..wire.identification import Identification
from ..wire.registry import IdType, name_of


class Identity(NamedTuple):
    """An ID payload without protocol and port."""

    id_type: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """``192.0.2.1``, ``2001:db8::1``, ``gm1.example.org``, ``gm1@example.org``,
        ``C=CH, O=Example, CN=gm1`` or ``keyid:0a0b0c``. Raises ValueError."""
        if text.startswith("keyid:"):
            return cls(IdType.ID_KEY_ID, bytes.fromhex(text.removeprefix("keyid:")))
        if "=" in text:
            return cls(IdType.ID_DER_ASN1_DN, distinguished_name.encode(text))
        try:
            return cls.of_address(ip_address(text))
        except ValueError:
            pass
        if not text or not text.isascii() or any(c.isspace() for c in text):
            raise ValueError(f"{text!r} is no address, FQDN, user@FQDN, DN or keyid:HEX")
        kind = IdType.ID_USER_FQDN if "@" in text else IdType.ID_FQDN
        return cls(kind, text.encode("ascii"))

    @classmethod
    def of_address(cls, address: IPv4Address | IPv6Address) -> Identity:
        kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
        return cls(kind, address.packed)

    @classmethod
    def of_payload(cls, payload: Identification) -> Identity:
        return cls(payload.id_type, payload.data)

    @property
    def canonical(self) -> Identity:
        """One identity for all ways to write it: string types of a DN, letters of a domain name.

        What cannot be read is its own canonical form.
        """
        if self.id_type in (IdType.ID_FQDN, IdType.ID_USER_FQDN):
            return Identity(self.id_type, self.data.lower())
        if self.id_type == IdType.ID_DER_ASN1_DN:
            try:
                return Identity(self.id_type, distinguished_name.canonical(self.data))
            except ValueError:
                return self
        return self

    def payload(self) -> Identification:
        """Protocol and port zero: RFC 2407 section 4.6.2 allows it and every peer accepts it."""
        return Identification(self.id_type, self.data)

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The address of an ID_IPV4_ADDR or ID_IPV6_ADDR of the right length."""
        if self.id_type == IdType.ID_IPV4_ADDR and len(self.data) == 4:
            return IPv4Address(self.data)
        if self.id_type == IdType.ID_IPV6_ADDR and len(self.data) == 16:
            return IPv6Address(self.data)
        return None

    def __str__(self) -> str:
        if (address := self.address) is not None:
            return str(address)
        if self.id_type in (IdType.ID_FQDN, IdType.ID_USER_FQDN):
            text = self.data.decode("ascii", "backslashreplace")
            return text if text.isprintable() else repr(text)
        if self.id_type == IdType.ID_DER_ASN1_DN:
            try:
                return distinguished_name.text_of(self.data)
            except ValueError:
                pass
        if self.id_type == IdType.ID_KEY_ID:
            return f"keyid:{self.data.hex()}"
        return f"{name_of(IdType, self.id_type)}:{self.data.hex()}"
