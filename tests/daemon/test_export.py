"""Keys for applications at a running agent: the file, the control socket, the log."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.control import Message
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.protocol.iec_tek import IecTek
from tests.daemon.test_daemons import (
    REFUSED,
    FakeXfrm,
    Pair,
    pages,
    rekeyed,
    shapes,
    together,
    until,
)
from tests.daemon.test_daemons import pair as pair

GOOSE = "1.2.840.10070.61850.8.1.2"


@pytest.fixture
def iec(pair: Pair) -> Pair:
    """The group with keys for an application besides its data SAs, and members that export."""
    pair.gcks.write_text(
        pair.gcks.read_text()
        + f"""
[[group.iec61850]]
oid = "{GOOSE}"
payload = "8704e9fc0001"
conf = "aes-cbc-128"
sa_kda = 90
"""
    )
    text = pair.gm.read_text()
    pair.gm.write_text(text.replace("[member]\n", f'[member]\nexport = "{pair.folder}/keys.d"\n'))
    return pair


def file_of(pair: Pair) -> Path:
    return pair.folder / "keys.d" / "video.json"


def keys_in(pair: Pair) -> list[dict[str, Any]]:
    document = json.loads(file_of(pair).read_text())
    assert (document["group"], document["id"]) == ("video", "1")
    keys: list[dict[str, Any]] = document["keys"]
    return keys


def current(server: KeyServerDaemon) -> IecTek:
    teks = [t.tek for t in server.engine.groups[1].teks if t.retire_at is None]
    (tek,) = (tek for tek in teks if isinstance(tek, IecTek))
    return tek


def listed(member: MemberDaemon, **request: str) -> list[Message]:
    return list(member.commands.list_keys({**request}))


def test_a_file_of_its_owner_replaced_by_a_rekey(iec: Pair) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        first = current(server)
        (key,) = keys_in(iec)
        assert key["receive-from"] == key["send-from"] < key["expires"]
        assert {name: value for name, value in key.items() if not isinstance(value, float)} == {
            "oid": GOOSE,
            "payload": "8704e9fc0001",
            "spi": first.name,
            "auth": "hmac-sha256-128",
            "auth-key": first.integrity_key.reveal().hex() if first.integrity_key else "",
            "conf": "aes-cbc-128",
            "conf-key": first.encryption_key.reveal().hex(),
            "delivery-assurance": 90,
        }
        await rekeyed(server, member, kek="yes")
        await until(lambda: pages(server) == [(1, 1)], "acknowledged")
        assert [key["spi"] for key in keys_in(iec)] == [first.name, current(server).name]
        await rekeyed(server, member, replace="yes")
        await until(lambda: pages(server) == [(1, 1), (1, 1)], "acknowledged")
        assert [key["spi"] for key in keys_in(iec)] == [current(server).name]

    together(iec, scenario)
    assert stat.S_IMODE(file_of(iec).stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of(iec).parent.stat().st_mode) == 0o700
    assert [path.name for path in file_of(iec).parent.iterdir()] == ["video.json"]


def test_keys_are_told_to_who_asks_for_secrets_and_are_in_no_log(iec: Pair) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        secret = current(server).encryption_key.reveal()
        (plain,) = listed(member)
        assert (plain["spi"], plain["state"]) == (current(server).name, "exported")
        assert not any(secret.hex() in str(value) for value in plain.values())
        (told,) = listed(member, group="video", secrets="yes")
        assert told["conf-key"] == secret.hex()
        await rekeyed(server, member)
        await until(lambda: len(listed(member)) == 2, "a second key")
        for tek in server.engine.groups[1].teks:
            assert tek.tek.integrity_key is None or len(tek.tek.integrity_key) == 32
        written = iec.server_log.read_text() + iec.member_log.read_text()
        for shape in shapes(secret):
            assert shape not in written

    together(iec, scenario)
    first, second = iec.logged("keys-changed")
    assert (len(first["spis"]), len(second["spis"])) == (1, 2)


@pytest.mark.parametrize("why", ["the kernel", "the file", "its folder"])
def test_no_acknowledgement_unless_kernel_and_file_have_it(
    iec: Pair, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One says no: the file is the old one, and the member fetches what it missed."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        before = file_of(iec).read_text()
        group = member.member.groups["video"]
        group.registrar.random = lambda n: bytes(n)
        staged = file_of(iec).with_suffix(".new")
        full, replace = {staged} if why == "its folder" else set(), Path.replace

        def rename(path: Path, to: Path) -> Path:
            if path in full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(path, to)

        monkeypatch.setattr(Path, "replace", rename)
        if why == "the kernel":
            FakeXfrm.refusals.append(REFUSED)
        elif why == "the file":
            staged.mkdir()
        done = len(FakeXfrm.transactions)
        await rekeyed(server, member)
        await until(lambda: iec.logged("install-failed"), "refused")
        assert group.counters.rekeys_refused == 1
        if why != "the kernel":
            assert file_of(iec).read_text() == before
            assert len(FakeXfrm.transactions) == done
            full.clear()
        if why == "the file":
            staged.rmdir()
        await until(lambda: group.counters.registrations == 2, "registered again")
        assert pages(server) == [(0, 1)]
        assert keys_in(iec)[-1]["spi"] == current(server).name
        await rekeyed(server, member)
        await until(lambda: pages(server) == [(0, 1), (1, 1)], "acknowledged")

    together(iec, scenario)


def test_a_restarted_agent_exports_what_it_had(iec: Pair) -> None:
    async def first(_: KeyServerDaemon, __: MemberDaemon) -> None:
        assert keys_in(iec)

    together(iec, first)
    text = file_of(iec).read_text()
    file_of(iec).unlink()

    async def second(_: KeyServerDaemon, __: MemberDaemon) -> None:
        assert file_of(iec).read_text() == text

    together(iec, second)
