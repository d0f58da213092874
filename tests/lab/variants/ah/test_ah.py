"""AH instead of ESP: what is sent can be read, and cannot be forged.

::

    gm1 == IP, AH, UDP ==> gm2, gm3     and so each of them
"""

from __future__ import annotations

import pytest
from gdoi_lab.group import LabGroup

from tests.lab.variants.groups import AH, MEMBERS
from tests.lab.watch import Watch, sas

pytestmark = pytest.mark.uml


def test_authentication_header(lab: LabGroup, ran: dict[str, Watch]) -> None:
    """Two rekeys under traffic: everything has arrived and was in AH, nothing in ESP or bare."""
    watch = ran[AH.name]
    watch.assert_whole()
    assert sum(watch.counts.ah.values()) == sum(r.sent for r in watch.reports.values())
    assert watch.counts.esp == {}
    for name in MEMBERS:
        (sa,) = sas(lab.network[name], AH.data_group).values()
        assert (sa.mode, sa.algorithm) == ("transport", "hmac(sha384)")
