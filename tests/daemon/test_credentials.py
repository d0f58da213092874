"""Certificates, keys and CRLs in configuration: what is refused, and what changes while running."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from gdoi_plugin.crypto.certificate import BadCertificate, Revocation, read_leaf
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.phase1 import Certificates, SendCertificate
from gdoi_plugin.wire.registry import AuthMethod
from tests.support.pki import DAY, MOMENT, ROOT, Entity, issue, revoke

from .configs import GCKS, GM, write

SERVER = issue("gcks", ROOT, number=2, names=["gcks.example.org", "127.0.0.1"])
FILES = 'certificate = "own.pem"\nprivate_key = "own.key"\ncacerts = ["ca.pem"]\n'
SECTION = '[key_server]\naddress = "127.0.0.1"\n'
PUBKEY = GCKS.replace('psk = "the-secret-of-the-tests-7f3a"', 'auth = "pubkey"')
GOOD = PUBKEY.replace(SECTION, SECTION + FILES)


def lay_out(folder: Path, own: Entity = SERVER, text: str = GOOD) -> Path:
    (folder / "own.pem").write_bytes(own.pem)
    (folder / "own.key").write_bytes(own.key_pem)
    (folder / "ca.pem").write_bytes(ROOT.pem)
    return write(folder, text)


def way_of(config: KeyServerDaemonConfig) -> Certificates:
    phase1 = config.phase1_for(Peer(Identity.parse("127.0.0.2").address or config.local.host, 848))
    assert phase1 is not None
    (way,) = phase1.auth
    assert isinstance(way, Certificates)
    return way


def test_defaults(tmp_path: Path) -> None:
    way = way_of(KeyServerDaemonConfig(lay_out(tmp_path)))
    assert str(way.local_identity) == "C=CH, O=Example, CN=gcks"
    assert way.methods == (AuthMethod.ECDSA_256,)
    assert way.remote.matches(Identity.parse("anybody.example.org"))
    assert (way.send_cert, way.send_certreq) == (SendCertificate.IFASKED, True)
    assert way.trust().revocation is Revocation.RELAXED
    assert way.credential.certificates == (SERVER.der,)


def test_everything(tmp_path: Path) -> None:
    (tmp_path / "root.crl").write_bytes(revoke(ROOT).public_bytes(Encoding.DER))
    more = (
        FILES + 'crls = ["root.crl"]\nrevocation = "strict"\nsend_cert = "always"\n'
        'send_certreq = false\nidentity = "GCKS.example.org"\n'
    )
    text = PUBKEY.replace(SECTION, SECTION + more).replace(
        'auth = "pubkey"', 'auth = "pubkey"\nidentity = "C=CH, O=Example, CN=*"'
    )
    way = way_of(KeyServerDaemonConfig(lay_out(tmp_path, text=text)))
    assert str(way.local_identity) == "GCKS.example.org"
    assert (way.send_cert, way.send_certreq) == (SendCertificate.ALWAYS, False)
    assert (way.trust().revocation, len(way.trust().crls)) == (Revocation.STRICT, 1)
    assert way.remote.matches(Identity.parse("C=CH, O=Example, CN=gm7"))
    assert not way.remote.matches(Identity.parse("C=CH, O=Other, CN=gm7"))


def test_member_expects_the_key_servers_address_or_the_name_given(tmp_path: Path) -> None:
    text = GM.replace('psk = "the-secret-of-the-tests-7f3a"', 'auth = "pubkey"')
    text = text.replace("[member]\n", "[member]\n" + FILES)
    (group,) = MemberDaemonConfig(lay_out(tmp_path, text=text)).groups
    (way,) = group.key_servers[0].phase1.auth
    assert isinstance(way, Certificates)
    assert way.remote.exact == Identity.parse("127.0.0.9")
    named = text.replace('auth = "pubkey"', 'auth = "pubkey"\nidentity = "*.example.org"')
    (group,) = MemberDaemonConfig(lay_out(tmp_path, text=named)).groups
    (way,) = group.key_servers[0].phase1.auth
    assert isinstance(way, Certificates)
    assert way.remote.matches(Identity.parse("gcks.example.org"))


# -- what is refused -----------------------------------------------------------------------------


def encrypted(entity: Entity) -> bytes:
    return entity.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )


Change = Callable[[Path], object]
BAD: dict[str, tuple[Change, str]] = {
    "no certificate": (
        lambda f: (f / "own.pem").unlink(),
        "key_server.certificate: {folder}/own.pem: No such file or directory",
    ),
    "no PEM": (
        lambda f: (f / "own.pem").write_bytes(b"-----BEGIN nonsense"),
        "key_server.certificate: {folder}/own.pem: no certificate in PEM",
    ),
    "no DER": (
        lambda f: (f / "own.pem").write_bytes(b"12345"),
        "key_server.certificate: {folder}/own.pem: 5 octets are no X.509 certificate",
    ),
    "empty": (
        lambda f: (f / "ca.pem").write_bytes(b""),
        "key_server.cacerts: {folder}/ca.pem: 0 octets are no X.509 certificate",
    ),
    "key is encrypted": (
        lambda f: (f / "own.key").write_bytes(encrypted(SERVER)),
        "key_server.private_key: {folder}/own.key: the private key is encrypted; there is nobody"
        " to ask for its password",
    ),
    "key is none": (
        lambda f: (f / "own.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAA==\n"),
        "key_server.private_key: {folder}/own.key: no private key in PEM or DER",
    ),
    "another key": (
        lambda f: (f / "own.key").write_bytes(issue("x", ROOT, number=3).key_pem),
        "key_server.private_key: {folder}/own.key is not the key of the certificate",
    ),
    "weak key": (
        lambda f: lay_out(f, issue("gcks", ROOT, kind="rsa1024")),
        "key_server.private_key: {folder}/own.key: RSA key of 1024 bits, must be 2048 to 8192",
    ),
    "expired": (
        lambda f: lay_out(f, issue("gcks", ROOT, number=2, end=MOMENT - 10 * DAY)),
        "key_server.certificate: {folder}/own.pem is valid from",
    ),
    "a CA's": (
        lambda f: lay_out(f, ROOT),
        "key_server.certificate: {folder}/own.pem: CN=root,O=Example,C=CH: a CA's certificate,"
        " not a host's",
    ),
    "only half": (
        lambda f: write(f, GOOD.replace('private_key = "own.key"\n', "")),
        "key_server: certificate, private_key and cacerts go together",
    ),
    "none of it": (
        lambda f: write(f, PUBKEY),
        "peer.0.auth: pubkey needs certificate, private_key and cacerts in [key_server]",
    ),
    "pubkey with a psk": (
        lambda f: write(f, GOOD.replace('auth = "pubkey"', 'auth = "pubkey"\npsk = "x"')),
        "peer.0: auth pubkey is by certificate: take psk and psk_file out",
    ),
    "psk with a pattern": (
        lambda f: write(f, GCKS.replace('psk = "', 'identity = "*.example.org"\npsk = "')),
        "peer.0: a pre-shared key is one peer's: identity must be without wildcards",
    ),
    "identity of somebody else": (
        lambda f: write(f, GOOD.replace(SECTION, SECTION + 'identity = "other.example.org"\n')),
        "key_server.identity: other.example.org is no name of the certificate of"
        " C=CH, O=Example, CN=gcks",
    ),
    "CRL is none": (
        lambda f: (
            (f / "x.crl").write_bytes(b"x"),
            write(f, GOOD.replace(FILES, FILES + 'crls = ["x.crl"]\n')),
        ),
        "key_server.crls: {folder}/x.crl: no certificate revocation list in PEM or DER",
    ),
    "no CRL": (
        lambda f: write(f, GOOD.replace(FILES, FILES + 'crls = ["x.crl"]\n')),
        "key_server.crls: {folder}/x.crl: No such file or directory",
    ),
    "revocation": (
        lambda f: write(f, GOOD.replace(FILES, FILES + 'revocation = "maybe"\n')),
        "key_server.revocation: must be 'strict', 'ifuri' or 'relaxed'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path: Path, case: str) -> None:
    change, words = BAD[case]
    path = lay_out(tmp_path)
    change(tmp_path)
    with pytest.raises(ConfigError) as caught:
        KeyServerDaemonConfig(path)
    assert str(caught.value).startswith(f"{path}: {words.replace('{folder}', str(tmp_path))}")


# -- CRLs that change ----------------------------------------------------------------------------


def test_crls_in_a_folder_are_read_as_they_come_and_go(tmp_path: Path) -> None:
    crls = tmp_path / "crls"
    crls.mkdir()
    text = GOOD.replace(FILES, FILES + 'crls = ["crls"]\n')
    config = KeyServerDaemonConfig(lay_out(tmp_path, text=text))
    assert config.credentials is not None
    trust, reported = config.credentials.trust, list[str]()
    trust.report = reported.append
    assert trust().crls == ()
    first = revoke(ROOT)
    (crls / "root.crl").write_bytes(first.public_bytes(Encoding.PEM))
    assert trust().crls == (first,)
    second = revoke(ROOT, SERVER)
    (crls / "root.crl").write_bytes(second.public_bytes(Encoding.PEM))
    os.utime(crls / "root.crl", (1, 1))
    assert trust().crls == (second,)
    assert trust() is trust()
    # A file that is broken now leaves what it said in force, and is told of once.
    (crls / "root.crl").write_bytes(b"half a f")
    assert trust().crls == trust().crls == (second,)
    assert reported == [f"{crls}/root.crl: no certificate revocation list in PEM or DER"]
    (crls / "root.crl").unlink()
    assert trust().crls == (second,)


def test_dates_go_by_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by an engine's time, which stays where the clock was when its daemon started."""
    trust = way_of(KeyServerDaemonConfig(lay_out(tmp_path))).trust()
    leaf = read_leaf(SERVER.der)
    end = SERVER.certificate.not_valid_after_utc.timestamp()
    trust.check(leaf, (), end + 1)
    monkeypatch.setattr(time, "time", lambda: end + 1)
    with pytest.raises(BadCertificate):
        trust.check(leaf, (), end - 1)
