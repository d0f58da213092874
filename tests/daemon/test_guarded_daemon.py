"""The agent around its guard: what comes first, what comes last, and when either is refused."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import replace
from ipaddress import ip_network

import pytest
from gdoi_xfrm import DefaultPolicy, KernelError, Policy, UpdatePolicy

from gdoi_plugin.daemon import gm, memory
from gdoi_plugin.daemon.errors import StartError
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.protocol.member import MemberState
from tests.daemon.test_daemons import (
    REFUSED,
    FakeXfrm,
    Pair,
    option,
    pages,
    pair,
    rekeyed,
    together,
    until,
)
from tests.kernel.namespaces import Namespace, ip

__all__ = ["pair"]


def test_policies_come_before_everything_else(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without ESP ends the start; what is to be blocked is blocked by then."""
    option(pair, 'protect = ["239.192.0.0/16"]')
    monkeypatch.setattr(gm, "probe", lambda **_: KernelError(errno.EPROTONOSUPPORT, "add SA"))

    async def main() -> None:
        member = pair.member()
        with pytest.raises(StartError, match="this kernel cannot hold"):
            await member.run()
        assert not member.sockets.open

    asyncio.run(main())
    (operations,) = FakeXfrm.transactions
    blocked = [str(p.selector.destination) for p in policies(operations) if p.action]
    assert blocked == ["239.192.0.0/16"] * 2


def policies(operations: object) -> list[Policy]:
    assert isinstance(operations, list)
    return [op.policy for op in operations if isinstance(op, UpdatePolicy)]


@pytest.mark.parametrize(
    ("text", "refuses", "why"),
    [
        ('protect = ["239.192.0.0/16"]', "transaction", "EPERM"),
        ('default_policy = "block"', "get_default", "EPERM"),
        ('default_policy = "block"', "set_default", "EPERM"),
    ],
)
def test_no_start_without_them(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, text: str, refuses: str, why: str
) -> None:
    option(pair, text)

    def refuse(*_: object) -> None:
        raise KernelError(errno.EPERM, refuses)

    monkeypatch.setattr(FakeXfrm, "get_default", lambda _: DefaultPolicy(), raising=False)
    monkeypatch.setattr(FakeXfrm, refuses, refuse, raising=False)

    async def main() -> None:
        member = pair.member()
        message = f"no policies that keep groups from passing in clear: {refuses}: .*{why}"
        with pytest.raises(StartError, match=message):
            await member.run()
        assert not member.sockets.open

    asyncio.run(main())


def test_a_stop_that_the_kernel_refuses_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    option(pair, 'on_stop = "block"')

    def refuse(_: object) -> None:
        raise KernelError(errno.ENOBUFS, "XFRM_MSG_GETSA dump")

    monkeypatch.setattr(FakeXfrm, "dump_sas", refuse, raising=False)

    async def scenario(_server: KeyServerDaemon, _member: MemberDaemon) -> None:
        """Nothing but start and stop."""

    together(pair, scenario)
    (told,) = pair.logged("stop-failed")
    assert told["error"].startswith("XFRM_MSG_GETSA dump")
    assert pair.logged("bug") == []


def test_flows_that_cannot_be_remembered_are_not_installed(pair: Pair) -> None:
    """An acknowledged policy is to be blocked after a reboot, too."""
    saved = pair.folder / "gm" / "_guard.json"

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        assert {str(flow.destination) for flow in member._memory.groups["video"]} == {
            "239.192.1.1",
            "239.192.1.2",
        }
        done = len(FakeXfrm.transactions)
        member._memory._flows = {"video": {}}
        saved.unlink()
        saved.mkdir()
        group = member.member.groups["video"]
        member.commands.register({"group": "video"})
        await until(lambda: pair.logged("install-failed"), "refused")
        assert len(FakeXfrm.transactions) == done
        saved.rmdir()
        member.commands.register({"group": "video"})
        await until(lambda: group.counters.registrations == 2, "registered again")
        assert group.state is MemberState.REGISTERED
        assert saved.is_file()

    together(pair, scenario)
    (failed,) = pair.logged("install-failed")
    assert "_guard.json" in failed["error"]


