"""gdoictl: ask, drive and watch gdoi-gcks and gdoi-gm through their control sockets.

Commands and events on the wire (all values are text, times are Unix time, lengths seconds):

    gdoictl     request                   answer
    status      version, stats,           version's and stats' response; an event list-group for
                list-groups               each group
    members     list-members {group}      an event list-member for each
    rekeys      list-rekeys {group}       an event list-rekey for each
    sas         list-sas {}               an event list-sa for each
    keys        list-keys {group,         an event list-key for each, with auth-key and conf-key
                secrets}                  only if secrets is yes
    rekey       rekey {group, kek}        {group, epoch, seq, expected, window}, then the events
                                          rekey-sent, rekey-acked, ack-missing
    revoke      revoke {group,            as rekey
                identities}
    reload      reload {dry-run,          {done, changes {n {key, before, after}}, steps {n
                replace}                  {group, step}}}
    register    register {group}          {...}

The keys of the items are those of the columns in show.py; keys that no column names are shown
by --json only, columns that no item fills are left out.  `expected` is the number of members
that should acknowledge, `window` the seconds until the key server stops waiting; ack-missing is
its last word on a member and epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from gdoi_plugin import __version__
from gdoi_plugin.cli.client import Client, ClientError, EventClient, Fields
from gdoi_plugin.cli.rekey_progress import RekeyProgress
from gdoi_plugin.cli.show import console, note, plain, print_json, say, table

RUN_DIR = Path("/run/gdoi")
SOCKETS = {"gcks": "gcks.vici", "gm": "gm.vici"}

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_MISSING = 3
EXIT_DIFFERENT = 4
EXIT_UNFIT = 5
EXIT_INTERRUPTED = 130

ANSWER_TIME = 10.0
"""Seconds for an answer, unless --timeout says otherwise: `register` answers after an exchange
with the key server."""

WINDOW_MARGIN = 3.0
"""Seconds that the key server's last events may take to arrive after its window has closed."""

EVENTS = (
    "member-registered",
    "member-evicted",
    "member-readmitted",
    "member-revoked",
    "group-removed",
    "config-reloaded",
    "config-refused",
    "rekey-sent",
    "rekey-acked",
    "ack-missing",
    "ack-missing-more",
    "member-silent",
    "member-silent-more",
    "registered",
    "rekey-received",
    "sa-installed",
    "install-failed",
    "kek-replaced",
    "sa-removed",
    "keys-changed",
    "group-deleted",
    "phase1-deleted",
)
REKEY_EVENTS = ("rekey-sent", "rekey-acked", "ack-missing", "ack-missing-more")


# ---------------------------------------------------------------- which daemon


@dataclass(frozen=True, slots=True)
class Options:
    """What stands on the command line."""

    command: str
    role: str | None = None
    socket: Path | None = None
    json: bool = False
    timeout: float = ANSWER_TIME
    group: str | None = None
    kek: bool = False
    replace: bool = False
    spi: str | None = None
    secrets: bool = False
    dry_run: bool = False
    identities: Sequence[str] = ()
    gm_config: Path | None = None
    gcks_config: Path | None = None

    @property
    def filter(self) -> dict[str, str]:
        chosen = {} if self.group is None else {"group": self.group}
        return chosen | {"secrets": "yes"} if self.secrets else chosen


BETTER = {"members": "gcks", "rekeys": "gcks", "sas": "gm", "keys": "gm", "register": "gm"}
BETTER |= dict.fromkeys(
    ("rekey", "delete-tek", "delete-group", "evict", "admit", "revoke", "reload"), "gcks"
)
"""Which daemon a command is meant for where both run; status and events concern both."""


def sockets(options: Options) -> list[Path]:
    """The control sockets to use: as told, or those that exist."""
    if options.socket is not None:
        return [options.socket]
    paths = {role: RUN_DIR / name for role, name in SOCKETS.items()}
    if options.role is not None:
        return [paths[options.role]]
    try:
        present = [role for role, path in paths.items() if _exists(path)]
    except PermissionError as exc:
        reason = "be root or in the group that owns it"
        raise ClientError(f"permission denied at {RUN_DIR}: {reason}") from exc
    if not present:
        raise ClientError("no daemon: there is neither " + " nor ".join(map(str, paths.values())))
    better = BETTER.get(options.command)
    if better in present and len(present) > 1:
        other = next(role for role in present if role != better)
        note(f"both daemons have a socket here: asking gdoi-{better} (--{other} asks the other)")
        present = [better]
    return [paths[role] for role in present]


