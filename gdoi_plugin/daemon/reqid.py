"""The kernel's number for a group: all SAs and policies of one share it."""

from __future__ import annotations

from ..protocol.group_id import GroupId

# charon counts its reqids up from 1 and would take a foreign policy with one of them for its own.
FIRST_REQID = 0x40000000


def reqid_of(group_id: GroupId) -> int:
    """The lower 30 bits of the group's key: the same after every restart."""
    return FIRST_REQID | (group_id.key & (FIRST_REQID - 1))
