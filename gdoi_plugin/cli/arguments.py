"""gdoictl's command line: what may stand on it, its help, and what it ends with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gdoi_plugin import __version__

RUN_DIR = Path("/run/gdoi")
SOCKETS = {"gcks": "gcks.vici", "gm": "gm.vici"}

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_DIFFERENT = 4
EXIT_UNFIT = 5
EXIT_INTERRUPTED = 130

EXITS = {
    EXIT_OK: "done",
    EXIT_ERROR: "error: no daemon, no answer, or it refused; standard error has the sentence",
    EXIT_USAGE: "wrong usage",
    EXIT_MISSING: "rekey sent, and not acknowledged by all",
    EXIT_DIFFERENT: "reload --dry-run found differences",
    EXIT_UNFIT: "check found what does not work",
    EXIT_INTERRUPTED: "interrupted",
}

ANSWER_TIME = 10.0
"""Seconds for an answer, unless --timeout says otherwise: `register` answers after an exchange
with the key server."""

WATCH_EVERY = 2.0
"""Seconds between two looks, unless --watch says otherwise."""


@dataclass(frozen=True, slots=True)
class Options:
    """What stands on the command line."""

    command: str
    role: str | None = None
    socket: Path | None = None
    json: bool = False
    timeout: float = ANSWER_TIME
    watch: float | None = None
    group: str | None = None
    kek: bool = False
    replace: bool = False
    spi: str | None = None
    secrets: bool = False
    dry_run: bool = False
    identities: Sequence[str] = ()
    gm_config: Path | None = None
    gcks_config: Path | None = None
    shell: str = ""
    what: str = ""
    words: Sequence[str] = ()

    @property
    def filter(self) -> dict[str, str]:
        chosen = {} if self.group is None else {"group": self.group}
        return chosen | {"secrets": "yes"} if self.secrets else chosen


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError("more than 0 and at most 86400 seconds")
    return seconds


def _common() -> argparse.ArgumentParser:
    """Options that may stand before or after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    which = common.add_mutually_exclusive_group()
    for role, name in (("gm", "group member"), ("gcks", "key server")):
        which.add_argument(
            f"--{role}",
            dest="role",
            action="store_const",
            const=role,
            help=f"the {name} at {RUN_DIR / SOCKETS[role]}",
        )
    path = which.add_argument("--socket", type=Path, metavar="PATH", help="the daemon at PATH")
    _completed(path, "_gdoictl_files")
    common.add_argument("--json", action="store_true", help="JSON, with keys as on the wire")
    common.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help=f"seconds to wait for an answer ({ANSWER_TIME:g})",
    )
    return common


def _completed(action: argparse.Action, function: str) -> None:
    """What the shell's completion asks for this argument's values; see completion.py."""
    action.complete = {"bash": function, "zsh": function}  # type: ignore[attr-defined]


class _Commands:
    """Adds commands and the arguments that several of them have."""

    def __init__(self, subparsers: Any, common: argparse.ArgumentParser) -> None:
        self._subparsers = subparsers
        self._common = common

    def add(
        self, name: str, text: str, *, bare: bool = False, hidden: bool = False
    ) -> argparse.ArgumentParser:
        """``bare``: without the options that all others have; ``hidden``: nobody's but ours."""
        found: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            parents=[] if bare else [self._common],
            description=text[0].upper() + text[1:] + ".",
            **({} if hidden else {"help": text}),
        )
        return found

    @staticmethod
    def group(sub: argparse.ArgumentParser, *, required: bool = False) -> None:
        text = "the group, by name or id" if required else "of this group only, by name or id"
        action = sub.add_argument("--group", metavar="G", required=required, help=text)
        _completed(action, "_gdoictl_groups")

    @staticmethod
    def identities(sub: argparse.ArgumentParser, metavar: str) -> None:
        action = sub.add_argument("identities", metavar=metavar, nargs="+", help="address or name")
        _completed(action, "_gdoictl_members")

    @staticmethod
    def watch(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--watch",
            type=_seconds,
            nargs="?",
            const=WATCH_EVERY,
            metavar="S",
            help=f"show it again every S seconds ({WATCH_EVERY:g}), until interrupted",
        )


