"""Keys for IEC 61850 applications, from the key server's policy to what a member exports."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.application_keys import ApplicationKeys, HeldKey
from gdoi_plugin.protocol.errors import PolicyError
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.iec_tek import (
    AUTHENTICATIONS,
    CONFIDENTIALITIES,
    IecSuite,
    IecTek,
    IecTekConfig,
    read_iec_sat,
)
from gdoi_plugin.protocol.policy import (
    TEK_SUITES,
    GroupPolicy,
    check_sa,
    encode_kd,
    encode_sa,
    read_policy,
)
from gdoi_plugin.protocol.record import any_tek_record, read_any_tek
from gdoi_plugin.protocol.rollover import MAX_HELD
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.iec61850 import Iec61850Tek
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.oid import Oid
from gdoi_plugin.wire.payload import encode_body
from gdoi_plugin.wire.registry import Doi, ExchangeType, TekProtocol
from tests.support.simnet import START, MemberHost, Network
from tests.support.worlds import FLOW, World, build, group_config
from tests.wire.test_iec61850 import CBC_KEY, FIGURE_8, FIGURE_9, GCM_KEY, GOOSE, HMAC_KEY

SUITE = IecSuite(AUTHENTICATIONS["hmac-sha256-128"], CONFIDENTIALITIES["aes-cbc-128"])
GCM = IecSuite(AUTHENTICATIONS["none"], CONFIDENTIALITIES["aes-gcm-128"])
NOTHING = IecSuite(AUTHENTICATIONS["none"], CONFIDENTIALITIES["none"])
SAMPLED = Oid.parse("1.2.840.10070.61850.9.2")
ATD, DTD = 10, 30


def _allowed() -> dict[str, IecSuite]:
    suites = (IecSuite(a, c) for a in AUTHENTICATIONS.values() for c in CONFIDENTIALITIES.values())
    found = {}
    for suite in suites:
        with suppress(ValueError):
            suite.check()
            found[suite.keyword] = suite
    return found


ALL = _allowed()


def running(members: int = 1, *teks: IecTekConfig | TekConfig, **changes: Any) -> World:
    """ATD 10 s and DTD 30 s in GAP; one key for GOOSE where nothing else is wanted."""
    wanted = teks or (IecTekConfig(GOOSE, SUITE),)
    changes = {"activation_delay": ATD, "deactivation_delay": DTD, **changes}
    config = group_config(members, teks=wanted, **changes)
    world = build(Network(), members, group=config, member_changes={"exports": True})
    world.start()
    world.network.run(5)
    assert world.converged()
    return world


def exported(member: MemberHost) -> list[bytes]:
    return [key.tek.spi for key in member.kernel.exported]


def sending(member: MemberHost, now: float) -> bytes:
    """What an application does with the export: the last key whose time has come."""
    return [key.tek.spi for key in member.kernel.exported if key.send_from <= now][-1]


def spis(world: World) -> list[bytes]:
    return [t.tek.spi for t in world.group.teks]


# -- policy ----------------------------------------------------------------------------------------


def appendix_a() -> GroupPolicy:
    sa = GroupSecurityAssociation.pull(Buffer(FIGURE_8))
    return read_policy(sa, KeyDownload.pull(Buffer(FIGURE_9)), pull=True)


def test_what_goes_together() -> None:
    """RFC 8052 section 2.2.3: CBC with authentication, GCM without another one."""
    assert sorted(ALL) == sorted(
        [f"{auth}/none" for auth in AUTHENTICATIONS]
        + [f"none/aes-gcm-{bits}" for bits in (128, 256)]
        + [f"{a}/aes-cbc-{bits}" for a in AUTHENTICATIONS if a != "none" for bits in (128, 256)]
    )


def test_appendix_a_is_policy() -> None:
    """RFC 8052 appendix A: a key in use, and one that is for after it."""
    first, second = appendix_a().applications
    assert first == IecTek(
        bytes((0, 0, 0, 1)), GOOSE, SUITE, Secret(CBC_KEY), Secret(HMAC_KEY), 3600
    )
    assert second == IecTek(bytes((0, 0, 0, 2)), GOOSE, GCM, Secret(GCM_KEY), None, 43200, 3300)


def test_appendix_a_is_followed() -> None:
    """Each key is there when it is to be, and no sooner."""
    keys = ApplicationKeys()
    plan = keys.receive(appendix_a(), (), 0.0, at_once=True)
    seen = []
    while plan is not None:
        keys.commit(plan)
        seen.append([(key.tek.spi[3], key.send_from, key.expires) for key in plan.exported])
        deadline = keys.deadline
        plan = None if deadline is None else keys.advance(deadline)
    one, two = (1, 0.0, 3600.0), (2, 3300.0, 43200.0)
    assert seen == [[one], [one, two], [two], []]


@pytest.mark.parametrize("attributes", [(None, None), (1, None), (None, 0), (29, 100)])
@pytest.mark.parametrize("suite", ALL.values(), ids=ALL)
def test_to_payloads_and_records_and_back(
    suite: IecSuite, attributes: tuple[int | None, int | None]
) -> None:
    atd, kda = attributes
    config = IecTekConfig(Oid.parse("1.2.840:0a0b"), suite, 30, atd, kda)
    tek = config.make(lambda n: bytes(range(1, n + 1)), ())
    policy = GroupPolicy(None, (tek,))
    sa, kd = encode_sa(policy), encode_kd(policy)
    check_sa(GroupSecurityAssociation.pull(Buffer(encode_body(sa))))
    assert read_policy(sa, KeyDownload.pull(Buffer(encode_body(kd)))) == policy
    assert read_any_tek(json.loads(json.dumps(any_tek_record(tek)))) == tek
    assert config.made(tek)


def test_no_key_packet_where_there_is_no_key() -> None:
    """RFC 8052 section 3: NONE twice is possible."""
    tek = IecTek(bytes(3) + b"\1", GOOSE, NOTHING, Secret(b""), None, 60)
    sa = encode_sa(GroupPolicy(None, (tek,)))
    assert read_policy(sa, KeyDownload(())).applications == (tek,)


def sat(**changes: Any) -> Iec61850Tek:
    return replace(Iec61850Tek(GOOSE, bytes((0, 0, 1, 0)), 2, 2, 3600), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"auth_algorithm": 0}, "authentication algorithm 0 is unknown"),
        ({"auth_algorithm": 6}, "authentication algorithm 6 is unknown"),
        ({"enc_algorithm": 61440}, "confidentiality algorithm 61440 is unknown"),
        ({"auth_algorithm": 1, "enc_algorithm": 2}, "aes-cbc-128 must not be used without"),
        ({"auth_algorithm": 1, "enc_algorithm": 3}, "aes-cbc-256 must not be used without"),
        ({"auth_algorithm": 2, "enc_algorithm": 4}, "aes-gcm-128 authenticates by itself"),
        ({"auth_algorithm": 5, "enc_algorithm": 5}, "aes-gcm-256 authenticates by itself"),
        ({"spi": bytes(4)}, "SPI 0 stands for all"),
        ({"attributes": (Attribute(2, 101),)}, "SA_KDA 101, at most 100"),
        ({"attributes": (Attribute(1, bytes(3) + b"\1" + bytes(4)),)}, "SA_ATD 4294967296"),
        ({"attributes": (Attribute(1, 3600),)}, "SA_ATD 3600 s is not less than its lifetime"),
        ({"attributes": (Attribute(3, 1),)}, "attribute 3 is unknown"),
    ],
)
def test_unacceptable_sat(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        read_iec_sat(sat(**changes))


def test_wrong_keys() -> None:
    policy = appendix_a()
    sa, kd = encode_sa(policy), encode_kd(policy)
    short = replace(kd.packets[0], attributes=kd.packets[1].attributes)
    for packets in (kd.packets[:1], (*kd.packets, kd.packets[0]), (short, kd.packets[1])):
        with pytest.raises(PolicyError, match=r"must be one|wants 16 and 32"):
            read_policy(sa, KeyDownload(packets))


# -- the member's table ----------------------------------------------------------------------------


def key(number: int, selector: Oid = GOOSE, lifetime: int = 3600, **changes: Any) -> IecTek:
    octets = bytes((number,)) * 32
    tek = IecTek(bytes((0, 0, 0, number)), selector, SUITE, Secret(octets[:16]), Secret(octets), 0)
    return replace(tek, lifetime=lifetime, **changes)


def receive(
    table: ApplicationKeys,
    now: float,
    *teks: IecTek,
    atd: int | None = None,
    dtd: int | None = None,
    deletes: Iterable[Delete] = (),
    at_once: bool = False,
) -> None:
    plan = table.receive(GroupPolicy(None, teks, atd, dtd), deletes, now, at_once=at_once)
    assert plan is not None
    table.commit(plan)


def times(table: ApplicationKeys) -> dict[int, tuple[float, float, float]]:
    return {
        spi[3]: (held.receive_from, held.send_from, held.expires)
        for spi, held in table.held.items()
    }


def test_gap_delays_sending_and_keeps_the_old() -> None:
    table = ApplicationKeys()
    receive(table, 0, key(1), at_once=True, atd=10, dtd=30)
    receive(table, 100, key(2), atd=10, dtd=30)
    assert times(table) == {1: (0, 0, 130), 2: (100, 110, 3700)}


def test_sa_atd_overrides_gap() -> None:
    """RFC 8052 section 2.2.4.1; what it replaces has its DTD from then on."""
    table = ApplicationKeys()
    receive(table, 0, key(1), at_once=True)
    receive(table, 100, key(2, sa_atd=500), atd=10, dtd=30)
    assert times(table) == {1: (0, 0, 630), 2: (600, 600, 3700)}
    assert [held.tek.spi[3] for held in table.exported] == [1]
    assert table.deadline == 600


def test_without_dtd_the_old_goes_when_the_new_is_used() -> None:
    table = ApplicationKeys()
    receive(table, 0, key(1, lifetime=0), at_once=True)
    assert table.deadline is None
    receive(table, 100, key(2), atd=10)
    assert times(table)[1] == (0, 0, 110)


def test_selectors_do_not_mix() -> None:
    table = ApplicationKeys()
    receive(table, 0, key(1), key(2, SAMPLED, lifetime=0), at_once=True)
    receive(table, 100, key(3), atd=10, dtd=30)
    assert times(table)[2] == (0, 0, math.inf)


def test_an_outgoing_key_of_a_pull_is_not_sent_with() -> None:
    table = ApplicationKeys()
    receive(table, 0, key(2), at_once=True)
    receive(table, 10, key(1, lifetime=20), key(2), at_once=True, dtd=30)
    assert times(table) == {1: (10, 10, 30), 2: (0, 0, 3600)}
    assert [held.tek.spi[3] for held in table.exported] == [1, 2]


def delete(*spis: bytes, protocol: int = TekProtocol.GDOI_PROTO_IEC_61850) -> Delete:
    return Delete(Doi.GDOI, protocol, spis)


def test_deletes() -> None:
    """RFC 6407 section 5.9: SPI 0 is all but what the same PUSH brings; ESP's are not meant."""
    table = ApplicationKeys()
    receive(table, 0, key(1), key(2, SAMPLED), key(3, Oid.parse("1.3")), at_once=True)
    assert table.receive(GroupPolicy(None, ()), [delete(bytes(4), protocol=1)], 1) is None
    receive(table, 1, deletes=[delete(bytes((0, 0, 0, 2)))])
    assert set(times(table)) == {1, 3}
    receive(table, 2, key(4), dtd=30, deletes=[delete(bytes((0, 0, 0, 1)))])
    assert times(table)[1] == (0, 0, 32)
    receive(table, 3, key(4), dtd=30, deletes=[delete(bytes((0, 0, 0, 1)))])
    assert times(table)[1] == (0, 0, 32), "the same rekey again, under the next SEQ"
    receive(table, 3, key(4), dtd=30, deletes=[delete(bytes(4))])
    assert set(times(table)) == {4}


