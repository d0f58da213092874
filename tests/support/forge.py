"""Authentic messages that our own engines would not say, and bits turned over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gdoi_plugin.crypto import cipher
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SigningKey
from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.actions import Action, Drop, Dropped, IPAddress, Send
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import IsakmpSa, Phase2Channel
from gdoi_plugin.protocol.policy import GroupPolicy, Kek, encode_kd, encode_sa
from gdoi_plugin.protocol.push import PREFIX
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.header import HEADER_LENGTH, Header, pull_header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.opaque import Signature
from gdoi_plugin.wire.payload import GENERIC_HEADER_LENGTH, Body, encode_chain
from gdoi_plugin.wire.registry import AckType, ExchangeType, Flags, PayloadType
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.support.simnet import Host
from tests.support.worlds import REKEY, SERVER, World


def flips(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Every bit of ``datagram`` turned over, one at a time, with its octet's offset."""
    for offset in range(len(datagram)):
        for bit in range(8):
            yield offset, flip(datagram, offset, bit)


def flip(datagram: bytes, offset: int, bit: int) -> bytes:
    octets = bytearray(datagram)
    octets[offset] ^= 1 << bit
    return bytes(octets)


def seal_push(
    kek: Kek,
    key: SigningKey,
    payloads: Sequence[Body],
    *,
    length_as_sent: bool = False,
    signature: bytes | None = None,
) -> bytes:
    """HDR*, ``payloads``, SIG. ``length_as_sent``: signed over the Length with padding."""
    signed = encode_chain(payloads, PayloadType.SIG)
    first, flags = payloads[0].TYPE, Flags.ENCRYPTION
    header = Header(kek.spi[:8], kek.spi[8:], first, ExchangeType.GROUPKEY_PUSH, flags)
    size = len(key.sign(b""))
    unpadded = HEADER_LENGTH + len(signed) + GENERIC_HEADER_LENGTH + size
    padded = HEADER_LENGTH + len(cipher.pad(bytes(unpadded - HEADER_LENGTH)))
    covered = header.encode(padded if length_as_sent else unpadded)
    if signature is None:
        signature = key.sign(PREFIX + covered + signed)
    plain = signed + encode_chain([Signature(signature)])
    return header.encode(padded) + cipher.encrypt(kek.key.reveal(), kek.iv, plain)


def push(
    world: World,
    sa: GroupSecurityAssociation | None = None,
    kd: KeyDownload | None = None,
    deletes: Sequence[Body] = (),
    *,
    seq: int | None = None,
    length_as_sent: bool = False,
) -> bytes:
    """A PUSH with the group's current KEK and key, and its next SEQ unless told another."""
    under = world.group.current_kek()
    if seq is None:
        under.seq += 1
        seq = under.seq
    rest = [part for part in (sa, kd) if part is not None]
    payloads: list[Body] = [SequenceNumber(seq), *deletes, *rest]
    return seal_push(under.kek, under.signer, payloads, length_as_sent=length_as_sent)


def push_policy(world: World, policy: GroupPolicy, deletes: Sequence[Body] = ()) -> bytes:
    return push(world, encode_sa(policy), encode_kd(policy), deletes)


def make_ack(
    kek: Kek,
    seq: int,
    address: IPAddress,
    ack_type: int = AckType.REKEY_ACK_KEK_SHA256,
    leaf: Secret | None = None,
) -> bytes:
    """An ACK of the PUSH that ``kek`` decrypted, of whoever is at ``address``."""
    base = base_key(ack_type, kek, leaf)
    assert base is not None
    return build_ack(ack_type, base, kek, seq, Identity.of_address(address).payload())


def multicast(world: World, datagram: bytes) -> list[Action]:
    """What the first member does about a rekey sent to the group."""
    return world.member.hear(datagram, SERVER, REKEY)


def unicast(world: World, datagram: bytes) -> list[Action]:
    return world.member.hear(datagram, SERVER)


def seal_phase2(
    sa: IsakmpSa, exchange: ExchangeType, message_id: int, prefix: bytes, payloads: Sequence[Body]
) -> bytes:
    """The first message of a phase-2 exchange: HDR*, HASH(1), payloads."""
    return Phase2Channel(sa, exchange, message_id).seal(prefix, payloads)


def is_clear_notify(action: Action) -> bool:
    if not isinstance(action, Send):
        return False
    header = pull_header(action.datagram)
    return header.exchange_type == ExchangeType.INFORMATIONAL and not header.encrypted


def only_drop(actions: Sequence[Action]) -> Drop:
    """The trigger, where a datagram was dropped and nothing else was done.

    A key server may say in clear that it was: that is no state, and nobody believes it.
    """
    done = [action for action in actions if not is_clear_notify(action)]
    assert len(done) == 1, actions
    (action,) = done
    assert isinstance(action, Dropped), action
    return action.reason


def resend(host: Host, send: Send) -> list[Action]:
    return host.hear(send.datagram, send.source, send.destination)
