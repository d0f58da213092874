"""The groups of these scenarios, and how they are run together on one network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Host
from gdoi_lab.waiting import wait_until

from tests.lab.watch import (
    RATE,
    Watch,
    rekey,
    sas,
    saved_keks,
    sending,
    watched_together,
)

MEMBERS = ["gm1", "gm2", "gm3"]
# By the key server's list; badpsk never registers.
SENDERS = [*MEMBERS, "badpsk"]
LIMIT = 150.0


def options(name: str, number: int, **others: object) -> GroupOptions:
    """A short rollover, so that a test sees its end."""
    short: dict[str, object] = {
        "activation_delay": "5s",
        "deactivation_delay": "7s",
        "ack_jitter": "0.2s",
    }
    return GroupOptions(name, number, **{**short, **others})  # type: ignore[arg-type]


PLAIN = options("plain", 1, signature="rsa2048-sha256")
# An RSA key and three data SAs do not fit in one PUSH.
GCM = options("gcm", 2, proposal="aes128gcm16", push_limit=640, signature="rsa2048-sha256")
# A member that took its time over the ACK of a unicast PUSH would be seen.
UNICAST = options("unicast", 3, unicast=True, ack_jitter="5s")
ECDSA = options("ecdsa", 4, signature="ecdsa521", kek="aes192", ack="kek-sha512", applications=True)
TUNNEL = options("tunnel", 5, mode="tunnel")
DELETED = options("deleted", 6, recovery_delay="3s")
TREE = options("tree", 7, key_tree=True, ack="lkh-sha256")
FLAT = options("flat", 8)
SSM = options("ssm", 9, source_specific=True)
AH = options("ah", 10, ah_proposal="sha384")
PLAIN_6 = options("plain6", 1, version=6)
GCM_6 = options("gcm6", 2, version=6, proposal="aes256gcm16")
# In the scenarios' table.
TITLES = {
    GCM.name: "AES-GCM, a TEK for each sender",
    UNICAST.name: "unicast PUSHes",
    ECDSA.name: "ECDSA-521, KEK of 192 bits",
    TUNNEL.name: "tunnel",
    SSM.name: "source-specific multicast",
    AH.name: "AH",
    PLAIN_6.name: "IPv6",
    GCM_6.name: "IPv6, AES-GCM",
}


def count(daemon: Daemon, event: str, **fields: object) -> int:
    return sum(fields.items() <= logged.items() for logged in daemon.events(event))


def run_together(
    group: LabGroup, names: Sequence[str], chosen: Sequence[GroupOptions], folder: Path
) -> dict[str, Watch]:
    """Two rekeys of every group under traffic, the second with a new KEK, to the last rollover.

    Each group is a row of the scenarios' table.
    """
    some = group.network[names[0]]
    teks = {o.name: len(sas(some, o.data_group)) for o in chosen}
    first = {o.name: sending(some, o.data_group) for o in chosen}
    keks = set(saved_keks(group))
    with watched_together(group, folder, chosen, names=names, rate=RATE / 5) as watches:
        for watch in watches:
            watch.scenario = TITLES[watch.options.name]
        for kek in ("no", "yes"):
            for o in chosen:  # one after the other: together they would take longer than ATD
                rekey(group, names, o.name, kek=kek)
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
