"""GROUPKEY-PUSH, both roles, RFC 6407 section 4.

::

        GM                    GCKS
                              <---- HDR*, SEQ, [D,] SA, KD, SIG

The SIG is over "rekey" | HDR | all payloads before SIG, HDR with the encryption flag set and the
Length the message has without padding: what the exchange's first implementation signs. A verifier
takes the Length as transmitted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..crypto import cipher
from ..crypto.signature import SigningKey, VerifyKey
from ..wire.buffer import DecodeError
from ..wire.delete import Delete
from ..wire.group_sa import GroupSecurityAssociation
from ..wire.header import HEADER_LENGTH, Header
from ..wire.key_download import KeyDownload
from ..wire.message import Message, pull_decrypted, with_body
from ..wire.opaque import Signature
from ..wire.payload import GENERIC_HEADER_LENGTH, Body, encode_chain
from ..wire.registry import Doi, ExchangeType, Flags, PayloadType, TekProtocol
from ..wire.sequence import SequenceNumber
from . import rules
from .errors import AuthError, PolicyError, ReplayError
from .policy import GroupPolicy, Kek, encode_kd, encode_sa

PREFIX = b"rekey"  # RFC 6407 section 4: "the string 'rekey'", five octets
MAX_SEQ = 0xFFFFFFFF
# RFC 6407 section 5.9: SPI zero stands for every SA of the protocol.
ALL_TEKS = Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_ESP, (bytes(4),))
ALL_KEKS = Delete(Doi.GDOI, TekProtocol.KEK, (bytes(16),))


@dataclass(frozen=True, slots=True)
class Push:
    """An authentic PUSH. What its payloads hold is read later, and may raise DecodeError then:
    a message that the key server has signed uses up its SEQ whatever it says."""

    seq: int
    message: Message

    @property
    def deletes(self) -> tuple[Delete, ...]:
        return tuple(p.parse(Delete) for p in self.message.all(PayloadType.DELETE))

    @property
    def policy(self) -> tuple[GroupSecurityAssociation, KeyDownload] | None:
        """SA and KD, or None where both are left out. Raises PolicyError where one is."""
        sa, kd = (self.message.all(kind) for kind in (PayloadType.SA, PayloadType.KD))
        if not sa and not kd:
            return None
        if not sa or not kd:
            raise PolicyError("SA without KD or KD without SA (RFC 6407 section 5.9)")
        return sa[0].parse(GroupSecurityAssociation), kd[0].parse(KeyDownload)


def build_push(
    kek: Kek, seq: int, key: SigningKey, policy: GroupPolicy | None, deletes: Sequence[Delete] = ()
) -> bytes:
    """The datagram, encrypted under ``kek``; ``policy`` None sends SEQ, D, SIG only."""
    payloads: list[Body] = [SequenceNumber(seq), *deletes]
    if policy is not None:
        payloads += [encode_sa(policy), encode_kd(policy)]
    signed = encode_chain(payloads, PayloadType.SIG)
    header = Header(
        kek.spi[:8],
        kek.spi[8:],
        PayloadType.SEQ,
        ExchangeType.GROUPKEY_PUSH,
        Flags.ENCRYPTION,
    )
    length = HEADER_LENGTH + len(signed) + GENERIC_HEADER_LENGTH + key.scheme.signature_octets
    signature = key.sign(PREFIX + header.encode(length) + signed)
    plain = signed + encode_chain([Signature(signature)])
    # One static IV, the one downloaded with the KEK (RFC 6407 section 5.6.2.1): the header has no
    # field for another.
    body = cipher.encrypt(kek.key.reveal(), kek.iv, plain)
    return with_body(header, PayloadType.SEQ, body)


def open_push(
    kek: Kek, verify_key: VerifyKey, last_seq: int, header: Header, datagram: bytes
) -> Push:
    """RFC 6407 sections 4.4 and 7.3.5, cheapest first: decrypt, form, SEQ, SIG.

    Raises DecodeError, ReplayError, AuthError.
    """
    body = datagram[HEADER_LENGTH:]
    if header.message_id or not body or len(body) % cipher.BLOCK:
        raise DecodeError(f"PUSH: encrypted body of {len(body)} octets", HEADER_LENGTH)
    plain = cipher.decrypt(kek.key.reveal(), kek.iv, body)
    message = pull_decrypted(header, plain, cipher.BLOCK)
    rules.check(rules.PUSH, message)
    seq = message.first(PayloadType.SEQ).parse(SequenceNumber).number
    if seq <= last_seq:
        raise ReplayError(f"SEQ {seq}, last was {last_seq}")
    *covered, last = message.payloads
    signature = last.parse(Signature).data
    signed = b"".join(p.octets for p in covered)
    unpadded = HEADER_LENGTH + len(signed) + len(last.octets)
    lengths = dict.fromkeys((unpadded, header.length))
    if not any(
        verify_key.verify(signature, PREFIX + replace(header, length=n).encode() + signed)
        for n in lengths
    ):
        raise AuthError("PUSH signature does not verify")
    return Push(seq, message)
