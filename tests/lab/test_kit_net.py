"""The lab's network: built, used, and gone without a trace. Needs no ESP, but root.

::

    gm1 ----+
    gm2 ----+-- br0 -- capture
    gcks ---+
"""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from gdoi_lab import net
from gdoi_lab.capture import Capture
from gdoi_lab.clear import count_capture
from gdoi_lab.errors import LabError
from gdoi_lab.net import Network, wait_until
from gdoi_lab.traffic import Traffic, deliveries

pytestmark = pytest.mark.uml

HOSTS = ["gm1", "gm2", "gcks"]
RATE = 200.0


def let_pass(seconds: float) -> None:
    """Time in which traffic flows; nothing is waited for."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, seconds + 5, "time to pass")


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


def links() -> str:
    listed = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True)
    return listed.stdout


def test_hosts_reach_each_other_at_once(tmp_path: Path) -> None:
    with Network(HOSTS, tmp_path) as network:
        for address in (network["gm2"].address4, network["gcks"].address6):
            script = (
                "import socket,sys;"
                "f=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET;"
                "s=socket.socket(f,socket.SOCK_DGRAM);s.settimeout(3);"
                "s.connect((sys.argv[1],9));s.send(b'x');"
                "\ntry: s.recv(1)\nexcept ConnectionRefusedError: print('refused')"
            )
            # Nobody listens: the answer is an ICMP error, so packets went both ways.
            done = network["gm1"].run(["python3", "-c", script, address])
            assert done.stdout.strip() == "refused"


def test_teardown_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "STOP_GRACE", 1.0)
    before, before_links = namespaces(), links()
    processes = []

    def interrupted() -> None:
        with Network(HOSTS, tmp_path) as network:
            script = "trap '' TERM; echo up; sleep 1000 & wait; sleep 1000"
            stubborn = network["gm1"].popen(["sh", "-c", script], tmp_path / "log")
            processes.extend([stubborn, network["gm2"].popen(["sleep", "1000"], tmp_path / "log2")])
            wait_until(lambda: "up" in stubborn.log_text(), 60, "the stubborn process")
            assert len(namespaces() - before) == 4
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert [process.status for process in processes] == [-signal.SIGKILL, -signal.SIGTERM]
    assert namespaces() == before
    assert links() == before_links
    sleeping = subprocess.run(["pgrep", "-f", "sleep 1000"], capture_output=True, check=False)
    assert sleeping.stdout == b""


def test_two_networks_at_once_do_not_meet(tmp_path: Path) -> None:
    with Network(HOSTS, tmp_path / "a") as one, Network(HOSTS, tmp_path / "b") as two:
        assert one["gm1"].namespace != two["gm1"].namespace
        assert one["gm1"].address4 == two["gm1"].address4


def test_a_failing_command_says_what_it_said(tmp_path: Path) -> None:
    with Network(["gm1"], tmp_path) as network:
        with pytest.raises(LabError, match=r"gm1: sh -c .* failed \(3\), saying: because"):
            network["gm1"].run(["sh", "-c", "echo because >&2; exit 3"])
        with pytest.raises(LabError, match=r"took longer than 0.2 s"):
            network["gm1"].run(["sleep", "5"], timeout=0.2)


def test_wait_until_names_what_did_not_come() -> None:
    with pytest.raises(LabError, match=r"waited 0.1 s for the moon"):
        wait_until(lambda: False, 0.1, "the moon")


@pytest.mark.parametrize("group", ["239.192.1.1", "ff15::1:1"])
def test_traffic_arrives_whole_and_is_seen_in_clear(tmp_path: Path, group: str) -> None:
    with Network(HOSTS, tmp_path) as network:
        capture = network.capture(tmp_path / "bridge.pcap")
        traffic = Traffic([*network.hosts.values()], group, 5000, tmp_path / "traffic", rate=RATE)
        traffic.open()
        began = time.monotonic()
        traffic.start()
        let_pass(2.0)
        reports = traffic.finish()
        seconds = time.monotonic() - began
        assert capture.stop() > 0

    for report in reports.values():
        assert report.send_errors == []
        assert report.socket_drops == 0
        assert report.foreign == 0
        assert 0 < report.sent <= RATE * seconds + 1
    pairs = deliveries(reports)
    assert len(pairs) == 6
    assert [(p.sender, p.receiver, p.lost, p.duplicates, p.gaps) for p in pairs] == [
        (p.sender, p.receiver, 0, 0, []) for p in pairs
    ]

    counts = count_capture(capture.path, [group])
    assert counts.clear == {report.address: report.sent for report in reports.values()}
    assert counts.esp == {}


def test_refused_sends_are_counted_and_leave_no_gap(tmp_path: Path) -> None:
    with Network(["gm1", "gm2"], tmp_path) as network:
        traffic = Traffic(
            [*network.hosts.values()], "239.192.1.1", 5000, tmp_path / "traffic", rate=RATE
        )
        traffic.open()
        traffic.start("gm1")
        gm1 = network["gm1"]
        policy = ["dst", "239.192.1.1", "dir", "out"]
        gm1.run(["ip", "xfrm", "policy", "add", *policy, "action", "block", "priority", "1"])
        let_pass(0.3)
        gm1.run(["ip", "xfrm", "policy", "delete", *policy])
        reports = traffic.finish()
    assert reports["gm1"].refused > 0
    assert {error.errno for error in reports["gm1"].send_errors} == {"EPERM"}
    assert [pair.lost for pair in deliveries(reports)] == [0, 0]


def test_packets_that_lie_before_the_receiver_refuse_no_others(tmp_path: Path) -> None:
    """A busy machine's receiving end is late; a socket's usual buffer is full by then."""
    with Network(["gm1", "gm2"], tmp_path) as network:
        gm1, work = network["gm1"], tmp_path / "traffic"
        queue = ["dev", gm1.interface, "root", "tbf", "burst", "5kb", "limit", "10mb"]
        gm1.run(["tc", "qdisc", "add", *queue, "rate", "200kbit"])
        hosts = [*network.hosts.values()]
        traffic = Traffic(hosts, "239.192.1.1", 5000, work, rate=3 * RATE)
        traffic.open()
        traffic.start("gm1")
        let_pass(2.0)
        gm1.run(["tc", "qdisc", "change", *queue, "rate", "1gbit"])
        reports = traffic.finish()
    assert reports["gm2"].received[traffic.ids["gm1"]].max_delay > 0.5
    assert reports["gm1"].send_errors == []


def test_a_capture_that_cannot_start_says_so(tmp_path: Path) -> None:
    with (
        Network(["gm1"], tmp_path) as network,
        pytest.raises(LabError, match="tcpdump did not start"),
    ):
        Capture(network.bridge, "nosuch0", tmp_path / "x.pcap", tmp_path).start()
