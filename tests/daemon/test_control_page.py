"""The page about the control sockets says what both daemons really serve and really send."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.cli.client import Client, ClientError, EventClient, Fields
from gdoi_plugin.daemon import gcks, gm
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from tests.daemon.children import ROOT
from tests.daemon.test_daemons import PATIENCE, Pair, pair, together, until
from tests.support.control_page import DAEMONS, Keys, commands, events

__all__ = ["pair"]

EVENTS: dict[str, Sequence[str]] = {"gdoi-gcks": gcks.EVENTS, "gdoi-gm": gm.EVENTS}


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_event_is_on_the_page(daemon: str) -> None:
    assert events(daemon).keys() == {*EVENTS[daemon]}


# -- keys that stand in the source ---------------------------------------------------------------


def _literal_keys(node: ast.expr | None) -> set[str]:
    if isinstance(node, ast.BinOp):
        return _literal_keys(node.left) | _literal_keys(node.right)
    if not isinstance(node, ast.Dict):
        return set()
    return {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}


def _told() -> list[tuple[str, str, set[str]]]:
    """Place, event and keys of every call that makes an event, as far as they stand there."""
    found = []
    for path in (ROOT / "gdoi_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called not in ("Event", "_event", "group_event"):
                continue
            names = [str(a.value) for a in node.args[:2] if isinstance(a, ast.Constant)]
            if not names:
                continue
            keys = set().union(*map(_literal_keys, node.args))
            for word in node.keywords:
                if word.arg == "fields":
                    keys |= _literal_keys(word.value)
                elif word.arg not in (None, "level"):
                    keys.add(str(word.arg).replace("_", "-"))
            found.append((f"{path.name}:{node.lineno}", names[0], keys))
    return found


def test_keys_that_stand_in_the_source_are_on_the_page() -> None:
    told, pages = _told(), [events(daemon) for daemon in DAEMONS]
    assert len(told) > 50
    assert sum(bool(keys) for _, _, keys in told) > 40
    for where, name, keys in told:
        known = [page[name].all for page in pages if name in page]
        assert any(keys <= all_of_them for all_of_them in known), (where, name, keys)


# -- what comes through the sockets --------------------------------------------------------------


def ask(folder: Path, name: str, work: Callable[[Client], Any]) -> Any:
    with Client(folder / name, PATIENCE) as client:
        return work(client)


class Listener:
    """Every event of one daemon, from now on; polled by hand."""

    def __init__(self, path: Path) -> None:
        self.client = EventClient(path, PATIENCE)
        with Client(path, PATIENCE) as asking:
            names = tuple(asking.request("describe")["events"])
        assert set(self.client.register(names)) == set(names)
        self.heard: list[tuple[str, Fields]] = []

    def poll(self) -> set[str]:
        while (got := self.client.poll(0)) is not None:
            self.heard.append(got)
        return {name for name, _ in self.heard}


ASKED: Mapping[str, Sequence[tuple[str, dict[str, Any]]]] = {
    "gdoi-gcks": [
        ("version", {}),
        ("describe", {}),
        ("stats", {}),
        ("get-policy", {"group": "video"}),
        ("rekey", {"group": "video", "kek": "yes", "replace": "no"}),
        ("reload", {"dry-run": "yes", "replace": "no"}),
        ("evict", {"group": "video", "identities": ["10.9.9.9"]}),
        ("admit", {"group": "video", "identities": ["10.9.9.9"]}),
        ("revoke", {"group": "video", "identities": ["10.9.9.9"]}),
    ],
    "gdoi-gm": [
        ("version", {}),
        ("describe", {}),
        ("stats", {}),
        ("get-policy", {}),
        ("reload", {"dry-run": "no"}),
        ("register", {"group": "video"}),
    ],
}
LAST = ("delete-tek", "delete-group")


def test_messages_are_what_the_page_says(pair: Pair) -> None:
    """Every command of both daemons is asked over its socket, and every event heard."""
    page, wrong = commands(), list[str]()
    listeners: list[Listener] = []

    def look(daemon: str, what: str, name: str, message: Fields) -> None:
        wrong.extend(
            f"{daemon} {name}: {text}" for text in page[name].keys(what, daemon).complaints(message)
        )

    def every_command(daemon: str, client: Client) -> None:
        found = client.request("describe")
        there = {name for name, command in page.items() if daemon in command.daemons}
        assert found["commands"].keys() == there
        for name, keys in found["commands"].items():
            assert set(keys) == page[name].keys("request", daemon).all, (daemon, name)
        asked = {n: c.event for n, c in page.items() if c.event and daemon in c.daemons}
        assert found["streams"] == asked
        assert set(found["events"]) == {*EVENTS[daemon]}
        for name, request in ASKED[daemon]:
            look(daemon, "answer", name, client.request(name, request))
        for name, event in asked.items():
            for item in client.stream(name, event):
                look(daemon, "item", name, item)
        covered = {name for name, _ in ASKED[daemon]} | asked.keys()
        assert there - covered == (set(LAST) if daemon == "gdoi-gcks" else set())

    def the_last(client: Client) -> None:
        spi = next(iter(client.request("get-policy", {"group": "video"})["data-sas"]))
        with pytest.raises(ClientError, match="no TEK 0x00000001; video has"):
            client.request("delete-tek", {"group": "video", "spi": "0x1"})
        answer = client.request("delete-tek", {"group": "video", "spi": spi})
        look("gdoi-gcks", "answer", "delete-tek", answer)
        look("gdoi-gcks", "answer", "delete-group", client.request("delete-group", {"group": "1"}))

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        del server
        paths = [pair.folder / name for name in ("gcks.vici", "gm.vici")]
        listeners.extend([await asyncio.to_thread(Listener, path) for path in paths])
        group = member.member.groups["video"]
        for daemon, name in (("gdoi-gcks", "gcks.vici"), ("gdoi-gm", "gm.vici")):

            def work(client: Client, daemon: str = daemon) -> None:
                every_command(daemon, client)

            await asyncio.to_thread(ask, pair.folder, name, work)
        await until(lambda: group.counters.acknowledged > 0, "an acknowledgement")
        await asyncio.to_thread(ask, pair.folder, "gcks.vici", the_last)
        await until(lambda: HEARD["gdoi-gcks"] <= listeners[0].poll(), "events of the key server")
        await until(lambda: HEARD["gdoi-gm"] <= listeners[1].poll(), "events of the member")
        for listener in listeners:
            listener.client.__exit__()

    together(pair, scenario)
    for daemon, listener in zip(DAEMONS, listeners, strict=True):
        told = events(daemon)
        for name, fields in listener.heard:
            wrong += [f"{name}: {text}" for text in told[name].complaints(fields)]
    assert sorted(set(wrong)) == []


# What that makes happen, at least.
HEARD = {
    "gdoi-gcks": {
        "rekey-sent",
        "rekey-acked",
        "member-registered",
        "member-readmitted",
        "member-evicted",
        "member-revoked",
    },
    "gdoi-gm": {
        "config-reloaded",
        "registering",
        "registered",
        "rekey-received",
        "rekey-installed",
        "rekey-acknowledged",
        "kek-replaced",
        "sa-installed",
        "sa-sending",
        "sa-removed",
        "group-deleted",
    },
}


def test_the_comparison_itself() -> None:
    keys = Keys.parse("`group`, (`kek`), `isakmp.open`, (`drops.*`)")
    assert keys.complaints({"group": "v", "isakmp": {"open": "1"}, "drops": {"x": "1"}}) == []
    assert keys.complaints({"group": "v", "isakmp": {"open": "1", "new": "2"}}) == [
        "isakmp.new is not in the page"
    ]
    assert keys.complaints({"isakmp": {"open": "1"}, "kek": "x"}) == ["group is not in the message"]