def parser() -> argparse.ArgumentParser:
    common = _common()
    result = argparse.ArgumentParser(
        prog="gdoictl",
        parents=[common],
        description="Control and watch gdoi-gcks and gdoi-gm.",
        epilog="Exit codes: "
        + "; ".join(f"{code} {meaning.partition(':')[0]}" for code, meaning in EXITS.items())
        + ".",
    )
    result.add_argument("--version", action="version", version=f"gdoictl {__version__}")
    commands = _Commands(
        result.add_subparsers(dest="command", required=True, metavar="COMMAND"), common
    )
    _add_looks(commands)
    _add_rekeys(commands)
    _add_members(commands)
    _add_others(commands)
    _add_check(commands)
    return result


def parse(arguments: Sequence[str] | None) -> Options:
    """Ends the process where they are wrong."""
    made = parser()
    options = Options(**vars(made.parse_args(arguments)))
    if options.command == "check" and (options.role or options.socket):
        made.error("check asks no daemon: gdoictl check --gm FILE, or --gcks FILE")
    if options.command == "revoke" and options.group is None:
        group, *identities = options.identities
        if not identities:
            made.error("revoke: which group, and whom? gdoictl revoke --group G IDENTITY ...")
        return replace(options, group=group, identities=identities)
    return options


def _add_looks(commands: _Commands) -> None:
    sub = commands.add("status", "version, counters and groups of the daemons that run here")
    commands.watch(sub)
    for name, text in (
        ("members", "registered members"),
        ("rekeys", "rekeys and who acknowledged them"),
        ("sas", "data SAs of the groups; a member's as its kernel has them"),
        ("keys", "keys for IEC 61850 applications"),
    ):
        sub = commands.add(name, text)
        commands.group(sub)
        commands.watch(sub)
        if name == "keys":
            sub.add_argument("--secrets", action="store_true", help="the keys themselves as well")
    sub = commands.add("policy", "a group's policy, complete and without keys")
    commands.group(sub)


def _add_rekeys(commands: _Commands) -> None:
    sub = commands.add("rekey", "rekey a group now and follow the acknowledgements")
    commands.group(sub, required=True)
    sub.add_argument("--kek", action="store_true", help="replace the KEK as well")
    sub.add_argument("--replace", action="store_true", help="delete what is replaced at once")
    sub = commands.add("delete-tek", "delete one data SA at once; its flow gets another")
    commands.group(sub, required=True)
    spi = sub.add_argument("--spi", metavar="0xSPI", required=True, help="the data SA")
    _completed(spi, "_gdoictl_spis")
    sub = commands.add("delete-group", "delete every key of a group; members register again")
    commands.group(sub, required=True)


def _add_members(commands: _Commands) -> None:
    for name, text in (
        ("evict", "put members out of a group, with new keys for the others, until admitted again"),
        ("admit", "let evicted members register again"),
    ):
        sub = commands.add(name, text)
        commands.group(sub, required=True)
        commands.identities(sub, "IDENTITY")
    sub = commands.add(
        "revoke", "compromised members: evict them, new KEK and TEKs, old SAs deleted at once"
    )
    group = sub.add_argument(
        "--group", metavar="G", help="the group, by name or id; or it comes before the members"
    )
    _completed(group, "_gdoictl_groups")
    commands.identities(sub, "IDENTITY")


def _add_others(commands: _Commands) -> None:
    sub = commands.add("reload", "read the daemon's configuration again: differences, then steps")
    sub.add_argument("--dry-run", action="store_true", help="only show what would change")
    sub.add_argument(
        "--replace", action="store_true", help="delete what is replaced at once (key server)"
    )
    sub = commands.add("register", "register with the key server again")
    commands.group(sub)
    commands.add("events", "show events as they happen, until interrupted")
    sub = commands.add("completion", "print a shell's completion of gdoictl, to be sourced by it")
    sub.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    # For the completion itself: names that are there now, or nothing.
    text = "print names of groups, members or data SAs, one a line"
    names = commands.add("names", text, hidden=True)
    names.add_argument("what", choices=("groups", "members", "spis"), help="which names")
    names.add_argument("words", nargs=argparse.REMAINDER, help="a command line that has --group")


def _add_check(commands: _Commands) -> None:
    """It needs no daemon: its own options, in place of those that say which."""
    sub = commands.add(
        "check", "test this host, as member, key server or both: no daemon has to run", bare=True
    )
    for role, name in (("gm", "member"), ("gcks", "key server")):
        file = sub.add_argument(
            f"--{role}",
            dest=f"{role}_config",
            type=Path,
            metavar="FILE",
            help=f"the {name}'s configuration",
        )
        _completed(file, "_gdoictl_files")
    as_json = "JSON: what was tested, verdict, what was found, how to mend it"
    sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=as_json)