def _exists(path: Path) -> bool:
    """As Path.exists, but no permission is an error in every Python."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def only_socket(options: Options) -> Path:
    (path,) = sockets(options)
    return path


# ---------------------------------------------------------------- commands


def status(options: Options) -> int:
    """Both daemons where both run; one that does not answer does not hide the other."""
    found: list[Fields] = []
    failed = False
    for path in sockets(options):
        try:
            with Client(path, options.timeout) as client:
                found.append(
                    {
                        "socket": str(path),
                        "version": client.request("version"),
                        "stats": client.request("stats"),
                        "groups": client.stream("list-groups", "list-group"),
                    }
                )
        except ClientError as exc:
            note(str(exc))
            failed = True
    if options.json:
        print_json(found)
    else:
        for index, daemon in enumerate(found):
            if index:
                say("")
            _show_status(daemon)
    return EXIT_ERROR if failed else EXIT_OK


def _show_status(daemon: Fields) -> None:
    version = daemon["version"]
    say(f"{version.get('daemon', 'daemon')} {version.get('version', '')} at {daemon['socket']}")
    for key, value in _flat(daemon["stats"]):
        say(f"  {key}: {plain(value)}")
    if daemon["groups"]:
        console().print(table("list-group", daemon["groups"]))
    else:
        say("no groups")


def _flat(section: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


LISTS = {
    "members": ("list-members", "list-member", "no members"),
    "rekeys": ("list-rekeys", "list-rekey", "no rekeys"),
    "sas": ("list-sas", "list-sa", "no SAs"),
    "keys": ("list-keys", "list-key", "no keys for applications"),
}


def show_list(options: Options) -> int:
    command, event, nothing = LISTS[options.command]
    with Client(only_socket(options), options.timeout) as client:
        items = client.stream(command, event, options.filter)
    if options.json:
        print_json(items)
    elif items:
        console().print(table(event, items))
    else:
        say(nothing)
    return EXIT_OK


def register(options: Options) -> int:
    path = only_socket(options)
    with Client(path, options.timeout) as client:
        answer = client.request("register", options.filter)
    if options.json:
        print_json([answer])
    else:
        of_what = "all groups" if options.group is None else f"group {options.group}"
        rest = " ".join(f"{key}={plain(v)}" for key, v in _flat(answer) if key != "success")
        say(f"registration of {of_what} accepted" + (f": {rest}" if rest else ""))
    return EXIT_OK


# ---------------------------------------------------------------- rekey


Show: TypeAlias = Callable[[RekeyProgress, str], None]


@contextlib.contextmanager
def progress_display(options: Options) -> Iterator[Show]:
    """A bar on a terminal, lines elsewhere, nothing with --json."""
    if options.json:
        yield lambda _progress, _line: None
        return
    if not sys.stdout.isatty():
        yield lambda _progress, line: say(line)
        return
    columns = (TextColumn("acknowledged"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task("", total=None)

        def show(progress: RekeyProgress, line: str) -> None:
            bar.console.print(Text(plain(line)))
            bar.update(task, total=progress.expected, completed=len(progress.acked))

        yield show


def rekey(options: Options) -> int:
    """Ask for a rekey, or a delete, and follow it until all have acknowledged or were given up."""
    path = only_socket(options)
    group = options.group or ""
    with (
        EventClient(path, options.timeout) as events,
        Client(path, options.timeout) as client,
        progress_display(options) as show,
    ):
        events.register(REKEY_EVENTS)
        request: dict[str, str | list[str]] = {"group": group}
        if options.identities:
            request["identities"] = list(options.identities)
        if options.command == "rekey":
            request |= {"kek": _yes(options.kek)}
        if options.replace:
            request |= {"replace": "yes"}
        if options.spi is not None:
            request |= {"spi": options.spi}
        answer = client.request(options.command, request)
        progress = RekeyProgress.of_answer(group, answer)
        _follow(events, progress, show)
        if not progress.done:
            _ask_who_is_missing(client, progress)
    if progress.expected is None:
        raise ClientError("the key server did not say how many members should acknowledge")
    if options.json:
        print_json([progress.document()])
    else:
        say(progress.summary())
    return EXIT_OK if progress.complete else EXIT_MISSING


def membership(options: Options) -> int:
    """Put members out of a group, or let them back in."""
    path = only_socket(options)
    with Client(path, options.timeout) as client:
        request: dict[str, str | list[str]] = {"group": options.group or ""}
        request["identities"] = list(options.identities)
        answer = client.request(options.command, request)
    if options.json:
        print_json([answer])
        return EXIT_OK
    denied = answer.get("denied") or ["nobody"]
    if options.command == "evict":
        say(
            f"{answer.get('group')}: {answer.get('evicted')} evicted, of whom"
            f" {answer.get('registered')} were registered; kept out: {plain(denied)}"
        )
    else:
        say(f"{answer.get('group')}: {answer.get('admitted')} let in; kept out: {plain(denied)}")
    return EXIT_OK


def reload(options: Options) -> int:
    """Have the key server read its configuration again; the differences, and what comes of them."""
    request: dict[str, str | list[str]] = {
        "dry-run": _yes(options.dry_run),
        "replace": _yes(options.replace),
    }
    with Client(only_socket(options), options.timeout) as client:
        answer = client.request("reload", request)
    changes, steps = (list(answer.get(key, {}).values()) for key in ("changes", "steps"))
    if options.json:
        print_json([{"done": answer.get("done", ""), "changes": changes, "steps": steps}])
    else:
        if changes:
            console().print(table("change", changes))
        for step in steps:
            say(f"{step.get('group')}: {step.get('step')}")
        if not changes and not steps:
            say("no differences")
        elif options.dry_run:
            say("nothing was changed: dry run")
    return EXIT_DIFFERENT if options.dry_run and (changes or steps) else EXIT_OK


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _follow(events: EventClient, progress: RekeyProgress, show: Show) -> None:
    deadline = time.monotonic() + progress.window + WINDOW_MARGIN
    while not progress.done and (left := deadline - time.monotonic()) > 0:
        got = events.poll(left)
        if got is None:
            continue
        line = progress.feed(*got)
        if line is None:
            continue
        show(progress, line)
        if got[0] == "rekey-sent":  # repeated for the silent ones: a new window
            deadline = time.monotonic() + progress.window + WINDOW_MARGIN


def _ask_who_is_missing(client: Client, progress: RekeyProgress) -> None:
    """Events were lost or never sent: the key server's ledger knows the names."""
    for item in client.stream("list-rekeys", "list-rekey", {"group": progress.group}):
        missing = item.get("missing", [])
        ours = item.get("epoch") in (progress.epoch, *progress.others)
        if ours and isinstance(missing, list):
            progress.missing |= {name: "" for name in missing if name not in progress.acked}


