"""What the port of NAT traversal carries, RFC 3948 section 2: ISAKMP, keepalives and ESP.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                         Non-ESP Marker                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                      ISAKMP header [...]                      |
"""

from __future__ import annotations

from .buffer import DecodeError

# Where ESP has its SPI, which is never zero.
NON_ESP_MARKER = bytes(4)
# RFC 3948 section 2.3: "a one-octet-long field with the value 0xFF"
KEEPALIVE = b"\xff"


def encapsulate(message: bytes) -> bytes:
    """As it leaves from port 4500: a marker before every message, none before a keepalive."""
    return message if message == KEEPALIVE else NON_ESP_MARKER + message


def decapsulate(datagram: bytes) -> bytes | None:
    """The message in a datagram that came to port 4500, None for a keepalive.

    Raises DecodeError for anything else: ESP has no business here.
    """
    if datagram == KEEPALIVE:
        return None
    marker = datagram[: len(NON_ESP_MARKER)]
    if marker != NON_ESP_MARKER:
        raise DecodeError(f"no non-ESP marker but {marker.hex() or 'nothing'}", 0)
    return datagram[len(NON_ESP_MARKER) :]
