"""Why a message is not accepted. Anything else that leaves an engine is a bug."""

from __future__ import annotations

from ..wire.registry import NotifyType


class ProtocolError(Exception):
    """A well-formed message that the exchange does not allow here.

    ``notify`` is what the RFC wants the peer told, or None for silence; ``section`` is where.
    """

    def __init__(self, what: str, section: str, notify: NotifyType | None = None) -> None:
        super().__init__(f"{what} ({section})")
        self.notify = notify
        self.section = section


class AuthError(Exception):
    """A HASH, SIG or identity that does not prove what it must.

    ``notify``: what may be said about it in phase 1, in clear; later on it is never answered.
    """

    def __init__(self, what: str, notify: NotifyType = NotifyType.AUTHENTICATION_FAILED) -> None:
        super().__init__(what)
        self.notify = notify


class ReplayError(Exception):
    """An old or repeated message."""


class PolicyError(Exception):
    """Policy that this side cannot or may not follow; the text says which part and why."""
