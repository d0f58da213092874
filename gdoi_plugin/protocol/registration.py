"""One attempt of a member to register with one key server: phase 1, then GROUPKEY-PULL."""

from __future__ import annotations

from dataclasses import dataclass

from ..crypto.groups import BadPublicValue
from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.message import pull_clear
from ..wire.notification import Notification
from ..wire.registry import NAT_PORT, ExchangeType, NotifyType, PayloadType, name_of
from .actions import Action, Drop, Dropped, KeyLog, Peer, Random, Send
from .association import MAX_REASON, Association
from .dpd import OFF, DpdConfig
from .errors import AuthError, PolicyError, ProtocolError
from .group_id import GroupId
from .isakmp import IsakmpSa, fresh_message_id
from .main_mode import NONCE_LENGTH, Initiator, State
from .nat import Path
from .phase1 import Phase1Config
from .pull import PullInitiator, PullResult
from .retransmission import TRIES, Retransmission

# Under an SA of an earlier registration, which the key server may have lost in a restart: 7 s, then
# a new main mode.
TRIES_REUSING = 3


@dataclass(frozen=True, slots=True)
class KeyServerEntry:
    """A key server this group trusts: a row of the Group Peer Authorization Database.

    ``initial_contact``: the first phase 1 after a start tells it so (RFC 2407 section 4.6.3.3).
    """

    remote: Peer
    phase1: Phase1Config
    dpd: DpdConfig = OFF
    initial_contact: bool = True
    nat_port: int = NAT_PORT

    @property
    def nat_endpoint(self) -> Peer:
        """Where messages go from message 5 on if there is a NAT."""
        return Peer(self.remote.host, self.nat_port)


