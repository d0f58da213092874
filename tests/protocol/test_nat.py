"""NAT detection, RFC 3947 section 3.2, on values computed from its formula by hand."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

import pytest

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.nat import NO_NAT, Detection, Nat, Path
from gdoi_plugin.wire.registry import Hash

CKY_I, CKY_R = b"initiate", b"response"
INSIDE = Peer(ip_address("10.1.0.2"), 848)
MAPPED = Peer(ip_address("192.0.2.1"), 40848)
SERVER = Peer(ip_address("198.51.100.1"), 848)


def detection(local: Peer, remote: Peer, *, forced: bool = False) -> Detection:
    return Detection(Hash.SHA2_256, CKY_I, CKY_R, Path(local, remote), forced)


def told(local: Peer, remote: Peer, *, forced: bool = False) -> list[bytes]:
    return [payload.data for payload in detection(local, remote, forced=forced).payloads()]


@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_the_hash_is_over_cookies_address_and_port(name: str, host: str) -> None:
    remote = Peer(ip_address(host), 848)
    algorithm = Hash[f"SHA2_{name[3:]}"]
    first, second = Detection(algorithm, CKY_I, CKY_R, Path(SERVER, remote)).payloads()
    octets = CKY_I + CKY_R + ip_address(host).packed + b"\x03\x50"
    assert first.data == hashlib.new(name, octets).digest(), "the remote end's comes first"
    octets = CKY_I + CKY_R + bytes([198, 51, 100, 1]) + b"\x03\x50"
    assert second.data == hashlib.new(name, octets).digest()


def test_no_nat() -> None:
    assert detection(SERVER, INSIDE).judge(told(INSIDE, SERVER)) == NO_NAT
    assert not NO_NAT.found
    assert str(NO_NAT) == "none"


def test_a_nat_before_the_initiator() -> None:
    at_server = detection(SERVER, MAPPED).judge(told(INSIDE, SERVER))
    at_member = detection(INSIDE, SERVER).judge(told(SERVER, MAPPED))
    assert at_server == Nat(there=True)
    assert at_member == Nat(here=True)
    assert (str(at_server), str(at_member)) == ("there", "here")


def test_a_port_alone_is_a_nat_too() -> None:
    moved = Peer(INSIDE.host, 1024)
    assert detection(SERVER, moved).judge(told(INSIDE, SERVER)) == Nat(there=True)


def test_a_nat_before_each() -> None:
    outside = Peer(ip_address("203.0.113.9"), 848)
    found = detection(SERVER, MAPPED).judge(told(INSIDE, outside))
    assert found == Nat(here=True, there=True)
    assert str(found) == "here and there"


def test_one_of_many_local_addresses_is_enough() -> None:
    others = [h for i in range(5) for h in told(Peer(INSIDE.host + i, 848), SERVER)[1:]]
    hashes = told(INSIDE, SERVER)[:1] + others
    assert detection(SERVER, INSIDE).judge(hashes) == NO_NAT
    assert detection(SERVER, MAPPED).judge(hashes) == Nat(there=True)


def test_a_forced_end_looks_as_if_behind_a_nat_to_both() -> None:
    assert detection(SERVER, INSIDE).judge(told(INSIDE, SERVER, forced=True)) == Nat(there=True)
    assert detection(INSIDE, SERVER, forced=True).judge(told(SERVER, INSIDE)) == Nat(here=True)


def test_other_cookies_other_hashes() -> None:
    """ "added to the hash to make precomputation attacks [...] impossible"."""
    other = Detection(Hash.SHA2_256, CKY_R, CKY_I, Path(INSIDE, SERVER)).payloads()
    assert not {payload.data for payload in other} & set(told(INSIDE, SERVER))
