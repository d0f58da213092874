"""A router's policies for its LANs, on the kernel these tests run on: policies need no ESP."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from gdoi_xfrm import Direction, Policy, Selector, Xfrm

from gdoi_plugin.daemon import forwarding as forwarding_module
from gdoi_plugin.daemon.config_kernel import LOWEST
from gdoi_plugin.daemon.errors import FirewallError
from gdoi_plugin.daemon.firewall import PROGRAMS, TABLE, Firewall, Patience
from gdoi_plugin.daemon.forwarding import LAN_PRIORITY, Forwarding, chain_of
from gdoi_plugin.daemon.kernel_options import MOST_SPECIFIC
from tests.kernel.namespaces import Namespace, ip

REQID = 0x40000007
CHAIN = "GDOI-40000007-legacy"
GROUP, OTHER = ip_address("239.1.1.1"), ip_address("239.1.1.2")
ALL = ip_network("0.0.0.0/0")


@pytest.fixture
def xfrm() -> Iterator[Xfrm]:
    """Of a host with two LANs and another interface."""
    with Namespace() as fresh, fresh.entered():
        ip("link add lan1 type veth peer name lan2")
        ip("link add wan type veth peer name elsewhere")
        with Xfrm() as opened:
            yield opened


def lan_policy(name: str, group: Any = GROUP) -> Policy:
    chosen = Selector(ALL, ip_network(group), interface=socket.if_nametoindex(name))
    return Policy(chosen, Direction.OUT, LAN_PRIORITY)


def apply(xfrm: Xfrm, forwarding: Forwarding, *groups: Any) -> set[Policy]:
    xfrm.transaction(forwarding.operations(groups))
    forwarding.know(groups)
    return set(xfrm.dump_policies())


def test_a_policy_for_each_lan_and_group_before_those_that_encrypt(xfrm: Xfrm) -> None:
    forwarding = Forwarding(xfrm, REQID, ["lan1", "lan2"])
    wanted = {lan_policy(name, group) for name in ("lan1", "lan2") for group in (GROUP, OTHER)}
    assert apply(xfrm, forwarding, GROUP, OTHER) == wanted
    assert apply(xfrm, forwarding, GROUP) == wanted, "the other group has not changed"
    assert LAN_PRIORITY < LOWEST - MOST_SPECIFIC


def test_a_lan_that_comes_later_or_again(xfrm: Xfrm) -> None:
    forwarding = Forwarding(xfrm, REQID, ["lan1", "lan3"])
    assert apply(xfrm, forwarding, GROUP) == {lan_policy("lan1")}
    ip("link add lan3 type veth peer name far3")
    forwarding.follow_links()
    before = lan_policy("lan3")
    assert set(xfrm.dump_policies()) == {lan_policy("lan1"), before}
    ip("link delete lan3")
    ip("link add lan3 type veth peer name far3")
    assert lan_policy("lan3") != before
    forwarding.follow_links()
    assert set(xfrm.dump_policies()) == {lan_policy("lan1"), lan_policy("lan3")}


def test_a_lan_that_is_back_for_one_group_is_back_for_all(xfrm: Xfrm) -> None:
    """A rekey may find it before anybody has told of it."""
    forwarding = Forwarding(xfrm, REQID, ["lan1", "lan3"])
    ip("link add lan3 type veth peer name far3")
    apply(xfrm, forwarding, GROUP, OTHER)
    former = lan_policy("lan3", OTHER)
    ip("link delete lan3")
    ip("link add lan3 type veth peer name far3")
    wanted = {lan_policy(name, group) for name in ("lan1", "lan3") for group in (GROUP, OTHER)}
    assert former not in wanted
    assert apply(xfrm, forwarding, GROUP) == wanted - {lan_policy("lan3", OTHER)} | {former}
    forwarding.follow_links()
    assert set(xfrm.dump_policies()) == wanted


def test_what_is_no_lan_any_more_is_closed(xfrm: Xfrm) -> None:
    """Of a former run; other programs' policies, and other groups', stay."""
    apply(xfrm, Forwarding(xfrm, REQID, ["lan1", "wan"]), GROUP, OTHER)
    somebodys = Policy(Selector(ALL, ip_network(GROUP)), Direction.OUT, LAN_PRIORITY + 1)
    xfrm.add_policy(somebodys)
    others = {lan_policy("lan1", OTHER), lan_policy("wan", OTHER), somebodys}
    assert apply(xfrm, Forwarding(xfrm, REQID, ["lan1"]), GROUP) == others | {lan_policy("lan1")}
    no_router = Forwarding(xfrm, REQID)
    (asked,) = no_router.operations([GROUP])
    assert no_router.operations([GROUP]) == [asked], "till it is done"
    assert apply(xfrm, no_router, GROUP) == others
    assert no_router.operations([GROUP]) == [], "looked for once"


def test_lans_of_a_former_configuration_are_closed_from_the_beginning(xfrm: Xfrm) -> None:
    apply(xfrm, Forwarding(xfrm, REQID, ["lan1"]), GROUP, OTHER)
    Forwarding(xfrm, REQID, ["lan2"]).begin([GROUP])
    assert set(xfrm.dump_policies()) == {lan_policy("lan2"), lan_policy("lan1", OTHER)}
    Forwarding(xfrm, REQID).begin([GROUP, OTHER])
    assert xfrm.dump_policies() == []


def test_interfaces_that_cannot_be_listed(xfrm: Xfrm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The member's transaction is refused then, and it goes on."""
    forwarding = Forwarding(xfrm, REQID, ["lan1"])
    before = apply(xfrm, forwarding, GROUP)

    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "if_nameindex", refuse)
    with pytest.raises(FirewallError, match="Too many open files"):
        forwarding.operations([OTHER])
    with pytest.raises(FirewallError, match="Too many open files"):
        forwarding.follow_links()
    assert set(xfrm.dump_policies()) == before


