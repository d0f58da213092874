"""The manual pages: gdoictl(1), gm.toml(5), gcks.toml(5), gdoi-gm(8), gdoi-gcks(8)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .. import __version__
from ..cli import arguments
from ..daemon import gcks, gm
from ..daemon.shell import argument_parser
from . import roff
from .options import Option, tables
from .words import COMMAND_WORDS, DAEMONS, EXAMPLES, FILE_WORDS, Daemon


def pages() -> dict[str, str]:
    """By name and section, as ``gdoictl.1``."""
    made = {"gdoictl.1": gdoictl()}
    for file in FILE_WORDS:
        made[f"{file}.5"] = configuration(file)
    for name, daemon in DAEMONS.items():
        made[f"{name}.8"] = daemon_page(name, daemon)
    return made


# ---------------------------------------------------------------- configuration files


def configuration(file: str) -> str:
    words = FILE_WORDS[file]
    parts = [
        roff.title(file, 5, __version__),
        roff.heading("NAME"),
        roff.text(f"{file} - configuration of {words.program}"),
        roff.heading("DESCRIPTION"),
        roff.text(words.description),
        roff.paragraph(
            "The file is TOML. Times are written 30s, 10m, 1h or 2d. A key that is not known, or a"
            " value that is not allowed, is an error that names file and key; "
            f"{words.program} --check tells without starting anything."
        ),
    ]
    for table in tables(file):
        parts += [roff.heading(table.header), roff.text(table.meaning)]
        parts += [_option(option) for option in table.options]
    parts += [roff.heading("EXAMPLE"), roff.example(words.example)]
    parts += [roff.heading("FILES"), roff.item(words.path, "Where it is looked for.")]
    parts += _see_also(f"{words.program}(8)", "gdoictl(1)")
    return _joined(parts)


def _option(option: Option) -> str:
    note = f"({option.allowed}{'; required' if option.required else ''})"
    meaning = option.meaning
    if option.default:
        meaning += f"\nDefault: {option.default}."
    return roff.item(option.name, meaning, note)


# ---------------------------------------------------------------- the daemons


def daemon_page(name: str, daemon: Daemon) -> str:
    module = {"gdoi-gm": gm, "gdoi-gcks": gcks}[name]
    more = getattr(module, "options", lambda _: None)
    parser = argument_parser(name, module.DEFAULT_CONFIG, more)
    parts = [
        roff.title(name, 8, __version__),
        roff.heading("NAME"),
        roff.text(f"{name} - {daemon.what}"),
        roff.heading("SYNOPSIS"),
        *_synopsis(parser),
        roff.heading("DESCRIPTION"),
        *map(roff.paragraph, daemon.description),
        roff.heading("OPTIONS"),
        *_arguments(parser),
    ]
    for heading, rows in daemon.rows.items():
        parts += [roff.heading(heading), *(roff.item(key, text) for key, text in rows.items())]
    parts += _see_also(daemon.config_page, "gdoictl(1)")
    return _joined(parts)


# ---------------------------------------------------------------- gdoictl


def gdoictl() -> str:
    parser = arguments.parser()
    parts = [
        roff.title("gdoictl", 1, __version__),
        roff.heading("NAME"),
        roff.text("gdoictl - control and watch gdoi-gcks and gdoi-gm"),
        roff.heading("SYNOPSIS"),
        ".B gdoictl\n" + roff.text("[OPTIONS] COMMAND [ARGUMENTS]"),
        roff.heading("DESCRIPTION"),
        *map(roff.paragraph, COMMAND_WORDS),
        roff.heading("OPTIONS"),
        roff.text("They may stand before or behind the command."),
        *_arguments(parser),
        roff.heading("COMMANDS"),
    ]
    common = {action.dest for action in parser._actions}
    for name, sub in commands(parser).items():
        own = [a for a in sub._actions if a.dest not in common or a.dest == "group"]
        usage = " ".join([name, *map(_usage, own)])
        parts += [roff.subheading(usage), roff.text(sub.description or "")]
        parts += [_argument(action) for action in own]
    parts += [roff.heading("EXIT STATUS")]
    parts += [roff.item(str(code), text) for code, text in arguments.EXITS.items()]
    parts += [roff.heading("FILES")]
    for role, name in (("gdoi-gcks", "gcks"), ("gdoi-gm", "gm")):
        path = arguments.RUN_DIR / arguments.SOCKETS[name]
        parts.append(roff.item(str(path), f"The control socket of {role}."))
    parts += [roff.heading("EXAMPLES")]
    parts += [roff.item(command, text) for command, text in EXAMPLES.items()]
    parts += _see_also("gdoi-gm(8)", "gdoi-gcks(8)", "gm.toml(5)", "gcks.toml(5)", "swanctl(8)")
    return _joined(parts)


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("a command line without commands")


# ---------------------------------------------------------------- command lines


def _synopsis(parser: argparse.ArgumentParser) -> Iterator[str]:
    shown = (_usage(action) for action in parser._actions)
    yield f".B {roff.quoted(parser.prog)}\n{roff.text(' '.join(shown))}"


def _usage(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return f"{value} ..." if action.nargs in ("+", argparse.REMAINDER) else value
    text = f"{action.option_strings[-1]} {value}".strip()
    return text if action.required else f"[{text}]"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = str(action.metavar or action.dest.upper())
    return f"[{value}]" if action.nargs == "?" else value


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            yield _argument(action)


def _argument(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    term = f"{names} {_value(action)}".strip()
    return roff.item(term, action.help or "")


def _see_also(*pages: str) -> list[str]:
    return [roff.heading("SEE ALSO"), roff.text(", ".join(pages))]


def _joined(parts: list[str]) -> str:
    return "\n".join(parts) + "\n"
