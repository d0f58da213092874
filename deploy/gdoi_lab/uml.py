"""Runs one command in User Mode Linux, a kernel with ESP that is an ordinary process of this host.

The root file system is the host's, read-only, so the command sees the same programs and the same
checkout; /run, /tmp, /var/tmp and /dev/shm are empty and in memory. Two folders are writable on
the host: the caller's results folder, under its own name, and a private one for the exit status.

The command's output comes back over two consoles of its own, the kernel's messages go to a file:
neither gets into the other. All processes of the kernel live in a PID namespace whose first
process is killed with us, so nothing outlives the run, not even when we are killed.
"""

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from gdoi_lab.checkout import CHECKOUT, SYSTEM_PATH, VENV, lab_environment
from gdoi_lab.errors import LabError
from gdoi_lab.fpu import fit_to_processor

MODULES_ROOT = Path("/usr/lib/uml/modules")
MODULES = (
    *("xfrm_user", "esp4", "esp6", "ah4", "ah6", "seqiv", "echainiv", "authenc", "authencesn"),
    *("gcm", "ccm", "cbc", "ctr", "hmac", "cmac", "xcbc", "ghash_generic", "sha512_generic"),
    *("chacha20poly1305", "veth", "bridge", "sch_netem", "sch_tbf"),
)

MEMORY_MB = 1024
BOOT_LIMIT = 180.0  # seconds; a boot takes 2 to 4
HALT_LIMIT = 60.0  # seconds from the end of the command's time to the end of the kernel

EXIT_TIME_LIMIT = 124  # as timeout(1) has it

