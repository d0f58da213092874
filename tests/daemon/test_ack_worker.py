"""Processes that read acknowledgements beside the key server: real ones, on real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from gdoi_bench.acking import until

from gdoi_plugin.crypto.prf import prf
from gdoi_plugin.daemon import ack_worker
from gdoi_plugin.daemon.ack_worker import decode_taken, encode_end, encode_portion, obey
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.lanes import Lane
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.protocol.ack_check import NO_CLAIM, AckCheck, Portion, Row, prefix, seq_payload
from gdoi_plugin.protocol.ack_gate import AckGate
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.wire.registry import Hash
from tests.daemon.test_acks import MEMBERS, Sent, during, logged, rekeyed, send
from tests.daemon.test_lanes import SORTED
from tests.daemon.test_udp import Heard, peer, run

TWO = "ack_processes = 2"
LKH = 'kek_management = "lkh"\n'


def pids(daemon: KeyServerDaemon) -> list[int]:
    assert daemon.acks.workers is not None
    return daemon.acks.workers.pids


def told(daemon: KeyServerDaemon) -> bool:
    """The processes have been given all that they need."""
    workers = daemon.acks.workers
    return (
        workers is not None
        and daemon.acks._preparing is None
        and not any(worker._orders for worker in workers._workers)
    )


class Claims:
    """What the key server takes from its processes, and whether it believed it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count: Counter[bool] = Counter()
        checked = AckGate._checked

        def counted(gate: AckGate, claim: tuple[int, int]) -> object:
            found = checked(gate, claim)
            self.count[found is not None] += 1
            return found

        patch.setattr(AckGate, "_checked", counted)


@pytest.mark.parametrize("ack", ["kek-sha256", "kek-sha512", "lkh-sha256", "lkh-sha512"])
def test_every_ack_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ack: str) -> None:
    claims = Claims(monkeypatch)

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        page, sent = rekeyed(daemon, group)
        await until(lambda: told(daemon))
        send(daemon, sent[:-1])
        await until(lambda: len(page.acknowledged) == MEMBERS - 1)
        send(daemon, sent)
        await until(lambda: page.closed)
        await until(lambda: daemon.log.drops["ack-duplicate"] == MEMBERS - 1)
        assert all(member.acknowledged == 1 for member in group.members.values())
        # Whoever has closed the page has no use for its keys.
        assert daemon.acks.workers is not None
        assert daemon.acks.workers._said == {}

    rekey = (LKH if ack.startswith("lkh") else "") + f'ack = "{ack}"'
    during(tmp_path, scenario, more=TWO, rekey=rekey)
    # The last datagrams may have come after the page was closed.
    assert claims.count[True] >= MEMBERS
    assert claims.count.total() == 2 * MEMBERS - 1


def hostile(sent: Sent) -> Sent:
    """Of each member: wrong HASH, SPI, SEQ, ID, Length, version; too short and too long."""
    bad = []
    for host, octets in sent:
        seq = len(octets) - 16
        bad += [
            (host, made)
            for made in (
                octets[:40] + bytes(8) + octets[48:],
                b"\1" * 16 + octets[16:],
                octets[:seq] + b"\xff" * 4 + octets[seq + 4 :],
                octets[:-4] + b"\x7f\x20\0\1",
                octets[:27] + b"\0" + octets[28:],
                octets[:17] + b"\x30" + octets[18:],
                octets[:-1],
                octets + b"\0",
                octets[:30],
                octets[:20],
            )
        ]
    return bad


def test_what_is_refused_is_refused_for_the_same_reason(tmp_path: Path) -> None:
    drops: list[Counter[str]] = []
    for more in ("", TWO):
        folder = tmp_path / (more or "none")
        folder.mkdir()

        async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
            page, sent = rekeyed(daemon, group)
            bad = hostile(sent)
            half = len(sent) // 2
            send(daemon, [*bad, *sent[:half]])
            await until(lambda: len(page.acknowledged) == half)
            await until(lambda: daemon.log.drops.total() == len(bad))
            # Duplicates, from the right place and from another's, and other HASHes after the true.
            moved = [(sent[n - 1][0], octets) for n, (_, octets) in enumerate(sent[:half])]
            again = [*sent[:half], *moved, *hostile(sent[:half])]
            send(daemon, again)
            await until(lambda: daemon.log.drops.total() == len(bad) + len(again))
            drops.append(Counter(daemon.log.drops))
            send(daemon, sent)
            await until(lambda: page.closed)

        during(folder, scenario, more=more)
    assert drops[0] == drops[1]
    assert drops[0]["ack-bad-hash"] >= MEMBERS
    assert drops[0]["ack-wrong-source"] > 0


