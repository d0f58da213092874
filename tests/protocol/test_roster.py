"""Whose an ACK is: by its ID where that says it, by where it comes from behind a NAT."""

from __future__ import annotations

from ipaddress import IPv4Address

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.roster import Registrant, Roster

NAT, OTHER_NAT = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
INSIDE = IPv4Address("10.1.0.2")
LOCAL = Peer(IPv4Address("198.51.100.1"), 4500)


def member(name: str, host: IPv4Address, port: int, *, nat: bool = True) -> Registrant:
    local = LOCAL if nat else None
    identity = Identity.parse(name)
    return Registrant(identity, Peer(host, port), 0.0, local=local, behind_nat=nat)


def roster(*members: Registrant) -> Roster:
    filled = Roster()
    for each in members:
        filled.add(each)
    return filled


def test_without_nat_the_id_decides_wherever_the_ack_comes_from() -> None:
    one = member("gm1.example", INSIDE, 848, nat=False)
    two = member("gm2.example", INSIDE + 1, 848, nat=False)
    filled = roster(one, two)
    assert filled.whose(INSIDE, one.address) is one
    assert filled.whose(INSIDE + 1, one.address) is two
    assert filled.whose(INSIDE, Peer(NAT, 1)) is one
    assert filled.whose(INSIDE + 2, one.address) is None
    why = filled.why_not(INSIDE + 2, one.address)
    assert why == "ID 10.1.0.4 from 10.1.0.2:848: gm1.example is there, with the ID 10.1.0.2"
    why = filled.why_not(INSIDE + 2, Peer(NAT, 1))
    assert why == "ID 10.1.0.4 from 192.0.2.1:1: no member registered from there"


def test_two_behind_one_nat_are_told_apart_by_their_ports() -> None:
    one, two = member("gm1.example", NAT, 30000), member("gm2.example", NAT, 30001)
    filled = roster(one, two)
    for each in (one, two):
        assert filled.whose(INSIDE, each.address) is each, "as the member sees its address"
        assert filled.whose(NAT, each.address) is each, "as the key server does"
    assert filled.whose(NAT, Peer(NAT, 30002)) is None
    why = filled.why_not(NAT, Peer(NAT, 30002))
    assert why == (
        "ID 192.0.2.1 from 192.0.2.1:30002: 2 members have that ID, none is at that port"
    )


def test_the_same_address_behind_two_nats() -> None:
    one, two = member("gm1.example", NAT, 30000), member("gm2.example", OTHER_NAT, 30000)
    filled = roster(one, two)
    assert filled.whose(INSIDE, one.address) is one
    assert filled.whose(INSIDE, two.address) is two
    assert filled.whose(INSIDE, Peer(NAT, 1)) is None, "a port nobody registered from"


def test_a_member_without_nat_at_an_address_that_another_has_inside() -> None:
    one, two = member("gm1.example", NAT, 30000), member("gm2.example", INSIDE, 848, nat=False)
    filled = roster(one, two)
    assert filled.whose(INSIDE, one.address) is one
    assert filled.whose(INSIDE, two.address) is two


def test_known_by_its_inner_address_after_the_port_has_changed() -> None:
    one, two = member("10.1.0.2", NAT, 30000), member("10.1.0.3", NAT, 30001)
    filled = roster(one, two)
    assert filled.whose(INSIDE, Peer(NAT, 31000)) is one
    assert filled.whose(INSIDE + 1, Peer(NAT, 31000)) is two


def test_moved_removed_and_taken_over() -> None:
    one, two = member("gm1.example", NAT, 30000), member("gm2.example", OTHER_NAT, 30000)
    filled = roster(one, two)
    moved = filled.move(one.identity, Peer(NAT, 31000), LOCAL)
    assert filled.members[one.identity] is moved
    assert filled.whose(INSIDE, Peer(NAT, 30000)) is None
    assert filled.whose(INSIDE, moved.address) is moved
    # The NAT gives the port of one that has gone to another.
    late = member("gm3.example", NAT, 31000)
    filled.add(late)
    assert filled.whose(INSIDE, moved.address) is late
    filled.remove(one.identity)
    assert filled.whose(INSIDE, late.address) is late, "the endpoint is the newer one's"
    filled.remove(late.identity)
    filled.remove(two.identity)
    assert filled == Roster()
