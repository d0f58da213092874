"""An engine brought to a state, one input, and the outcome in a word: what tables are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gdoi_plugin.protocol.actions import Action, Dropped, Event, Send
from tests.support.forge import flip, is_clear_notify

# What an engine may tell besides dropping and sending, in the order of importance; one is enough.
TOLD = {
    "registered": "registered",
    "rekey-installed": "installed",
    "install-failed": "not installed",
    "registration-failed": "failed",
    "member-registered": "admitted",
    "rekey-acked": "acknowledged",
    "rekey-started": "rekeyed",
    "phase1-established": "established",
    "phase1-deleted": "ended",
    "registering": "began",
}


def outcome(actions: Sequence[Action]) -> str:
    """The reason of a drop, else what was told, then whether something was said."""
    words = [str(a.reason) for a in actions if isinstance(a, Dropped)][:1]
    names = {a.name for a in actions if isinstance(a, Event)}
    words += [word for name, word in TOLD.items() if name in names][:1]
    if any(isinstance(a, Send) and not is_clear_notify(a) for a in actions):
        words.append("said")
    return ", ".join(words) or "nothing"


def guarded(step: Callable[[], Sequence[Action] | bytes | object | None]) -> str:
    """The same for a step of an exchange that answers with octets or raises."""
    try:
        answer = step()
    except Exception as error:  # noqa: BLE001 -- its type is the outcome
        return type(error).__name__
    return "done" if answer is None else "said"


# The tables have short words for what would not fit a column; ``*``: the engine's state changed.
LEGEND = {
    "-": "nothing",
    "say": "said",
    "again": "duplicate, said",
    "dup": "duplicate",
    "cky": "unknown-cookies",
    "peer": "unknown-peer",
    "mal": "malformed",
    "une": "unexpected-message",
    "aut": "authentication-failed",
    "exch": "unknown-exchange",
    "ex34": "ignored-exchange",
    "frag": "fragment",
    "clr": "unauthenticated-notify",
    "ign": "ignored-notify",
    "est": "established, said",
    "reg": "registered",
    "adm": "admitted, said",
    "inst": "installed, said",
    "fail": "failed",
    "lost": "failed, said",
    "not": "not installed",
    "back": "not installed, said",
    "beg": "began, said",
    "end": "ended",
    "out": "ended, said",
    "ack": "acknowledged",
    "who": "ack-unknown-member",
    "spi": "ack-unknown-spi",
    "seq": "ack-unknown-seq",
    "bad": "ack-malformed",
    "done": "done",
    "D": "DecodeError",
    "P": "ProtocolError",
}


# What can be wrong with a datagram; a stranger's octets are right.
CHANGES: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda d: d,
    "other keys": lambda d: flip(d, len(d) - 1, 3),
    "message ID": lambda d: flip(d, 23, 0),
    "CKY-I": lambda d: flip(d, 3, 0),
    "CKY-R": lambda d: flip(d, 11, 0),
    "cut": lambda d: d[:-5],
    "stranger": lambda d: d,
}


def read_table(text: str) -> dict[tuple[str, str], str]:
    """(input, state) to outcome. The first line names the columns."""
    head, *lines = text.strip("\n").splitlines()
    states = head.split("|")[1].split()
    table: dict[tuple[str, str], str] = {}
    for line in lines:
        name, cells = line.split("|")
        for state, word in zip(states, cells.split(), strict=True):
            key = (name.strip(), state)
            assert key not in table, f"twice: {key}"
            table[key] = LEGEND[word.rstrip("*")] + "*" * word.endswith("*")
    return table
