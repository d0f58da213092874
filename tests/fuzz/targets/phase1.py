"""Main mode by a peer that knows the pre-shared key: messages 5 and 6 with any payloads.

The first item is the ID payload and the HASH behind it is right, unless the input's first octet
says that it brings its own.
"""

from __future__ import annotations

from collections.abc import Callable

from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.wire.opaque import Hash
from gdoi_plugin.wire.payload import Body
from tests.fuzz.invariants import check_actions
from tests.fuzz.standing import story
from tests.fuzz.target import ENGINE_SHARE, Target
from tests.support.clone import clone
from tests.support.insider import (
    Raw,
    main_mode_exchange,
    pull_items,
    push_items,
    rewound,
    seal_main_mode,
)
from tests.support.worlds import SERVER, member_peer

OWN_HASH = 0xE0


def _payloads(data: bytes, digest: Callable[[bytes], bytes]) -> list[Raw | Body]:
    items = pull_items(data[1:])
    if not items or data[0] >= OWN_HASH:
        return [*items]
    return [items[0], Hash(digest(items[0].data)), *items[1:]]


def check_message_5(data: bytes) -> bool:
    moment = story().at("after message 4")
    exchange = rewound(main_mode_exchange(moment.member.engine))
    datagram = seal_main_mode(exchange, _payloads(data, exchange.hash_i))
    server = clone(moment.server)
    done = check_actions(server.receive(datagram, member_peer(0), SERVER, moment.now))
    assert len(server.isakmp.sessions) == done
    return done


def check_message_6(data: bytes) -> bool:
    moment = story().at("after message 5")
    exchange = clone(main_mode_exchange(moment.member.engine))
    datagram = seal_main_mode(exchange, _payloads(data, exchange.hash_r))
    side = clone(moment.member)
    return check_actions(side.receive(datagram, SERVER, member_peer(0), moment.now))


def _seeds() -> list[bytes]:
    peers = (member_peer(0), SERVER, member_peer(1))
    return [b"\0" + push_items([Identity.of_address(peer.host).payload()]) for peer in peers]


def targets() -> list[Target]:
    return [
        Target("main-mode-5-key-server", check_message_5, _seeds, ENGINE_SHARE),
        Target("main-mode-6-member", check_message_6, _seeds, ENGINE_SHARE),
    ]
