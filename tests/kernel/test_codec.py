"""Encodings against the C structs of <linux/xfrm.h>, written down here a second time."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from gdoi_xfrm import (
    MAX_PACKETS_PER_SECOND,
    AlgorithmAttribute,
    CbcHmac,
    DefaultPolicy,
    Direction,
    Integrity,
    Lifetime,
    Mark,
    Mode,
    OtherAlgorithm,
    PolicyAction,
    Selector,
    Usage,
)
from gdoi_xfrm import _codec as codec
from gdoi_xfrm import _messages as messages
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._layout import Request, with_header

from tests.kernel.values import CBC, CHACHA, EVERYWHERE, GCM, GMAC, policy, sa, template

HEADER = 16
CMAC = OtherAlgorithm((AlgorithmAttribute("XFRMA_ALG_AUTH_TRUNC", "cmac(aes)", bytes(16), 96),))
INF = 2**64 - 1


def encoded(message: Request) -> bytes:
    """A request as a message, with a header as the kernel's answers have."""
    return with_header(message.body, message.kind)


def attributes(octets: bytes) -> dict[int, bytes]:
    found = {}
    while octets:
        length, kind = struct.unpack_from("HH", octets)
        found[kind] = octets[4:length]
        octets = octets[(length + 3) & ~3 :]
    return found


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (messages.UserSaInfo, 224),
        (messages.UserSaId, 24),
        (messages.UserExpire, 232),
        (messages.UserPolicyInfo, 168),
        (messages.UserPolicyId, 64),
        (messages.UserPolExpire, 176),
    ],
)
def test_structs_have_the_kernel_s_sizes(kind: Any, size: int) -> None:
    assert kind.get_size() == size


@pytest.mark.parametrize(
    ("fmt", "size"),
    [
        (messages.SELECTOR, 56),
        (messages.ID, 24),
        (messages.LIFETIME_CFG, 64),
        (messages.LIFETIME_CUR, 32),
        (messages.USER_TMPL.format, 64),
        (messages.REPLAY_ESN.format, 24),
    ],
)
def test_parts_have_the_kernel_s_sizes(fmt: str, size: int) -> None:
    assert struct.calcsize(fmt) == size


def test_newsa_octet_by_octet() -> None:
    wanted = sa(
        0xDEADBEEF,
        replay_window=32,
        lifetime=Lifetime(soft_seconds=50, hard_seconds=60, hard_bytes=7000),
        selector=Selector(ip_network("10.0.0.1/32"), ip_network("239.1.1.1/32"), 17, 5000, 6000, 9),
    )
    octets = encoded(codec.encode_sa(wanted, MessageType.NEWSA))
    assert struct.unpack_from("IH", octets) == (len(octets), 0x10)
    body = octets[HEADER:]
    selector = bytes([239, 1, 1, 1, *[0] * 12, 10, 0, 0, 1, *[0] * 12])
    selector += bytes.fromhex("1770 ffff 1388 ffff") + struct.pack("HBBB", 2, 32, 32, 17)
    assert body[:56] == selector + bytes(3) + struct.pack("iI", 9, 0)
    assert body[56:80] == bytes([239, 1, 1, 1, *[0] * 12]) + b"\xde\xad\xbe\xef\x32\0\0\0"
    assert body[80:96] == bytes(16)
    # soft and hard bytes, soft and hard packets, soft and hard seconds since added, since used
    assert struct.unpack_from("8Q", body, 96) == (INF, 7000, INF, INF, 50, 60, 0, 0)
    assert body[160:204] == bytes(44)
    assert struct.unpack_from("IIHBBB", body, 204) == (0, 0x40000001, 2, 0, 32, 0)
    assert attributes(body[224:]) == {
        18: struct.pack("64sII", b"rfc4106(gcm(aes))", 160, 128) + GCM.key
    }


def test_cbc_uses_the_truncated_authentication_attribute() -> None:
    body = encoded(codec.encode_sa(sa(1, CBC), MessageType.NEWSA))[HEADER:]
    assert attributes(body[224:]) == {
        20: struct.pack("64sII", b"hmac(sha256)", 256, 128) + CBC.integrity_key,
        2: struct.pack("64sI", b"cbc(aes)", 128) + CBC.encryption_key,
    }


