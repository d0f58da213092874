"""Which kernel the lab runs on, and running a command there."""

import compileall
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO, get_args

from gdoi_lab.checkout import CHECKOUT, PYTHON, lab_environment
from gdoi_lab.errors import LabError
from gdoi_lab.uml import EXIT_TIME_LIMIT, run_uml, shell_uml

Kernel = Literal["host", "uml"]
Choice = Literal["auto", "host", "uml"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

_PROBE_SAS = (
    ["auth-trunc", "hmac(sha256)", "0x" + "11" * 32, "128", "enc", "cbc(aes)", "0x" + "22" * 16],
    ["aead", "rfc4106(gcm(aes))", "0x" + "33" * 20, "128"],
)


def esp_refusal() -> str | None:
    """Why this kernel cannot hold the ESP SAs we need; None when it can. Asks by trying.

    In a scratch network namespace, so nothing of the host is touched. The first use of an
    algorithm makes the kernel load and test it, so this also warms a fresh kernel up.
    """
    namespace = f"gdoi-{secrets.token_hex(3)}-probe"

    def ip(*argv: str) -> str | None:
        done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return None
        return (done.stderr.strip() or f"ip {argv[0]} failed").splitlines()[-1]

    try:
        refused = ip("netns", "add", namespace)
        for number, algorithms in enumerate(_PROBE_SAS, start=0x1001):
            refused = refused or ip(
                *("-n", namespace, "xfrm", "state", "add", "src", "0.0.0.0", "dst", "239.0.0.1"),  # noqa: S104
                *("proto", "esp", "spi", str(number), "mode", "transport", *algorithms),
            )
        return refused
    finally:
        ip("netns", "delete", namespace)


def choose_kernel(choice: Choice) -> Kernel:
    """Resolve "auto": the host's kernel if it can hold ESP SAs, else User Mode Linux."""
    if choice == "uml":
        return "uml"
    refused = esp_refusal()
    if refused is None:
        return "host"
    if choice == "host":
        raise LabError(f"this host's kernel cannot hold an ESP SA: {refused}")
    return "uml"


def run_in_kernel(
    choice: Choice,
    argv: Sequence[str],
    results: Path,
    timeout: float,
    *,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run `argv` from the checkout on the chosen kernel; return its exit status.

    The command sees `results` under the same name on either kernel, GDOI_LAB_KERNEL ("host" or
    "uml") and GDOI_LAB_RESULTS. After `timeout` seconds it is stopped: EXIT_TIME_LIMIT.
    """
    kernel = choose_kernel(choice)
    results.mkdir(parents=True, exist_ok=True)
    results = results.resolve()
    passed = {"GDOI_LAB_RESULTS": str(results), **(env or {})}
    if kernel == "uml":
        precompile()
        return run_uml(argv, results, timeout, env=passed)
    return _run_on_host(argv, timeout, lab_environment({"GDOI_LAB_KERNEL": "host", **passed}))


def shell_in_kernel(choice: Choice, results: Path) -> int:
    """An interactive shell, in the checkout, on the chosen kernel."""
    if choose_kernel(choice) == "uml":
        precompile()
        return shell_uml(results)
    return subprocess.run(
        ["bash", "--norc", "-i"], cwd=CHECKOUT, env={**os.environ, **lab_environment()}, check=False
    ).returncode


def precompile() -> None:
    """Compile our modules here: the lab kernel cannot write, and each daemon would start slowly."""
    for package in ("gdoi_plugin", "kernel", "deploy/gdoi_lab", "tests"):
        if (CHECKOUT / package).is_dir():
            compileall.compile_dir(CHECKOUT / package, quiet=2)


@contextlib.contextmanager
def output_to(stream: TextIO) -> Iterator[None]:
    """Sends what the kernel's run prints to another stream: file descriptor 1 for a while."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(stream.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def python_module(module: str, *argv: str) -> list[str]:
    """The command line of a Python module with the lab's interpreter."""
    return [PYTHON, "-m", module, *argv]


def _run_on_host(argv: Sequence[str], timeout: float, env: dict[str, str]) -> int:
    with subprocess.Popen(
        argv, cwd=CHECKOUT, env=env, stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return EXIT_TIME_LIMIT
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number, grace in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
