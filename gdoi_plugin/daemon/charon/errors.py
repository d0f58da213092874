"""What goes wrong with charon: one family, each with what charon was asked and why it failed."""

from __future__ import annotations


class CharonError(Exception):
    """A question to charon that has no good answer. No message and no secret is in it."""

    def __init__(self, asked: str, why: str) -> None:
        super().__init__(f"charon: {asked}: {why}")
        self.asked, self.why = asked, why


class CharonLost(CharonError):
    """charon cannot be asked: it is not there, went away, stands still or sends what is no vici."""


class CharonRefused(CharonError):
    """charon answered no. ``log``: what it logged meanwhile, where it was asked to."""

    def __init__(self, asked: str, why: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(asked, why)
        self.log = log
