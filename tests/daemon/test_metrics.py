"""Metrics as a Prometheus server reads them from running daemons."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from gdoi_plugin.daemon import survey
from gdoi_plugin.daemon.gcks import EVENTS as SERVER_EVENTS
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import EVENTS as MEMBER_EVENTS
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.daemon.metrics import LOGGED, REASONS
from gdoi_plugin.daemon.survey import PORTION, Surveyor
from gdoi_plugin.protocol.actions import Drop, Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.roster import Registrant
from tests.daemon.children import ROOT
from tests.daemon.configs import PSK
from tests.daemon.fetching import fetch
from tests.daemon.scraped import OPEN_METRICS, Scrape, both, rekeyed_twice, scrape, scrapes, sockets
from tests.daemon.test_daemons import Pair, pair, rekeyed, together, until

__all__ = ["pair", "scrapes"]  # pytest finds them here


def test_what_a_key_server_says(scrapes: tuple[Scrape, Scrape]) -> None:
    server, now = scrapes[0], time.time()
    group = {"group": "video"}
    assert server.value("gdoi_build_info", daemon="gdoi-gcks", version="0.1.0") == 1
    states = ("acknowledged", "current", "re-registered", "pending", "missing", "dead")
    counts = [server.value("gdoi_gcks_members", state=state, **group) for state in states]
    assert counts == [1, 0, 0, 0, 0, 0]
    assert server.value("gdoi_gcks_rekeys_total", **group) == 2
    assert server.value("gdoi_gcks_rekey_rounds_total", **group) >= 2
    assert server.value("gdoi_gcks_acks_total", **group) == 2
    assert server.value("gdoi_gcks_ack_round_trip_seconds_count", **group) == 2
    assert 0 < server.value("gdoi_gcks_ack_round_trip_seconds_sum", **group) < 60
    assert server.value("gdoi_events_total", event="rekey-acked") == 2
    assert server.value("gdoi_events_total", event="store-failed") == 0
    assert server.value("gdoi_store_failing") == 0
    assert (server.value("gdoi_gcks_leader"), server.value("gdoi_gcks_fence")) == (1, 0)
    assert server.value("gdoi_gcks_phase1_established") == 1
    assert server.value("gdoi_gcks_receive_buffer_bytes") > 1 << 20
    assert 0 <= now - server.value("gdoi_gcks_last_rekey_timestamp_seconds", **group) < 90
    assert 86000 < server.value("gdoi_gcks_kek_expiry_timestamp_seconds", **group) - now <= 86400
    assert 3400 < server.value("gdoi_gcks_tek_expiry_timestamp_seconds", **group) - now <= 3600
    assert server.value("process_resident_memory_bytes") > 1 << 20


def test_what_a_member_says(scrapes: tuple[Scrape, Scrape]) -> None:
    member, now = scrapes[1], time.time()
    group = {"group": "video"}
    assert member.value("gdoi_build_info", daemon="gdoi-gm", version="0.1.0") == 1
    assert member.value("gdoi_gm_registered", **group) == 1
    assert member.value("gdoi_gm_registrations_total", **group) == 1
    for counted in ("received", "installed", "acknowledged"):
        assert member.value(f"gdoi_gm_rekeys_{counted}_total", **group) == 2
    assert member.value("gdoi_gm_rekeys_refused_total", **group) == 0
    sas = [member.value("gdoi_gm_sas", state=s, **group) for s in ("sending", "installed")]
    assert (sas[0], sum(sas) > sas[0]) == (2, True), "the new ones wait for ATD"
    assert 3400 < member.value("gdoi_gm_sa_expiry_timestamp_seconds", **group) - now <= 3600
    assert 86000 < member.value("gdoi_gm_kek_expiry_timestamp_seconds", **group) - now <= 86400
    assert member.value("gdoi_gm_rekey_seq", **group) == 0, "none yet under the new KEK"
    assert 0 <= now - member.value("gdoi_gm_last_rekey_timestamp_seconds", **group) < 90
    assert member.value("gdoi_gm_kernel_repairs_total") == 0
    assert (member.value("gdoi_gm_kernel_contested"), member.value("gdoi_gm_network")) == (0, 1)


def test_sets_of_labels_are_closed_and_whole_from_the_start(
    scrapes: tuple[Scrape, Scrape],
) -> None:
    """So that an increase from nothing to one is seen, and no peer makes a time series."""
    for found, events in zip(scrapes, (SERVER_EVENTS, MEMBER_EVENTS), strict=True):
        reasons = [s.labels["reason"] for s in found.families["gdoi_dropped_datagrams"].samples]
        assert reasons == list(REASONS)
        assert set(map(str, Drop)) < set(reasons)
        told = [s.labels["event"] for s in found.families["gdoi_events"].samples]
        assert told == [*events, *(name for name in LOGGED if name not in events)]
        labels = {name for _, pairs in found.values for name, _ in pairs}
        assert labels <= {
            "bound", "daemon", "event", "group", "le", "reason", "state", "version",
        }  # fmt: skip


def test_nothing_is_logged_that_is_not_counted() -> None:
    """Names in the source: those of ``Log``'s own methods, which no control client can hear."""
    found = set[str]()
    for path in (ROOT / "gdoi_plugin" / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) < 3:
                continue
            called, name = getattr(node.func, "attr", ""), node.args[1]
            if called in ("event", "limited") and isinstance(name, ast.Constant):
                found.add(str(name.value))
    assert found == set(LOGGED)


