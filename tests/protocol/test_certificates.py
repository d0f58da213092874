"""Main mode with signatures, RFC 2409 section 5.1 and RFC 4754, and whom it lets in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID

from gdoi_plugin.crypto.certificate import Revocation, TrustStore
from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.errors import AuthError, ProtocolError
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityList
from gdoi_plugin.protocol.isakmp import SUITES, IsakmpSa
from gdoi_plugin.protocol.main_mode import Initiator, Responder, answer_offer
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.phase1 import Certificates, Phase1Config, SendCertificate
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.certificate import Certificate, CertificateRequest
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.message import pull_clear
from gdoi_plugin.wire.opaque import Signature
from gdoi_plugin.wire.payload import Body, encode_body
from gdoi_plugin.wire.registry import AuthMethod, CertEncoding, Hash, PayloadType
from tests.support.pki import (
    DAY,
    KINDS,
    MOMENT,
    NOW,
    OTHER_ROOT,
    ROOT,
    Entity,
    certificates,
    issue,
    revoke,
    strictly,
    subject,
    trust,
    usage,
)
from tests.support.worlds import (
    SERVER,
    SUITE,
    group_config,
    member_peer,
    registered,
    server_phase1,
    wired,
)

GM = member_peer(0)
MEMBER = issue("gm1", ROOT, number=1, names=["gm1.example.org", "gm1@example.org", "10.0.0.2"])
GCKS = issue("gcks", ROOT, number=2, names=["gcks.example.org", "10.0.0.1"])


class Pair:
    """One main mode, message by message; each side's policy its own."""

    def __init__(self, member: Certificates, server: Certificates, suite: str = "") -> None:
        suites = (SUITES[suite] if suite else SUITE,)
        self.config = Phase1Config((member,), suites)
        self.server_config = Phase1Config((server,), suites)
        self.initiator = Initiator(self.config, Path(GM, SERVER), b"initiate", bytes(range(32)))
        first = self.initiator.start()
        answer = answer_offer(pull_clear(pull_header(first), first), self.server_config)
        cookies = b"initiate" + b"responds"
        self.responder = Responder(self.server_config, Path(SERVER, GM), cookies, answer, bytes(32))
        second = cookies + answer.octets
        self.third = self._ask(second)
        self.fourth = self._answer(self.third)

    def _ask(self, datagram: bytes) -> bytes:
        said = self.initiator.receive(pull_header(datagram), datagram, NOW)
        assert said is not None
        return said

    def _answer(self, datagram: bytes) -> bytes:
        return self.responder.receive(pull_header(datagram), datagram, Path(SERVER, GM), NOW)

    def fifth(self) -> bytes:
        return self._ask(self.fourth)

    def sixth(self, fifth: bytes) -> bytes:
        return self._answer(fifth)

    def end(self, sixth: bytes) -> None:
        assert self.initiator.receive(pull_header(sixth), sixth, NOW) is None

    def run(self) -> tuple[IsakmpSa, IsakmpSa]:
        self.end(self.sixth(self.fifth()))
        assert self.initiator.sa is not None
        assert self.responder.sa is not None
        return self.initiator.sa, self.responder.sa


def pair(member: Entity = MEMBER, server: Entity = GCKS, **options: Any) -> Pair:
    return Pair(certificates(member, **options), certificates(server, **options))


def refusal_of(member: Certificates) -> str:
    """What the key server says to message 5 of such a member; it has changed nothing."""
    exchange = Pair(member, certificates(GCKS))
    with pytest.raises(AuthError) as caught:
        exchange.sixth(exchange.fifth())
    assert exchange.responder.sa is None
    return str(caught.value)


def as_member(entity: Entity, **options: Any) -> Certificates:
    return certificates(entity, **options)


# -- it works ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_with_every_hash(kind: str, hashed: str) -> None:
    member, server = issue("gm1", ROOT, kind=kind, number=1), issue("gcks", ROOT, kind=kind)
    exchange = Pair(certificates(member), certificates(server), f"aes128-{hashed}-ecp256")
    mine, its = exchange.run()
    assert mine.keys == its.keys
    assert str(mine.remote_identity) == "C=CH, O=Example, CN=gcks"
    assert str(its.remote_identity) == "C=CH, O=Example, CN=gm1"


@pytest.mark.parametrize(
    "name", ["gm1.example.org", "gm1@example.org", "10.0.0.2", "C=CH, O=Example, CN=gm1"]
)
def test_subject_and_alternative_names(name: str) -> None:
    exchange = Pair(certificates(MEMBER, identity=name), certificates(GCKS, remote=name))
    _, its = exchange.run()
    assert its.remote_identity == Identity.parse(name)


