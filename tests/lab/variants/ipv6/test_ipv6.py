"""The whole of it over IPv6, phase 1 with certificates; CBC, and GCM with a TEK for each sender.

::

    gcks -- PUSH over IPv6 --> gm1, gm2, gm3 == ESP over IPv6 ==> each other
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gdoi_lab.group import LabGroup

from tests.lab.variants.groups import GCM_6, MEMBERS, PLAIN_6, run_together

pytestmark = pytest.mark.uml


def test_ipv6(lab6: LabGroup, tmp_path: Path) -> None:
    """Registration, rekeys, acknowledgements and data."""
    for watch in run_together(lab6, MEMBERS, [PLAIN_6, GCM_6], tmp_path).values():
        watch.assert_whole()
    for event in lab6.gcks.events("phase1-established"):
        assert event["auth"] == "ecdsa_256"
    acked = [event["member"] for event in lab6.gcks.events("rekey-acked")]
    assert sorted(acked) == sorted(4 * [m.host.address6 for m in lab6.members.values()])
