"""The group's other shapes, each with traffic from every member and rekeys; and who is kept out.

The hosts are drawn in ``conftest.py``.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.waiting import wait_until

from gdoi_plugin.wire.registry import AckType, SigAlgorithm
from tests.lab.variants.groups import (
    DELETED,
    ECDSA,
    GCM,
    LIMIT,
    MEMBERS,
    PLAIN,
    UNICAST,
    count,
)
from tests.lab.watch import (
    Watch,
    acknowledged_by,
    frozen,
    let_pass,
    policies,
    pushes,
    rekey,
    sas,
    saved_keks,
    sending,
    wait_acknowledged,
    wait_agreed,
    watched,
)

pytestmark = pytest.mark.uml

# -- who is kept out -----------------------------------------------------------------------------


def test_no_member_by_the_list(lab: LabGroup) -> None:
    """unlisted -> gcks: phase 1, PULL; AUTHENTICATION-FAILED comes back, and nothing else."""
    unlisted = lab.members["unlisted"]
    unlisted.start()
    wait_until(
        lambda: any(
            "AUTHENTICATION_FAILED" in failed["error"]
            for failed in unlisted.events("registration-failed")
        ),
        LIMIT,
        "unlisted to be told so",
    )
    assert unlisted.stop() == 0
    assert count(unlisted, "registered") == 0
    for chosen in lab.groups:
        assert sas(unlisted.host, chosen.data_group) == {}


@pytest.mark.parametrize("chosen", [PLAIN, GCM], ids=["any source", "a TEK per sender"])
def test_outsider_reads_nothing_and_is_not_heard(
    lab: LabGroup, tmp_path: Path, chosen: GroupOptions
) -> None:
    """gm1..gm3 == ESP ==> outsider: nothing; outsider -- clear --> gm1..gm3: nothing."""
    with watched(
        lab, tmp_path, chosen, names=[*MEMBERS, "outsider"], scenario=f"an outsider, {chosen.name}"
    ) as watch:
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


def test_unicast_pushes(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gcks -- PUSH --> gm1, gm2, gm3 one by one; each ACK at once, without jitter."""
    watch = ran[UNICAST.name]
    watch.assert_whole()
    seen = [push.destination for push in pushes(watch.pcap) if push.destination.startswith("10.")]
    assert sorted(seen) == sorted(2 * [lab.network[name].address4 for name in MEMBERS])
    waited = [seconds for name in MEMBERS for seconds in before_acks(lab.members[name])]
    assert len(waited) == 2 * len(MEMBERS)
    # Evenly spread over 5 s, as to a multicast PUSH, four of six are as soon as that once in 900
    # times; a busy machine may delay one or two.
    assert sorted(waited)[3] < 0.5


def before_acks(member: Daemon) -> list[float]:
    """Seconds from each installation of unicast's rekeys to the ACK's leaving."""
    waited, installed = [], 0.0
    for event in member.events("rekey-installed", "rekey-acknowledged"):
        if event["group"] == UNICAST.name:
            at = datetime.fromisoformat(event["time"]).timestamp()
            if event["event"] == "rekey-acknowledged":
                waited.append(at - installed)
            installed = at
    return waited


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


def test_replacing_rekey(lab: LabGroup, tmp_path: Path) -> None:
    """gcks -- Delete all TEKs, new ones --> all: at once, without rollover.

    What is on its way while the members change may be lost; nothing is in clear.
    """
    with watched(lab, tmp_path, PLAIN, names=MEMBERS, scenario="replacing rekey") as watch:
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
    # What was lost, was lost in one stretch, while sender and receiver had different SAs.
    for pair in watch.pairs:
        assert len(pair.gaps) <= 1
        assert all(gap.after and gap.before for gap in pair.gaps)


def test_deleted_group_comes_back(lab: LabGroup, tmp_path: Path) -> None:
    """gcks -- Delete TEKs, Delete KEK --> all: SAs go, packets are blocked; all register again."""
    with watched(
        lab, tmp_path, DELETED, names=MEMBERS, scenario="deleted group comes back"
    ) as watch:
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


def test_flushed_kernel_is_filled_before_the_acknowledgement(lab: LabGroup, tmp_path: Path) -> None:
    """Somebody flushes gm1's tables while its agent hangs; a rekey comes first, and its ACK is as
    good as ever. The other groups are back too."""
    host = lab.network["gm1"]
    with frozen(lab.members["gm1"]):
        for table in ("state", "policy"):
            host.run(["ip", "xfrm", table, "flush"])
        answer = lab.command(lab.gcks, "rekey", group=PLAIN.name)
        wait_acknowledged(lab, MEMBERS[1:], int(answer["epoch"]), PLAIN.name)
        assert sas(host, PLAIN.data_group) == {}
    wait_acknowledged(lab, MEMBERS, int(answer["epoch"]), PLAIN.name)
    assert sending(host, PLAIN.data_group) != []
    for chosen in lab.groups:
        wait_until(
            lambda chosen=chosen: (  # type: ignore[misc]
                sas(host, chosen.data_group).keys()
                == sas(lab.network["gm2"], chosen.data_group).keys()
            ),
            LIMIT,
            f"all SAs of {chosen.name}",
            interval=0.2,
        )
        directions = {direction for _, direction, _ in policies(host, chosen.data_group)}
        assert {"in", "out"} <= directions
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
