"""The key server's configuration, read again while it runs: what would change, and whether it may.

A file that is wrong, or asks for what only a restart can do, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..protocol.actions import Event
from ..protocol.key_server import KeyServer
from ..protocol.phase1 import PreSharedKey
from .config_diff import OTHER_SECRET, SECRET, Change, changes, labelled
from .config_gcks import KeyServerDaemonConfig
from .errors import ConfigError
from .vici_message import Message, to_message

# Keys of [key_server] that new phase-1 exchanges take as they are then. All the others are sockets,
# files and tables that were opened at the start.
LIVE = frozenset(
    (
        "identity",
        "proposals",
        "phase1_lifetime",
        "dpd_delay",
        "dpd_timeout",
        "certificate",
        "private_key",
        "cacerts",
        "crls",
        "charon_trust",
        "ike_connections",
        "revocation",
        "send_cert",
        "send_certreq",
    )
)
# Rows of an answer: a control packet holds them all, whatever was done to the file.
MAX_CHANGES = 512
NEXT = "from the next rekey or registration on"


@dataclass(frozen=True, slots=True)
class Proposal:
    """``steps``: group and what is done to it, in words."""

    config: KeyServerDaemonConfig
    changes: list[Change]
    steps: list[tuple[str, str]]
    adds_groups: bool

    def told(self) -> Event:
        return told(self.changes, self.steps)


def told(changes: Sequence[Change], steps: Sequence[tuple[str, str]]) -> Event:
    """What a daemon says of a configuration that it has taken up."""
    lines = [f"{c.key}: {c.before or '-'} -> {c.after or '-'}" for c in changes]
    done = [f"{group}: {step}" for group, step in steps]
    return Event("config-reloaded", {"changes": lines, "steps": done})


def bounded(found: list[Change]) -> list[Change]:
    if len(found) <= MAX_CHANGES:
        return found
    return [*found[:MAX_CHANGES], Change(f"{len(found) - MAX_CHANGES} more", "", "")]


def answer(changes: Sequence[Change], steps: Sequence[tuple[str, str]], *, done: bool) -> Message:
    """Of the command ``reload``."""
    return to_message(
        {
            "done": done,
            "changes": {
                str(number): {"key": c.key, "before": c.before, "after": c.after}
                for number, c in enumerate(changes)
            },
            "steps": {
                str(number): {"group": group, "step": step}
                for number, (group, step) in enumerate(steps)
            },
        }
    )


def propose(running: KeyServerDaemonConfig, engine: KeyServer, now: float) -> Proposal:
    """Raises ConfigError."""
    config = KeyServerDaemonConfig(running.path)
    if not running.nat_bound:
        config.give_up_nat_traversal()
    for change in changes(running.settings, config.settings):
        if change.key not in LIVE:
            what = (
                f"{change.before or 'nothing'} cannot become {change.after or 'nothing'}"
                " while the key server runs: start it again"
            )
            raise ConfigError(config.path, f"key_server.{change.key}", what)
    found = bounded(list(_changes(running, config)))
    plans = engine.plan(config.groups, now)
    steps = [(plan.group, step) for plan in plans.values() for step in plan.steps]
    busy = {group for group, _ in steps}
    quiet = {c.key.split("]")[0].removeprefix("group[") for c in found if c.key[:6] == "group["}
    steps += [(group, NEXT) for group in sorted(quiet - busy)]
    return Proposal(config, found, steps, any(plan.added for plan in plans.values()))


def _changes(running: KeyServerDaemonConfig, config: KeyServerDaemonConfig) -> Iterator[Change]:
    yield from changes(running.document, config.document)
    before, after = labelled(running.document.peer), labelled(config.document.peer)
    old = {label: _secret(running, place) for place, label in enumerate(before)}
    for place, (label, entry) in enumerate(after.items()):
        # The same file with other contents.
        if before.get(label) == entry and old[label] != _secret(config, place):
            yield Change(f"peer[{label}].psk_file", SECRET, OTHER_SECRET)


def _secret(config: KeyServerDaemonConfig, place: int) -> object:
    _, way = config.ways[place]
    return way.psk if isinstance(way, PreSharedKey) else None