def test_an_spi_keeps_its_key() -> None:
    table = ApplicationKeys()
    receive(table, 0, key(1), at_once=True)
    table.check(GroupPolicy(None, (key(1),)))
    with pytest.raises(PolicyError, match="0x00000001 is in use with another key"):
        table.check(GroupPolicy(None, (replace(key(2), spi=key(1).spi),)))


def test_no_more_than_a_member_can_have_use_for() -> None:
    held = HeldKey(key(1), 1, 0, 0, 3600)
    table = ApplicationKeys({number.to_bytes(4, "big"): held for number in range(MAX_HELD)})
    with pytest.raises(PolicyError, match="2048 keys are held and 1 more"):
        table.check(GroupPolicy(None, (replace(key(1), spi=b"new!"),)))


@pytest.mark.parametrize("lifetime", [0, 3600])
def test_no_time_is_believed_that_a_clock_set_back_has_made(lifetime: int) -> None:
    ahead = 1e9
    saved = HeldKey(key(1, lifetime=lifetime), 1, ahead, ahead, ahead + 3600)
    plan = ApplicationKeys().resume({saved.tek.spi: HeldKey.read(saved.record())}, 0.0)
    assert plan is not None
    (held,) = plan.held.values()
    assert held.receive_from <= 0xFFFF
    assert held.expires == (3600 if lifetime else ahead + 3600)


