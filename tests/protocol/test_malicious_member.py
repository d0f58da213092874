"""A member with good keys that wants too much: what it can make a key server hold."""

from __future__ import annotations

import pytest

from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.sessions import MAX_PULLS_PER_SA
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import ExchangeType, IdType
from tests.support.insider import Raw, as_either, server_sa
from tests.support.worlds import member_peer, registered

GM = member_peer(0)
PULL = ExchangeType.GROUPKEY_PULL


def test_pulls_by_the_hundred_that_are_never_finished_fill_no_more_than_their_table() -> None:
    _, world = registered()
    engine = world.server.engine
    payloads: list[Raw | Body] = [Nonce(bytes(range(16))), world.group.config.group_id.payload()]
    for message_id in range(1000, 1300):
        world.server.hear(as_either(server_sa(engine), PULL, message_id, payloads), GM)
    (session,) = engine.isakmp.sessions.values()
    # Room is made before the next one is begun.
    assert len(session.pulls) <= MAX_PULLS_PER_SA + 1
    assert len(world.group.members) == 1


@pytest.mark.parametrize("octets", [7, 129, 2000])
def test_a_nonce_of_a_length_that_none_has_is_refused(octets: int) -> None:
    _, world = registered()
    payloads: list[Raw | Body] = [Nonce(bytes(octets)), world.group.config.group_id.payload()]
    datagram = as_either(server_sa(world.server.engine), PULL, 1000, payloads)
    (session,) = world.server.engine.isakmp.sessions.values()
    before = dict(session.pulls)
    world.server.hear(datagram, GM)
    # It is authentic, so a notify tells the member; no exchange is begun.
    assert world.server.dropped()[-1] is Drop.UNEXPECTED
    assert session.pulls == before


def test_another_group_is_refused_and_nothing_is_begun() -> None:
    _, world = registered()
    engine = world.server.engine
    payloads: list[Raw | Body] = [Nonce(bytes(16)), Identification(IdType.ID_KEY_ID, bytes(4))]
    before = dict(next(iter(engine.isakmp.sessions.values())).pulls)
    world.server.hear(as_either(server_sa(engine), PULL, 1000, payloads), GM)
    assert world.server.dropped()[-1] is Drop.UNKNOWN_GROUP
    assert next(iter(engine.isakmp.sessions.values())).pulls == before
