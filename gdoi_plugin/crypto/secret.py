"""Keys that do not show themselves."""

from __future__ import annotations

import hmac


class Secret:
    """Octets of a key: ``repr`` shows the length only, comparison takes constant time."""

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = bytes(octets)

    def reveal(self) -> bytes:
        """The octets themselves, for a cipher, a prf, the kernel or sealed storage."""
        return self._octets

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._octets, other._octets)

    def __hash__(self) -> int:
        # Only so that frozen dataclasses with keys stay hashable; tells nothing about the octets.
        return hash((Secret, len(self._octets)))

    def __repr__(self) -> str:
        return f"Secret({len(self._octets)} octets)"
