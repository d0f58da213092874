"""Dataclasses <-> netlink messages. The only place that knows both sides."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from functools import wraps
from typing import Any, Final, TypeVar

from gdoi_xfrm import _messages as messages
from gdoi_xfrm._algorithms import Algorithm, AlgorithmAttribute, AttributeName, from_attributes
from gdoi_xfrm._errors import KernelError
from gdoi_xfrm._layout import (
    NLMSGHDR,
    Layout,
    Message,
    Request,
    attribute,
    compiled,
    with_header,
)
from gdoi_xfrm._parts import (
    UNLIMITED,
    any_packet,
    family_of,
    pack_address,
    pack_lifetime,
    pack_selector,
    read_address,
    read_lifetime,
    read_mode,
    read_sa_selector,
    read_selector,
)
from gdoi_xfrm._types import (
    MAX_MARK,
    Address,
    DefaultPolicy,
    Direction,
    Mark,
    Policy,
    PolicyAction,
    PolicyKey,
    Sa,
    SaKey,
    SaState,
    Template,
    Usage,
)

Value = TypeVar("Value")

ALL_ALGORITHMS: Final = 0xFFFFFFFF
# xfrm_replay_state has a bitmap of 32; a longer window needs XFRMA_REPLAY_ESN_VAL.
SHORT_REPLAY_WINDOW: Final = 32
XFRM_STATE_ESN: Final = 128
# Addresses and lifetimes recur from SA to SA; this many are kept as values.


class MessageType(IntEnum):
    """XFRM_MSG_*."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B
    FLUSHSA = 0x1C
    FLUSHPOLICY = 0x1D
    SETDEFAULT = 0x27
    GETDEFAULT = 0x28


_SA_INFO: Final = Layout(messages.UserSaInfo)
_SA_ID: Final = Layout(messages.UserSaId)
_SA_EXPIRE: Final = Layout(messages.UserExpire)
_SA_FLUSH: Final = Layout(messages.UserSaFlush)
_POLICY_INFO: Final = Layout(messages.UserPolicyInfo)
_POLICY_ID: Final = Layout(messages.UserPolicyId)
_POLICY_EXPIRE: Final = Layout(messages.UserPolExpire)
_POLICY_DEFAULT: Final = Layout(messages.UserPolicyDefault)
_U32: Final = struct.Struct("I")
_NUMBERS: Final[dict[str, int]] = {name: number for number, name, _ in messages.XfrmMessage.nla_map}


def _reader(read: Callable[[bytes], Value]) -> Callable[[bytes], Value]:
    """KernelError for octets that no kernel sends, whatever is wrong with them."""

    @wraps(read)
    def checked(octets: bytes) -> Value:
        try:
            return read(octets)
        except (ValueError, LookupError, struct.error) as error:
            operation = "reading an XFRM message"
            raise KernelError(errno.EBADMSG, operation, str(error)) from error

    return checked


# --- attributes -----------------------------------------------------------------------------

# Without the key that follows them.
_ALGO: Final = compiled(messages.Algo.fields[:-1])
_ALGO_AUTH: Final = compiled(messages.AlgoAuth.fields[:-1])
_ALGO_AEAD: Final = compiled(messages.AlgoAead.fields[:-1])
# In the order that the table of known algorithms has them.
_ALGORITHM_LAYOUTS: Final[dict[AttributeName, struct.Struct]] = {
    "XFRMA_ALG_AEAD": _ALGO_AEAD,
    "XFRMA_ALG_AUTH_TRUNC": _ALGO_AUTH,
    "XFRMA_ALG_AUTH": _ALGO,
    "XFRMA_ALG_CRYPT": _ALGO,
    "XFRMA_ALG_COMP": _ALGO,
}
_REPLAY: Final = compiled(messages.ReplayState.fields)
_LTIME: Final = compiled(messages.LifetimeCur.fields)


def _named(name: str, value: bytes) -> bytes:
    return attribute(_NUMBERS[name], value)


