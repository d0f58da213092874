"""Crashes and restarts in mid-rekey, under traffic from every member.

::

    gcks ----+---- gm1, gm2     each killed, stopped, frozen and started again
             |
          capture

The data plane is the kernel's: whatever becomes of the daemons, every packet arrives, and in ESP.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from gdoi_lab.group import GROUP, Daemon, GroupOptions, LabGroup
from gdoi_lab.waiting import wait_until

from gdoi_plugin.cli.client import ClientError
from gdoi_plugin.protocol.policy import Kek
from tests.lab.running import running
from tests.lab.watch import (
    PushSeen,
    acknowledged_by,
    assert_adopted,
    drops,
    frozen,
    ledger,
    let_pass,
    policies,
    pushes,
    read_seqs,
    reconfigure,
    rekey,
    sas,
    saved_keks,
    send_again,
    sending,
    wait_agreed,
    watched,
)

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2"]
# DTD: longer than two daemons take to start, for a member that dies between installing a TEK and
# sending with it.
OPTIONS = GroupOptions(activation_delay="5s", deactivation_delay="60s", ack_jitter="1s")
LIMIT = 150.0


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """Registered and running; at the end every daemon stops cleanly."""
    folder = tmp_path_factory.mktemp("crash")
    with running(folder, MEMBERS, OPTIONS) as lab:
        yield lab


def count(daemon: Daemon, event: str) -> int:
    return len(list(daemon.events(event)))


def wait_line(daemon: Daemon, event: str, wanted: int) -> None:
    """As Daemon.wait_event, within milliseconds."""
    line = f'"event": "{event}"'
    wait_until(
        lambda: daemon.log.read_text(errors="replace").count(line) >= wanted,
        LIMIT,
        f"{event} number {wanted}",
        interval=0.002,
    )


def restart_registered(daemon: Daemon) -> None:
    """Starts a member and waits for its registration."""
    before = count(daemon, "registered")
    daemon.start()
    daemon.wait_event("registered", LIMIT, before + 1)


def ask(group: LabGroup, *, kek: bool = False) -> threading.Thread:
    """Asks for a rekey and does not wait for the answer, which may never come."""

    def run() -> None:
        with contextlib.suppress(ClientError):
            group.command(group.gcks, "rekey", group=GROUP, kek="yes" if kek else "no")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_settled(group: LabGroup) -> None:
    """Until no rekey is open."""
    wait_until(
        lambda: all(row["closed"] == "yes" for row in ledger(group).values()),
        LIMIT,
        "every rekey to be closed",
        interval=0.2,
    )


def test_clean_stops_and_starts_lose_nothing(group: LabGroup, tmp_path: Path) -> None:
    """gcks freezes; gm1 stops, starts, registers as soon as gcks is back; gcks stops, starts."""
    gm1, gcks = group.members["gm1"], group.gcks
    with watched(group, tmp_path, scenario="agent and key server stopped, started") as watch:
        held = policies(gm1.host, group.data_group)
        registered = count(gm1, "registered")
        assert gm1.stop() == 0
        assert policies(gm1.host, group.data_group) == held
        before = sas(gm1.host, group.data_group)
        with frozen(gcks):
            gm1.start()
            let_pass(1.0)
            assert count(gm1, "registered") == registered
            assert_adopted(gm1.host, before, group.data_group)
        gm1.wait_event("registered", LIMIT, registered + 1)
        assert policies(gm1.host, group.data_group) == held
        assert gcks.stop() == 0
        gcks.start()
        rekey(group, MEMBERS)
        wait_agreed(group, MEMBERS, OPTIONS)
    watch.assert_whole()


# When the key server is killed: seconds after the request went out, or a line in its log.
MOMENTS: list[tuple[str | float, int, bool]] = [
    ("rekey-sent", 1, False),
    ("rekey-acked", 1, True),
    (0.0, 0, False),
    (0.02, 0, True),
    (0.6, 0, False),
]


def kill_at(gcks: Daemon, moment: str | float, nth: int, seen: int) -> None:
    if isinstance(moment, str):
        wait_line(gcks, moment, seen + nth)
    else:
        let_pass(moment * random.uniform(0.5, 1.5))
    gcks.kill()


def test_key_server_killed_in_mid_rekey(group: LabGroup, tmp_path: Path) -> None:
    """rekey ->, kill -9, start: the open rekey is said again with the next SEQ, and all is well."""
    gcks, keks = group.gcks, dict[bytes, Kek]()
    with watched(group, tmp_path, scenario="key server killed") as watch:
        for moment, nth, kek in MOMENTS:
            seen = count(gcks, moment) if isinstance(moment, str) else 0
            asking = ask(group, kek=kek)
            kill_at(gcks, moment, nth, seen)
            asking.join()
            counted = {
                (event["epoch"], group.name_of(event["member"]))
                for event in gcks.events("rekey-acked")
            }
            gcks.start()
            wait_settled(group)
            keks |= saved_keks(group)
            rows = ledger(group)
            for epoch, name in counted:
                assert name in acknowledged_by(group, epoch), f"epoch {epoch} after {moment}"
            assert [row["missing"] for row in rows.values()] == [[]] * len(rows)
        rekey(group, MEMBERS, kek="yes")
        wait_agreed(group, MEMBERS, OPTIONS)
        keks |= saved_keks(group)
    watch.assert_whole()
    # Killed at "rekey-sent": nobody's ACK had been counted, so that one was repeated.
    assert any(event["attempt"] > 1 for event in gcks.events("rekey-sent"))
    for seqs in read_seqs(pushes(watch.pcap), keks).values():
        assert seqs == sorted(set(seqs))


def test_member_killed(group: LabGroup, tmp_path: Path) -> None:
    """kill -9 of gm2 in its traffic, and again between installing a rekey and its ACK."""
    gm2 = group.members["gm2"]
    reconfigure(gm2, f'ack_jitter = "{OPTIONS.ack_jitter}"', 'ack_jitter = "5s"')
    with watched(group, tmp_path, scenario="agent killed") as watch:
        held, before = policies(gm2.host, group.data_group), sas(gm2.host, group.data_group)
        spi = sending(gm2.host, group.data_group)[0]
        gm2.kill()
        assert policies(gm2.host, group.data_group) == held
        wait_until(
            lambda: sas(gm2.host, group.data_group)[spi].oseq > before[spi].oseq + 50,
            LIMIT,
            "the dead member's kernel to go on sending",
        )
        dead = sas(gm2.host, group.data_group)
        assert dead.keys() <= before.keys()
        restart_registered(gm2)
        assert_adopted(gm2.host, dead, group.data_group)
        assert policies(gm2.host, group.data_group) == held
        rekey(group, MEMBERS)

        _kill_before_ack(group, gm2)
        installed = sas(gm2.host, group.data_group)
        restart_registered(gm2)
        assert_adopted(gm2.host, installed, group.data_group)
        rekey(group, MEMBERS)
        wait_agreed(group, MEMBERS, OPTIONS)
    watch.assert_whole()

    reconfigure(gm2, 'ack_jitter = "5s"', f'ack_jitter = "{OPTIONS.ack_jitter}"')
    _replay(group, gm2, pushes(watch.pcap))


def _replay(group: LabGroup, restarted: Daemon, old: Sequence[PushSeen]) -> None:
    """Old PUSHes to a member that has just come up, from its memory and not from a key server."""
    assert len(old) >= 3
    before = count(restarted, "registered")
    with frozen(group.gcks):
        restarted.kill()
        restarted.start()
        holding = {name: sas(group.network[name], group.data_group) for name in MEMBERS}
        current = set(sending(restarted.host, group.data_group))
        # Who has not been down since knows the last one it acknowledged by its octets.
        again = {name: 0 if daemon is restarted else 1 for name, daemon in group.members.items()}
        dropped = {
            name: {
                "duplicate": drops(group, daemon, "duplicate") + again[name],
                "replay": drops(group, daemon, "replay") + len(old) - again[name],
            }
            for name, daemon in group.members.items()
        }
        send_again(group.gcks.host, old)
        for name, daemon in group.members.items():
            wait_until(
                lambda daemon=daemon, name=name: (  # type: ignore[misc]
                    {reason: drops(group, daemon, reason) for reason in dropped[name]}
                    == dropped[name]
                ),
                LIMIT,
                f"{name} to drop {len(old)} old PUSHes: {dropped[name]}",
            )
            # The time of an older one may have come meanwhile; nothing else may have.
            held = sas(group.network[name], group.data_group).keys()
            assert current <= held <= holding[name].keys()
        assert count(restarted, "registered") == before
    restarted.wait_event("registered", LIMIT, before + 1)


def _kill_before_ack(group: LabGroup, member: Daemon) -> None:
    """A rekey that the member has installed and not acknowledged when it dies."""
    for _ in range(4):
        installed, said = (count(member, e) for e in ("rekey-installed", "rekey-acknowledged"))
        asking = ask(group)
        wait_line(member, "rekey-installed", installed + 1)
        member.kill()
        asking.join()
        if count(member, "rekey-acknowledged") == said:
            return
        restart_registered(member)  # its jitter was next to nothing
    pytest.fail("the member acknowledged at once, four times")


@pytest.mark.parametrize("first", ["gcks", "gm2"])
def test_both_killed(first: str, group: LabGroup, tmp_path: Path) -> None:
    """kill -9 of key server and gm2 in mid-rekey; started again, either of them first."""
    gm2 = group.members["gm2"]
    keks = saved_keks(group)
    with watched(group, tmp_path, scenario=f"both killed, {first} back first") as watch:
        installed, registered = count(gm2, "rekey-installed"), count(gm2, "registered")
        asking = ask(group, kek=first == "gm2")
        gm2.wait_event("rekey-installed", LIMIT, installed + 1)
        group.gcks.kill()
        gm2.kill()
        asking.join()
        daemons = [group.gcks, gm2]
        for daemon in daemons if first == "gcks" else daemons[::-1]:
            daemon.start()
        gm2.wait_event("registered", LIMIT, registered + 1)
        keks |= saved_keks(group)
        rekey(group, MEMBERS)
        wait_agreed(group, MEMBERS, OPTIONS)
    watch.assert_whole()
    for seqs in read_seqs(pushes(watch.pcap), keks).values():
        assert seqs == sorted(set(seqs))
