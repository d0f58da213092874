"""CRLs as charon lists them: what is believed of that, and what is kept."""

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
STRANGER = authority("root", 202)
OWN, GM1 = (issue(n, ROOT, number=k, begin=BEGIN, end=END) for n, k in (("ks", 203), ("gm1", 204)))


def der(of: x509.CertificateRevocationList) -> bytes:
    return of.public_bytes(Encoding.DER)


def crl(issuer: Entity, *revoked: Entity, age: int = 3, **more: Entity) -> bytes:
    begin = NOW - datetime.timedelta(hours=age)
    return der(revoke(issuer, *revoked, begin=begin, end=END, **more))


def trust(folder: Path) -> CharonTrust:
    return CharonTrust(folder / "vici")


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    held, good = trust(tmp_path), crl(ROOT)
    assert held.take(
        [ROOT.der, b"", b"\x30\x03\x02\x01", ROOT.der[:-7]], [b"rubbish", good, ROOT.der]
    )
    assert [one.public_bytes(Encoding.DER) for one in held.crls] == [good]


def test_a_charon_that_has_lost_a_crl_makes_nobody_forget_it(tmp_path: Path) -> None:
    held = trust(tmp_path)
    held.take([ROOT.der], [crl(ROOT, GM1)])
    before = held.crls
    assert not held.take([], [])
    assert not held.take([ROOT.der], []), "the CRL that it had fetched has gone with it"
    assert held.crls == before != ()
    assert held.revision == 1


def test_the_newest_crl_of_the_ca_itself(tmp_path: Path) -> None:
    held = trust(tmp_path)
    old, new = crl(ROOT, age=5), crl(ROOT, GM1, age=1)
    forged = crl(ROOT, age=0, signer=STRANGER)
    assert held.take([ROOT.der], [old])
    assert held.take([ROOT.der], [new, forged])
    assert [one.public_bytes(Encoding.DER) for one in held.crls] == [new]
    assert not held.take([ROOT.der], [old, forged])
    assert [one.public_bytes(Encoding.DER) for one in held.crls] == [new]


def test_a_namesake_of_the_ca_takes_no_crl_out(tmp_path: Path) -> None:
    """charon lists the certificate of whoever has spoken to it, signed by itself or not."""
    held, new = trust(tmp_path), crl(ROOT, GM1, age=1)
    held.take([ROOT.der], [new])
    held.take([ROOT.der, STRANGER.der], [new, crl(STRANGER, age=0)])
    assert new in [one.public_bytes(Encoding.DER) for one in held.crls]


def test_nothing_is_verified_anew_that_has_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the daemon's loop, every few seconds."""
    held, lists = trust(tmp_path), [crl(ROOT, GM1)]
    assert held.take([ROOT.der], lists)

    def verified(_: bytes) -> None:
        raise AssertionError

    monkeypatch.setattr("gdoi_plugin.daemon.charon.trust.load_crl", verified)
    assert not held.take([ROOT.der], lists)
    with pytest.raises(AssertionError):
        held.take([ROOT.der], [*lists, crl(ROOT)])


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


def test_crls_of_charon_count_when_they_are_there(tmp_path: Path) -> None:
    text = 'cacerts = ["ca.pem"]\ncharon_trust = ["crls"]'
    config = KeyServerDaemonConfig(configured(tmp_path, text))
    held = charon_trust(tmp_path / "vici")
    held.take([ROOT.der, STRANGER.der], [crl(STRANGER, GM1)])
    stranger = issue("gm2", STRANGER, number=205, begin=BEGIN, end=END)
    assert "gm2" in checks(config, stranger), "what charon lists is no CA"
    assert checks(config, GM1) == "", "and not the CA that has signed this one"
    held.take([ROOT.der], [crl(ROOT, GM1)])
    again = KeyServerDaemonConfig(config.path)
    assert "revoked" in checks(config, GM1)
    assert "revoked" in checks(again, GM1), "a reload asks nobody anew"


def test_a_folder_of_cas(tmp_path: Path) -> None:
    """As swanctl's."""
    folder = tmp_path / "x509ca"
    folder.mkdir()
    path = configured(tmp_path, 'cacerts = ["x509ca"]')
    assert "key_server.cacerts: no CA in these folders" in str(refused(KeyServerDaemonConfig, path))
    (folder / "one.pem").write_bytes(ROOT.pem)
    (folder / "two.der").write_bytes(STRANGER.der)
    config = KeyServerDaemonConfig(path)
    assert checks(config, GM1) == ""
    assert checks(config, issue("gm2", STRANGER, number=205, begin=BEGIN, end=END)) == ""
    (folder / "README").write_text("no certificate")
    assert "x509ca/README" in str(refused(KeyServerDaemonConfig, path))


def test_at_a_member(tmp_path: Path) -> None:
    more = files(tmp_path, 'cacerts = ["ca.pem"]\ncharon_trust = ["crls"]')
    text = GM.replace("[member]\n", f"[member]\n{more}")
    config = MemberDaemonConfig(write(tmp_path, text))
    assert config.credentials is not None
    assert config.credentials.charon is charon_trust(tmp_path / "vici")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('charon_trust = ["ocsp"]', "key_server.charon_trust.0: "),
        ('cacerts = ["ca.pem"]\ncharon_trust = ["cacerts"]', "key_server.charon_trust.0: "),
        ("cacerts = []", "certificate, private_key and cacerts go together"),
        ('charon_trust = ["crls"]', "certificate, private_key and cacerts go together"),
    ],
)
def test_what_is_refused(tmp_path: Path, more: str, said: str) -> None:
    assert said in str(refused(KeyServerDaemonConfig, configured(tmp_path, more)))


def test_it_is_for_somebody_with_a_certificate(tmp_path: Path) -> None:
    text = GCKS.replace("[key_server]\n", '[key_server]\ncharon_trust = ["crls"]\n')
    assert "charon_trust is for a certificate" in str(
        refused(KeyServerDaemonConfig, write(tmp_path, text))
    )
