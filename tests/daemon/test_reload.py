"""A key server's file is read again while it runs, and a member revoked: over real sockets."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from tests.daemon.children import eventually, finished
from tests.daemon.configs import PSK
from tests.daemon.test_daemons import Pair, pair, rekeyed, together, until
from tests.daemon.test_processes import BIN, Server, server

__all__ = ["pair", "server"]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def ctl(server: Server, *words: str) -> tuple[int, str, str]:
    done = finished([BIN / "gdoictl", "--socket", server.control, *words])
    return done.returncode, done.stdout, done.stderr


# -- as an operator does it ----------------------------------------------------------------------


def test_dry_run_then_reload_then_nothing_is_left_to_do(server: Server) -> None:
    with server.running():
        epoch = int(server.group()["epoch"])
        edit(server.config, "[[group.tek]]\n", '[[group.tek]]\nlifetime = "10m"\n')
        code, out, _ = ctl(server, "reload", "--dry-run")
        assert code == 4
        lines = out.splitlines()
        assert lines[1].split() == ["group[video].tek[239.192.1.1].lifetime", "1h", "10m"]
        assert lines[2:] == ["video: rekey: new TEKs", "nothing was changed: dry run"]
        assert int(server.group()["epoch"]) == epoch
        (answer,) = server.ctl("reload")
        assert answer["done"] == "yes"
        assert answer["steps"] == [{"group": "video", "step": "rekey: new TEKs"}]
        assert int(server.group()["epoch"]) == epoch + 1
        assert ctl(server, "reload", "--dry-run") == (0, "no differences\n", "")
    (told,) = server.events("config-reloaded")
    assert told["changes"] == ["group[video].tek[239.192.1.1].lifetime: 1h -> 10m"]


def test_sighup_reloads_and_a_file_that_is_wrong_changes_nothing(server: Server) -> None:
    with server.running() as child:
        good = server.config.read_text()
        edit(server.config, "[[group.tek]]\n", '[[group.tek]]\nlifetime = "soon"\n')
        child.send_signal(signal.SIGHUP)
        eventually(lambda: server.events("config-refused"), "refused")
        (told,) = server.events("config-refused")
        where = f"{server.config}: group.0.tek.0.lifetime: "
        assert told["error"].startswith(where)
        code, out, err = ctl(server, "reload")
        assert (code, out) == (1, "")
        assert f"nothing was changed: {where}" in err
        assert server.group()["epoch"] == "1"
        server.config.write_text(good + '\n[[group.tek]]\ndestination = "239.192.1.2"\n')
        rotated = server.log.rename(server.log.with_suffix(".1"))
        server.log.touch()
        child.send_signal(signal.SIGHUP)
        eventually(lambda: server.events("config-reloaded"), "reloaded, and the log is the new one")
        assert server.group()["epoch"] == "2"
    assert '"config-reloaded"' not in rotated.read_text()
    assert PSK not in rotated.read_text() + server.log.read_text()


ONLY_BY_A_RESTART = {
    "state": ("gcks.sqlite", "other.sqlite"),
    "address": ('address = "127.0.0.1"', 'address = "127.0.0.7"'),
    "block_threshold": ("[key_server]\n", "[key_server]\nblock_threshold = 7\n"),
}


def test_what_only_a_restart_can_change_is_refused(server: Server) -> None:
    with server.running():
        good = server.config.read_text()
        for key, (old, new) in ONLY_BY_A_RESTART.items():
            edit(server.config, old, new)
            code, out, err = ctl(server, "reload")
            assert (code, out) == (1, "")
            assert f"{server.config}: key_server.{key}: " in err
            assert "while the key server runs: start it again" in err
            server.config.write_text(good)
        assert server.group()["epoch"] == "1"


GROUP = """
[[group]]
name = "audio"
id = 2
members = ["127.0.0.1"]
rekey.signature = "ecdsa256"

[[group.tek]]
destination = "239.192.1.5"
"""


def test_groups_come_and_go_and_come_back(server: Server) -> None:
    def groups() -> dict[str, Any]:
        (daemon,) = server.ctl("status")
        return {group["group"]: group["epoch"] for group in daemon["groups"]}

    with server.running():
        before = server.config.read_text()
        server.config.write_text(before + GROUP)
        assert server.ctl("reload")[0]["steps"] == [{"group": "audio", "step": "new group"}]
        assert groups() == {"video": "1", "audio": "1"}
        server.config.write_text(before)
        (step,) = server.ctl("reload")[0]["steps"]
        assert step["step"].startswith("delete group")
        eventually(lambda: groups() == {"video": "1"}, "gone")
        server.config.write_text(before + GROUP)
        server.ctl("reload")
        assert groups() == {"video": "1", "audio": "2"}, "no epoch a second time"
    with server.running():
        assert groups() == {"video": "1", "audio": "2"}


# -- with a member -------------------------------------------------------------------------------


def test_a_member_follows_a_reload(pair: Pair) -> None:
    """Other data SAs by one rekey; then another multicast address and pre-shared key."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        edit(pair.gcks, 'destination = "239.192.1.2"\n', 'destination = "239.192.1.7"\n')
        before = group.counters.rekeys_received
        server.commands.reload({"replace": "yes"})
        await until(lambda: group.counters.rekeys_received > before, "the rekey arrives")
        flows = {str(held.tek.flow.destination) for held in group.rollover.held.values()}
        assert flows == {"239.192.1.1", "239.192.1.7"}
        edit(pair.gcks, 'address = "239.192.77.9"', 'address = "239.192.77.10"')
        before = group.counters.rekeys_received
        server.commands.reload({})
        await until(lambda: group.counters.rekeys_received > before, "told where it listened")
        await rekeyed(server, member)
        (pair.folder / "psk").write_text("another secret of the tests")
        answer = server.commands.reload({"dry-run": "yes"})
        assert answer["changes"] == {
            "0": {"key": "peer[127.0.0.1/32].psk_file", "before": "(secret)", "after": "(another)"}
        }

    together(pair, scenario)
    assert pair.logged("bug") == []


def test_a_revoked_member_has_nothing_and_gets_nothing(pair: Pair) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group, engine = member.member.groups["video"], server.engine
        old = {t.tek.spi for t in engine.groups[1].teks}
        assert len(engine.isakmp.sessions) == 1
        server.commands.revoke({"group": "video", "identities": ["127.0.0.1"]})
        assert not engine.groups[1].members
        assert not engine.isakmp.sessions
        assert not old & {t.tek.spi for t in engine.groups[1].teks}
        registrations = group.counters.registrations
        member.commands.register({"group": "video"})
        await until(lambda: group.last_failure, "refused")
        assert group.counters.registrations == registrations
        server.commands.admit({"group": "video", "identities": ["127.0.0.1"]})
        await until(lambda: group.counters.registrations > registrations, "back")
        await rekeyed(server, member)

    together(pair, scenario)
    assert [line["member"] for line in pair.logged("member-revoked")] == ["127.0.0.1"]
    assert pair.logged("bug") == []
