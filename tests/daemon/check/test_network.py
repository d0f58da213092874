"""Interface, routes, joins and sysctls: broken in a namespace, found, and mended as it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gdoi_plugin.daemon.check import network
from gdoi_plugin.daemon.check.finding import Finding, Verdict
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import AbsentError
from tests.daemon.children import finished
from tests.daemon.configs import GCKS, write
from tests.kernel.namespaces import eventually, ip

from .mending import FAIL, OK, WARN, as_nobody, mended, the, verdicts

pytestmark = pytest.mark.usefixtures("own_host")
MEMBER = """\
[member]
interface = "net0"
{member}
[[group]]
name = "video"
id = 1
{group}
[[group.key_server]]
address = "{server}"
psk = "k"
"""


def member(
    folder: Path, member: str = "", group: str = "", server: str = "203.0.113.1"
) -> Callable[[], Iterator[Finding]]:
    """The tests of a configuration, as often as they are asked for."""
    path = write(folder, MEMBER.format(member=member, group=group, server=server))

    def tests() -> Iterator[Finding]:
        config = MemberDaemonConfig(path)
        try:
            config = config.here()
        except AbsentError as error:
            config.absent = error
        yield from network.check_member(config, tunnels=True)

    return tests


def sysctl(key: str, value: int) -> None:
    (Path("/proc/sys/net") / key).write_text(str(value))


@pytest.fixture
def in_order(own_host: None) -> None:  # noqa: ARG001 -- after it
    ip("route add 224.0.0.0/4 dev net0")
    sysctl("ipv4/conf/net0/accept_local", 1)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("address", ["", 'address = "2001:db8::11"'], ids=["IPv4", "IPv6"])
def test_nothing_is_wrong(tmp_path: Path, address: str) -> None:
    server = "2001:db8::1" if address else "203.0.113.1"
    found = list(member(tmp_path, address, server=server)())
    assert {finding.verdict for finding in found} == {OK}, found
    assert not any(finding.mend for finding in found)
    tests = {finding.test for finding in found}
    protocol = "MLD" if address else "IGMP"
    assert {"address", "interface net0", f"{protocol} join on net0"} <= tests


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize(
    ("breaking", "test", "verdict", "said"),
    [
        ("ip link set net0 down", "interface net0", FAIL, "it is down"),
        ("ip link set net0 multicast off", "interface net0", FAIL, "multicast is switched off"),
        (
            "sysctl -w net.ipv4.igmp_max_memberships=0",
            "IGMP join on net0",
            FAIL,
            "the kernel allows no more memberships",
        ),
        (
            "sysctl -w net.ipv4.conf.net0.force_igmp_version=2",
            "source-specific join on net0",
            WARN,
            "IGMPv2 is forced",
        ),
        ("ip route del 224.0.0.0/4; ip route del default", "route for multicast", WARN, "none"),
        (
            "ip route replace 224.0.0.0/4 dev lan0",
            "route for multicast",
            WARN,
            "leaves by lan0, and the group is on net0",
        ),
        (
            "ip route add 203.0.113.0/24 dev lan0; sysctl -w net.ipv4.conf.net0.rp_filter=1",
            "reverse path filter of net0",
            WARN,
            "strict",
        ),
        (
            "sysctl -w net.ipv4.conf.net0.accept_local=0",
            "accept_local of net0",
            WARN,
            "do not hear what this host itself sends",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) and part.startswith(("ip", "sysctl")) else "",
)
def test_what_is_broken_is_found_and_mended(
    tmp_path: Path, breaking: str, test: str, verdict: Verdict, said: str
) -> None:
    tests = member(tmp_path)
    assert the(tests(), test).verdict is OK
    finished(["sh", "-ec", breaking]).check_returncode()
    mended(tests, test, verdict, said)


def test_a_route_to_the_key_server(tmp_path: Path) -> None:
    ip("route del default")
    tests = member(tmp_path)
    mended(tests, "route to key server 203.0.113.1", FAIL, "none", GATEWAY="192.0.2.254")


def test_an_address_that_is_not_there(tmp_path: Path) -> None:
    ip("address del 192.0.2.11/24 dev net0")
    tests = member(tmp_path, 'address = "192.0.2.11"')
    assert len(list(tests())) == 1  # nothing else can be tried
    mended(tests, "address", FAIL, "192.0.2.11 is no address of net0")


def test_an_interface_that_is_not_there(tmp_path: Path) -> None:
    tests = member(tmp_path)
    ip("link del net0")
    (found,) = tests()
    assert found.verdict is FAIL
    assert "no interface net0; this host has lo" in found.found
    assert "ip link show" in found.mend


def test_no_carrier(tmp_path: Path) -> None:
    ip("link set net0peer down")
    # The kernel tells of a carrier that is gone up to a second later (linkwatch).
    eventually(lambda: "NO-CARRIER" in ip("link show net0"))
    found = the(member(tmp_path)(), "interface net0")
    assert (found.verdict, found.found) == (WARN, "no carrier: nothing is plugged in")


def test_a_router(tmp_path: Path) -> None:
    tests = member(tmp_path, 'firewall = "none"', 'lan = ["lan0", "lan1"]')
    mended(tests, "forwarding of a router", FAIL, "it is off")
    found = verdicts(tests())
    assert (found["interface lan0"], found["interface lan1"]) == (OK, WARN)
    assert found["multicast routing on net0"] is WARN


def test_a_key_server(tmp_path: Path) -> None:
    text = GCKS.replace('"127.0.0.1"', '"192.0.2.11"')
    config = KeyServerDaemonConfig(write(tmp_path, text))
    assert set(verdicts(network.check_key_server(config, 4)).values()) == {OK}
    ip("address del 192.0.2.11/24 dev net0")

    def tests() -> Iterator[Finding]:
        return network.check_key_server(config, 4)

    mended(tests, "address", FAIL, "192.0.2.11 is no address of this host", INTERFACE="net0")


def test_room_for_a_large_group_without_the_capability() -> None:
    """With it the kernel gives what is asked for."""
    found = network._room(1_000_000)
    assert found.verdict is OK
    said = as_nobody(lambda: network._room(1_000_000))
    assert str(network._room(1_000_000, forced=False)) == said  # as the unit has it
    assert "the kernel gives" in said
    assert "sysctl -w net.core.rmem_max=512000000" in said
