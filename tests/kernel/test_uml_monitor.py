"""The monitor sees every change, and who made it."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Iterator

import pytest
from gdoi_xfrm import (
    AddSa,
    Direction,
    Event,
    Lifetime,
    Monitor,
    Overrun,
    PolicyAdded,
    PolicyDeleted,
    PolicyFlushed,
    PolicyUpdated,
    SaAdded,
    SaDeleted,
    SaExpired,
    SaFlushed,
    SaUpdated,
    Xfrm,
)

from tests.kernel.namespaces import Namespace, ip
from tests.kernel.values import GROUP, policy, sa

pytestmark = pytest.mark.uml


@pytest.fixture
def monitor(namespace: Namespace) -> Iterator[Monitor]:  # noqa: ARG001
    with Monitor() as opened:
        yield opened


def next_events(monitor: Monitor, seconds: float = 10) -> list[Event]:
    readable, _, _ = select.select([monitor], [], [], seconds)
    assert readable, "no event in time"
    return monitor.read()


@pytest.mark.parametrize("version", [4, 6])
def test_own_changes(monitor: Monitor, xfrm: Xfrm, version: int) -> None:
    assert monitor.read() == []
    assert not os.get_blocking(monitor.fileno())
    wanted, key = sa(5, version=version), sa(5, version=version).key
    xfrm.add_sa(wanted)
    xfrm.update_sa(wanted)
    xfrm.delete_sa(GROUP[version], 5)
    added, updated, deleted = monitor.read()
    assert isinstance(added, SaAdded)
    assert (added.state.sa, added.pid) == (wanted, xfrm.pid)
    assert isinstance(updated, SaUpdated)
    assert updated.pid == xfrm.pid
    assert deleted == SaDeleted(key, xfrm.pid, added.state)
    pinned = policy(5, version=version)
    xfrm.add_policy(pinned)
    xfrm.update_policy(policy(6, version=version))
    xfrm.delete_policy(pinned.selector, Direction.OUT)
    assert monitor.read() == [
        PolicyAdded(pinned, xfrm.pid),
        PolicyUpdated(policy(6, version=version), xfrm.pid),
        PolicyDeleted(pinned.key, xfrm.pid),
    ]


def test_flushes_by_others(monitor: Monitor, xfrm: Xfrm) -> None:
    xfrm.add_sa(sa(5))
    xfrm.add_policy(policy(5))
    monitor.read()
    ip("xfrm state flush")
    ip("xfrm policy flush")
    sa_flush, policy_flush = monitor.read()
    assert isinstance(sa_flush, SaFlushed)
    assert sa_flush.protocol in (0, 255)
    assert isinstance(policy_flush, PolicyFlushed)
    assert xfrm.pid not in (sa_flush.pid, policy_flush.pid)


def test_in_an_event_loop(monitor: Monitor, xfrm: Xfrm) -> None:
    async def daemon() -> list[Event]:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[list[Event]] = loop.create_future()

        def look() -> None:
            loop.remove_reader(monitor)
            seen.set_result(monitor.read())

        loop.add_reader(monitor, look)
        xfrm.add_sa(sa(5))
        return await asyncio.wait_for(seen, 10)

    (event,) = asyncio.run(daemon())
    assert isinstance(event, SaAdded)


def test_expiry(monitor: Monitor, xfrm: Xfrm) -> None:
    xfrm.add_sa(sa(5, lifetime=Lifetime(soft_seconds=1, hard_seconds=2)))
    events: list[Event] = []
    while not any(isinstance(event, SaExpired) and event.hard for event in events):
        events += next_events(monitor)
    added, soft, hard = events
    assert isinstance(added, SaAdded)
    usage = added.state.usage
    key = sa(5).key
    assert soft == SaExpired(key, hard=False, pid=0, usage=usage)
    assert hard == SaExpired(key, hard=True, pid=0, usage=usage)
    assert xfrm.get_sa(GROUP[4], 5) is None


@pytest.mark.parametrize("receive_buffer", [1 << 12, 1 << 20])
def test_lost_events(xfrm: Xfrm, receive_buffer: int) -> None:
    """Real ENOBUFS, with less in the queue than one read takes and with more."""
    with Monitor(receive_buffer=receive_buffer) as small:
        xfrm.apply([AddSa(sa(spi)) for spi in range(1, 2001)])
        assert small.read() == [Overrun()]
        # One read is enough to hear again of what happens from now on.
        xfrm.delete_sa(GROUP[4], 1)
        (deleted,) = small.read()
        assert isinstance(deleted, SaDeleted)
        assert (deleted.key, deleted.pid) == (sa(1).key, xfrm.pid)