def _algorithm_attribute(part: AlgorithmAttribute) -> bytes:
    layout = _ALGORITHM_LAYOUTS[part.attribute]
    fixed: list[Any] = [part.name.encode(), 8 * len(part.key)]
    if layout is not _ALGO:
        fixed.append(part.icv_bits)
    return _named(part.attribute, layout.pack(*fixed) + part.key)


def _read_algorithm(message: Message) -> Algorithm:
    found: list[AlgorithmAttribute] = []
    for name, layout in _ALGORITHM_LAYOUTS.items():
        value: bytes | None = message.get(name)
        # The kernel gives XFRMA_ALG_AUTH beside every XFRMA_ALG_AUTH_TRUNC, for old readers.
        if value is None or (name == "XFRMA_ALG_AUTH" and found):
            continue
        alg_name, key_bits, *icv_bits = layout.unpack_from(value)
        key = value[layout.size : layout.size + (key_bits + 7) // 8]
        text = alg_name.split(b"\0")[0].decode("ascii", "replace")
        found.append(AlgorithmAttribute(name, text, key, *icv_bits))
    return from_attributes(tuple(found))


def uses_long_replay_state(sa: Sa) -> bool:
    """Whether XFRMA_REPLAY_ESN_VAL must be given, and not usersa_info.replay_window."""
    return sa.esn or sa.replay_window > SHORT_REPLAY_WINDOW


def _replay_attribute(sa: Sa) -> bytes:
    """Sequence numbers and replay window, as far as they are not the struct's defaults.

    A window over 32 needs the long bitmap, also without ESN. What is older than the highest number
    received counts as received.
    """
    high, low = divmod(sa.output_sequence, 1 << 32)
    input_high, input_low = divmod(sa.input_sequence, 1 << 32)
    if uses_long_replay_state(sa):
        words = (sa.replay_window + 31) // 32
        bits = b"\xff" if sa.input_sequence else b"\0"
        head = messages.REPLAY_ESN.pack(words, low, input_low, high, input_high, sa.replay_window)
        return _named("XFRMA_REPLAY_ESN_VAL", head + 4 * words * bits)
    if not (low or input_low):
        return b""
    bitmap = 0xFFFFFFFF if input_low else 0
    return _named("XFRMA_REPLAY_VAL", _REPLAY.pack(low, input_low, bitmap))


def _read_replay(message: Message) -> tuple[int, int, int]:
    """Window, last sequence number sent, highest received."""
    long_state = message.get("XFRMA_REPLAY_ESN_VAL")
    if long_state is not None:
        _, oseq, seq, oseq_high, seq_high, window = messages.REPLAY_ESN.unpack_from(long_state)
        return window, oseq_high << 32 | oseq, seq_high << 32 | seq
    short_state = message.get("XFRMA_REPLAY_VAL")
    if short_state is None:
        return message["replay_window"], 0, 0
    oseq, seq, _ = _REPLAY.unpack_from(short_state)
    return message["replay_window"], oseq, seq


def _mark_attribute(mark: Mark | None) -> bytes:
    return b"" if mark is None else _named("XFRMA_MARK", messages.MARK.pack(mark.value, mark.mask))


def _read_mark(message: Message) -> Mark | None:
    value = message.get("XFRMA_MARK")
    return None if value is None else Mark(*messages.MARK.unpack_from(value))


def _interface_attribute(if_id: int) -> bytes:
    return _named("XFRMA_IF_ID", _U32.pack(if_id)) if if_id else b""


def _read_u32(message: Message, name: str, default: int) -> int:
    value = message.get(name)
    if value is None:
        return default
    number: int = _U32.unpack_from(value)[0]
    return number


def _output_mark_attributes(mark: Mark | None) -> bytes:
    if mark is None:
        return b""
    value, mask = _U32.pack(mark.value), _U32.pack(mark.mask)
    return _named("XFRMA_SET_MARK", value) + _named("XFRMA_SET_MARK_MASK", mask)


def _read_output_mark(message: Message) -> Mark | None:
    if "XFRMA_SET_MARK" not in message:
        return None
    value = _read_u32(message, "XFRMA_SET_MARK", 0)
    return Mark(value, _read_u32(message, "XFRMA_SET_MARK_MASK", MAX_MARK))


def _usage_attribute(usage: Usage | None) -> bytes:
    if usage is None:
        return b""
    value = (usage.bytes, usage.packets, usage.added_time, usage.used_time)
    return _named("XFRMA_LTIME_VAL", _LTIME.pack(*value))


# --- security associations ------------------------------------------------------------------


def encode_sa(sa: Sa, message_type: MessageType) -> Request:
    """XFRM_MSG_NEWSA or XFRM_MSG_UPDSA."""
    family = family_of(sa.destination)
    info = _SA_INFO.struct.pack(
        *(any_packet(family) if sa.selector is None else pack_selector(sa.selector)),
        *_id(sa.destination, sa.spi, sa.protocol),
        pack_address(sa.source),
        *pack_lifetime(sa.lifetime),
        *(0, 0, 0, 0),  # curlft
        *(0, 0, 0),  # stats
        0,  # seq
        sa.reqid,
        family,
        sa.mode,
        0 if uses_long_replay_state(sa) else sa.replay_window,
        XFRM_STATE_ESN if sa.esn else 0,
    )
    attributes = (  # in the order in which the kernel tells them
        *map(_algorithm_attribute, sa.algorithm.attributes),
        _mark_attribute(sa.mark),
        _output_mark_attributes(sa.output_mark),
        _replay_attribute(sa),
        _interface_attribute(sa.if_id),
        _usage_attribute(sa.usage),
    )
    return Request(message_type, info + b"".join(attributes))


def _id(destination: Address, spi: int, protocol: int) -> tuple[bytes, bytes, int]:
    return pack_address(destination), spi.to_bytes(4, "big"), protocol


def encode_sa_id(key: SaKey, message_type: MessageType) -> Request:
    """XFRM_MSG_GETSA or XFRM_MSG_DELSA."""
    daddr, spi, proto = _id(key.destination, key.spi, key.protocol)
    identifier = _SA_ID.struct.pack(daddr, spi, family_of(key.destination), proto)
    return Request(message_type, identifier + _mark_attribute(key.mark))


def _sa_key(message: Message) -> SaKey:
    """The key in a struct xfrm_usersa_info."""
    daddr, spi, proto = message["id"]
    address = read_address(daddr, message["family"])
    return SaKey(address, int.from_bytes(spi, "big"), proto, _read_mark(message))


@_reader
def read_sa(octets: bytes) -> SaState:
    """A NEWSA message as an answer, from a dump or as a notification."""
    message = _SA_INFO.unpack(octets)
    family = message["family"]
    daddr, spi, protocol = message["id"]
    window, output_sequence, input_sequence = _read_replay(message)
    algorithm = _read_algorithm(message)
    sa = Sa(
        source=read_address(message["saddr"], family),
        destination=read_address(daddr, family),
        spi=int.from_bytes(spi, "big"),
        mode=read_mode(message["mode"]),
        reqid=message["reqid"],
        algorithm=algorithm,
        protocol=protocol,
        replay_window=window,
        lifetime=read_lifetime(message["lft"]),
        selector=read_sa_selector(message["sel"], family),
        esn=bool(message["flags"] & XFRM_STATE_ESN),
        mark=_read_mark(message),
        if_id=_read_u32(message, "XFRMA_IF_ID", 0),
        output_mark=_read_output_mark(message),
    )
    octet_count, packets, added, used = message["curlft"]
    # The kernel does not tell an SA's state. ESP and AH never come without an algorithm, except
    # for the larval ones that it made itself.
    larval = protocol in (50, 51) and not algorithm.attributes
    return SaState(sa, larval, output_sequence, input_sequence, octet_count, packets, added, used)


@_reader
def read_deleted_sa(octets: bytes) -> tuple[SaKey, SaState | None]:
    """A DELSA notification: the key, and in attributes all that the kernel had of the SA."""
    message = _SA_ID.unpack(octets)
    address = read_address(message["daddr"], message["family"])
    spi = int.from_bytes(message["spi"], "big")
    key = SaKey(address, spi, message["proto"], _read_mark(message))
    info = message.get("XFRMA_SA")
    if info is None:
        return key, None
    others = octets[NLMSGHDR.size + _SA_ID.size :]
    return key, read_sa(with_header(info[: _SA_INFO.size] + others))


@_reader
def read_expired_sa(octets: bytes) -> tuple[SaKey, bool, Usage]:
    """An EXPIRE notification: the key, whether the SA is gone, and what it was used for."""
    message = _SA_EXPIRE.unpack(octets)
    return _sa_key(message), bool(message["hard"]), Usage(*message["curlft"])


@_reader
def read_flushed_protocol(octets: bytes) -> int:
    """A FLUSHSA notification."""
    protocol: int = _SA_FLUSH.unpack(octets)["proto"]
    return protocol


# --- policies -------------------------------------------------------------------------------


def _template(template: Template) -> bytes:
    return messages.USER_TMPL.pack(
        *_id(template.destination, template.spi, template.protocol),
        family_of(template.destination),
        pack_address(template.source),
        template.reqid,
        template.mode,
        0,
        template.optional,
        ALL_ALGORITHMS,
        ALL_ALGORITHMS,
        ALL_ALGORITHMS,
    )


def _read_template(value: tuple[Any, ...]) -> Template:
    daddr, spi, proto, family, saddr, reqid, mode, _share, optional = value[:9]
    return Template(
        source=read_address(saddr, family),
        destination=read_address(daddr, family),
        mode=read_mode(mode),
        reqid=reqid,
        protocol=proto,
        spi=int.from_bytes(spi, "big"),
        optional=bool(optional),
    )


def encode_policy(policy: Policy, message_type: MessageType) -> Request:
    """XFRM_MSG_NEWPOLICY or XFRM_MSG_UPDPOLICY."""
    info = _POLICY_INFO.struct.pack(
        *pack_selector(policy.selector),
        *UNLIMITED,
        *(0, 0, 0, 0),  # curlft
        policy.priority,
        0,  # index
        policy.direction,
        policy.action,
        0,  # flags
        0,  # share
    )
    templates = b"".join(map(_template, policy.templates))
    attributes = (  # in the order in which the kernel tells them
        _named("XFRMA_TMPL", templates) if templates else b"",
        _mark_attribute(policy.mark),
        _interface_attribute(policy.if_id),
    )
    return Request(message_type, info + b"".join(attributes))


def encode_policy_id(key: PolicyKey, message_type: MessageType) -> Request:
    """XFRM_MSG_GETPOLICY or XFRM_MSG_DELPOLICY."""
    identifier = _POLICY_ID.struct.pack(*pack_selector(key.selector), 0, key.direction)
    attributes = _mark_attribute(key.mark) + _interface_attribute(key.if_id)
    return Request(message_type, identifier + attributes)


def _policy_key(message: Message) -> PolicyKey | None:
    """The key in a struct xfrm_userpolicy_info or _id; None for a per-socket policy.

    Per-socket policies have directions of their own (3 and up) and belong to their sockets.
    """
    if message["dir"] > Direction.FWD:
        return None
    return PolicyKey(
        read_selector(message["sel"], socket.AF_INET),
        Direction(message["dir"]),
        _read_mark(message),
        _read_u32(message, "XFRMA_IF_ID", 0),
    )


@_reader
def read_policy(octets: bytes) -> Policy | None:
    """A NEWPOLICY message; None for a per-socket policy."""
    message = _POLICY_INFO.unpack(octets)
    key = _policy_key(message)
    if key is None:
        return None
    templates = message.get("XFRMA_TMPL", b"")
    whole = len(templates) - len(templates) % messages.USER_TMPL.size
    return Policy(
        key.selector,
        key.direction,
        message["priority"],
        PolicyAction(message["action"]),
        tuple(map(_read_template, messages.USER_TMPL.iter_unpack(templates[:whole]))),
        key.mark,
        key.if_id,
    )


@_reader
def read_policy_key(octets: bytes) -> PolicyKey | None:
    """The key alone, of what `read_policy` reads."""
    return _policy_key(_POLICY_INFO.unpack(octets))


@_reader
def read_deleted_policy(octets: bytes) -> PolicyKey | None:
    """A DELPOLICY notification; None for a per-socket policy.

    Of what was deleted by its index, XFRMA_POLICY alone has the selector.
    """
    message = _POLICY_ID.unpack(octets)
    info = message.get("XFRMA_POLICY")
    if info is None:
        return _policy_key(message)
    others = octets[NLMSGHDR.size + _POLICY_ID.size :]
    return read_policy_key(with_header(info[: _POLICY_INFO.size] + others))


@_reader
def read_expired_policy(octets: bytes) -> tuple[PolicyKey | None, bool]:
    """A POLEXPIRE notification: the key, and whether the policy is gone."""
    message = _POLICY_EXPIRE.unpack(octets)
    return _policy_key(message), bool(message["hard"])


# XFRM_USERPOLICY_BLOCK, XFRM_USERPOLICY_ACCEPT
_DEFAULT_ACTIONS: Final = {PolicyAction.BLOCK: 1, PolicyAction.ALLOW: 2}


def encode_default(default: DefaultPolicy | None) -> Request:
    """XFRM_MSG_SETDEFAULT, or XFRM_MSG_GETDEFAULT where there is nothing to set."""
    if default is None:
        return Request(MessageType.GETDEFAULT, bytes(_POLICY_DEFAULT.size))
    actions = (default.inbound, default.forwarded, default.outbound)
    values = (_DEFAULT_ACTIONS[action] for action in actions)
    return Request(MessageType.SETDEFAULT, _POLICY_DEFAULT.struct.pack(*values))


@_reader
def read_default(octets: bytes) -> DefaultPolicy:
    """A GETDEFAULT message as an answer or as a notification."""
    message = _POLICY_DEFAULT.unpack(octets)
    actions = {number: action for action, number in _DEFAULT_ACTIONS.items()}
    return DefaultPolicy(*(actions[message[name]] for name in ("in", "fwd", "out")))


def message_type(octets: bytes) -> int:
    kind: int = NLMSGHDR.unpack_from(octets)[1]
    return kind


# --- dumps, and what a transaction puts back ------------------------------------------------


def encode_dump(message_type: MessageType) -> Request:
    """GETSA or GETPOLICY for everything: a bare header."""
    return Request(message_type, b"")


def encode_restore(octets: bytes, message_type: MessageType, unseen: float = 0.0) -> Request:
    """What a GET answered, as a request that makes it so again.

    The kernel's answers use the structs and attributes of the requests, so that sent back as they
    came they restore also what the dataclasses do not show: indexes, flags, replay bitmaps. Of an
    SA that is added again the age and the counters must be asked for, so that it lives no longer
    for it; and it sends none of the numbers that it can have used in the seconds ``unseen``.
    """
    body = octets[NLMSGHDR.size :]
    if message_type is MessageType.NEWSA:
        message = _SA_INFO.unpack(octets)
        sent = read_sa(octets).resumed().unseen(unseen).output_sequence
        # Of two attributes of one kind the kernel takes the last.
        body += _usage_attribute(Usage(*message["curlft"])) + _sent_attribute(message, sent)
    return Request(message_type, body)


def _sent_attribute(message: Message, sent: int) -> bytes:
    """The replay state of an SA that was read, but for the number sent last."""
    high, low = divmod(sent, 1 << 32)
    long_state = message.get("XFRMA_REPLAY_ESN_VAL")
    if long_state is None:
        received = message.get("XFRMA_REPLAY_VAL", bytes(_REPLAY.size))[_U32.size :]
        return _named("XFRMA_REPLAY_VAL", _U32.pack(low) + received)
    words, _, seq, _, seq_high, window = messages.REPLAY_ESN.unpack_from(long_state)
    head = messages.REPLAY_ESN.pack(words, low, seq, high, seq_high, window)
    return _named("XFRMA_REPLAY_ESN_VAL", head + long_state[messages.REPLAY_ESN.size :])
