"""What a peer can say that has the keys and no manners: any payloads, sealed as they must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from gdoi_plugin.crypto import cipher
from gdoi_plugin.crypto.ack_key import ACK_PRFS, ack_hash, ack_key
from gdoi_plugin.crypto.keymat import phase1_iv
from gdoi_plugin.protocol.isakmp import IsakmpSa, Phase2Channel
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.policy import Kek
from gdoi_plugin.protocol.pull import PullState
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.message import with_body
from gdoi_plugin.wire.opaque import Hash
from gdoi_plugin.wire.payload import Body, encode_body, encode_chain
from gdoi_plugin.wire.registry import AckType, ExchangeType, Flags, PayloadType
from tests.support.clone import clone


@dataclass(frozen=True, slots=True)
class Raw:
    """A payload of any type with any octets; stands where a Body is wanted."""

    TYPE: int
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, body: Body) -> Raw:
        return cls(body.TYPE, encode_body(body))

    def push(self, buf: Buffer) -> None:
        buf.push_bytes(self.data)


def bodies(raws: Sequence[Raw | Body]) -> list[Body]:
    return [cast(Body, raw) for raw in raws]


# What fuzzing calls items: type (1) | length (2) | octets. Any octets are items, so that a change
# of one does not end the chain before it.
ITEM_LENGTH_MASK = 0x1FFF


def pull_items(data: bytes) -> list[Raw]:
    found = []
    at = 0
    while at + 3 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 3], "big") & ITEM_LENGTH_MASK
        found.append(Raw(data[at], data[at + 3 : at + 3 + length]))
        at += 3 + length
    return found


def push_items(raws: Sequence[Raw | Body]) -> bytes:
    return b"".join(
        bytes([raw.TYPE]) + len(octets).to_bytes(2, "big") + octets
        for raw in raws
        for octets in (encode_body(cast(Body, raw)),)
    )


# -- phase 1 -------------------------------------------------------------------------------------


def main_mode_exchange(engine: GroupMember) -> Any:
    """The values and keys of a registration that is in main mode; the key server has the same."""
    registration = engine.registrar.attempt
    assert registration is not None
    assert registration._main_mode is not None
    return registration._main_mode._x


def rewound(exchange: Any) -> Any:
    """The exchange as it was before message 5 was encrypted."""
    before = clone(exchange)
    before.iv = phase1_iv(before.suite.hash, before.g_xi, before.g_xr)
    return before


def seal_main_mode(exchange: Any, payloads: Sequence[Raw | Body]) -> bytes:
    """Message 5 or 6, whichever the exchange is at: HDR*, ``payloads``."""
    plain = encode_chain(bodies(payloads))
    key = exchange.material().encryption_key.reveal()
    body = cipher.encrypt(key, exchange.iv, plain)
    first = payloads[0].TYPE if payloads else PayloadType.NONE
    return with_body(exchange.header(Flags.ENCRYPTION), first, body)


# -- phase 2 -------------------------------------------------------------------------------------


def member_sa(engine: GroupMember) -> IsakmpSa:
    """The phase-1 SA a member has with its key server."""
    attempt, kept = engine.registrar.attempt, engine.registrar.association
    sa = attempt.sa if attempt is not None else kept.sa if kept is not None else None
    assert sa is not None
    return sa


def server_sa(engine: KeyServer) -> IsakmpSa:
    """The one phase-1 SA that a key server has."""
    (session,) = engine.isakmp.sessions.values()
    return session.sa


def as_key_server(engine: GroupMember, payloads: Sequence[Raw | Body]) -> bytes:
    """GROUPKEY-PULL message 2 or 4, whichever the member waits for: HDR*, HASH, ``payloads``."""
    registration = engine.registrar.attempt
    assert registration is not None
    pull = registration._pull
    assert pull is not None
    prefix = pull.ni_b + (b"" if pull.state is PullState.SENT_1 else pull._nr_b)
    return clone(pull._channel).seal(prefix, bodies(payloads))


def as_member_3(engine: KeyServer, payloads: Sequence[Raw | Body]) -> bytes:
    """GROUPKEY-PULL message 3 of the one exchange under way: HDR*, HASH(3), ``payloads``."""
    (session,) = engine.isakmp.sessions.values()
    (pull,) = session.pulls.values()
    exchange = pull.exchange
    return clone(exchange._channel).seal(exchange.ni_b + exchange.nr_b, bodies(payloads))


def as_either(
    sa: IsakmpSa, exchange: ExchangeType, message_id: int, payloads: Sequence[Raw | Body]
) -> bytes:
    """The first message of a new phase-2 exchange: HDR*, HASH(1), ``payloads``."""
    return Phase2Channel(sa, exchange, message_id).seal(b"", bodies(payloads))


# -- acknowledgements ----------------------------------------------------------------------------


def acknowledge(kek: Kek, payloads: Sequence[Raw | Body]) -> bytes:
    """HDR, HASH, ``payloads`` with the HASH over the first two."""
    octets = list(_with_headers(payloads))
    first, second, *_ = [*octets, b"", b""]
    kind = ACK_PRFS[AckType.REKEY_ACK_KEK_SHA256]
    digest = ack_hash(kind, ack_key(kind, kek.key, kek.spi), first, second)
    header = Header(kek.spi[:8], kek.spi[8:], PayloadType.HASH, ExchangeType.GROUPKEY_PUSH_ACK)
    following = payloads[0].TYPE if payloads else PayloadType.NONE
    body = encode_chain([Hash(digest)], following) + b"".join(octets)
    return with_body(header, PayloadType.HASH, body)


def _with_headers(payloads: Sequence[Raw | Body]) -> Iterator[bytes]:
    kinds = [*(p.TYPE for p in payloads[1:]), PayloadType.NONE]
    for payload, following in zip(payloads, kinds, strict=False):
        yield encode_chain([cast(Body, payload)], following)
