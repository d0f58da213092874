"""CRLs that a real charon has, in our own phase 1 with certificates; its CAs are none of ours."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import Entity, issue, revoke, usage

from .charon import Refused
from .ike_members import (
    BEGIN,
    CA,
    CONFIG,
    END,
    GCKS,
    NAME,
    PLAIN,
    Hosts,
    entity,
    hosts,
    key_server,
    pem,
)
from .running import Daemon, wait_for

ONE, TWO = "10.79.0.131", "10.79.0.132"
GOOD, BAD = entity("gm1", 91), entity("gm2", 92)
FROM_CHARON = CONFIG.replace(
    'cacerts = ["@/ca.pem"]', 'cacerts = ["@/ca.pem"]\ncharon_trust = ["crls"]'
)
FROM_CHARON = FROM_CHARON.replace('members = ["10.79.0.0/24"]', 'members = ["*.example.org"]')
SIGNS = usage(key_cert_sign=True, crl_sign=True, digital_signature=True)
ROGUE_NAME = ["gm3.example.org"]
ROGUE = issue("gm3", ca=True, key_usage=SIGNS, number=94, names=ROGUE_NAME, begin=BEGIN, end=END)
IMPOSTOR = issue(
    "gm3",
    ROGUE,
    number=95,
    names=ROGUE_NAME,
    key_usage=usage(digital_signature=True),
    begin=BEGIN,
    end=END,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("trust"), ONE, TWO) as running:
        yield running


def told(gcks: Daemon) -> list[tuple[str, int | None]]:
    events = gcks.events("charon-trust", "charon-trust-lost")
    return [(e["level"], e.get("crls")) for e in events]


def registers(site: Hosts, address: str, of: Entity) -> bool:
    return site.applicant(address, PLAIN, of).run() is None


def turned_down(site: Hosts, gcks: Daemon, address: str, of: Entity) -> str:
    """Why its certificate is not believed."""

    def dropped() -> list[str]:
        events = gcks.events("dropped")
        return [e["detail"] for e in events if e["reason"] == "authentication-failed"]

    before, applicant = len(dropped()), site.applicant(address, PLAIN, of)
    wait_for(lambda: not applicant.step() and len(dropped()) > before, "phase 1 to fail")
    applicant.close()
    return dropped()[-1]


def test_whom_charon_trusts(site: Hosts) -> None:
    with site.key_servers_charon() as ike, key_server(site, "gcks", FROM_CHARON) as gcks:
        assert registers(site, ONE, GOOD)
        assert registers(site, TWO, BAD)
        # Whom charon refuses leaves a certificate, signed by itself, in its list of CAs.
        site.ike.load_key(ROGUE.key_pem)
        site.ike.load(
            "impostor",
            version="2",
            childless="force",
            local_addrs=[ONE],
            remote_addrs=[GCKS],
            send_cert="always",
            local={"auth": "pubkey", "id": ROGUE_NAME[0], "certs": [pem(ROGUE)]},
            remote={"auth": "pubkey", "id": NAME},
        )
        with pytest.raises(Refused):
            site.ike.initiate("impostor")
        cas = ike._session.list_certs({"type": "X509", "flag": "CA"})
        assert ROGUE.der in [ca["data"] for ca in cas]
        # Revoked in charon; by then it has been asked for what it has.
        crl = revoke(CA, BAD, begin=BEGIN, end=END).public_bytes(Encoding.PEM)
        ike.load_crl(crl)
        wait_for(lambda: told(gcks) == [("info", 1)], "charon's CRL")
        assert "gm3" in turned_down(site, gcks, ONE, IMPOSTOR)
        assert registers(site, ONE, GOOD)
        assert "revoked" in turned_down(site, gcks, TWO, BAD)
        # Gone, it is told of once, and leaves what it had in force.
        os.kill(ike.process.pid, signal.SIGKILL)
        wait_for(lambda: told(gcks)[-1] == ("error", None), "charon to be missed")
        assert registers(site, ONE, GOOD)
        assert "revoked" in turned_down(site, gcks, TWO, BAD)
        assert len(told(gcks)) == 2
