"""LANs behind hosts of a network, and multicast routing between them and the bridge.

::

    gdoi-1a2b3c-lan1        gdoi-1a2b3c-gm1
      eth0 10.66.101.2 ------ eth1 10.66.101.1
                              eth0 10.66.0.1 ---- the bridge
    gdoi-1a2b3c-lan2        gdoi-1a2b3c-gm2           |
      eth0 10.66.102.2 ------ eth1 10.66.102.1        |
                              eth0 10.66.0.2 ---------+

Routes are static, for unicast in the kernel, for multicast by smcroute. The kernel checks where
packets come from (rp_filter), as a router's should.
"""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from gdoi_lab.net import INTERFACE, Host, Network, Process
from gdoi_lab.waiting import wait_until

LAN_INTERFACE = "eth1"
SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    **{f"net/ipv4/conf/{name}/rp_filter": 1 for name in ("all", INTERFACE, LAN_INTERFACE)},
}
"""Of a router."""
ROUTES_LIMIT = 60.0


def add_lan(network: Network, router: Host, name: str, number: int) -> Host:
    """A host on a network of its own behind ``router``; ``number`` tells the LANs apart."""
    prefix = f"10.66.{100 + number}"
    host = Host(name, f"gdoi-{network.id}-{name}", address4=f"{prefix}.2")
    network.hosts[name] = host  # so that it ends with the network
    subprocess.run(["ip", "netns", "add", host.namespace], check=True)
    router.run(
        ["ip", "-batch", "-"],
        stdin=f"link add {LAN_INTERFACE} type veth peer name {INTERFACE} netns {host.namespace}\n"
        f"link set {LAN_INTERFACE} up\n"
        f"address add {prefix}.1/24 dev {LAN_INTERFACE}\n",
    )
    host.run(
        ["ip", "-batch", "-"],
        stdin="link set lo up\n"
        f"link set {INTERFACE} up\n"
        f"address add {host.address4}/24 dev {INTERFACE}\n"
        f"route add default via {prefix}.1\n"
        f"route add multicast 224.0.0.0/4 dev {INTERFACE}\n",
    )
    router.sysctl(SYSCTLS)
    for other in network.hosts.values():
        if other.namespace != router.namespace and other.address4.startswith("10.66.0."):
            other.run(["ip", "route", "add", f"{prefix}.0/24", "via", router.address4])
    return host


def routes(groups: Iterable[str], inside: Iterable[str], outside: Iterable[str]) -> list[str]:
    """Lines of /etc/smcroute.conf, by the addresses of those who send."""
    ways = [
        *((LAN_INTERFACE, host, INTERFACE) for host in inside),
        *((INTERFACE, host, LAN_INTERFACE) for host in outside),
    ]
    return [
        *(f"phyint {name} enable" for name in (INTERFACE, LAN_INTERFACE)),
        *(
            f"mroute from {origin} group {group} source {host} to {target}"
            for group in groups
            for origin, host, target in ways
        ),
    ]


def route_multicast(
    router: Host, work: Path, groups: Sequence[str], inside: Iterable[Host], outside: Iterable[Host]
) -> Process:
    """smcroute at ``router``: what hosts ``inside`` send goes out, and the other way round.

    Returns when the kernel has all routes.
    """
    lines = routes(groups, [h.address4 for h in inside], [h.address4 for h in outside])
    wanted = sum(line.startswith("mroute ") for line in lines)
    work.mkdir(parents=True, exist_ok=True)
    config = work / f"{router.name}-smcroute.conf"
    config.write_text("\n".join([*lines, ""]))
    # Without ``-N`` every interface would become one of multicast routing.
    argv = ["smcrouted", "-n", "-N", "-f", str(config), "-i", router.name]
    argv += ["-P", str(work / f"{router.name}.pid"), "-u", str(work / f"{router.name}.sock")]
    process = router.popen(argv, work / f"{router.name}-smcroute.log")
    wait_until(
        lambda: router.run(["ip", "mroute"]).stdout.count("Iif:") >= wanted,
        ROUTES_LIMIT,
        f"the multicast routes of {router.name}",
    )
    return process
