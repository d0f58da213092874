"""Sans-I/O engines: octets, events and ``now`` in, actions out.

Nothing here opens a socket, reads a clock or a random source, or knows a file: a datagram comes
in with its addresses and the time, a list of :mod:`~gdoi_plugin.protocol.actions` goes out, and
what became of a kernel transaction comes back as an event. ``now`` is Unix time in seconds on a
clock that does not step. ``random`` is ``os.urandom`` or anything of its shape.
"""
