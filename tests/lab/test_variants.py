"""The group's other shapes, each with traffic from every member and rekeys; and who is kept out.

::

    gcks ----+---- gm1, gm2, gm3     several groups at once, an address each
             +---- badpsk            configured with another pre-shared key
             +---- unlisted          no member by the key server's list
             +---- outsider          no daemon at all
          capture
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from gdoi_lab.group import PSK, Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Host, Network
from gdoi_lab.pki import Authority
from gdoi_lab.waiting import wait_until

from gdoi_plugin.wire.registry import AckType, SigAlgorithm
from tests.lab.watch import (
    RATE,
    Watch,
    acknowledged_by,
    frozen,
    let_pass,
    policies,
    pushes,
    reconfigure,
    rekey,
    sas,
    saved_keks,
    sending,
    wait_acknowledged,
    wait_agreed,
    watched,
    watched_together,
)

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2", "gm3"]
LIMIT = 60.0


def options(name: str, number: int, **others: object) -> GroupOptions:
    """A short rollover, so that a test sees its end."""
    short: dict[str, object] = {
        "activation_delay": "1s",
        "deactivation_delay": "3s",
        "ack_jitter": "1s",
    }
    return GroupOptions(name, number, **{**short, **others})  # type: ignore[arg-type]


PLAIN = options("plain", 1)
GCM = options("gcm", 2, proposal="aes128gcm16", push_limit=640)
# A member that took its time over the ACK of a unicast PUSH would be seen.
UNICAST = options("unicast", 3, unicast=True, ack_jitter="5s")
ECDSA = options("ecdsa", 4, signature="ecdsa521", kek="aes192", ack="kek-sha512", applications=True)
TUNNEL = options("tunnel", 5, mode="tunnel")
DELETED = options("deleted", 6, recovery_delay="3s")
TREE = options("tree", 7, key_tree=True, ack="lkh-sha256")
PLAIN_6 = options("plain6", 1, version=6)
GCM_6 = options("gcm6", 2, version=6, proposal="aes256gcm16")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """Every IPv4 group, registered. badpsk tries from the start: giving up takes it 31 s."""
    folder = tmp_path_factory.mktemp("variants")
    hosts = ["gcks", *MEMBERS, "badpsk", "unlisted", "outsider"]
    with Network(hosts, folder / "work") as network:
        more = (GCM, UNICAST, ECDSA, TUNNEL, DELETED, TREE)
        group = LabGroup(
            network, folder / "work", folder, PLAIN, more=more, outsiders=("outsider",)
        )
        unlisted = f', "{network["unlisted"].address4}"'
        reconfigure(group.gcks, unlisted, "")
        reconfigure(group.members["badpsk"], PSK, "another key")
        group.start(*MEMBERS)
        group.members["badpsk"].start()
        yield group
        daemons = [group.members[name] for name in MEMBERS]
        assert [daemon.stop() for daemon in [*daemons, group.gcks]] == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def lab6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """The IPv6 groups: registration, rekeys, acknowledgements and data, all over IPv6, and phase 1
    with certificates."""
    folder = tmp_path_factory.mktemp("variants6")
    authority = Authority(folder / "pki")
    with Network(["gcks", "gm1", "gm2"], folder / "work") as network:
        group = LabGroup(
            network, folder / "work", folder, PLAIN_6, more=(GCM_6,), authority=authority
        )
        group.start()
        yield group
        daemons = [*group.members.values(), group.gcks]
        assert [daemon.stop() for daemon in daemons] == [0, 0, 0]


def count(daemon: Daemon, event: str, **fields: object) -> int:
    return sum(fields.items() <= logged.items() for logged in daemon.events(event))


def run_together(
    group: LabGroup, names: Sequence[str], chosen: Sequence[GroupOptions], folder: Path
) -> dict[str, Watch]:
    """Two rekeys of every group under traffic, the second with a new KEK, to the last rollover."""
    some = group.network[names[0]]
    teks = {o.name: len(sas(some, o.data_group)) for o in chosen}
    first = {o.name: sending(some, o.data_group) for o in chosen}
    keks = set(saved_keks(group))
    with watched_together(group, folder, chosen, names=names, rate=RATE / 2) as watches:
        for kek in ("no", "yes"):
            answers = [group.command(group.gcks, "rekey", group=o.name, kek=kek) for o in chosen]
            for answer in answers:
                wait_acknowledged(group, names, int(answer["epoch"]), answer["group"])
        for o in chosen:
            for name in names:
                wait_held(group.network[name], o, teks[o.name])
            assert sending(some, o.data_group) != first[o.name]
        assert len(set(saved_keks(group)) - keks) == len(chosen)
    return {watch.options.name: watch for watch in watches}


def wait_held(host: Host, chosen: GroupOptions, number: int) -> None:
    """Until a kernel holds so many SAs of the group and no more."""
    wait_until(
        lambda: len(sas(host, chosen.data_group)) == number,
        LIMIT,
        f"{host.name} to let go of old SAs",
        interval=0.2,
    )


@pytest.fixture(scope="module")
def ran(lab: LabGroup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watch]:
    """The IPv4 variants, all at the same time."""
    folder = tmp_path_factory.mktemp("ran")
    return run_together(lab, MEMBERS, [GCM, UNICAST, ECDSA, TUNNEL], folder)


# -- who is kept out -----------------------------------------------------------------------------


def test_no_member_by_the_list(lab: LabGroup) -> None:
    """unlisted -> gcks: phase 1, PULL; AUTHENTICATION-FAILED comes back, and nothing else."""
    unlisted = lab.members["unlisted"]
    unlisted.start()
    unlisted.wait_event("registration-failed", LIMIT)
    failed = next(unlisted.events("registration-failed"))
    assert "AUTHENTICATION_FAILED" in failed["error"]
    assert unlisted.stop() == 0
    assert count(unlisted, "registered") == 0
    for chosen in lab.groups:
        assert sas(unlisted.host, chosen.data_group) == {}


@pytest.mark.parametrize("chosen", [PLAIN, GCM], ids=["any source", "a TEK per sender"])
def test_outsider_reads_nothing_and_is_not_heard(
    lab: LabGroup, tmp_path: Path, chosen: GroupOptions
) -> None:
    """gm1..gm3 == ESP ==> outsider: nothing; outsider -- clear --> gm1..gm3: nothing."""
    with watched(lab, tmp_path, chosen, names=[*MEMBERS, "outsider"]) as watch:
        let_pass(2.0)
    outsider = watch.reports["outsider"]
    # Its packets were on the wire, and the capture tells clear from ESP.
    assert outsider.sent > 0
    assert watch.counts.clear == {outsider.address: outsider.sent}
    assert outsider.received == {}
    for name in MEMBERS:
        assert outsider.id not in watch.reports[name].received
    assert [(pair.sender, pair.receiver, pair.gaps) for pair in watch.pairs] == [
        (pair.sender, pair.receiver, []) for pair in watch.pairs
    ]


# -- variants ------------------------------------------------------------------------------------


def test_gcm_with_a_tek_for_each_sender(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gm1 =TEK 1=> all, gm2 =TEK 2=> all, gm3 =TEK 3=> all; AES-GCM-16, replay protected."""
    watch = ran[GCM.name]
    watch.assert_whole()
    users: dict[int, set[str]] = {}
    for flow in watch.counts.esp:
        users.setdefault(flow.spi, set()).add(flow.source)
    assert all(len(sources) == 1 for sources in users.values())
    held = sas(lab.network["gm1"], GCM.data_group)
    assert len(held) == len(lab.members)  # one for each that may send, by the policy
    assert {sa.algorithm for sa in held.values()} == {"rfc4106(gcm(aes))"}