def test_a_domain_name_in_capitals_is_the_same() -> None:
    exchange = Pair(certificates(MEMBER, identity="GM1.Example.ORG"), certificates(GCKS))
    _, its = exchange.run()
    assert str(its.remote_identity) == "gm1.example.org"


def test_a_name_in_another_string_type_is_the_same() -> None:
    written = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"),
            x509.NameAttribute(
                NameOID.ORGANIZATION_NAME, "Example", _type=x509.name._ASN1Type.PrintableString
            ),
            x509.NameAttribute(
                NameOID.COMMON_NAME, "gm1", _type=x509.name._ASN1Type.PrintableString
            ),
        ]
    )
    assert written.public_bytes() != subject("gm1").public_bytes()
    member = issue("gm1", ROOT, number=1, named=written)
    _, its = Pair(certificates(member), certificates(GCKS, "C=CH, O=Example, CN=gm1")).run()
    assert its.remote_identity == Identity.parse("C=CH, O=Example, CN=gm1")


def test_certificates_between_come_along() -> None:
    middle = issue("middle", ROOT, ca=True, number=50)
    low = issue("low", middle, ca=True, number=51, path_length=0)
    member = issue("gm1", low, number=1)
    assert len(member.between) == 2
    _, its = pair(member).run()
    assert str(its.remote_identity) == "C=CH, O=Example, CN=gm1"


def test_certificates_between_may_be_configured() -> None:
    middle = issue("middle", ROOT, ca=True, number=50)
    member = replace(issue("gm1", middle, number=1), between=())
    assert "candidates exhausted" in refusal_of(as_member(member))
    store = trust(intermediates=(middle.certificate,))
    Pair(certificates(member), certificates(GCKS, store=store)).run()


# -- who is asked for a certificate, and sends one -----------------------------------------------


def payloads_of(message: bytes, kind: PayloadType) -> list[bytes]:
    return [p.body for p in pull_clear(pull_header(message), message).all(kind)]


def test_both_ask_by_the_name_of_their_ca() -> None:
    exchange = pair()
    wanted = bytes((CertEncoding.X509_SIGNATURE,)) + ROOT.certificate.subject.public_bytes()
    assert payloads_of(exchange.third, PayloadType.CERTREQ) == [wanted]
    assert payloads_of(exchange.fourth, PayloadType.CERTREQ) == [wanted]


def test_nobody_asks_where_that_is_switched_off() -> None:
    exchange = pair(send_certreq=False)
    assert payloads_of(exchange.third, PayloadType.CERTREQ) == []
    with pytest.raises(AuthError, match="sent no certificate"):
        exchange.sixth(exchange.fifth())


def test_always_sends_without_being_asked() -> None:
    pair(send_certreq=False, send_cert=SendCertificate.ALWAYS).run()


def test_never_sends_though_asked() -> None:
    assert "sent no certificate" in refusal_of(as_member(MEMBER, send_cert=SendCertificate.NEVER))


