"""The values of LKH_DOWNLOAD_ARRAY and LKH_UPDATE_ARRAY, RFC 6407 section 5.6.3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .buffer import Buffer

LKH_VERSION = 1
LKH_KEY_HEADER_LENGTH = 16
# A balanced tree of all 65,535 LKH IDs has paths of 16 nodes; 64 leave room for lopsided ones.
MAX_PATH = 64


@dataclass(frozen=True, slots=True)
class LkhKey:
    """One node's key. Dates in seconds since 1970, zero: none; ``key_data`` is IV | key.

    ::

        !             LKH ID            !    Key Type   !    RESERVED   !
        !                        Key Creation Date                      !
        !                       Key Expiration Date                     !
        !                           Key Handle                          !
        ~                            Key Data                           ~
    """

    lkh_id: int
    key_type: int
    key_handle: int
    key_data: bytes = field(repr=False)
    creation_date: int = 0
    expiration_date: int = 0

    @classmethod
    def pull(cls, buf: Buffer) -> LkhKey:
        """All of ``buf``: the length of Key Data is written nowhere."""
        lkh_id = buf.pull_uint16("LKH ID")
        key_type = buf.pull_uint8("LKH key type")
        buf.pull_zero(1, "LKH key: RESERVED")
        created = buf.pull_uint32("LKH key creation date")
        expires = buf.pull_uint32("LKH key expiration date")
        handle = buf.pull_uint32("LKH key handle")
        return cls(lkh_id, key_type, handle, buf.pull_rest(), created, expires)

    def push(self, buf: Buffer) -> None:
        buf.push_uint16(self.lkh_id)
        buf.push_uint8(self.key_type)
        buf.push_uint8(0)
        buf.push_uint32(self.creation_date)
        buf.push_uint32(self.expiration_date)
        buf.push_uint32(self.key_handle)
        buf.push_bytes(self.key_data)


@dataclass(frozen=True, slots=True)
class LkhDownloadArray:
    """A member's own keys, from its leaf to the group KEK.

    ::

        !  LKH Version  !          # of LKH Keys        !  RESERVED     !
        ~                            LKH Keys                           ~
    """

    keys: tuple[LkhKey, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> LkhDownloadArray:
        count = _pull_head(buf)
        return cls(_pull_keys(buf, count))

    def push(self, buf: Buffer) -> None:
        _push_head(buf, self.keys)
        for key in self.keys:
            key.push(buf)


@dataclass(frozen=True, slots=True)
class LkhUpdateArray:
    """New keys from a node's parent to the group KEK, each encrypted under the one before it.

    ``lkh_id`` and ``key_handle`` name the key that the first one is encrypted under.

    ::

        !  LKH Version  !          # of LKH Keys        !  RESERVED     !
        !            LKH ID             !           RESERVED2           !
        !                           Key Handle                          !
        ~                            LKH Keys                           ~
    """

    lkh_id: int
    key_handle: int
    keys: tuple[LkhKey, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> LkhUpdateArray:
        count = _pull_head(buf)
        lkh_id = buf.pull_uint16("LKH update array: LKH ID")
        buf.pull_zero(2, "LKH update array: RESERVED2")
        handle = buf.pull_uint32("LKH update array: key handle")
        return cls(lkh_id, handle, _pull_keys(buf, count))

    def push(self, buf: Buffer) -> None:
        _push_head(buf, self.keys)
        buf.push_uint16(self.lkh_id)
        buf.push_uint16(0)
        buf.push_uint32(self.key_handle)
        for key in self.keys:
            key.push(buf)


def _pull_head(buf: Buffer) -> int:
    """The number of keys."""
    if (version := buf.pull_uint8("LKH version")) != LKH_VERSION:
        raise buf.error(f"LKH version {version}, must be {LKH_VERSION}")
    count = buf.pull_uint16("number of LKH keys")
    buf.pull_zero(1, "LKH array: RESERVED")
    if not 1 <= count <= MAX_PATH:
        raise buf.error(f"{count} LKH keys, must be 1 to {MAX_PATH}")
    return count


def _push_head(buf: Buffer, keys: Sequence[LkhKey]) -> None:
    buf.push_uint8(LKH_VERSION)
    buf.push_uint16(len(keys))
    buf.push_uint8(0)


def _pull_keys(buf: Buffer, count: int) -> tuple[LkhKey, ...]:
    """Keys of one length each.

    No field says how long a key is; but section 5.3.2 has one algorithm, that of the KEK, "used for
    all keys that are included as part of the management", so they share the octets equally.
    """
    length, rest = divmod(buf.remaining, count)
    if rest or length <= LKH_KEY_HEADER_LENGTH:
        raise buf.error(f"{buf.remaining} octets are not {count} LKH keys")
    return tuple(LkhKey.pull(buf.pull_sub(length, "LKH key")) for _ in range(count))