def test_the_end(xfrm: Xfrm) -> None:
    forwarding = Forwarding(xfrm, REQID, ["lan1"])
    assert len(apply(xfrm, forwarding, GROUP, OTHER)) == 2
    forwarding.end()
    assert xfrm.dump_policies() == []


def test_the_rules_of_a_chain() -> None:
    forwarding = Forwarding(None, REQID, ["lan1", "lan2"])  # type: ignore[arg-type]
    names = [chain_of(program, REQID) for program in PROGRAMS]
    assert names == ["GDOI-40000007", "GDOI-40000007-legacy", "GDOI-40000007-nft"]
    assert forwarding.rules() == [
        "-i lan1 -j RETURN",
        "-i lan2 -j RETURN",
        "-m policy --dir out --pol ipsec -j DROP",
        "-m policy --dir in --pol ipsec --reqid 1073741831 -j RETURN",
        "-j DROP",
    ]


def test_who_is_no_router_needs_no_firewall(xfrm: Xfrm) -> None:
    forwarding = Forwarding(xfrm, REQID, (), Firewall("no-such-program"))
    forwarding.begin([])
    forwarding.close_to_clear([GROUP])
    asyncio.run(forwarding.check())


def test_a_router_without_the_program_does_not_start(xfrm: Xfrm) -> None:
    forwarding = Forwarding(xfrm, REQID, ["lan1"], Firewall("no-such-program"))
    with pytest.raises(FirewallError, match=r"no-such-program: .*No such file"):
        forwarding.begin([])
    for _again in range(2):
        with pytest.raises(FirewallError, match=r"no-such-program: .*No such file"):
            forwarding.close_to_clear([GROUP])
    asyncio.run(forwarding.check())  # nothing has been made that could be missing


class SlowProgram:
    """Stands in for iptables while another program has the tables: it waits for a pipe's end."""

    def __init__(self, folder: Path) -> None:
        self._log, self._pipe, self.path = folder / "log", folder / "pipe", folder / "slow"
        self.path.write_text(
            f'#!/bin/sh\necho "$@" >> {self._log}\n'
            f"if [ -p {self._pipe} ]; then exec cat {self._pipe}; fi\n"
        )
        self.path.chmod(0o700)
        (folder / "slow-restore").symlink_to(self.path)

    @property
    def calls(self) -> int:
        return len(self._log.read_text().splitlines())

    def hold(self) -> None:
        os.mkfifo(self._pipe)

    def let_go(self) -> None:
        with self._pipe.open("w"):  # once it reads
            self._pipe.unlink()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_nothing_waits_for_a_check(xfrm: Xfrm, tmp_path: Path) -> None:
    program = SlowProgram(tmp_path)

    async def main() -> None:
        forwarding = Forwarding(xfrm, REQID, ["lan1"], Firewall(str(program.path)))
        forwarding.begin([GROUP])
        assert program.calls == 2
        program.hold()
        check = asyncio.ensure_future(forwarding.check())
        await until(lambda: program.calls == 3)
        forwarding.close_to_clear([GROUP])
        assert not check.done()
        assert program.calls == 3
        program.let_go()
        await check
        assert program.calls == 4
        forwarding.end()
        ended = program.calls
        await forwarding.check()
        assert program.calls == ended, "what is gone does not come back"

    asyncio.run(main())


