"""A member's configuration, read again while it runs: what would change, and whether it may.

A file that is wrong, or asks for what only a restart can do, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..protocol.actions import Event
from .config_diff import OTHER_SECRET, SECRET, Change, changes, labelled
from .config_member import MemberDaemonConfig
from .errors import ConfigError
from .reload import bounded, told

# Keys of [member] and of a [[group]] that are taken up as they are then. All others are sockets,
# files, and policies in the kernel that were made at the start.
PHASE_1 = frozenset(
    (
        "certificate",
        "private_key",
        "cacerts",
        "crls",
        "charon_trust",
        "revocation",
        "send_cert",
        "send_certreq",
    )
)
LIVE = PHASE_1 | {"keep_alive"}
# Of these a key server hears: the group registers anew.
GROUP_ANEW = frozenset(("identity", "proposals", "key_server"))
GROUP_LIVE = GROUP_ANEW | {
    "ack_jitter",
    "ack_id",
    "recovery_delay",
    "sender_ids",
    "accept_private_algs",
    "join",
}
ANEW = "registers again, within recovery_delay"
NOW = "from now on"


@dataclass(frozen=True, slots=True)
class MemberProposal:
    """``steps``: group and what is done to it, in words; ``anew``: groups that register again."""

    config: MemberDaemonConfig
    changes: list[Change]
    steps: list[tuple[str, str]]
    anew: frozenset[str]

    def told(self) -> Event:
        return told(self.changes, self.steps)


def propose(running: MemberDaemonConfig) -> MemberProposal:
    """Raises ConfigError."""
    config = MemberDaemonConfig(running.path).placed_as(running)
    found = list(_changes(running, config))
    if config.channels != running.channels:
        what = "channels cannot change while the member runs: start it again"
        raise ConfigError(config.path, "group.channel", what)
    anew: set[str] = set()
    touched: set[str] = set()
    for change in found:
        section, _, rest = change.key.partition(".")
        first = rest.partition(".")[0].partition("[")[0]
        if section == "member":
            _must_be(first in LIVE, config, change)
            names = set(running.kernel_options)
            anew |= names if first in PHASE_1 else set()
        else:
            _must_be(first in GROUP_LIVE, config, change)
            names = {section.removeprefix("group[").removesuffix("]")}
            anew |= names if first in GROUP_ANEW else set()
        touched |= names
    steps = [(name, ANEW if name in anew else NOW) for name in sorted(touched)]
    return MemberProposal(config, bounded(found), steps, frozenset(anew))


def _must_be(live: bool, config: MemberDaemonConfig, change: Change) -> None:
    if not live:
        what = (
            f"{change.before or 'nothing'} cannot become {change.after or 'nothing'}"
            " while the member runs: start it again"
        )
        raise ConfigError(config.path, change.key, what)


def _changes(running: MemberDaemonConfig, config: MemberDaemonConfig) -> Iterator[Change]:
    yield from changes(running.document, config.document)
    before, after = labelled(running.document.group), labelled(config.document.group)
    old = {label: place for place, label in enumerate(before)}
    for place, label in enumerate(after):
        if label in old:
            yield from _other_secrets(running, config, label, old[label], place)


def _other_secrets(
    running: MemberDaemonConfig, config: MemberDaemonConfig, label: str, was: int, now: int
) -> Iterator[Change]:
    """The same file with other contents."""
    groups = running.document.group[was], config.document.group[now]
    before, after = (labelled(group.key_server) for group in groups)
    old = {server: place for place, server in enumerate(before)}
    for place, (server, entry) in enumerate(after.items()):
        if before.get(server) != entry:
            continue  # told already
        if running.secret_of(was, old[server]) != config.secret_of(now, place):
            yield Change(f"group[{label}].key_server[{server}].psk_file", SECRET, OTHER_SECRET)
