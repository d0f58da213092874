"""Counter mode: AES-GCM with a TEK for each sender, made by the key server from its list.

::

    gm1 =TEK 1=> gm2, gm3     gm2 =TEK 2=> gm1, gm3     gm3 =TEK 3=> gm1, gm2
"""

from __future__ import annotations

import pytest
from gdoi_lab.group import LabGroup

from tests.lab.variants.groups import GCM, MEMBERS, SENDERS
from tests.lab.watch import Watch, pushes, sas

pytestmark = pytest.mark.uml


def test_gcm_with_a_tek_for_each_sender(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gm1 =TEK 1=> all, gm2 =TEK 2=> all, gm3 =TEK 3=> all; AES-GCM-16, replay protected."""
    watch = ran[GCM.name]
    watch.assert_whole()
    users: dict[int, set[str]] = {}
    for flow in watch.counts.esp:
        users.setdefault(flow.spi, set()).add(flow.source)
    assert all(len(sources) == 1 for sources in users.values())
    held = sas(lab.network["gm1"], GCM.data_group)
    assert len(held) == len(SENDERS)
    assert {sa.algorithm for sa in held.values()} == {"rfc4106(gcm(aes))"}


def test_a_rekey_in_several_pushes(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gcks == PUSH, PUSH, ... ==> all, 640 octets each at most, each acknowledged by all."""
    seen = [p for p in pushes(ran[GCM.name].pcap) if p.destination == GCM.rekey_group]
    # The KEK with its RSA key, and three data SAs: two rekeys, one of them with a new KEK.
    assert len(seen) > 4
    assert all(len(push.datagram) <= 640 for push in seen[:2])
    parts = [e for e in lab.gcks.events("rekey-part-acked") if e["group"] == GCM.name]
    assert len(parts) == len(MEMBERS) * (len(seen) - 2)
