"""Any datagram from anybody at any moment: actions, no exception, and nothing changes.

An input is the moment (1 octet), who sends it (1 octet) and the datagram.
"""

from __future__ import annotations

from functools import cache, partial

from gdoi_plugin.protocol.actions import Action, Peer
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.wire.registry import ExchangeType
from tests.fuzz.invariants import check_actions
from tests.fuzz.standing import MemberSide, Moment, Witness, story
from tests.fuzz.target import Target
from tests.support.clone import clone
from tests.support.worlds import REKEY, SERVER, STRANGER, member_peer

SHARE = 40_000
PEERS = (SERVER, member_peer(0), member_peer(1), STRANGER)


@cache
def _authentic() -> frozenset[bytes]:
    return frozenset(send.datagram for send in story().messages)


@cache
def _witness(at_server: bool, index: int) -> Witness:
    return Witness(_engine(at_server, story().moments[index]))


def _engine(at_server: bool, moment: Moment) -> object:
    return moment.server if at_server else moment.member


def _tell(datagram: bytes, source: Peer, now: float, engine: object) -> list[Action]:
    if isinstance(engine, KeyServer):
        return engine.receive(datagram, source, SERVER, now)
    assert isinstance(engine, MemberSide)
    push = datagram[18:19] == bytes([ExchangeType.GROUPKEY_PUSH])
    return engine.receive(datagram, source, REKEY if push else member_peer(0), now)


def check(at_server: bool, data: bytes) -> bool:
    if len(data) < 2:
        return False
    index, source = data[0] % len(story().moments), PEERS[data[1] % len(PEERS)]
    datagram, moment = data[2:], story().moments[index]
    tell = partial(_tell, datagram, source, moment.now)
    believed = not at_server and datagram[18:19] == bytes([ExchangeType.MAIN_MODE])
    if believed or datagram in _authentic():
        return check_actions(tell(clone(_engine(at_server, moment))))
    return check_actions(_witness(at_server, index).hears(data, tell))


def _seeds() -> list[bytes]:
    """Every message at the moment before it arrives and at one when it does not fit."""
    seeds = []
    for number, send in enumerate(story().messages):
        source = bytes([PEERS.index(send.source)])
        moments = {min(number, len(story().moments) - 1), 7 * number % len(story().moments)}
        seeds += [bytes([moment]) + source + send.datagram for moment in sorted(moments)]
    return seeds


def targets() -> list[Target]:
    return [
        Target("datagram-key-server", partial(check, True), _seeds, SHARE),
        Target("datagram-member", partial(check, False), _seeds, SHARE),
    ]