# -- key server and member -------------------------------------------------------------------------


@pytest.mark.parametrize("lkh", [False, True])
def test_pull_and_rekey(lkh: bool) -> None:
    """GAP's delays: the new key receives at once, sends after ATD, the old one goes after DTD."""
    world = running(2, lkh=LkhPolicy() if lkh else None)
    (old,) = spis(world)
    for member in world.members:
        assert exported(member) == [old]
        assert (
            member.kernel.exported[0].tek.encryption_key == world.group.teks[0].tek.encryption_key
        )
    world.rekey(kek=True)
    world.network.run(1)
    new = spis(world)[-1]
    for member in world.members:
        assert exported(member) == [old, new]
        assert sending(member, world.now) == old
        assert sending(member, world.now + ATD) == new
    world.network.run(DTD)
    assert len(world.datagrams(ExchangeType.GROUPKEY_PUSH_ACK)) == (4 if lkh else 2)
    assert [exported(member) for member in world.members] == [[new], [new]]
    world.check_ledger()
    changes = [event.fields["spis"] for event in world.member.events("keys-changed")]
    names = [f"0x{spi.hex()}" for spi in (old, new)]
    assert changes == [names[:1], names, names[1:]]


def test_with_the_kernels_sas_in_one_group() -> None:
    world = running(1, TekConfig(FLOW, TEK_SUITES["aes256-sha256"]), IecTekConfig(GOOSE, GCM))
    world.rekey()
    world.network.run(1)
    assert world.converged()
    assert len(world.member.kernel.sas) == len(exported(world.member)) == 2
    assert not set(world.member.kernel.sas) & set(exported(world.member))


