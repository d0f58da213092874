"""Certificates and CRLs of every kind that keeps peers from getting in, now or soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gdoi_plugin.daemon.check.certificates import check_certificates
from gdoi_plugin.daemon.check.finding import Finding
from gdoi_plugin.daemon.config_common import CredentialsSection
from tests.support.pki import DAY, MOMENT, NOW, OTHER_ROOT, ROOT, Entity, issue, revoke

from .mending import FAIL, OK, WARN, the, verdicts

GOOD = issue("gm1", ROOT, crl_url="http://ca.example.org/root.crl")


def found(
    folder: Path,
    own: Entity = GOOD,
    ca: Entity = ROOT,
    *crls: x509.CertificateRevocationList,
    **options: Any,
) -> list[Finding]:
    (folder / "gm.pem").write_bytes(own.pem)
    (folder / "gm.key").write_bytes(own.key_pem)
    (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "crls").mkdir()
    for number, crl in enumerate(crls):
        (folder / "crls" / f"{number}.crl").write_bytes(crl.public_bytes(Encoding.PEM))
    files = {"certificate": "gm.pem", "private_key": "gm.key", "cacerts": ["ca.pem"]}
    section = CredentialsSection.model_validate({**files, "crls": ["crls"], **options})
    return list(check_certificates(folder / "gm.toml", section, NOW))


def test_nothing_is_wrong(tmp_path: Path) -> None:
    all_of_them = found(tmp_path, GOOD, ROOT, revoke(ROOT), revocation="strict")
    assert len(all_of_them) == 4
    assert set(verdicts(all_of_them).values()) == {OK}


def test_charon_has_the_crls(tmp_path: Path) -> None:
    """Then the files alone do not tell what peers would say."""
    options = {"charon_trust": ["crls"], "revocation": "strict"}
    tests = verdicts(found(tmp_path, GOOD, OTHER_ROOT, **options))
    assert set(tests.values()) == {OK}
    assert not any(test.startswith("chain") for test in tests)


def test_none_are_configured(tmp_path: Path) -> None:
    assert not list(check_certificates(tmp_path / "gm.toml", CredentialsSection(), NOW))


@pytest.mark.parametrize(
    ("begin", "end", "verdict", "said"),
    [
        (-300, -1, FAIL, "it has expired on "),
        (-300, 20, WARN, "in 20 days"),
        (-1, 2, OK, "valid until"),  # made for few days, it is not always about to expire
        (-7, 1, WARN, "in 1 days"),
        (1, 300, FAIL, "which is to come"),
    ],
)
def test_validity(tmp_path: Path, begin: int, end: int, verdict: str, said: str) -> None:
    own = issue("gm1", ROOT, begin=MOMENT + begin * DAY, end=MOMENT + end * DAY)
    one = the(found(tmp_path, own), "certificate")
    assert one.verdict == verdict
    assert said in one.found
    if said.startswith(("it has", "in")):
        assert one.mend.startswith(f"openssl req -new -key {tmp_path}/gm.key ")


def test_a_ca_that_expires(tmp_path: Path) -> None:
    ca = issue("root", ca=True, number=100, begin=MOMENT - 300 * DAY, end=MOMENT + 10 * DAY)
    one = the(found(tmp_path, issue("gm1", ca), ca), "CA")
    assert (one.verdict, "in 10 days" in one.found) == (WARN, True)


def test_a_chain_to_another_ca(tmp_path: Path) -> None:
    one = the(found(tmp_path, GOOD, OTHER_ROOT), "chain")
    assert one.verdict is FAIL
    assert one.mend.startswith("openssl verify ")


def test_revoked(tmp_path: Path) -> None:
    one = the(found(tmp_path, GOOD, ROOT, revoke(ROOT, GOOD)), "chain")
    assert (one.verdict, "revoked" in one.found) == (FAIL, True)
    assert "openssl genpkey" in one.mend


def test_a_list_that_is_out_of_date(tmp_path: Path) -> None:
    old = revoke(ROOT, begin=MOMENT - 9 * DAY, end=MOMENT - DAY)
    one = the(found(tmp_path, GOOD, ROOT, old), "CRL")
    assert one.verdict is WARN
    assert "who was revoked since then gets in" in one.found
    wanted = f"curl --output {tmp_path}/crls/0.crl http://ca.example.org/root.crl"
    assert one.mend == wanted


def test_a_list_that_is_out_of_date_and_needed(tmp_path: Path) -> None:
    old = revoke(ROOT, begin=MOMENT - 9 * DAY, end=MOMENT - DAY)
    all_of_them = found(tmp_path, GOOD, ROOT, old, revocation="strict")
    assert the(all_of_them, "CRL").verdict is FAIL
    assert the(all_of_them, "chain").verdict is FAIL


def test_a_list_of_the_future(tmp_path: Path) -> None:
    early = revoke(ROOT, begin=MOMENT + DAY)
    one = the(found(tmp_path, GOOD, ROOT, early), "CRL")
    assert (one.verdict, "which is to come" in one.found) == (FAIL, True)


def test_no_list_and_one_is_needed(tmp_path: Path) -> None:
    one = the(found(tmp_path, revocation="strict"), "CRL of")
    assert one.verdict is FAIL
    assert "none of its peers gets in" in one.found