# -- who is not let in ---------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[], Entity], str]] = {
    "expired": (lambda: issue("gm1", ROOT, number=1, end=MOMENT - DAY), "not valid at"),
    "not yet valid": (lambda: issue("gm1", ROOT, number=1, begin=MOMENT + DAY), "not valid at"),
    "another CA of the same name": (
        lambda: issue("gm1", OTHER_ROOT, number=1),
        "signature does not match",
    ),
    "signed by itself": (lambda: issue("gm1", number=1), "candidates exhausted"),
    "a CA's certificate": (lambda: issue("gm1", ROOT, number=1, ca=True), "a CA's certificate"),
    "key usage": (
        lambda: issue("gm1", ROOT, number=1, key_usage=usage(key_encipherment=True)),
        "no digitalSignature",
    ),
    "issued by an end entity": (
        lambda: issue("gm1", issue("host", ROOT, number=50), number=1),
        "basicConstraints",
    ),
    "CA that may not sign certificates": (
        lambda: issue(
            "gm1",
            issue("middle", ROOT, number=50, ca=True, key_usage=usage(crl_sign=True)),
            number=1,
        ),
        "may not sign certificates",
    ),
    "path length": (
        lambda: issue(
            "gm1",
            issue(
                "low",
                issue("middle", ROOT, number=50, ca=True, path_length=0),
                number=51,
                ca=True,
            ),
            number=1,
        ),
        "path length",
    ),
    "weak CA key": (
        lambda: issue("gm1", issue("middle", ROOT, kind="rsa1024", ca=True), number=1),
        "RSA key is too weak",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_certificate(case: str) -> None:
    make, words = BAD[case]
    assert words in refusal_of(as_member(make()))


def test_chain_that_is_too_long() -> None:
    issuer = ROOT
    for depth in range(5):
        issuer = issue(f"ca{depth}", issuer, ca=True, number=60 + depth)
    refused = refusal_of(as_member(issue("gm1", issuer, number=1)))
    assert "max chain depth" in refused or "candidates exhausted" in refused


@pytest.mark.parametrize(("kind", "number"), [("rsa1024", 0), ("p224", 0)])
def test_weak_key_is_not_even_offered(kind: str, number: int) -> None:
    with pytest.raises(ValueError, match=r"RSA key of 1024 bits|key on curve secp224r1"):
        issue("gm1", ROOT, kind=kind, number=number).credential  # noqa: B018


def test_key_of_another_curve_than_the_method() -> None:
    """A P-384 certificate where ECDSA-256 was negotiated: no signature of it can fit."""
    other = issue("gm1", ROOT, kind="p384", number=1)
    mixed = replace(MEMBER.credential, certificates=(other.der,))
    member = replace(certificates(MEMBER), credential=mixed)
    assert refusal_of(member) == "phase 1 SIG does not verify"


def test_somebody_elses_certificate() -> None:
    """The certificate is good, the signature is by another key."""
    stolen = replace(
        certificates(MEMBER),
        credential=replace(issue("thief", ROOT, number=9).credential, certificates=(MEMBER.der,)),
    )
    assert refusal_of(stolen) == "phase 1 SIG does not verify"


@pytest.mark.parametrize("name", ["gm2.example.org", "10.0.0.9", "C=CH, O=Example, CN=gm2"])
def test_a_name_the_certificate_does_not_have(name: str) -> None:
    assert refusal_of(as_member(MEMBER, identity=name)) == (
        f"{name} is no name of the certificate that came with it"
    )


def test_a_key_id_is_no_name_of_a_certificate() -> None:
    assert "is no name of the certificate" in refusal_of(as_member(MEMBER, identity="keyid:0a0b"))


def test_a_name_that_is_not_expected() -> None:
    exchange = Pair(certificates(MEMBER), certificates(GCKS, "C=CH, O=Example, CN=gm2"))
    with pytest.raises(AuthError, match="expected C=CH, O=Example, CN=gm2"):
        exchange.sixth(exchange.fifth())


def test_the_member_refuses_a_key_server_by_the_same_rules() -> None:
    exchange = Pair(certificates(MEMBER, "C=CH, O=Example, CN=other"), certificates(GCKS))
    sixth = exchange.sixth(exchange.fifth())
    with pytest.raises(AuthError, match="expected C=CH, O=Example, CN=other"):
        exchange.end(sixth)
    assert exchange.initiator.sa is None


def test_methods_must_agree() -> None:
    with pytest.raises(ProtocolError, match="auth=3"):
        Pair(certificates(issue("gm1", ROOT, kind="rsa2048")), certificates(GCKS))


# -- revocation ----------------------------------------------------------------------------------


def verdict(store: TrustStore, member: Entity = MEMBER) -> str:
    exchange = Pair(certificates(member), certificates(GCKS, store=store))
    try:
        exchange.sixth(exchange.fifth())
    except AuthError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("policy", Revocation)
def test_revoked_is_refused_by_every_policy(policy: Revocation) -> None:
    store = trust(crls=(revoke(ROOT, MEMBER),), revocation=policy)
    assert verdict(store).endswith("CN=gm1,O=Example,C=CH: revoked")
    assert verdict(store, issue("gm2", ROOT, number=3)) == ""


def test_without_a_list() -> None:
    pointed = issue("gm1", ROOT, number=1, crl_url="http://crl.example.org/root.crl")
    assert verdict(trust()) == ""
    assert verdict(trust(revocation=Revocation.IFURI)) == ""
    assert "no usable CRL of CN=root,O=Example,C=CH (none there)" in verdict(
        trust(revocation=Revocation.IFURI), pointed
    )
    assert "(none there)" in verdict(strictly())
    assert verdict(strictly(crls=(revoke(ROOT),))) == ""


def test_a_list_that_is_out_of_date() -> None:
    old = revoke(ROOT, begin=MOMENT - 9 * DAY, end=MOMENT - DAY)
    assert "(out of date)" in verdict(strictly(crls=(old,)))
    assert verdict(trust(crls=(old,))) == ""
    # What it revoked stays revoked.
    known = revoke(ROOT, MEMBER, begin=MOMENT - 9 * DAY, end=MOMENT - DAY)
    assert "revoked" in verdict(trust(crls=(known,)))
    assert verdict(strictly(crls=(old, revoke(ROOT)))) == ""


def test_lists_that_are_not_to_be_believed() -> None:
    forged = revoke(ROOT, MEMBER, signer=OTHER_ROOT)
    assert verdict(trust(crls=(forged,))) == ""
    assert "(not signed by its CA)" in verdict(strictly(crls=(forged,)))
    tomorrow = revoke(ROOT, MEMBER, begin=MOMENT + DAY)
    assert verdict(trust(crls=(tomorrow,))) == ""
    assert "(from the future)" in verdict(strictly(crls=(tomorrow,)))


def test_a_revoked_ca_takes_everybody_below_along() -> None:
    middle = issue("middle", ROOT, ca=True, number=50)
    member = issue("gm1", middle, number=1)
    crls = (revoke(ROOT, middle), revoke(middle))
    assert "CN=middle,O=Example,C=CH: revoked" in verdict(trust(crls=crls), member)
    assert verdict(strictly(crls=(revoke(ROOT), revoke(middle))), member) == ""
    assert "no usable CRL of CN=middle" in verdict(strictly(crls=(revoke(ROOT),)), member)


def test_lists_are_asked_anew_for_every_peer() -> None:
    stores = [trust(), trust(crls=(revoke(ROOT, MEMBER),))]
    server = replace(certificates(GCKS), trust=lambda: stores[0])
    Pair(certificates(MEMBER), server).run()
    del stores[0]
    exchange = Pair(certificates(MEMBER), server)
    with pytest.raises(AuthError, match="revoked"):
        exchange.sixth(exchange.fifth())


# -- octets on the way ---------------------------------------------------------------------------


def test_every_flipped_bit_of_messages_5_and_6_is_refused() -> None:
    exchange = pair()
    fifth = exchange.fifth()
    for at in range(HEADER_LENGTH, len(fifth)):
        bad = fifth[:at] + bytes((fifth[at] ^ 1,)) + fifth[at + 1 :]
        with pytest.raises((AuthError, DecodeError)):
            exchange.sixth(bad)
        assert exchange.responder.sa is None
    sixth = exchange.sixth(fifth)
    for at in range(HEADER_LENGTH, len(sixth), 3):
        bad = sixth[:at] + bytes((sixth[at] ^ 1,)) + sixth[at + 1 :]
        with pytest.raises((AuthError, DecodeError)):
            exchange.end(bad)
        assert exchange.initiator.sa is None
    exchange.end(sixth)


class Saying(Certificates):
    """Says in message 5 what ``change`` makes of it."""

    change: Callable[[list[Body]], list[Body]] = staticmethod(lambda payloads: payloads)

    def prove(self, method: AuthMethod, digest: Any, *, asked: bool) -> list[Body]:
        return self.change(Certificates.prove(self, method, digest, asked=asked))


def saying(change: Callable[[list[Body]], list[Body]]) -> Certificates:
    good = certificates(MEMBER)
    said = Saying(good.local_identity, good.remote, good.credential, good.trust)
    object.__setattr__(said, "change", change)
    return said


def test_certificates_of_other_kinds_are_passed_over() -> None:
    other = [Certificate(CertEncoding.PKCS7, b"\x30\x00"), Certificate(CertEncoding.CRL, b"x")]
    change = lambda payloads: [payloads[0], *other, *payloads[1:]]  # noqa: E731
    Pair(saying(change), certificates(GCKS)).run()


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("SIG payloads", lambda said: said[:-1]),
        ("SIG payloads", lambda said: [*said, said[-1]]),
        ("ID payloads", lambda said: said[1:]),
        ("CERT payloads", lambda said: [said[0], *[said[1]] * 9, said[-1]]),
        ("certificate of", lambda said: [said[0], Certificate(4, b"\x30\x01\x00"), said[-1]]),
        ("SIG does not verify", lambda said: [*said[:-1], Signature(b"\x00" * 64)]),
        ("SIG does not verify", lambda said: [*said[:-1], Signature(b"\x01" * 63)]),
        ("SIG does not verify", lambda said: [*said[:-1], Signature(b"\xff" * 64)]),
    ],
)
def test_message_5_that_does_not_prove_it(
    words: str, change: Callable[[list[Body]], list[Body]]
) -> None:
    exchange = Pair(saying(change), certificates(GCKS))
    with pytest.raises((AuthError, DecodeError), match=words):
        exchange.sixth(exchange.fifth())
    assert exchange.responder.sa is None


