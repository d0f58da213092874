"""gdoictl: ask, drive and watch gdoi-gcks and gdoi-gm through their control sockets.

What each command is on the wire stands in deploy/docs/control.md. The keys of a list's items are
those of the columns in show.py; keys that no column names are shown by --json only, columns that no
item fills are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from gdoi_plugin.cli.arguments import (
    EXIT_DIFFERENT,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_MISSING,
    EXIT_OK,
    EXIT_UNFIT,
    Options,
    parse,
)
from gdoi_plugin.cli.client import Client, ClientError, EventClient, Fields
from gdoi_plugin.cli.completion import names, script
from gdoi_plugin.cli.looks import show_list, show_policy, status
from gdoi_plugin.cli.rekey_progress import RekeyProgress
from gdoi_plugin.cli.show import console, flat, note, plain, print_json, say, table
from gdoi_plugin.cli.sockets import only_socket, sockets

WINDOW_MARGIN = 3.0
"""Seconds that the key server's last events may take to arrive after its window has closed."""

LEDGER_PAUSE = 1.0
"""Seconds between two looks at the ledger, where there are no events to follow."""

REKEY_EVENTS = ("rekey-sent", "rekey-acked", "ack-missing", "ack-missing-more")


# ---------------------------------------------------------------- commands


def policy(options: Options) -> int:
    """Of one group, or of each that the daemon has."""
    with Client(only_socket(options), options.timeout) as client:
        groups = client.stream("list-groups", "list-group", options.filter)
        found = [client.request("get-policy", {"group": group["group"]}) for group in groups]
    if options.json:
        print_json(found)
    else:
        for index, group in enumerate(found):
            if index:
                say("")
            show_policy(group)
    return EXIT_OK


def register(options: Options) -> int:
    path = only_socket(options)
    with Client(path, options.timeout) as client:
        answer = client.request("register", options.filter)
    if options.json:
        print_json([answer])
    else:
        of_what = "all groups" if options.group is None else f"group {options.group}"
        rest = " ".join(f"{key}={plain(v)}" for key, v in flat(answer) if key != "success")
        say(f"registration of {of_what} accepted" + (f": {rest}" if rest else ""))
    return EXIT_OK


# ---------------------------------------------------------------- rekey


Show: TypeAlias = Callable[[RekeyProgress, str], None]
"""Takes how far it is and a line, empty where there is none to print."""


@contextlib.contextmanager
def progress_display(options: Options) -> Iterator[Show]:
    """A bar on a terminal, lines elsewhere, nothing with --json."""
    if options.json:
        yield lambda _progress, _line: None
        return
    if not sys.stdout.isatty():
        yield lambda _progress, line: say(line) if line else None
        return
    columns = (TextColumn("acknowledged"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task("", total=None)

        def show(progress: RekeyProgress, line: str) -> None:
            if line:
                bar.console.print(Text(plain(line)))
            # Drawn ten times a second, however often it is told.
            bar.update(task, total=progress.expected, completed=progress.acknowledged)

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
        if "revoked" in answer:
            show(progress, _put_out("revoked", answer))
        try:
            _follow(events, progress, show)
        except ClientError:  # too slow for so many events, the key server closes the connection
            _follow_ledger(client, progress)
        if progress.expected is not None and not progress.complete:
            # Events may be lost, and of very many not all are named: the ledger has the last word.
            _read_ledger(client, progress)
    if progress.expected is None:
        raise ClientError("the key server did not say how many members should acknowledge")
    if answer.get("registered") == "0":
        note("none of them was registered: is the name right? gdoictl members has those that are")
    if options.json:
        told = {key: answer[key] for key in ("revoked", "registered", "denied") if key in answer}
        print_json([progress.document() | told])
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
    if options.command == "evict":
        say(_put_out("evicted", answer))
    else:
        say(f"{answer.get('group')}: {answer.get('admitted')} let in; kept out: {_denied(answer)}")
    return EXIT_OK


def _put_out(how: str, answer: Fields) -> str:
    return (
        f"{answer.get('group')}: {answer.get(how)} {how}, of whom {answer.get('registered')} were"
        f" registered; kept out: {_denied(answer)}"
    )


def _denied(answer: Fields) -> str:
    return plain(answer.get("denied") or ["nobody"])


def reload(options: Options) -> int:
    """Have a daemon read its configuration again; the differences, and what comes of them."""
    request: dict[str, str | list[str]] = {"dry-run": _yes(options.dry_run)}
    if options.replace:
        request |= {"replace": "yes"}
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
        show(progress, "" if got[0] == "rekey-acked" and progress.large else line)
        if got[0] == "rekey-sent":  # repeated for the silent ones: a new window
            deadline = time.monotonic() + progress.window + WINDOW_MARGIN


def _follow_ledger(client: Client, progress: RekeyProgress) -> None:
    """As long as the key server waits for ACKs; each repetition is a new window."""
    attempts, deadline = "", 0.0
    while not progress.complete:
        pages = _read_ledger(client, progress)
        now, told = time.monotonic(), " ".join(page.get("attempts", "") for page in pages)
        if told != attempts:
            attempts, deadline = told, now + progress.window + WINDOW_MARGIN
        if now > deadline or all(page.get("closed") == "yes" for page in pages):
            break
        time.sleep(LEDGER_PAUSE)


def _read_ledger(client: Client, progress: RekeyProgress) -> list[Fields]:
    """The key server's pages of this rekey, taken over."""
    pages = client.stream("list-rekeys", "list-rekey", {"group": progress.group})
    ours = [page for page in pages if page.get("epoch") in (progress.epoch, *progress.others)]
    progress.settle(ours)
    return ours


# ---------------------------------------------------------------- events


def watch(options: Options) -> int:
    """Every event of every daemon there is, until interrupted."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for path in sockets(options):
            client = stack.enter_context(EventClient(path, options.timeout))
            client.register(_events_of(path, options))
            selector.register(client, selectors.EVENT_READ, client)
            _drain(client, options)
        if not options.json:
            note("watching, Ctrl-C ends")
        with contextlib.suppress(KeyboardInterrupt):  # the ordinary end
            while True:
                for key, _ in selector.select():
                    _drain(key.data, options)
    return EXIT_OK


def _events_of(path: Path, options: Options) -> tuple[str, ...]:
    """Every event that the daemon has."""
    with Client(path, options.timeout) as client:
        events = client.request("describe").get("events", [])
    return tuple(events)


def _drain(client: EventClient, options: Options) -> None:
    while (got := client.poll(0)) is not None:
        event, fields = got
        now = time.time()
        if options.json:
            line = {"time": round(now, 3), "socket": str(client.path), "event": event}
            print(json.dumps({**line, "fields": fields}), flush=True)
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03}"
            rest = " ".join(f"{key}={plain(value)}" for key, value in flat(fields))
            say(f"{clock}  {client.path.stem:<5} {event:<18} {rest}")


# ---------------------------------------------------------------- command line


def check(options: Options) -> int:
    # The daemons' own modules, which take a while to import and nobody else here needs.
    from gdoi_plugin.cli.check import run

    fit = run(options.gm_config, options.gcks_config, json=options.json)
    return EXIT_OK if fit else EXIT_UNFIT


def completion(options: Options) -> int:
    print(script(options.shell), end="")
    return EXIT_OK


def names_of(options: Options) -> int:
    for name in names(options.what, options.words):
        say(name)
    return EXIT_OK


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
    "policy": policy,
    "completion": completion,
    "names": names_of,
}


def run(arguments: Iterable[str] | None = None) -> int:
    options = parse(None if arguments is None else list(arguments))
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
