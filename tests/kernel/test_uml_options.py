"""What SAs and policies may have beyond the plain case, and the SPD's default, in a real kernel."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from gdoi_xfrm import (
    DefaultChanged,
    DefaultPolicy,
    DeletePolicy,
    DeleteSa,
    Direction,
    InstallSa,
    KernelError,
    Lifetime,
    Mark,
    Monitor,
    Operation,
    Outcome,
    PolicyAction,
    SaDeleted,
    SaState,
    UpdatePolicy,
    Usage,
    Xfrm,
)

from tests.kernel.namespaces import eventually, ip
from tests.kernel.values import CBC, GCM, GROUP, policy, sa

pytestmark = pytest.mark.uml

BLOCK, ALLOW = PolicyAction.BLOCK, PolicyAction.ALLOW


def found(xfrm: Xfrm, spi: int, mark: Mark | None = None, version: int = 4) -> SaState:
    state = xfrm.get_sa(GROUP[version], spi, mark=mark)
    assert state is not None
    return state


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "changed",
    [
        {"esn": True, "replay_window": 1},
        {"esn": True, "replay_window": 32},
        {"esn": True, "replay_window": 4096},
        {"esn": True, "replay_window": 64, "algorithm": CBC},
        {"if_id": 7},
        {"output_mark": Mark(5)},
        {"output_mark": Mark(5, 0xFF)},
        {"mark": Mark(5, 0xFF)},
        {"mark": Mark(0, 0xFF), "esn": True, "replay_window": 128, "if_id": 1},
    ],
)
def test_an_sa_with_options(xfrm: Xfrm, version: int, changed: dict[str, Any]) -> None:
    wanted = sa(7, **{"version": version, **changed})
    outcomes = [result.outcome for result in xfrm.transaction([InstallSa(wanted)])]
    assert outcomes == [Outcome.ADDED]
    assert found(xfrm, 7, wanted.mark, version).sa == wanted
    assert xfrm.install_sa(wanted) is Outcome.ADOPTED
    xfrm.transaction([DeleteSa(wanted.key)])
    assert xfrm.dump_sas() == []


def test_ip_xfrm_sees_the_same_options(xfrm: Xfrm) -> None:
    xfrm.add_sa(
        sa(1, esn=True, replay_window=64, mark=Mark(5, 0xFF), if_id=9, output_mark=Mark(6, 0xF))
    )
    text = ip("xfrm state")
    assert "flag esn" in text
    assert "replay_window 64" in text
    assert "mark 0x5/0xff" in text
    assert "output-mark 0x6/0xf" in text
    assert "if_id 0x9" in text
    xfrm.add_policy(policy(1, mark=Mark(5, 0xFF), if_id=9))
    text = ip("xfrm policy")
    assert "mark 0x5/0xff" in text
    assert "if_id 0x9" in text


@pytest.mark.parametrize(
    "changed",
    [
        {"output_sequence": 41},
        {"replay_window": 32, "input_sequence": 42, "output_sequence": 43},
        {"replay_window": 32, "input_sequence": 2**32 - 1},
        {"replay_window": 64, "input_sequence": 42},
        {"replay_window": 64, "esn": True, "input_sequence": 2**40, "output_sequence": 2**41 + 1},
    ],
)
def test_an_sa_begins_where_it_is_told(xfrm: Xfrm, changed: dict[str, Any]) -> None:
    xfrm.add_sa(sa(7, **changed))
    state = found(xfrm, 7)
    assert state.output_sequence == changed.get("output_sequence", 0)
    assert state.input_sequence == changed.get("input_sequence", 0)
    assert xfrm.install_sa(sa(7, **{**changed, "output_sequence": 1})) is Outcome.ADOPTED
    assert found(xfrm, 7) == state


def test_a_deleted_sa_is_resumed_from_its_notification(xfrm: Xfrm) -> None:
    """With its sequence numbers and counts, and with its age: the lifetime does not start again."""
    limits = Lifetime(hard_seconds=10**8, hard_bytes=10**7)
    wanted = sa(7, lifetime=limits, replay_window=64)
    old = Usage(bytes=12345, packets=67, added_time=found_age(xfrm) - 1000, used_time=1)
    first = sa(7, lifetime=limits, replay_window=64, output_sequence=5, input_sequence=6, usage=old)
    xfrm.add_sa(first)
    before = found(xfrm, 7)
    assert (before.sa, before.usage) == (wanted, old)
    with Monitor() as monitor:
        ip(f"xfrm state delete dst {GROUP[4]} proto esp spi 7")
        (event,) = monitor.read()
    assert isinstance(event, SaDeleted)
    assert event.state == before
    assert xfrm.install_sa(event.state.resumed()) is Outcome.ADDED
    assert found(xfrm, 7) == before


def found_age(xfrm: Xfrm) -> int:
    """The kernel's time."""
    xfrm.add_sa(sa(99))
    now = found(xfrm, 99).added_time
    xfrm.delete_sa(GROUP[4], 99)
    return now