@pytest.mark.parametrize("wrapped", ["own prf", "negotiated prf, hashed", "own prf, hashed"])
def test_other_readings_of_rfc_4754_are_accepted(wrapped: str) -> None:
    """It leaves open which prf makes HASH_I, and whether it is hashed before it is signed."""
    member = issue("gm1", ROOT, kind="p384", number=1)
    server = issue("gcks", ROOT, kind="p384", number=2)

    class Other(Certificates):
        def prove(self, method: AuthMethod, digest: Any, *, asked: bool) -> list[Body]:
            *rest, _ = Certificates.prove(self, method, digest, asked=asked)
            identity = rest[0]
            own = Hash.SHA2_384
            data = digest(encode_body(identity), None if "negotiated" in wrapped else own)
            return [*rest, Signature(raw_ecdsa(member, data, hashed="hashed" in wrapped))]

    good = certificates(member)
    other = Other(good.local_identity, good.remote, good.credential, good.trust)
    Pair(other, certificates(server), "aes128-sha256-ecp256").run()


def raw_ecdsa(entity: Entity, data: bytes, *, hashed: bool) -> bytes:
    assert isinstance(entity.key, ec.EllipticCurvePrivateKey)
    algorithm = hashes.SHA384() if hashed else utils.Prehashed(hashes.SHA384())
    r, s = utils.decode_dss_signature(entity.key.sign(data, ec.ECDSA(algorithm)))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def test_rsa_signs_the_bare_hash() -> None:
    """RFC 2409 section 5.1: no DigestInfo with the OID of the hash around it."""
    key = issue("gm1", ROOT, kind="rsa2048", number=1)
    digest = bytes(range(32))
    signature = key.credential.key.sign(lambda algorithm: digest if algorithm is None else b"")
    assert isinstance(key.key, rsa.RSAPrivateKey)
    n, e = key.key.public_key().public_numbers().n, 65537
    block = pow(int.from_bytes(signature, "big"), e, n).to_bytes(256, "big")
    assert block == b"\x00\x01" + b"\xff" * (256 - 35) + b"\x00" + digest
    wrapped = key.key.sign(digest, padding.PKCS1v15(), hashes.SHA256())
    assert wrapped != signature


