"""deploy/bench swarm: its members' ACKs are those of real members, and a small swarm is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from gdoi_bench.swarm_keys import AckMaker, SwarmKeys, SwarmMember
from gdoi_lab.checkout import CHECKOUT

from gdoi_plugin.crypto.lkh import Tree
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import GroupPolicy, Kek
from gdoi_plugin.protocol.push import ALL_KEKS, Content, build_push
from gdoi_plugin.wire.registry import AckType
from tests.support.worlds import ECDSA, signer

HOSTS = [IPv4Address("127.1.0.0") + n for n in range(5)]
SIGNER = signer(ECDSA)
NOTHING = Content(None, (ALL_KEKS,))


def random(octets: int) -> bytes:
    return os.urandom(octets)


def kek(**changes: Any) -> Kek:
    public = SIGNER.public_der
    made = Kek(random(16), random(16), Secret(random(32)), ECDSA, public, 60)
    return replace(made, **changes)


@pytest.mark.parametrize("ack_type", list(AckType)[:4])
def test_acks_are_those_of_the_protocol(ack_type: AckType) -> None:
    held, leaf = kek(), Secret(random(32))
    maker = AckMaker(held, 7, ack_type)
    for host in HOSTS:
        base = base_key(ack_type, held, leaf)
        assert base is not None
        made = build_ack(ack_type, base, held, 7, Identity.of_address(host).payload())
        assert maker.make(SwarmMember(host.packed, leaf=leaf)) == made


def test_a_tree_s_update_is_read_once_for_all_who_have_its_kek() -> None:
    tree = Tree.plant(2, 8, 48, random)
    leaves = [tree.join(random) for _ in HOSTS]
    asks = AckType.REKEY_ACK_LKH_SHA256

    def rooted(**changes: Any) -> Kek:
        return kek(iv=tree.root.iv, key=tree.root.key, ack_type=asks, **changes)

    first, keys = rooted(), SwarmKeys()
    members = [
        keys.holds(host.packed, replace(first, path=tree.path(leaf)))
        for host, leaf in zip(HOSTS, leaves, strict=True)
    ]
    assert {(member.tree, member.kek) for member in members} == {(0, 0)}
    update = tree.leave([leaves[-1]], random)
    second = rooted()
    told = GroupPolicy(second, (), updates=tuple(update.arrays.values()))
    heard = keys.hear(build_push(first, 1, SIGNER, Content(told)))
    assert heard is not None
    assert (heard.tree, heard.under, heard.brings) == (0, 0, 1)
    again = keys.hear(build_push(second, 1, SIGNER, NOTHING))
    assert again is not None
    assert (again.under, again.brings) == (1, None)
    assert keys.hear(build_push(kek(), 1, SIGNER, NOTHING)) is None
    # Who registers now has the key that the others were brought.
    newcomer = keys.holds(HOSTS[-1].packed, replace(second, path=tree.path(tree.join(random))))
    assert (newcomer.tree, newcomer.kek) == (0, 1)


@pytest.mark.parametrize("options", [["--lkh"], ["--unicast"]])
def test_a_small_swarm(options: list[str]) -> None:
    """gdoi-gcks counts every member that acknowledges; real registrations and made ones alike."""
    command = [sys.executable, "-m", "gdoi_bench", "swarm", "--json", "--rekeys", "2"]
    done = subprocess.run(
        [*command, "--members", "40", "--registrations", "8", "--jitter", "0.1", *options],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT}/deploy:{CHECKOUT}"},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = {each["name"]: each["value"] for each in json.loads(done.stdout)}
    assert figures["members' ACKs not counted, but for those"] == 0
    assert figures["ACKs sent in all rekeys"] >= figures["ACKs counted"]
    # Two rekeys with TEKs, and with a tree an update for the second one's KEK.
    assert figures["ACKs counted"] == (3 if "--lkh" in options else 2) * 40
