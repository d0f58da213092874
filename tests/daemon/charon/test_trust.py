"""CAs and CRLs as charon lists them: what is believed of that, and what is kept."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gdoi_plugin.crypto.certificate import BadCertificate, read_leaf
from gdoi_plugin.daemon.charon.trust import CharonTrust, charon_trust
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.protocol.identity_pattern import IdentityPattern
from tests.daemon.configs import GCKS, GM, refused, write
from tests.support.pki import DAY, Entity, issue, revoke, usage

NOW = datetime.datetime.now(datetime.UTC)
BEGIN, END = NOW - DAY, NOW + DAY
SIGNS = usage(key_cert_sign=True, crl_sign=True)


def authority(name: str, number: int, issuer: Entity | None = None) -> Entity:
    return issue(
        name, issuer, ca=True, key_usage=SIGNS, number=number, begin=BEGIN, end=END, kind="p256"
    )


ROOT = authority("root", 200)
BETWEEN = authority("between", 201, ROOT)
STRANGER = authority("root", 202)
OWN, GM1 = (issue(n, ROOT, number=k, begin=BEGIN, end=END) for n, k in (("ks", 203), ("gm1", 204)))


def der(of: x509.CertificateRevocationList) -> bytes:
    return of.public_bytes(Encoding.DER)


def crl(issuer: Entity, *revoked: Entity, age: int = 3, **more: Entity) -> bytes:
    begin = NOW - datetime.timedelta(hours=age)
    return der(revoke(issuer, *revoked, begin=begin, end=END, **more))


def trust(folder: Path) -> CharonTrust:
    return CharonTrust(folder / "vici")


def test_only_what_signs_itself_is_trusted(tmp_path: Path) -> None:
    held = trust(tmp_path)
    assert held.take([ROOT.der, BETWEEN.der], [])
    assert held.cas == (ROOT.certificate,)
    assert held.intermediates == (BETWEEN.certificate,)
    assert not held.take([ROOT.der, BETWEEN.der], [])
    assert held.revision == 1


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    held = trust(tmp_path)
    assert held.take([ROOT.der, b"", b"\x30\x03\x02\x01", ROOT.der[:-7]], [b"rubbish", ROOT.der])
    assert (held.cas, held.crls) == ((ROOT.certificate,), ())


def test_a_charon_without_its_configuration_makes_nobody_forget(tmp_path: Path) -> None:
    held = trust(tmp_path)
    held.take([ROOT.der], [crl(ROOT, GM1)])
    before = held.cas, held.crls
    assert not held.take([], [])
    assert not held.take([ROOT.der], []), "the CRL that it had fetched has gone with it"
    assert (held.cas, held.crls) == before
    assert held.take([STRANGER.der], [])
    assert held.cas == (STRANGER.certificate,), "it is another CA that charon has now"


def test_the_newest_crl_of_the_ca_itself(tmp_path: Path) -> None:
    held = trust(tmp_path)
    old, new = crl(ROOT, age=5), crl(ROOT, GM1, age=1)
    forged = crl(ROOT, age=0, signer=STRANGER)
    assert held.take([ROOT.der], [old])
    assert held.take([ROOT.der], [new, forged])
    assert [one.public_bytes(Encoding.DER) for one in held.crls] == [new]
    assert not held.take([ROOT.der], [old, forged])
    assert [one.public_bytes(Encoding.DER) for one in held.crls] == [new]


# -- in a configuration --------------------------------------------------------------------------


def files(folder: Path, more: str) -> str:
    (folder / "own.pem").write_bytes(OWN.pem)
    (folder / "own.key").write_bytes(OWN.key_pem)
    (folder / "ca.pem").write_bytes(ROOT.pem)
    return f'certificate = "own.pem"\nprivate_key = "own.key"\ncharon = "{folder}/vici"\n{more}\n'


def configured(folder: Path, more: str) -> Path:
    text = GCKS.replace("[key_server]\n", f"[key_server]\n{files(folder, more)}")
    return write(folder, text)


def checks(config: KeyServerDaemonConfig, peer: Entity) -> str:
    """Nothing where its certificate is good, or why it is not."""
    assert config.credentials is not None
    store = config.credentials.towards(IdentityPattern.parse("%any"), None, "").trust()
    try:
        store.check(read_leaf(peer.der), [], 0.0)
    except BadCertificate as error:
        return str(error)
    return ""


def test_cas_and_crls_of_charon_count_when_they_are_there(tmp_path: Path) -> None:
    config = KeyServerDaemonConfig(configured(tmp_path, 'charon_trust = ["cacerts", "crls"]'))
    assert "gm1" in checks(config, GM1), "there is no CA yet"
    held = charon_trust(tmp_path / "vici")
    held.take([ROOT.der], [])
    assert checks(config, GM1) == ""
    again = KeyServerDaemonConfig(config.path)
    assert checks(again, GM1) == "", "a reload asks nobody anew"
    held.take([ROOT.der], [crl(ROOT, GM1)])
    assert "revoked" in checks(config, GM1)
    assert "revoked" in checks(again, GM1)


def test_crls_alone(tmp_path: Path) -> None:
    text = 'cacerts = ["ca.pem"]\ncharon_trust = ["crls"]'
    config = KeyServerDaemonConfig(configured(tmp_path, text))
    held = charon_trust(tmp_path / "vici")
    held.take([STRANGER.der], [])
    stranger = issue("gm2", STRANGER, number=205, begin=BEGIN, end=END)
    assert "gm2" in checks(config, stranger)
    assert checks(config, GM1) == ""
    held.take([ROOT.der], [crl(ROOT, GM1)])
    assert "revoked" in checks(config, GM1)


def test_at_a_member(tmp_path: Path) -> None:
    more = files(tmp_path, 'charon_trust = ["cacerts"]')
    text = GM.replace("[member]\n", f"[member]\n{more}")
    config = MemberDaemonConfig(write(tmp_path, text))
    assert config.credentials is not None
    assert config.credentials.charon is charon_trust(tmp_path / "vici")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('charon_trust = ["ocsp"]', "key_server.charon_trust.0: "),
        ("cacerts = []", "certificate, private_key and cacerts go together"),
        ('charon_trust = ["crls"]', "certificate, private_key and cacerts go together"),
    ],
)
def test_what_is_refused(tmp_path: Path, more: str, said: str) -> None:
    assert said in str(refused(KeyServerDaemonConfig, configured(tmp_path, more)))


def test_it_is_for_somebody_with_a_certificate(tmp_path: Path) -> None:
    text = GCKS.replace("[key_server]\n", '[key_server]\ncharon_trust = ["cacerts"]\n')
    assert "certificate, private_key and cacerts go together" in str(
        refused(KeyServerDaemonConfig, write(tmp_path, text))
    )