def test_a_rekey_in_several_pushes(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gcks == PUSH, PUSH, ... ==> all, 640 octets each at most, each acknowledged by all."""
    seen = [p for p in pushes(ran[GCM.name].pcap) if p.destination == GCM.rekey_group]
    # The KEK with its RSA key, and three data SAs: two rekeys, one of them with a new KEK.
    assert len(seen) > 4
    assert all(len(push.datagram) <= 640 for push in seen[:2])
    parts = [e for e in lab.gcks.events("rekey-part-acked") if e["group"] == GCM.name]
    assert len(parts) == len(MEMBERS) * (len(seen) - 2)


def test_unicast_pushes(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gcks -- PUSH --> gm1, gm2, gm3 one by one; each ACK at once, without jitter."""
    watch = ran[UNICAST.name]
    watch.assert_whole()
    seen = [push.destination for push in pushes(watch.pcap) if push.destination.startswith("10.")]
    assert sorted(seen) == sorted(2 * [lab.network[name].address4 for name in MEMBERS])
    times = [e["rtt"] for e in lab.gcks.events("rekey-acked") if e["group"] == UNICAST.name]
    assert len(times) == 2 * len(MEMBERS)
    assert max(times) < 2.5


def test_ecdsa_521_kek_of_192_bits_and_sha_512(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gcks == KEK AES-192, ECDSA-521 ==> all == ACKs with HMAC-SHA-512 ==> gcks."""
    watch = ran[ECDSA.name]
    watch.assert_whole()
    seen = [push for push in pushes(watch.pcap) if push.destination == ECDSA.rekey_group]
    assert len(seen) == 2
    for kek in saved_keks(lab).values():
        if str(kek.destination) == ECDSA.rekey_group:
            assert kek.scheme.algorithm == SigAlgorithm.SIG_ALG_ECDSA_521
            assert len(kek.key) == 24
            assert kek.ack_type == AckType.REKEY_ACK_KEK_SHA512


def test_keys_for_applications(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gcks == SAT of RFC 8052 beside ESP's ==> all: the same keys in a file at each of them, new
    ones after a rekey that all have acknowledged, and none in a log."""
    assert ran[ECDSA.name].counts.clear == {}
    before = wait_single(lab)
    rekey(lab, MEMBERS, ECDSA.name)
    (spi, key) = wait_single(lab, *before)
    assert before[0] != spi
    assert before[1] != key
    for name in MEMBERS:
        (listed,) = lab.listed(lab.members[name], "key", group=ECDSA.name)
        assert (listed["spi"], listed["state"], "auth-key" in listed) == (spi, "exported", False)
        assert key not in lab.members[name].log.read_text()
    assert key not in lab.gcks.log.read_text()


def exported(lab: LabGroup) -> list[tuple[str, str]]:
    """SPIs and keys, oldest first; the same at all members, in files that are their owner's."""
    found = []
    for name in MEMBERS:
        path = lab.members[name].work / "keys" / f"{ECDSA.name}.json"
        assert path.stat().st_mode & 0o777 == 0o600
        keys = json.loads(path.read_text())["keys"]
        assert all(len(key["auth-key"]) == 64 and len(key["conf-key"]) == 32 for key in keys)
        found.append([(key["spi"], key["auth-key"]) for key in keys])
    return found[0] if found.count(found[0]) == len(found) else []


def wait_single(lab: LabGroup, *unless: str) -> tuple[str, str]:
    """Until all have let go of old keys: SPI and key of the one there is, another than before."""
    wait_until(
        lambda: len(exported(lab)) == 1 and exported(lab)[0] != unless,
        LIMIT,
        "all to have one key, the same",
        interval=0.1,
    )
    return exported(lab)[0]


def test_tunnel_mode(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gm1 == IP in ESP, from gm1 to the group ==> all."""
    ran[TUNNEL.name].assert_whole()
    for name in MEMBERS:
        (sa,) = sas(lab.network[name], TUNNEL.data_group).values()
        assert sa.mode == "tunnel"


def test_replacing_rekey(lab: LabGroup, tmp_path: Path) -> None:
    """gcks -- Delete all TEKs, new ones --> all: at once, without rollover.

    What is on its way while the members change may be lost; nothing is in clear.
    """
    with watched(lab, tmp_path, PLAIN, names=MEMBERS) as watch:
        old = sas(lab.network["gm1"], PLAIN.data_group).keys()
        rekey(lab, MEMBERS, PLAIN.name, replace="yes")
        for name in MEMBERS:
            held = sas(lab.network[name], PLAIN.data_group).keys()
            assert len(held) == 1
            assert not held & old
        wait_agreed(lab, MEMBERS, PLAIN)
        rekey(lab, MEMBERS, PLAIN.name)
        wait_agreed(lab, MEMBERS, PLAIN)
    watch.assert_nothing_clear()
    assert_one_gap(watch, longest=1.0)


def test_deleted_group_comes_back(lab: LabGroup, tmp_path: Path) -> None:
    """gcks -- Delete TEKs, Delete KEK --> all: SAs go, packets are blocked; all register again."""
    with watched(lab, tmp_path, DELETED, names=MEMBERS) as watch:
        held = policies(lab.network["gm1"], DELETED.data_group)
        before = [count(lab.members[name], "registered", group=DELETED.name) for name in MEMBERS]
        answer = lab.command(lab.gcks, "delete-group", group=DELETED.name)
        with frozen(lab.gcks):  # so that nobody is back too soon to be seen
            for name in MEMBERS:
                lab.members[name].wait_event("group-deleted", LIMIT)
                assert sas(lab.network[name], DELETED.data_group) == {}
            assert policies(lab.network["gm1"], DELETED.data_group) == held
            let_pass(1.0)
        wait_until(
            lambda: all(
                count(lab.members[name], "registered", group=DELETED.name) > times
                for name, times in zip(MEMBERS, before, strict=True)
            ),
            LIMIT,
            "all to register again",
        )
        wait_agreed(lab, MEMBERS, DELETED)
        assert acknowledged_by(lab, int(answer["epoch"]), DELETED.name) == set(MEMBERS)
        rekey(lab, MEMBERS, DELETED.name)
        wait_agreed(lab, MEMBERS, DELETED)
    watch.assert_nothing_clear()
    # What the kernel took from the senders meanwhile never reached the wire; then all goes on.
    for name in MEMBERS:
        assert watch.esp_of(name) < watch.reports[name].sent
    for pair in watch.pairs:
        assert pair.lost > 0
        assert all(gap.before is not None for gap in pair.gaps)


def test_evicted_member_hears_no_more_and_the_others_lose_nothing(
    lab: LabGroup, tmp_path: Path
) -> None:
    """gcks -- new KEK by LKH, for gm1 and gm2 --> all; TEKs under it --> all; gm3 has neither."""
    gone = lab.network["gm3"]
    with watched(lab, tmp_path, TREE, names=MEMBERS) as watch:
        let_pass(0.5)
        first = sending(gone, TREE.data_group)
        answer = lab.command(lab.gcks, "evict", group=TREE.name, identities=[gone.address4])
        assert answer["registered"] == "1"
        for name in MEMBERS[:2]:  # past DTD
            wait_until(
                lambda n=name: first[0] not in sas(lab.network[n], TREE.data_group),  # type: ignore[misc]
                LIMIT,
                f"{name} to let go of the old SA",
                interval=0.2,
            )
        used = wait_agreed(lab, MEMBERS[:2], TREE)
        assert used not in sas(gone, TREE.data_group)
        let_pass(1.0)
    watch.assert_nothing_clear()
    for pair in watch.pairs:
        if "gm3" in (pair.sender, pair.receiver):
            assert pair.gaps[-1].before is None, "not heard again"
        else:
            assert pair.gaps == []
    missing = [e["member"] for e in lab.gcks.events("ack-missing") if e["group"] == TREE.name]
    assert missing == []
    lab.members["gm3"].wait_event("rekey-for-others", LIMIT)
    lab.command(lab.gcks, "admit", group=TREE.name, identities=[gone.address4])
    wait_agreed(lab, MEMBERS, TREE)


def assert_one_gap(watch: Watch, longest: float) -> None:
    """What was lost, was lost in one short stretch."""
    gaps = [gap for pair in watch.pairs for gap in pair.gaps]
    for gap in gaps:
        assert gap.after is not None
        assert gap.before is not None
    if gaps:
        first = min(gap.after or 0.0 for gap in gaps)
        assert max(gap.before or 0.0 for gap in gaps) - first < longest


def test_flushed_kernel_is_filled_before_the_acknowledgement(lab: LabGroup, tmp_path: Path) -> None:
    """Somebody flushes gm1's tables; the next rekey's ACK is as good as ever, then a registration
    brings back the other groups."""
    host, before = lab.network["gm1"], len(list(lab.members["gm1"].events("registered")))
    for table in ("state", "policy"):
        host.run(["ip", "xfrm", table, "flush"])
    assert sas(host, PLAIN.data_group) == {}
    rekey(lab, ["gm1"], PLAIN.name)
    # The old TEK, which all still send with, and the new one; in and out.
    assert len(sas(host, PLAIN.data_group)) >= 2
    directions = {direction for _, direction, _ in policies(host, PLAIN.data_group)}
    assert directions == {"in", "out"}
    assert sending(host, PLAIN.data_group) != []
    assert sas(host, GCM.data_group) == {}
    lab.command(lab.members["gm1"], "register")
    lab.members["gm1"].wait_event("registered", LIMIT, before + len(lab.groups))
    for chosen in lab.groups:
        assert sas(host, chosen.data_group) != {}
        assert policies(host, chosen.data_group) != []
    with watched(lab, tmp_path, PLAIN, names=MEMBERS) as watch:
        let_pass(1.0)
    watch.assert_whole()


def test_another_pre_shared_key(lab: LabGroup) -> None:
    """badpsk -> gcks: message 5 is never answered; the log says what is probably wrong."""
    badpsk = lab.members["badpsk"]
    badpsk.wait_event("registration-failed", LIMIT, len(lab.groups))
    for failed in badpsk.events("registration-failed"):
        assert "is the pre-shared key the same on both sides" in failed["error"]
    assert count(badpsk, "registered") == 0
    for chosen in lab.groups:
        assert sas(badpsk.host, chosen.data_group) == {}
    dropped = {event["reason"] for event in lab.gcks.events("dropped")}
    assert dropped & {"authentication-failed", "malformed"}


def test_ipv6(lab6: LabGroup, tmp_path: Path) -> None:
    """gcks -- PUSH over IPv6 --> gm1, gm2 == ESP over IPv6 ==> each other; CBC and GCM."""
    for watch in run_together(lab6, ["gm1", "gm2"], [PLAIN_6, GCM_6], tmp_path).values():
        watch.assert_whole()
    for event in lab6.gcks.events("phase1-established"):
        assert event["auth"] == "ecdsa_256"
    acked = [event["member"] for event in lab6.gcks.events("rekey-acked")]
    assert sorted(acked) == sorted(4 * [m.host.address6 for m in lab6.members.values()])