def test_sa_atd_of_a_key_server() -> None:
    """The first key is there at once, a later one when its time has come, the old one until then
    and for DTD; who joins in between is told what is left of the delay."""
    world = running(2, IecTekConfig(GOOSE, SUITE, 3600, sa_atd=600, sa_kda=90))
    (old,) = spis(world)
    world.members[1].crash()
    world.rekey()
    start = world.now
    world.network.run(100)
    new = spis(world)[-1]
    world.members[1].restart()
    world.network.run(10)
    for member in world.members:
        assert exported(member) == [old]
        held = member.group.applications.held[new]
        assert held.receive_from == pytest.approx(start + 600, abs=2)
        assert held.tek.sa_kda == 90
    world.network.run(500)
    assert [exported(member) for member in world.members] == [[old, new]] * 2
    world.network.run(DTD)
    assert [exported(member) for member in world.members] == [[new]] * 2
    assert world.converged()


def test_keys_are_renewed_before_they_end() -> None:
    """For a day there is always a key to send with, and it is the same one everywhere."""
    world = running(3, IecTekConfig(GOOSE, SUITE, 3600, sa_atd=300), lkh=None)
    used = set()
    for _ in range(24 * 60):
        world.network.run(60)
        (now,) = {sending(member, world.now) for member in world.members}
        used.add(now)
        assert all(now in exported(member) for member in world.members)
    assert 24 <= len(used) <= 40
    assert all(member.group.counters.registrations == 1 for member in world.members)


