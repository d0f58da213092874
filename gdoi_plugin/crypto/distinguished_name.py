"""Distinguished names (X.501) as swanctl writes them: ``C=CH, O=Example, CN=gm1``."""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.x509.oid import NameOID

# RFC 4514's parser knows the names of its own section 3 alone, and those in capitals.
_SHORT_NAMES = {
    "cn": NameOID.COMMON_NAME,
    "c": NameOID.COUNTRY_NAME,
    "l": NameOID.LOCALITY_NAME,
    "st": NameOID.STATE_OR_PROVINCE_NAME,
    "o": NameOID.ORGANIZATION_NAME,
    "ou": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "dc": NameOID.DOMAIN_COMPONENT,
    "E": NameOID.EMAIL_ADDRESS,
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "SN": NameOID.SURNAME,
    "G": NameOID.GIVEN_NAME,
    "T": NameOID.TITLE,
    "serialNumber": NameOID.SERIAL_NUMBER,
}
_WRITTEN = {NameOID.EMAIL_ADDRESS: "E", NameOID.SERIAL_NUMBER: "serialNumber"}
_SPACES = re.compile(r"\s+")
_AFTER_SIGN = re.compile(r"(?<!\\)([,+=])\s+")
ANY = "*"


def encode(text: str) -> bytes:
    """DER, the RDNs in the order they are written in. Raises ValueError."""
    try:
        backwards = x509.Name.from_rfc4514_string(
            _AFTER_SIGN.sub(r"\1", text.strip()), _SHORT_NAMES
        )
        if not backwards.rdns:
            raise ValueError("empty")
    except (ValueError, KeyError, IndexError):
        raise ValueError(f"{text!r} is no distinguished name, as C=CH, O=Example, CN=gm1") from None
    return _encode(x509.Name(reversed(list(backwards.rdns))))


def canonical(der: bytes) -> bytes:
    """The same name as ``encode`` would have it: one string type, single spaces.

    Certificates of different CAs write one name in different ways (RFC 5280 section 7.1). Raises
    ValueError for what is no name.
    """
    return _encode(_read(der))


def text_of(der: bytes) -> str:
    """Raises ValueError for what is no name."""
    return ", ".join(rdn.rfc4514_string(_WRITTEN) for rdn in _read(der).rdns)


def matches(pattern: bytes, der: bytes) -> bool:
    """Whether ``der`` has the RDNs of ``pattern``, where a value of ``*`` stands for any one.

    Letters of either case are the same (RFC 5280 section 7.1).
    """
    try:
        wanted, given = _read(pattern).rdns, _read(der).rdns
    except ValueError:
        return False
    return len(wanted) == len(given) and all(
        len(w) == len(g) == 1 and _agree(next(iter(w)), next(iter(g)))
        if len(w) == 1
        else _folded(w) == _folded(g)
        for w, g in zip(wanted, given, strict=True)
    )


def _agree(wanted: x509.NameAttribute[str | bytes], given: x509.NameAttribute[str | bytes]) -> bool:
    return wanted.oid == given.oid and (wanted.value == ANY or _fold(wanted) == _fold(given))


def _fold(attribute: x509.NameAttribute[str | bytes]) -> str | bytes:
    value = _spaced(attribute.value)
    return value.casefold() if isinstance(value, str) else value


def _folded(rdn: x509.RelativeDistinguishedName) -> set[tuple[str, str | bytes]]:
    return {(attribute.oid.dotted_string, _fold(attribute)) for attribute in rdn}


def _read(der: bytes) -> x509.Name:
    try:
        name = x509.Name.from_bytes(der)
    except (ValueError, TypeError):
        raise ValueError(f"{len(der)} octets are no distinguished name") from None
    if not name.rdns:
        raise ValueError("an empty distinguished name")
    return name


def _encode(name: x509.Name) -> bytes:
    try:
        return x509.Name(
            x509.RelativeDistinguishedName(x509.NameAttribute(a.oid, _spaced(a.value)) for a in rdn)
            for rdn in name.rdns
        ).public_bytes()
    except (ValueError, TypeError) as error:
        raise ValueError(f"no distinguished name: {error}") from None


def _spaced(value: str | bytes) -> str | bytes:
    return _SPACES.sub(" ", value.strip()) if isinstance(value, str) else value
