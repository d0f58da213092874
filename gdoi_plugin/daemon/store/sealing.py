"""Keys in the database are sealed with AES-256-GCM under a master key that is not in it.

A sealed row opens in its own place only: the table and the primary key are authenticated with it.
Nonces are random, so one master key is for 2^32 rows written, years of a busy key server.
"""

from __future__ import annotations

import binascii
import os
import stat
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...crypto.secret import Secret
from ..errors import StoreError

KEY_LENGTH = 32
# Two lines of base64 or hex with room for spaces; what is longer is another file.
MAX_FILE = 256
CREDENTIAL = "gdoi-master-key"

_NONCE = 12


@dataclass(frozen=True, slots=True)
class MasterKey:
    """``name`` tells it from other keys, and nothing about it."""

    secret: Secret
    name: str = field(init=False)

    def __post_init__(self) -> None:
        digest = sha256(b"gdoi master key name\0" + self.secret.reveal()).hexdigest()
        object.__setattr__(self, "name", digest[:16])


def read_master_key(path: Path, *, check_mode: bool = True) -> MasterKey:
    """32 octets in hex or base64, in a file for its owner alone. Raises StoreError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            octets = os.read(descriptor, MAX_FILE + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"master key {path}: {error.strerror}") from error
    if check_mode and mode & 0o077:
        raise StoreError(f"master key {path}: others may read it; its mode must be 0600")
    secret = _decoded(octets)
    if secret is None:
        what = f"must hold {KEY_LENGTH} random octets in hex or base64"
        raise StoreError(f"master key {path}: {what}")
    return MasterKey(secret)


def _decoded(octets: bytes) -> Secret | None:
    text = octets.strip()
    for decode in (binascii.unhexlify, lambda text: b64decode(text, validate=True)):
        try:
            found = decode(text)
        except ValueError:
            continue
        if len(found) == KEY_LENGTH:
            return Secret(found)
    return None


def credential_of(environment: Mapping[str, str]) -> Path | None:
    """The file that systemd has put the master key into, by LoadCredential= or
    LoadCredentialEncrypted=."""
    directory = environment.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL if directory else None
    return path if path is not None and path.exists() else None


class Seal:
    """Seals and opens what rows hold; without a master key it leaves everything as it is."""

    def __init__(self, key: MasterKey | None) -> None:
        self.key = key
        self._cipher = None if key is None else AESGCM(key.secret.reveal())

    def seal(self, octets: bytes, table: str, *primary_key: int) -> bytes:
        if self._cipher is None:
            return octets
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, octets, _place(table, primary_key))

    def open(self, sealed: bytes, table: str, *primary_key: int) -> bytes:
        """Raises StoreError naming the row."""
        if self._cipher is None:
            return sealed
        place = _place(table, primary_key)
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], place)
        except (InvalidTag, ValueError):
            what = "damaged, or another row's: its seal does not open with the right master key"
            raise StoreError(f"table {place.decode()}: {what}") from None


def _place(table: str, primary_key: tuple[int, ...]) -> bytes:
    return f"{table}, row {'/'.join(map(str, primary_key))}".encode()
