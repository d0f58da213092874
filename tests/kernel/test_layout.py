"""Our octets against pyroute2's for the same message, and any octets against the readers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from gdoi_xfrm import DefaultPolicy, Direction, KernelError, Lifetime, Mark, PolicyAction, Usage
from gdoi_xfrm import _codec as codec
from gdoi_xfrm import _messages as messages
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._layout import Layout, Request, attribute, read_attributes, with_header
from gdoi_xfrm._monitor import _READERS
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.values import CBC, GCM, GROUP, policy, sa, template

SELECTOR = (GROUP[4].packed.ljust(16, b"\0"), bytes(16), *[bytes(2)] * 4, 2, 32, 0, 0, 0, 0)
LIMITS = (2**64 - 1, 7000, 2**64 - 1, 2**64 - 1, 0, 60, 0, 0)
ID = (GROUP[4].packed.ljust(16, b"\0"), b"\0\0\0\7", 50)


def by_pyroute2(kind: type[Any], attributes: list[tuple[str, Any]], **fields: Any) -> bytes:
    """The body that pyroute2 makes of them, padding and all."""
    message = kind()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[16:])


def test_an_sa_as_pyroute2_encodes_it() -> None:
    wanted = sa(
        7,
        CBC,
        replay_window=64,
        esn=True,
        lifetime=Lifetime(hard_seconds=60, hard_bytes=7000),
        selector=policy().selector,
        mark=Mark(1, 3),
        if_id=5,
        output_mark=Mark(8, 12),
        output_sequence=9,
        usage=Usage(1, 2, 3, 4),
    )
    integrity = {"alg_name": b"hmac(sha256)", "alg_key_len": 256, "alg_trunc_len": 128}
    encryption = {"alg_name": b"cbc(aes)", "alg_key_len": 128}
    attributes = [
        ("XFRMA_ALG_AUTH_TRUNC", {**integrity, "alg_key": CBC.integrity_key}),
        ("XFRMA_ALG_CRYPT", {**encryption, "alg_key": CBC.encryption_key}),
        ("XFRMA_MARK", messages.MARK.pack(1, 3)),
        ("XFRMA_SET_MARK", 8),
        ("XFRMA_SET_MARK_MASK", 12),
        ("XFRMA_REPLAY_ESN_VAL", messages.REPLAY_ESN.pack(2, 9, 0, 0, 0, 64) + bytes(8)),
        ("XFRMA_IF_ID", 5),
        ("XFRMA_LTIME_VAL", {"curlft": (1, 2, 3, 4)}),
    ]
    fields = {"sel": SELECTOR, "id": ID, "lft": LIMITS, "reqid": wanted.reqid, "family": 2}
    fields |= {"saddr": bytes(16), "mode": 0, "flags": 128}
    body = by_pyroute2(messages.UserSaInfo, attributes, **fields)
    assert codec.encode_sa(wanted, MessageType.NEWSA).body == body


def test_another_sa_as_pyroute2_encodes_it() -> None:
    wanted = sa(7, GCM, replay_window=32, selector=policy().selector, input_sequence=6)
    aead = {"alg_name": b"rfc4106(gcm(aes))", "alg_key_len": 160, "alg_icv_len": 128}
    attributes = [
        ("XFRMA_ALG_AEAD", {**aead, "alg_key": GCM.key}),
        ("XFRMA_REPLAY_VAL", {"oseq": 0, "seq": 6, "bitmap": 0xFFFFFFFF}),
    ]
    fields: dict[str, Any] = {"sel": SELECTOR, "id": ID, "saddr": bytes(16), "replay_window": 32}
    fields |= {"lft": (2**64 - 1,) * 4 + (0,) * 4, "reqid": wanted.reqid, "family": 2}
    body = by_pyroute2(messages.UserSaInfo, attributes, **fields)
    assert codec.encode_sa(wanted, MessageType.NEWSA).body == body


def test_identifiers_and_policies_as_pyroute2_encodes_them() -> None:
    marked = [("XFRMA_MARK", messages.MARK.pack(1, 3))]
    fields: dict[str, Any] = {"daddr": ID[0], "spi": ID[1], "proto": ID[2], "family": 2}
    body = by_pyroute2(messages.UserSaId, marked, **fields)
    assert codec.encode_sa_id(sa(7, mark=Mark(1, 3)).key, MessageType.GETSA).body == body

    wanted = policy(7, Direction.FWD, mark=Mark(1, 3), action=PolicyAction.BLOCK)
    tmpl = messages.USER_TMPL.pack(bytes(16), ID[1], 50, 2, bytes(16), 0x40000001, *[0] * 3, *ALL)
    attributes = [("XFRMA_TMPL", tmpl), *marked]
    fields = {"sel": SELECTOR, "lft": (2**64 - 1,) * 4 + (0,) * 4, "priority": 1000}
    body = by_pyroute2(messages.UserPolicyInfo, attributes, **fields, dir=2, action=1)
    assert codec.encode_policy(wanted, MessageType.NEWPOLICY).body == body

    body = by_pyroute2(messages.UserPolicyId, marked, sel=SELECTOR, dir=2)
    assert codec.encode_policy_id(wanted.key, MessageType.GETPOLICY).body == body


ALL = (0xFFFFFFFF,) * 3

REQUESTS: list[Request] = [
    codec.encode_sa(sa(7, CBC, replay_window=64, mark=Mark(1)), MessageType.NEWSA),
    codec.encode_sa(sa(7, version=6, selector=policy(version=6).selector), MessageType.UPDSA),
    codec.encode_sa_id(sa(7, mark=Mark(1)).key, MessageType.DELSA),
    codec.encode_policy(policy(7, templates=(template(),) * 6, if_id=1), MessageType.UPDPOLICY),
    codec.encode_policy_id(policy(version=6, if_id=1).key, MessageType.DELPOLICY),
    codec.encode_default(DefaultPolicy()),
]
READERS: list[Callable[[bytes], object]] = [
    codec.read_sa,
    codec.read_deleted_sa,
    codec.read_expired_sa,
    codec.read_flushed_protocol,
    codec.read_policy,
    codec.read_policy_key,
    codec.read_deleted_policy,
    codec.read_expired_policy,
    codec.read_default,
]


def read_all(octets: bytes) -> None:
    """Whatever the octets are, there is a value or a KernelError that says so."""
    for reader in READERS:
        try:
            reader(octets)
        except KernelError as error:
            assert error.errno == errno.EBADMSG  # noqa: PT017  (either is right)
    for event_reader in _READERS.values():
        with suppress(KernelError):
            event_reader(octets, 0)


@given(st.binary(max_size=600))
def test_any_octets(body: bytes) -> None:
    read_all(with_header(body))


@given(st.sampled_from(REQUESTS), st.data())
def test_octets_changed_cut_or_added(request: Request, data: st.DataObject) -> None:
    body = bytearray(request.body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    read_all(with_header(bytes(body[: data.draw(st.integers(0, len(body)))])))
    read_all(with_header(bytes(body) + data.draw(st.binary(max_size=40))))


@pytest.mark.parametrize("octets", [b"", bytes(15), bytes(16), bytes(60)])
def test_less_than_a_struct(octets: bytes) -> None:
    with pytest.raises(KernelError, match="EBADMSG"):
        codec.read_policy(octets)


def test_attributes_of_newer_kernels_are_passed_over() -> None:
    wanted = sa(7, CBC, mark=Mark(1))
    body = codec.encode_sa(wanted, MessageType.NEWSA).body
    newer = attribute(33, b"\1") + attribute(4711, bytes(3000)) + attribute(0, b"")
    octets = with_header(body[:224] + newer + body[224:] + newer)
    assert codec.read_sa(octets).sa == wanted


def test_cut_attributes_and_flags_in_the_type() -> None:
    first, nested = attribute(1, b"a"), attribute(2 | 0x8000, b"bc")
    assert list(read_attributes(first + nested, 0)) == [(1, b"a"), (2, b"bc")]
    for cut in (first + b"\xff\xff\1\0", b"\3\0\1\0", b"\5\0\1\0"):
        with pytest.raises(KernelError, match="a cut attribute"):
            list(read_attributes(cut, 0))


def test_a_request_does_not_show_its_keys() -> None:
    request = codec.encode_sa(sa(7, GCM), MessageType.NEWSA)
    assert repr(request) == "Request(kind=0x10, body=<320 octets>)"


@pytest.mark.parametrize("kind", [messages.UserSaInfo, messages.UserPolicyId, messages.UserExpire])
def test_layouts_are_those_of_the_message_classes(kind: Any) -> None:
    layout = Layout(kind)
    assert layout.size == kind.get_size()
    named = {name for name, fmt in kind.fields if not fmt.endswith("x")}
    assert set(layout.unpack(with_header(bytes(layout.size)))) == named
