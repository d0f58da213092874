"""Key server and member in one process, over real sockets; only the kernel is a stand-in."""

from __future__ import annotations

import ast
import asyncio
import base64
import errno
import json
import re
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gdoi_xfrm import InstallSa, KernelError, Operation, Policy, PolicyKey, SaState, UpdatePolicy

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon import gcks, gm
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.control import CommandFailed
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.daemon.keylog import KeyLogFile
from gdoi_plugin.daemon.log import Log
from gdoi_plugin.daemon.notices import Exhausted, Expired, NotRestored
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.daemon.watch import Counters
from gdoi_plugin.protocol.dpd import DpdConfig
from gdoi_plugin.protocol.member import MemberState
from tests.daemon.children import ROOT
from tests.daemon.configs import PSK, write
from tests.daemon.test_udp import free_port

PATIENCE = 90.0
REFUSED = KernelError(errno.ENOBUFS, "XFRM_MSG_NEWSA")


class FakeXfrm:
    """OwnTables that take everything, except what a test has them refuse."""

    refusals: list[KernelError] = []
    transactions: list[Sequence[Operation]] = []
    closed = 0
    policies: dict[PolicyKey, Policy] = {}

    def transaction(self, operations: Sequence[Operation]) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.transactions.append(operations)

    def find_sa(self, *_: object) -> None:
        if self.refusals:
            raise self.refusals.pop()

    def find_policy(self, *_: object) -> None:
        """None is there."""

    def dump_policies(self) -> list[Policy]:
        return []

    def own(self, *_: object) -> None: ...

    def look_at_sas(self) -> None: ...

    def save_numbers(self, *, at_once: bool) -> None: ...

    def dump_sas(self) -> list[SaState]:
        return []

    def close(self) -> None:
        type(self).closed += 1


class NoWatch:
    """Nobody else is at that kernel."""

    counters = Counters()
    deadline = None
    contested, missing = False, 0

    def start(self) -> None: ...

    def tick(self, _: float) -> None: ...

    def close(self) -> None: ...


class Pair:
    """Both daemons' files; multicast rekeys to a port that is neither's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = [free_port(), free_port(), free_port()]
        self.server_log, self.member_log = folder / "gcks.log", folder / "gm.log"
        self.state = folder / "gcks.sqlite"
        (folder / "psk").write_text(PSK)
        self.gcks = write(
            folder,
            f"""
[key_server]
address = "127.0.0.9"
port = {self.ports[0]}
nat_traversal = false
state = "{self.state}"
control = "{folder}/gcks.vici"
proposals = ["aes128-sha256-ecp256"]

[[peer]]
address = "127.0.0.1"
psk_file = "psk"

[[group]]
name = "video"
id = 1
members = ["127.0.0.1"]

[group.rekey]
address = "239.192.77.9"
port = {self.ports[2]}
signature = "ecdsa256"

[[group.tek]]
destination = "239.192.1.1"

[[group.tek]]
destination = "239.192.1.2"
source = "127.0.0.1"
proposal = "aes128gcm16"
""",
            "gcks.toml",
        )
        self.gm = write(
            folder,
            f"""
[member]
address = "127.0.0.1"
port = {self.ports[1]}
nat_traversal = false
state = "{folder}/gm"
control = "{folder}/gm.vici"

[[group]]
name = "video"
id = 1
ack_jitter = "0s"
recovery_delay = "0s"

[[group.key_server]]
address = "127.0.0.9"
port = {self.ports[0]}
psk_file = "psk"
""",
            "gm.toml",
        )

    def server(self) -> KeyServerDaemon:
        log = Log.open(self.server_log, "debug")
        return KeyServerDaemon(KeyServerDaemonConfig(self.gcks), log, None)

    def member(self) -> MemberDaemon:
        log = Log.open(self.member_log, "debug")
        keylog = KeyLogFile(self.folder / "keys")
        return MemberDaemon(MemberDaemonConfig(self.gm), log, keylog)

    def logged(self, event: str) -> list[dict[str, Any]]:
        text = "".join(log.read_text() for log in (self.server_log, self.member_log))
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(FakeXfrm, "refusals", [])
    monkeypatch.setattr(FakeXfrm, "transactions", [])
    monkeypatch.setattr(FakeXfrm, "closed", 0)
    monkeypatch.setattr(gm, "OwnTables", lambda *_: FakeXfrm())
    monkeypatch.setattr(gm, "KernelWatch", lambda *_: NoWatch())
    monkeypatch.setattr(gm, "probe", lambda **_: None)
    return Pair(tmp_path)


def option(pair: Pair, text: str) -> None:
    """One more of the member's."""
    pair.gm.write_text(pair.gm.read_text().replace("[member]\n", f"[member]\n{text}\n"))


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.005)