def test_a_resumed_sa_expires_when_it_would_have(xfrm: Xfrm) -> None:
    now = found_age(xfrm)
    spent = Usage(bytes=0, packets=0, added_time=now - 1000, used_time=0)
    xfrm.add_sa(sa(7, lifetime=Lifetime(hard_seconds=1001), usage=spent))
    xfrm.add_sa(sa(8, lifetime=Lifetime(hard_seconds=1001)))
    eventually(lambda: xfrm.get_sa(GROUP[4], 7) is None, 60)
    assert found(xfrm, 8).sa.spi == 8


def test_sas_are_told_apart_by_mark(xfrm: Xfrm) -> None:
    one, two = sa(7, mark=Mark(1, 0xFF)), sa(7, CBC, mark=Mark(2, 0xFF))
    xfrm.transaction([InstallSa(one), InstallSa(two)])
    assert (found(xfrm, 7, one.mark).sa, found(xfrm, 7, two.mark).sa) == (one, two)
    assert xfrm.get_sa(GROUP[4], 7) is None
    xfrm.transaction([DeleteSa(one.key)])
    assert [state.sa for state in xfrm.dump_sas()] == [two]


def test_an_sa_without_a_mark_answers_to_every_mark(xfrm: Xfrm) -> None:
    """It is neither adopted as the marked one nor deleted in its place."""
    xfrm.add_sa(sa(7))
    marked = sa(7, mark=Mark(1, 0xFF))
    assert found(xfrm, 7, marked.mark).sa == sa(7)
    with pytest.raises(KernelError, match="taken by an SA with different key"):
        xfrm.transaction([InstallSa(marked)])
    (result,) = xfrm.transaction([DeleteSa(marked.key)])
    assert result.outcome is Outcome.ABSENT
    assert found(xfrm, 7).sa == sa(7)


def test_policies_are_told_apart_by_mark_and_interface(xfrm: Xfrm) -> None:
    variants = [
        policy(1),
        policy(2, mark=Mark(1, 0xFF)),
        policy(3, mark=Mark(2, 0xFF)),
        policy(4, if_id=5),
        policy(5, if_id=5, mark=Mark(1, 0xFF)),
    ]
    xfrm.transaction([UpdatePolicy(one) for one in variants])
    for one in variants:
        assert xfrm.find_policy(one.key) == one
        assert xfrm.get_policy(one.selector, Direction.OUT, one.mark, one.if_id) == one
    by_spi = sorted(xfrm.dump_policies(), key=lambda one: one.templates[0].spi)
    assert by_spi == variants
    xfrm.delete_policy(variants[4].selector, Direction.OUT, variants[4].mark, 5)
    xfrm.transaction([DeletePolicy(one.key) for one in variants[1:4]])
    assert xfrm.dump_policies() == variants[:1]


def test_undoing_finds_what_has_a_mark(xfrm: Xfrm) -> None:
    mark = Mark(1, 0xFF)
    xfrm.add_sa(sa(7, mark=mark, output_sequence=12))
    xfrm.add_policy(policy(7, mark=mark, if_id=3))
    before = xfrm.dump_sas(), xfrm.dump_policies()
    wrong: list[Operation] = [
        InstallSa(sa(8, mark=mark)),
        UpdatePolicy(policy(8, mark=mark, if_id=3)),
        UpdatePolicy(policy(8, mark=mark, if_id=4)),
        DeleteSa(sa(7, mark=mark).key),
        InstallSa(sa(7, CBC, mark=mark)),
    ]
    with pytest.raises(KernelError, match="EEXIST"):
        xfrm.transaction(wrong)
    assert (xfrm.dump_sas(), xfrm.dump_policies()) == before


def test_the_default_policy(xfrm: Xfrm) -> None:
    assert xfrm.get_default() == DefaultPolicy(ALLOW, ALLOW, ALLOW)
    wanted = DefaultPolicy(inbound=BLOCK, forwarded=ALLOW, outbound=BLOCK)
    with Monitor() as monitor:
        xfrm.set_default(wanted)
        assert monitor.read() == [DefaultChanged(wanted)]
    assert xfrm.get_default() == wanted
    lines = ip("xfrm policy getdefault").replace(":", " ").split()
    assert lines[lines.index("in") + 1] == "block"
    assert lines[lines.index("fwd") + 1] == "accept"
    ip("xfrm policy flush")
    assert xfrm.get_default() == wanted
    xfrm.set_default(DefaultPolicy())
    assert xfrm.get_default() == DefaultPolicy()


def test_a_marked_sa_is_refused_by_name(xfrm: Xfrm) -> None:
    mark = Mark(1, 0xFF)
    xfrm.add_sa(sa(7, GCM, mark=mark))
    with pytest.raises(KernelError, match=r"spi 0x00000007 esp mark 0x1/0xff: .*EEXIST") as caught:
        xfrm.add_sa(sa(7, GCM, mark=mark))
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(KernelError, match=r"mark 0x2/0xff: .*ESRCH"):
        xfrm.delete_sa(GROUP[4], 7, mark=Mark(2, 0xFF))
