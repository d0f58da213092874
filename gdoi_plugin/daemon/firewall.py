"""Chains of netfilter for a router's groups, by iptables or a program with its options.

What a call changes the kernel takes in one step, and it costs two programs however many addresses
there are. They are slow to start, and wait while another program has the tables: a rekey takes
:data:`HURRIED` ones, for an ACK waits, and everybody else's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..protocol.actions import IPAddress
from .errors import FirewallError

# Not `filter`, which other programs flush and fill.
TABLE = "mangle"
PROGRAMS = ("iptables", "iptables-legacy", "iptables-nft")


class Patience(NamedTuple):
    """Seconds for another program to let go of the tables, and for all of a program."""

    lock: int
    limit: int


PATIENT = Patience(5, 15)
HURRIED = Patience(1, 6)


class Firewall:
    """``program``: one of :data:`PROGRAMS`."""

    def __init__(self, program: str) -> None:
        self.program = program

    def close(
        self,
        chain: str,
        rules: Sequence[str],
        destinations: Iterable[IPAddress],
        patience: Patience = PATIENT,
    ) -> None:
        """The chain has these rules, whatever it had, and what is forwarded there is its from now
        on. Raises FirewallError, and nothing has changed.
        """
        there = frozenset(self._listed("FORWARD", patience))
        asked = [_forward(destination, chain) for destination in destinations]
        lines = [f":{chain} - [0:0]", *(f"-A {chain} {rule}" for rule in rules)]
        lines += [f"-I {rule}" for rule in asked if f"-A {rule}" not in there]
        self._restore(chain, lines, patience)

    def remove(self, chain: str) -> None:
        """All of it that is there. Raises FirewallError."""
        there = self._listed("", PATIENT)
        if f"-N {chain}" not in there:
            return
        asked = [line for line in there if line.startswith("-A") and line.endswith(f" -j {chain}")]
        lines = [line.replace("-A", "-D", 1) for line in asked]
        self._restore(chain, [*lines, f"-F {chain}", f"-X {chain}"], PATIENT)

    def _listed(self, chain: str, patience: Patience) -> list[str]:
        """The rules of a chain, or of all, as they could be given again."""
        arguments = ["-t", TABLE, "-S", *chain.split()]
        return self._run("", arguments, patience).split("\n")

    def _restore(self, chain: str, lines: Sequence[str], patience: Patience) -> None:
        text = "\n".join([f"*{TABLE}", *lines, "COMMIT", ""])
        self._run("-restore", ["--noflush"], patience, text, f": chain {chain}")

    def _run(
        self,
        suffix: str,
        arguments: Sequence[str],
        patience: Patience,
        text: str = "",
        about: str = "",
    ) -> str:
        """Other programs' comments may be any octets, and are given again as they are."""
        command = [self.program + suffix, "-w", str(patience.lock), *arguments]
        try:
            done = subprocess.run(
                command,
                input=text.encode(errors="surrogateescape"),
                capture_output=True,
                timeout=patience.limit,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FirewallError(f"{command[0]}: {error}") from error
        if done.returncode:
            said = done.stderr.decode(errors="backslashreplace").strip()
            said = said or f"exit status {done.returncode}"
            raise FirewallError(f"{self.program}{about}: {said}".replace("\n", "; "))
        return done.stdout.decode(errors="surrogateescape")


def _forward(destination: IPAddress, chain: str) -> str:
    """As the kernel's rules are listed."""
    return f"FORWARD -d {destination}/32 -j {chain}"