Scenario = Callable[[KeyServerDaemon, MemberDaemon], Awaitable[None]]


def together(pair: Pair, scenario: Scenario) -> None:
    """Both daemons until the scenario is over; then both stop and must do so in time."""

    async def main() -> None:
        server, member = pair.server(), pair.member()
        running = [asyncio.ensure_future(server.run())]
        await until(lambda: server.sockets.open or running[0].done(), "the key server starts")
        running.append(asyncio.ensure_future(member.run()))
        try:
            groups = member.member.groups.values()
            await until(
                lambda: (
                    any(group.state is MemberState.REGISTERED for group in groups)
                    or any(task.done() for task in running)
                ),
                "registered",
            )
            await scenario(server, member)
        finally:
            server._stop.set()
            member._stop.set()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*running)

    asyncio.run(main())


async def rekeyed(server: KeyServerDaemon, member: MemberDaemon, **options: str) -> None:
    group = member.member.groups["video"]
    before = group.counters.rekeys_received
    server.commands.rekey({"group": "video", **options})
    await until(lambda: group.counters.rekeys_received > before, "the rekey arrives")


def pages(server: KeyServerDaemon) -> list[tuple[int, int]]:
    ledger = server.engine.groups[1].ledger.values()
    return [(len(page.acknowledged), len(page.expected)) for page in ledger]


# -- the whole of it -----------------------------------------------------------------------------


def test_registered_rekeyed_acknowledged(pair: Pair) -> None:
    """The ACK leaves from the port the rekey came to, though it is not the member's own."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        await rekeyed(server, member)
        await rekeyed(server, member, kek="yes")
        await until(lambda: pages(server) == [(1, 1), (1, 1)], "acknowledged")
        rekey_port = pair.ports[2]
        assert {(str(peer.host), peer.port) for peer in member.sockets.open} == {
            ("127.0.0.1", pair.ports[1]),
            ("127.0.0.1", rekey_port),
            ("239.192.77.9", rekey_port),
        }

    together(pair, scenario)
    assert FakeXfrm.closed == 1
    assert pair.logged("bug") == []
    assert [line for line in pair.logged("control") if line["trigger"] == "bad-event"] == []
    cookie, _, key = (pair.folder / "keys").read_text().strip().partition(",")
    assert (len(cookie), len(key)) == (16, 32)


def test_a_group_with_a_key_tree_evicts_and_readmits(pair: Pair) -> None:
    """By configuration alone: ACKs keyed by the leaf, eviction that lasts, a way back."""
    text = pair.gcks.read_text().replace(
        'signature = "ecdsa256"',
        'signature = "ecdsa256"\nkek_management = "lkh"\nlkh_members = 8\nack = "lkh-sha256"',
    )
    pair.gcks.write_text(text)

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        assert group.kek is not None
        assert len(group.kek.kek.path) > 1
        (told,) = server.commands.list_groups({})
        assert (told["key-management"], told["leaves"], told["capacity"]) == ("lkh", "1", "8")
        (listed,) = server.commands.list_members({})
        assert listed["leaf"] == str(group.kek.kek.path[0].lkh_id)
        await rekeyed(server, member)
        await rekeyed(server, member, kek="yes")
        # the KEK by update arrays, then the TEKs under it
        await until(lambda: pages(server) == [(1, 1)] * 3, "acknowledged")
        answer = server.commands.evict({"group": "video", "identities": ["127.0.0.1"]})
        assert (answer["evicted"], answer["registered"]) == ("1", "1")
        assert answer["denied"] == ["127.0.0.1"]
        failed = group.counters.registrations
        member.commands.register({"group": "video"})
        await until(lambda: group.last_failure, "refused")
        assert group.counters.registrations == failed
        assert (
            server.commands.admit({"group": "video", "identities": ["127.0.0.1"]})["admitted"]
            == "1"
        )
        await until(lambda: group.counters.registrations > failed, "back")

    together(pair, scenario)
    assert [line["member"] for line in pair.logged("member-evicted")] == ["127.0.0.1"]
    assert pair.logged("bug") == []


def test_sender_ids_by_configuration_alone(pair: Pair) -> None:
    """Asked for, given to the sender of the pair's SA in GCM, shown; others the next time."""
    pair.gm.write_text(pair.gm.read_text().replace("[[group]]\n", "[[group]]\nsender_ids = 2\n"))

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        (shown,) = member.commands.list_groups({})
        assert (shown["sender-ids"], shown["sid-bits"]) == (["0", "1"], "16")
        member.commands.register({"group": "video"})
        group = member.member.groups["video"]
        await until(lambda: group.counters.registrations == 2, "registered again")
        (shown,) = member.commands.list_groups({})
        assert shown["sender-ids"] == ["2", "3"]
        (told,) = server.commands.list_groups({})
        assert (told["next-sender-id"], told["sid-bits"]) == ("4", "16")

    together(pair, scenario)
    assert [line["sender-ids"] for line in pair.logged("member-registered")] == ["0, 1", "2, 3"]
    assert pair.logged("bug") == []


