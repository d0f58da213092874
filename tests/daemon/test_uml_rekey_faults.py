"""Whatever a rekey asks of a real kernel fails in turn, in the agent with its key server.

The key server says one rekey again and again, as it does to a member that stays silent; each time
the next request goes wrong, until the rekey makes no more of them: then nothing has.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from gdoi_xfrm import Direction, Policy, SaState, Xfrm

from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.protocol.actions import Peer
from tests.daemon.test_daemons import Pair, pages, together, until
from tests.kernel.conftest import namespace, xfrm
from tests.kernel.faults import fault_at
from tests.kernel.rekey import held

__all__ = ["namespace", "xfrm"]
pytestmark = pytest.mark.uml

# Two SAs come, their flows' policies follow, in and out, and two SAs go.
CHANGES = 2 + 4 + 2
# All of them are looked at before; and what is to stay, afterwards.
READS = CHANGES + 2 + 4


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """The member waits for the rekey to come again, and does not register."""
    made = Pair(tmp_path)
    silent = ('recovery_delay = "0s"', 'recovery_delay = "1h"')
    made.gm.write_text(made.gm.read_text().replace(*silent))
    patient = ('signature = "ecdsa256"', 'signature = "ecdsa256"\nretransmissions = 60')
    made.gcks.write_text(made.gcks.read_text().replace(*patient))
    return made


def say_again(server: KeyServerDaemon) -> None:
    """As when the time to wait for acknowledgements is over."""
    (rekey,) = server.engine.groups[1].ledger.values()
    server.tick(rekey.deadline)


Held = tuple[list[SaState], list[Policy]]


def assert_unchanged(after: Held, before: Held, when: str) -> None:
    """An SA that was deleted and put back may have skipped sequence numbers; it used none twice."""
    assert after[1] == before[1], when
    bare = [[replace(state, output_sequence=0) for state in held] for held in (after[0], before[0])]
    assert bare[0] == bare[1], when
    sent = [[state.output_sequence for state in held] for held in (after[0], before[0])]
    assert all(now >= then for now, then in zip(*sent, strict=True)), when


@pytest.mark.parametrize(
    ("kind", "error", "reading", "steps"),
    [
        ("refused", "ENOMEM", False, CHANGES),
        ("answer lost", "ENOBUFS", False, CHANGES),
        ("refused", "ENOMEM", True, READS),
    ],
    ids=["a change refused", "an answer lost", "a look refused"],
)
def test_nothing_has_changed_and_no_ack_left(
    pair: Pair, xfrm: Xfrm, kind: str, error: str, *, reading: bool, steps: int
) -> None:
    """Then the same rekey is installed and acknowledged. ``xfrm`` looks on, beside the agent."""

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        group = member.member.groups["video"]
        old, before = set(group.rollover.held), held(xfrm)
        arrived: list[tuple[bytes, Peer, Peer]] = []
        sent: list[bytes] = []
        receive, send = member.receive, member.sockets.send

        def sending(datagram: bytes, *way: Any) -> None:
            sent.append(datagram)
            send(datagram, *way)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(member, "receive", lambda *packet: arrived.append(packet))
            patch.setattr(member.sockets, "send", sending)
            server.commands.rekey({"group": "video", "replace": "yes"})
            for step in count():
                await until(lambda: arrived, "the rekey")
                with fault_at(member._xfrm, step, kind, reading=reading) as fault:
                    receive(*arrived.pop())
                assert group.counters.rekeys_received == step + 1
                if not fault.count:
                    break  # for there is no such step
                assert group.counters.rekeys_refused == step + 1
                assert_unchanged(held(xfrm), before, f"after a fault at step {step}")
                assert (set(group.rollover.held), sent, group.counters.acknowledged) == (old, [], 0)
                say_again(server)
        assert step == steps
        await until(lambda: pages(server) == [(1, 1)], "acknowledged")
        assert (len(sent), group.counters.acknowledged) == (1, 1)
        new = {tek.tek.spi for tek in server.engine.groups[1].teks}
        assert not new & old
        assert {state.sa.spi.to_bytes(4, "big") for state in xfrm.dump_sas()} == new
        kernel = member._kernels["video"]
        for tek in (one.tek for one in group.rollover.held.values()):
            for policy in (kernel.policy(tek, way) for way in (Direction.IN, Direction.OUT)):
                assert xfrm.find_policy(policy.key) == policy

    together(pair, scenario)
    refused = pair.logged("install-failed")
    assert [f"({error})" in told["error"] for told in refused] == [True] * steps
    for event in ("kernel-restored", "kernel-not-restored", "bug"):
        assert pair.logged(event) == []
