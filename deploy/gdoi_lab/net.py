"""A small network in the kernel we run on: namespaces, one per host, joined by a bridge.

::

    gdoi-1a2b3c-gm1            gdoi-1a2b3c-gm2            gdoi-1a2b3c-gcks
      eth0 10.66.0.1, fd66::1    eth0 10.66.0.2, fd66::2    eth0 10.66.0.3, fd66::3
        | veth                     | veth                     | veth
        p1                         p2                         p3
    +------------------------- br0, in gdoi-1a2b3c-bridge -------------------------+

The id differs from run to run, and every interface lies inside one of the namespaces, so networks
built at the same time do not meet. Leaving the context ends every process and removes everything.
"""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gdoi_lab.capture import Capture
from gdoi_lab.checkout import CHECKOUT, lab_environment
from gdoi_lab.errors import LabError
from gdoi_lab.prefork import Forked, Prefork, program_of
from gdoi_lab.waiting import wait_until

__all__ = ["BRIDGE", "INTERFACE", "Host", "Network", "Process", "wait_until"]

INTERFACE = "eth0"
BRIDGE = "br0"
MAX_HOSTS = 254  # the last octet of 10.66.0.0/24
STOP_GRACE = 60.0  # seconds from SIGTERM to SIGKILL, on a busy machine
SETTLE_LIMIT = 60.0  # seconds for all links to be up
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Process:
    """A program started in a namespace; its output goes to `log`."""

    name: str
    popen: subprocess.Popen[bytes] | Forked
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs, -N when signal N ended it."""
        return self.popen.poll()

    def signal(self, number: int) -> None:
        if self.running:
            self.popen.send_signal(number)

    def write_line(self, line: str) -> None:
        """Write to the program's standard input (``popen(..., stdin=True)``)."""
        stdin = self.popen.stdin
        if stdin is None:
            raise LabError(f"{self.name} was started without a standard input")
        stdin.write(f"{line}\n".encode())
        stdin.flush()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """Wait for the end; return the exit status. Raises LabError after `timeout` seconds."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} did not end within {timeout:g} s") from None

    def stop(self, grace: float = STOP_GRACE) -> int:
        """SIGTERM, after `grace` seconds SIGKILL to its process group; return the exit status."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(grace)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL, as a crash would have it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait()


