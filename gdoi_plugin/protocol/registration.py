"""One attempt of a member to register with one key server: phase 1, then GROUPKEY-PULL."""

from __future__ import annotations

from dataclasses import dataclass

from ..crypto.groups import BadPublicValue
from ..wire.buffer import DecodeError
from ..wire.header import NO_COOKIE, Header
from ..wire.message import pull_clear
from ..wire.notification import Notification
from ..wire.registry import (
    FIRST_STATUS_NOTIFY,
    ExchangeType,
    NotifyType,
    PayloadType,
    Protocol,
    name_of,
)
from .actions import Action, Drop, Dropped, KeyLog, Peer, Random, Send
from .errors import AuthError, PolicyError, ProtocolError
from .group_id import GroupId
from .isakmp import IsakmpSa, fresh_message_id, open_informational, seal_delete
from .main_mode import NONCE_LENGTH, Initiator, State
from .phase1 import Phase1Config
from .pull import PullInitiator, PullResult
from .retransmission import Retransmission


@dataclass(frozen=True, slots=True)
class KeyServerEntry:
    """A key server this group trusts: a row of the Group Peer Authorization Database."""

    remote: Peer
    phase1: Phase1Config


class Registration:
    """Drives the two exchanges. Ends with ``result`` or ``failure`` (a sentence) set."""

    def __init__(
        self, server: KeyServerEntry, group_id: GroupId, local: Peer, random: Random
    ) -> None:
        self.server = server
        self.local = local
        self.result: PullResult | None = None
        self.failure: str | None = None
        self._group = group_id.payload()
        self._random = random
        self._main_mode = Initiator(
            server.phase1, local, server.remote, random(8), random(NONCE_LENGTH)
        )
        self._pull: PullInitiator | None = None
        self._pending: Retransmission | None = None
        self._hint = "no answer"

    @property
    def sa(self) -> IsakmpSa | None:
        """The phase-1 SA, once there is one."""
        return self._main_mode.sa

    @property
    def deadline(self) -> float | None:
        return None if self._pending is None else self._pending.next_at

    def owns(self, header: Header) -> bool:
        return header.cky_i == self._main_mode.cky_i

    def start(self, now: float) -> list[Action]:
        return self._say(self._main_mode.start(), now)

    def tick(self, now: float) -> list[Action]:
        """Resends what has not been answered; gives up in the end."""
        if self._pending is None or not self._pending.due(now):
            return []
        datagram = self._pending.again(now)
        if datagram is None:
            phase = "phase 1" if self.sa is None else "GROUPKEY-PULL"
            return self._fail(f"{self.server.remote}: {phase}: {self._hint}")
        return [self._send(datagram)]

    def receive(self, header: Header, datagram: bytes, source: Peer, now: float) -> list[Action]:
        """A message with our initiator cookie. What does not prove itself changes nothing."""
        if source.host != self.server.remote.host:
            return [Dropped(Drop.UNKNOWN_PEER, source, "not the key server asked")]
        try:
            if header.exchange_type == ExchangeType.MAIN_MODE:
                return self._main_mode_message(header, datagram, now)
            if header.exchange_type == ExchangeType.GROUPKEY_PULL:
                return self._pull_message(header, datagram, source, now)
            if header.exchange_type == ExchangeType.INFORMATIONAL:
                return self._informational(header, datagram, source)
        except DecodeError as error:
            self._note_undecodable(header)
            return [Dropped(Drop.MALFORMED, source, str(error))]
        except BadPublicValue as error:
            return [Dropped(Drop.BAD_KEY_EXCHANGE, source, str(error))]
        except AuthError as error:
            self._hint = str(error)
            return [Dropped(Drop.AUTHENTICATION, source, str(error))]
        except ProtocolError as error:
            return [Dropped(Drop.UNEXPECTED, source, str(error))]
        return [Dropped(Drop.UNKNOWN_EXCHANGE, source, f"exchange {header.exchange_type}")]

    def abandon(self) -> list[Action]:
        """Tells the key server that the phase-1 SA is gone (RFC 2408 section 3.15)."""
        self._pending = None
        if self.sa is None:
            return []
        return [self._send(seal_delete(self.sa, fresh_message_id(self._random(4))))]

    # -- inside ----------------------------------------------------------------------------------

    def _main_mode_message(self, header: Header, datagram: bytes, now: float) -> list[Action]:
        reply = self._main_mode.receive(header, datagram, now)
        if reply is not None:
            if self._main_mode.state is State.SENT_AUTH:
                # A key server that cannot decrypt message 5 must be silent.
                self._hint = (
                    "no answer to message 5: is the pre-shared key the same on both sides,"
                    " and does the key server expect this identity?"
                )
            return self._say(reply, now)
        sa = self._main_mode.sa
        if sa is None:
            raise AssertionError("main mode ended without an SA")
        self._hint = "no answer"
        message_id = fresh_message_id(self._random(4))
        self._pull = PullInitiator(sa, message_id, self._random(NONCE_LENGTH), self._group)
        return [
            KeyLog(sa.cky_i, sa.keys.encryption_key.reveal()),
            sa.event("phase1-established"),
            *self._say(self._pull.start(), now),
        ]

    def _pull_message(
        self, header: Header, datagram: bytes, source: Peer, now: float
    ) -> list[Action]:
        pull = self._pull
        if pull is None or self.sa is None or header.cky_r != self.sa.cky_r:
            return [Dropped(Drop.UNEXPECTED, source, "GROUPKEY-PULL before phase 1")]
        if header.message_id != pull.message_id or self.result is not None:
            return [Dropped(Drop.DUPLICATE, source, f"message id 0x{header.message_id:08x}")]
        try:
            reply = pull.receive(header, datagram)
        except PolicyError as error:
            # RFC 6407 section 3.3: tear phase 1 down, after a Delete that tells the key server.
            return [
                Dropped(Drop.UNACCEPTABLE_POLICY, source, str(error)),
                *self._fail(f"{source}: policy not acceptable: {error}"),
            ]
        if reply is None:
            self.result = pull.result
            self._pending = None
            return []
        return self._say(reply, now)

    def _informational(self, header: Header, datagram: bytes, source: Peer) -> list[Action]:
        if self.sa is None or not header.encrypted:
            return self._clear_notify(header, datagram, source)
        if header.cky_r != self.sa.cky_r or not header.message_id:
            return [Dropped(Drop.UNEXPECTED, source, "Informational of another SA")]
        told = open_informational(self.sa, header, datagram)
        for notification in told.notifications:
            if notification.notify_type < FIRST_STATUS_NOTIFY:
                kind = name_of(NotifyType, notification.notify_type)
                return self._fail(f"{source}: key server answered {kind}")
        for delete in told.deletes:
            if delete.protocol_id == Protocol.PROTO_ISAKMP and self.sa.cookies in delete.spis:
                return self._fail(f"{source}: key server deleted the phase-1 SA", tell=False)
        return []

    def _clear_notify(self, header: Header, datagram: bytes, source: Peer) -> list[Action]:
        """Anybody can send one: it is kept as a hint for the log and ends nothing."""
        message = pull_clear(header, datagram)
        kinds = [
            name_of(NotifyType, p.parse(Notification).notify_type)
            for p in message.all(PayloadType.NOTIFY)
        ]
        if header.cky_r == NO_COOKIE or self.sa is None:
            self._hint = f"no answer but an unauthenticated {', '.join(kinds) or 'message'}"
        return [Dropped(Drop.CLEAR_NOTIFY, source, ", ".join(kinds))]

    def _note_undecodable(self, header: Header) -> None:
        if header.encrypted and self.sa is None:
            self._hint = "answer cannot be decrypted: is the pre-shared key the same on both sides?"

    def _fail(self, why: str, *, tell: bool = True) -> list[Action]:
        self.failure = why
        actions = self.abandon() if tell else []
        self._pending = None
        return actions

    def _say(self, datagram: bytes, now: float) -> list[Action]:
        self._pending = Retransmission.start(datagram, now)
        return [self._send(datagram)]

    def _send(self, datagram: bytes) -> Send:
        return Send(datagram, self.server.remote, self.local)
