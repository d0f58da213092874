"""Acknowledgements with a HASH that is right over whatever SEQ and ID payloads say."""

from __future__ import annotations

from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.fuzz.invariants import check_actions
from tests.fuzz.standing import story
from tests.fuzz.target import ENGINE_SHARE, Target
from tests.support.clone import clone
from tests.support.insider import acknowledge, pull_items, push_items
from tests.support.worlds import SERVER, STRANGER, member_peer


def check_ack(data: bytes) -> bool:
    """True where it is counted."""
    moment = story().at("rekeyed, not heard")
    datagram = acknowledge(moment.group.current_kek().kek, pull_items(data))
    server = clone(moment.server)
    counted = check_actions(server.receive(datagram, member_peer(0), SERVER, moment.now))
    acknowledged = [
        i for r in server.groups.values() for k in r.ledger.values() for i in k.acknowledged
    ]
    assert len(acknowledged) == counted, "an ACK counts for one member, or for none"
    return counted


def _seeds() -> list[bytes]:
    hosts = (member_peer(0), member_peer(1), STRANGER)
    return [
        push_items([SequenceNumber(seq), Identity.of_address(peer.host).payload()])
        for peer in hosts
        for seq in (1, 2)
    ]


def targets() -> list[Target]:
    return [Target("ack-key-server", check_ack, _seeds, ENGINE_SHARE)]