def test_a_rekey_waits_for_a_while_only(
    xfrm: Xfrm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding_module, "HURRIED", Patience(1, 1))
    program = SlowProgram(tmp_path)
    forwarding = Forwarding(xfrm, REQID, ["lan1"], Firewall(str(program.path)))
    forwarding.begin([])
    program.hold()
    with pytest.raises(FirewallError, match="timed out"):
        forwarding.close_to_clear([GROUP])
    (tmp_path / "pipe").unlink()
    before = program.calls
    forwarding.close_to_clear([GROUP])
    assert program.calls == before + 2, "asked for again"


# -- netfilter, which the lab kernel has for iptables-legacy ---------------------------------------


def rules() -> set[str]:
    return {line for line in ip_tables("-S").split("\n") if line and not line.startswith("-P")}


def ip_tables(arguments: str) -> str:
    """Octets that are no UTF-8 are there and back as surrogates."""
    command = ["iptables-legacy", "-w", "-t", TABLE, *arguments.split()]
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")


@pytest.mark.uml
def test_the_rules_in_the_kernel(xfrm: Xfrm) -> None:
    forwarding = Forwarding(xfrm, REQID, ["lan1"], Firewall("iptables-legacy"))
    forwarding.begin([])
    chain = {
        f"-N {CHAIN}",
        f"-A {CHAIN} -i lan1 -j RETURN",
        f"-A {CHAIN} -m policy --dir out --pol ipsec -j DROP",
        f"-A {CHAIN} -m policy --dir in --pol ipsec --reqid {REQID} -j RETURN",
        f"-A {CHAIN} -j DROP",
    }
    asked = {f"-A FORWARD -d {group}/32 -j {CHAIN}" for group in (GROUP, OTHER)}
    assert rules() == chain
    forwarding.close_to_clear([GROUP])
    forwarding.close_to_clear([GROUP, OTHER])
    assert rules() == chain | asked
    assert ip_tables("-S FORWARD").count("-A FORWARD") == 2
    ip_tables("-F FORWARD")
    ip_tables(f"-F {CHAIN}")
    asyncio.run(forwarding.check())
    assert rules() == chain | asked
    forwarding.end()
    assert rules() == set()


@pytest.mark.uml
def test_another_lan_takes_the_place_of_the_first(xfrm: Xfrm) -> None:
    for name in ("lan1", "lan2"):
        forwarding = Forwarding(xfrm, REQID, [name], Firewall("iptables-legacy"))
        forwarding.begin([GROUP])
    assert f"-A {CHAIN} -i lan2 -j RETURN" in rules()
    assert f"-A {CHAIN} -i lan1 -j RETURN" not in rules()


@pytest.mark.uml
@pytest.mark.usefixtures("xfrm")
def test_what_netfilter_says() -> None:
    firewall = Firewall("iptables-legacy")
    with pytest.raises(FirewallError, match=r"iptables-legacy: chain X: .*no-such-\\xe9"):
        firewall.close("X", ["--no-such-\udce9"], [GROUP])
    assert rules() == set()


@pytest.mark.uml
@pytest.mark.usefixtures("xfrm")
def test_a_chain_goes_with_all_that_asks_it_and_nothing_else() -> None:
    firewall = Firewall("iptables-legacy")
    firewall.close("GDOI-1", ["-j DROP"], [GROUP])
    others = rules()
    for _again in range(2):
        firewall.close("GDOI-2", ["-j DROP"], [GROUP, OTHER])
    ip_tables("-A FORWARD -d 239.1.1.1 -j GDOI-2")  # twice the same
    assert ip_tables("-S FORWARD").count("GDOI-2") == 3
    for _again in range(2):
        firewall.remove("GDOI-2")
        assert rules() == others


@pytest.mark.uml
@pytest.mark.usefixtures("xfrm")
def test_rules_of_others_may_have_any_octets() -> None:
    """Latin-1, and what Unicode takes for the end of a line."""
    latin, line = names = ("caf\udce9", "line\u2028")
    there = [f":{name} - [0:0]\n" for name in (*names, "GDOI-1")]
    there += [f"-A {name} -j GDOI-1\n" for name in names]
    text = "".join([f"*{TABLE}\n", *there, "COMMIT\n"]).encode(errors="surrogateescape")
    subprocess.run(["iptables-legacy-restore", "--noflush"], input=text, check=True)
    firewall = Firewall("iptables-legacy")
    firewall.close("GDOI-1", ["-j DROP"], [GROUP])
    firewall.remove("GDOI-1")
    assert rules() == {f"-N {latin}", f"-N {line}"}