@pytest.mark.parametrize("named", [[], "127.0.0.1", ["keyid:xyz"]])
def test_evict_says_what_is_no_identity(pair: Pair, named: Any) -> None:
    async def scenario(server: KeyServerDaemon, _: MemberDaemon) -> None:
        with pytest.raises(CommandFailed, match="identities"):
            server.commands.evict({"group": "video", "identities": named})
        assert server.engine.groups[1].denied == set()

    together(pair, scenario)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Every key that is made while the test runs."""
    seen: set[bytes] = {PSK.encode()}
    init = Secret.__init__

    def noting(self: Secret, octets: bytes) -> None:
        seen.add(bytes(octets))
        init(self, octets)

    monkeypatch.setattr(Secret, "__init__", noting)
    return seen


def shapes(secret: bytes) -> list[str]:
    return [
        secret.hex(),
        secret.hex().upper(),
        secret.hex(":"),
        repr(secret)[2:-1],
        json.dumps(repr(secret)[2:-1])[1:-1],
        secret.decode("latin-1"),
        base64.b64encode(secret).decode()[: len(secret)],
        str(list(secret))[1:-1],
    ]


def test_no_key_in_any_log(pair: Pair, secrets: set[bytes]) -> None:
    """At debug level, with rekeys, a refusing kernel, a failing store and rubbish."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        await rekeyed(server, member)
        FakeXfrm.refusals.append(REFUSED)
        await rekeyed(server, member, kek="yes")
        await until(lambda: pair.logged("install-failed"), "the kernel refuses")
        group = member.member.groups["video"]
        await until(lambda: group.counters.registrations == 2, "registered again")
        with closing(sqlite3.connect(pair.state)) as other:
            other.execute("DROP TABLE groups")
        with pytest.raises(CommandFailed):
            server.commands.rekey({"group": "video"})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rubbish:
            for size in range(0, 200, 7):
                rubbish.sendto(b"\x77" * size, ("127.0.0.9", pair.ports[0]))
                rubbish.sendto(b"\x77" * size, ("127.0.0.1", pair.ports[1]))
        await until(lambda: server.log.drops and member.log.drops, "rubbish is heard")

    together(pair, scenario)
    keys = [secret for secret in secrets if len(secret) >= 8]
    assert len(keys) > 20
    written = pair.server_log.read_text() + pair.member_log.read_text()
    assert "store-failed" in written
    assert "install-failed" in written
    for secret in keys:
        for shape in shapes(secret):
            assert shape not in written