def test_no_identity_and_no_key(scrapes: tuple[Scrape, Scrape]) -> None:
    for found in scrapes:
        assert PSK not in found.text
        assert "127.0.0." not in found.text


def test_both_formats_say_the_same(pair: Pair) -> None:
    server, member = both(pair, OPEN_METRICS)
    for found in (server, member):
        assert found.text.endswith("# EOF\n")
    assert server.value("gdoi_gcks_acks_total", group="video") == 2
    assert member.value("gdoi_gm_rekeys_acknowledged_total", group="video") == 2


def test_promtool_finds_nothing_to_say(scrapes: tuple[Scrape, Scrape]) -> None:
    for found in scrapes:
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=found.text, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_failures_are_seen(pair: Pair) -> None:
    async def look(server: KeyServerDaemon, _: MemberDaemon, gcks: Path, gm: Path) -> None:
        server.acks.failure = "disk full"
        server.log.dropped("ack-bad-hash", "somebody", "", server.clock.now())
        found = await scrape(gcks)
        assert found.value("gdoi_store_failing") == 1
        assert found.value("gdoi_dropped_datagrams_total", reason="ack-bad-hash") == 1
        server.acks.failure = None
        assert (await scrape(gcks)).value("gdoi_store_failing") == 0
        assert (await fetch(gm, "/")).status == 404

    rekeyed_twice(pair, look)


def test_who_is_silent_is_counted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is a new one here."""
    monkeypatch.setattr(survey, "FRESH", 0.0)
    at, _ = sockets(pair)

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        _enrol(server, 3 * PORTION)
        await rekeyed(server, member)
        group = server.engine.groups[1]
        await until(lambda: len(group.ledger[group.epoch].acknowledged) == 1, "acknowledged")
        found = await scrape(at)
        count = {"group": "video"}
        assert found.value("gdoi_gcks_members", state="pending", **count) == 3 * PORTION
        assert found.value("gdoi_gcks_members", state="acknowledged", **count) == 1
        assert len(found.text) < 40_000, "however many members"
        group.ledger[group.epoch].closed = True
        found = await scrape(at)
        assert found.value("gdoi_gcks_members", state="missing", **count) == 3 * PORTION

    together(pair, scenario)


def _enrol(server: KeyServerDaemon, count: int) -> None:
    group = server.engine.groups[1]
    for number in range(count):
        address = IPv4Address("127.16.0.1") + number
        identity = Identity.of_address(address)
        group.roster.add(Registrant(identity, Peer(address, 1), server.clock.now()))


def test_a_look_lets_others_have_their_turn(pair: Pair) -> None:
    """As many turns as portions; and who asks again at once shares the look."""

    async def scenario(server: KeyServerDaemon, _: MemberDaemon) -> None:
        _enrol(server, 20 * PORTION)
        surveyor, turns = Surveyor(server.engine), 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(count())
        first, second = await asyncio.gather(surveyor.look(), surveyor.look())
        other.cancel()
        assert turns >= 20
        assert first is second
        assert len(first[1].states) == 20 * PORTION + 1

    together(pair, scenario)


def test_a_place_that_is_taken_does_not_keep_a_key_server_from_its_group(pair: Pair) -> None:
    at, member_at = sockets(pair)
    at.write_text("somebody's file")

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        await rekeyed(server, member)
        (told,) = pair.logged("not-served")
        assert told["error"] == f"metrics {at}: there is a file that is not a socket"
        assert (await scrape(member_at)).value("gdoi_gm_registered", group="video") == 1

    together(pair, scenario)
    assert at.read_text() == "somebody's file"
    assert not member_at.exists()


def test_a_socket_has_the_group_that_may_scrape(pair: Pair) -> None:
    those = sockets(pair)
    for config in (pair.gcks, pair.gm):
        config.write_text(
            config.read_text().replace("metrics =", 'metrics_group = "daemon"\nmetrics =')
        )

    async def scenario(_: KeyServerDaemon, __: MemberDaemon) -> None:
        assert [at.group() for at in those] == ["daemon", "daemon"]

    together(pair, scenario)


def test_nothing_is_served_unless_it_is_asked_for(pair: Pair) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        assert server._pages == member._pages == []

    together(pair, scenario)
