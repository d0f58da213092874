"""Group VPN for Linux: a GDOI group member agent and key server (RFC 6407, RFC 8263).

Five packages; imports point from right to left only::

    wire  <-  crypto  <-  protocol  <-  daemon  ->  gdoi_xfrm  ->  kernel
                                          ^
                                         cli

``wire``      octets <-> payloads. A file per payload, a dataclass per diagram of the RFC.
``crypto``    prf, key derivation, Diffie-Hellman, the KEK's cipher, signatures, ack_key, the LKH.
``protocol``  the engines, without I/O. A datagram, an event or the time goes in, a list of
              *actions* comes out (send this, persist that, apply this to the kernel); what became
              of a kernel transaction comes back as an event.
``daemon``    asyncio around the engines: sockets, timers, stores, configuration, control socket.
              Carries actions out and takes no decision of the protocol.
``cli``       gdoictl, a client of the control sockets.

Beside them ``manual`` writes manual pages, completions and the reference of options from what the
configuration's models and the command lines' parsers are.

One datagram's way at a member: ``daemon.udp`` -> ``protocol.agent.Agent`` finds the group ->
``protocol.push.open_push`` decrypts, checks SEQ and signature -> ``protocol.rollover`` plans ->
``ApplyKernel`` -> ``daemon.kernel`` -> ``gdoi_xfrm`` transaction -> ``kernel_done`` -> state is
persisted -> ``protocol.acknowledger`` -> the acknowledgement leaves.

One registration's way: ``protocol.registrar`` says when and with which key server ->
``protocol.registration`` -> ``protocol.main_mode``, unless a phase-1 SA is left from before ->
``protocol.pull`` -> the kernel as above; the SA lives on in ``protocol.association``.
"""

__version__ = "0.1.0"
