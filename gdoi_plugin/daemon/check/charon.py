"""strongSwan's charon on the same host, where it is needed or could be in the way."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ..vici_message import (
    MAX_PACKET,
    Message,
    MessageError,
    Packet,
    PacketType,
    decode_packet,
    encode_segment,
)
from .finding import Area, Finding

CHARON = Area("charon")
# Where Debian's has its socket.
SOCKET = Path("/run/charon.vici")
# Seconds for an answer; a charon that works takes milliseconds.
LIMIT = 3.0


class NoAnswer(Exception):
    """Why, in one sentence, and what is to be done."""

    def __init__(self, said: str, mend: str) -> None:
        super().__init__(said)
        self.mend = mend


def check_charon(path: Path = SOCKET, *, needed: bool) -> Iterator[Finding]:
    """Where no option needs it, one that is not there is no finding."""
    test = f"charon at {path}"
    if not (needed or path.exists()):
        return
    try:
        answer = version(path)
    except NoAnswer as error:
        make = CHARON.fail if needed else CHARON.warn
        yield make(test, str(error), error.mend)
        return
    said = " ".join(str(answer.get(key, "")) for key in ("daemon", "version")).strip()
    yield CHARON.ok(test, f"{said or 'a daemon'} answers")


def version(path: Path) -> Message:
    """What charon says of itself. Raises NoAnswer."""
    restart = "systemctl restart strongswan"
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
            sock.settimeout(LIMIT)
            sock.connect(str(path))
            sock.sendall(encode_segment(Packet(PacketType.CMD_REQUEST, "version")))
            packet = decode_packet(_received(sock, time.monotonic() + LIMIT))
    except FileNotFoundError:
        install = "apt-get install charon-systemd; systemctl enable --now strongswan"
        raise NoAnswer("there is no such socket: charon does not run here", install) from None
    except ConnectionRefusedError:
        raise NoAnswer("the socket is left over from a charon that has ended", restart) from None
    except PermissionError:
        raise NoAnswer("permission denied", "sudo gdoictl check") from None
    except TimeoutError:
        said = f"it takes connections and has not answered in {LIMIT:g} s"
        raise NoAnswer(said, restart) from None
    except (OSError, MessageError) as error:
        raise NoAnswer(f"no answer that could be read: {error}", restart) from None
    return packet.message or {}


def _received(sock: socket.socket, deadline: float) -> bytes:
    length = int.from_bytes(_exactly(sock, 4, deadline), "big")
    if not 0 < length <= MAX_PACKET:
        raise MessageError(f"packet of {length} octets")
    return _exactly(sock, length, deadline)


def _exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    """One deadline for all of it. Raises OSError."""
    data = bytearray()
    while len(data) < count:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return bytes(data)