# ---------------------------------------------------------------- events


def watch(options: Options) -> int:
    """Every event of every daemon there is, until interrupted."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for path in sockets(options):
            client = stack.enter_context(EventClient(path, options.timeout))
            if not client.register(EVENTS):
                raise ClientError(f"the daemon at {path} has none of the events")
            selector.register(client, selectors.EVENT_READ, client)
            _drain(client, options)
        if not options.json:
            note("watching, Ctrl-C ends")
        with contextlib.suppress(KeyboardInterrupt):  # the ordinary end
            while True:
                for key, _ in selector.select():
                    _drain(key.data, options)
    return EXIT_OK


def _drain(client: EventClient, options: Options) -> None:
    while (got := client.poll(0)) is not None:
        event, fields = got
        now = time.time()
        if options.json:
            line = {"time": round(now, 3), "socket": str(client.path), "event": event}
            print(json.dumps({**line, "fields": fields}), flush=True)
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03}"
            rest = " ".join(f"{key}={plain(value)}" for key, value in _flat(fields))
            say(f"{clock}  {client.path.stem:<5} {event:<18} {rest}")


# ---------------------------------------------------------------- command line


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
    which.add_argument("--socket", type=Path, metavar="PATH", help="the daemon at PATH")
    common.add_argument("--json", action="store_true", help="JSON, with keys as on the wire")
    common.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help=f"seconds to wait for an answer ({ANSWER_TIME:g})",
    )
    return common


def parser() -> argparse.ArgumentParser:
    common = _common()
    result = argparse.ArgumentParser(
        prog="gdoictl",
        parents=[common],
        description="Control and watch gdoi-gcks and gdoi-gm.",
        epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 rekey sent but not acknowledged "
        "by all, 4 reload --dry-run found differences, 5 check found what does not work.",
    )
    result.add_argument("--version", action="version", version=f"gdoictl {__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common], help=text, description=text)

    command("status", "version, counters and groups of the daemons that run here")
    for name, text in (
        ("members", "registered members"),
        ("rekeys", "rekeys and who acknowledged them"),
        ("sas", "group SAs in the kernel"),
        ("keys", "keys for IEC 61850 applications"),
    ):
        sub = command(name, text)
        sub.add_argument("--group", metavar="G", help="of this group only")
        if name == "keys":
            sub.add_argument("--secrets", action="store_true", help="the keys themselves as well")
    sub = command("rekey", "rekey a group now and follow the acknowledgements")
    sub.add_argument("--group", metavar="G", required=True, help="the group")
    sub.add_argument("--kek", action="store_true", help="replace the KEK as well")
    sub.add_argument("--replace", action="store_true", help="delete what is replaced at once")
    sub = command("delete-tek", "delete one data SA at once; its flow gets another")
    sub.add_argument("--group", metavar="G", required=True, help="the group")
    sub.add_argument("--spi", metavar="0xSPI", required=True, help="the data SA")
    sub = command("delete-group", "delete every key of a group; members register again")
    sub.add_argument("--group", metavar="G", required=True, help="the group")
    for name, text in (
        ("evict", "put members out of a group, with new keys for the others, until admitted again"),
        ("admit", "let evicted members register again"),
    ):
        sub = command(name, text)
        sub.add_argument("--group", metavar="G", required=True, help="the group")
        sub.add_argument("identities", metavar="IDENTITY", nargs="+", help="address or name")
    sub = command(
        "revoke", "compromised members: evict them, new KEK and TEKs, old SAs deleted at once"
    )
    sub.add_argument("group", metavar="GROUP", help="the group")
    sub.add_argument("identities", metavar="MEMBER", nargs="+", help="address or name")
    sub = command("reload", "read the key server's configuration again: differences, then rekeys")
    sub.add_argument("--dry-run", action="store_true", help="only show what would change")
    sub.add_argument("--replace", action="store_true", help="delete what is replaced at once")
    sub = command("register", "register with the key server again")
    sub.add_argument("--group", metavar="G", help="this group only")
    command("events", "show events as they happen, until interrupted")
    text = "test this host, as member, key server or both: no daemon has to run"
    sub = commands.add_parser("check", help=text, description=text)
    for role, name in (("gm", "member"), ("gcks", "key server")):
        option = {"dest": f"{role}_config", "type": Path, "metavar": "FILE"}
        sub.add_argument(f"--{role}", **option, help=f"the {name}'s configuration")  # type: ignore[arg-type]
    as_json = "JSON: what was tested, verdict, what was found, how to mend it"
    sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=as_json)
    return result


def check(options: Options) -> int:
    # The daemons' own modules, which take a while to import and nobody else here needs.
    from gdoi_plugin.cli.check import run

    fit = run(options.gm_config, options.gcks_config, json=options.json)
    return EXIT_OK if fit else EXIT_UNFIT


COMMANDS: dict[str, Callable[[Options], int]] = {
    "status": status,
    "members": show_list,
    "rekeys": show_list,
    "sas": show_list,
    "keys": show_list,
    "rekey": rekey,
    "delete-tek": rekey,
    "delete-group": rekey,
    "evict": membership,
    "admit": membership,
    "revoke": rekey,
    "reload": reload,
    "register": register,
    "events": watch,
    "check": check,
}


def run(arguments: Iterable[str] | None = None) -> int:
    options = Options(**vars(parser().parse_args(None if arguments is None else list(arguments))))
    try:
        return COMMANDS[options.command](options)
    except ClientError as exc:
        note(str(exc))
        return EXIT_ERROR


def main() -> int:
    """Entry point: 0 done, 1 error, 2 wrong usage (argparse), 3 and 4 as in the parser's epilog."""
    try:
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `gdoictl ... | head`: nothing more to write, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
