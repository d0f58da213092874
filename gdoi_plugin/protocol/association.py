"""An established phase-1 SA while it lives: everything that is said under it besides PULLs.

Both roles: DPD, lifetime, deletes and notifies, all in protected Informational exchanges of one
message each (RFC 2409 section 5.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.notification import Notification
from ..wire.registry import FIRST_STATUS_NOTIFY, NotifyType, Protocol, name_of
from .actions import Action, Drop, Dropped, Peer, Random, Send
from .dpd import Dpd, DpdConfig
from .errors import ProtocolError
from .isakmp import IsakmpSa, fresh_message_id, open_informational, seal_delete, seal_notify
from .lifetime import read_lifetime

# A PULL with all its repetitions takes half a minute: an SA with less than this left is not begun
# with any more.
MARGIN = 60.0
# Octets of a refusal's reason: a line or two in a log, and far from a fragment on the way.
MAX_REASON = 400


@dataclass(slots=True)
class Heard:
    """What an Informational message led to. ``errors``: error notifies about this SA, ``reasons``
    what each of them says in words."""

    actions: list[Action] = field(default_factory=list)
    errors: list[NotifyType | int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    initial_contact: bool = False
    deleted: bool = False


@dataclass(slots=True)
class Association:
    """``expires``: earlier than negotiated where the responder has said so."""

    sa: IsakmpSa
    random: Random = field(repr=False)
    dpd: Dpd
    expires: float

    @classmethod
    def start(cls, sa: IsakmpSa, random: Random, config: DpdConfig, now: float) -> Association:
        dpd = Dpd.start(config, random, now, peer_knows=sa.peer_dpd)
        return cls(sa, random, dpd, sa.expires)

    def usable(self, now: float) -> bool:
        """Whether another exchange may begin under it."""
        return now < self.expires - MARGIN

    def expired(self, now: float) -> bool:
        return now >= self.expires

    @property
    def deadline(self) -> float:
        asking = self.dpd.deadline
        return self.expires if asking is None else min(asking, self.expires)

    def tick(self, now: float) -> list[Action]:
        """The R-U-THERE that is due."""
        data = self.dpd.ask(now)
        return [] if data is None else [self.tell(NotifyType.R_U_THERE, data)]

    # -- said ------------------------------------------------------------------------------------

    def tell(self, kind: NotifyType, data: bytes = b"") -> Send:
        """A protected notify."""
        return self._send(seal_notify(self.sa, self._message_id(), kind, data))

    def delete(self) -> Send:
        """ "This SA is gone", RFC 2408 section 3.15."""
        return self._send(seal_delete(self.sa, self._message_id()))

    def _send(self, datagram: bytes) -> Send:
        return Send(datagram, self.sa.remote, self.sa.local)

    def _message_id(self) -> int:
        return fresh_message_id(self.random(4))

    # -- heard -----------------------------------------------------------------------------------

    def hear(self, header: Header, datagram: bytes, source: Peer, now: float) -> Heard:
        """A protected Informational message. Raises DecodeError, ProtocolError, AuthError."""
        if header.spi != self.sa.cookies or not header.message_id:
            raise ProtocolError("Informational of another SA", "RFC 2409 section 5.7")
        told = open_informational(self.sa, header, datagram)
        heard = Heard()
        for notification in told.notifications:
            self._notified(notification, heard, source, now)
        heard.deleted = any(
            delete.protocol_id == Protocol.PROTO_ISAKMP and self.sa.cookies in delete.spis
            for delete in told.deletes
        )
        return heard

    def _notified(self, notification: Notification, heard: Heard, source: Peer, now: float) -> None:
        kind = notification.notify_type
        if kind < FIRST_STATUS_NOTIFY:
            heard.errors.append(kind)
            heard.reasons.append(_readable(notification.data))
        elif notification.spi not in (b"", self.sa.cookies):
            # RFC 3706 section 6.1: the cookies of the payload are checked.
            heard.actions.append(Dropped(Drop.UNEXPECTED, source, "notify about another SA"))
        elif kind == NotifyType.R_U_THERE:
            self._asked(notification, heard, source, now)
        elif kind == NotifyType.R_U_THERE_ACK:
            if not self.dpd.answered(notification, now):
                heard.actions.append(Dropped(Drop.REPLAY, source, "R-U-THERE-ACK of no question"))
        elif kind == NotifyType.RESPONDER_LIFETIME:
            self._shorten(notification)
        elif kind == NotifyType.INITIAL_CONTACT:
            heard.initial_contact = True
        else:
            heard.actions.append(Dropped(Drop.IGNORED_NOTIFY, source, name_of(NotifyType, kind)))

    def _asked(self, question: Notification, heard: Heard, source: Peer, now: float) -> None:
        data = self.dpd.question(question, now)
        if data is None:
            heard.actions.append(Dropped(Drop.REPLAY, source, "R-U-THERE with an old number"))
        else:
            # RFC 3706 section 5.2: who has sent the vendor ID MUST respond.
            heard.actions.append(self.tell(NotifyType.R_U_THERE_ACK, data))

    def told_in_main_mode(self, notifications: Sequence[Notification]) -> None:
        """What stood beside IDir and HASH_R: encrypted, but no HASH covers it."""
        for notification in notifications:
            if notification.notify_type == NotifyType.RESPONDER_LIFETIME:
                with suppress(DecodeError):
                    self._shorten(notification)

    def _shorten(self, notification: Notification) -> None:
        """RESPONDER-LIFETIME only ever ends the SA earlier. Raises DecodeError."""
        seconds = read_lifetime(notification.data)
        if seconds is not None and self.sa.initiator:
            self.expires = min(self.expires, self.sa.established + seconds)


def _readable(data: bytes) -> str:
    """A peer's words for a log: whatever is no printable character is shown as one."""
    text = data[:MAX_REASON].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
