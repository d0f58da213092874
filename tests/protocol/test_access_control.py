"""RFC 6407 section 7.4.1: what is said under a KEK that an evicted member knows."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gdoi_plugin.crypto import cipher
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import Kek
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.message import pull_decrypted
from gdoi_plugin.wire.registry import ExchangeType, KeyPacketType, PayloadType
from tests.support.worlds import GROUP_ID, World, group_config, member_peer, registered


def said_under(world: World, kek: Kek) -> set[bytes]:
    """The SPIs of all TEKs that whoever holds this KEK could read from PUSHes."""
    found: set[bytes] = set()
    for send in world.datagrams(ExchangeType.GROUPKEY_PUSH):
        header = pull_header(send.datagram)
        if header.spi != kek.spi:
            continue
        plain = cipher.decrypt(kek.key.reveal(), kek.iv, send.datagram[HEADER_LENGTH:])
        for payload in pull_decrypted(header, plain, cipher.BLOCK).all(PayloadType.KD):
            packets = payload.parse(KeyDownload).packets
            found |= {p.spi for p in packets if p.kd_type == KeyPacketType.TEK}
    return found


@pytest.mark.parametrize("lkh", [None, LkhPolicy(arity=2, members=8)], ids=["kek", "lkh"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
def test_a_rekey_that_waits_for_acks_is_not_repeated_with_keys_made_after_an_eviction(
    lkh: LkhPolicy | None, restart: bool
) -> None:
    wire, world = registered(3, group=group_config(3, lkh=lkh))
    known = world.group.current_kek().kek
    world.members[2].crash()
    world.rekey()
    wire.settle()
    rekey = world.group.ledger[world.group.epoch]
    assert rekey.silent, "or there is nothing to repeat"
    before = {tek.tek.spi for tek in world.group.teks}

    gone = Identity.of_address(member_peer(1).host)
    world.server.do(world.server.engine.evict(GROUP_ID, [gone], world.now))
    if restart:
        world.server.restart()
    wire.run(60)
    assert world.group.ledger[rekey.epoch].closed
    assert said_under(world, known) <= before
    assert {tek.tek.spi for tek in world.group.teks} - before


@pytest.mark.parametrize("address", [None, "239.192.0.1"], ids=["unicast", "multicast"])
def test_without_a_key_tree_the_others_fetch_what_an_evicted_member_could_overhear(
    address: str | None,
) -> None:
    rekey_address = None if address is None else ip_address(address)
    wire, world = registered(2, group=group_config(2, rekey_address=rekey_address))
    known, before = world.group.current_kek().kek, {t.tek.spi for t in world.group.teks}
    gone = Identity.of_address(member_peer(1).host)
    world.server.do(world.server.engine.evict(GROUP_ID, [gone], world.now))
    wire.settle()
    wire.run(3)
    wire.settle()
    assert world.in_step(world.member)
    assert world.group.current_kek().kek.spi != known.spi
    assert said_under(world, known) <= before