def test_a_long_replay_window_goes_into_its_own_attribute() -> None:
    body = encoded(codec.encode_sa(sa(1, replay_window=100), MessageType.NEWSA))[HEADER:]
    assert body[215:217] == bytes(2)  # usersa_info.replay_window, flags
    assert attributes(body[224:])[23] == struct.pack("6I4I", 4, 0, 0, 0, 0, 100, 0, 0, 0, 0)


def test_extended_sequence_numbers() -> None:
    wanted = sa(1, esn=True, replay_window=32, output_sequence=(5 << 32) + 6, input_sequence=7)
    body = encoded(codec.encode_sa(wanted, MessageType.NEWSA))[HEADER:]
    assert body[215:217] == bytes([0, 128])  # replay_window, flags: XFRM_STATE_ESN
    # bmp_len, oseq, seq, oseq_hi, seq_hi, replay_window, bitmap: what is older was received
    assert attributes(body[224:])[23] == struct.pack("6II", 1, 6, 7, 5, 0, 32, 0xFFFFFFFF)


def test_where_an_sa_goes_on() -> None:
    wanted = sa(1, replay_window=32, output_sequence=9, input_sequence=8, usage=Usage(1, 2, 3, 4))
    body = encoded(codec.encode_sa(wanted, MessageType.NEWSA))[HEADER:]
    found = attributes(body[224:])
    assert found[10] == struct.pack("3I", 9, 8, 0xFFFFFFFF)
    assert found[9] == struct.pack("4Q", 1, 2, 3, 4)
    only_sent = encoded(codec.encode_sa(sa(1, output_sequence=9), MessageType.NEWSA))[HEADER:]
    assert attributes(only_sent[224:])[10] == struct.pack("3I", 9, 0, 0)


def test_marks_and_interfaces() -> None:
    wanted = sa(1, mark=Mark(1, 3), if_id=5, output_mark=Mark(8, 12))
    body = encoded(codec.encode_sa(wanted, MessageType.NEWSA))[HEADER:]
    found = attributes(body[224:])
    assert {kind: found[kind] for kind in (21, 29, 30, 31)} == {
        21: struct.pack("II", 1, 3),
        29: struct.pack("I", 8),
        30: struct.pack("I", 12),
        31: struct.pack("I", 5),
    }
    body = encoded(codec.encode_sa_id(wanted.key, MessageType.GETSA))[HEADER:]
    assert attributes(body[24:]) == {21: struct.pack("II", 1, 3)}
    key = policy(mark=Mark(1, 3), if_id=5).key
    body = encoded(codec.encode_policy_id(key, MessageType.GETPOLICY))[HEADER:]
    assert attributes(body[64:]) == {21: struct.pack("II", 1, 3), 31: struct.pack("I", 5)}


def test_default_policies() -> None:
    block, allow = PolicyAction.BLOCK, PolicyAction.ALLOW
    octets = encoded(codec.encode_default(DefaultPolicy(block, allow, block)))
    assert struct.unpack_from("IH", octets) == (19, 0x27)
    assert octets[HEADER:] == bytes([1, 2, 1])
    assert codec.read_default(octets) == DefaultPolicy(block, allow, block)
    asked = encoded(codec.encode_default(None))
    assert struct.unpack_from("IH", asked) == (19, 0x28)


def test_a_deletion_says_what_was_deleted() -> None:
    wanted = sa(0x1234, CBC, replay_window=64, mark=Mark(1), output_sequence=3, input_sequence=4)
    info = encoded(codec.encode_sa(wanted, MessageType.NEWSA))[HEADER:]
    body = encoded(codec.encode_sa_id(wanted.key, MessageType.DELSA))[HEADER : HEADER + 24]
    notification = with_header(body + struct.pack("HH", 228, 6) + info)
    key, state = codec.read_deleted_sa(notification)
    assert (key, state and state.sa) == (wanted.key, wanted)
    assert state is not None
    assert (state.output_sequence, state.input_sequence) == (3, 4)
    assert codec.read_deleted_sa(with_header(body)) == (sa(0x1234).key, None)


