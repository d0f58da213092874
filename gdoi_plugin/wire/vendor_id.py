"""Vendor IDs that mean something here, RFC 2408 section 3.16; all others are ignored."""

from __future__ import annotations

# RFC 3706 section 5.1: the hashed vendor ID, then major version 1 and minor version 0.
DEAD_PEER_DETECTION = bytes.fromhex("afcad71368a1f1c96b8696fc77570100")
# RFC 3947 section 3.1: MD5("RFC 3947")
NAT_TRAVERSAL = bytes.fromhex("4a131c81070358455c5728f20e95452f")
