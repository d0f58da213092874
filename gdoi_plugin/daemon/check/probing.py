"""A process of its own that tries the kernel in a network namespace of its own.

It is given a :class:`Wish` as JSON and answers with :class:`Answer`. What it adds goes with the
namespace, and nothing of the host's SAs, policies and rules is seen or touched; only modules that
the kernel loads for it stay loaded, as they would for the daemon.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address

# linux/sched.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# Seconds: modules are loaded and test themselves first.
LIMIT = 60
_CHAIN, _DESTINATION = "GDOI-check", "239.255.84.8"


@dataclass(frozen=True, slots=True)
class Wish:
    """``suites``: names of :data:`~gdoi_plugin.protocol.suites.TEK_SUITES`; ``firewall``: one of
    :data:`~gdoi_plugin.daemon.firewall.PROGRAMS`, whose rules for a router are tried."""

    suites: Sequence[str]
    families: Sequence[int]
    firewall: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    errno: int
    said: str


@dataclass(slots=True)
class Answer:
    """``problem``: why nothing could be tried. The key of ``suites`` is suite and family; None: the
    kernel takes it."""

    problem: str = ""
    suites: dict[str, Refusal | None] = field(default_factory=dict)
    firewall: str = ""


def key_of(suite: str, family: int) -> str:
    return f"{suite}/{family}"


def ask(wish: Wish) -> Answer:
    """In a child: a namespace that this process entered could not be left again by everybody."""
    # -P: whoever is root may stand in a folder of somebody else.
    command = [sys.executable, "-P", "-m", __name__, json.dumps(asdict(wish))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
        said = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.split("\n")
        return Answer(next(filter(str.strip, reversed(lines)), f"it ended with {error.returncode}"))
    except subprocess.TimeoutExpired:
        return Answer(f"no answer in {LIMIT} s")
    except (OSError, ValueError) as error:
        return Answer(f"{error}")
    suites = {key: refusal and Refusal(**refusal) for key, refusal in said.pop("suites").items()}
    return Answer(suites=suites, **said)


def _isolate() -> str:
    """Into a fresh namespace; who is not root becomes it in a user namespace. Why not."""
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if not libc.unshare(flags):
            return ""
        if ctypes.get_errno() != errno.EPERM:
            break
    return f"no network namespace of its own: {os.strerror(ctypes.get_errno())}"


def _answer(wish: Wish) -> Answer:
    problem = _isolate()
    if problem:
        return Answer(problem)
    # What needs netlink sockets comes after the namespace that they are to lie in.
    from gdoi_xfrm import probe

    from ...protocol.suites import TEK_SUITES
    from ..kernel import algorithm_of

    answer = Answer()
    for name in wish.suites:
        suite = TEK_SUITES[name]
        keys = (
            secrets.token_bytes(suite.encryption_octets),
            secrets.token_bytes(suite.integrity_octets),
        )
        for family in wish.families:
            error = probe([algorithm_of(suite, *keys)], (family,))
            refusal = None if error is None else Refusal(error.errno, str(error))
            answer.suites[key_of(name, family)] = refusal
    if wish.firewall:
        answer.firewall = _try_rules(wish.firewall)
    return answer


def _try_rules(program: str) -> str:
    """Those that a router's agent makes. Why it cannot."""
    from gdoi_xfrm import Xfrm

    from ..errors import FirewallError
    from ..firewall import Firewall
    from ..forwarding import Forwarding

    try:
        with Xfrm() as xfrm:
            rules = Forwarding(xfrm, 1, ("lo",)).rules()
        Firewall(program).close(_CHAIN, rules, [ip_address(_DESTINATION)])
    except FirewallError as error:
        return str(error)
    return ""


def main() -> None:
    sys.stdout.write(json.dumps(asdict(_answer(Wish(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
