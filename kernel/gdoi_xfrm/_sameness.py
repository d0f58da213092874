"""What the kernel was told beside what it says it holds, octet by octet.

Nearly everything that is read back is what was asked, and need not be taken apart to know it. The
answer False only says that it is not the same in every octet: `sa_differences` and
`policy_differences` know what that means.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Collection
from typing import Final

from gdoi_xfrm import _messages as messages
from gdoi_xfrm._layout import NLMSGHDR, Layout, Request, whole_attributes

_SA: Final = Layout(messages.UserSaInfo)
_POLICY: Final = Layout(messages.UserPolicyInfo)


def _span(layout: Layout, first: str, last: str) -> slice:
    """Of a struct's octets, from one field to the end of another."""
    return slice(layout.offsets[first].start, layout.offsets[last].stop)


# All but what the kernel counts (curlft, stats), and what it numbers (seq, index).
_SA_NAMES: Final = _span(_SA, "sel", "saddr")
_SA_LIFETIMES: Final = _span(_SA, "lft", "lft")
_SA_REST: Final = _span(_SA, "reqid", "flags")
_POLICY_NAMES: Final = _span(_POLICY, "sel", "lft")
_POLICY_PRIORITY: Final = _span(_POLICY, "priority", "priority")
_POLICY_REST: Final = _span(_POLICY, "dir", "share")

_SA_ID: Final = Layout(messages.UserSaId)
_SA_ID_FIELDS: Final = ("daddr", "spi", "family", "proto")
# struct xfrm_id without its padding.
_SA_IDENTIFIER: Final = slice(_SA.offsets["id"].start, _SA.offsets["id"].start + 21)
_FAMILY: Final = _span(_SA, "family", "family")
_MARK: Final = 21
# How XFRMA_MARK begins; other octets may, too, but seldom.
_MARK_BEGINS: Final = struct.pack("HH", 12, _MARK)

# What the kernel adds unasked: XFRMA_ALG_AUTH beside every XFRMA_ALG_AUTH_TRUNC,
# XFRMA_REPLAY_VAL with the numbers so far, XFRMA_LASTUSED; XFRMA_POLICY_TYPE.
_OF_SAS: Final = frozenset({1, 10, 15})
_OF_POLICIES: Final = frozenset({16})


def same_sa(asked: Request, found: bytes, *, lifetimes: bool = True) -> bool:
    """Whether a NEWSA message is what a request for it said; numbers so far are not compared."""
    told = found[NLMSGHDR.size :]
    spans = (_SA_NAMES, _SA_REST, _SA_LIFETIMES) if lifetimes else (_SA_NAMES, _SA_REST)
    return _same(asked.body, told, spans, _SA.size, _OF_SAS)


def found_by(told: bytes) -> bytes | None:
    """Of an SA as the kernel tells it, what :func:`asked_for` gives for a request of that SA; None
    where it is found by a mark as well."""
    body = told[NLMSGHDR.size :]
    if _MARK_BEGINS in body and _MARK in dict(whole_attributes(body, _SA.size)):
        return None
    return body[_SA_IDENTIFIER] + body[_FAMILY]


def asked_for(get: Request) -> bytes:
    """Address, SPI, protocol and family in a request that has no mark."""
    daddr, spi, family, proto = (get.body[_SA_ID.offsets[name]] for name in _SA_ID_FIELDS)
    return daddr + spi + proto + family


def same_policy(asked: Request, found: bytes) -> bool:
    """Whether a NEWPOLICY message is what a request for it said."""
    spans = (_POLICY_NAMES, _POLICY_PRIORITY, _POLICY_REST)
    return _same(asked.body, found[NLMSGHDR.size :], spans, _POLICY.size, _OF_POLICIES)


def _same(
    asked: bytes, told: bytes, spans: Collection[slice], size: int, unasked: frozenset[int]
) -> bool:
    for span in spans:
        if asked[span] != told[span]:
            return False
    rest = [octets for kind, octets in whole_attributes(told, size) if kind not in unasked]
    # Attributes hold keys.
    return hmac.compare_digest(b"".join(rest), asked[size:])
