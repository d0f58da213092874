"""``authorise = "ike"`` at the engine: who is vouched for, and what follows when nobody does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from gdoi_plugin.protocol.actions import Action, AskIke, Drop, EndIke, Event, KeepIke, Peer
from gdoi_plugin.protocol.authorising import DOUBT_LIFETIME, MAX_DOUBTS, IkeAuthority
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityList
from gdoi_plugin.protocol.ike_sas import (
    IkePolicy,
    IkeSa,
    IkeSas,
    NotVouched,
    OnIkeDown,
    Phase1Peer,
)
from gdoi_plugin.protocol.member import MemberState
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.silence import MAX_NAMED
from tests.support.simnet import Wire
from tests.support.worlds import GROUP_ID, SERVER, World, group_config, member_peer, wired

A, B, DN, SERIAL = map(
    Identity.parse, ("a.example.org", "b.example.org", "C=CH, O=Example, CN=a", "keyid:0a0b")
)
HOST, ELSEWHERE = member_peer(0).host, member_peer(1).host
OWN = Identity.of_address(HOST)
MARKING = IkePolicy()
EVICTING = IkePolicy(OnIkeDown.EVICT, grace=30.0)


def sa(identity: Identity | None, number: str = "1", **changes: object) -> IkeSa:
    return replace(IkeSa(number, HOST, identity), **changes)  # type: ignore[arg-type]


def vouched(
    *there: IkeSa, phase1: Identity = OWN, proven: bool = False, behind_nat: bool = False
) -> Identity | Drop:
    table = IkeSas()
    table.replace(there)
    try:
        return table.vouched(Phase1Peer(HOST, phase1, proven, behind_nat))
    except NotVouched as error:
        return error.reason


def test_the_address_ties_phase_1_and_ike() -> None:
    assert vouched(sa(A)) == A
    assert vouched(sa(OWN)) == OWN
    assert vouched(sa(SERIAL)) == SERIAL
    assert vouched(sa(A), sa(A, "2")) == A, "two IKE_SAs of one identity"
    assert vouched(sa(A), phase1=A) == A, "a key that several have"
    assert vouched(sa(A, host=ELSEWHERE)) is Drop.IKE_NOT_ESTABLISHED
    assert vouched() is Drop.IKE_NOT_ESTABLISHED


@pytest.mark.parametrize("proven", [False, True])
def test_who_is_behind_anothers_ike_sa_is_not_that_other(proven: bool) -> None:
    assert vouched(sa(A), phase1=B, proven=proven) is Drop.IKE_MISMATCH
    mine_elsewhere = sa(B, "2", host=ELSEWHERE)
    assert vouched(sa(A), mine_elsewhere, phase1=B, proven=proven) is Drop.IKE_MISMATCH


@pytest.mark.parametrize(
    "there",
    [(sa(A), sa(B, "2")), (sa(A), sa(None, "2")), (sa(A, behind_nat=True),)],
    ids=["several", "one that cannot be read", "nat"],
)
def test_where_an_address_is_not_one_host_phase_1_has_to_prove_the_identity(
    there: tuple[IkeSa, ...],
) -> None:
    assert vouched(*there) is Drop.IKE_MISMATCH
    assert vouched(*there, proven=True) is Drop.IKE_MISMATCH, "the address is no proof of A"
    assert vouched(*there, phase1=A) is Drop.IKE_MISMATCH
    assert vouched(*there, phase1=A, proven=True) == A


def test_a_nat_that_only_phase_1_sees() -> None:
    assert vouched(sa(A), behind_nat=True) is Drop.IKE_MISMATCH
    assert vouched(sa(A), phase1=A, proven=True, behind_nat=True) == A


def test_a_distinguished_name_counts_where_phase_1_proves_it() -> None:
    assert vouched(sa(DN)) is Drop.IKE_MISMATCH
    assert vouched(sa(DN), phase1=DN) is Drop.IKE_MISMATCH
    assert vouched(sa(DN), phase1=DN, proven=True) == DN
    assert vouched(sa(None)) is Drop.IKE_MISMATCH


def test_the_table_forgets_what_it_is_told_to() -> None:
    table = IkeSas()
    for one in (sa(A), sa(A, "2"), sa(B, "3", host=ELSEWHERE)):
        table.put(one)
    assert (len(table), A in table, B in table) == (3, True, True)
    table.put(sa(A, "3"))  # it has another name and address now
    assert B not in table
    assert len(table.of(A)) == 3
    for number in ("1", "2", "3", "3", "never"):
        table.remove(number)
    assert (len(table), A in table, table) == (0, False, IkeSas())


# -- the key server ------------------------------------------------------------------------------


def world_with(policy: IkePolicy = MARKING, lkh: LkhPolicy | None = None) -> tuple[Wire, World]:
    group = group_config(ike=policy, lkh=lkh)
    return wired(group=replace(group, members=IdentityList.parse(["*.example.org"])))


def up(world: World, *sas: IkeSa) -> list[Action]:
    return take(world, world.server.engine.ike.take(sas, world.now, world.now))


def take(world: World, actions: list[Action]) -> list[Action]:
    world.server.do(actions)
    return actions


def told(actions: list[Action]) -> list[tuple[str, object]]:
    return [(a.name, a.fields.get("member")) for a in actions if isinstance(a, Event)]


def is_member(world: World, identity: Identity = A) -> bool:
    return identity in world.group.members


def registered(policy: IkePolicy = MARKING, lkh: LkhPolicy | None = None) -> tuple[Wire, World]:
    wire, world = world_with(policy, lkh)
    world.start()
    up(world, sa(A))
    wire.settle()
    assert world.member.group.state is MemberState.REGISTERED
    return wire, world


def test_a_member_is_who_ike_says_it_is() -> None:
    wire, world = registered()
    assert list(world.group.members) == [A]
    world.rekey()
    wire.settle()
    wire.run(8)
    wire.settle()
    assert list(world.group.ledger[world.group.epoch].acknowledged) == [A]


def test_an_ike_sa_that_is_up_before_it_is_known() -> None:
    """A no is asked about once more, and message 1 that comes again has the answer."""
    wire, world = world_with()
    world.start()
    up(world)
    wire.pass_on(6)
    first = wire.take()
    assert AskIke() in world.server.hear(first.datagram, member_peer(0))
    assert not is_member(world)
    up(world, sa(A))
    wire.run(2)
    wire.settle()
    assert world.member.group.state is MemberState.REGISTERED
    assert is_member(world)


def test_no_is_the_answer_when_it_has_been_asked_about() -> None:
    wire, world = world_with()
    world.start()
    up(world)
    wire.pass_on(6)
    first = wire.take()
    world.server.hear(first.datagram, member_peer(0))
    up(world)
    heard = world.server.hear(first.datagram, member_peer(0))
    assert told(heard) == [("member-refused", str(OWN))]
    wire.settle()
    assert not is_member(world)


def test_doubts_are_bounded() -> None:
    authority = IkeAuthority({})
    authority.take([], 0.0, 0.0)

    def ask(number: int, now: float) -> Drop:
        peer = Phase1Peer(ip_address("2001:db8::") + number, OWN, False, False)
        with pytest.raises(NotVouched) as caught:
            authority.vouched(peer, now, final=False)
        return caught.value.reason

    reasons = [ask(number, 1.0) for number in range(MAX_DOUBTS + 1)]
    assert reasons == [Drop.IKE_ASKED] * MAX_DOUBTS + [Drop.IKE_NOT_ESTABLISHED]
    assert ask(MAX_DOUBTS, 1.0 + DOUBT_LIFETIME) is Drop.IKE_ASKED


def test_an_ike_sa_that_goes_in_the_middle_of_the_exchange() -> None:
    """Its member has message 2, and no key."""
    wire, world = world_with()
    world.start()
    up(world, sa(A))
    wire.pass_on(8)
    take(world, world.server.engine.ike.down("1", world.now))
    wire.settle()
    assert not is_member(world)
    assert world.member.group.state is not MemberState.REGISTERED


def test_while_nothing_is_known_members_stay_and_nobody_joins() -> None:
    wire, world = registered(EVICTING)
    world.server.engine.ike.lose("charon: killed")
    wire.run(3600)
    assert is_member(world)
    assert world.server.engine.ike.state_of(world.group, A) == "unknown"
    world.member.restart()
    wire.run(5)
    assert world.member.group.state is not MemberState.REGISTERED
    world.rekey()
    assert world.group.members[A].address == member_peer(0)


# -- what becomes of members ---------------------------------------------------------------------


def test_down_and_up_again_within_the_time_of_grace() -> None:
    wire, world = registered(EVICTING)
    ike = world.server.engine.ike
    assert told(take(world, ike.down("1", world.now))) == [("ike-lost", str(A))]
    assert ike.state_of(world.group, A) == "down"
    wire.run(EVICTING.grace / 2)
    assert told(take(world, ike.up(sa(A, "2")))) == [("ike-up", str(A))]
    assert ike.state_of(world.group, A) == "up"
    wire.run(10 * EVICTING.grace)
    assert is_member(world)


def test_make_before_break_is_no_loss() -> None:
    _, world = registered(EVICTING)
    ike = world.server.engine.ike
    assert told(ike.up(sa(A, "2"))) == []
    assert told(ike.down("1", world.now)) == []
    assert ike.state_of(world.group, A) == "up"


@pytest.mark.parametrize("lkh", [None, LkhPolicy(arity=2, members=8)], ids=["kek", "lkh"])
def test_evicted_after_the_time_of_grace(lkh: LkhPolicy | None) -> None:
    wire, world = registered(EVICTING, lkh)
    kek = world.group.current_kek().kek.spi
    take(world, world.server.engine.ike.down("1", world.now))
    wire.run(EVICTING.grace - 1)
    assert is_member(world)
    wire.run(2)
    assert not is_member(world)
    assert (world.group.current_kek().kek.spi != kek) == (lkh is not None)
    assert not world.group.denied, "it may come back"


def test_marked_is_not_evicted() -> None:
    wire, world = registered()
    take(world, world.server.engine.ike.down("1", world.now))
    wire.run(3600)
    assert is_member(world)
    assert world.server.engine.ike.state_of(world.group, A) == "down"


def test_the_time_of_grace_begins_anew_with_charon() -> None:
    """Each of its IKE_SAs has gone with it, and members notice that in their own time."""
    wire, world = registered(EVICTING)
    ike = world.server.engine.ike
    take(world, ike.down("1", world.now))
    wire.run(EVICTING.grace - 1)
    ike.lose("charon: killed")
    wire.run(EVICTING.grace)
    assert is_member(world)
    assert told(up(world)) == [], "it has been told"
    wire.run(EVICTING.grace - 1)
    assert is_member(world)
    wire.run(2)
    assert not is_member(world)


def test_of_many_that_are_lost_some_are_named() -> None:
    _, world = world_with()
    world.start()
    ike, now = world.server.engine.ike, world.now
    many = [Identity.parse(f"gm{n}.example.org") for n in range(MAX_NAMED + 7)]
    for n, identity in enumerate(many):
        member = world.group.registrant(
            identity, Path(SERVER, Peer(ip_address("10.9.0.0") + n, 848)), now
        )
        world.group.roster.add(member)
    actions = ike.take([], now, now)
    assert len(told(actions)) == MAX_NAMED + 1
    assert isinstance(actions[-1], Event)
    assert (actions[-1].name, actions[-1].fields["count"]) == ("ike-lost-more", 7)
    assert ike.take([], now, now) == [], "once"
    assert ike.due(GROUP_ID, world.group) is None


@pytest.mark.parametrize("command", ["evict", "revoke"])
def test_who_is_put_out_loses_the_ike_sa_as_well(command: str) -> None:
    _, world = registered()
    engine = world.server.engine
    actions = getattr(engine, command)(GROUP_ID, [A], world.now)
    assert EndIke((A,)) in actions
    assert not engine.isakmp.sessions.of(OWN), "phase 1, which has another name, is over too"
    world.server.do(actions)
    # The one that was known by the address alone is kept out by that name as well.
    assert not world.group.admits(A)


def test_who_is_readmitted_keeps_the_ike_sa() -> None:
    """It may not have been ended yet: charon is away."""
    _, world = registered()
    engine = world.server.engine
    world.server.do(engine.evict(GROUP_ID, [A], world.now))
    assert KeepIke((A,)) in engine.admit(GROUP_ID, [A, B])
    assert KeepIke((A,)) not in engine.admit(GROUP_ID, [A, B])


def test_who_was_put_out_without_an_ike_sa_is_forgotten() -> None:
    _, world = registered()
    ike = world.server.engine.ike
    ways: list[Callable[[], list[Action]]] = [
        lambda: ike.up(sa(A, "2")),
        lambda: up(world, sa(A, "2")),
        lambda: up(world),
    ]
    for back in ways:
        world.group.roster.add(replace(world.group.registrant(A, Path(SERVER, member_peer(0)), 0)))
        up(world)
        assert ike.state_of(world.group, A) == "down"
        world.group.roster.remove(A)
        assert told(back()) == []
        assert not any(ike._down.values())


def test_put_out_by_the_address() -> None:
    wire, world = registered()
    world.server.do(world.server.engine.evict(GROUP_ID, [OWN], world.now))
    world.member.restart()
    wire.run(10)
    assert world.member.group.state is not MemberState.REGISTERED


def test_one_of_several_key_servers_marks_whom_it_has_seen() -> None:
    _, world = registered()
    ike = world.server.engine.ike
    ike.alone = False
    world.group.roster.add(replace(world.group.members[A], identity=B, number=0))
    assert ike.state_of(world.group, B) == "elsewhere"
    assert told(up(world)) == [("ike-lost", str(A))]
    assert ike.state_of(world.group, A) == "down"
    assert ike.state_of(world.group, B) == "elsewhere"