@pytest.mark.parametrize("what", ["replace", "group", "single"])
def test_deleted_at_once(what: str) -> None:
    world = running(
        2, IecTekConfig(GOOSE, SUITE, sa_atd=60), TekConfig(FLOW, TEK_SUITES["aes128-sha256"])
    )
    (old,) = (t.tek.spi for t in world.group.teks if isinstance(t.tek, IecTek))
    engine, group_id = world.server.engine, world.group.config.group_id.key
    if what == "replace":
        world.rekey(replace_old=True)
    elif what == "group":
        world.server.do(engine.delete_group(group_id, world.now))
    else:
        world.server.do(engine.delete_tek(group_id, old, world.now) or [])
    world.network.run(0.5)
    for member in world.members:
        assert old not in exported(member)
    world.network.run(10)
    assert world.converged()
    (new,) = (t.tek.spi for t in world.group.teks if isinstance(t.tek, IecTek))
    assert [exported(member) for member in world.members] == [[new]] * 2


def test_no_acknowledgement_where_the_export_fails() -> None:
    """Old keys stay, nothing is promised, and the member fetches what it missed."""
    world = running()
    (old,) = spis(world)
    world.member.kernel.refuse_next("/run/gdoi/keys/g.json: No space left on device")
    world.rekey()
    world.network.run(0.01)
    assert exported(world.member) == [old]
    assert not world.datagrams(ExchangeType.GROUPKEY_PUSH_ACK)
    (failed,) = world.member.events("install-failed")
    assert "No space left" in str(failed.fields["error"])
    world.network.run(10)
    assert world.converged()
    assert exported(world.member) == [old, spis(world)[-1]]


def test_an_export_that_fails_when_a_key_is_due_is_tried_again() -> None:
    world = running(1, IecTekConfig(GOOSE, SUITE, sa_atd=60))
    world.rekey()
    world.network.run(59)
    world.member.kernel.refuse_next("disk full")
    world.network.run(0.99)
    before = world.member.kernel.exported
    world.network.run(2.5)
    assert len(before) == 1
    assert len(world.member.kernel.exported) == 2


@pytest.mark.parametrize("both", [False, True])
def test_restarts(both: bool) -> None:
    """Member and key server go on with the keys they had, whatever is left of their delays."""
    world = running(1, IecTekConfig(GOOSE, SUITE, 3600, sa_atd=600))
    world.rekey()
    world.network.run(100)
    old, new = spis(world)
    held = dict(world.member.group.applications.held)
    world.member.kernel.exported = ()  # the file is gone
    if both:
        world.server.restart()
    world.member.restart()
    assert exported(world.member) == [old]
    assert world.member.group.applications.held == held
    world.network.run(510)
    assert exported(world.member) == [old, new]
    assert spis(world)[-1] == new
    world.member.crash()
    world.network.run(2 * DTD)
    world.member.start()
    assert exported(world.member) == [new]


def test_expired_without_a_key_server() -> None:
    world = running(1, IecTekConfig(GOOSE, SUITE, 300))
    world.server.crash()
    world.network.run(301)
    assert exported(world.member) == []
    assert world.member.record["applications"] == []


def test_refused_in_words_without_a_place_for_it() -> None:
    config = group_config(1, teks=(IecTekConfig(GOOSE, SUITE),))
    world = build(Network(), group=config)
    world.start()
    world.network.run(3)
    assert "no export directory is configured" in world.member.group.last_failure
    assert world.member.kernel.exported == ()


def test_no_key_shows() -> None:
    world = running()
    secrets = [world.group.teks[0].tek.encryption_key.reveal()]
    secrets += [
        k.tek.integrity_key.reveal() for k in world.member.kernel.exported if k.tek.integrity_key
    ]
    told = repr(world.member.actions) + repr(world.member.group) + repr(world.group)
    assert len(secrets) == 2
    assert not any(secret.hex() in told or repr(secret) in told for secret in secrets)
    assert Drop.UNACCEPTABLE_POLICY not in world.network.reasons
    assert world.now > START
