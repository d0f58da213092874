"""Tunnel mode, from each sender's address to the group.

::

    gm1 == IP in ESP, from gm1 to the group ==> gm2, gm3     and so each of them
"""

from __future__ import annotations

import pytest
from gdoi_lab.group import LabGroup

from tests.lab.variants.groups import MEMBERS, TUNNEL
from tests.lab.watch import Watch, sas

pytestmark = pytest.mark.uml


def test_tunnel_mode(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """gm1 == IP in ESP, from gm1 to the group ==> all."""
    ran[TUNNEL.name].assert_whole()
    for name in MEMBERS:
        (sa,) = sas(lab.network[name], TUNNEL.data_group).values()
        assert sa.mode == "tunnel"
