"""Records and configurations that somebody, or a failing disk, has changed.

An input is a row of edits: which leaf of the record (2 octets) gets which value (1 octet).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import ConfigError, StoreError
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.actions import Event, Persist
from gdoi_plugin.protocol.group_record import (
    MEMBER_COLUMNS,
    group_record,
    member_record,
    rekey_record,
    standing_record,
)
from gdoi_plugin.protocol.key_server import SavedGroup
from tests.fuzz.standing import MemberSide, story
from tests.fuzz.target import ENGINE_SHARE, Target
from tests.support.clone import clone
from tests.support.simnet import FakeKernel

CONFIGURATIONS = Path(__file__).parents[3] / "deploy" / "config"
EDIT = 3
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 255, 2**32, 2**64, 10**400, 1.5, -1.0, 1e308, float("nan"), "", "x"),
    *(
        "00",
        "0" * 32,
        "ff" * 16,
        "239.1.1.1",
        "10.0.0.0/8",
        "::",
        "\x00",
        "é",
        [],
        [0],
        {},
        {"a": 1},
    ),
    *([[]] * 3, "1:0a000002", "aes256gcm16", "rsa2048-sha256", "2147483648", "9" * 5000),
)


OCTETS = "octets:"


def edited(record: Any, data: bytes) -> Any:
    """A deep copy of JSON values in which leaves, or whole branches, are others."""
    record = json.loads(json.dumps(record))
    for at in range(0, len(data) - EDIT + 1, EDIT):
        places = list(_places(record))
        if not places:
            break
        container, key = places[int.from_bytes(data[at : at + 2], "big") % len(places)]
        choice = data[at + 2]
        if choice >= 0xF0:
            del container[key]
        elif choice < len(VALUES):
            container[key] = deepcopy(VALUES[choice])
        elif isinstance(container[key], int | float) and not isinstance(container[key], bool):
            container[key] += choice - 128
        elif isinstance(container[key], str):
            container[key] = container[key][: choice - 100] + chr(choice)
    return record


def _places(thing: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a record, branches and leaves: container and key."""
    items = thing.items() if isinstance(thing, dict) else enumerate(thing)
    for key, value in list(items):
        yield thing, key
        if isinstance(value, dict | list):
            yield from _places(value)


# -- the member's state file ---------------------------------------------------------------------


@cache
def _member_record() -> Any:
    moment = story().at("new KEK")
    side = clone(moment.member)
    actions = side.carry_out(side.engine.tick(moment.now + 11), moment.now + 11)
    return next(a.record for a in actions if isinstance(a, Persist))


def check_member_record(data: bytes) -> bool:
    """A member starts with any of them; with what it cannot read it registers afresh."""
    moment = story().moments[0]
    record = edited(_member_record(), data)
    side = MemberSide(clone(moment.member.engine), FakeKernel())
    actions = side.carry_out(side.engine.start(moment.now, record), moment.now)
    for _ in range(3):
        at = side.engine.deadline
        assert at is not None
        side.carry_out(side.engine.tick(at), at)
    return not any(isinstance(a, Event) and a.name == "state-unreadable" for a in actions)


def check_state_file(data: bytes) -> bool:
    """Any octets in the file."""
    folder = _folder()
    (folder / "video.json").write_bytes(data)
    try:
        return StateDirectory(folder).load("video") is not None
    except StoreError:
        return False


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="gdoi-fuzz-", dir="/dev/shm"))


# -- the key server's store ----------------------------------------------------------------------


@cache
def _group_records() -> Any:
    group = story().at("new KEK").group
    return {
        "group": group_record(group),
        "members": [
            [plain(member_record(group, member)[name]) for name in MEMBER_COLUMNS]
            for member in group.members.values()
        ],
        "rekeys": [plain(rekey_record(group, rekey)) for rekey in group.ledger.values()],
        "acks": [[group.epoch, [[1, 1, 5.0], [1, 2, 6.0]]]],
        "standings": [plain(standing_record(group, rekey, 7.0)) for rekey in group.ledger.values()],
    }


def plain(value: Any) -> Any:
    """Octets as text that edits can get at."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return OCTETS + value.hex() if isinstance(value, bytes) else value


def octets(value: Any) -> Any:
    """And back, where the edit has left them."""
    if isinstance(value, dict):
        return {key: octets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [octets(inner) for inner in value]
    if isinstance(value, str) and value.startswith(OCTETS):
        with suppress(ValueError):
            return bytes.fromhex(value.removeprefix(OCTETS))
    return value


def check_group_records(data: bytes) -> bool:
    """Taken up, or refused with one of the exceptions that ``KeyServer.start`` declares."""
    moment = story().moments[0]
    record = edited(_group_records(), data)
    server = clone(moment.server)
    try:
        saved = SavedGroup(
            record["group"],
            octets(record["members"]),
            octets(record["rekeys"]),
            record["acks"],
            standings=octets(record["standings"]),
        )
        server.start(moment.now, dict.fromkeys(server.groups, saved))
    except (KeyError, ValueError, TypeError):
        return False
    return True


# -- configuration files -------------------------------------------------------------------------


def check_configuration(data: bytes) -> bool:
    """ConfigError, or a configuration; the first octet says whose."""
    folder = _folder()
    for name in ("lan.psk", "branch7.psk"):
        (folder / name).write_text("a key")
    path = folder / "config.toml"
    path.write_bytes(data[1:])
    load = MemberDaemonConfig if data[:1] < b"\x80" else KeyServerDaemonConfig
    try:
        load(path)
    except ConfigError as error:
        assert str(path) in str(error)
        return False
    return True


def _configurations() -> list[bytes]:
    member = (CONFIGURATIONS / "gm.toml").read_bytes().replace(b'"eth0"', b'"lo"')
    server = (CONFIGURATIONS / "gcks.toml").read_bytes()
    return [b"\0" + _bare(member), b"\xff" + _bare(server)]


def _bare(toml: bytes) -> bytes:
    """Without comments: changes in those find nothing."""
    lines = (line.partition(b"#")[0].rstrip() for line in toml.splitlines())
    return b"".join(line + b"\n" for line in lines if line)


def targets() -> list[Target]:
    nothing = [b"", bytes(EDIT), bytes((0, 1, 0x90)) * 2]
    state = [json.dumps(_member_record()).encode()[:2000], b"{}"]
    return [
        Target("record-member", check_member_record, lambda: nothing, ENGINE_SHARE),
        Target("record-key-server", check_group_records, lambda: nothing, ENGINE_SHARE),
        Target("state-file", check_state_file, lambda: state, 4 * ENGINE_SHARE),
        Target("configuration", check_configuration, _configurations, 2 * ENGINE_SHARE),
    ]
