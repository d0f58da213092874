"""What peers offer in message 1, remembered by its octets and not by who sent it.

The peers of a deployment send the same few offers, so that message 1 of any number of peers, and
any number of times, leaves nothing behind: no exchange, and of the offer one copy. Offers that have
led to a phase 1 are kept apart, where no stranger can push them out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from ..crypto.cookie import fingerprint
from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.message import Message, pull_clear
from . import rules
from .errors import ProtocolError
from .main_mode import Answer, answer_offer
from .phase1 import Phase1Config

# Message 1 from its Next Payload on: neither of the cookies.
OFFER_AT = 16
# Octets of a message 1. A hundred transforms with a dozen vendor IDs have some 4,000.
MAX_OFFER = 8192
# Offers that have led to nothing yet, oldest out first: 8 MB at most. At the default of 100 new
# ones in a second each stays for 10 seconds, while a message 3 follows within a round trip.
MAX_UNPROVED = 1024
# Offers that have: one or two for each kind of peer.
MAX_PROVED = 256
# Answers to one offer: one for each phase-1 policy in the configuration, which are few.
MAX_ANSWERS = 16


@dataclass(slots=True, eq=False)
class Offer:
    """A message 1 without its cookies, ``message`` None where it is none, for ``flaw``."""

    number: int
    octets: bytes = field(repr=False)
    fingerprint: bytes
    message: Message | None
    flaw: str
    _answers: dict[Hashable, Answer | ProtocolError | DecodeError] = field(default_factory=dict)
    _asked: Hashable = None
    _answer: Answer | ProtocolError | DecodeError | None = None

    def answer(self, config: Phase1Config) -> Answer | ProtocolError | DecodeError:
        """Message 2 for a peer with this policy, or why there is none. Computed once."""
        policy = config.negotiation
        # Most often the policy of the time before, whose parts are the same objects.
        if self._answer is None or policy != self._asked:
            self._answer = self._answers.get(policy)
            if self._answer is None:
                while len(self._answers) >= MAX_ANSWERS:
                    del self._answers[next(iter(self._answers))]
                self._answer = self._answers[policy] = self._choose(config)
            self._asked = policy
        return self._answer

    def _choose(self, config: Phase1Config) -> Answer | ProtocolError | DecodeError:
        if self.message is None:
            return DecodeError(self.flaw, OFFER_AT)
        try:
            return answer_offer(self.message, config)
        except (ProtocolError, DecodeError) as error:
            return error.with_traceback(None)


@dataclass(slots=True)
class Offers:
    """Bounded, by number and by octets. A number is given anew only when its offer is gone."""

    _by_octets: dict[bytes, Offer] = field(default_factory=dict)
    _by_number: dict[int, Offer] = field(default_factory=dict)
    _unproved: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _proved: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _free: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._by_number)

    @property
    def proved(self) -> int:
        return len(self._proved)

    def known(self, datagram: bytes) -> Offer | None:
        """The offer of a message 1 that is, cookies aside, octet for octet one of before."""
        return self._by_octets.get(datagram[OFFER_AT:])

    def numbered(self, number: int) -> Offer | None:
        return self._by_number.get(number)

    def remember(self, header: Header, datagram: bytes) -> Offer:
        """A message 1 that is not known; one that breaks the rules is remembered as such."""
        message, flaw = None, ""
        try:
            message = pull_clear(header, datagram)
            rules.check(rules.MAIN_MODE[1], message)
        except DecodeError as error:
            message, flaw = None, str(error)
        octets = datagram[OFFER_AT:]
        offer = Offer(self._number(), octets, fingerprint(octets), message, flaw)
        self._by_octets[octets] = self._by_number[offer.number] = offer
        self._unproved[offer.number] = None
        return offer

    def prove(self, offer: Offer) -> None:
        """A peer that offered this has completed phase 1."""
        if self._by_number.get(offer.number) is not offer:
            return
        self._unproved.pop(offer.number, None)
        self._proved[offer.number] = None
        self._proved.move_to_end(offer.number)
        if len(self._proved) > MAX_PROVED:
            oldest, _ = self._proved.popitem(last=False)
            self._unproved[oldest] = None
            self._trim(MAX_UNPROVED)

    def _number(self) -> int:
        """1 to MAX_UNPROVED + MAX_PROVED: one that was used before where there is one."""
        self._trim(MAX_UNPROVED - 1)
        return self._free.pop() if self._free else len(self._by_number) + 1

    def _trim(self, most: int) -> None:
        while len(self._unproved) > most:
            number, _ = self._unproved.popitem(last=False)
            del self._by_octets[self._by_number.pop(number).octets]
            self._free.append(number)