class Registration:
    """Drives the two exchanges. Ends with ``result`` or ``failure`` (a sentence) set.

    With ``association``, the phase-1 SA of an earlier registration, PULL comes at once; where the
    key server does not answer under it or refuses, phase 1 is done anew.
    """

    def __init__(
        self,
        server: KeyServerEntry,
        group: GroupId,
        local: Peer,
        random: Random,
        association: Association | None = None,
        *,
        initial_contact: bool = False,
        nat_local: Peer | None = None,
        sender_ids: int = 0,
    ) -> None:
        """``nat_local``: our endpoint behind a NAT, None where NAT traversal is off."""
        self.server = server
        self.path = Path(local, server.remote) if association is None else association.sa.path
        self._first_path = Path(local, server.remote)
        self._moved = None if nat_local is None else Path(nat_local, server.nat_endpoint)
        self.association = association
        self.result: PullResult | None = None
        self.failure: str | None = None
        self.contacted = self.association is not None  # phase 1 was established
        self._group = group
        self._random = random
        self._reusing = association is not None
        self._initial_contact = initial_contact
        self._sender_ids = sender_ids
        self._main_mode: Initiator | None = None
        self._pull: PullInitiator | None = None
        self._pending: Retransmission | None = None
        # For the log, where the attempt ends in silence: what it may be, and what somebody said.
        self._hint = ""
        self._said = ""

    @property
    def sa(self) -> IsakmpSa | None:
        """The phase-1 SA, once there is one."""
        return None if self.association is None else self.association.sa

    @property
    def deadline(self) -> float | None:
        return None if self._pending is None else self._pending.next_at

    def owns(self, header: Header) -> bool:
        if self.sa is not None:
            return header.cky_i == self.sa.cky_i
        return self._main_mode is not None and header.cky_i == self._main_mode.cky_i

    def start(self, now: float) -> list[Action]:
        return self._begin_phase1(now) if self.association is None else self._begin_pull(now)

    def tick(self, now: float) -> list[Action]:
        """Resends what has not been answered; gives up in the end."""
        if self._pending is None or not self._pending.due(now):
            return []
        datagram = self._pending.again(now)
        if datagram is not None:
            return [self._send(datagram)]
        phase = "phase 1" if self.sa is None else "GROUPKEY-PULL"
        said = f" but an unauthenticated {self._said}" if self._said else ""
        why = f"{self.server.remote}: {phase}: no answer{said}"
        return self._fail(f"{why}: {self._hint}" if self._hint else why, now)

    def receive(self, header: Header, datagram: bytes, source: Peer, now: float) -> list[Action]:
        """A message with our initiator cookie. What does not prove itself changes nothing."""
        if source.host != self.server.remote.host:
            return [Dropped(Drop.UNKNOWN_PEER, source, "not the key server asked")]
        try:
            if header.exchange_type == ExchangeType.MAIN_MODE:
                return self._main_mode_message(header, datagram, source, now)
            if header.exchange_type == ExchangeType.GROUPKEY_PULL:
                return self._pull_message(header, datagram, source, now)
            if header.exchange_type == ExchangeType.INFORMATIONAL:
                return self._informational(header, datagram, source, now)
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
        association, self.association = self.association, None
        return [] if association is None else [association.delete()]

    def refuse(self, why: str) -> list[Action]:
        """The policy is not acceptable: RFC 6407 section 3.3 has the key server told by a Delete.

        A Delete has no room for a reason; a NO-PROPOSAL-CHOSEN before it does (RFC 2408 section
        3.14: its data may be an error message).
        """
        if self.association is None:
            return self.abandon()
        reason = self.association.tell(NotifyType.NO_PROPOSAL_CHOSEN, why.encode()[:MAX_REASON])
        return [reason, *self.abandon()]

    # -- phase 1 ---------------------------------------------------------------------------------

    def _begin_phase1(self, now: float) -> list[Action]:
        self._reusing = False
        self._hint = self._said = ""
        self.path = self._first_path
        self._main_mode = Initiator(
            self.server.phase1,
            self.path,
            self._random(8),
            self._random(NONCE_LENGTH),
            moved=self._moved,
            initial_contact=self._initial_contact,
        )
        return self._say(self._main_mode.start(), now)

    def _main_mode_message(
        self, header: Header, datagram: bytes, source: Peer, now: float
    ) -> list[Action]:
        main_mode = self._main_mode
        if main_mode is None:
            return [Dropped(Drop.UNEXPECTED, source, "phase 1 is complete")]
        reply = main_mode.receive(header, datagram, now)
        self.path = main_mode.path
        if reply is not None:
            if main_mode.state is State.SENT_AUTH:
                # Without the same key it cannot even read message 5.
                self._hint = (
                    "message 5 was not accepted: is the pre-shared key the same on both sides, or"
                    " our certificate good, and does the key server expect this identity?"
                )
            return self._say(reply, now)
        sa = main_mode.sa
        if sa is None:
            raise AssertionError("main mode ended without an SA")
        self._hint = self._said = ""
        self.contacted = True
        self.association = Association.start(sa, self._random, self.server.dpd, now)
        self.association.told_in_main_mode(main_mode.notifications)
        return [
            KeyLog(sa.cky_i, sa.keys.encryption_key.reveal()),
            sa.event("phase1-established"),
            *self._begin_pull(now),
        ]

    def _note_undecodable(self, header: Header) -> None:
        if header.encrypted and self.sa is None:
            self._hint = "message 6 cannot be read: is the pre-shared key the same on both sides?"

    # -- GROUPKEY-PULL ---------------------------------------------------------------------------

    def _begin_pull(self, now: float) -> list[Action]:
        if self.sa is None:
            raise AssertionError("GROUPKEY-PULL before phase 1")
        message_id = fresh_message_id(self._random(4))
        nonce = self._random(NONCE_LENGTH)
        self._pull = PullInitiator(
            self.sa, message_id, nonce, self._group.payload(), self._sender_ids
        )
        tries = TRIES_REUSING if self._reusing else TRIES
        return self._say(self._pull.start(), now, tries)

    def _pull_message(
        self, header: Header, datagram: bytes, source: Peer, now: float
    ) -> list[Action]:
        pull, association = self._pull, self.association
        if pull is None or association is None or header.cky_r != association.sa.cky_r:
            return [Dropped(Drop.UNEXPECTED, source, "GROUPKEY-PULL before phase 1")]
        if header.message_id != pull.message_id or self.result is not None:
            return [Dropped(Drop.DUPLICATE, source, f"message id 0x{header.message_id:08x}")]
        try:
            reply = pull.receive(header, datagram)
        except PolicyError as error:
            # RFC 6407 section 3.3: tear phase 1 down, after a Delete that tells the key server.
            self.failure = f"{source}: policy not acceptable: {error}"
            drop = Dropped(Drop.UNACCEPTABLE_POLICY, source, str(error))
            return [drop, *self.refuse(str(error))]
        association.dpd.heard(now)
        if reply is None:
            self.result = pull.result
            self._pending = None
            return []
        return self._say(reply, now)

    # -- Informational ---------------------------------------------------------------------------

    def _informational(
        self, header: Header, datagram: bytes, source: Peer, now: float
    ) -> list[Action]:
        association = self.association
        if association is None or not header.encrypted:
            return self._clear_notify(header, datagram, source)
        heard = association.hear(header, datagram, source, now)
        if heard.deleted:
            self.association = None
            return [
                *heard.actions,
                *self._fail(f"{source}: key server deleted the phase-1 SA", now),
            ]
        if heard.errors:
            kind = name_of(NotifyType, heard.errors[0])
            return [*heard.actions, *self._fail(f"{source}: key server answered {kind}", now)]
        return heard.actions

    def _clear_notify(self, header: Header, datagram: bytes, source: Peer) -> list[Action]:
        """Anybody can send one: it is kept as a hint for the log and ends nothing."""
        message = pull_clear(header, datagram)
        kinds = [
            name_of(NotifyType, p.parse(Notification).notify_type)
            for p in message.all(PayloadType.NOTIFY)
        ]
        if self.sa is None:
            self._said = ", ".join(kinds) or "message"
        return [Dropped(Drop.CLEAR_NOTIFY, source, ", ".join(kinds))]

    # -- small things ----------------------------------------------------------------------------

    def _fail(self, why: str, now: float) -> list[Action]:
        """The end of the attempt, unless it was under an old SA: then phase 1 is done anew."""
        actions = self.abandon()
        if self._reusing:
            return [*actions, *self._begin_phase1(now)]
        self.failure = why
        return actions

    def _say(self, datagram: bytes, now: float, tries: int = TRIES) -> list[Action]:
        self._pending = Retransmission.start(datagram, now, tries)
        return [self._send(datagram)]

    def _send(self, datagram: bytes) -> Send:
        return Send(datagram, self.path.remote, self.path.local)
