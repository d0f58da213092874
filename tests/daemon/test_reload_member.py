"""A member's file is read again while it runs: what it takes up, what it refuses, and the rest."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.control import CommandFailed
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.daemon.reload_member import ANEW, NOW, propose
from tests.daemon.configs import GM, PSK, write
from tests.daemon.test_daemons import Pair, pair, rekeyed, together, until
from tests.daemon.test_reload import edit

__all__ = ["pair"]

CONFIG = GM.replace('psk = "the-secret-of-the-tests-7f3a"', 'psk_file = "psk"')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "psk").write_text(PSK)
    return write(tmp_path, CONFIG, "gm.toml")


def shown(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(c["key"], c["before"], c["after"]) for c in answer["changes"].values()]


# -- what may be ---------------------------------------------------------------------------------

LIVE = {
    'ack_jitter = "1s"': ("group[video].ack_jitter", "2s", "1s", NOW),
    "join = true": ("group[video].join", "false", "true", NOW),
    'identity = "gm.example.org"': ("group[video].identity", "", "gm.example.org", ANEW),
}


@pytest.mark.parametrize("line", LIVE)
def test_what_is_taken_up(file: Path, line: str) -> None:
    running = MemberDaemonConfig(file)
    edit(file, "[[group]]\n", f"[[group]]\n{line}\n")
    found = propose(running)
    *change, step = LIVE[line]
    assert [(c.key, c.before, c.after) for c in found.changes] == [tuple(change)]
    assert found.steps == [("video", step)]
    assert found.anew == ({"video"} if step == ANEW else set())


def test_another_key_in_the_same_file(file: Path) -> None:
    running = MemberDaemonConfig(file)
    assert propose(running).changes == []
    (file.parent / "psk").write_text("something else altogether")
    found = propose(running)
    (change,) = found.changes
    assert change.key == "group[video].key_server[127.0.0.9].psk_file"
    assert (change.before, change.after) == ("(secret)", "(another)")
    assert found.steps == [("video", ANEW)]
    assert "something else" not in repr(found.changes)


ONLY_BY_A_RESTART: dict[str, Callable[[str], str]] = {
    "member.state": lambda text: text.replace("[member]\n", '[member]\nstate = "/elsewhere"\n'),
    "member.protect": lambda text: text.replace(
        "[member]\n", '[member]\nprotect = ["239.1.0.0/16"]\n'
    ),
    "group[video].id": lambda text: text.replace("id = 1", "id = 2"),
    "group[video].priority": lambda text: text.replace("id = 1", "id = 1\npriority = 380001"),
    "group[audio]": lambda text: (
        text + text[text.index("[[group]]") :].replace("video", "audio").replace("id = 1", "id = 2")
    ),
}


@pytest.mark.parametrize("key", ONLY_BY_A_RESTART)
def test_what_only_a_restart_can_change_is_refused(file: Path, key: str) -> None:
    running = MemberDaemonConfig(file)
    file.write_text(ONLY_BY_A_RESTART[key](file.read_text()))
    with pytest.raises(ConfigError, match="while the member runs: start it again") as caught:
        propose(running)
    assert caught.value.key.startswith(key)


# -- a member and its key server -----------------------------------------------------------------


def test_a_member_takes_up_its_file(pair: Pair) -> None:
    """Shown first, then done; another key server's address and a wrong one in between."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group, reload = member.member.groups["video"], member.commands.reload
        good = pair.gm.read_text()
        edit(pair.gm, 'ack_jitter = "0s"', 'ack_jitter = "1s"')
        answer: Any = reload({"dry-run": "yes"})
        assert answer["done"] == "no"
        assert shown(answer) == [("group[video].ack_jitter", "0s", "1s")]
        assert group.config.ack_jitter == group.acknowledger.jitter == 0.0
        assert reload({})["done"] == "yes"
        assert group.config.ack_jitter == group.acknowledger.jitter == 1.0
        assert shown(reload({})) == [], "nothing is left to do"
        assert group.counters.registrations == 1
        pair.gm.write_text(good.replace("psk_file", "psk_fiel"))
        with pytest.raises(CommandFailed, match=r"nothing was changed: .*psk_fiel"):
            reload({})
        assert group.config.ack_jitter == 1.0
        # A second key server that there is not: the group registers again, and rekeys go on.
        text = good[good.index("[[group.key_server]]") :].replace("127.0.0.9", "127.0.0.8")
        pair.gm.write_text(good + text)
        answer = reload({})
        assert {"group": "video", "step": ANEW} in answer["steps"].values()
        assert group.registrar.association is None
        await rekeyed(server, member)
        pair.gm.write_text(good)
        os.kill(os.getpid(), signal.SIGHUP)  # as systemd does it
        await until(lambda: len(pair.logged("config-reloaded")) == 4, "reloaded by signal")
        assert len(group.config.key_servers) == 1
        await until(lambda: group.counters.registrations >= 2, "registered again")
        await rekeyed(server, member)

    together(pair, ignoring_the_servers_signal(scenario))
    assert pair.logged("bug") == []


def ignoring_the_servers_signal(scenario: Any) -> Any:
    """Both daemons are in this process, and the one that began last has the signal."""

    async def run(server: KeyServerDaemon, member: MemberDaemon) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, member._hung_up)
        await scenario(server, member)

    return run


def test_a_file_that_is_wrong_is_told_after_a_signal(pair: Pair) -> None:
    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        pair.gm.write_text("nonsense")
        member._hung_up()
        (told,) = pair.logged("config-refused")
        assert str(pair.gm) in told["error"]

    together(pair, scenario)


# -- get-policy ----------------------------------------------------------------------------------


def octets(value: Any) -> Iterator[str]:
    """Every text of a message."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from octets(inner)
    elif isinstance(value, list):
        yield from value
    else:
        yield value


def test_the_policy_of_a_group_is_the_same_at_both_and_has_no_keys(pair: Pair) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        told: Any = server.commands.get_policy({})
        held: Any = member.commands.get_policy({"group": "1"})
        assert told["group"] == held["group"] == "video"
        assert (told["members"], told["epoch"]) == (["127.0.0.1"], "1")
        (kek,) = told["rekey-sas"].values()
        assert kek["algorithm"] == "aes256"
        assert kek["signature"] == "ecdsa256"
        assert kek["ack"] == told["ack"] == held["ack"] == "kek-sha256"
        assert kek["destination"] == told["rekey-address"] == "239.192.77.9"
        assert held["rekey-sas"].keys() == told["rekey-sas"].keys()
        assert held["data-sas"].keys() == told["data-sas"].keys()
        for spi, sa in told["data-sas"].items():
            same = ("source", "destination", "mode", "algorithm", "esn")
            assert {key: sa[key] for key in same} == {
                key: held["data-sas"][spi][key] for key in same
            }
        listed = {sa["spi"]: sa for sa in server.commands.list_sas({})}
        assert listed.keys() == told["data-sas"].keys()
        assert {sa["state"] for sa in listed.values()} == {"current"}
        group = server.engine.groups[1]
        secrets = [group.current_kek().kek.key, *(held.tek.encryption_key for held in group.teks)]
        text = json.dumps(
            [list(octets(told)), list(octets(held)), list(map(dict, listed.values()))]
        )
        for secret in secrets:
            assert secret.reveal().hex() not in text
        with pytest.raises(CommandFailed, match="no group nonsense; this member has video"):
            member.commands.get_policy({"group": "nonsense"})
        with pytest.raises(CommandFailed, match="no group nonsense; this key server has video"):
            server.commands.get_policy({"group": "nonsense"})

    together(pair, scenario)