def test_every_event_reaches_control_clients() -> None:
    """What engines and daemons may tell is what the daemons' control sockets offer."""
    protocol, daemon = ROOT / "gdoi_plugin" / "protocol", ROOT / "gdoi_plugin" / "daemon"
    # Named in a plan and told by the member.
    told = {"sa-installed", "sa-sending", "sa-removed"}
    assert all(f'("{name}", ' in (protocol / "rollover.py").read_text() for name in told)
    # What a daemon only logs is no Event.
    names = {"_event", "Event", "event", "group_event"}
    tellers = [(path, names) for path in protocol.glob("*.py")]
    tellers += [(path, {"Event"}) for path in daemon.rglob("*.py")]
    for file, names in tellers:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            literals = [
                argument.value
                for argument in node.args[:2]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
            if called in names and literals:
                told.add(literals[0])
    assert told == {*gcks.EVENTS, *gm.EVENTS}


# -- phase 1 between registrations ---------------------------------------------------------------


def test_registrations_share_a_phase_1_until_the_key_server_stops(pair: Pair) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        for count in (2, 3):
            member.commands.register({})
            await until(lambda n=count: group.counters.registrations == n, "again")  # type: ignore[misc]
        assert len(server.engine.isakmp.sessions) == 1
        server._stop.set()
        await until(lambda: group.registrar.association is None, "the key server's Delete")
        assert group.kek is not None

    together(pair, scenario)
    assert len(pair.logged("phase1-established")) == 2, "once at either end"
    (deleted,) = pair.logged("phase1-deleted")
    assert (deleted["reason"], deleted["group"]) == ("peer", "video")


def test_both_ask_whether_the_other_is_alive(pair: Pair) -> None:
    """With ``dpd_delay``; who is asked answers whatever its own says."""
    asking = 'dpd_delay = "0.1s"'
    pair.gm.write_text(pair.gm.read_text() + asking)
    started = 'proposals = ["aes128-sha256-ecp256"]'
    written = pair.gcks.read_text().replace(started, f'{started}\ndpd_delay = "0.3s"')
    pair.gcks.write_text(written)

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        mine = member.member.groups["video"].registrar.association
        (session,) = server.engine.isakmp.sessions.values()
        assert mine is not None
        began = mine.dpd.seq
        await until(lambda: mine.dpd.seq >= began + 3, "the member asks and is answered")
        assert session.association.dpd.heard_at > session.sa.established
        mine.dpd.config = DpdConfig()
        began = session.association.dpd.seq
        await until(lambda: session.association.dpd.seq >= began + 2, "the key server asks")

    together(pair, scenario)
    assert {line["reason"] for line in pair.logged("phase1-deleted")} <= {"peer"}


# -- the kernel says no ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EPERM", "EEXIST", "ESRCH", "ENOMEM", "ENOBUFS"])
def test_a_refused_rekey_is_not_acknowledged(pair: Pair, name: str) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        FakeXfrm.refusals.append(KernelError(getattr(errno, name), "XFRM_MSG_NEWSA"))
        await rekeyed(server, member)
        group = member.member.groups["video"]
        await until(lambda: group.counters.registrations == 2, "registered again")
        assert pages(server) == [(0, 1)]
        await rekeyed(server, member)
        await until(lambda: pages(server) == [(0, 1), (1, 1)], "acknowledged")
        assert group.counters.acknowledged == 1

    together(pair, scenario)
    (told,) = pair.logged("install-failed")
    assert re.fullmatch(rf"XFRM_MSG_NEWSA: .+ \({name}\)", told["error"])
    assert [told["seq"] for told in pair.logged("rekey-acknowledged")] == [2]


@pytest.mark.parametrize("whole", [False, True])
def test_who_cannot_mend_the_kernel_registers(pair: Pair, whole: bool) -> None:
    """SAs of a group; or nothing that could be told apart, so all groups."""

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        held = [h.tek for h in group.rollover.held.values()]
        lost = [] if whole else [member._kernels["video"].key(held[0])]
        member._kernel_told([NotRestored(lost, [], "EEXIST", give_up=False)])
        assert group.registrar.attempt is None
        member._kernel_told([NotRestored(lost, [], "EEXIST", give_up=True)])
        await until(lambda: group.counters.registrations == 2, "registered again")
        member._kernel_told([Exhausted(lost)])
        await until(lambda: group.counters.registrations == 3, "and again")
        stats = member.commands.stats({})["kernel"]
        assert stats == {"repairs": "0", "overruns": "0"}

    together(pair, scenario)
    assert len(pair.logged("kernel-not-restored")) == 2
    assert len(pair.logged("sequence-exhausted")) == 1


@pytest.mark.parametrize(("hard", "event"), [(False, "sa-expiring"), (True, "sa-expired")])
def test_what_the_kernel_says_of_lifetimes_reaches_the_group(
    pair: Pair, hard: bool, event: str
) -> None:
    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        (spi, held), *_rest = group.rollover.held.items()
        key = member._kernels["video"].key(held.tek)
        # Its own clock says the same, as it would.
        group.rollover.held = {**group.rollover.held, spi: replace(held, expires=0.0)}
        member._kernel_told([Expired(replace(key, spi=key.spi ^ 1), hard), Expired(key, hard)])
        await until(lambda: pair.logged(event), "told")

    together(pair, scenario)
    assert len(pair.logged(event)) == 1, "once, of the group's own SA"


def test_an_sa_that_cannot_be_read_is_said_to_the_operator(pair: Pair) -> None:
    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        assert len(list(member.commands.list_sas({}))) == 2
        FakeXfrm.refusals.append(REFUSED)
        with pytest.raises(CommandFailed, match="ENOBUFS"):
            list(member.commands.list_sas({}))

    together(pair, scenario)


def test_only_what_is_added_is_switched_to(pair: Pair) -> None:
    async def scenario(_server: KeyServerDaemon, _member: MemberDaemon) -> None:
        (first, *_) = FakeXfrm.transactions
        kinds = [type(operation) for operation in first]
        # In and out of both flows, and a block each way for whoever is not the GCM flow's sender,
        # and IGMP.
        assert kinds == [InstallSa, InstallSa, *[UpdatePolicy] * 8]

    together(pair, scenario)


# -- the store says no ----------------------------------------------------------------------------


def test_nothing_is_acknowledged_that_is_not_saved(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next rekey finds room again; what it acknowledges is all saved by then."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        with monkeypatch.context() as failing:

            def full(*_: object) -> None:
                raise StoreError("/s: disk full")

            failing.setattr(member._state, "save", full)
            await rekeyed(server, member)
            await until(lambda: group.counters.rekeys_installed == 1, "installed")
            assert pair.logged("store-failed")[0]["error"] == "/s: disk full"
        assert pages(server) == [(0, 1)]
        await rekeyed(server, member)
        await until(lambda: pages(server) == [(0, 1), (1, 1)], "acknowledged")
        assert pair.logged("store-recovered")
        saved = StateDirectory(pair.folder / "gm").load("video")
        assert saved is not None
        assert saved["keks"][-1]["seq"] == 2

    together(pair, scenario)


def test_nothing_is_pushed_that_is_not_saved(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        with monkeypatch.context() as failing:

            def full(*_: object) -> None:
                raise StoreError("/s: disk full")

            failing.setattr(server._store, "save", full)
            with pytest.raises(CommandFailed) as caught:
                server.commands.rekey({"group": "video"})
            said = "not sent yet, the state cannot be saved: /s: disk full"
            assert str(caught.value) == said
            with pytest.raises(CommandFailed):
                server.commands.rekey({"group": "1"})
        assert group.counters.rekeys_received == 0
        await rekeyed(server, member)
        saved = server._store.load()[1]
        assert [record["epoch"] for record in saved.rekeys] == [2, 3, 4]
        assert saved.group["epoch"] == 4

    together(pair, scenario)


def test_a_group_that_is_deleted_while_the_disk_is_full_is_deleted_when_it_is_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Delete is said once, under a KEK that nobody has afterwards."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        before = group.counters.registrations
        with monkeypatch.context() as failing:

            def full(*_: object) -> None:
                raise StoreError("/s: disk full")

            failing.setattr(server._store, "save", full)
            with pytest.raises(CommandFailed):
                server.commands.delete_group({"group": "video"})
        await until(lambda: group.counters.registrations > before, "registered again")
        await rekeyed(server, member)

    together(pair, scenario)
