"""Octets that are the same mean the same, and what means something else is never the same."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from gdoi_xfrm import (
    AesGcm,
    CbcHmac,
    Direction,
    Integrity,
    Lifetime,
    Mark,
    Mode,
    Policy,
    PolicyAction,
    Sa,
    Selector,
    policy_differences,
    sa_differences,
)
from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._layout import attribute, with_header
from gdoi_xfrm._operations import get_request
from gdoi_xfrm._sameness import asked_for, found_by, same_policy, same_sa

from tests.kernel.values import CBC, policy, sa, template

ONE_FLOW = Selector(ip_network("10.0.0.1/32"), ip_network("239.1.1.1/32"), 17, 5000, 6000)
SA = sa(
    5,
    CBC,
    replay_window=32,
    lifetime=Lifetime(soft_seconds=50, hard_seconds=60),
    selector=ONE_FLOW,
    mark=Mark(3),
    if_id=7,
    output_mark=Mark(9),
)
POLICY = policy(5, mark=Mark(3), if_id=7)
LASTUSED, REPLAY, MARK = 15, 10, 21

OTHER_SAS: list[dict[str, Any]] = [
    {"source": ip_address("10.0.0.2")},
    {"destination": ip_address("239.1.1.2")},
    {"spi": 6},
    {"mode": Mode.TUNNEL},
    {"reqid": 8},
    {"algorithm": AesGcm(bytes(20))},
    {"algorithm": CbcHmac(CBC.encryption_key, bytes(32))},
    {"algorithm": CbcHmac(bytes(16), CBC.integrity_key)},
    {"algorithm": CbcHmac(CBC.encryption_key, CBC.integrity_key, Integrity.HMAC_SHA2_384)},
    {"protocol": 51},
    {"replay_window": 31},
    {"replay_window": 100},
    {"lifetime": Lifetime(soft_seconds=50, hard_seconds=61)},
    {"selector": None},
    {"selector": replace(ONE_FLOW, destination_port=6001)},
    {"esn": True},
    {"mark": None},
    {"mark": Mark(3, 0xFF)},
    {"if_id": 0},
    {"output_mark": None},
]
OTHER_POLICIES: list[dict[str, Any]] = [
    {"selector": ONE_FLOW},
    {"direction": Direction.IN},
    {"priority": 1001},
    {"action": PolicyAction.BLOCK},
    {"templates": ()},
    {"templates": (template(6),)},
    {"templates": (template(5, optional=True),)},
    {"templates": (template(5), template(5))},
    {"mark": None},
    {"if_id": 8},
]


def held(wanted: Sa | Policy, more: bytes = b"") -> bytes:
    """As the kernel tells it, with what it has counted."""
    if isinstance(wanted, Policy):
        body = codec.encode_policy(wanted, MessageType.NEWPOLICY).body
        return with_header(body[:120] + b"\7" * 32 + body[152:] + more)
    body = codec.encode_sa(wanted, MessageType.NEWSA).body
    return with_header(body[:160] + b"\7" * 48 + body[208:] + more)


def test_what_was_asked() -> None:
    asked = codec.encode_sa(SA, MessageType.NEWSA)
    added = attribute(LASTUSED, bytes(8)) + attribute(REPLAY, b"\7" * 12) + attribute(1, bytes(80))
    assert same_sa(asked, held(SA))
    assert same_sa(asked, held(SA, added)), "what the kernel adds to every answer"
    assert same_policy(codec.encode_policy(POLICY, MessageType.UPDPOLICY), held(POLICY))


def test_what_was_not_asked_for_may_mean_anything() -> None:
    plain = replace(SA, mark=None)
    more = attribute(MARK, bytes(8))
    assert not same_sa(codec.encode_sa(plain, MessageType.NEWSA), held(plain, more))
    assert not same_sa(codec.encode_sa(plain, MessageType.NEWSA), held(plain, attribute(99, b"")))
    plain_policy = replace(POLICY, mark=None)
    asked = codec.encode_policy(plain_policy, MessageType.UPDPOLICY)
    assert not same_policy(asked, held(plain_policy, more))


@pytest.mark.parametrize("changed", OTHER_SAS, ids=str)
def test_another_sa(changed: dict[str, Any]) -> None:
    other = replace(SA, **changed)
    assert sa_differences(SA, other)
    assert not same_sa(codec.encode_sa(SA, MessageType.NEWSA), held(other))
    assert not same_sa(codec.encode_sa(other, MessageType.NEWSA), held(SA))
    alive = same_sa(codec.encode_sa(SA, MessageType.NEWSA), held(other), lifetimes=False)
    assert alive is ("lifetime" in changed)


@pytest.mark.parametrize("changed", OTHER_POLICIES, ids=str)
def test_another_policy(changed: dict[str, Any]) -> None:
    other = replace(POLICY, **changed)
    assert policy_differences(POLICY, other)
    assert not same_policy(codec.encode_policy(POLICY, MessageType.UPDPOLICY), held(other))
    assert not same_policy(codec.encode_policy(other, MessageType.UPDPOLICY), held(POLICY))


def test_an_sa_is_found_by_what_a_request_asks_for() -> None:
    plain = replace(SA, mark=None)
    name = found_by(held(plain))
    assert name == asked_for(get_request(plain.key))
    longer = replace(plain, destination=ip_address("ef01:101::"), source=ip_address("::"))
    changes: list[dict[str, Any]] = [
        {"destination": ip_address("239.1.1.2")},
        {"spi": 6},
        {"protocol": 51},
    ]
    others = [replace(plain, **changed) for changed in changes]
    others.append(replace(longer, selector=None))  # the same sixteen octets
    for other in others:
        assert asked_for(get_request(other.key)) == found_by(held(other)) != name
    assert found_by(held(SA)) is None, "a mark is for the kernel to look for"


def test_every_field_that_is_compared_has_another_value_here() -> None:
    compared = {field.name for field in fields(Sa) if field.compare}
    assert compared == {name for changed in OTHER_SAS for name in changed}
    every = {field.name for field in fields(Policy)}
    assert every == {name for changed in OTHER_POLICIES for name in changed}