# Mount points in the guest.
_IN_MEMORY = ("/run", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_STATE = "/run/gdoi-lab"
_POWER_OFF = "import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)"

_PREPARE = f"""\
export PATH={SYSTEM_PATH}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
exec </dev/null >/dev/console 2>&1
mount -t tmpfs run /run
mkdir -p {_STATE}/root {_STATE}/control {_STATE}/home /run/netns /run/lock
mount --bind / {_STATE}/root
"""

# All links share one queue (netdev_max_backlog), in which a packet to ten hosts is ten: after a
# moment without processor time all senders make up for it at once, and 1,000 are not enough.
_MODPROBE = f"""\
printf '#!/bin/sh\\nexec /sbin/modprobe -d "%s" "$@"\\n' "$modules" >{_STATE}/modprobe
chmod 755 {_STATE}/modprobe
echo {_STATE}/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
echo gdoi-lab >/proc/sys/kernel/hostname
echo 100000 >/proc/sys/net/core/netdev_max_backlog
"""

_RUN = f"""\
for console in 1 2; do
    stty -F /dev/tty$console raw -echo
    mkfifo {_STATE}/to$console
done
cat {_STATE}/to1 >/dev/tty1 & cat1=$!
cat {_STATE}/to2 >/dev/tty2 & cat2=$!
: >{_STATE}/control/started
(
    . {_STATE}/control/environment
    exec timeout --kill-after=10 "$limit" "$@"
) >{_STATE}/to1 2>{_STATE}/to2
status=$?
# What the command left running may hold its output open: it gets a moment, no more.
( sleep 3; kill $cat1 $cat2 ) 2>/dev/null & killer=$!
wait $cat1 $cat2
"""

_SHELL = f"""\
: >{_STATE}/control/started
(
    . {_STATE}/control/environment
    stty sane rows "${{LINES:-24}}" cols "${{COLUMNS:-80}}"
    exec setsid -c -w "$@"
) </dev/tty1 >/dev/tty1 2>&1
status=$?
"""

_END = f"""\
echo $status >{_STATE}/control/status.new
mv {_STATE}/control/status.new {_STATE}/control/status
cd /
sync
exec /usr/bin/python3 -ISc '{_POWER_OFF}'
"""


class _SignalledError(Exception):
    """A signal asked us to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_uml(
    argv: Sequence[str],
    results: Path,
    timeout: float,
    *,
    env: Mapping[str, str] | None = None,
    memory_mb: int = MEMORY_MB,
    out_fd: int = 1,
    err_fd: int = 2,
) -> int:
    """Run `argv` in User Mode Linux with the checkout as its folder; return its exit status.

    `results` is made if missing and is writable for the command under the same name. The kernel's
    own messages are appended to `results`/kernel.log. Output is copied to `out_fd` and `err_fd` as
    it comes. `timeout` seconds are the command's, boot excluded: EXIT_TIME_LIMIT when they are
    over. Raises LabError when the kernel did not start or did not end properly.
    """
    with _Kernel(argv, results, env, memory_mb, timeout) as kernel, _signals_raise():
        try:
            kernel.start()
            kernel.forward(out_fd, err_fd)
            status = kernel.status()
        except _SignalledError as stop:
            return 128 + stop.number
        except BrokenPipeError:
            return 128 + signal.SIGPIPE
    if status == EXIT_TIME_LIMIT:
        _say(err_fd, f"lab: the command took longer than its {timeout:.0f} s and was stopped")
    return status


def shell_uml(results: Path, *, memory_mb: int = MEMORY_MB) -> int:
    """An interactive shell in User Mode Linux on our own terminal."""
    if not (os.isatty(0) and os.isatty(1)):
        raise LabError("a shell needs a terminal; to run a command use: deploy/lab run -- COMMAND")
    size = os.get_terminal_size()
    env = {"COLUMNS": str(size.columns), "LINES": str(size.lines), "PS1": "uml \\w# "}
    saved = termios.tcgetattr(0)
    try:
        argv = ["bash", "--norc", "-i"]
        with _Kernel(argv, results, env, memory_mb, None) as kernel, _signals_raise():
            kernel.start()
            kernel.wait(None)
            return kernel.status()
    except _SignalledError as stop:
        return 128 + stop.number
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


class _Kernel:
    """One User Mode Linux from its temporary folder to its end."""

    def __init__(
        self,
        argv: Sequence[str],
        results: Path,
        env: Mapping[str, str] | None,
        memory_mb: int,
        limit: float | None,
    ) -> None:
        self._binary = _installed_binary()
        self._argv = list(argv)
        self._env = lab_environment(env)
        self._memory_mb = memory_mb
        self._limit = limit
        self._results = _writable_folder(results)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: list[int] = []
        self._work = Path()

    def __enter__(self) -> "_Kernel":
        shared, temporary = Path("/dev/shm"), Path(tempfile.gettempdir())  # noqa: S108
        self._memory_dir = _roomy(self._memory_mb + 64, shared, temporary, Path("/var/tmp"))  # noqa: S108
        # Not /dev/shm: the kernel mounts its own /dev before it looks for the init script.
        home = _roomy(32, temporary, Path("/var/tmp"), Path("/run"))  # noqa: S108
        self._work = Path(tempfile.mkdtemp(prefix="gdoi-lab-", dir=home)).resolve()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for pipe in self._pipes:
            os.close(pipe)
        log = self._work / "kernel.log"
        if log.exists():
            # Appended: several kernels may share a folder.
            with contextlib.suppress(OSError), (self._results / "kernel.log").open("ab") as file:
                file.write(log.read_bytes())
        shutil.rmtree(self._work, ignore_errors=True)

    def start(self) -> None:
        control = self._work / "control"
        control.mkdir()
        # modprobe -d wants a root folder with lib/modules in it.
        (self._work / "root" / "lib").mkdir(parents=True)
        (self._work / "root" / "lib" / "modules").symlink_to(MODULES_ROOT)
        (control / "environment").write_text(self._environment())
        init = self._work / "init"
        init.write_text(self._init_script())
        init.chmod(0o755)
        binary = fit_to_processor(self._binary, self._work)
        if self._limit is None:
            consoles, fds = ["con1=fd:0,fd:1"], []
        else:
            fds = [self._pipe(), self._pipe()]
            consoles = [f"con{n}=null,fd:{fd}" for n, fd in enumerate(fds, start=1)]
        command = [
            *_containment(),
            str(binary),
            f"mem={self._memory_mb}M",
            "rootfstype=hostfs",
            "ro",
            f"init={init}",
            f"uml_dir={self._work}/",
            "umid=uml",
            "con=null",
            "ssl=null",
            "con0=null,fd:2",
            *consoles,
        ]
        with (self._work / "kernel.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if self._limit is not None else None,
                stdout=log if self._limit is not None else None,
                stderr=log,
                pass_fds=fds,
                env={"PATH": SYSTEM_PATH, "TMPDIR": str(self._memory_dir), "HOME": str(self._work)},
                start_new_session=True,
            )
        for fd in fds:
            os.close(fd)

    def forward(self, out_fd: int, err_fd: int) -> None:
        """Copy the consoles to our own output until the kernel ends or a time limit is over."""
        began = time.monotonic()
        started: float | None = None
        targets = dict(zip(self._pipes, (out_fd, err_fd), strict=True))
        with selectors.DefaultSelector() as selector:
            for pipe in targets:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(timeout=0.25):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                    _write_all(targets[key.fd], data)
                now = time.monotonic()
                if started is None:
                    if (self._work / "control" / "started").exists():
                        started = now
                    elif now - began > BOOT_LIMIT:
                        raise LabError(self._trouble(f"did not boot within {BOOT_LIMIT:.0f} s"))
                elif self._limit is not None and now - started > self._limit + HALT_LIMIT:
                    raise LabError(self._trouble("hung and was killed"))
        self.wait(HALT_LIMIT)

    def wait(self, limit: float | None) -> None:
        assert self._process is not None  # noqa: S101
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise LabError(self._trouble("did not end after its last output")) from None

    def status(self) -> int:
        try:
            return int((self._work / "control" / "status").read_text())
        except (OSError, ValueError):
            raise LabError(self._trouble("ended before the command did")) from None

    def _pipe(self) -> int:
        reader, writer = os.pipe()
        self._pipes.append(reader)
        return writer

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # Killing the namespace's first process takes a moment to reach the last: the consoles'
        # other ends close with it.
        deadline = time.monotonic() + 5
        for pipe in self._pipes:
            os.set_blocking(pipe, False)
            while time.monotonic() < deadline:
                try:
                    if not os.read(pipe, 1 << 16):
                        break
                except BlockingIOError:
                    time.sleep(0.01)

    def _trouble(self, what: str) -> str:
        log = self._results / "kernel.log"
        reason = ""
        with contextlib.suppress(OSError):
            text = (self._work / "kernel.log").read_text(errors="replace")
            notable = [line for line in text.splitlines() if "panic" in line or "atal" in line]
            last = [line for line in text.splitlines() if line.strip()][-1:]
            reason = "".join(f" ({line.strip()})" for line in (notable or last)[:1])
        return f"User Mode Linux {what}{reason}; its messages are in {log}"

    def _environment(self) -> str:
        env = self._env | {
            "HOME": f"{_STATE}/home",
            "TMPDIR": "/tmp",  # noqa: S108
            "HYPOTHESIS_STORAGE_DIRECTORY": f"{_STATE}/home/hypothesis",
            "GDOI_LAB_KERNEL": "uml",
        }
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
        return "\n".join([*lines, f"cd {shlex.quote(str(CHECKOUT))}", ""])

    def _init_script(self) -> str:
        """The guest's first process: a shell script, because every Debian has a shell."""
        work = str(self._work)
        lines = ["#!/bin/sh", _PREPARE]
        lines.append(f"mount -t hostfs -o {shlex.quote(f'{work}/control')} none {_STATE}/control")
        lines += [f"mount -t tmpfs tmpfs {place}" for place in _IN_MEMORY[1:]]
        for tree in _hidden({CHECKOUT, VENV, self._work / "root"}):
            where = shlex.quote(str(tree))
            lines.append(f"mkdir -p {where} && mount --bind {_STATE}/root{where} {where}")
        where = shlex.quote(str(self._results))
        lines.append(f"mkdir -p {where} && mount -t hostfs -o {where} none {where}")
        lines.append(f"modules={shlex.quote(f'{work}/root')}")
        lines.append(_MODPROBE)
        lines.append(f'modprobe -d "$modules" -a {" ".join(MODULES)}')
        limit = 0 if self._limit is None else max(1, round(self._limit))
        lines.append(f"limit={limit}")
        lines.append("set -- " + shlex.join(self._argv))
        lines.append(_SHELL if self._limit is None else _RUN)
        lines.append(_END)
        return "\n".join(lines)


def _installed_binary() -> Path:
    found = shutil.which("linux.uml", path=SYSTEM_PATH)
    if found is None or not MODULES_ROOT.is_dir():
        raise LabError(
            "User Mode Linux is not installed; deploy/lab and deploy/test install it "
            "(Debian package user-mode-linux)"
        )
    return Path(found)


def _writable_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if "," in str(folder):
        raise LabError(f"the results folder {folder} has a comma in its name, which mount cannot")
    if folder in (Path("/"), *map(Path, _IN_MEMORY)) or folder.is_relative_to(_STATE):
        raise LabError(f"{folder} cannot be the results folder; give it a folder of its own")
    return folder


def _roomy(need_mb: int, *places: Path) -> Path:
    """The first of `places` with that much room and not mounted noexec: programs lie there."""
    tried = []
    for place in places:
        try:
            volume = os.statvfs(place)
        except OSError:
            continue
        free_mb = volume.f_bavail * volume.f_frsize >> 20
        noexec = bool(volume.f_flag & os.ST_NOEXEC)
        if free_mb >= need_mb and not noexec:
            return place
        tried.append(f"{place} has {free_mb} MB{' and is mounted noexec' if noexec else ''}")
    raise LabError(f"User Mode Linux needs {need_mb} MB of room: {', '.join(tried)}")


def _hidden(trees: set[Path]) -> Iterator[Path]:
    """Those of `trees` that the guest's in-memory folders would hide, parents first."""
    for tree in sorted(trees):
        if any(tree.is_relative_to(place) for place in _IN_MEMORY):
            yield tree


def _containment() -> list[str]:
    """The prefix that makes all of the kernel's processes end with us.

    The shell is there because a panic ends in abort(), which does nothing in a namespace's first
    process; it must not be exec'd away, hence the exit after it.
    """
    isolated = ["unshare", "--pid", "--fork", "--kill-child"]
    tied = ["setpriv", "--pdeathsig", "KILL"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode == 0:
        return [*tied, *isolated, "sh", "-c", '"$@"; exit $?', "sh"]
    return tied


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(number: int, _frame: FrameType | None) -> None:
        raise _SignalledError(number)

    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _say(fd: int, sentence: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        _write_all(fd, f"{sentence}\n".encode())
