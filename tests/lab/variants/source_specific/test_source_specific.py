"""Source-specific multicast: data and rekeys are for who has joined with their source.

::

    gcks == PUSH to 232.192.0.9 ==> gm1, gm2, gm3 == ESP to 232.192.1.9 ==> each other
"""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from gdoi_lab.group import LabGroup
from gdoi_lab.net import Host

from tests.lab.variants.groups import MEMBERS, SENDERS, SSM
from tests.lab.watch import Watch, pushes, sas

pytestmark = pytest.mark.uml


def test_source_specific_multicast(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """A TEK for each source, and every receiver has joined each of the others by its address."""
    watch = ran[SSM.name]
    watch.assert_whole()
    assert {flow.destination for flow in watch.counts.esp} == {"232.192.1.9"}
    for flow in watch.counts.esp:
        assert [f.source for f in watch.counts.esp if f.spi == flow.spi] == [flow.source]
    assert len(sas(lab.network["gm1"], SSM.data_group)) == len(SENDERS)


def test_rekeys_are_joined_with_their_source(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """The members' own kernels say so: (232.192.0.9, gcks), and nobody else."""
    sent = [p for p in pushes(ran[SSM.name].pcap) if p.destination == SSM.rekey_group]
    assert {push.source for push in sent} == {lab.network["gcks"].address4}
    for name in MEMBERS:
        assert joined(lab.network[name], SSM.rekey_group) == {lab.network["gcks"].address4}


def joined(host: Host, group: str | None) -> set[str]:
    """The sources that a host hears of a group, as its kernel lists them."""
    lines = host.run(["cat", "/proc/net/mcfilter"]).stdout.splitlines()[1:]
    rows = [[str(IPv4Address(int(f, 16))) for f in line.split()[2:4]] for line in lines]
    return {source for joined, source in rows if joined == group}
