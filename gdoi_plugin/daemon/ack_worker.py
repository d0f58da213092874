"""``python -m gdoi_plugin.daemon.ack_worker SOCKET CONTROL``: a process beside the key server that
reads acknowledgements and computes their HASHes, and what the two say to one another.

It decides and writes nothing. All that came goes on to the key server, with a claim where the HASH
is right (:mod:`..protocol.ack_check`). It knows the ack_keys of rekeys that are open, no KEK, and
has no right to anything but its two sockets. It ends when the key server closes its own end.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..protocol.ack import MAX_LENGTH
from ..protocol.ack_check import AckCheck, Claim, Portion, Row
from .many import ManyReader

# Of each read: even of the longest they are no more than a packet of the socket pair may hold.
BURST = 128
# Members of one order; a row has at most 105 octets.
PORTION = 500
# A packet, either way.
MAX_PACKET = 1 << 18
# linux/prctl.h, linux/capability.h; 65534 is nobody wherever Linux runs.
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL = 4, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_NOBODY = 65534

# An order: its place, and for a portion type, SEQ, SPI and the lengths of key and rows' keys.
_FORGET, _EXPECT = b"F", b"E"
_PLACE = struct.Struct("!I")
_PORTION = struct.Struct("!IHI16sBB")
_ROW = struct.Struct("!IB")
# A datagram: its claim, the lengths of its endpoint and of itself.
_TAKEN = struct.Struct("!IIBH")


# -- what the key server says ----------------------------------------------------------------------


def encode_portion(portion: Portion) -> bytes:
    own = len(portion.rows[0].key) if portion.rows else 0
    head = portion.place, portion.ack_type, portion.seq, portion.spi, len(portion.key), own
    rows = (_ROW.pack(row.number, len(row.who)) + row.who + row.key for row in portion.rows)
    return b"".join((_EXPECT, _PORTION.pack(*head), portion.key, *rows))


def encode_end(place: int) -> bytes:
    return _FORGET + _PLACE.pack(place)


def obey(order: bytes, check: AckCheck) -> None:
    if order[:1] == _FORGET:
        check.forget(_PLACE.unpack_from(order, 1)[0])
        return
    place, ack_type, seq, spi, length, own = _PORTION.unpack_from(order, 1)
    at = 1 + _PORTION.size
    key, at = order[at : at + length], at + length
    rows = []
    while at < len(order):
        number, octets = _ROW.unpack_from(order, at)
        who, end = at + _ROW.size, at + _ROW.size + octets
        rows.append(Row(number, order[who:end], order[end : end + own]))
        at = end + own
    check.expect(Portion(place, ack_type, spi, seq, key, rows))


# -- what it answers -------------------------------------------------------------------------------


def encode_taken(
    claims: Sequence[Claim], datagrams: Sequence[bytes], endpoints: Sequence[bytes]
) -> bytes:
    parts = []
    for claim, datagram, endpoint in zip(claims, datagrams, endpoints, strict=True):
        parts += [_TAKEN.pack(*claim, len(endpoint), len(datagram)), endpoint, datagram]
    return b"".join(parts)


def decode_taken(packet: bytes) -> Iterator[tuple[Claim, bytes, bytes]]:
    """Claim, datagram and endpoint of each. Raises ValueError."""
    at = 0
    while at < len(packet):
        if len(packet) - at < _TAKEN.size:
            raise ValueError(f"{len(packet) - at} octets are no head of a datagram")
        place, number, there, length = _TAKEN.unpack_from(packet, at)
        begin = at + _TAKEN.size + there
        at = begin + length
        if there not in (6, 22) or at > len(packet):
            raise ValueError(f"endpoint of {there} octets, datagram of {length}")
        yield (place, number), packet[begin:at], packet[begin - there : begin]


# -- the process -----------------------------------------------------------------------------------


def renounce() -> None:
    """All rights: a bug in what reads strangers' datagrams gains nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        with suppress(OSError):  # in a user namespace there may be nobody else to become
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "rights cannot be renounced")
    # Its keys are in no core file, and no process of the same user may look at them.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def serve(sock: socket.socket, control: socket.socket) -> None:
    """Until the other end of ``control`` is closed."""
    check, reader = AckCheck(), ManyReader(sock, BURST, MAX_LENGTH)
    poll = select.poll()
    for each in (control, sock):
        poll.register(each, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if control.fileno() in ready:
            # Orders first: ACKs may lie there already that they say how to read.
            with suppress(BlockingIOError):
                while True:
                    order = control.recv(MAX_PACKET, socket.MSG_DONTWAIT)
                    if not order:
                        return
                    obey(order, check)
        if sock.fileno() in ready:
            try:
                datagrams, endpoints = reader.take()
            except OSError:
                continue  # an ICMP error for something sent earlier
            if datagrams:
                claims = [check.claim(datagram) for datagram in datagrams]
                control.sendall(encode_taken(claims, datagrams, endpoints))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They are the key server's, which closes its end when it has done with them.
        signal.signal(number, signal.SIG_IGN)
    renounce()
    sock, control = (socket.socket(fileno=int(text)) for text in sys.argv[1:3])
    with suppress(ConnectionError):
        serve(sock, control)


if __name__ == "__main__":
    main()