def test_updpolicy_octet_by_octet() -> None:
    octets = encoded(codec.encode_policy(policy(0xDEADBEEF), MessageType.UPDPOLICY))
    assert struct.unpack_from("IH", octets) == (len(octets), 0x19)
    body = octets[HEADER:]
    assert struct.unpack_from("HBBB", body, 40) == (2, 32, 0, 0)
    assert struct.unpack_from("8Q", body, 56) == (INF, INF, INF, INF, 0, 0, 0, 0)
    assert struct.unpack_from("IIBBBB", body, 152) == (1000, 0, Direction.OUT, 0, 0, 0)
    wanted = bytes(16) + b"\xde\xad\xbe\xef\x32\0\0\0" + struct.pack("HH", 2, 0) + bytes(16)
    wanted += struct.pack("IBBBx", 0x40000001, 0, 0, 0) + b"\xff" * 12
    assert attributes(body[168:]) == {5: wanted}


def test_identifiers() -> None:
    body = encoded(codec.encode_sa_id(sa(0x01020304, version=6).key, MessageType.GETSA))[HEADER:]
    address = ip_address("ff05::1:1").packed
    assert body == address + bytes([1, 2, 3, 4]) + struct.pack("HBx", 10, 50)
    octets = encoded(codec.encode_policy_id(policy(direction=Direction.IN).key, MessageType(0x14)))
    assert len(octets) == HEADER + 64
    assert octets[HEADER + 56 :] == bytes(8)


def test_a_dump_request_is_a_bare_header() -> None:
    assert len(encoded(codec.encode_dump(MessageType.GETSA))) == HEADER


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"algorithm": CBC},
        {"algorithm": CbcHmac(bytes(32), bytes(64), Integrity.HMAC_SHA2_512)},
        {"algorithm": CHACHA},
        {"selector": Selector(EVERYWHERE[4], EVERYWHERE[4], interface=2)},
        {"algorithm": GMAC, "esn": True, "replay_window": 1},
        {"mark": Mark(7, 0xFF), "if_id": 8, "output_mark": Mark(9, 0xFFFF)},
        {"mode": Mode.TUNNEL, "replay_window": 32},
        {"replay_window": 4096},
        {"lifetime": Lifetime(1, 2, 3, 4, 5, 6)},
        {"protocol": 51, "algorithm": CMAC},
    ],
)
def test_sa_round_trip(version: int, changed: dict[str, Any]) -> None:
    wanted = sa(0x1234, version=version, **changed)
    state = codec.read_sa(encoded(codec.encode_sa(wanted, MessageType.NEWSA)))
    assert state.sa == wanted
    assert not state.larval


def test_an_sa_without_algorithm_is_larval() -> None:
    larval = sa(0x1234, OtherAlgorithm())
    assert codec.read_sa(encoded(codec.encode_sa(larval, MessageType.NEWSA))).larval


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"action": PolicyAction.BLOCK, "templates": ()},
        {"templates": (template(5, optional=True), template(6, protocol=51))},
        {"direction": Direction.FWD, "priority": 2**32 - 1},
        {"mark": Mark(0, 0xFF), "if_id": 2**32 - 1},
    ],
)
def test_policy_round_trip(version: int, changed: dict[str, Any]) -> None:
    wanted = policy(0x1234, version=version, **changed)
    assert codec.read_policy(encoded(codec.encode_policy(wanted, MessageType.NEWPOLICY))) == wanted


def test_restoring_sends_back_what_was_read() -> None:
    read = encoded(codec.encode_policy(policy(7), MessageType.NEWPOLICY))
    again = encoded(codec.encode_restore(read, MessageType.UPDPOLICY))
    assert again[HEADER:] == read[HEADER:]
    assert struct.unpack_from("IH", again) == (len(read), 0x19)


@pytest.mark.parametrize("sent", [0, 42, 2**32 - 2])
@pytest.mark.parametrize(("window", "esn"), [(0, False), (32, False), (64, False), (64, True)])
def test_an_sa_that_is_added_again_sends_no_number_twice(
    sent: int, window: int, *, esn: bool
) -> None:
    wanted = sa(5, replay_window=window, esn=esn, output_sequence=sent, input_sequence=7)
    read = encoded(codec.encode_sa(wanted, MessageType.NEWSA))
    again = codec.read_sa(encoded(codec.encode_restore(read, MessageType.NEWSA, 0.5)))
    most = 2**64 - 1 if esn else 2**32 - 1
    assert again.output_sequence == min(sent + MAX_PACKETS_PER_SECOND // 2, most)
    assert (again.sa, again.input_sequence) == (wanted, 7)
    exact = codec.read_sa(encoded(codec.encode_restore(read, MessageType.NEWSA)))
    assert exact.output_sequence == sent
