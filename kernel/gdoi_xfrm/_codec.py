"""Dataclasses <-> netlink messages. The only place that knows both sides."""

from __future__ import annotations

import socket
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Final

from gdoi_xfrm import _messages as messages
from gdoi_xfrm._algorithms import Algorithm, AlgorithmAttribute, AttributeName, from_attributes
from gdoi_xfrm._types import (
    Address,
    Direction,
    Lifetime,
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
)

XFRM_INF: Final = 2**64 - 1  # "no limit" for octets and packets; 0 would be "expired at once"
ALL_ALGORITHMS: Final = 0xFFFFFFFF
# xfrm_replay_state has a bitmap of 32; a longer window needs XFRMA_REPLAY_ESN_VAL.
SHORT_REPLAY_WINDOW: Final = 32


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
        0,
        0,
    )


def _read_selector(value: tuple[Any, ...], family: int) -> Selector:
    daddr, saddr, dport, dport_mask, sport, sport_mask, own_family, prefix_d, prefix_s, proto = (
        value[:10]
    )
    family = own_family or family
    return Selector(
        _network(saddr, prefix_s, family),
        _network(daddr, prefix_d, family),
        proto,
        int.from_bytes(sport, "big") if any(sport_mask) else 0,
        int.from_bytes(dport, "big") if any(dport_mask) else 0,
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


def _replay_esn_nla(window: int) -> tuple[str, bytes]:
    """A replay window over 32 needs the long bitmap; the SA stays one without ESN."""
    words = (window + 31) // 32
    head = messages.REPLAY_ESN.pack(words, 0, 0, 0, 0, window)
    return "XFRMA_REPLAY_ESN_VAL", head + bytes(4 * words)


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
    attributes: list[tuple[str, Any]] = [_algorithm_nla(part) for part in sa.algorithm.attributes]
    if sa.replay_window > SHORT_REPLAY_WINDOW:
        attributes.append(_replay_esn_nla(sa.replay_window))
    else:
        message["replay_window"] = sa.replay_window
    message["attrs"] = attributes
    return message


def _id(key: SaKey) -> tuple[bytes, bytes, int]:
    return _address(key.destination), key.spi.to_bytes(4, "big"), key.protocol


def encode_sa_id(key: SaKey, message_type: MessageType) -> Any:
    """XFRM_MSG_GETSA or XFRM_MSG_DELSA."""
    message = messages.UserSaId()
    message["header"]["type"] = message_type
    message["daddr"], message["spi"], message["proto"] = _id(key)
    message["family"] = family_of(key.destination)
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


def sa_key_of(message: Any) -> SaKey:
    """The key in a decoded struct xfrm_usersa_info."""
    daddr, spi, proto = message["id"]
    return SaKey(read_address(daddr, message["family"]), int.from_bytes(spi, "big"), proto)


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
    )
    octet_count, packets, added, used = message["curlft"]
    # The kernel does not tell an SA's state. ESP and AH never come without an algorithm, except
    # for the larval ones that it made itself.
    larval = key.protocol in (50, 51) and not algorithm.attributes
    return SaState(sa, larval, output_sequence, input_sequence, octet_count, packets, added, used)


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
    if policy.templates:
        message["attrs"] = [("XFRMA_TMPL", b"".join(map(_template, policy.templates)))]
    return message


def encode_policy_id(key: PolicyKey, message_type: MessageType) -> Any:
    """XFRM_MSG_GETPOLICY or XFRM_MSG_DELPOLICY."""
    message = messages.UserPolicyId()
    message["header"]["type"] = message_type
    message["sel"] = _selector(key.selector)
    message["dir"] = int(key.direction)
    return message


def policy_key_of(message: Any) -> PolicyKey | None:
    """The key in a decoded struct xfrm_userpolicy_info or _id; None for a per-socket policy.

    Per-socket policies have directions of their own (3 and up) and belong to their sockets.
    """
    if message["dir"] > Direction.FWD:
        return None
    return PolicyKey(_read_selector(message["sel"], socket.AF_INET), Direction(message["dir"]))


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
    )


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
