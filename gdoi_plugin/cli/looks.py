"""What is shown of the daemons: once, or again and again with --watch."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from gdoi_plugin.cli.arguments import EXIT_ERROR, EXIT_OK, Options
from gdoi_plugin.cli.client import Client, ClientError, Fields
from gdoi_plugin.cli.show import console, flat, note, plain, print_json, say, table
from gdoi_plugin.cli.sockets import only_socket, sockets

LISTS = {
    "members": ("list-members", "list-member", "no members"),
    "rekeys": ("list-rekeys", "list-rekey", "no rekeys"),
    "sas": ("list-sas", "list-sa", "no SAs"),
    "keys": ("list-keys", "list-key", "no keys for applications"),
}
_SAS = {"rekey-sas": "rekey-sa", "data-sas": "data-sa"}


# ---------------------------------------------------------------- lists


def show_list(options: Options) -> int:
    command, event, nothing = LISTS[options.command]
    path = only_socket(options)

    def look() -> list[Fields]:
        with Client(path, options.timeout) as client:
            return client.stream(command, event, options.filter)

    def picture(items: Any) -> RenderableType:
        return table(event, items) if items else Text(nothing)

    if options.watch is not None:
        return _again_and_again(options, look, picture)
    _show(options, look(), picture)
    return EXIT_OK


def _show(
    options: Options, found: list[Fields], picture: Callable[[list[Fields]], RenderableType]
) -> None:
    if options.json:
        print_json(found)
    else:
        console().print(picture(found))


# ---------------------------------------------------------------- status


def status(options: Options) -> int:
    """Both daemons where both run; one that does not answer does not hide the other."""
    paths = sockets(options)
    if options.watch is not None:

        def look() -> list[Fields]:
            found, problems = _status(paths, options)
            if problems and not found:
                raise problems[0]
            return found

        return _again_and_again(options, look, _status_picture)
    found, problems = _status(paths, options)
    for problem in problems:
        note(str(problem))
    if options.json or found:
        _show(options, found, _status_picture)
    return EXIT_ERROR if problems else EXIT_OK


def _status(paths: list[Path], options: Options) -> tuple[list[Fields], list[ClientError]]:
    found: list[Fields] = []
    problems: list[ClientError] = []
    for path in paths:
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
            problems.append(exc)
    return found, problems


def _status_picture(daemons: list[Fields]) -> RenderableType:
    parts: list[RenderableType] = []
    for daemon in daemons:
        if parts:
            parts.append(Text(""))
        version = daemon["version"]
        name = f"{version.get('daemon', 'daemon')} {version.get('version', '')}"
        parts.append(Text(plain(f"{name} at {daemon['socket']}")))
        parts += [Text(f"  {plain(key)}: {plain(value)}") for key, value in flat(daemon["stats"])]
        groups = daemon["groups"]
        parts.append(table("list-group", groups) if groups else Text("no groups"))
    return Group(*parts)


# ---------------------------------------------------------------- a group's policy


def show_policy(group: Fields) -> None:
    """Its own values, then its Rekey SAs and data SAs as tables."""
    plain_ones = {key: value for key, value in group.items() if key not in _SAS}
    for key, value in flat(plain_ones):
        say(f"{key}: {plain(value)}")
    for key, columns in _SAS.items():
        items = [{"spi": spi, **facts} for spi, facts in group.get(key, {}).items()]
        if items:
            say("")
            console().print(table(columns, items))


# ---------------------------------------------------------------- again and again


def _again_and_again(
    options: Options,
    look: Callable[[], list[Fields]],
    picture: Callable[[list[Fields]], RenderableType],
) -> int:
    """Until interrupted. A daemon that does not answer is asked again, as one that is restarted."""
    with contextlib.suppress(KeyboardInterrupt):  # the ordinary end
        if options.json or not sys.stdout.isatty():
            _lines(options, look, picture)
        else:
            _screen(options, look, picture)
    return EXIT_OK


def _lines(
    options: Options,
    look: Callable[[], list[Fields]],
    picture: Callable[[list[Fields]], RenderableType],
) -> None:
    """One JSON document a line, or tables with a line before each that says when."""
    while True:
        now = time.time()
        try:
            found = look()
        except ClientError as exc:
            note(str(exc))
        else:
            if options.json:
                print(json.dumps({"time": round(now, 3), "items": found}), flush=True)
            else:
                say(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)))
                console().print(picture(found))
                sys.stdout.flush()
        time.sleep(options.watch or 0)


def _screen(
    options: Options,
    look: Callable[[], list[Fields]],
    picture: Callable[[list[Fields]], RenderableType],
) -> None:
    with Live(console=console(), screen=True, auto_refresh=False) as live:
        shown: RenderableType = Text("")
        while True:
            heading = Text(time.strftime("%H:%M:%S  Ctrl-C ends"), style="dim")
            try:
                shown = picture(look())
            except ClientError as exc:
                heading = Text(f"{heading.plain}  {plain(exc)}", style="bold red")
            live.update(Group(heading, shown), refresh=True)
            time.sleep(options.watch or 0)
