"""Identities with wildcards, as authorisation lists have them (RFC 6407 section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from ..crypto import distinguished_name
from ..wire.registry import IdType
from .identity import Identity

EVERYBODY = "%any"
_FORMS = (
    "an identity, %any, *.example.org, *@example.org, a network, or a DN with * for values:"
    " C=CH, O=Example, CN=*"
)


@dataclass(frozen=True, slots=True)
class IdentityPattern:
    """One entry of a list: an identity (``exact``), or what stands for several."""

    text: str
    exact: Identity | None = None
    suffix: bytes = b""
    kind: int = 0  # the ID type it is for, 0 for any
    network: IPv4Network | IPv6Network | None = None
    name: bytes = b""

    @classmethod
    def parse(cls, text: str) -> IdentityPattern:
        """Raises ValueError that says what is allowed."""
        if text == EVERYBODY:
            return cls(text)
        if text in ("*.", "*@"):
            raise ValueError(f"{text!r} names no domain; must be {_FORMS}")
        if text.startswith("*@") and "*" not in text[1:]:
            domain = Identity.parse(f"x{text[1:]}").canonical
            return cls(text, suffix=domain.data[1:], kind=IdType.ID_USER_FQDN)
        if text.startswith("*.") and "*" not in text[1:] and "@" not in text:
            domain = Identity.parse(f"x{text[1:]}").canonical
            return cls(text, suffix=domain.data[1:], kind=IdType.ID_FQDN)
        if "=" in text and distinguished_name.ANY in text:
            return cls(text, name=distinguished_name.encode(text), kind=IdType.ID_DER_ASN1_DN)
        if "*" in text:
            raise ValueError(f"{text!r} must be {_FORMS}")
        if "/" in text and "=" not in text:
            return cls(text, network=ip_network(text))
        return cls(text, exact=Identity.parse(text).canonical)

    @classmethod
    def of(cls, identity: Identity) -> IdentityPattern:
        return cls(str(identity), exact=identity.canonical)

    def matches(self, identity: Identity) -> bool:
        """``identity`` in its canonical form."""
        if self.exact is not None:
            return identity == self.exact or self._same_name(identity, self.exact)
        if self.network is not None:
            address = identity.address
            return address is not None and address in self.network
        if self.name:
            return identity.id_type == self.kind and distinguished_name.matches(
                self.name, identity.data
            )
        if self.suffix:
            data = identity.data
            return (
                identity.id_type == self.kind
                and data.endswith(self.suffix)
                and len(data) > len(self.suffix)
            )
        return True

    @staticmethod
    def _same_name(identity: Identity, exact: Identity) -> bool:
        """Two DNs that differ in the case of letters."""
        return (
            identity.id_type == exact.id_type == IdType.ID_DER_ASN1_DN
            and distinguished_name.matches(exact.data, identity.data)
        )

    def __str__(self) -> str:
        return self.text


class IdentityList:
    """``identity in list``: exact entries by hash, the others one by one."""

    __slots__ = ("_everybody", "_exact", "_patterns", "patterns")

    def __init__(self, patterns: Iterable[IdentityPattern] = ()) -> None:
        self.patterns = tuple(patterns)
        self._everybody = any(p.text == EVERYBODY for p in self.patterns)
        self._exact = frozenset(p.exact for p in self.patterns if p.exact is not None)
        # A DN that differs in letters' case alone is the same, and hashes do not see that.
        self._patterns = tuple(
            p for p in self.patterns if p.exact is None or p.exact.id_type == IdType.ID_DER_ASN1_DN
        )

    @classmethod
    def of(cls, *identities: Identity) -> IdentityList:
        return cls(IdentityPattern.of(identity) for identity in identities)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> IdentityList:
        """Raises ValueError."""
        return cls(IdentityPattern.parse(text) for text in texts)

    def __contains__(self, identity: object) -> bool:
        if not isinstance(identity, Identity):
            return False
        if self._everybody or identity in self._exact:
            return True
        return any(p.matches(identity) for p in self._patterns)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityList) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __repr__(self) -> str:
        return f"IdentityList({', '.join(map(str, self.patterns))})"
