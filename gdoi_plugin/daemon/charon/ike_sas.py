"""charon's messages about IKE_SAs (README.md of its vici plugin), read for authorisation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_address
from typing import TypeAlias

from gdoi_plugin.daemon.vici_message import Message
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.ike_sas import IkeSa

# Authenticated, and not replaced by another yet.
ESTABLISHED = ("ESTABLISHED", "REKEYING")
EVENTS = ("ike-updown", "ike-rekey", "ike-update", "child-updown")

Change: TypeAlias = IkeSa | str
"""An IKE_SA that is there, or the number of one that is not there any more."""


def listed(message: Message, connections: Collection[str]) -> list[IkeSa]:
    """A message of list-sas; IKE_SAs of other connections are nobody's."""
    sections = _sections(message, connections)
    return [sa for section in sections if (sa := _established(section)) is not None]


def changes(event: str, message: Message, connections: Collection[str]) -> list[Change]:
    """What an event says about IKE_SAs of these connections."""
    found: list[Change] = []
    for section in _sections(message, connections):
        come, gone = section, ""
        old, new = section.get("old"), section.get("new")
        if event == "ike-rekey" and isinstance(old, dict) and isinstance(new, dict):
            come, gone = new, _number(old)
        elif event == "ike-updown" and message.get("up") != "yes":
            come, gone = {}, _number(section)
        elif event == "ike-update":
            # The section still says where the peer was.
            come = {**section, "remote-host": message.get("remote-host", "")}
        # In this order: somebody with an IKE_SA in place of another is never without one.
        found += [sa for sa in [_established(come)] if sa is not None]
        found += [number for number in [gone] if number]
    return found


def _sections(message: Message, connections: Collection[str]) -> Iterator[Message]:
    """A connection's name each, and below it what is said about its IKE_SA."""
    for name, value in message.items():
        if name in connections and isinstance(value, dict):
            yield value


def _number(section: Message) -> str:
    return _text(section, "uniqueid")


def _established(section: Message) -> IkeSa | None:
    number = _number(section)
    if not number or _text(section, "state") not in ESTABLISHED:
        return None
    try:
        host = ip_address(_text(section, "remote-host"))
    except ValueError:
        return None
    # With EAP or XAuth that is who has been authenticated, whatever IDi says.
    authenticated = _text(section, "remote-eap-id") or _text(section, "remote-xauth-id")
    identity = _identity(authenticated or _text(section, "remote-id"))
    return IkeSa(number, host, identity, _text(section, "nat-remote") == "yes")


def _identity(text: str) -> Identity | None:
    """As charon writes it, which is as the configuration does; None for what is neither."""
    try:
        return Identity.parse(text).canonical
    except ValueError:
        return None


def _text(section: Message, key: str) -> str:
    value = section.get(key, "")
    return value if isinstance(value, str) else ""
