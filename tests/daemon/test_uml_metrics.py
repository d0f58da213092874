"""A member's metrics on a real kernel: what somebody takes out of it is seen."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from tests.daemon.scraped import Scrape, scrape, sockets
from tests.daemon.test_daemons import Pair, together
from tests.kernel.conftest import namespace

__all__ = ["namespace"]
pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("namespace")]
PATIENCE = 120.0


async def repaired(at: Path, count: int) -> Scrape:
    deadline = time.monotonic() + PATIENCE
    while (found := await scrape(at)).value("gdoi_gm_kernel_repairs_total") < count:
        assert time.monotonic() < deadline, "no repair is counted"
    return found


def test_a_flush_is_counted_and_nothing_stays_missing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    _, at = sockets(pair)

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        before = await scrape(at)
        assert before.value("gdoi_gm_sas", group="video", state="sending") == 2
        assert before.value("gdoi_gm_kernel_missing") == 0
        repairs = int(before.value("gdoi_gm_kernel_repairs_total"))
        subprocess.run(["ip", "xfrm", "state", "flush"], check=True, timeout=PATIENCE)  # noqa: ASYNC221
        after = await repaired(at, repairs + 1)
        assert after.value("gdoi_gm_kernel_missing") == 0
        assert after.value("gdoi_events_total", event="kernel-restored") >= 1
        assert abs(after.value("gdoi_gm_kernel_last_repair_timestamp_seconds") - time.time()) < 90
        assert member.member.groups["video"].counters.registrations == 1

    together(pair, scenario)