@dataclass(slots=True)
class Namespace:
    """A network namespace and the programs in it."""

    # What forks our own programs, where somebody has set one up: imports are slow.
    prefork: ClassVar[Prefork | None] = None

    name: str
    namespace: str
    processes: list[Process] = field(default_factory=list)

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 90.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end. With `check`, LabError if it fails."""
        try:
            done = subprocess.run(
                self.command(argv),
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                cwd=CHECKOUT,
                env=lab_environment(env),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: {argv[0]} took longer than {timeout:g} s") from None
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing")[-500:]
            raise LabError(
                f"{self.name}: {' '.join(argv)} failed ({done.returncode}), saying: {said}"
            )
        return done

    def ip(self, *argv: str) -> str:
        """What an `ip` command says of this namespace; cheaper than running it here."""
        done = subprocess.run(
            ["ip", "-n", self.namespace, *argv], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise LabError(f"{self.name}: ip {' '.join(argv)} failed: {done.stderr.strip()}")
        return done.stdout

    def popen(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        stdin: bool = False,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start a program here, output appended to `log`; the network stops it at the end.

        ``ip netns exec`` becomes the program, so its pid is the program's. With a ``Prefork`` the
        programs it knows are forked.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        popen: subprocess.Popen[bytes] | Forked
        with log.open("ab") as file:
            if Namespace.prefork and program_of(argv) and not pass_fds:
                known = lab_environment(env)
                popen = Namespace.prefork.start(
                    argv, self.namespace, file.fileno(), known, stdin=stdin
                )
            else:
                popen = subprocess.Popen(
                    self.command(argv),
                    stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=CHECKOUT,
                    env=lab_environment(env),
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                )
        process = Process(f"{self.name}: {Path(argv[0]).name}", popen, log)
        self.processes.append(process)
        return process

    def socket(self, family: int, kind: int) -> socket.socket:
        """One of this namespace."""
        here, there = (
            os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for path in ("/proc/thread-self/ns/net", f"/run/netns/{self.namespace}")
        )
        try:
            _enter(there)
            try:
                return socket.socket(family, kind)
            finally:
                _enter(here)
        finally:
            os.close(here)
            os.close(there)

    def sysctl(self, settings: Mapping[str, str | int]) -> None:
        """Write settings, named as below /proc/sys (``net/ipv4/ip_forward``)."""
        script = "".join(f"echo {value} >/proc/sys/{key}\n" for key, value in settings.items())
        self.run(["sh", "-e"], stdin=script)


@dataclass(slots=True)
class Host(Namespace):
    """A host on the bridge."""

    address4: str = ""
    address6: str = ""
    interface: str = INTERFACE


class Network:
    """The network as a context manager; `hosts` by name, `bridge` for captures."""

    def __init__(self, hosts: Sequence[str], work: Path) -> None:
        """`hosts`: names, short and distinct. `work`: a folder for logs of the kit's own."""
        if len(hosts) > MAX_HOSTS or len(set(hosts)) != len(hosts):
            raise LabError(f"a network has at most {MAX_HOSTS} hosts, each with its own name")
        self.id = secrets.token_hex(3)
        self.work = work
        self.hosts: dict[str, Host] = {
            name: Host(
                name,
                f"gdoi-{self.id}-{name}",
                address4=f"10.66.0.{number}",
                address6=f"fd66::{number:x}",
            )
            for number, name in enumerate(hosts, start=1)
        }
        self.bridge = Namespace("bridge", f"gdoi-{self.id}-bridge")
        self._captures: list[Capture] = []

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> "Network":
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def capture(self, path: Path) -> Capture:
        """Start a capture of the bridge; returns when packets are really being captured."""
        capture = Capture(self.bridge, BRIDGE, path, self.work)
        self._captures.append(capture)
        capture.start()
        return capture

    def close(self) -> None:
        """End every process and remove every namespace; safe to call twice."""
        places: list[Namespace] = [*self.hosts.values(), self.bridge]
        processes = [process for place in places for process in place.processes]
        for process in processes:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE
        for process in processes:
            if process.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.popen.wait(max(0.0, deadline - time.monotonic()))
            process.stop(grace=0.0)
        for place in places:
            _remove_namespace(place.namespace)
            place.processes.clear()

    def _build(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        places: list[Namespace] = [self.bridge, *self.hosts.values()]
        _ip("".join(f"netns add {place.namespace}\n" for place in places))
        for host in self.hosts.values():
            # Addresses are usable at once: nobody else is on this bridge.
            host.sysctl(
                {
                    "net/ipv6/conf/default/accept_dad": 0,
                    "net/ipv6/conf/default/dad_transmits": 0,
                    "net/ipv6/conf/default/router_solicitations": 0,
                }
            )
        # Multicast snooping would forget groups without a querier; all ports get everything.
        lines = [f"link add {BRIDGE} type bridge mcast_snooping 0 stp_state 0 forward_delay 0"]
        for number, host in enumerate(self.hosts.values(), start=1):
            lines += [
                f"link add p{number} type veth peer name {INTERFACE} netns {host.namespace}",
                f"link set p{number} master {BRIDGE} up",
            ]
        lines += ["link set lo up", f"link set {BRIDGE} up"]
        _ip("\n".join(lines) + "\n", self.bridge.namespace)
        for host in self.hosts.values():
            # The kernel makes the multicast route of IPv6, ff00::/8, itself.
            _ip(
                "link set lo up\n"
                f"link set {INTERFACE} up\n"
                f"address add {host.address4}/24 dev {INTERFACE}\n"
                f"address add {host.address6}/64 dev {INTERFACE} nodad\n"
                f"route add multicast 224.0.0.0/4 dev {INTERFACE}\n",
                host.namespace,
            )
        wait_until(self._forwarding, SETTLE_LIMIT, "every port of the bridge to forward")

    def _forwarding(self) -> bool:
        listed = self.bridge.run(["ip", "-json", "-details", "link", "show", "master", BRIDGE])
        ports = json.loads(listed.stdout or "[]")
        states = [
            port.get("linkinfo", {}).get("info_slave_data", {}).get("state") for port in ports
        ]
        return states == ["forwarding"] * len(self.hosts)


def _enter(descriptor: int) -> None:
    """The calling thread goes into a namespace."""
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")


def _ip(batch: str, namespace: str | None = None) -> None:
    """Run a batch of `ip` commands. Raises LabError naming the first that failed."""
    where = [] if namespace is None else ["-n", namespace]
    done = subprocess.run(
        ["ip", *where, "-batch", "-"], input=batch, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"the network could not be built: {done.stderr.strip()}")


def _remove_namespace(namespace: str) -> None:
    listed = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
    )
    for pid in listed.stdout.split():  # what its own parent left behind
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
