"""What the kill test calls a violation: each kind is seen, and what is allowed is not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy, Kek, Tek
from gdoi_plugin.protocol.sender_ids import SenderIds

from .evidence import Evidence

SPI = b"kek's own cookie"
KEK = Kek(SPI, bytes(16), Secret(bytes(32)), SCHEMES["ecdsa256"], b"public", 60)
TEK = Tek(
    b"spi4",
    Flow(None, ip_address("239.192.1.1")),
    TEK_SUITES["aes256-sha256"],
    Secret(bytes(32)),
    Secret(bytes(32)),
    60,
)
POLICY = GroupPolicy(KEK, (TEK,))


@pytest.fixture
def evidence() -> Evidence:
    found = Evidence()
    found.push(SPI, 1, b"one")
    found.policy(POLICY)
    found.sender_ids("g", replace(POLICY, sids=SenderIds(16, (1, 2))), "first")
    found.reported(("g", 7), "member")
    return found


def test_the_same_again_is_no_violation(evidence: Evidence) -> None:
    evidence.push(SPI, 1, b"one")
    evidence.push(SPI, 2, b"two")
    evidence.push(b"x" * 16, 1, b"another KEK's")
    evidence.policy(replace(POLICY, kek=replace(KEK, lifetime=30)))
    evidence.sender_ids("other", replace(POLICY, sids=SenderIds(16, (1, 2))), "second")
    evidence.compare("g", {7: {"member", "another"}, 8: set()})
    evidence.compare("g", {8: set()})  # page 7 is older than all that is kept
    assert evidence.violations == []


def test_each_number_that_is_used_twice_is_found(evidence: Evidence) -> None:
    evidence.push(SPI, 1, b"two")
    evidence.policy(replace(POLICY, kek=replace(KEK, key=Secret(b"k" * 32))))
    evidence.policy(GroupPolicy(None, (replace(TEK, encryption_key=Secret(b"k" * 32)),)))
    evidence.sender_ids("g", replace(POLICY, sids=SenderIds(16, (2,))), "second")
    evidence.compare("g", {6: set(), 7: {"another"}})
    assert evidence.violations == [
        f"SEQ 1 under KEK {SPI.hex()} with two contents",
        f"SPI {SPI.hex()} of two KEKs",
        f"SPI {TEK.name} of two TEKs",
        "SID 2 given to first and to second",
        "g, epoch 7: ACKs of {'member'} forgotten",
    ]


def test_a_page_that_is_gone_from_the_middle_is_found(evidence: Evidence) -> None:
    evidence.compare("g", {6: set(), 8: set()})
    assert len(evidence.violations) == 1
