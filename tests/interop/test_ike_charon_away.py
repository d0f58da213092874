"""``authorise = "ike"`` while charon is absent, killed, hung, reloaded or flapping."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from .ike_members import REFUSED, VIDEO, Hosts, entity, hosts, key_server, listed, refusals
from .running import wait_for

ONE = "10.79.0.11"
MEMBER = entity("gm1", 90)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("ike"), ONE) as running:
        yield running


def test_charon_comes_and_goes(site: Hosts) -> None:
    """Absent at the start, there, reloaded, killed, back: the group is rekeyed all the time."""
    with key_server(site, "gcks") as gcks:
        wait_for(lambda: gcks.events("charon-lost"), "charon to be missed")
        assert REFUSED in str(site.applicant(ONE, VIDEO).run())
        assert "nobody can be vouched for: charon: " in refusals(gcks)[-1]
        with site.key_servers_charon() as ike:
            connection = site.connect(MEMBER, ONE, "gm1.example.org")
            wait_for(lambda: gcks.events("charon-found"), "charon to be found")
            assert site.applicant(ONE, VIDEO).run() is None
            # As `swanctl --load-all` does with what came by vici. IKE_SAs survive that.
            ike._session.unload_conn({"name": "members"})
            assert site.applicant(ONE, VIDEO).run() is None
            os.kill(ike.process.pid, signal.SIGKILL)
            wait_for(lambda: len(gcks.events("charon-lost")) == 2, "charon to be missed again")
            assert listed(gcks, "video") == {"gm1.example.org": "unknown"}
            assert REFUSED in str(site.applicant(ONE, VIDEO).run())
            epoch = int(gcks.ask("rekey", group="video")["epoch"])
            assert listed(gcks, "video") == {"gm1.example.org": "unknown"}
        with site.key_servers_charon():
            wait_for(lambda: len(gcks.events("charon-found")) == 2, "another charon to be found")
            wait_for(lambda: listed(gcks, "video") == {"gm1.example.org": "down"}, "no IKE_SA")
            site.end(connection)
            site.again(connection)
            assert site.applicant(ONE, VIDEO).run() is None
            assert listed(gcks, "video") == {"gm1.example.org": "up"}
            site.end(connection)
        assert epoch > 1


def test_charon_hangs_and_flaps(site: Hosts) -> None:
    """One that accepts and never answers is missed as one that is gone is; what blinks is told of
    once a time, and none of it holds up the group."""
    with site.key_servers_charon() as ike, key_server(site, "hung") as gcks:
        connection = site.connect(MEMBER, ONE, "gm1.example.org")
        assert site.applicant(ONE, VIDEO).run() is None
        applicant, over = site.applicant(ONE, VIDEO), False
        for number in (signal.SIGSTOP, signal.SIGCONT) * 10:
            os.kill(ike.process.pid, number)
            end = time.monotonic() + 0.1
            while time.monotonic() < end and not over:
                over = applicant.step()
        assert applicant.run() is None, "charon is told by nobody to be quick"
        assert gcks.events("charon-lost") == []
        os.kill(ike.process.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: gcks.events("charon-lost"), "charon to be missed")
            epoch = int(gcks.ask("rekey", group="video")["epoch"])
            assert listed(gcks, "video") == {"gm1.example.org": "unknown"}
            assert REFUSED in str(site.applicant(ONE, VIDEO).run())
            assert "nobody can be vouched for: charon: " in refusals(gcks)[-1]
        finally:
            os.kill(ike.process.pid, signal.SIGCONT)
        wait_for(lambda: gcks.events("charon-found"), "charon to be found")
        wait_for(lambda: listed(gcks, "video") == {"gm1.example.org": "up"}, "its IKE_SA")
        assert site.applicant(ONE, VIDEO).run() is None
        assert int(gcks.ask("rekey", group="video")["epoch"]) > epoch
        assert len(gcks.events("charon-lost")) == 1
        site.end(connection)
