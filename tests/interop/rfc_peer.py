"""A GDOI member of its own, written from the RFC texts alone; rfc_key_server.py is its other half.

It is a script more than a program: the test tells it what to send, over a blocking UDP socket, and
it insists on what comes back.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from .rfc_crypto import (
    ACK_HASHES,
    ECDSA,
    SIG_HASHES,
    DiffieHellman,
    Isakmp,
    Kek,
    ack_hash,
    inform,
    informed,
    verify,
)
from .rfc_lkh import Node, read_download, take_updates
from .rfc_octets import (
    DELETE,
    ENCRYPTED,
    GAP,
    HASH,
    ID,
    ID_IPV4,
    ID_KEY_ID,
    ID_OID,
    INFORMATIONAL,
    IPSEC,
    KD,
    KD_KEK,
    KD_LKH,
    KD_SID,
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
    SEQ,
    SIG,
    VENDOR,
    Deletion,
    GroupSa,
    Header,
    IecSat,
    KeyPacket,
    Notification,
    Payload,
    Sak,
    Sat,
    Suite,
    address,
    chain,
    check_keys,
    check_sids,
    kinds,
    must,
    pack_delete,
    pack_id,
    pack_notify,
    pack_phase1_sa,
    pack_seq,
    read_attributes,
    read_delete,
    read_group_sa,
    read_header,
    read_id,
    read_kd,
    read_notify,
    read_phase1_sa,
    read_seq,
    read_suite,
    suite_attributes,
    tlv,
    tv,
    unchain,
)
from .rfc_signatures import CERT, CERTREQ, ID_DER_ASN1_DN, Certified, read_certificate

NAT_D = 20  # RFC 3947 3.2
PATIENCE = 90.0
RESEND = 2.0  # seconds
DEFAULT_SUITE = Suite(256, "sha256", 19)
LIFETIME_TLV = tlv(12, (86400).to_bytes(4, "big"))
LIFETIME_TV = tv(12, 28800)


class Silence(Exception):
    """Nothing came in time."""


class Notified(Exception):
    """The other side answered with a notification."""

    def __init__(self, notification: Notification, protected: bool) -> None:
        super().__init__(f"notify {notification.kind}")
        self.notification = notification
        self.protected = protected


@dataclass(frozen=True)
class Push:
    """A GROUPKEY-PUSH that passed every check."""

    kek: Kek
    seq: int
    deletions: list[Deletion]
    sa: GroupSa | None
    ack: int


@dataclass
class Pulled:
    sa: GroupSa
    seq: int | None
    keys: list[KeyPacket]


class Member:
    """Main mode initiator, GROUPKEY-PULL initiator, receiver of PUSHes."""

    def __init__(
        self,
        local: tuple[str, int],
        server: tuple[str, int],
        psk: bytes,
        suite: Suite = DEFAULT_SUITE,
    ) -> None:
        self.local, self.server, self.psk, self.suite = local, server, psk, suite
        self.identity, self.server_identity = local[0], server[0]
        self.strict = False  # knows RFC 6407 alone
        self.repeat = False  # send every request twice, insist on the same answer twice
        self.nonce_size = 32
        self.patience = PATIENCE
        self.initial_contact = False
        self.certified: Certified | None = None
        self.more_in_5: list[Payload] = []
        self.server_certificate: x509.Certificate | None = None
        self.more_in_1: list[Payload] = []
        self.more_in_3: list[Payload] = []
        self.transforms = [(1, suite_attributes(suite, LIFETIME_TLV))]
        self.keks: dict[bytes, Kek] = {}
        self.teks: dict[bytes, tuple[Sat, dict[int, bytes]]] = {}
        self.applications: dict[bytes, tuple[IecSat, dict[int, bytes]]] = {}
        self.ack_type = 0
        self.path: list[Node] = []  # of an LKH, leaf first
        self.passed_over = 0  # PUSHes whose LKH updates were all for others
        self.sa: Isakmp | None = None
        self.cky_i = b""
        self.set_aside: list[bytes] = []
        self.sent: list[bytes] = []
        self.spoil: Callable[[bytes], bytes] = lambda datagram: datagram
        self.spoil_signature: Callable[[bytes], bytes] = lambda signature: signature
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(local)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def isakmp(self) -> Isakmp:
        assert self.sa is not None
        return self.sa

    # NAT traversal: rfc_nat.py knows it, this one has never heard of it

    def discovery(self, _suite: Suite, _cookies: bytes, _vendor_ids: list[bytes]) -> list[Payload]:
        return []

    def discovered(self, hashes: list[bytes]) -> None:
        must(not hashes, "RFC 3947 3.2: NAT-D for who has announced nothing")

    def framed(self, message: bytes) -> bytes:
        return message

    def unframed(self, datagram: bytes) -> bytes:
        return datagram

    # datagrams

    def send(self, datagram: bytes) -> None:
        self.sent.append(datagram)
        self.socket.sendto(self.framed(datagram), self.server)

    def receive(self, *exchanges: int, timeout: float | None = None) -> bytes:
        """The next datagram of one of these exchanges; others are set aside. Raises Silence."""
        for datagram in self.set_aside:
            if datagram[18] in exchanges:
                self.set_aside.remove(datagram)
                return datagram
        timeout = self.patience if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                datagram, source = self.socket.recvfrom(65535)
            except TimeoutError:
                break
            must(source == self.server, f"an answer from {source}")
            datagram = self.unframed(datagram)
            if datagram[18] == INFORMATIONAL and datagram[:8] != self.cky_i:
                continue  # the end of an SA that somebody had at this address before
            if datagram[18] in exchanges:
                return datagram
            self.set_aside.append(datagram)
        raise Silence(f"no exchange of {exchanges} within {timeout} s")

    def ask(self, request: bytes, exchange: int) -> bytes:
        """One request, its answer. Raises Notified, Silence."""
        self.send(request)
        answer = self._answer(request, exchange)
        if answer[18] == INFORMATIONAL:
            raise self.notified(answer)
        if self.repeat:
            self.send(request)
            must(self.receive(exchange) == answer, "RFC 2408 5.1: a retransmission, another answer")
        return answer

    def _answer(self, request: bytes, exchange: int) -> bytes:
        """RFC 2408 5.1: the request again, after a while, where nothing came."""
        deadline = time.monotonic() + self.patience
        while (left := deadline - time.monotonic()) > RESEND:
            try:
                return self.receive(exchange, INFORMATIONAL, timeout=RESEND)
            except Silence:
                self.socket.sendto(self.framed(request), self.server)
        return self.receive(exchange, INFORMATIONAL, timeout=left)

    def notified(self, datagram: bytes) -> Notified:
        protected = bool(datagram[19] & ENCRYPTED)
        if protected:
            payloads = informed(self.isakmp, datagram)
            must(datagram[20:24] != self.sent[-1][20:24], "RFC 2409 5.7: an M-ID of its own")
        else:
            header = read_header(datagram)
            payloads = unchain(header.next, datagram[28:])
        must(NOTIFY in kinds(payloads), f"RFC 2408 5.14: a notification, not {kinds(payloads)}")
        body = next(body for kind, body in payloads if kind == NOTIFY)
        return Notified(read_notify(body), protected)

    # phase 1

    def certify(self, certified: Certified) -> None:
        """Signatures from now on instead of the pre-shared key."""
        self.certified = certified
        self.transforms = [(1, suite_attributes(self.suite, LIFETIME_TLV, certified.method))]

    def phase1(self) -> None:
        """RFC 2409 5.1 and 5.4. Raises Notified, Silence."""
        self.cky_i = cky_i = secrets.token_bytes(8)
        sa_i = pack_phase1_sa(self.transforms)
        answer = self._clear(cky_i, bytes(8), [(SA, sa_i), *self.more_in_1])
        header, payloads = self._read_clear(answer, cky_i)
        cky_r = header.cky_r
        must(any(cky_r), "RFC 2408 2.5.3: a responder's cookie")
        must(kinds(payloads)[0] == SA, "RFC 2409 5: the SA payload MUST precede all others")
        must(set(kinds(payloads)) <= {SA, VENDOR}, "RFC 2409 5.4: HDR, SA")
        must(payloads[0][1][:8] == sa_i[:8], "RFC 2408 3.4: the same DOI and situation")
        chosen = read_phase1_sa(payloads[0][1])
        must(len(chosen) == 1, "RFC 2408 4.2: the responder selects a single transform")
        must(chosen[0] in self.transforms, "RFC 2409 5: MUST NOT modify attributes of any offer")
        method = 1 if self.certified is None else self.certified.method
        self.suite = suite = read_suite(chosen[0][1], method)

        dh = DiffieHellman(suite.group, int.from_bytes(secrets.token_bytes(64), "big"))
        ni = secrets.token_bytes(self.nonce_size)
        vendor_ids = [body for kind, body in payloads if kind == VENDOR]
        sent: list[Payload] = [(KE, dh.public), (NONCE, ni), *self.more_in_3]
        sent += self.discovery(suite, cky_i + cky_r, vendor_ids)
        header, payloads = self._read_clear(self._clear(cky_i, cky_r, sent), cky_i)
        must(header.cky_r == cky_r, "the responder's cookie changed")
        body = dict(payloads)
        besides = {VENDOR, NAT_D} if self.certified is None else {VENDOR, CERTREQ, NAT_D}
        must({KE, NONCE} <= set(body) <= {KE, NONCE} | besides, "RFC 2409 5.4: HDR, KE, Nr")
        self.discovered([body for kind, body in payloads if kind == NAT_D])
        must(8 <= len(body[NONCE]) <= 256, "RFC 2409 5: nonce between 8 and 256 octets")
        g_i, g_r = dh.public, body[KE]
        self.sa = sa = Isakmp.derive(
            suite,
            (cky_i, cky_r),
            self.psk if self.certified is None else None,
            (ni, body[NONCE]),
            (g_i, g_r),
            dh.shared(g_r),
        )
        if self.certified is not None:
            self._signatures(self.certified, sa, (g_i, g_r), sa_i)
            return

        id_b = pack_id(ID_IPV4, address(self.identity))
        proof = sa.auth(g_i, g_r, True, sa_i, id_b)
        final: list[Payload] = [(ID, id_b), (HASH, proof)]
        if self.initial_contact:  # RFC 2407 4.6.3.3, of the IPsec DOI
            final.append((NOTIFY, pack_notify(24578, cky_i + cky_r, IPSEC)))
        header, payloads = sa.open(self.ask(sa.seal(MAIN, 0, final), MAIN), MAIN)
        must(header.message_id == 0, "RFC 2408 3.1: Message ID 0 in phase 1")
        must(kinds(payloads) == [ID, HASH], "RFC 2409 5.4: HDR*, IDir, HASH_R")
        id_r = payloads[0][1]
        kind, protocol, port, data = read_id(id_r)
        must((protocol, port) == (0, 0), "RFC 2407 4.6.2: zero (or UDP 500)")
        must((kind, data) == (ID_IPV4, address(self.server_identity)), "the key server's identity")
        must(payloads[1][1] == sa.auth(g_r, g_i, False, sa_i, id_r), "RFC 2409 5: HASH_R")

    def _signatures(
        self, certified: Certified, sa: Isakmp, publics: tuple[bytes, bytes], sa_i: bytes
    ) -> None:
        """RFC 2409 5.1: HDR*, IDii, [CERT,] SIG_I and HDR*, IDir, [CERT,] SIG_R."""
        g_i, g_r = publics
        id_b = pack_id(ID_DER_ASN1_DN, certified.name)
        signature = certified.sign(sa.auth(g_i, g_r, True, sa_i, id_b))
        final = [(ID, id_b), *certified.certificates(), (SIG, self.spoil_signature(signature))]
        request = sa.seal(MAIN, 0, [*final, *self.more_in_5])
        _, payloads = sa.open(self.ask(request, MAIN), MAIN)
        must(kinds(payloads) in ([ID, CERT, SIG], [ID, SIG]), "RFC 2409 5.1: HDR*, IDir, SIG_R")
        if CERT in kinds(payloads):
            self.server_certificate = read_certificate(payloads[1][1])
        theirs = self.server_certificate
        assert theirs is not None, "no certificate of the key server, sent or known"
        id_r = payloads[0][1]
        kind, _, _, data = read_id(id_r)
        is_subject = (kind, data) == (ID_DER_ASN1_DN, theirs.subject.public_bytes())
        must(is_subject, "the key server's identity is its certificate's subject")
        certified.check(theirs, payloads[-1][1], sa.auth(g_r, g_i, False, sa_i, id_r))

    def _clear(self, cky_i: bytes, cky_r: bytes, payloads: list[Payload]) -> bytes:
        body = chain(payloads)
        header = Header(cky_i, cky_r, payloads[0][0], MAIN, 0, 0, 28 + len(body))
        return self.ask(self.spoil(header.pack() + body), MAIN)

    def _read_clear(self, datagram: bytes, cky_i: bytes) -> tuple[Header, list[Payload]]:
        header = read_header(datagram)
        must(header.cky_i == cky_i, "the initiator's cookie changed")
        must((header.exchange, header.flags) == (MAIN, 0), "RFC 2409 5.4: main mode, in clear")
        must(header.message_id == 0, "RFC 2408 3.1: Message ID 0 in phase 1")
        return header, unchain(header.next, datagram[28:])

    # registration

    def pull(
        self,
        group: int | bytes,
        *,
        spoil: bool = False,
        gap: bytes | None = None,
        nonce: int | None = None,
    ) -> Pulled:
        """RFC 6407 3.2, `group` a number or ID_OID's data; with `spoil` HASH(3) is wrong.

        Raises Notified, Silence.
        """
        sa, mid = self.isakmp, secrets.randbits(32) or 1
        ni_b = secrets.token_bytes(nonce or self.nonce_size)
        by_number = isinstance(group, int)
        data = group.to_bytes(4, "big") if isinstance(group, int) else group
        named = pack_id(ID_KEY_ID if by_number else ID_OID, data)
        sent: list[Payload] = [(NONCE, ni_b), (ID, named)]
        proof = sa.hash(mid, chain(sent))
        answer = self.ask(sa.seal(PULL, mid, [(HASH, proof), *sent]), PULL)
        header, payloads = sa.open(answer, PULL)
        must(header.message_id == mid, "RFC 6407 3.2: M-ID identifies the exchange")
        must(kinds(payloads) == [HASH, NONCE, SA], "RFC 6407 3.2: HDR*, HASH(2), Nr, SA")
        nr_b = payloads[1][1]
        must(8 <= len(nr_b) <= 128, "RFC 6407 5.8: nonce between 8 and 128 octets")
        must(payloads[0][1] == sa.hash(mid, ni_b, chain(payloads[1:])), "RFC 6407 3.2: HASH(2)")
        group_sa = read_group_sa(payloads[2][1])

        sent = [] if gap is None else [(GAP, gap)]
        proof = sa.hash(mid, ni_b, nr_b, chain(sent))
        if spoil:
            proof = bytes(len(proof))
        answer = self.ask(sa.seal(PULL, mid, [(HASH, proof), *sent]), PULL)
        header, payloads = sa.open(answer, PULL)
        must(header.message_id == mid, "RFC 6407 3.2: M-ID identifies the exchange")
        shape = [HASH, SEQ, KD] if group_sa.sak else [HASH, KD]
        must(kinds(payloads) == shape, f"RFC 6407 3.2: HASH(4) [, SEQ], KD, not {kinds(payloads)}")
        proof = sa.hash(mid, ni_b, nr_b, chain(payloads[1:]))
        must(payloads[0][1] == proof, "RFC 6407 3.2: HASH(4)")
        seq = read_seq(payloads[1][1]) if group_sa.sak else None
        keys = read_kd(payloads[-1][1])
        check_keys(group_sa, keys)
        requests = [] if gap is None else [a for a in read_attributes(gap) if a.kind == 3]
        check_sids(group_sa, keys, self.local[0], sum(a.value for a in requests))
        if group_sa.sak is not None:
            must(group_sa.sak.get(1) == 0, "RFC 6407 5.3: no KEK_MANAGEMENT_ALGORITHM in a PULL")
        self._learn(group_sa, keys, seq or 0, pull=True)
        return Pulled(group_sa, seq, keys)

    def delete(self) -> None:
        """Ends the phase-1 SA; RFC 2408 3.15."""
        body = pack_delete(1, [self.isakmp.cky_i + self.isakmp.cky_r], 0)
        self.send(inform(self.isakmp, secrets.randbits(32) or 1, (DELETE, body)))

    def _learn(self, sa: GroupSa, keys: list[KeyPacket], seq: int, *, pull: bool = False) -> None:
        found = {(packet.kind, packet.spi): packet.keys for packet in keys}
        for sat in sa.sats:
            self.teks[sat.spi] = (sat, found[KD_TEK, sat.spi])
        for iec in sa.applications:
            self.applications[iec.spi] = (iec, found[KD_TEK, iec.spi])
        sak = sa.sak
        if sak is None:
            return
        must(sak.get(2) == 3, "RFC 6407 5.3.2: KEK_ALG_AES")
        must(sak.get(6) in ECDSA or sak.get(5) in SIG_HASHES, "RFC 6407 5.3.5: a hash for RSA")
        asked = KEK_ACK_REQUESTED in [attribute.kind for attribute in sak.attributes]
        must(not (self.strict and asked), "RFC 6407 5.3.2: MUST abort at an unknown attribute")
        self.ack_type = sak.get(KEK_ACK_REQUESTED)
        if (KD_LKH, sak.spi) in found:
            packet = next(packet for packet in keys if packet.kind == KD_LKH)
            self._learn_lkh(sak, packet, seq, pull=pull)
            return
        keys_of = found[KD_KEK, sak.spi]
        if sak.spi in self.keks:
            must(self.keks[sak.spi].iv + self.keks[sak.spi].key == keys_of[1], "a KEK changed")
            return
        iv, key = keys_of[1][:16], keys_of[1][16:]
        self.keks[sak.spi] = Kek(
            sak.spi, iv, key, sak.get(6), keys_of[2], self.ack_type, seq, sak.get(5)
        )

    def _learn_lkh(self, sak: Sak, packet: KeyPacket, seq: int, *, pull: bool) -> None:
        """RFC 6407 3.3 and 4.4: the last key of the array is the group KEK."""
        if pull:
            must(set(packet.keys) == {1, 3}, "RFC 6407 5.6.3: a download array and the public key")
            must(not packet.updates, "an update array has no place in a PULL")
            self.path = read_download(packet.keys[1])
        else:
            must(sak.get(1) == 1, "RFC 6407 5.3.1: KEK_MANAGEMENT_ALGORITHM is LKH")
            must(set(packet.keys) == {3}, "RFC 6407 5.6.3.1: MUST NOT include a download array")
            must(packet.updates, "RFC 6407 4.3: LKH update arrays")
            taken = take_updates(self.path, list(packet.updates))
            if taken is None:
                self.passed_over += 1
                return
            self.path = taken
        root = self.path[-1]
        must(len(root.key) * 8 == sak.get(3), "RFC 6407 5.3.3: the key length announced")
        if sak.spi not in self.keks:
            self.keks[sak.spi] = Kek(
                sak.spi,
                root.iv,
                root.key,
                sak.get(6),
                packet.keys[3],
                self.ack_type,
                seq,
                sak.get(5),
            )

    # rekeys

    def push(self, datagram: bytes | None = None, *, timeout: float | None = None) -> Push:
        """Takes one GROUPKEY-PUSH, RFC 6407 4.4, received now unless given."""
        datagram = self.receive(PUSH, timeout=timeout) if datagram is None else datagram
        header = read_header(datagram)
        must(header.exchange == PUSH, "RFC 6407 4.2: exchange 33")
        must(header.flags == ENCRYPTED, "RFC 6407 4.2: Flags MUST have the Encryption bit set")
        must(header.message_id == 0, "RFC 6407 4.2: Message ID MUST be set to zero")
        spi = header.cky_i + header.cky_r
        must(spi in self.keks, "RFC 6407 4.4: cookies of an existing Rekey SA")
        kek = self.keks[spi]
        must(len(datagram) % 16 == 12, "whole blocks of AES after the header")
        payloads = unchain(header.next, kek.open(datagram[28:]), padded=True)
        inner = [kind for kind in kinds(payloads) if kind != DELETE]
        first = 1 + kinds(payloads).count(DELETE)
        must(kinds(payloads)[0] == SEQ and kinds(payloads)[-1] == SIG, "RFC 6407 4: SEQ .. SIG")
        must(set(kinds(payloads)[1:first]) <= {DELETE}, "RFC 6407 5.9: D following the SEQ")
        must(inner in ([SEQ, SA, KD, SIG], [SEQ, SIG]), f"RFC 6407 4: not {kinds(payloads)}")
        seq = read_seq(payloads[0][1])
        must(seq > kek.seq, f"RFC 6407 4.4: SEQ {seq} is not greater than {kek.seq}")
        clear = chain(payloads)
        signed = header._replace(length=28 + len(clear)).pack()
        covered = clear[: len(clear) - 4 - len(payloads[-1][1])]
        verify(
            kek.signature,
            kek.sig_hash,
            kek.signing_key,
            payloads[-1][1],
            b"rekey" + signed + covered,
        )
        gaps = self.strict  # others are told in messages of their own
        must(gaps or seq == kek.seq + 1, f"RFC 6407 4.3: SEQ {seq} is 1 more than the previous")
        kek.seq = seq

        deletions = [read_delete(body) for kind, body in payloads if kind == DELETE]
        for deletion in deletions:
            must(deletion.doi == 2, "RFC 6407 5.9: the DOI field contains the GDOI DOI")
            must(deletion.protocol in (0, 1, 3), "RFC 6407 5.9: a TEK's Protocol-ID or zero")
        sa = None
        if SA in kinds(payloads):
            sa, keys = read_group_sa(payloads[-3][1]), read_kd(payloads[-2][1])
            check_keys(sa, keys)
            must(KD_SID not in [packet.kind for packet in keys], "RFC 6407 5.6.4: not in a PUSH")
            must(sa.gap is None or all(a.kind != 3 for a in sa.gap), "RFC 6407 5.4.2: PULL only")
            self._learn(sa, keys, 0)
        for deletion in deletions:
            for gone in deletion.spis:
                if deletion.protocol == 0:
                    must(gone in self.keks or not any(gone), "a Delete for a KEK never had")
                    self.keks.pop(gone, None)
                elif deletion.protocol == 3:
                    must(gone in self.applications or not any(gone), "a Delete for a key never had")
                    self.applications.pop(gone, None)
                else:
                    must(gone in self.teks or not any(gone), "a Delete for a TEK never had")
                    self.teks.pop(gone, None)
        return Push(kek, seq, deletions, sa, self.ack_type)

    def ack(
        self, push: Push, *, identity: str | None = None, oid: bytes = b"", bits: int = 0
    ) -> bytes:
        """The GROUPKEY-PUSH-ACK; RFC 8263 3. `oid` is ID_OID's data, `bits` another L."""
        host = self.local[0] if identity is None else identity
        who = pack_id(ID_OID, oid) if oid else pack_id(ID_IPV4, address(host))
        tail: list[Payload] = [(SEQ, pack_seq(push.seq)), (ID, who)]
        # RFC 8263 2.2 and 2.4: "the first LKH Key structure in an LKH_DOWNLOAD_ARRAY"
        base = self.path[0].key if push.ack in (2, 4) else push.kek.key
        proof = ack_hash(ACK_HASHES[push.ack], base, push.kek.spi, chain(tail), bits)
        body = chain([(HASH, proof), *tail])
        spi = push.kek.spi
        header = Header(spi[:8], spi[8:], HASH, PUSH_ACK, 0, 0, 28 + len(body))
        return header.pack() + body
