"""Several sockets on one UDP port, a kind of message each, so that no flood drowns another kind.

Each lane has a receive buffer and a turn of its own. The kernel chooses the lane: a classic BPF
program looks at the ISAKMP header (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5), where the datagram begins
at the UDP payload. It only sorts: whatever comes out of a lane is checked like everything else.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from enum import IntEnum

from ..wire.encapsulation import NON_ESP_MARKER
from ..wire.header import COOKIE_LENGTH, HEADER_LENGTH
from ..wire.payload import GENERIC_HEADER_LENGTH
from ..wire.registry import ExchangeType

# asm-generic/socket.h; not in Python's socket module.
SO_ATTACH_REUSEPORT_CBPF = 51
# linux/bpf_common.h: load octet, load word, jump, jump if equal, modulo, add, return k, return A.
_LDB, _LDW, _JA, _JEQ, _RET = 0x30, 0x20, 0x05, 0x15, 0x06
_MOD, _ADD, _RET_A = 0x94, 0x04, 0x16
# struct sock_filter: code, where to jump if true and if false, k
_INSTRUCTION = struct.Struct("HBBI")
# struct sock_fprog: number of instructions, their address
_PROGRAM = struct.Struct("HP")
_EXCHANGE_TYPE = 2 * COOKIE_LENGTH + 2
# Of an ACK, behind its header and the HASH payload's: as good as random.
_HASH = HEADER_LENGTH + GENERIC_HEADER_LENGTH


class Lane(IntEnum):
    """In the order in which the sockets are bound: the program returns such a number.

    What is too short to be sorted goes to lane 0: there the program ends.
    """

    PHASE_2 = 0
    """GROUPKEY-PULL, Informational, and what is none of ours."""
    ACK = 1
    PHASE_1 = 2
    """Main mode with our cookie."""
    FIRST = 3
    """Main mode without one: anybody can send it, from any address."""


def program(*, encapsulated: bool = False, spread: int = 0) -> bytes:
    """The filter's instructions. ``encapsulated``: a non-ESP marker comes first (RFC 3948 2.2).
    ``spread``: ACKs go to so many sockets more, bound after the others, by their HASH."""
    start = len(NON_ESP_MARKER) if encapsulated else 0
    to_many = (
        (_LDW, 0, 0, start + _HASH),
        (_MOD, 0, 0, spread),
        (_ADD, 0, 0, len(Lane)),
        (_RET_A, 0, 0, 0),
    )
    return b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (_LDB, 0, 0, start + _EXCHANGE_TYPE),
            (_JEQ, 2, 0, ExchangeType.MAIN_MODE),
            (_JEQ, 6, 0, ExchangeType.GROUPKEY_PUSH_ACK),
            (_RET, 0, 0, Lane.PHASE_2),
            (_LDW, 0, 0, start + COOKIE_LENGTH),
            (_JEQ, 0, 4, 0),
            (_LDW, 0, 0, start + COOKIE_LENGTH + 4),
            (_JEQ, 0, 2, 0),
            (_RET, 0, 0, Lane.FIRST),
            (_JA, 0, 0, 1) if spread else (_RET, 0, 0, Lane.ACK),
            (_RET, 0, 0, Lane.PHASE_1),
            *(to_many if spread else ()),
        )
    )


def attach(sock: socket.socket, instructions: bytes) -> None:
    """For the whole group that shares the port with ``sock``. Raises OSError."""
    held = ctypes.create_string_buffer(instructions, len(instructions))
    count = len(instructions) // _INSTRUCTION.size
    option = _PROGRAM.pack(count, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, option)
