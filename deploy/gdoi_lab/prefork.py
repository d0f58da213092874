"""Starts our programs by forking a process that has imported them already.

Importing takes a daemon 2.4 s of the lab kernel's one processor; a fork a tenth of that, and the
tests start daemons a hundred times. ``python -m gdoi_lab.prefork FD`` imports, then forks for every
request on a socket::

    request   JSON {argv, namespace, folder, env}, with stdin, stdout and stderr as descriptors
    answer    the process ID

The child leaves the serving loop and runs the program's own ``main()`` as the console script
would: with its arguments, environment and streams, a session of its own, in its namespace. It is
a grandchild whose parent ends at once, so that it becomes the child of whoever asked, who has
declared itself the reaper of orphans; signals and exit status are as of any child.
"""

import array
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gdoi_lab.checkout import CHECKOUT, PYTHON, VENV, lab_environment
from gdoi_lab.errors import LabError

# By how a command line begins: the module whose main() it is, and whether that takes arguments.
PROGRAMS = {
    (str(VENV / "bin" / "gdoi-gm"),): ("gdoi_plugin.daemon.gm", False),
    (str(VENV / "bin" / "gdoi-gcks"),): ("gdoi_plugin.daemon.gcks", False),
    (PYTHON, "-m", "gdoi_lab.talkers"): ("gdoi_lab.talkers", True),
}
_MAX_REQUEST = 1 << 16
_ANSWER_LIMIT = 150.0  # seconds for importing everything, on a busy machine
_CLONE_NEWNET = 0x40000000
_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.01

Main = Callable[[], int]


def program_of(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Which of PROGRAMS a command line starts; None for any other."""
    return next((begin for begin in PROGRAMS if tuple(argv[: len(begin)]) == begin), None)


class Forked:
    """A process that `Prefork` started, with what is used of subprocess.Popen."""

    def __init__(self, argv: Sequence[str], pid: int, stdin: IO[bytes] | None) -> None:
        self.args, self.pid, self.stdin = list(argv), pid, stdin
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(_POLL)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Prefork:
    """The serving process, started with the first program and ended with us."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Prefork":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        argv: Sequence[str],
        namespace: str,
        output: int,
        env: Mapping[str, str],
        *,
        stdin: bool = False,
    ) -> Forked:
        """Start one of PROGRAMS in a namespace of ``ip netns``; `output` becomes 1 and 2."""
        request = {"argv": list(argv), "namespace": namespace, "env": dict(env)}
        reader, writer = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
        try:
            pid = self._ask(json.dumps(request).encode(), [reader, output, output])
        finally:
            os.close(reader)
        return Forked(argv, pid, os.fdopen(writer, "wb") if stdin else None)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._server is not None:
            self._server.wait(_ANSWER_LIMIT)
            self._server = None

    def _ask(self, request: bytes, fds: Sequence[int]) -> int:
        if self._socket is None:
            self._socket = self._serve()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self._socket.sendmsg([request], rights)
            return int(self._socket.recv(64))
        except (OSError, ValueError) as error:
            raise LabError(f"the process that forks programs does not answer: {error}") from None

    def _serve(self) -> socket.socket:
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise LabError("prctl(PR_SET_CHILD_SUBREAPER) failed")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_LIMIT)
        with theirs:
            self._server = subprocess.Popen(
                [PYTHON, "-m", "gdoi_lab.prefork", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=CHECKOUT,
                env=lab_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return ours


def serve(requests: socket.socket) -> Main | None:
    """Forks for every request. Returns in each child, with what it is to run; None at the end."""
    while True:
        request, rights, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 3)
        if not request:
            return None
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            if (pid := os.fork()) == 0:
                requests.close()
                os.close(reader)
                os.close(writer)
                return _become(json.loads(request), rights)
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.waitpid(middle, 0)  # only then is its child the asker's, who may wait for it
        requests.send(os.read(reader, 64))
        for fd in (reader, writer, *rights):
            os.close(fd)


def _become(request: dict[str, Any], streams: Sequence[int]) -> Main:
    os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, max(streams) + 1)
    namespace = os.open(Path("/run/netns") / request["namespace"], os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None).setns(namespace, _CLONE_NEWNET) != 0:
        raise LabError(f"setns to {request['namespace']} failed")
    os.close(namespace)
    os.environ.clear()
    os.environ.update(request["env"])
    argv = request["argv"]
    begin = program_of(argv)
    assert begin is not None  # noqa: S101  (the asker has looked)
    module, takes_arguments = PROGRAMS[begin]
    main = importlib.import_module(module).main
    sys.argv = argv[len(begin) - 1 :]
    return (lambda: main(sys.argv[1:])) if takes_arguments else main


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module, _ in PROGRAMS.values():
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or the first collection in a child would copy all pages
    run = serve(socket.socket(fileno=int(sys.argv[1])))
    if run is None:
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = run()
    # The interpreter's own end looks at all that it has, and the lab kernel copies each page of it:
    # that takes a second.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
