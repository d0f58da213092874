"""The members of a simulated group, and the paths between them and their key servers."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, exp, inf, log, sqrt
from random import Random

from gdoi_plugin.protocol.retransmission import FIRST_INTERVAL, TRIES

# A registration's exchanges: main mode has three, GROUPKEY-PULL two.
EXCHANGES = 5
# Above this variance a binomial number is drawn as a normal one, rounded.
NORMAL = 100.0


@dataclass(frozen=True, slots=True)
class Network:
    """Probabilities per datagram and receiver, seconds.

    ``loss`` is each datagram's own. Beside it a path, which ``site`` members share, is cut off for
    ``burst`` seconds in the mean, and for a share ``burst_loss`` of all time. What goes one way at
    one time keeps its order, but for a share ``reorder`` that is up to ``jitter`` later.
    """

    loss: float = 0.01
    burst_loss: float = 0.005
    burst: float = 5.0
    site: int = 20
    delay: float = 0.02
    jitter: float = 0.05
    reorder: float = 0.001

    @property
    def lost(self) -> float:
        """The share of all datagrams."""
        return 1 - (1 - self.loss) * (1 - self.burst_loss)

    @property
    def round_trip(self) -> float:
        return 2 * self.delay + self.jitter

    def still_cut(self, seconds: float) -> float:
        """How much of what a path's state tells of its usual state is left after some time."""
        return exp(-seconds / (self.burst * (1 - self.burst_loss)))

    def missed(self, tries: int, interval: float) -> float:
        """The probability that so many datagrams, one each ``interval``, are all lost."""
        cut, open_ = self.burst_loss, (1 - self.burst_loss) * self.loss
        left = self.still_cut(interval)
        for _ in range(tries - 1):
            was_cut = cut * (left + (1 - left) * self.burst_loss)
            gets_cut = open_ * (1 - left) * self.burst_loss
            cut, open_ = was_cut + gets_cut, (cut + open_ - was_cut - gets_cut) * self.loss
        return cut + open_


class Paths:
    """Each site's path: cut off or not, a Markov chain in continuous time, looked at when asked."""

    def __init__(self, network: Network, members: int, rng: Random) -> None:
        sites = -(-members // network.site)
        self._network, self._rng = network, rng
        self._cut = bytearray(rng.random() < network.burst_loss for _ in range(sites))
        self._seen = array("d", bytes(8 * sites))

    def is_cut(self, member: int, now: float) -> bool:
        """``now`` must not go back."""
        usual = self._network.burst_loss
        if not usual:
            return False
        site = member // self._network.site
        passed = now - self._seen[site]
        if passed > 0:
            self._seen[site] = now
            left = self._network.still_cut(passed)
            self._cut[site] = self._rng.random() < usual + (self._cut[site] - usual) * left
        return self._cut[site] == 1


class Population:
    """Who lacks which parts of the new epoch, and of which the key server has not heard.

    Bit 0 is the new KEK, the others are the PUSHes with TEKs. Members are numbers; those of a Rekey
    SA follow one another.
    """

    def __init__(self, members: int) -> None:
        self.lacks = array("Q", bytes(8 * members))
        self.unheard = array("Q", bytes(8 * members))
        self.held_at = array("d", [inf]) * members
        # Evicted: no members any more.
        self.gone: frozenset[int] = frozenset()
        # Restarted, and without keys until they have registered.
        self.away: set[int] = set()
        # What became of those that were away: when they came or went (1, -1), and got or lost keys.
        self._told: dict[int, list[tuple[float, int, int]]] = {}

    def __len__(self) -> int:
        return len(self.lacks)

    def leave(self, member: int, now: float) -> None:
        held = self.held_at[member]
        told = self._story(member)
        told.append((now, -1, -1 if held <= now else 0))
        if now < held < inf:
            told[:] = [change for change in told if change[0] != held]
        self.held_at[member] = inf
        self.away.add(member)

    def come_back(self, member: int, now: float) -> None:
        self._story(member).append((now, 1, 0))

    def register(self, member: int, now: float) -> None:
        """It has every key, and no ACK of it is waited for."""
        if now < self.held_at[member]:
            if member in self._told:
                self._told[member].append((now, 0, 1))
            self.held_at[member] = now
        self.lacks[member] = self.unheard[member] = 0
        self.away.discard(member)

    def begin_away(self, member: int) -> None:
        self.away.add(member)
        self._told[member] = []

    def _story(self, member: int) -> list[tuple[float, int, int]]:
        """Of who has been up from the beginning, where nothing is told yet."""
        if member not in self._told:
            held = self.held_at[member]
            self._told[member] = [(0.0, 1, 0), *([(held, 0, 1)] if held < inf else [])]
        return self._told[member]

    def curve(self) -> Curve:
        steady = [m for m in range(len(self)) if m not in self.gone and m not in self._told]
        held = sorted(at for m in steady if (at := self.held_at[m]) < inf)
        up, holding = len(steady), 0
        steps = [(0.0, up, holding)]
        for at, comes, gets in sorted(change for told in self._told.values() for change in told):
            up, holding = up + comes, holding + gets
            steps.append((at, up, holding))
        return Curve(held, steps)


@dataclass(frozen=True, slots=True)
class Curve:
    """Which share of the members that are up holds the new epoch, over time.

    ``held``: when each member that was always up got it. ``steps``: at a time, how many are up, and
    how many of those that were not always hold it.
    """

    held: list[float]
    steps: list[tuple[float, int, int]]

    def reached(self, share: float) -> float:
        """The first time of this share; infinite where it never comes."""
        for (begin, up, others), (end, _, _) in pairwise([*self.steps, (inf, 0, 0)]):
            wanted = ceil(share * up - 1e-6) - others
            at = begin if wanted <= 0 else inf
            if 0 < wanted <= len(self.held):
                at = max(begin, self.held[wanted - 1])
            if at < end:
                return at
        return inf

    def share(self, now: float) -> float:
        _, up, others = self.steps[bisect_right(self.steps, (now, inf, inf)) - 1]
        return (bisect_right(self.held, now) + others) / up if up else 1.0


# -- random numbers ------------------------------------------------------------------------------


def binomial(rng: Random, number: int, probability: float) -> int:
    """How many of ``number`` things happen."""
    if probability > 0.5:
        return number - binomial(rng, number, 1 - probability)
    variance = number * probability * (1 - probability)
    if variance > NORMAL:
        drawn = round(rng.gauss(number * probability, sqrt(variance)))
        return min(max(drawn, 0), number)
    count, at = 0, 0
    while probability > 0:
        # The gaps between those that happen are geometric.
        at += int(log(1 - rng.random()) / log(1 - probability)) + 1
        if at > number:
            break
        count += 1
    return count


def registering(network: Network, rng: Random) -> float:
    """Seconds that the exchanges of a registration take, the key server's own work apart."""
    taken = 0.0
    arrives = (1 - network.lost) ** 2
    for _ in range(EXCHANGES):
        wait, tries = FIRST_INTERVAL, 1
        while rng.random() >= arrives:
            taken += wait
            # After the last try the member begins anew, with the shortest interval.
            wait, tries = (2 * wait, tries + 1) if tries < TRIES else (FIRST_INTERVAL, 1)
        taken += 2 * network.delay + network.jitter * (rng.random() + rng.random())
    return taken
