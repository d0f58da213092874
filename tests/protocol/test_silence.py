"""Silence has the consequences that the operator chose, and no others (RFC 8263 section 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.roster import Registrant
from gdoi_plugin.protocol.silence import MAX_NAMED, SilencePolicy, consequences
from gdoi_plugin.wire.registry import ExchangeType
from tests.protocol.test_too_large import teks
from tests.support.simnet import Network
from tests.support.worlds import World, build, group_config, member_peer

FAITHFUL, SILENT, NEVER = (Identity.of_address(member_peer(i).host) for i in range(3))
LKH = LkhPolicy(2, 16)


def registrant(missed: int, acknowledged: int) -> Registrant:
    member = Registrant(SILENT, member_peer(1), 0.0)
    member.missed, member.acknowledged = missed, acknowledged
    return member


ALL = SilencePolicy(log=1, alert=2, reminder=3, evict=4)


@pytest.mark.parametrize(
    ("policy", "missed", "acknowledged", "expected"),
    [
        (ALL, 1, 5, "log"),
        (ALL, 2, 5, "log alert"),
        (ALL, 3, 5, "log remind"),
        (ALL, 4, 5, "log evict"),
        (ALL, 9, 5, "log evict"),
        (ALL, 9, 0, "log"),
        (SilencePolicy(log=3, alert=0), 2, 5, ""),
        (SilencePolicy(log=3, alert=0), 3, 5, "log"),
        (SilencePolicy(0, 0, 0, 0), 99, 5, ""),
        (SilencePolicy(), 3, 1, "log alert"),
        (SilencePolicy(), 4, 1, "log"),
    ],
)
def test_policy(policy: SilencePolicy, missed: int, acknowledged: int, expected: str) -> None:
    found = consequences(policy, [registrant(missed, acknowledged)])
    kinds = [k for k in ("log", "alert", "remind", "evict") if getattr(found, k)]
    assert " ".join(kinds) == expected


def world(policy: SilencePolicy, **changes: Any) -> World:
    """One acknowledges everything, the second did once, the third never has."""
    config = group_config(3, silence=policy, retransmissions=0, **changes)
    made = build(Network(8), 3, group=config)
    made.start()
    made.network.run(5)
    made.members[2].crash()
    made.rekey()
    made.network.run(20)
    assert {i: m.acknowledged for i, m in made.group.members.items()} == {
        FAITHFUL: 1,
        SILENT: 1,
        NEVER: 0,
    }
    made.members[1].crash()
    return made


def miss(made: World, times: int = 1) -> None:
    for _ in range(times):
        made.rekey()
        made.network.run(11)


def named(made: World, event: str) -> list[str]:
    return [str(e.fields["member"]) for e in made.server.events(event)]


def test_alert_once_and_again_after_it_was_heard_of() -> None:
    made = world(SilencePolicy(alert=2))
    miss(made)
    assert named(made, "member-silent") == []
    miss(made, 3)
    assert named(made, "member-silent") == [str(SILENT)]
    made.members[1].restart()
    made.network.run(5)
    assert made.group.members[SILENT].missed == 0, "registering again clears the record"
    made.members[1].crash()
    miss(made, 2)
    assert named(made, "member-silent") == [str(SILENT)] * 2


def test_who_registers_while_the_window_is_open_has_missed_nothing() -> None:
    made = world(SilencePolicy())
    made.rekey()
    made.network.run(3)
    made.members[1].restart()
    made.network.run(10)
    assert made.group.members[SILENT].missed == 0
    assert made.group.members[NEVER].missed == 2


@pytest.mark.parametrize("lkh", [None, LKH])
@pytest.mark.parametrize("multicast", [True, False])
def test_eviction(lkh: LkhPolicy | None, multicast: bool) -> None:
    """With a tree the others have new keys by it; without one they go on as they are."""
    address = {} if multicast else {"rekey_address": None}
    made = world(SilencePolicy(evict=2), lkh=lkh, **address)
    registrations = len(made.server.events("member-registered"))
    miss(made)
    kek = made.group.current_kek().kek.spi
    miss(made)
    assert named(made, "member-evicted") == [str(SILENT)]
    assert set(made.group.members) == {FAITHFUL, NEVER}
    assert (made.group.current_kek().kek.spi != kek) == (lkh is not None)
    made.network.run(20)
    assert made.in_step(made.members[0])
    assert len(made.server.events("member-registered")) == registrations
    made.members[1].restart()
    made.network.run_until(lambda: made.in_step(made.members[1]), 4000)
    assert made.group.members[SILENT].missed == 0


def test_many_are_evicted_by_one_update() -> None:
    config = group_config(
        9, silence=SilencePolicy(evict=1), retransmissions=0, lkh=LKH, rekey_address=None
    )
    made = build(Network(8), 9, group=config)
    made.start()
    made.network.run(5)
    made.rekey()
    made.network.run(20)
    for member in made.members[3:]:
        member.crash()
    before = set(made.group.ledger)
    miss(made)
    reasons = [page.reason for epoch, page in made.group.ledger.items() if epoch not in before]
    assert reasons == ["operator", "silence", "silence"], "a new KEK, then the TEKs under it"
    assert len(made.group.members) == 3
    made.network.run(5)
    assert all(made.in_step(member) for member in made.members[:3])


@pytest.mark.parametrize("multicast", [True, False])
@pytest.mark.parametrize("kek", [False, True])
def test_a_reminder_brings_a_member_back_without_registering(multicast: bool, kek: bool) -> None:
    """It heard nothing while the rekey was said, and hears the reminder: sent to it alone."""
    address = {} if multicast else {"rekey_address": None}
    made = world(SilencePolicy(reminder=1), **address)
    member = made.members[1]
    made.rekey(kek=kek)
    made.network.run(11)
    assert made.group.members[SILENT].missed == 1
    # It was not down, nothing came through to it.
    member.alive = True
    member.do([])
    made.network.run(5)
    assert not made.in_step(member)
    before = len(made.datagrams(ExchangeType.GROUPKEY_PUSH))
    made.network.run(20)
    sent: list[Peer] = [s.destination for s in made.datagrams(ExchangeType.GROUPKEY_PUSH)[before:]]
    assert sent == [member_peer(1)]
    assert made.in_step(member)
    assert made.group.members[SILENT].missed == 0
    page = made.group.ledger[made.group.epoch]
    assert (page.reason, len(page.expected), len(page.acknowledged)) == ("reminder", 1, 1)
    assert page.closed
    made.check_ledger()


def test_a_reminder_that_is_not_heard_counts_for_nothing() -> None:
    made = world(SilencePolicy(reminder=1, alert=2))
    miss(made)
    made.network.run(60)
    page = made.group.ledger[made.group.epoch]
    assert (page.reason, page.closed, len(page.missing)) == ("reminder", True, 1)
    assert made.group.members[SILENT].missed == 1
    assert named(made, "member-silent") == []
    epoch = made.group.epoch
    made.network.run(300)
    assert made.group.epoch == epoch, "one reminder for each rekey"


@pytest.mark.parametrize("crashed_after", [0, 12, 25])
def test_a_restart_forgets_no_reminder_and_sends_none_twice(crashed_after: int) -> None:
    """``crashed_after``: within the window, before the reminder is due, and after it has left."""
    made = world(SilencePolicy(reminder=1))
    made.rekey()
    epoch = made.group.epoch
    made.network.run(crashed_after + 9)
    made.server.restart()
    made.network.run(60)
    pages = [page for page in made.group.ledger.values() if page.epoch > epoch]
    assert [page.reason for page in pages] == ["reminder"]
    (page,) = pages
    assert {str(identity) for identity in page.missing} == {str(SILENT)}
    made.server.restart()
    made.network.run(60)
    assert made.group.epoch == page.epoch


def test_a_later_rekey_takes_a_reminders_place() -> None:
    made = world(SilencePolicy(reminder=1))
    made.rekey()
    made.network.run(15)
    made.rekey()
    made.network.run(9)
    assert [page.reason for page in made.group.ledger.values()] == ["operator"] * 3


def test_thousands_of_missing_members_make_few_events() -> None:
    """And all are in the ledger."""
    many = 3 * MAX_NAMED
    made = world(SilencePolicy(evict=1))
    group = made.group
    for place in range(many):
        peer = Peer(member_peer(place + 10).host, 848)
        member = Registrant(Identity.of_address(peer.host), peer, made.now, acknowledged=1)
        group.roster.add(member)
    before = len(made.server.actions)
    miss(made)
    events = made.server.actions[before:]
    assert len(named(made, "ack-missing")) <= MAX_NAMED + 1
    (more,) = made.server.events("ack-missing-more")
    assert more.fields["count"] == many + 2 - MAX_NAMED
    (more,) = made.server.events("member-removed-more")
    assert more.fields["count"] == many + 1 - MAX_NAMED
    assert len(events) < 3 * many
    page = next(p for p in reversed(group.ledger.values()) if p.expected)
    assert len(page.missing) == many + 2
    assert set(group.members) == {FAITHFUL, NEVER}


def test_a_rekey_too_large_to_be_said_is_nobodys_silence() -> None:
    made = world(SilencePolicy(alert=1, evict=1))
    group = made.group
    group.config = replace(group.config, teks=teks(600), push_limit=1 << 20)
    made.rekey()
    made.network.run(30)
    assert made.server.events("message-too-large")
    assert named(made, "member-silent") == []
    assert group.members[SILENT].missed == 0
    assert SILENT in group.members