def test_certreq_of_impossible_length_changes_nothing() -> None:
    with pytest.raises(DecodeError, match="certificate authority of 1025 octets"):
        CertificateRequest.pull(Buffer(b"\x04" + bytes(1025)))


# -- in a group ----------------------------------------------------------------------------------


def with_certificates(**options: Any) -> dict[str, Any]:
    server = certificates(GCKS, **options)
    member = certificates(MEMBER, "C=CH, O=Example, CN=gcks")
    return {
        "phase1": Phase1Config((member,), (SUITE,)),
        "phase1_for": lambda peer: replace(server_phase1(peer), auth=(server,)),
    }


@pytest.mark.parametrize(
    "members",
    ["C=CH, O=Example, CN=gm1", "C=CH, O=Example, CN=*", "%any", "c=ch, o=EXAMPLE, cn=GM1"],
)
def test_registration_and_rekey(members: str) -> None:
    group = replace(group_config(), members=IdentityList.parse([members]))
    wire, world = registered(group=group, **with_certificates())
    world.rekey(kek=True)
    wire.settle()
    wire.run(6)
    wire.settle()
    assert world.converged()
    (rekey,) = world.group.ledger.values()
    assert [str(i) for i in rekey.acknowledged] == ["C=CH, O=Example, CN=gm1"]


def test_a_certificate_alone_is_no_membership() -> None:
    group = replace(group_config(), members=IdentityList.parse(["C=CH, O=Example, CN=gm2"]))
    wire, world = wired(group=group, **with_certificates())
    world.start()
    wire.settle()
    assert Drop.NOT_AUTHORISED in world.server.dropped()
    assert world.group.members == {}


def test_a_revoked_member_is_told_nothing_and_keeps_no_state() -> None:
    wire, world = wired(**with_certificates(store=trust(crls=(revoke(ROOT, MEMBER),))))
    world.start()
    wire.settle()
    assert Drop.AUTHENTICATION in world.server.dropped()
    assert world.server.engine.isakmp.sessions == {}
