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
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..crypto import cipher
from ..crypto.cipher import BLOCK
from ..crypto.signature import Scheme, SigningKey, VerifyKey
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

ATTRIBUTE_HEADER_LENGTH = 4  # RFC 2408 section 3.3, type and length
# What fits IPv6's minimum MTU of 1280 octets without fragments.
DEFAULT_PUSH_LIMIT = 1232
PREFIX = b"rekey"  # RFC 6407 section 4: "the string 'rekey'", five octets
MAX_SEQ = 0xFFFFFFFF
# RFC 6407 section 5.9: SPI zero stands for every SA of the protocol.
ALL_KEKS = Delete(Doi.GDOI, TekProtocol.KEK, (bytes(16),))


def all_teks(protocol: TekProtocol) -> Delete:
    return Delete(Doi.GDOI, protocol, (bytes(4),))


@dataclass(frozen=True, slots=True)
class Push:
    """An authentic PUSH. What its payloads hold is read later, and may raise DecodeError then:
    a message that the key server has signed uses up its SEQ whatever it says."""

    seq: int
    message: Message
    datagram: bytes = field(repr=False)

    @property
    def deletes(self) -> tuple[Delete, ...]:
        """Raises PolicyError for one of another DOI: its protocols have other numbers."""
        deletes = tuple(p.parse(Delete) for p in self.message.all(PayloadType.DELETE))
        for delete in deletes:
            # RFC 6407 section 5.9: "The Domain of Interpretation field contains the GDOI DOI."
            if delete.doi != Doi.GDOI:
                raise PolicyError(f"Delete of DOI {delete.doi}, must be {int(Doi.GDOI)}")
        return deletes

    @property
    def policy(self) -> tuple[GroupSecurityAssociation, KeyDownload] | None:
        """SA and KD, or None where both are left out. Raises PolicyError where one is."""
        sa, kd = (self.message.all(kind) for kind in (PayloadType.SA, PayloadType.KD))
        if not sa and not kd:
            return None
        if not sa or not kd:
            raise PolicyError("SA without KD or KD without SA (RFC 6407 section 5.9)")
        return sa[0].parse(GroupSecurityAssociation), kd[0].parse(KeyDownload)


@dataclass(frozen=True, slots=True)
class Content:
    """What one PUSH says besides SEQ and SIG; ``policy`` None leaves SA and KD out."""

    policy: GroupPolicy | None
    deletes: tuple[Delete, ...] = ()

    def payloads(self) -> list[Body]:
        if self.policy is None:
            return [*self.deletes]
        return [*self.deletes, encode_sa(self.policy), encode_kd(self.policy)]

    def unasked(self) -> Content:
        """The same without KEK_ACK_REQUESTED."""
        if self.policy is None or self.policy.kek is None:
            return self
        kek = replace(self.policy.kek, ack_type=None)
        return replace(self, policy=replace(self.policy, kek=kek))


def push_length(scheme: Scheme, content: Content) -> int:
    """Octets of the PUSH that says this, signed by a key of ``scheme``, without padding."""
    payloads = encode_chain([SequenceNumber(0), *content.payloads()], PayloadType.SIG)
    signature = GENERIC_HEADER_LENGTH + scheme.signature_octets
    return HEADER_LENGTH + len(payloads) + signature


def spread(sizes: Sequence[int], first: int, others: int, *, alone: bool = True) -> list[range]:
    """Items of these sizes in order, over messages with room for ``first`` and ``others`` octets.

    An item that is larger than any room has a message to itself. Unless ``alone``, the first
    message has something to say without items too.
    """
    cuts, left = [0], first
    for index, size in enumerate(sizes):
        if size > left and (index > cuts[-1] or (len(cuts) == 1 and not alone)):
            cuts.append(index)
            left = others
        left -= size
    return [range(low, high) for low, high in pairwise([*cuts, len(sizes)])]


def split_content(scheme: Scheme, content: Content, limit: int) -> list[Content]:
    """The same in several PUSHes of at most ``limit`` octets each, where that can be.

    The first one has the KEK and the Deletes; each has the GAP, and the keys of its own data SAs.
    LKH updates come before those, in as many PUSHes as they need, each with the SAK.
    """
    policy = content.policy
    room = HEADER_LENGTH + (limit - HEADER_LENGTH) // BLOCK * BLOCK
    if policy is None or _fits(scheme, content, policy, room):
        return [content]
    bare = replace(policy, kek=None, teks=(), updates=())
    if policy.updates:
        heads = _split_updates(scheme, replace(content, policy=replace(policy, teks=())), room)
        if not policy.teks:
            return heads
        return [*heads, *split_content(scheme, Content(replace(bare, teks=policy.teks)), limit)]
    head = push_length(scheme, replace(content, policy=replace(policy, teks=())))
    rest = push_length(scheme, Content(bare))
    sizes = [push_length(scheme, Content(replace(bare, teks=(t,)))) - rest for t in policy.teks]
    alone = policy.kek is None and not content.deletes
    ranges = spread(sizes, room - head, room - rest, alone=alone)
    teks = [tuple(policy.teks[i] for i in indexes) for indexes in ranges]
    first = replace(content, policy=replace(policy, teks=teks[0]))
    return [first, *(Content(replace(bare, teks=part)) for part in teks[1:])]


def _fits(scheme: Scheme, content: Content, policy: GroupPolicy, room: int) -> bool:
    """Updates after many evictions are more than the lengths in one message can say."""
    return sum(map(len, policy.updates)) <= room and push_length(scheme, content) <= room


def _split_updates(scheme: Scheme, content: Content, room: int) -> list[Content]:
    """The LKH updates of ``content``, the Deletes with the first ones."""
    policy = content.policy
    if policy is None:
        return [content]
    sizes = [ATTRIBUTE_HEADER_LENGTH + len(update) for update in policy.updates]
    one = replace(policy, updates=policy.updates[:1])
    first = push_length(scheme, Content(one, content.deletes)) - sizes[0]
    others = push_length(scheme, Content(one)) - sizes[0]
    ranges = spread(sizes, room - first, room - others)
    parts = [replace(policy, updates=policy.updates[r.start : r.stop]) for r in ranges]
    return [Content(parts[0], content.deletes), *(Content(part) for part in parts[1:])]


def build_push(kek: Kek, seq: int, key: SigningKey, content: Content) -> bytes:
    """The datagram, encrypted under ``kek``."""
    payloads: list[Body] = [SequenceNumber(seq), *content.payloads()]
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
    return Push(seq, message, datagram)
