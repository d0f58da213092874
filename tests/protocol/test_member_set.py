"""Sets of members and times of their ACKs, by number."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.member_set import MAX_NUMBER, AckTimes, MemberSet
from gdoi_plugin.protocol.roster import Registrant, Roster

NUMBERS = st.sets(st.integers(1, 3000))
SINCE = 1_800_000_000.0


def identity(number: int) -> Identity:
    return Identity.of_address(IPv4Address(number))


def roster(*numbers: int) -> Roster:
    made = Roster()
    for number in numbers:
        peer = Peer(IPv4Address(number), 848)
        made.add(Registrant(identity(number), peer, SINCE, number=number))
    return made


@given(NUMBERS, NUMBERS)
def test_as_sets_do(ours: set[int], theirs: set[int]) -> None:
    names = roster(*ours | theirs)
    left, right = MemberSet.of(names, ours), MemberSet.of(names, theirs)
    assert set(left.numbers) == ours
    assert list(left.numbers) == sorted(ours)
    assert set(left.without(right).numbers) == ours - theirs
    assert len(left.without(right)) == len(ours - theirs)
    assert (left == right) == (ours == theirs)
    assert MemberSet(names, left.pack()) == left == {identity(n) for n in ours}
    assert left & right == {identity(n) for n in ours & theirs}
    assert all((identity(n) in left) == left.has(n) == (n in ours) for n in ours | theirs)


@given(st.dictionaries(st.integers(1, 3000), st.floats(0, 7000)))
def test_times_come_back(after: dict[int, float]) -> None:
    names = roster(*after)
    times = AckTimes(names, SINCE)
    for number, seconds in after.items():
        times.note(number, SINCE + seconds)
        times.note(number, SINCE + 9999)  # it is the first that counts
    again = AckTimes.unpack(names, times.pack())
    assert again == times
    assert len(times) == len(again) == len(after)
    assert set(again.members.numbers) == set(after)
    for number, seconds in after.items():
        assert again[identity(number)] == pytest.approx(SINCE + seconds, abs=1e-3)
    again.note(4000, SINCE + 1)
    assert again.has(4000)
    assert not times.has(4000)


@pytest.mark.parametrize("cut", [0, 5, 12, -1])
def test_other_octets_are_refused(cut: int) -> None:
    times = AckTimes(roster(9), SINCE)
    times.note(9, SINCE + 1)
    with pytest.raises(ValueError, match="times of"):
        AckTimes.unpack(roster(9), times.pack()[:cut])
    with pytest.raises(ValueError, match="a set of members of"):
        MemberSet(roster(), bytes(MAX_NUMBER // 8 + 2))


def test_who_has_left_has_a_name_and_comes_back_with_its_number() -> None:
    names = roster(1, 2)
    page = MemberSet.of(names, [1, 2])
    names.remove(identity(2))
    assert set(page) == {identity(1), identity(2)}
    assert identity(2) in page
    assert names.numbered(2) is None
    for number in (7, 2):
        names.add(Registrant(identity(number), Peer(IPv4Address(number), 848), SINCE))
    assert [names.number_of(identity(n)) for n in (1, 2, 7)] == [1, 2, 3]
    assert names.numbered(2) is names.members[identity(2)]


def test_a_page_of_a_large_group_is_small() -> None:
    times = AckTimes(roster(), SINCE)
    for number in range(1, 100_001):
        times.note(number, SINCE + 1)
    assert sys.getsizeof(times._after) + sys.getsizeof(times._heard) < 8 * 100_000
    assert len(times.members.pack()) < 17_000
