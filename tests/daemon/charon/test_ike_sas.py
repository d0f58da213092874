"""What charon's messages about IKE_SAs say for authorisation; they are as charon 5.9 sends them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gdoi_plugin.daemon.charon.ike_sas import Change, changes, listed
from gdoi_plugin.daemon.vici_message import Message
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.ike_sas import IkeSa

HOST = ip_address("192.0.2.2")
GM1 = Identity.parse("gm1.example.org")


def section(number: str = "1", state: str = "ESTABLISHED", **more: str) -> Message:
    said: Message = {
        "uniqueid": number,
        "version": "2",
        "state": state,
        "local-host": "192.0.2.1",
        "remote-host": "192.0.2.2",
        "remote-port": "4500",
        "remote-id": "GM1.example.org",
        "tasks-passive": ["IKE_ESTABLISH"],
        "child-sas": {},
    }
    return said | {key.replace("_", "-"): value for key, value in more.items()}


def test_an_ike_sa_that_is_listed() -> None:
    assert listed({"members": section()}, {"members"}) == [IkeSa("1", HOST, GM1)]
    there = section(state="REKEYING", remote_host="2001:db8::2", nat_remote="yes")
    assert listed({"members": there}, {"members"}) == [
        IkeSa("1", ip_address("2001:db8::2"), GM1, True)
    ]


@pytest.mark.parametrize(
    "state", ["CREATED", "CONNECTING", "PASSIVE", "REKEYED", "DELETING", "DESTROYING", ""]
)
def test_one_that_is_not_authenticated_or_not_any_more(state: str) -> None:
    assert listed({"members": section(state=state)}, {"members"}) == []


@pytest.mark.parametrize(
    ("said", "identity"),
    [
        ({"remote_id": "192.0.2.2"}, "192.0.2.2"),
        ({"remote_id": "gm1@Example.org"}, "gm1@example.org"),
        ({"remote_id": "C=CH, O=Example, CN=gm1"}, "C=CH, O=Example, CN=gm1"),
        # IDi is what the peer says, the other what it has proved.
        ({"remote_id": "gcks.example.org", "remote_eap_id": "carol"}, "carol"),
        ({"remote_id": "192.0.2.2", "remote_xauth_id": "dave"}, "dave"),
        ({"remote_id": "C=CH, O=Ex, ample, CN=gm1"}, None),
        ({"remote_id": "two words"}, None),
        ({"remote_id": ""}, None),
        ({"remote_id": "CN=\udcff"}, None),
    ],
)
def test_who_it_is_with(said: dict[str, str], identity: str | None) -> None:
    (sa,) = listed({"members": section(**said)}, {"members"})
    assert sa.identity == (None if identity is None else Identity.parse(identity).canonical)


def test_those_of_other_connections_are_nobodys() -> None:
    """Their peers may be free to call themselves what they like."""
    both: Message = {"supplier": section("2"), "members": section()}
    assert listed(both, {"members"}) == [IkeSa("1", HOST, GM1)]
    assert listed({"supplier": section()}, {"members"}) == []


@pytest.mark.parametrize("said", [{"remote_host": "%any"}, {"uniqueid": ""}, {"remote_host": ""}])
def test_without_number_or_address_it_is_none(said: dict[str, str]) -> None:
    assert listed({"members": section(**said)}, {"members"}) == []
    assert listed({"members": "text", "others": {}, "list": ["a"]}, {"members"}) == []


HERE, MOVED = IkeSa("1", HOST, GM1), IkeSa("1", ip_address("192.0.2.7"), GM1)


@pytest.mark.parametrize(
    ("event", "message", "expected"),
    [
        ("ike-updown", {"up": "yes", "members": section()}, [HERE]),
        ("ike-updown", {"members": section(state="DELETING")}, ["1"]),
        ("ike-updown", {"members": section()}, ["1"]),
        (
            "ike-rekey",
            {"members": {"old": section(state="REKEYING"), "new": section("2")}},
            [IkeSa("2", HOST, GM1), "1"],
        ),
        (
            "ike-update",
            {"remote-host": "192.0.2.7", "remote-port": "4500", "members": section()},
            [MOVED],
        ),
        ("ike-update", {"remote-host": "192.0.2.2", "x": section(state="CONNECTING")}, []),
        ("child-updown", {"up": "yes", "members": section()}, [HERE]),
        ("child-updown", {"members": section()}, [HERE]),
        ("ike-updown", {"up": "yes", "supplier": section()}, []),
        ("child-updown", {"up": "yes", "supplier": section()}, []),
        ("ike-rekey", {"supplier": {"old": section(), "new": section("2")}}, []),
        ("ike-updown", {}, []),
        ("ike-rekey", {"members": {"old": "text"}}, []),
    ],
)
def test_events(event: str, message: Message, expected: list[Change]) -> None:
    assert changes(event, message, {"members"}) == expected
