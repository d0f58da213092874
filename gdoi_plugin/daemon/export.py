"""Keys for IEC 61850 applications: how they are written to a file and told at the control socket.

The file, ``<directory>/<group>.json`` of mode 0600, is replaced in one step::

    {"group": "goose", "id": "oid:1.2.840.10070.61850.8.1.2",
     "keys": [{"oid": "1.2.840.10070.61850.8.1.2", "payload": "", "spi": "0x00000001",
               "auth": "hmac-sha256-128", "auth-key": "00...1f", "conf": "none", "conf-key": "",
               "receive-from": 1800000000.0, "send-from": 1800000010.0, "expires": 1800003600.0,
               "delivery-assurance": null}]}

Times are Unix seconds, ``expires`` null where nothing ends the key. An application accepts every
key of the file, and sends with the last one of its OID and payload whose ``send-from`` has come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..protocol.application_keys import HeldKey
from ..protocol.member import GroupMember

Document = dict[str, object]


def document(group: GroupMember, keys: Iterable[HeldKey]) -> Document:
    """The whole file. It holds keys."""
    described = [describe(key) | reveal(key) for key in keys]
    config = group.config
    return {"group": config.name, "id": str(config.group_id), "keys": described}


def describe(key: HeldKey) -> Document:
    """A key without its octets."""
    tek = key.tek
    return {
        "oid": tek.selector.dotted,
        "payload": tek.selector.payload.hex(),
        "spi": tek.name,
        "auth": tek.suite.auth,
        "conf": tek.suite.conf,
        "receive-from": key.receive_from,
        "send-from": key.send_from,
        "expires": None if key.expires == math.inf else key.expires,
        "delivery-assurance": tek.sa_kda,
    }


def reveal(key: HeldKey) -> Document:
    """The octets, in hexadecimal; empty where the algorithm needs none. GCM's and GMAC's end with
    four octets of salt (RFC 8052 section 2.3)."""
    integrity = key.tek.integrity_key
    return {
        "auth-key": "" if integrity is None else integrity.reveal().hex(),
        "conf-key": key.tek.encryption_key.reveal().hex(),
    }
