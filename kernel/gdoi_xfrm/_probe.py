"""Can this kernel, in this namespace, hold the SAs that are needed?"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from gdoi_xfrm._algorithms import AesGcm, Algorithm, CbcHmac, Hmac
from gdoi_xfrm._errors import KernelError
from gdoi_xfrm._socket import DEFAULT_TIMEOUT
from gdoi_xfrm._types import AH, ESP, Address, Lifetime, Mode, Sa
from gdoi_xfrm._xfrm import Xfrm

# Addresses for documentation (RFC 5737, RFC 3849): no packet ever matches.
_ADDRESSES: Final = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
# Should the deletion not come to pass, the kernel deletes the scratch SA by itself.
_LIFETIME: Final = Lifetime(hard_seconds=30)
_ATTEMPTS: Final = 8
_REQID: Final = 0x7FFFFFFF


def default_algorithms() -> tuple[Algorithm, ...]:
    """AES-GCM and AES-CBC with HMAC-SHA2-256, with keys nobody keeps."""
    return (
        AesGcm(secrets.token_bytes(20)),
        CbcHmac(secrets.token_bytes(16), secrets.token_bytes(32)),
    )


def probe(
    algorithms: Sequence[Algorithm] | None = None,
    families: Sequence[int] = (4,),
    timeout: float = DEFAULT_TIMEOUT,
) -> KernelError | None:
    """Adds and deletes an SA for each algorithm and family (4, 6): of AH for an Hmac, else of ESP.

    None: it works. Otherwise the first reason why not, e.g. EPROTONOSUPPORT: no ESP, EPERM: no
    CAP_NET_ADMIN. Takes some seconds where modules must be loaded first.
    """
    try:
        with Xfrm(timeout) as xfrm:
            for family in families:
                for algorithm in algorithms or default_algorithms():
                    _try(xfrm, _ADDRESSES[family], algorithm)
    except KernelError as error:
        return error
    return None


def _try(xfrm: Xfrm, address: Address, algorithm: Algorithm) -> None:
    protocol = AH if isinstance(algorithm, Hmac) else ESP
    for attempt in range(_ATTEMPTS):
        spi = 0x100 + secrets.randbelow(2**32 - 0x100)
        sa = Sa(
            address,
            address,
            spi,
            Mode.TRANSPORT,
            _REQID,
            algorithm,
            protocol=protocol,
            lifetime=_LIFETIME,
        )
        try:
            xfrm.add_sa(sa)
        except KernelError as error:
            if error.errno != errno.EEXIST or attempt == _ATTEMPTS - 1:
                raise
        else:
            xfrm.delete_sa(address, spi, protocol)
            return
