"""What ``get-policy`` answers: a group's policy, complete and without a single key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ..crypto.signature import SCHEMES
from ..protocol.group import Group, GroupConfig
from ..protocol.identity_pattern import IdentityList
from ..protocol.iec_tek import IecTek
from ..protocol.policy import AnyTek, Kek, Tek
from ..wire.registry import AckType, name_of

# Of lists that a message may have no room for; what is more is counted.
MAX_NAMED = 1024
_SCHEME_NAMES = {scheme: name for name, scheme in SCHEMES.items()}
Facts = dict[str, Any]


def kek_facts(kek: Kek, seq: int, remaining: float) -> Facts:
    """A Rekey SA. ``remaining`` in seconds."""
    return {
        "spi": kek.name,
        "algorithm": f"aes{8 * len(kek.key)}",
        "signature": _SCHEME_NAMES.get(kek.scheme),
        "source": None if kek.source is None else str(kek.source),
        "destination": None if kek.destination is None else str(kek.destination),
        "port": kek.port,
        "ack": ack_name(kek.ack_type),
        "seq": seq,
        "lifetime": kek.lifetime,
        "remaining": _seconds(remaining),
    }


def ack_name(kind: int | None) -> str:
    if kind is None:
        return "none"
    return name_of(AckType, kind).removeprefix("REKEY_ACK_").replace("_", "-").lower()


def tek_facts(tek: AnyTek, remaining: float) -> Facts:
    """A data-security SA, of the kernel's or of an application's."""
    if isinstance(tek, IecTek):
        facts: Facts = {
            "oid": tek.selector.dotted,
            "payload": tek.selector.payload.hex() or None,
            "auth": tek.suite.auth,
            "conf": tek.suite.conf,
            "sa-atd": tek.sa_atd,
            "sa-kda": tek.sa_kda,
        }
    else:
        facts = _flow_facts(tek)
    return {**facts, "lifetime": tek.lifetime, "remaining": _seconds(remaining)}


def _flow_facts(tek: Tek) -> Facts:
    flow = tek.flow
    ports = bool(flow.source_port or flow.destination_port)
    tunnel = tek.mode.name == "TUNNEL"
    return {
        "source": str(flow.source or "any"),
        "destination": str(flow.destination),
        "protocol": flow.protocol or None,
        "source-port": flow.source_port if ports else None,
        "destination-port": flow.destination_port if ports else None,
        "mode": tek.mode.name.lower(),
        "algorithm": tek.suite.keyword,
        "direction": tek.direction.name.lower().replace("_", "-"),
        "address-preservation": _preserved(tek) if tunnel else None,
        "esn": tek.esn,
        "lifetime-kilobytes": tek.lifetime_kilobytes,
    }


def _preserved(tek: Tek) -> str:
    return tek.preservation.name.lower().replace("_", "-")


def named(texts: Iterable[str], count: int) -> Sequence[str]:
    """The first of them, and how many more there are."""
    first = list(islice(texts, MAX_NAMED))
    return first if count <= len(first) else [*first, f"{count - len(first)} more"]


def config_facts(config: GroupConfig) -> Facts:
    """What the operator of the key server wants of a group."""
    return {
        "transport": str(config.transport),
        "rekey-address": None if config.rekey_address is None else str(config.rekey_address),
        "rekey-port": config.rekey_port,
        "kek-lifetime": config.kek_lifetime,
        "key-management": "none" if config.lkh is None else "lkh",
        "rekey-on-join": None if config.lkh is None else config.lkh.rekey_on_join,
        "ack": ack_name(config.ack),
        "ack-wait": config.ack_wait,
        "ack-l": list(config.ack_l) or None,
        "ack-exempt": _patterns(config.ack_exempt) or None,
        "retransmissions": config.retransmissions,
        "pace": config.pace,
        "push-limit": config.push_limit,
        "batch": config.batch,
        "activation-delay": config.activation_delay,
        "deactivation-delay": config.deactivation_delay,
        "sid-bits": config.sid_bits,
        "sender-ids-limit": config.sender_ids_limit,
        "silence": {
            "log": config.silence.log,
            "alert": config.silence.alert,
            "reminder": config.silence.reminder,
            "evict": config.silence.evict,
        },
        "members": _patterns(config.members),
    }


def _patterns(members: object) -> Sequence[str]:
    patterns = members.patterns if isinstance(members, IdentityList) else ()
    return named(map(str, patterns), len(patterns))


def group_facts(group: Group, now: float) -> Mapping[str, Any]:
    """At the key server: what is wanted, and the SAs that there are."""
    denied = sorted(str(identity) for identity in group.denied)
    return {
        "group": group.config.name,
        "id": str(group.config.group_id),
        "epoch": group.epoch,
        **config_facts(group.config),
        "denied": named(denied, len(denied)) or None,
        "rekey-sas": {
            sa.kek.kek.name: kek_facts(sa.kek.kek, sa.kek.seq, sa.kek.expires - now)
            for sa in group.sas
        },
        "data-sas": {
            held.tek.name: {
                **tek_facts(held.tek, held.expires - now),
                "state": "current" if held.retire_at is None else "retiring",
            }
            for held in group.teks
        },
    }


def _seconds(remaining: float) -> int | None:
    return None if remaining == math.inf else int(remaining)
