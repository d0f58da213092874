"""tshark reads what certificates, NAT traversal, key trees and Sender-IDs add to the messages.

Phase 1 runs under IPsec's number: with GDOI's, tshark 4.0 takes the SA of message 1 for a group's
and finds no cipher. What it cannot decrypt, a PUSH, is given to it decrypted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.crypto import cipher
from gdoi_plugin.protocol.actions import KeyLog, Peer, Send
from gdoi_plugin.protocol.identity_pattern import IdentityList
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.protocol.policy import Kek
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.message import pull_decrypted
from gdoi_plugin.wire.registry import NAT_PORT, Doi, ExchangeType, Flags
from tests.support.pki import ROOT, certificates, issue
from tests.support.worlds import (
    SUITE,
    World,
    group_config,
    member_peer,
    registered,
    server_phase1,
)

from .tshark import dissect, write_capture

MEMBER = issue("gm1", ROOT, number=1)
GCKS = issue("gcks", ROOT, number=2)


def decrypted(send: Send, kek: Kek) -> Send:
    """A PUSH as if it had been sent in clear."""
    header = pull_header(send.datagram)
    plain = cipher.decrypt(kek.key.reveal(), kek.iv, send.datagram[HEADER_LENGTH:])
    payloads = pull_decrypted(header, plain, cipher.BLOCK).payloads
    body = b"".join(payload.octets for payload in payloads)
    clear = replace(header, flags=Flags.NONE, length=HEADER_LENGTH + len(body))
    return replace(send, datagram=clear.encode() + body)


def run(group: Any) -> tuple[World, list[Send], dict[bytes, bytes]]:
    """A registration by certificate and a rekey; everything that was sent, and phase 1's keys."""
    way = certificates(MEMBER, "C=CH, O=Example, CN=gcks")
    own = Phase1Config((way,), (SUITE,), dois=(Doi.IPSEC,))
    its = certificates(GCKS)
    wire, world = registered(
        group=replace(group, members=IdentityList.parse(["%any"])),
        phase1=own,
        member_changes={"nat_local": Peer(member_peer(0).host, NAT_PORT)},
        phase1_for=lambda peer: replace(server_phase1(peer), auth=(its,), dois=(Doi.IPSEC,)),
    )
    kek = world.group.current_kek().kek
    world.rekey(kek=True)
    wire.settle()
    wire.run(6)
    wire.settle()
    assert world.converged()
    keys = {a.cky_i: a.encryption_key for a in world.server.actions if isinstance(a, KeyLog)}
    sends = [
        decrypted(send, kek)
        if pull_header(send.datagram).exchange_type == ExchangeType.GROUPKEY_PUSH
        else send
        for _, send in world.network.sent
    ]
    return world, sends, keys


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path, Path, dict[bytes, bytes]]:
    folder = tmp_path_factory.mktemp("tshark")
    world, sends, keys = run(group_config())
    write_capture(folder / "story.pcap", sends)
    return world, folder, folder / "story.pcap", keys


Story = tuple[World, Path, Path, dict[bytes, bytes]]


def shown(story: Story, *fields: str, where: str) -> list[list[str]]:
    _, folder, capture, keys = story
    return dissect(folder / "profile", capture, keys, fields, where)


def test_every_message_is_isakmp_and_well_formed(story: Story) -> None:
    world, *_ = story
    lines = shown(story, "isakmp.version", "isakmp.exchangetype", where="udp")
    assert len(lines) == len(world.network.sent)
    assert {version for version, _ in lines} == {"0x10"}
    assert {exchange for _, exchange in lines} == {"2", "32", "33", "35"}
    assert (
        shown(story, "frame.number", where="_ws.malformed || _ws.expert.severity == 8388608") == []
    )


def test_main_mode_with_certificates(story: Story) -> None:
    """SA, VID; KE, nonce, NAT-D, CERTREQ; and, decrypted, ID, CERT, SIG."""
    lines = shown(story, "isakmp.typepayload", where="isakmp.exchangetype == 2")
    first, second, third, fourth, fifth, sixth = (
        [*map(int, kinds.split(","))] for (kinds,) in lines
    )
    for kinds in (first, second):
        assert kinds[:3] == [1, 2, 3]
        assert set(kinds[3:]) == {13}
    for kinds in (third, fourth):
        assert kinds[:2] == [4, 10]
        assert sorted(kinds[2:]) == [7, 20, 20]
    for kinds in (fifth, sixth):
        assert kinds[:3] == [5, 6, 9]
    ((auths, hashes),) = shown(
        story,
        "isakmp.ike.attr.authentication_method",
        "isakmp.ike.attr.hash_algorithm",
        where="isakmp.exchangetype == 2 && isakmp.rspi == 00:00:00:00:00:00:00:00",
    )
    assert (auths, hashes) == ("9", "4")  # ECDSA-256, SHA2-256
    names = shown(story, "x509sat.uTF8String", where="isakmp.typepayload == 6")
    assert [sorted({*found.split(",")} & {"gm1", "gcks"}) for (found,) in names] == [
        ["gm1"],
        ["gcks"],
    ]


def test_pull_push_and_ack(story: Story) -> None:
    world, *_ = story
    pull = shown(story, "isakmp.typepayload", where="isakmp.exchangetype == 32")
    assert [kinds for (kinds,) in pull] == ["8,10,5", "8,10,1", "8", "8,18,17"]
    (push,) = shown(
        story,
        "isakmp.typepayload",
        "isakmp.seq.seq",
        "isakmp.kd.payload.type",
        "isakmp.kd.payload.spi",
        where="isakmp.exchangetype == 33",
    )
    kek = world.group.current_kek().kek
    (tek,) = (t.tek for t in world.group.teks if t.retire_at is None)
    kinds = push[0].split(",")
    assert (kinds[0], kinds[1], kinds[-2], kinds[-1]) == ("18", "1", "17", "9")
    assert push[1:3] == ["1", "2,1"]
    spis = push[3].replace(":", "").split(",")
    assert spis == [kek.spi.hex(), tek.spi.hex()]
    ((ack, seq, address),) = shown(
        story,
        "isakmp.typepayload",
        "isakmp.seq.seq",
        "isakmp.id.data.ipv4_addr",
        where="isakmp.exchangetype == 35",
    )
    assert (ack, seq, address) == ("8,18,5", "1", str(world.member.address.host))
