"""Who has a port: other programs, our own daemons, charon."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon.check.charon import check_charon
from gdoi_plugin.daemon.check.ports import check_port, holders, same_endpoint
from gdoi_plugin.protocol.actions import Peer
from tests.daemon.children import eventually, finished, python, running
from tests.daemon.configs import GCKS, write
from tests.interop.charon import charon

from .mending import FAIL, OK, WARN, as_nobody, the

pytestmark = pytest.mark.usefixtures("own_host")
OURS = Peer(ip_address("192.0.2.11"), 848)
BINDS = """
import signal, socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], int(sys.argv[2])))
print("bound", flush=True)
signal.pause()
"""


@contextmanager
def bound(address: str, port: int = 848) -> Iterator[int]:
    """By another program, whose number it is."""
    with running(python(BINDS, address, port)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "bound\n"
        yield child.pid


def test_free() -> None:
    found = check_port("gdoi-gm", OURS, "net0")
    assert (found.verdict, found.found) == (OK, "free")
    assert not holders(848)  # and it is given back


@pytest.mark.parametrize("address", ["192.0.2.11", "0.0.0.0", "::"])  # noqa: S104
def test_taken_by_another_program(address: str) -> None:
    with bound(address) as pid:
        found = check_port("gdoi-gm", OURS, "net0")
        assert found.verdict is FAIL
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        assert found.found == f"taken by {name}, process {pid}, at {address}"
        assert found.mend.startswith(f"kill {pid} ")
        finished(["sh", "-c", found.mend])
        eventually(lambda: check_port("gdoi-gm", OURS, "net0").verdict is OK, "the port's end")


def test_at_another_address_it_is_in_nobodys_way() -> None:
    with bound("198.51.100.1"), bound("2001:db8::11"):
        assert check_port("gdoi-gm", OURS, "net0").verdict is OK


def test_somebody_who_may_not_look_is_told_to_be_root() -> None:
    """Whose process it is, is not for everybody to know."""
    with bound("192.0.2.11", 4848):
        said = as_nobody(lambda: check_port("gdoi-gm", Peer(OURS.host, 4848), "net0"))
    assert "taken by another program, at 192.0.2.11" in said
    assert "sudo gdoictl check" in said


def test_our_own_daemon(tmp_path: Path) -> None:
    text = GCKS.replace('"127.0.0.1"', '"192.0.2.11"').replace(
        "[[peer]]",
        f'state = "{tmp_path}/gcks.sqlite"\ncontrol = "{tmp_path}/gcks.vici"\n[[peer]]',
        1,
    )
    config = write(tmp_path, text)
    program = Path(sys.prefix) / "bin" / "gdoi-gcks"
    with running([program, "--config", config]) as daemon:
        eventually(lambda: holders(848), "the key server to bind its port")
        found = check_port("gdoi-gcks", OURS, "net0")
        assert (found.verdict, found.found) == (OK, f"gdoi-gcks has it, process {daemon.pid}")
        assert check_port("gdoi-gm", OURS, "net0").verdict is FAIL


def test_charon_has_the_port_of_nat_traversal(tmp_path: Path) -> None:
    nat = Peer(OURS.host, 4500)
    with charon(tmp_path / "charon") as daemon:
        found = check_port("gdoi-gm", nat, "net0", "member")
        assert found.verdict is WARN
        assert f"process {daemon.process.pid}" in found.found
        assert found.mend == "# nat_port = 4501 in [member], or nat_traversal = false"
        assert check_port("gdoi-gm", Peer(OURS.host, 4501), "net0", "member").verdict is OK
        answer = the(check_charon(tmp_path / "charon" / "vici", needed=True), "charon at")
        assert answer.verdict is OK
        assert "charon-systemd 5." in answer.found


def test_an_address_that_is_not_there() -> None:
    found = check_port("gdoi-gm", Peer(ip_address("192.0.2.99"), 848), "net0")
    assert found.verdict is FAIL
    assert "no interface of this host has that address" in found.found


def test_without_the_right_to_a_low_port() -> None:
    said = as_nobody(lambda: check_port("gdoi-gm", OURS, "net0"))
    assert "'warn'" in said
    assert "ports below 1024 need root or CAP_NET_BIND_SERVICE" in said
    assert "sudo gdoictl check" in said


def test_two_daemons_with_one_address() -> None:
    assert same_endpoint(OURS, OURS).verdict is FAIL
    assert same_endpoint(OURS, Peer(ip_address("192.0.2.12"), 848)).verdict is OK
