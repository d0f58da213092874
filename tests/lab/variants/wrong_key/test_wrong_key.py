"""A wrong key is seen to fail: packets are refused and counted, and nobody else is harmed.

::

    gm1 == ESP ==> gm2     as ever
    gm1, gm2 == ESP ==> gm3, which holds another key under the same SPI; and back
"""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path

import pytest
from gdoi_lab.group import LabGroup
from gdoi_lab.net import Host

from tests.lab.variants.groups import MEMBERS, PLAIN
from tests.lab.watch import frozen, let_pass, rekey, sending, state_entry, wait_agreed, watched

pytestmark = pytest.mark.uml

REFUSED, NO_SA = "XfrmInStateProtoError", "XfrmInNoStates"
ANY = "0.0.0.0"  # noqa: S104  (no address to bind: an SA for any sender)


def test_a_wrong_key_is_refused_and_counted(lab: LabGroup, tmp_path: Path) -> None:
    gm3 = lab.network["gm3"]
    used = wait_agreed(lab, MEMBERS, PLAIN)
    # gm3's agent would mend what is done behind its back.
    with (
        frozen(lab.members["gm3"]),
        watched(lab, tmp_path, PLAIN, names=MEMBERS, scenario="wrong key at gm3") as watch,
    ):
        let_pass(1.0)
        before = {name: counted(lab.network[name]) for name in MEMBERS}
        exchange_keys(gm3, used)
        let_pass(2.0)
        assert sending(gm3, PLAIN.data_group) == [used]
        delete_sa(gm3, used)
    more = {name: counted(lab.network[name]) - before[name] for name in MEMBERS}
    watch.assert_nothing_clear()
    for pair in watch.pairs:
        assert (pair.lost > 0) == ("gm3" in (pair.sender, pair.receiver))
    # Whatever gm3 put on the wire under the wrong key was refused, at each of the others.
    for pair in watch.pairs:
        if pair.sender == "gm3":
            assert more[pair.receiver] == {REFUSED: watch.esp_of("gm3") - pair.received}
            assert more[pair.receiver][REFUSED] > 0
    # And the other way round; but for what came while there was no SA at all.
    assert more["gm3"][REFUSED] > 0
    assert more["gm3"].total() == sum(p.lost for p in watch.pairs if p.receiver == "gm3")

    # gm3's agent has put back what it finds missing.
    rekey(lab, MEMBERS, PLAIN.name)
    wait_agreed(lab, MEMBERS, PLAIN)
    with watched(lab, tmp_path, PLAIN, names=MEMBERS, scenario="wrong key at gm3, rekeyed") as well:
        let_pass(1.0)
    well.assert_whole()


def counted(host: Host) -> Counter[str]:
    """Packets refused for their ICV, and for want of an SA, since the host was there."""
    lines = host.run(["cat", "/proc/net/xfrm_stat"]).stdout.splitlines()
    fields = (line.split() for line in lines)
    return Counter({name: int(number) for name, number in fields if name in (REFUSED, NO_SA)})


def exchange_keys(host: Host, spi: int) -> None:
    """Other keys in a group's SA, all else as it was."""
    reqid = state_entry(host, spi).split("reqid ")[1].partition("(")[0]
    keys = ["auth-trunc", "hmac(sha256)", "0x" + secrets.token_hex(32), "128"]
    keys += ["enc", "cbc(aes)", "0x" + secrets.token_hex(32)]
    delete_sa(host, spi)
    host.ip("xfrm", "state", "add", *sa_id(spi), "mode", "transport", "reqid", reqid, *keys)


def delete_sa(host: Host, spi: int) -> None:
    host.ip("xfrm", "state", "delete", *sa_id(spi))


def sa_id(spi: int) -> list[str]:
    return ["src", ANY, "dst", PLAIN.data_group, "proto", "esp", "spi", hex(spi)]
