"""What holds after every input, whoever sent it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from gdoi_plugin.protocol.actions import Action, Dropped, Send
from gdoi_plugin.wire.header import pull_header

ACTIONS = get_args(Action)
# A datagram is answered with one, and may make an end of an exchange and begin the next.
MAX_SENDS = 4


def check_actions(actions: Sequence[Action]) -> bool:
    """Known actions, datagrams that have a header, drops that say why. True: nothing dropped."""
    sends = 0
    for action in actions:
        assert isinstance(action, ACTIONS), type(action)
        if isinstance(action, Send):
            pull_header(action.datagram)
            sends += 1
        elif isinstance(action, Dropped):
            assert action.detail
        repr(action)
    assert sends <= MAX_SENDS, f"{sends} datagrams for one"
    return not any(isinstance(action, Dropped) for action in actions)
