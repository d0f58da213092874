"""Acknowledgements many at a time: what :mod:`.ack_ledger` decides of one, by fixed offsets.

::

     0                    16      24       28      32        32 + h  40 + h         52 + h or 64 + h
     +--------------------+-------+--------+-------+---------+-------+--------------+
     ! SPI of the PUSH    ! HDR   ! Length !  HASH, h octets ! SEQ   ! ID           !
     +--------------------+-------+--------+-------+---------+-------+--------------+

What stands before HASH is the same in all ACKs of one KEK and length, SEQ in all of one PUSH, ID in
all of one member: each is looked up as a whole, and so is its form. Checks in the order of their
price: length and header, SPI, ID, SEQ, duplicate, and one HMAC with a key that is set already.

An ACK follows from SPI, SEQ and ID. Where there is time before it comes (:meth:`AckGate.prepare`)
all of its octets are computed and looked up at once. Nothing is learned from how long that takes:
a dictionary compares octets only where a keyed hash of all of them is equal.

What is rare (an ID that is no address, members behind one address, parts of a rekey, another
reading of L) is left undecided, for :mod:`.ack_ledger`; which would decide the rest the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from struct import Struct

from ..crypto.ack_key import ACK_PRFS, ack_key
from ..crypto.prf import KeyedPrf, equal, keyed_prf
from ..crypto.secret import Secret
from ..wire.header import HEADER_LENGTH, KNOWN_FLAGS, NO_COOKIE
from ..wire.payload import GENERIC_HEADER_LENGTH
from ..wire.registry import VERSION_1_0, ExchangeType, IdType, PayloadType
from .ack import HASH_LENGTHS, MAX_LENGTH, base_key
from .ack_check import PREFIX as _PREFIX
from .ack_check import SEQ_HEAD as _SEQ_HEAD
from .ack_check import SEQ_LENGTH as _SEQ_LENGTH
from .ack_check import SPI_LENGTH as _SPI
from .ack_check import USUAL as _USUAL
from .ack_check import Claim, Portion, Row, prefix, seq_payload
from .ack_page import BadAcks, Page
from .actions import Drop
from .forest import ServerKek
from .group import Group, GroupConfig
from .page import Rekey
from .roster import Registrant, Roster, ack_ids

_HASH_HEADS = {bytes((PayloadType.SEQ, 0, 0, GENERIC_HEADER_LENGTH + n)): n for n in HASH_LENGTHS}
# Octets of an ID payload with an address.
_ID_LENGTHS = frozenset({12, 24})
# Datagrams that are computed before they come: 250 octets each.
MAX_EXPECTED = 1 << 19


@dataclass(slots=True, eq=False)
class _Push:
    """One SEQ under one KEK, and one length of HASH.

    ``ack_type`` is None where none with that length was asked for. ``state``: the prf with the key
    that all members have, None where each has its own. ``certain``: what was not made with that
    key was made with none that counts.
    """

    page: Page
    seq: int
    known: _Known
    ack_type: int | None
    state: KeyedPrf | None
    certain: bool
    # Some members are not asked for ACKs.
    rare: bool


@dataclass(slots=True, eq=False)
class _Known:
    """A KEK that ACKs come under, as it was when it was looked at last."""

    group: Group
    under: ServerKek
    config: GroupConfig
    seq: int
    rekeys: dict[int, Rekey]
    choosy: bool
    # By length of HASH, then by SEQ payload. None: not to be decided here.
    pushes: dict[int, dict[bytes, _Push | None]]
    # By length of HASH and number: whose leaf of the tree, and the prf with its ack_key.
    leaves: dict[tuple[int, int], tuple[Registrant, int, KeyedPrf]] = field(default_factory=dict)


_Form = tuple[_Known, dict[bytes, _Push | None], Roster, int, int]
# A PUSH and whose ACK of it: that one counts, unless it has been heard.
_Verified = tuple[_Push, Registrant]


@dataclass(slots=True)
class Verdicts:
    """Of many datagrams, by their places. Those that are in neither have been counted."""

    refused: dict[Drop, list[int]] = field(default_factory=dict)
    undecided: list[int] = field(default_factory=list)


@dataclass(slots=True)
class AckGate:
    """Judges ACKs of every group; what counts is put down on its rekey's page."""

    groups: Mapping[int, Group]
    bad_acks: BadAcks = field(default_factory=BadAcks)
    pages: dict[tuple[int, int], Page] = field(default_factory=dict)
    _keks_seen: dict[bytes, _Known] = field(default_factory=dict)
    # By all octets up to HASH; and where HASH and SEQ end.
    _forms_seen: dict[bytes, _Form] = field(default_factory=dict)
    _expected_acks: dict[bytes, _Verified] = field(default_factory=dict)
    _pushes_prepared: list[_Push] = field(default_factory=list)
    _to_prepare: list[tuple[_Push, Iterator[int]]] = field(default_factory=list)
    # What other processes have been told of, by its place there: whose ACKs they look for.
    _handed_out: dict[int, tuple[_Push, dict[int, Registrant]]] = field(default_factory=dict)
    _last_place: int = 0

    # -- many datagrams --------------------------------------------------------------------------

    def judge(
        self,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        now: float,
        claims: Sequence[Claim] = (),
    ) -> Verdicts:
        """``endpoints``: where each comes from, as :func:`~.roster.endpoint_octets` says it.
        ``claims``: what :class:`~.ack_check.AckCheck` says of each, where others have read them."""
        self._refresh()
        verdicts = Verdicts()
        if claims:
            known = list(map(self._checked, claims))
        else:
            known = list(map(self._expected_acks.get, datagrams))
        alike = self._alike(datagrams)
        if alike is not None:
            self._judge_alike(alike, datagrams, endpoints, known, now, verdicts)
            return verdicts
        for place, datagram in enumerate(datagrams):
            found = known[place] or self._look_up(datagram, endpoints[place])
            self._settle(found, endpoints[place], now, place, verdicts)
        return verdicts

    def _alike(self, datagrams: Sequence[bytes]) -> _Push | None:
        """The PUSH that the first is of, where all are as long as the ACKs of that."""
        first = datagrams[0] if len(datagrams) > 1 else b""
        form = self._forms_seen.get(first[:_PREFIX])
        if form is None or len(set(map(len, datagrams))) > 1:
            return None
        _, pushes, _, end, rest = form
        push = pushes.get(first[end:rest])
        if push is None or push.rare or push.ack_type is None:
            return None
        return push if int.from_bytes(first[24:28], "big") == len(first) else None

    def _judge_alike(
        self,
        push: _Push,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        known: Sequence[_Verified | None],
        now: float,
        verdicts: Verdicts,
    ) -> None:
        """The shortest way for the good ACKs of one PUSH; for all else the usual one."""
        first, roster, bad = datagrams[0], push.known.group.roster, self.bad_acks
        _, _, _, end, rest = self._forms_seen[first[:_PREFIX]]
        head, said = first[:_PREFIX], first[end:rest]
        members, there = roster.sole.get, roster.endpoints.get
        heard, fresh, seq, shared = push.page.heard, push.page.fresh, push.seq, push.state
        row = Struct(f"{_PREFIX}s{end - _PREFIX}s{rest - end}s{len(first) - rest}s")
        rows = row.iter_unpack(b"".join(datagrams))
        for place, (its_head, its_hash, its_seq, who) in enumerate(rows):
            found, endpoint = known[place], endpoints[place]
            if found is None:
                member, usual = members(who), its_seq == said and its_head == head
            else:
                member, usual = found[1], found[0] is push
            if (
                not usual
                or member is None
                or not member.sole
                or there(endpoint, member) is not member
                or (number := member.number) >= len(heard)
                or heard[number]
                or (found is None and bad and datagrams[place] in bad)
            ):
                verdict = found or self._look_up(datagrams[place], endpoint)
                self._settle(verdict, endpoint, now, place, verdicts)
                continue
            if found is None:
                state = shared or self._leaf_state(push, member)
                if state is None:
                    verdicts.undecided.append(place)
                    continue
                mac = state.copy()
                mac.update(its_seq + who)
                if not equal(mac.finalize(), its_hash):
                    refused = self._bad_hash(push, member, datagrams[place])
                    self._settle(refused, endpoint, now, place, verdicts)
                    continue
            heard[number] = 1
            fresh.append((number, seq, now))

    def _settle(
        self,
        found: _Verified | Drop | None,
        endpoint: bytes,
        now: float,
        place: int,
        verdicts: Verdicts,
    ) -> None:
        """Counts a good one, puts down what else there is to be said."""
        if isinstance(found, tuple):
            push, member = found
            page, number = push.page, member.number
            there = push.known.group.roster.endpoints.get(endpoint, member)
            if there is not member or not member.sole:
                found = None if there.behind_nat or not member.sole else Drop.ACK_WRONG_SOURCE
            elif page.heard[number]:
                found = Drop.ACK_DUPLICATE
            else:
                page.heard[number] = 1
                page.fresh.append((number, push.seq, now))
                return
        if found is None:
            verdicts.undecided.append(place)
        else:
            verdicts.refused.setdefault(found, []).append(place)

    def _checked(self, claim: Claim) -> _Verified | None:
        """None where it is to be looked at again: the rekey may be over, the member gone."""
        push, members = self._handed_out.get(claim[0], (None, {}))
        member = members.get(claim[1])
        return None if push is None or member is None else (push, member)

    def _look_up(self, datagram: bytes, endpoint: bytes) -> _Verified | Drop | None:
        form = self._forms_seen.get(datagram[:_PREFIX])
        if form is None:
            return self._look_closer(datagram, endpoint)
        known, pushes, roster, end, rest = form
        member = roster.sole.get(datagram[rest:])
        if member is None:
            return self._nobody(known, datagram, end, endpoint)
        push = pushes.get(datagram[end:rest])
        if push is None or push.rare or roster.endpoints.get(endpoint, member) is not member:
            verdict = self._rare(known, pushes, member, datagram[end:rest], end, endpoint)
            if verdict.__class__ is not _Push:
                return verdict  # type: ignore[return-value]
            push = verdict
        number, heard = member.number, push.page.heard
        if number >= len(heard):
            return None
        if heard[number] or datagram in self.bad_acks:
            return Drop.ACK_DUPLICATE
        if push.ack_type is None:
            return Drop.ACK_WRONG_TYPE
        state = push.state or self._leaf_state(push, member)
        if state is None:
            return None
        # HASH = prf(ack_key, SEQ | ID)
        mac = state.copy()
        mac.update(datagram[end:])
        if equal(mac.finalize(), datagram[_PREFIX:end]):
            # Not under HASH: Length, as it is with an ID of the other family. An octet tells them.
            return (push, member) if datagram[27] == len(datagram) & 0xFF else Drop.MALFORMED
        return self._bad_hash(push, member, datagram)

    def _bad_hash(self, push: _Push, member: Registrant, datagram: bytes) -> Drop | None:
        """None where it may be made with another key that counts."""
        if not push.certain or (push.state is None and member.former_leaf is not None):
            return None
        self.bad_acks.add(datagram)
        return Drop.ACK_BAD_HASH

    def _rare(
        self,
        known: _Known,
        pushes: dict[bytes, _Push | None],
        member: Registrant,
        said: bytes,
        end: int,
        endpoint: bytes,
    ) -> _Push | Drop | None:
        """Where the usual checks of source, exemption and SEQ have not settled it."""
        there = known.group.roster.endpoints.get(endpoint, member)
        if there is not member:
            return None if there.behind_nat else Drop.ACK_WRONG_SOURCE
        if known.choosy and known.group.is_exempt(member.identity):
            return Drop.ACK_MEMBER_EXEMPT
        return pushes.get(said) or self._push(known, pushes, said, end - _PREFIX)

    def _look_closer(self, datagram: bytes, endpoint: bytes) -> _Verified | Drop | None:
        """At octets before HASH that have not been seen with any KEK in use."""
        if len(datagram) < _PREFIX:
            return None
        if (
            datagram[17] != VERSION_1_0
            or datagram[19] & ~KNOWN_FLAGS
            or int.from_bytes(datagram[24:28], "big") != len(datagram)
            or datagram[:8] == NO_COOKIE
        ):
            return Drop.MALFORMED
        if datagram[18] != ExchangeType.GROUPKEY_PUSH_ACK:
            return None
        if datagram[16] == PayloadType.FRAGMENT:
            return Drop.FRAGMENT
        spi = datagram[:_SPI]
        known = self._keks_seen.get(spi)
        if known is None:
            gone = any(spi in group.gone_keks for group in self.groups.values())
            return Drop.ACK_KEK_RETIRED if gone else Drop.ACK_UNKNOWN_SPI
        if known.config.ack is None:
            return Drop.ACK_NOT_REQUESTED
        if len(datagram) > MAX_LENGTH or datagram[_SPI : _SPI + len(_USUAL)] != _USUAL:
            return Drop.ACK_MALFORMED
        octets = _HASH_HEADS.get(datagram[HEADER_LENGTH:_PREFIX])
        if octets is None or datagram[_PREFIX + octets :][: len(_SEQ_HEAD)] != _SEQ_HEAD:
            return Drop.ACK_MALFORMED
        end = _PREFIX + octets
        if len(datagram) - end - _SEQ_LENGTH not in _ID_LENGTHS:
            return None
        pushes, roster = known.pushes.setdefault(octets, {}), known.group.roster
        self._forms_seen[datagram[:_PREFIX]] = known, pushes, roster, end, end + _SEQ_LENGTH
        return self._look_up(datagram, endpoint)

    @staticmethod
    def _nobody(known: _Known, datagram: bytes, end: int, endpoint: bytes) -> Drop | None:
        """What is to be said of an ACK whose ID payload is no one member's."""
        if int.from_bytes(datagram[24:28], "big") != len(datagram):
            return Drop.MALFORMED
        if datagram[end : end + len(_SEQ_HEAD)] != _SEQ_HEAD:
            return Drop.ACK_MALFORMED
        who = datagram[end + _SEQ_LENGTH :]
        length = int.from_bytes(who[2:4], "big")
        if who[0] or who[1] or length > len(who):
            return Drop.ACK_MALFORMED
        if length < len(who):
            return None
        if any(who[5:8]):
            return Drop.ACK_MALFORMED
        there = known.group.roster.endpoints.get(endpoint)
        if who in known.group.roster.sole or (there is not None and there.behind_nat):
            return None
        return None if who[4] == IdType.ID_OID else Drop.ACK_UNKNOWN_MEMBER

    # -- what is known ---------------------------------------------------------------------------

    def page(self, group: Group, rekey: Rekey) -> Page:
        """Made when its first ACK comes."""
        key = (group.config.group_id.key, rekey.epoch)
        page = self.pages.get(key)
        if page is None or page.rekey is not rekey:
            heard = bytearray(group.roster.next_number)
            for number in rekey.acknowledged.members.numbers:
                heard[number] = 1
            # Of a page that was read anew what is on no way to the store yet goes on.
            fresh = page.fresh if page is not None else []
            page = self.pages[key] = Page(group, rekey, heard, fresh)
            for number, _, _ in fresh:
                page.note(number)
        return page

    def has_heard(self, group: Group, rekey: Rekey, number: int) -> bool:
        page = self.pages.get((group.config.group_id.key, rekey.epoch))
        return page is not None and page.rekey is rekey and page.has(number)

    def _refresh(self) -> None:
        """Drops what the engine has changed since: other KEKs, SEQs, policies."""
        current = {
            under.kek.spi: (group, under)
            for group in self.groups.values()
            for under in (*group.old_keks.values(), *(sa.kek for sa in group.sas))
        }
        for spi, known in list(self._keks_seen.items()):
            group, under = current.get(spi, (None, None))
            if under is not known.under or group is None or group.config is not known.config:
                self._forget(spi)
            elif known.seq != under.seq:
                known.seq, known.rekeys = under.seq, _rekeys(group, spi)
                for pushes in known.pushes.values():
                    pushes.clear()
        for spi in current.keys() - self._keks_seen.keys():
            group, under = current[spi]
            self._keks_seen[spi] = _Known(
                group,
                under,
                group.config,
                under.seq,
                _rekeys(group, spi),
                bool(group.config.ack_exempt),
                {},
            )
        gone = [key for key, page in self.pages.items() if not self._on_ledger(page)]
        for group_id, epoch in gone:
            group = self.groups.get(group_id)
            rekey = group.ledger.get(epoch) if group is not None else None
            if group is not None and rekey is not None and self.pages[group_id, epoch].fresh:
                self.page(group, rekey)
            else:
                del self.pages[group_id, epoch]
        if gone:
            for known in self._keks_seen.values():
                known.rekeys = _rekeys(known.group, known.under.kek.spi)
                for pushes in known.pushes.values():
                    pushes.clear()
        if not all(map(self._awaited, self._pushes_prepared)):
            self._pushes_prepared = [push for push in self._pushes_prepared if self._awaited(push)]
            kept = set(self._pushes_prepared)
            self._expected_acks = {
                octets: found for octets, found in self._expected_acks.items() if found[0] in kept
            }

    def _forget(self, spi: bytes) -> None:
        del self._keks_seen[spi]
        for form in [form for form in self._forms_seen if form[:_SPI] == spi]:
            del self._forms_seen[form]

    def _push(
        self, known: _Known, pushes: dict[bytes, _Push | None], said: bytes, octets: int
    ) -> _Push | Drop | None:
        """The PUSH with this SEQ payload, looked at for the first time."""
        if said in pushes:
            return pushes[said]
        if said[: len(_SEQ_HEAD)] != _SEQ_HEAD:
            return Drop.ACK_MALFORMED
        seq = int.from_bytes(said[len(_SEQ_HEAD) :], "big")
        rekey = known.rekeys.get(seq)
        if rekey is None or rekey.epoch not in known.group.ledger:
            return Drop.ACK_UNKNOWN_SEQ
        made = None if rekey.parts_wanted > 1 else self._make_push(known, rekey, seq, octets)
        pushes[said] = made
        return made

    def _make_push(self, known: _Known, rekey: Rekey, seq: int, octets: int) -> _Push:
        page = self.page(known.group, rekey)
        types = [t for t in rekey.ack_types if ACK_PRFS[t].octets == octets]
        if not types:
            return _Push(page, seq, known, None, None, certain=True, rare=known.choosy)
        certain = len(types) == 1 and not known.config.ack_l
        shared = base_key(types[0], known.under.kek, None)
        state = None if shared is None else _state(types[0], shared, known.under)
        return _Push(page, seq, known, types[0], state, certain, known.choosy)

    @staticmethod
    def _leaf_state(push: _Push, member: Registrant) -> KeyedPrf | None:
        """None for a member without a leaf."""
        known, kind = push.known, push.ack_type
        if kind is None or not member.leaf:
            return None
        held = known.leaves.get((kind, member.number))
        if held is not None and held[0] is member and held[1] == member.leaf:
            return held[2]
        leaf = known.group.leaf_key(member.identity)
        if leaf is None:
            return None
        state = _state(kind, leaf, known.under)
        known.leaves[kind, member.number] = member, member.leaf, state
        return state

    # -- before they come ------------------------------------------------------------------------

    def prepare(self, limit: int) -> bool:
        """Computes up to ``limit`` ACKs that open rekeys wait for; False once there are no more."""
        self._plan_all()
        while self._to_prepare and limit > 0:
            push, numbers = self._to_prepare[0]
            # A member may name one of two addresses: the last one may have gone beyond.
            room = max(0, min(limit, MAX_EXPECTED - len(self._expected_acks)))
            some = list(islice(numbers, room)) if self._awaited(push) else []
            self._expect(push, some)
            if not some:
                del self._to_prepare[0]
            limit -= len(some)
        return bool(self._to_prepare)

    def hand_out(self, limit: int) -> Portion | None:
        """Instead, for processes that compute them when they come: up to ``limit`` members of an
        open rekey, with what their ACKs are keyed with. None once there are no more."""
        self._plan_all()
        while self._to_prepare:
            push, numbers = self._to_prepare[0]
            some = list(islice(numbers, limit)) if self._awaited(push) else []
            if some:
                return self._portion(push, some)
            del self._to_prepare[0]
        return None

    def over(self) -> list[int]:
        """The places of those handed out that nobody need look for any more."""
        if all(self._awaited(push) for push, _ in self._handed_out.values()):
            return []
        places = [p for p, (push, _) in self._handed_out.items() if not self._awaited(push)]
        for place in places:
            del self._handed_out[place]
        return places

    def _portion(self, push: _Push, numbers: Sequence[int]) -> Portion:
        place = self._last_place
        if place not in self._handed_out or self._handed_out[place][0] is not push:
            place = self._last_place = place + 1
            self._handed_out[place] = push, {}
        members, kind, under = self._handed_out[place][1], push.ack_type or 0, push.known.under
        shared = base_key(kind, under.kek, None)
        rows = []
        for number in numbers:
            member = push.known.group.roster.numbered(number)
            if member is None or not member.sole or push.page.heard[number]:
                continue
            base = shared or push.known.group.leaf_key(member.identity)
            if base is None:
                continue
            members[number] = member
            own = b"" if shared is not None else _key(kind, base, under)
            rows += [Row(number, who, own) for who in ack_ids(member)]
        key = b"" if shared is None else _key(kind, shared, under)
        return Portion(place, kind, under.kek.spi, push.seq, key, rows)

    def _plan_all(self) -> None:
        self._refresh()
        for group in self.groups.values():
            if group.config.ack is not None and not group.config.ack_exempt:
                for rekey in group.open_rekeys():
                    self._plan(rekey)

    def _plan(self, rekey: Rekey) -> None:
        known = self._keks_seen.get(rekey.kek_spi)
        if known is None or not rekey.seqs or not rekey.ack_types or rekey.parts > 1:
            return
        seq, octets = rekey.seqs[-1], ACK_PRFS[rekey.ack_types[0]].octets
        if any(push.seq == seq and push.known is known for push in self._pushes_prepared):
            return
        pushes = known.pushes.setdefault(octets, {})
        push = self._push(known, pushes, seq_payload(seq), octets)
        if isinstance(push, _Push):
            self._pushes_prepared.append(push)
            self._to_prepare.append((push, rekey.silent.numbers))

    def _expect(self, push: _Push, numbers: Sequence[int]) -> None:
        if push.ack_type is None:
            return
        under, roster = push.known.under, push.known.group.roster
        octets, said = ACK_PRFS[push.ack_type].octets, seq_payload(push.seq)
        heads = {n: prefix(under.kek.spi, octets, len(said) + n) for n in _ID_LENGTHS}
        for number in numbers:
            member = roster.numbered(number)
            if member is None or not member.sole or push.page.heard[number]:
                continue
            state = push.state or self._leaf_state(push, member)
            if state is None:
                continue
            for who in ack_ids(member):
                rest = said + who
                mac = state.copy()
                mac.update(rest)
                self._expected_acks[heads[len(who)] + mac.finalize() + rest] = push, member

    def _awaited(self, push: _Push) -> bool:
        """Whether an ACK of it may still be the first of its member's."""
        rekey, known = push.page.rekey, push.known
        same = self._keks_seen.get(known.under.kek.spi) is known and push.seq in rekey.seqs
        return same and not rekey.closed and self._on_ledger(push.page)

    def _on_ledger(self, page: Page) -> bool:
        group = page.group
        here = self.groups.get(group.config.group_id.key) is group
        return here and group.ledger.get(page.rekey.epoch) is page.rekey


def _key(ack_type: int, base: Secret, under: ServerKek) -> bytes:
    return ack_key(ACK_PRFS[ack_type], base, under.kek.spi).reveal()


def _state(ack_type: int, base: Secret, under: ServerKek) -> KeyedPrf:
    return keyed_prf(ACK_PRFS[ack_type].hash, _key(ack_type, base, under))


def _rekeys(group: Group, spi: bytes) -> dict[int, Rekey]:
    """By SEQ, those under one KEK."""
    return {seq: r for r in group.ledger.values() if r.kek_spi == spi for seq in r.seqs}