def test_one_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    members = 400

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        page, sent = rekeyed(daemon, group)
        await until(lambda: told(daemon))
        first = pids(daemon)
        assert len(first) == 2
        send(daemon, sent[: members // 2])
        await until(lambda: len(page.acknowledged) > 0)
        send(daemon, sent[members // 2 :])
        os.kill(first[0], signal.SIGKILL)
        await until(lambda: len(pids(daemon)) == 2 and first[0] not in pids(daemon))
        heard = set(page.acknowledged.members.numbers)
        # What was read and not handed on is said again, as members do of a PUSH that is repeated.
        send(daemon, sent)
        await until(lambda: len(page.acknowledged) == members)
        assert heard <= set(page.acknowledged.members.numbers)
        assert all(member.acknowledged == 1 for member in group.members.values())
        assert pids(daemon)[1] == first[1]

        # And it knows what it must: also what was handed out before it was there.
        page, sent = rekeyed(daemon, group)
        await until(lambda: told(daemon))
        for pid in pids(daemon):
            os.kill(pid, signal.SIGKILL)
        send(daemon, sent)  # to sockets that nobody reads now: they stay open
        await until(lambda: len(page.acknowledged) == members)

    during(tmp_path, scenario, members=members, more=TWO)
    ended = logged(tmp_path, "ack-process-ended")
    assert [entry["number"] for entry in ended] in ([1, 1, 2], [1, 2, 1])
    assert all(entry["why"] for entry in ended)


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.split() for name, _, text in (line.partition(":") for line in lines)}


def test_they_end_with_the_key_server_and_have_no_rights(tmp_path: Path) -> None:
    all_pids: list[int] = []

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        page, sent = rekeyed(daemon, group)
        send(daemon, sent)
        await until(lambda: page.closed)  # they are at work, so they have renounced all
        all_pids.extend(pids(daemon))
        for pid in all_pids:
            status = status_of(pid)
            assert status["NoNewPrivs"] == ["1"]
            for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
                assert int(status[kind][0], 16) == 0
            if os.geteuid() == 0:
                assert set(status["Uid"]) == {"65534"}
            os.kill(pid, signal.SIGTERM)  # not for them
        page, sent = rekeyed(daemon, group)
        send(daemon, sent)
        await until(lambda: page.closed)
        assert pids(daemon) == all_pids

    during(tmp_path, scenario, more=TWO)
    assert len(all_pids) == 2
    for pid in all_pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert logged(tmp_path, "ack-process-ended") == []


@pytest.mark.parametrize("flood", [0, 5000], ids=["idle", "held up"])
def test_it_ends_when_the_other_end_is_closed(flood: int) -> None:
    """Whatever the key server died of, and also while nobody takes what it has to say."""
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock, own:
        sock.bind(("127.0.0.1", 0))
        fds = [sock.fileno(), its.fileno()]
        command = [sys.executable, "-m", ack_worker.__name__, *map(str, fds)]
        with its:
            process = subprocess.Popen(command, pass_fds=fds)
        try:
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
                sender.sendto(b"first", sock.getsockname())
                assert [each[1] for each in decode_taken(own.recv(1000))] == [b"first"]
                for _ in range(flood):
                    sender.sendto(bytes(1000), sock.getsockname())
            own.close()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def test_what_makes_no_sense_ends_a_process_and_nothing_else(tmp_path: Path) -> None:
    """It reads what strangers send: the key server believes no length it says."""

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        before = pids(daemon)
        assert daemon.acks.workers is not None
        worker = daemon.acks.workers._workers[0]
        heard = worker._heard
        worker._heard = lambda packet: heard(packet[:-1])
        page, sent = rekeyed(daemon, group)
        send(daemon, sent)
        await until(lambda: before[0] not in pids(daemon))
        worker._heard = heard
        await until(lambda: len(pids(daemon)) == 2)
        send(daemon, sent)
        await until(lambda: page.closed)

    during(tmp_path, scenario, more=TWO)
    assert len(logged(tmp_path, "ack-process-ended")) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_spreads_acks_by_their_hash(host: str) -> None:
    local = peer(host)

    async def scenario(_one: UdpSockets, two: UdpSockets, _heard: Heard) -> None:
        two.bind(local, "lo")
        assert two.separate(local, spread=3) is None
        sockets = two.spread_over(local)
        assert len(sockets) == 3
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as sender:
            header = SORTED[Lane.ACK][0]
            for n in range(9):
                sender.sendto(header + bytes(4) + n.to_bytes(4, "big"), (host, local.port))
        for n, sock in enumerate(sockets):
            got = [int.from_bytes(sock.recv(100)[-4:], "big") for _ in range(3)]
            assert got == [n, n + 3, n + 6]

    run(scenario)


# -- what is said between them ---------------------------------------------------------------------


def test_orders_and_claims() -> None:
    check, spi = AckCheck(), bytes(range(16))
    who = [bytes((0, 0, 0, 12, 1, 0, 0, 0)) + bytes((127, 16, 0, n)) for n in range(3)]
    rows = [Row(n + 1, who[n], bytes([n]) * 32) for n in range(3)]
    own = Portion(7, 2, spi, 9, b"", rows)
    obey(encode_portion(own), check)
    shared = Portion(8, 1, spi, 10, b"k" * 32, [Row(n + 1, who[n]) for n in range(3)])
    obey(encode_portion(shared), check)

    def ack(seq: int, n: int, key: bytes) -> bytes:
        rest = seq_payload(seq) + who[n]
        return prefix(spi, 32, len(rest)) + prf(Hash.SHA2_256, key, rest) + rest

    assert check.claim(ack(9, 1, b"\1" * 32)) == (7, 2)
    assert check.claim(ack(9, 1, b"\2" * 32)) == NO_CLAIM
    assert check.claim(ack(10, 2, b"k" * 32)) == (8, 3)
    assert check.claim(ack(11, 2, b"k" * 32)) == NO_CLAIM
    good = ack(10, 0, b"k" * 32)
    assert all(check.claim(good[:n]) == NO_CLAIM for n in range(len(good)))
    assert check.claim(good + b"\0") == NO_CLAIM
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 0x10
        assert check.claim(bytes(changed)) == NO_CLAIM
    obey(encode_end(8), check)
    assert check.claim(good) == NO_CLAIM
    assert check.claim(ack(9, 0, bytes(32))) == (7, 1)
    obey(encode_end(8), check)  # once more changes nothing
    assert len(check) == 1
    assert "k" * 8 not in repr(shared)


@pytest.mark.parametrize("octets", [b"\0" * 10, b"\0" * 8 + b"\6\0\5" + b"\0" * 10, b"\0" * 11])
def test_what_a_process_says_is_read_with_care(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r"octets"):
        list(decode_taken(octets))