def test_more_flows_than_can_be_remembered_are_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words and without an ACK, until a prefix blocks what they would have to be known for."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        done = len(FakeXfrm.transactions)
        member._memory._flows = {"video": {}}
        monkeypatch.setattr(memory, "MAX_FLOWS", 1)
        await rekeyed(server, member)
        assert (group.counters.rekeys_refused, group.counters.acknowledged) == (1, 0)
        assert (len(FakeXfrm.transactions), pages(server)) == (done, [(0, 1)])
        (failed, *_) = pair.logged("install-failed")
        assert "put prefixes that they lie in into member.protect" in failed["error"]
        fence = replace(member._guard._fence, protect=(ip_network("239.192.1.1/32"),))
        member._guard._fence = fence
        before = group.counters.registrations
        await until(lambda: group.counters.registrations > before, "registered again")
        (kept,) = member._memory.groups["video"]
        assert str(kept.destination) == "239.192.1.2"

    together(pair, scenario)


def test_an_exception_that_would_pass_what_a_tek_protects(pair: Pair) -> None:
    text = pair.gcks.read_text().replace(
        'destination = "239.192.1.1"\n',
        'destination = "239.192.1.1"\nprotocol = 17\ndestination_port = 9875\n',
    )
    pair.gcks.write_text(text)
    bypass = 'destination = "239.192.1.1/32"\nprotocol = 17\ndestination_port = 9875\n'
    whole = pair.gm.read_text().replace("[[group]]", f"[[member.bypass]]\n{bypass}\n[[group]]", 1)
    pair.gm.write_text(whole)

    async def main() -> None:
        server, member = pair.server(), pair.member()
        running = [asyncio.ensure_future(daemon.run()) for daemon in (server, member)]
        try:
            await until(lambda: pair.logged("install-failed"), "refused")
            assert member.member.groups["video"].state is MemberState.REGISTERING
            (begun,) = FakeXfrm.transactions
            assert not any(policy.templates for policy in policies(begun))
        finally:
            server._stop.set()
            member._stop.set()
            await asyncio.gather(*running)

    asyncio.run(main())
    assert "member.bypass lets in" in pair.logged("install-failed")[0]["error"]


def test_what_comes_in_puts_off_no_look_at_the_network(pair: Pair) -> None:
    """Datagrams that come more often than it is due would keep it from ever coming."""

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        member._whereabouts.problem = "another program has the port"
        member._look_again = None
        for _again in range(2):
            member._listen()
            due, member._look_again = member._look_again, 1.0
            assert due is not None
        assert due == 1.0
        member._look()
        assert member._look_again is None

    together(pair, scenario)


def test_lans_that_the_kernel_refuses_are_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other link has to change for it, and nothing that comes in puts it off."""
    option(pair, 'firewall = "none"')
    pair.gm.write_text(pair.gm.read_text().replace("id = 1\n", 'id = 1\nlan = ["lan1"]\n'))
    monkeypatch.setattr(gm, "LOOK_AGAIN", 0.1)

    def opened() -> set[Policy]:
        done = [policy for ops in FakeXfrm.transactions for policy in policies(ops)]
        return {policy for policy in done if policy.selector.interface}

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        assert not opened()
        FakeXfrm.refusals.append(REFUSED)
        ip("link add lan1 type veth peer name far1")
        await until(lambda: pair.logged("move-failed"), "refused")
        member._listen()
        assert member._look_again is not None
        await until(opened, "tried again")
        index = socket.if_nametoindex("lan1")
        assert {str(policy.selector.destination) for policy in opened()} == {
            "239.192.1.1/32",
            "239.192.1.2/32",
        }
        assert {policy.selector.interface for policy in opened()} == {index}
        await until(lambda: member._look_again is None, "done")

    with Namespace() as fresh, fresh.entered():
        together(pair, scenario)
    assert [told["group"] for told in pair.logged("move-failed")] == ["video"]
    assert pair.logged("bug") == []
