"""Dataclasses <-> netlink messages. The only place that knows both sides."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Final

from gdoi_xfrm import _messages as messages
from gdoi_xfrm._algorithms import Algorithm, AlgorithmAttribute, AttributeName, from_attributes
from gdoi_xfrm._types import (
    MAX_MARK,
    Address,
    DefaultPolicy,
    Direction,
    Lifetime,
    Mark,
    Mode,
    Network,
    Policy,
    PolicyAction,
    PolicyKey,
    Sa,
    SaKey,
    SaState,
    Selector,
    Template,
    Usage,
)

XFRM_INF: Final = 2**64 - 1  # "no limit" for octets and packets; 0 would be "expired at once"
ALL_ALGORITHMS: Final = 0xFFFFFFFF
# xfrm_replay_state has a bitmap of 32; a longer window needs XFRMA_REPLAY_ESN_VAL.
SHORT_REPLAY_WINDOW: Final = 32
XFRM_STATE_ESN: Final = 128


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


# --- parts of structs -----------------------------------------------------------------------


def family_of(address: Address | Network) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address(address: Address) -> bytes:
    """xfrm_address_t: 16 octets, an IPv4 address in the first four."""
    return address.packed.ljust(16, b"\0")


def read_address(octets: bytes, family: int) -> Address:
    if family == socket.AF_INET6:
        return IPv6Address(octets)
    return IPv4Address(octets[:4])


def _port(port: int) -> tuple[bytes, bytes]:
    """A port and its mask; 0 is any."""
    return port.to_bytes(2, "big"), b"\xff\xff" if port else b"\0\0"


def _selector(selector: Selector | None) -> tuple[Any, ...]:
    if selector is None:
        # Family 0: the kernel takes the SA's and matches everything.
        return (bytes(16), bytes(16), *_port(0), *_port(0), 0, 0, 0, 0, 0, 0)
    return (
        _address(selector.destination.network_address),
        _address(selector.source.network_address),
        *_port(selector.destination_port),
        *_port(selector.source_port),
        family_of(selector.destination),
        selector.destination.prefixlen,
        selector.source.prefixlen,
        selector.protocol,
        selector.interface,
        0,
    )


def _read_selector(value: tuple[Any, ...], family: int) -> Selector:
    daddr, saddr, dport, dport_mask, sport, sport_mask, own_family = value[:7]
    prefix_d, prefix_s, proto, interface = value[7:11]
    family = own_family or family
    return Selector(
        _network(saddr, prefix_s, family),
        _network(daddr, prefix_d, family),
        proto,
        int.from_bytes(sport, "big") if any(sport_mask) else 0,
        int.from_bytes(dport, "big") if any(dport_mask) else 0,
        interface,
    )


def _network(octets: bytes, prefix: int, family: int) -> Network:
    # Other programs may leave host bits set: strict=False.
    return ip_network((read_address(octets, family), prefix), strict=False)


def _lifetime(lifetime: Lifetime) -> tuple[int, ...]:
    amounts = (
        lifetime.soft_bytes,
        lifetime.hard_bytes,
        lifetime.soft_packets,
        lifetime.hard_packets,
    )
    return (
        *(XFRM_INF if amount is None else amount for amount in amounts),
        lifetime.soft_seconds or 0,
        lifetime.hard_seconds or 0,
        0,
        0,
    )


def _read_lifetime(value: tuple[int, ...]) -> Lifetime:
    # 0 as a limit of octets or packets cannot be asked for here, and stands for no SA worth
    # describing: read as none, like the others.
    amounts = [None if amount in (0, XFRM_INF) else amount for amount in value[:4]]
    soft_seconds, hard_seconds = (
        None if seconds in (0, XFRM_INF) else seconds for seconds in value[4:6]
    )
    return Lifetime(soft_seconds, hard_seconds, *amounts)


def _mode(value: int) -> Mode | int:
    return Mode(value) if value in Mode.__members__.values() else value


# --- security associations ------------------------------------------------------------------


def _algorithm_nla(part: AlgorithmAttribute) -> tuple[str, dict[str, Any]]:
    value: dict[str, Any] = {
        "alg_name": part.name.encode(),
        "alg_key_len": 8 * len(part.key),
        "alg_key": part.key,
    }
    if part.attribute == "XFRMA_ALG_AEAD":
        value["alg_icv_len"] = part.icv_bits
    elif part.attribute == "XFRMA_ALG_AUTH_TRUNC":
        value["alg_trunc_len"] = part.icv_bits
    return part.attribute, value


def _replay_nla(sa: Sa) -> Iterator[tuple[str, Any]]:
    """Sequence numbers and replay window, as far as they are not the struct's defaults.

    A window over 32 needs the long bitmap, also without ESN. What is older than the highest number
    received counts as received.
    """
    high, low = divmod(sa.output_sequence, 1 << 32)
    input_high, input_low = divmod(sa.input_sequence, 1 << 32)
    if not uses_long_replay_state(sa):
        if low or input_low:
            bitmap = 0xFFFFFFFF if input_low else 0
            yield "XFRMA_REPLAY_VAL", {"oseq": low, "seq": input_low, "bitmap": bitmap}
        return
    words = (sa.replay_window + 31) // 32
    head = messages.REPLAY_ESN.pack(words, low, input_low, high, input_high, sa.replay_window)
    bits = b"\xff" if sa.input_sequence else b"\0"
    yield "XFRMA_REPLAY_ESN_VAL", head + 4 * words * bits


def uses_long_replay_state(sa: Sa) -> bool:
    """Whether XFRMA_REPLAY_ESN_VAL must be given, and not usersa_info.replay_window."""
    return sa.esn or sa.replay_window > SHORT_REPLAY_WINDOW


def _mark_nla(mark: Mark | None) -> Iterator[tuple[str, Any]]:
    if mark is not None:
        yield "XFRMA_MARK", messages.MARK.pack(mark.value, mark.mask)


def _interface_nla(if_id: int) -> Iterator[tuple[str, Any]]:
    if if_id:
        yield "XFRMA_IF_ID", if_id


def _output_mark_nla(mark: Mark | None) -> Iterator[tuple[str, Any]]:
    if mark is not None:
        yield "XFRMA_SET_MARK", mark.value
        yield "XFRMA_SET_MARK_MASK", mark.mask


def _usage_nla(usage: Usage | None) -> Iterator[tuple[str, Any]]:
    if usage is not None:
        value = (usage.bytes, usage.packets, usage.added_time, usage.used_time)
        yield "XFRMA_LTIME_VAL", {"curlft": value}


def encode_sa(sa: Sa, message_type: MessageType) -> Any:
    """XFRM_MSG_NEWSA or XFRM_MSG_UPDSA, without a sequence number yet."""
    message = messages.UserSaInfo()
    message["header"]["type"] = message_type
    message["sel"] = _selector(sa.selector)
    message["id"] = _id(sa.key)
    message["saddr"] = _address(sa.source)
    message["lft"] = _lifetime(sa.lifetime)
    message["reqid"] = sa.reqid
    message["family"] = family_of(sa.destination)
    message["mode"] = int(sa.mode)
    message["replay_window"] = 0 if uses_long_replay_state(sa) else sa.replay_window
    message["flags"] = XFRM_STATE_ESN if sa.esn else 0
    message["attrs"] = [
        *(_algorithm_nla(part) for part in sa.algorithm.attributes),
        *_replay_nla(sa),
        *_mark_nla(sa.mark),
        *_interface_nla(sa.if_id),
        *_output_mark_nla(sa.output_mark),
        *_usage_nla(sa.usage),
    ]
    return message


def _id(key: SaKey) -> tuple[bytes, bytes, int]:
    return _address(key.destination), key.spi.to_bytes(4, "big"), key.protocol


def encode_sa_id(key: SaKey, message_type: MessageType) -> Any:
    """XFRM_MSG_GETSA or XFRM_MSG_DELSA."""
    message = messages.UserSaId()
    message["header"]["type"] = message_type
    message["daddr"], message["spi"], message["proto"] = _id(key)
    message["family"] = family_of(key.destination)
    message["attrs"] = [*_mark_nla(key.mark)]
    return message


# In the order that the table of known algorithms has them.
_ALGORITHM_ATTRIBUTES: Final[tuple[tuple[AttributeName, str], ...]] = (
    ("XFRMA_ALG_AEAD", "alg_icv_len"),
    ("XFRMA_ALG_AUTH_TRUNC", "alg_trunc_len"),
    ("XFRMA_ALG_AUTH", ""),
    ("XFRMA_ALG_CRYPT", ""),
    ("XFRMA_ALG_COMP", ""),
)


def _read_algorithm(message: Any) -> Algorithm:
    found: list[AlgorithmAttribute] = []
    for name, icv_field in _ALGORITHM_ATTRIBUTES:
        value = messages.attribute(message, name)
        # The kernel gives XFRMA_ALG_AUTH beside every XFRMA_ALG_AUTH_TRUNC, for old readers.
        if value is None or (name == "XFRMA_ALG_AUTH" and found):
            continue
        key = value["alg_key"][: (value["alg_key_len"] + 7) // 8]
        text = value["alg_name"].split(b"\0")[0].decode("ascii", "replace")
        found.append(AlgorithmAttribute(name, text, key, value[icv_field] if icv_field else 0))
    return from_attributes(tuple(found))


def _read_replay(message: Any) -> tuple[int, int, int]:
    """Window, last sequence number sent, highest received."""
    long_state = messages.attribute(message, "XFRMA_REPLAY_ESN_VAL")
    if long_state is not None:
        _, oseq, seq, oseq_high, seq_high, window = messages.REPLAY_ESN.unpack_from(long_state)
        return window, oseq_high << 32 | oseq, seq_high << 32 | seq
    short_state = messages.attribute(message, "XFRMA_REPLAY_VAL")
    if short_state is None:
        return message["replay_window"], 0, 0
    return message["replay_window"], short_state["oseq"], short_state["seq"]


def read_mark(message: Any) -> Mark | None:
    value = messages.attribute(message, "XFRMA_MARK")
    return None if value is None else Mark(*messages.MARK.unpack_from(value))


def _read_output_mark(message: Any) -> Mark | None:
    value = messages.attribute(message, "XFRMA_SET_MARK")
    if value is None:
        return None
    mask = messages.attribute(message, "XFRMA_SET_MARK_MASK")
    return Mark(value, MAX_MARK if mask is None else mask)


def _read_interface(message: Any) -> int:
    return messages.attribute(message, "XFRMA_IF_ID") or 0


def sa_key_of(message: Any) -> SaKey:
    """The key in a decoded struct xfrm_usersa_info."""
    daddr, spi, proto = message["id"]
    address = read_address(daddr, message["family"])
    return SaKey(address, int.from_bytes(spi, "big"), proto, read_mark(message))


def read_usage(message: Any) -> Usage:
    """In a decoded struct xfrm_usersa_info."""
    return Usage(*message["curlft"])


def read_sa(octets: bytes) -> SaState:
    """A NEWSA message as an answer, from a dump or as a notification."""
    message = messages.decode(messages.UserSaInfo, octets)
    family = message["family"]
    key = sa_key_of(message)
    selector = _read_selector(message["sel"], family)
    window, output_sequence, input_sequence = _read_replay(message)
    algorithm = _read_algorithm(message)
    sa = Sa(
        source=read_address(message["saddr"], family),
        destination=key.destination,
        spi=key.spi,
        mode=_mode(message["mode"]),
        reqid=message["reqid"],
        algorithm=algorithm,
        protocol=key.protocol,
        replay_window=window,
        lifetime=_read_lifetime(message["lft"]),
        selector=None if selector.matches_all else selector,
        esn=bool(message["flags"] & XFRM_STATE_ESN),
        mark=key.mark,
        if_id=_read_interface(message),
        output_mark=_read_output_mark(message),
    )
    octet_count, packets, added, used = message["curlft"]
    # The kernel does not tell an SA's state. ESP and AH never come without an algorithm, except
    # for the larval ones that it made itself.
    larval = key.protocol in (50, 51) and not algorithm.attributes
    return SaState(sa, larval, output_sequence, input_sequence, octet_count, packets, added, used)


def read_deleted_sa(octets: bytes) -> tuple[SaKey, SaState | None]:
    """A DELSA notification: the key, and in attributes all that the kernel had of the SA."""
    message = messages.decode(messages.UserSaId, octets)
    address = read_address(message["daddr"], message["family"])
    spi = int.from_bytes(message["spi"], "big")
    key = SaKey(address, spi, message["proto"], read_mark(message))
    info = messages.attribute(message, "XFRMA_SA")
    if info is None:
        return key, None
    others = octets[messages.NLMSGHDR.size + messages.UserSaId.get_size() :]
    return key, read_sa(messages.with_header(info + others))


# --- policies -------------------------------------------------------------------------------


def _template(template: Template) -> bytes:
    return messages.USER_TMPL.pack(
        _address(template.destination),
        template.spi.to_bytes(4, "big"),
        template.protocol,
        family_of(template.destination),
        _address(template.source),
        template.reqid,
        int(template.mode),
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
        mode=_mode(mode),
        reqid=reqid,
        protocol=proto,
        spi=int.from_bytes(spi, "big"),
        optional=bool(optional),
    )


def encode_policy(policy: Policy, message_type: MessageType) -> Any:
    """XFRM_MSG_NEWPOLICY or XFRM_MSG_UPDPOLICY."""
    message = messages.UserPolicyInfo()
    message["header"]["type"] = message_type
    message["sel"] = _selector(policy.selector)
    message["lft"] = _lifetime(Lifetime())
    message["priority"] = policy.priority
    message["dir"] = int(policy.direction)
    message["action"] = int(policy.action)
    attributes = [*_mark_nla(policy.mark), *_interface_nla(policy.if_id)]
    if policy.templates:
        attributes.append(("XFRMA_TMPL", b"".join(map(_template, policy.templates))))
    message["attrs"] = attributes
    return message


def encode_policy_id(key: PolicyKey, message_type: MessageType) -> Any:
    """XFRM_MSG_GETPOLICY or XFRM_MSG_DELPOLICY."""
    message = messages.UserPolicyId()
    message["header"]["type"] = message_type
    message["sel"] = _selector(key.selector)
    message["dir"] = int(key.direction)
    message["attrs"] = [*_mark_nla(key.mark), *_interface_nla(key.if_id)]
    return message


def policy_key_of(message: Any) -> PolicyKey | None:
    """The key in a decoded struct xfrm_userpolicy_info or _id; None for a per-socket policy.

    Per-socket policies have directions of their own (3 and up) and belong to their sockets.
    """
    if message["dir"] > Direction.FWD:
        return None
    return PolicyKey(
        _read_selector(message["sel"], socket.AF_INET),
        Direction(message["dir"]),
        read_mark(message),
        _read_interface(message),
    )


def read_policy(octets: bytes) -> Policy | None:
    """A NEWPOLICY message; None for a per-socket policy."""
    message = messages.decode(messages.UserPolicyInfo, octets)
    key = policy_key_of(message)
    if key is None:
        return None
    templates = messages.attribute(message, "XFRMA_TMPL") or b""
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


# XFRM_USERPOLICY_BLOCK, XFRM_USERPOLICY_ACCEPT
_DEFAULT_ACTIONS: Final = {PolicyAction.BLOCK: 1, PolicyAction.ALLOW: 2}


def encode_default(default: DefaultPolicy | None) -> Any:
    """XFRM_MSG_SETDEFAULT, or XFRM_MSG_GETDEFAULT where there is nothing to set."""
    message = messages.UserPolicyDefault()
    message["header"]["type"] = (
        MessageType.GETDEFAULT if default is None else MessageType.SETDEFAULT
    )
    if default is not None:
        message["in"] = _DEFAULT_ACTIONS[default.inbound]
        message["fwd"] = _DEFAULT_ACTIONS[default.forwarded]
        message["out"] = _DEFAULT_ACTIONS[default.outbound]
    return message


def read_default(octets: bytes) -> DefaultPolicy:
    """A GETDEFAULT message as an answer or as a notification."""
    message = messages.decode(messages.UserPolicyDefault, octets)
    actions = {number: action for action, number in _DEFAULT_ACTIONS.items()}
    return DefaultPolicy(*(actions[message[name]] for name in ("in", "fwd", "out")))


# --- dumps, and what a transaction puts back ------------------------------------------------


def encode_dump(message_type: MessageType) -> Any:
    """GETSA or GETPOLICY for everything: a bare header."""
    message = messages.Empty()
    message["header"]["type"] = message_type
    return message


def encode_restore(octets: bytes, message_type: MessageType) -> Any:
    """What a GET answered, as a request that makes it so again.

    The kernel's answers use the structs and attributes of the requests, so that sent back as they
    came they restore also what the dataclasses do not show: indexes, marks, sequence numbers.
    """
    message = messages.Raw()
    message["header"]["type"] = message_type
    message["body"] = octets[messages.NLMSGHDR.size :]
    return message
