"""Sender-IDs with the independent peers: `gdoi-gcks` as a process, and our member's engine.

::

    127.x.y.1:5848                        127.x.y.2, .3 :5848
    gdoi-gcks (ours) <---- UDP ----> rfc_peer.Member, in this process
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from .engine_shell import World
from .rfc_crypto import SigningKey
from .rfc_key_server import GcmTek
from .rfc_octets import ID_IPV4, KD_SID, KeyPacket, Selector, address, tv
from .rfc_peer import Member, Notified, Pulled
from .running import Daemon, daemon, wait_for

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
PORT = 5848
SERVER = (f"{NET}.1", PORT)
PSK = b"a pre-shared key of two readings"
VIDEO = 77
SENDER, LISTENER = 2, 3
INVALID_SPI = 11


def config(*options: str) -> str:
    """Two data SAs of one sender: the same SID is for both."""
    tek = f'source = "{NET}.{SENDER}"\nproposal = "aes128gcm16"'
    return f"""
[key_server]
address = "{SERVER[0]}"
port = {PORT}
state = "@/state.sqlite"
control = "@/control"
[[peer]]
address = "{NET}.0/24"
psk = "{PSK.decode()}"
[[group]]
name = "video"
id = {VIDEO}
members = ["{NET}.{SENDER}", "{NET}.{LISTENER}"]
{chr(10).join(options)}
[group.rekey]
port = {PORT}
signature = "ecdsa256"
retransmissions = 0
[[group.tek]]
destination = "239.192.1.1"
{tek}
[[group.tek]]
destination = "239.192.1.2"
{tek}
"""


@contextmanager
def member(number: int) -> Iterator[Member]:
    with Member((f"{NET}.{number}", PORT), SERVER, PSK) as peer:
        peer.phase1()
        yield peer


def sids(pulled: Pulled) -> KeyPacket:
    (packet,) = [packet for packet in pulled.keys if packet.kind == KD_SID]
    return packet


def group(gcks: Daemon) -> dict[str, Any]:
    ((shown,),) = [answer["groups"] for answer in gcks.ctl("status")]
    return dict(shown)


def test_our_key_server_gives_them_in_order_and_after_a_restart_goes_on(tmp_path: Path) -> None:
    """The peer itself checks how many come, and that whoever only listens gets none."""
    with daemon("gdoi-gcks", config("sid_bits = 12"), tmp_path) as gcks:
        with member(SENDER) as peer:
            assert sids(peer.pull(VIDEO)) == (KD_SID, b"", {}, (), 12, (0,))
            peer.repeat = True  # message 3 twice gets the same message 4 twice
            assert sids(peer.pull(VIDEO, gap=tv(3, 3))).sids == (1, 2, 3)
            assert sids(peer.pull(VIDEO, gap=tv(3, 0))).sids == (4,)
        with member(LISTENER) as peer:
            peer.pull(VIDEO, gap=tv(3, 3))
        # Each answer leaves before its line is written.
        wait_for(lambda: len(gcks.events("member-registered")) == 4, "four lines in the log")
        registered = gcks.events("member-registered")
        assert [event.get("sender-ids") for event in registered] == ["0", "1, 2, 3", "4", None]
        gcks.process.kill()
        gcks.process.wait()
    with daemon("gdoi-gcks", config("sid_bits = 12"), tmp_path) as gcks, member(SENDER) as peer:
        assert sids(peer.pull(VIDEO, gap=tv(3, 2))).sids == (5, 6)
        shown = group(gcks)
        assert (shown["sid-bits"], shown["next-sender-id"]) == ("12", "7")


def test_our_key_server_makes_all_keys_anew_when_they_run_out(tmp_path: Path) -> None:
    """RFC 6407 3.5 items 5 and 6. 8 bits are 256 of them: four times 60, and 16 are left."""
    options = config("sid_bits = 8", "sender_ids_limit = 60")
    with daemon("gdoi-gcks", options, tmp_path) as gcks, member(SENDER) as peer:
        given = [sids(peer.pull(VIDEO, gap=tv(3, 60))).sids for _ in range(4)]
        assert given == [tuple(range(60 * n, 60 * n + 60)) for n in range(4)]
        before = dict(peer.teks)
        with pytest.raises(Notified) as told:
            peer.pull(VIDEO, gap=tv(3, 60))
        assert (told.value.protected, told.value.notification.kind) == (True, INVALID_SPI)
        push = peer.push()
        assert push.sa is None
        assert [(d.protocol, d.spis) for d in push.deletions] == [(1, [bytes(4)]), (0, [bytes(16)])]
        assert len(gcks.events("sender-ids-exhausted")) == 1
        peer.teks.clear()
        peer.keks.clear()
        again = peer.pull(VIDEO, gap=tv(3, 60))
        assert sids(again).sids == tuple(range(60))
        assert not before.keys() & peer.teks.keys()
        old_keys = [keys[1] for _, keys in before.values()]
        assert all(keys[1] not in old_keys for _, keys in peer.teks.values())


def test_our_key_server_gives_no_more_than_its_limit(tmp_path: Path) -> None:
    with daemon("gdoi-gcks", config("sender_ids_limit = 5"), tmp_path) as gcks:
        with member(SENDER) as peer, pytest.raises(AssertionError, match="asked for 65535"):
            peer.pull(VIDEO, gap=tv(3, 65535))
        wait_for(lambda: gcks.events("sender-ids-limited"), "the log to say so")
        (limited,) = gcks.events("sender-ids-limited")
        assert (limited["asked"], limited["given"]) == (65535, 5)
        assert group(gcks)["next-sender-id"] == "5"


def test_our_key_server_refuses_a_request_it_does_not_understand(tmp_path: Path) -> None:
    """RFC 6407 5.4: "MUST abort if it encounters an attribute [...] it does not understand"."""
    with daemon("gdoi-gcks", config(), tmp_path), member(SENDER) as peer:
        with pytest.raises(Notified) as told:
            peer.pull(VIDEO, gap=struct.pack("!HH", 0x8000 | 77, 1))
        assert (told.value.protected, told.value.notification.kind) == (True, 13)
        assert sids(peer.pull(VIDEO)).sids == (0,)


# -- our member ----------------------------------------------------------------------------------


@cache
def signer() -> SigningKey:
    return ec.generate_private_key(ec.SECP256R1())


def asking(count: int) -> World:
    """A key server with one data SA in counter mode, whose sender is our member."""
    world = World(signer(), sender_ids=count)
    sender = Selector(ID_IPV4, 0, address(world.here[0]))
    world.server.teks = [GcmTek("239.192.1.1", source=sender)]
    return world


@pytest.mark.parametrize(
    ("bits", "given"), [(8, (255,)), (12, (7, 9, 4095)), (16, (0, 256, 65535))]
)
def test_our_member_asks_and_keeps_what_it_is_given(bits: int, given: tuple[int, ...]) -> None:
    with asking(3) as world:
        world.server.sid_packets = [KeyPacket(KD_SID, b"", {}, (), bits, given)]
        world.register()
        assert [(a.kind, a.value, a.basic) for (a,) in world.server.requests] == [(3, 3, True)]
        kept = world.agent.engine.sids
        assert kept is not None
        assert (kept.bits, kept.values) == (bits, given)


@pytest.mark.parametrize("count", [0, 1])
def test_our_member_need_not_ask_for_one(count: int) -> None:
    with asking(count) as world:
        world.server.sid_packets = [KeyPacket(KD_SID, b"", {}, (), 8, (1,))]
        world.register()
        assert world.server.requests == []


def test_our_member_does_not_ask_where_it_only_listens() -> None:
    with asking(3) as world:
        somebody = Selector(ID_IPV4, 0, address("10.9.9.9"))
        world.server.teks = [GcmTek("239.192.1.1", source=somebody)]
        world.register()
        assert world.server.requests == []


def test_our_member_refuses_sids_in_a_push() -> None:
    with asking(0) as world:
        world.register()
        tek = GcmTek("239.192.1.1", source=world.server.teks[0].source)
        packet = KeyPacket(KD_SID, b"", {}, (), 8, (1,))
        policy = [*world.server.gap(), tek.sat()]
        world.silent(world.server.push(policy, [tek.packet(), packet]))
        assert "rekey-refused" in world.agent.names()
        assert world.agent.engine.sids is None
        assert tek.spi not in world.agent.held
