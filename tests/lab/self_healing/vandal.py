"""What somebody does to a host's SAs and policies, run there as a program of its own::

    python -m tests.lab.self_healing.vandal flush-sas|flush-policies|flush-both ...

For each flush it prints how many milliseconds it came late, since nobody runs all the time, and how
many passed from it until the kernel held everything again.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

from gdoi_xfrm import Monitor, Xfrm

LIMIT = 150.0
# Seconds before each flush: traffic flows again.
PAUSE = 0.3
_NETLINK_XFRM = 6
_FLUSHSA, _FLUSHPOLICY = 0x1C, 0x1D
# struct nlmsghdr, flags NLM_F_REQUEST, and struct xfrm_usersa_flush with "every protocol".
_REQUESTS = {
    "flush-sas": [struct.pack("=IHHIIB3x", 20, _FLUSHSA, 1, 1, 0, 0)],
    "flush-policies": [struct.pack("=IHHII", 16, _FLUSHPOLICY, 1, 1, 0)],
}
_REQUESTS["flush-both"] = [*_REQUESTS["flush-policies"], *_REQUESTS["flush-sas"]]


def main() -> None:
    with Monitor() as monitor, Xfrm() as xfrm:
        sas = {state.sa.key for state in xfrm.dump_sas()}
        policies = set(xfrm.dump_policies())
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_XFRM)
        for what in sys.argv[1:]:
            rested = time.monotonic()
            time.sleep(PAUSE)
            monitor.read()
            began = time.monotonic()
            late = began - rested - PAUSE
            for request in _REQUESTS[what]:
                sock.send(request)
            while not (
                {state.sa.key for state in xfrm.dump_sas()} >= sas
                and set(xfrm.dump_policies()) >= policies
            ):
                left = began + LIMIT - time.monotonic()
                if not select.select([monitor], [], [], max(0.0, left))[0]:
                    sys.exit("not everything came back in time")
                monitor.read()
            sys.stdout.write(f"{1000 * late:.1f} {1000 * (time.monotonic() - began):.1f}\n")


if __name__ == "__main__":
    main()
