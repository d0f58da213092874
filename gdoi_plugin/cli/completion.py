"""Completion of gdoictl's command line in bash and zsh.

`shtab` makes it of the parser. Names of groups, members and SPIs are asked for through the control
socket when they are wanted, by `gdoictl names`, which says nothing where nobody answers in time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gdoi_plugin.cli.arguments import Options, parser
from gdoi_plugin.cli.client import Client, ClientError
from gdoi_plugin.cli.sockets import sockets

NAMES_TIME = 1.0
"""Seconds: whoever presses the key waits for it."""

MAX_NAMES = 512
"""More is nothing to choose from."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:@*/,=+-]+")

_LISTS = {
    "groups": ("list-groups", "list-group", "group"),
    "members": ("list-members", "list-member", "identity"),
    "spis": ("list-sas", "list-sa", "spi"),
}

_BASH = """
_gdoictl_names() { gdoictl names "$1" "${COMP_WORDS[@]:1}" 2>/dev/null; }
_gdoictl_groups() { compgen -W "$(_gdoictl_names groups)" -- "$1"; }
_gdoictl_members() { compgen -W "$(_gdoictl_names members)" -- "$1"; }
_gdoictl_spis() { compgen -W "$(_gdoictl_names spis)" -- "$1"; }
_gdoictl_files() { compgen -f -- "$1"; }
"""
_ZSH = """
_gdoictl_names() {
  local -a names
  names=(${(f)"$(gdoictl names "$1" "${words[@]:1}" 2>/dev/null)"})
  compadd -a names
}
_gdoictl_groups() { _gdoictl_names groups }
_gdoictl_members() { _gdoictl_names members }
_gdoictl_spis() { _gdoictl_names spis }
_gdoictl_files() { _files }
"""


def script(shell: str) -> str:
    """What `bash` or `zsh` is to source."""
    import shtab  # it alone is not needed by anything else here

    preamble = {"bash": _BASH, "zsh": _ZSH}
    return str(shtab.complete(parser(), shell, preamble=preamble[shell]))


def names(what: str, words: Sequence[str]) -> list[str]:
    """What there is of groups, members or SPIs, for the command line that begins with ``words``."""
    command, event, key = _LISTS[what]
    options = _told(words)
    asked = options.filter if what != "groups" else {}
    found: dict[str, None] = {}
    for path in sockets(options, quiet=True):
        with contextlib.suppress(ClientError), Client(path, options.timeout) as client:
            items = client.stream(command, event, asked)
            found |= dict.fromkeys(str(item[key]) for item in items if item.get(key))
    # A name that the shell would take for more than one word, or for its own, is no completion.
    plain = (name for name in found if _PLAIN.fullmatch(name))
    return list(islice(plain, MAX_NAMES))


def _told(words: Sequence[str]) -> Options:
    """Of a command line that is not complete what says which daemon, and which group."""
    told: dict[str, Any] = {}
    for word, after in zip(words, (*words[1:], ""), strict=False):
        name, _, value = word.partition("=")
        value = value or after
        if name in ("--gm", "--gcks"):
            told["role"] = name.removeprefix("--")
        elif name == "--socket" and value:
            told["socket"] = Path(value)
        elif name == "--group" and value and not value.startswith("-"):
            told["group"] = value
    return Options("names", timeout=NAMES_TIME, **told)
