"""A GDOI key server of its own, written from the RFC texts alone; rfc_peer.py is its other half.

It turns one datagram into one answer and leaves sockets to the test. Its quirks make it do what
others are known to do.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .rfc_crypto import (
    ACK_HASHES,
    DiffieHellman,
    Isakmp,
    Kek,
    SigningKey,
    ack_hash,
    informed,
    pad,
    public_der,
    sig_algorithm,
    sign,
    signature_size,
)
from .rfc_lkh import Tree
from .rfc_octets import (
    DELETE,
    ENCRYPTED,
    GAP,
    HASH,
    ID,
    ID_IPV4,
    ID_KEY_ID,
    IEC_AUTH,
    IEC_ENC,
    INFORMATIONAL,
    KD,
    KD_KEK,
    KD_LKH,
    KD_TEK,
    KE,
    KEK_ACK_REQUESTED,
    MAIN,
    NONCE,
    NOTIFY,
    PULL,
    PUSH,
    PUSH_ACK,
    SA,
    SAK,
    SAT,
    SEQ,
    SIG,
    VENDOR,
    Attribute,
    Deletion,
    Header,
    KeyPacket,
    Notification,
    Payload,
    Selector,
    Suite,
    address,
    chain,
    kinds,
    must,
    pack_group_sa,
    pack_id,
    pack_iec_sat,
    pack_kd,
    pack_oid,
    pack_phase1_sa,
    pack_sak,
    pack_sat,
    pack_seq,
    read_attributes,
    read_delete,
    read_header,
    read_id,
    read_notify,
    read_phase1_sa,
    read_seq,
    read_suite,
    tlv,
    tv,
    unchain,
)

BLANK = Selector(0, 0, b"")  # "0 octets ... for multiple-source groups"


@dataclass(frozen=True)
class Ack:
    seq: int
    address: bytes
    source: tuple[str, int]


@dataclass
class Tek:
    """One SAT of AES-CBC with HMAC-SHA2-256-128 to a multicast address."""

    destination: str
    spi: bytes = field(default_factory=lambda: secrets.token_bytes(4))
    bits: int = 128
    source: Selector = BLANK
    lifetime: bytes = tv(1, 1) + tlv(2, (3600).to_bytes(4, "big"))
    key: bytes = b""
    auth: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __post_init__(self) -> None:
        self.key = self.key or secrets.token_bytes(self.bits // 8)

    def sat(self) -> Payload:
        attributes = self.lifetime + tv(4, 2) + tv(5, 5) + tv(6, self.bits)
        destination = Selector(ID_IPV4, 0, address(self.destination))
        return SAT, pack_sat(self.source, destination, 12, self.spi, attributes)

    def packet(self) -> KeyPacket:
        return KeyPacket(KD_TEK, self.spi, {1: self.key, 2: self.auth})


class AhTek(Tek):
    """One SAT of AH with HMAC-SHA2-256-128: AH_SHA2-256 is 5, and so is the algorithm."""

    def sat(self) -> Payload:
        destination = Selector(ID_IPV4, 0, address(self.destination))
        body = pack_sat(self.source, destination, 5, self.spi, self.lifetime + tv(4, 2) + tv(5, 5))
        return SAT, bytes([2]) + body[1:]

    def packet(self) -> KeyPacket:
        return KeyPacket(KD_TEK, self.spi, {2: self.auth})


class GmacTek(Tek):
    """One SAT of ESP_NULL_AUTH_AES-GMAC, for receiving only. RFC 6407 5.6.1.2: an integrity key,
    RFC 4543 5.1: with four octets of salt."""

    def sat(self) -> Payload:
        attributes = self.lifetime + tv(4, 2) + tv(6, self.bits) + tv(15, 2)
        destination = Selector(ID_IPV4, 0, address(self.destination))
        return SAT, pack_sat(self.source, destination, 23, self.spi, attributes)

    def packet(self) -> KeyPacket:
        return KeyPacket(KD_TEK, self.spi, {2: self.key + self.auth[:4]})


class GcmTek(Tek):
    """One SAT of AES-GCM with an ICV of 16 octets, ESP_AES-GCM_16 is 20 (RFC 4106)."""

    def sat(self) -> Payload:
        attributes = self.lifetime + tv(4, 2) + tv(6, self.bits)
        destination = Selector(ID_IPV4, 0, address(self.destination))
        return SAT, pack_sat(self.source, destination, 20, self.spi, attributes)

    def packet(self) -> KeyPacket:
        return KeyPacket(KD_TEK, self.spi, {1: self.key + b"salt"})


@dataclass
class IecTek(Tek):
    """One SAT of GDOI_PROTO_IEC_61850, RFC 8052 2.2; `destination` is the OID, and `kinds` are Auth
    Alg and Enc Alg, AES-CBC-128 with HMAC-SHA256-128 unless told otherwise."""

    kinds: tuple[int, int] = (2, 2)
    seconds: int = 3600
    more: bytes = b""

    def __post_init__(self) -> None:
        auth, enc = self.kinds
        self.auth = secrets.token_bytes(IEC_AUTH.get(auth, 0))
        self.key = secrets.token_bytes(IEC_ENC.get(enc, 0))

    def sat(self) -> Payload:
        oid = pack_oid(self.destination)
        return SAT, pack_iec_sat(oid, b"", self.spi, self.kinds, self.seconds, self.more)

    def packet(self) -> KeyPacket:
        keys = {2: self.auth, 1: self.key}
        return KeyPacket(KD_TEK, self.spi, {kind: key for kind, key in keys.items() if key})


@dataclass
class Quirks:
    """What other key servers do."""

    lifetime: bytes = tlv(4, (86400).to_bytes(4, "big"))
    ack_in_pull: int | None = None  # a type other than the one in PUSHes; 0 leaves it out
    gap: bytes | None = tv(1, 0) + tv(2, 1)
    vendor_ids: bool = False
    rekeys: bool = True  # RFC 6407 5.2.1: policy may do without a Rekey SA
    nonce: int = 16
    more_sak: bytes = b""
    choose: Callable[[list[tuple[int, bytes]]], int] = lambda _transforms: 0


@dataclass
class _Phase1:
    sa_i: bytes
    suite: Suite
    cky_r: bytes
    sa: Isakmp | None = None
    publics: tuple[bytes, bytes] = (b"", b"")
    complete: bool = False
    pulls: dict[int, list[bytes]] = field(default_factory=dict)  # M-ID: Ni_b, Nr_b


class KeyServer:
    """Main mode responder, GROUPKEY-PULL responder, sender of PUSHes, reader of ACKs."""

    def __init__(
        self,
        local: tuple[str, int],
        psk: bytes,
        signer: SigningKey,
        *,
        group: int = 1234,
        bits: int = 256,
        ack: int = 1,
        sig_hash: int = 3,
        quirks: Quirks | None = None,
    ) -> None:
        self.local, self.psk, self.signer, self.group, self.ack = local, psk, signer, group, ack
        self.sig_hash = sig_hash
        self.quirks = quirks or Quirks()
        self.rekey_to = Selector(ID_IPV4, local[1], bytes(4))  # the test says where
        self.kek = self.new_kek(bits)
        self.old_keks: list[Kek] = []
        self.lkh: Tree | None = None  # with `use_lkh`
        self.leaf = 0  # where whoever registers next sits
        self.teks: list[Tek] = []
        self.sid_packets: list[KeyPacket] = []
        self.requests: list[list[Attribute]] = []  # GAPs of messages 3
        self.members: list[tuple[str, int]] = []
        self.deleted: list[Deletion] = []
        self.notified: list[Notification] = []
        self.acks: list[Ack] = []
        self.ack_spis: list[bytes] = []
        self.pushed: dict[bytes, int] = {}  # datagram: its SEQ
        self._phase1: dict[bytes, _Phase1] = {}
        self._answers: dict[bytes, bytes] = {}

    def new_kek(self, bits: int = 256) -> Kek:
        return Kek(
            secrets.token_bytes(16),
            secrets.token_bytes(16),
            secrets.token_bytes(bits // 8),
            sig_algorithm(self.signer),
            public_der(self.signer),
            self.ack,
            sig_hash=self.sig_hash,
        )

    def use_lkh(self, leaf: int) -> None:
        """From now on the KEK is the root of a tree, and the member sits at this leaf of it."""
        self.lkh, self.leaf = Tree(len(self.kek.key) * 8), leaf
        root = self.lkh.nodes["root"]
        self.kek = replace(self.kek, iv=root.iv, key=root.key)

    def evict(self, leaf: int) -> tuple[Kek, KeyPacket]:
        """The KEK without whoever sits there, and the key packet for the others."""
        assert self.lkh is not None
        arrays = self.lkh.evict(leaf)
        root = self.lkh.nodes["root"]
        kek = replace(self.new_kek(len(root.key) * 8), iv=root.iv, key=root.key)
        return kek, KeyPacket(KD_LKH, kek.spi, {3: kek.signing_key}, tuple(arrays))

    def sak(
        self, kek: Kek | None = None, ack: int | None = None, *, management: int = 0
    ) -> Payload:
        kek = kek or self.kek
        ack = self.ack if ack is None else ack
        attributes = (
            (tv(1, management) if management else b"")
            + tv(2, 3)
            + tv(3, len(kek.key) * 8)
            + self.quirks.lifetime
        )
        attributes += (tv(5, kek.sig_hash) if kek.signature == 1 else b"") + tv(6, kek.signature)
        attributes += tv(7, self.signer.key_size)
        attributes += tv(KEK_ACK_REQUESTED, ack) if ack else b""
        attributes += self.quirks.more_sak
        source = Selector(ID_IPV4, self.local[1], address(self.local[0]))
        return SAK, pack_sak(17, source, self.rekey_to, kek.spi, attributes)

    @staticmethod
    def kek_packet(kek: Kek, spi: bytes | None = None) -> KeyPacket:
        keys = {1: kek.iv + kek.key, 2: kek.signing_key}
        return KeyPacket(KD_KEK, spi or kek.spi, keys)

    def gap(self) -> list[Payload]:
        return [] if self.quirks.gap is None else [(GAP, self.quirks.gap)]

    # answers

    def handle(self, datagram: bytes, source: tuple[str, int]) -> bytes | None:
        """The answer to one datagram, the same one to the same datagram."""
        if datagram in self._answers:
            return self._answers[datagram]
        header = read_header(datagram)
        if header.exchange == PUSH_ACK:
            self.acks.append(self._ack(header, datagram, source))
            self.ack_spis.append(datagram[:16])
            return None
        if header.exchange == INFORMATIONAL:
            self._informed(header, datagram)
            return None
        answer = {MAIN: self._main, PULL: self._pull}[header.exchange](header, datagram, source)
        self._answers[datagram] = answer
        return answer

    def _main(self, header: Header, datagram: bytes, source: tuple[str, int]) -> bytes:
        must(header.message_id == 0, "RFC 2408 3.1: Message ID 0 in phase 1")
        state = self._phase1.get(header.cky_i)
        if state is None:
            must(not any(header.cky_r), "RFC 2408 3.1: no responder's cookie yet")
            return self._main1(header, datagram)
        must(header.cky_r == state.cky_r, "RFC 2408 5.2: cookies")
        if state.sa is None:
            return self._main3(state, header, datagram)
        return self._main5(state, datagram, source)

    def _main1(self, header: Header, datagram: bytes) -> bytes:
        must(header.flags == 0, "RFC 2409 5.4: the first message is in clear")
        payloads = unchain(header.next, datagram[28:])
        must(kinds(payloads)[0] == SA, "RFC 2409 5: the SA payload MUST precede all others")
        must(set(kinds(payloads)) <= {SA, VENDOR}, "RFC 2409 5.4: HDR, SA")
        must(kinds(payloads).count(SA) == 1, "RFC 2409 5: MUST NOT be multiple SA payloads")
        sa_i = payloads[0][1]
        transforms = read_phase1_sa(sa_i)
        for _, attributes in transforms:
            read_suite(attributes)
        chosen = transforms[self.quirks.choose(transforms)]
        state = _Phase1(sa_i, read_suite(chosen[1]), secrets.token_bytes(8))
        self._phase1[header.cky_i] = state
        answer: list[Payload] = [(SA, pack_phase1_sa([chosen]))]
        if self.quirks.vendor_ids:
            answer += [(VENDOR, b"somebody else"), (VENDOR, secrets.token_bytes(16))]
        return self._clear(header.cky_i, state.cky_r, answer)

    def _main3(self, state: _Phase1, header: Header, datagram: bytes) -> bytes:
        must(header.flags == 0, "RFC 2409 5.4: the third message is in clear")
        body = dict(unchain(header.next, datagram[28:]))
        must({KE, NONCE} <= set(body) <= {KE, NONCE, VENDOR}, "RFC 2409 5.4: HDR, KE, Ni")
        must(8 <= len(body[NONCE]) <= 256, "RFC 2409 5: nonce between 8 and 256 octets")
        dh = DiffieHellman(state.suite.group, int.from_bytes(secrets.token_bytes(64), "big"))
        nr = secrets.token_bytes(16)
        state.publics = (body[KE], dh.public)
        state.sa = Isakmp.derive(
            state.suite,
            (header.cky_i, state.cky_r),
            self.psk,
            (body[NONCE], nr),
            state.publics,
            dh.shared(body[KE]),
        )
        answer: list[Payload] = [(KE, dh.public), (NONCE, nr)]
        if self.quirks.vendor_ids:
            answer.append((VENDOR, b"and once more"))
        return self._clear(header.cky_i, state.cky_r, answer)

    def _main5(self, state: _Phase1, datagram: bytes, source: tuple[str, int]) -> bytes:
        assert state.sa is not None
        must(not state.complete, "RFC 2409 5: a fixed number of messages")
        _, payloads = state.sa.open(datagram, MAIN)
        must(kinds(payloads)[:2] == [ID, HASH], "RFC 2409 5.4: HDR*, IDii, HASH_I")
        must(set(kinds(payloads)[2:]) <= {NOTIFY}, "RFC 2409 5.4: nothing but notifications more")
        kind, protocol, port, data = read_id(payloads[0][1])
        must((protocol, port) == (0, 0), "RFC 2407 4.6.2: zero (or UDP 500)")
        must((kind, data) == (ID_IPV4, address(source[0])), "the member's identity")
        g_i, g_r = state.publics
        proof = state.sa.auth(g_i, g_r, True, state.sa_i, payloads[0][1])
        must(hmac.compare_digest(payloads[1][1], proof), "RFC 2409 5: HASH_I")
        state.complete = True
        id_b = pack_id(ID_IPV4, address(self.local[0]))
        proof = state.sa.auth(g_r, g_i, False, state.sa_i, id_b)
        return state.sa.seal(MAIN, 0, [(ID, id_b), (HASH, proof)])

    @staticmethod
    def _clear(cky_i: bytes, cky_r: bytes, payloads: list[Payload]) -> bytes:
        body = chain(payloads)
        return Header(cky_i, cky_r, payloads[0][0], MAIN, 0, 0, 28 + len(body)).pack() + body

    def _pull(self, header: Header, datagram: bytes, source: tuple[str, int]) -> bytes:
        state = self._phase1[header.cky_i]
        must(state.complete and state.sa, "RFC 6407 3: a Phase 1 SA protects the GROUPKEY-PULL")
        sa, mid = state.sa, header.message_id
        assert sa is not None
        must(mid, "RFC 2408 3.1: a Message ID in phase 2")
        _, payloads = sa.open(datagram, PULL)
        if mid not in state.pulls:
            must(kinds(payloads) == [HASH, NONCE, ID], "RFC 6407 3.2: HDR*, HASH(1), Ni, ID")
            must(payloads[0][1] == sa.hash(mid, chain(payloads[1:])), "RFC 6407 3.2: HASH(1)")
            ni_b = payloads[1][1]
            must(8 <= len(ni_b) <= 128, "RFC 6407 5.8: nonce between 8 and 128 octets")
            kind, protocol, port, data = read_id(payloads[2][1])
            must((protocol, port) == (0, 0), "RFC 6407 5.1: the DOI-Specific ID Data MUST be 0")
            must(kind == ID_KEY_ID and len(data) == 4, "RFC 6407 5.1: a 4-octet group identifier")
            must(int.from_bytes(data, "big") == self.group, "the group")
            nr_b = secrets.token_bytes(self.quirks.nonce)
            state.pulls[mid] = [ni_b, nr_b]
            sent: list[Payload] = [(NONCE, nr_b), (SA, self._policy())]
            return sa.seal(PULL, mid, [(HASH, sa.hash(mid, ni_b, chain(sent))), *sent])
        ni_b, nr_b = state.pulls[mid]
        must(kinds(payloads) in ([HASH], [HASH, GAP]), "RFC 6407 3.2: HDR*, HASH(3) [, GAP]")
        proof = sa.hash(mid, ni_b, nr_b, chain(payloads[1:]))
        must(payloads[0][1] == proof, "RFC 6407 3.2: HASH(3)")
        self.members.append(source)
        first = self.kek_packet(self.kek)
        if self.lkh is not None:
            download = {1: self.lkh.download(self.leaf), 3: self.kek.signing_key}
            first = KeyPacket(KD_LKH, self.kek.spi, download)
        gaps = [body for kind, body in payloads if kind == GAP]
        self.requests += [read_attributes(gap) for gap in gaps]
        keys = [first, *(tek.packet() for tek in self.teks), *self.sid_packets]
        sent = [(SEQ, pack_seq(self.kek.seq)), (KD, pack_kd(keys))]
        if not self.quirks.rekeys:
            sent = [(KD, pack_kd(keys[1:]))]
        return sa.seal(PULL, mid, [(HASH, sa.hash(mid, ni_b, nr_b, chain(sent))), *sent])

    def _policy(self) -> bytes:
        sak = self.sak(ack=self.quirks.ack_in_pull)
        saks = [sak] if self.quirks.rekeys else []
        return pack_group_sa([*saks, *self.gap(), *(tek.sat() for tek in self.teks)])

    def _informed(self, header: Header, datagram: bytes) -> None:
        must(header.flags == ENCRYPTED, "RFC 2409 5.7: protected when possible")
        state = self._phase1[header.cky_i]
        assert state.sa is not None
        for kind, body in informed(state.sa, datagram):
            if kind == DELETE:
                self.deleted.append(read_delete(body))
            else:
                must(kind == NOTIFY, "RFC 2409 5.7: N/D")
                self.notified.append(read_notify(body))

    def isakmp(self) -> Isakmp:
        """The newest phase 1."""
        sa = list(self._phase1.values())[-1].sa
        assert sa is not None
        return sa

    def _ack(self, header: Header, datagram: bytes, source: tuple[str, int]) -> Ack:
        """RFC 8263 3 and 5."""
        spi = header.cky_i + header.cky_r
        kek = next((kek for kek in (self.kek, *self.old_keks) if kek.spi == spi), None)
        assert kek is not None, "RFC 8263 3.1: cookies of the GROUPKEY-PUSH"
        must(header.flags == 0, "RFC 8263 3.1: Flags are set to 0")
        must(header.message_id == 0, "RFC 8263 3.1: Message ID MUST be set to 0")
        must(header.next == HASH, "RFC 8263 3.1: Next Payload identifies a HASH payload")
        payloads = unchain(header.next, datagram[28:])
        must(kinds(payloads) == [HASH, SEQ, ID], "RFC 8263 3: HDR, HASH, SEQ, ID")
        kind, protocol, port, data = read_id(payloads[2][1])
        must((protocol, port) == (0, 0), "RFC 8263 3.4: Protocol ID and Port MUST be set to 0")
        must(kind == ID_IPV4, "RFC 8263 3.4: ID_IPV4_ADDR")
        must(data == address(source[0]), "RFC 8263 3.4: the source address of the last PULL")
        # RFC 8263 2.2: types 2 and 4 are keyed by the leaf
        leaf = self.lkh.nodes[str(self.leaf)].key if self.lkh else b""
        base = leaf if self.ack in (2, 4) else kek.key
        proof = ack_hash(ACK_HASHES[self.ack], base, spi, chain(payloads[1:]))
        must(payloads[0][1] == proof, "RFC 8263 3.2: HASH")
        return Ack(read_seq(payloads[1][1]), data, source)

    # rekeys

    def push(
        self,
        policy: list[Payload] | None,
        keys: list[KeyPacket] | None = None,
        *,
        deletes: list[bytes] | None = None,
        seq: int | None = None,
        sign_length_as_sent: bool = False,
        next_kek: Kek | None = None,
    ) -> bytes:
        """A GROUPKEY-PUSH under the current KEK; from then on `next_kek` is the current one.

        `policy`: SA Attribute payloads; None leaves SA and KD out.
        """
        kek = self.kek
        kek.seq = kek.seq + 1 if seq is None else seq
        payloads: list[Payload] = [(SEQ, pack_seq(kek.seq))]
        payloads += [(DELETE, body) for body in deletes or []]
        if policy is not None:
            payloads += [(SA, pack_group_sa(policy)), (KD, pack_kd(keys or []))]
        size = signature_size(self.signer)
        clear = chain([*payloads, (SIG, bytes(size))])
        spi, padded = kek.spi, len(pad(clear))
        header = Header(spi[:8], spi[8:], SEQ, PUSH, ENCRYPTED, 0, 28 + padded)
        length = padded if sign_length_as_sent else len(clear)
        covered = header._replace(length=28 + length).pack() + clear[: -size - 4]
        clear = clear[:-size] + sign(self.signer, b"rekey" + covered, kek.sig_hash)
        datagram = header.pack() + kek.seal(pad(clear))
        self.pushed[datagram] = kek.seq
        if next_kek is not None:
            self.old_keks.append(kek)
            self.kek = next_kek
        return datagram
