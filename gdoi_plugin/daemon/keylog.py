"""Wireshark's IKEv1 decryption table, for an operator who wants to read a capture.

A line per phase-1 SA, ``initiator cookie,encryption key`` in hexadecimal: the file
``ikev1_decryption_table`` of a Wireshark profile. Off unless asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import StartError


class KeyLogFile:
    """Appends; mode 0600."""

    def __init__(self, path: Path) -> None:
        """Raises StartError."""
        try:
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
            os.fchmod(self._descriptor, 0o600)
        except OSError as error:
            raise StartError(f"key log {path}: {error.strerror}") from error

    def write(self, cky_i: bytes, encryption_key: bytes) -> None:
        """Raises OSError."""
        os.write(self._descriptor, f"{cky_i.hex()},{encryption_key.hex()}\n".encode("ascii"))

    def close(self) -> None:
        os.close(self._descriptor)
