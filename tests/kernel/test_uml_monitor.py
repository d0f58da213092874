"""The monitor sees every change, and who made it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from gdoi_xfrm import (
    AddSa,
    Direction,
    Event,
    Lifetime,
    Mark,
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
    Usage,
    Xfrm,
)

from tests.kernel.namespaces import Namespace, eventually, ip
from tests.kernel.values import GROUP, policy, sa

pytestmark = pytest.mark.uml


@pytest.fixture
def monitor(namespace: Namespace) -> Iterator[Monitor]:  # noqa: ARG001
    with Monitor() as opened:
        yield opened


def next_events(monitor: Monitor, seconds: float = 90) -> list[Event]:
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


@pytest.mark.parametrize("more", [{}, {"mark": Mark(5, 7)}, {"if_id": 9}], ids=str)
def test_policies_deleted_by_their_index(
    monitor: Monitor, xfrm: Xfrm, more: dict[str, Any]
) -> None:
    """As `ip` deletes several at once: the kernel's notification begins without a selector."""
    wanted = replace(policy(5), **more)
    xfrm.add_policy(wanted)
    monitor.read()
    ip("xfrm policy deleteall")
    (deleted,) = monitor.read()
    assert isinstance(deleted, PolicyDeleted)
    assert deleted.key == wanted.key


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
        return await asyncio.wait_for(seen, 90)

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


def test_sas_that_nobody_here_would_make(monitor: Monitor, xfrm: Xfrm) -> None:
    """Other programs' SAs: no algorithm of ours, no ESP, other modes; each is an event."""
    link = "xfrm state add src 10.0.0.1 dst 10.0.0.2"
    auth = 'auth "hmac(sha1)" 0x0102030405060708091011121314151617181920'
    cbc = f'{auth} enc "cbc(aes)" 0x{"11" * 16}'
    ip(f"{link} proto comp spi 0x78 comp deflate mode tunnel")
    ip(f'{link} proto esp spi 0x79 mode transport {auth} enc "ecb(cipher_null)" ""')
    ip(f"{link} proto esp spi 0x7a mode tunnel flag af-unspec {cbc}")
    ip(f"{link} proto ah spi 0x7b mode transport {auth}")
    ip(f"{link} proto esp spi 0x7c mode transport {cbc} encap espinudp 4500 4500 0.0.0.0")
    ip("xfrm policy add dir in src 10.0.0.0/9 dst 10.0.0.0/8 tmpl proto comp mode tunnel level use")
    dumped = {state.sa.spi: state for state in xfrm.dump_sas()}
    spis = (0x78, 0x79, 0x7A, 0x7B, 0x7C)
    *added, policy_added = monitor.read()
    states = [event.state for event in added if isinstance(event, SaAdded)]
    assert states == [dumped[spi] for spi in spis]
    assert isinstance(policy_added, PolicyAdded)
    for state in states:
        xfrm.delete_sa(state.sa.destination, state.sa.spi, state.sa.protocol)
        (event,) = monitor.read()
        assert isinstance(event, SaDeleted)
        assert event.state == state
    resumed = dumped[0x79].resumed()
    xfrm.add_sa(resumed)
    assert xfrm.find_sa(resumed.key) == dumped[0x79]


def test_octets_used_are_counted_in_the_event(monitor: Monitor, xfrm: Xfrm) -> None:
    used = Usage(bytes=4999, packets=7, added_time=1, used_time=2)
    ip("link add v0 type veth peer name v1")
    ip("addr add 10.9.0.1/24 dev v0")
    ip("link set v0 up")
    ip("link set v1 up")
    ip("route add 239.0.0.0/8 dev v0")
    xfrm.add_sa(sa(5, lifetime=Lifetime(soft_bytes=5000), usage=used))
    xfrm.add_policy(policy(5))
    expired: list[SaExpired] = []

    def sent() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"one more packet", (str(GROUP[4]), 5000))
        expired.extend(event for event in monitor.read() if isinstance(event, SaExpired))
        return bool(expired)

    eventually(sent)
    assert (expired[0].key, expired[0].hard) == (sa(5).key, False)
    assert expired[0].usage.packets > 7
    assert expired[0].usage.bytes > 5000
