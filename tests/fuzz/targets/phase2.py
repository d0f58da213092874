"""GROUPKEY-PULL and Informational by a peer that has the keys of phase 1: it is what is in the
message that is hostile, under a HASH and a cipher that are right."""

from __future__ import annotations

from functools import cache, partial

from gdoi_plugin.protocol.actions import Action
from gdoi_plugin.protocol.policy import encode_kd, encode_sa
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import GroupAssociatedPolicy
from gdoi_plugin.wire.notification import Notification
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import Doi, ExchangeType, NotifyType, Protocol, TekProtocol
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.fuzz.invariants import check_actions
from tests.fuzz.standing import Moment, story
from tests.fuzz.target import ENGINE_SHARE, Target
from tests.support.clone import clone
from tests.support.insider import (
    Raw,
    as_either,
    as_key_server,
    as_member_3,
    member_sa,
    pull_items,
    push_items,
    server_sa,
)
from tests.support.worlds import SERVER, member_peer

MESSAGE_ID = 0x01020304


def _at_server(moment: Moment, datagram: bytes) -> list[Action]:
    return clone(moment.server).receive(datagram, member_peer(0), SERVER, moment.now)


def _at_member(moment: Moment, datagram: bytes) -> list[Action]:
    return clone(moment.member).receive(datagram, SERVER, member_peer(0), moment.now)


# -- GROUPKEY-PULL -------------------------------------------------------------------------------


def check_pull_1(data: bytes) -> bool:
    moment = story().at("after message 6")
    sa = server_sa(moment.server)
    datagram = as_either(sa, ExchangeType.GROUPKEY_PULL, MESSAGE_ID, pull_items(data))
    return check_actions(_at_server(moment, datagram))


def check_pull_3(data: bytes) -> bool:
    moment = story().at("after message 8")
    return check_actions(_at_server(moment, as_member_3(moment.server, pull_items(data))))


def check_pull_2(data: bytes) -> bool:
    moment = story().at("after message 7")
    datagram = as_key_server(moment.member.engine, pull_items(data))
    return check_actions(_at_member(moment, datagram))


def check_pull_4(data: bytes) -> bool:
    """Accepted where the group is registered with, all the way through the kernel."""
    moment = story().at("after message 9")
    datagram = as_key_server(moment.member.engine, pull_items(data))
    return check_actions(_at_member(moment, datagram))


def _seeds_1() -> list[bytes]:
    group_id = story().moments[0].group.config.group_id
    return [push_items([Nonce(bytes(range(16))), group_id.payload()])]


def _seeds_2() -> list[bytes]:
    moment = story().at("after message 7")
    policy = moment.offer
    return [push_items([Nonce(bytes(range(20))), encode_sa(policy)])]


def _seeds_3() -> list[bytes]:
    return [push_items([]), push_items([GroupAssociatedPolicy(())])]


def _seeds_4() -> list[bytes]:
    moment = story().at("after message 9")
    policy = moment.offer
    return [push_items([SequenceNumber(0), encode_kd(policy)])]


# -- Informational -------------------------------------------------------------------------------


def check_informational_server(data: bytes) -> bool:
    moment = story().registered
    sa = server_sa(moment.server)
    datagram = as_either(sa, ExchangeType.INFORMATIONAL, MESSAGE_ID, pull_items(data))
    return check_actions(_at_server(moment, datagram))


def check_informational_member(data: bytes) -> bool:
    """The first octet: while GROUPKEY-PULL is under way, or after it."""
    name = "after message 7" if data[:1] < b"\x80" else "after message 10"
    moment = story().at(name)
    sa = member_sa(moment.member.engine)
    datagram = as_either(sa, ExchangeType.INFORMATIONAL, MESSAGE_ID, pull_items(data[1:]))
    return check_actions(_at_member(moment, datagram))


@cache
def _informational() -> list[bytes]:
    sa = server_sa(story().registered.server)
    isakmp = Protocol.PROTO_ISAKMP
    said: list[list[Raw | Body]] = [
        [Delete(Doi.GDOI, isakmp, (sa.cookies,))],
        [Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_ESP, (b"\1\2\3\4",))],
    ]
    notify = partial(Notification, Doi.GDOI, isakmp, sa.cookies)
    said += [[notify(kind, b"\0\0\0\1")] for kind in NotifyType]
    return [push_items(payloads) for payloads in said]


def _informational_member() -> list[bytes]:
    return [first + seed for seed in _informational() for first in (b"\0", b"\xff")]


def targets() -> list[Target]:
    return [
        Target("pull-1-key-server", check_pull_1, _seeds_1, ENGINE_SHARE),
        Target("pull-2-member", check_pull_2, _seeds_2, ENGINE_SHARE),
        Target("pull-3-key-server", check_pull_3, _seeds_3, ENGINE_SHARE),
        Target("pull-4-member", check_pull_4, _seeds_4, ENGINE_SHARE),
        Target(
            "informational-key-server", check_informational_server, _informational, ENGINE_SHARE
        ),
        Target(
            "informational-member", check_informational_member, _informational_member, ENGINE_SHARE
        ),
    ]
