"""A hundred rekeys under 2,000 packets a second from three senders: nothing is lost or in clear.

::

    gcks ----+---- gm1, gm2, gm3     each sends to both others, 667 packets a second
             |
          capture

A rekey a second, ATD 8 s and DTD 12 s: every rekey meets the rollovers of the twelve before. (ATD
is what members may be apart in taking a rekey; on a busy machine that is seconds.) The lab kernel
has one processor, on which each packet is encrypted once and decrypted twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdoi_lab.group import GROUP, GroupOptions, LabGroup

from tests.lab.running import running
from tests.lab.watch import let_pass, refused_to_send, rekey, rekeys_sent, wait_agreed, watched

# The machine's, not the group's, would be the packets lost beside other tests.
pytestmark = [pytest.mark.uml, pytest.mark.alone]

MEMBERS = ["gm1", "gm2", "gm3"]
OPTIONS = GroupOptions(
    signature="rsa2048-sha256", activation_delay="8s", deactivation_delay="12s", ack_jitter="0.1s"
)
REKEYS = 100
NEW_KEK_EVERY = 20
RATE = 2000.0
PACE = 1.0  # seconds from one rekey to the next


@pytest.fixture
def group(tmp_path: Path) -> Iterator[LabGroup]:
    with running(tmp_path, MEMBERS, OPTIONS) as lab:
        yield lab


def test_a_hundred_rekeys(group: LabGroup, tmp_path: Path) -> None:
    """Counted by senders and receivers, and by a capture; all rekeys acknowledged by all."""
    wait_agreed(group, MEMBERS, OPTIONS)
    before = rekeys_sent(group, GROUP)
    with watched(
        group, tmp_path, scenario="100 rekeys under load", rate=RATE / len(MEMBERS)
    ) as watch:
        began = time.monotonic()
        for number in range(1, REKEYS + 1):
            rekey(group, MEMBERS, kek="yes" if number % NEW_KEK_EVERY == 0 else "no")
            let_pass(max(0.0, began + number * PACE - time.monotonic()))
        seconds = time.monotonic() - began
        wait_agreed(group, MEMBERS, OPTIONS)
        watch.note = f"{REKEYS / seconds:.2f} rekeys a second"
    # No kernel was ever at a loss what to send a packet with.
    refusals = {name: refused_to_send(group.network[name]) for name in MEMBERS}
    assert refusals == {name: {} for name in MEMBERS}
    watch.assert_whole()
    assert len(rekeys_sent(group, GROUP) - before) == REKEYS
    # They have really been used: an SPI each.
    assert len({flow.spi for flow in watch.counts.esp}) > REKEYS / 2
    for name in MEMBERS:
        assert len(list(group.members[name].events("registered"))) == 1
