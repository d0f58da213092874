"""Bytes <-> payloads: a file per payload, a dataclass per RFC diagram, its pull and push below it.

Decoding is strict about form (lengths, reserved octets, counts) and open about numbers: an
unknown payload type stays a raw :class:`~gdoi_plugin.wire.payload.Payload`, an unknown
enumeration value stays an ``int``, and policy decides. The only exception that leaves this package
is :class:`~gdoi_plugin.wire.buffer.DecodeError`.
"""
