"""The kernel's number for a group: all SAs and policies of one share it."""

from __future__ import annotations

from ..protocol.group_id import GroupId

# charon counts its reqids up from 1 and would take a foreign policy with one of them for its own.
FIRST_REQID = 0x40000000


def reqid_of(group_id: GroupId) -> int:
    return reqid_of_key(group_id.key)


def reqid_of_key(key: int) -> int:
    """The lower 30 bits of the group's key: the same after every restart."""
    return FIRST_REQID | (key & (FIRST_REQID - 1))
