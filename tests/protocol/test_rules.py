"""The tables of payloads: what is missing, too many or out of place is named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gdoi_plugin.protocol import rules
from gdoi_plugin.protocol.rules import Rule
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.message import Message
from gdoi_plugin.wire.payload import Payload
from gdoi_plugin.wire.registry import ExchangeType, Flags, PayloadType

P = PayloadType


def message(kinds: Sequence[int], flags: int) -> Message:
    header = Header(b"i" * 8, b"r" * 8, kinds[0], ExchangeType.GROUPKEY_PULL, flags)
    return Message(header, tuple(Payload(k, bytes(4), 28 + 4 * i) for i, k in enumerate(kinds)))


ALL_RULES = [*rules.MAIN_MODE.values(), *rules.PULL.values(), rules.PUSH, rules.PUSH_ACK]
ALL_RULES.append(rules.INFORMATIONAL)


def full(rule: Rule) -> list[int]:
    return [slot.kind for slot in rule.slots]


def flags_of(rule: Rule) -> Flags:
    return Flags.ENCRYPTION if rule.encrypted else Flags.NONE


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda r: r.name)
def test_every_message_as_drawn(rule: Rule) -> None:
    rules.check(rule, message(full(rule), flags_of(rule)))
    required = [slot.kind for slot in rule.slots if slot.minimum]
    rules.check(rule, message(required, flags_of(rule)))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("flags", range(8))
def test_flags_are_exactly_those(rule: Rule, flags: int) -> None:
    if flags != flags_of(rule):
        with pytest.raises(DecodeError, match="flags 0x0"):
            rules.check(rule, message(full(rule), flags))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda r: r.name)
def test_missing_payload_is_named(rule: Rule) -> None:
    for index, slot in enumerate(rule.slots):
        kinds = full(rule)
        del kinds[index]
        if slot.minimum and kinds:
            with pytest.raises(DecodeError, match=slot.kind.name):
                rules.check(rule, message(kinds, flags_of(rule)))


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda r: r.name)
def test_payload_twice(rule: Rule) -> None:
    for index, slot in enumerate(rule.slots):
        if slot.maximum == 1:
            kinds = full(rule)
            kinds.insert(index, slot.kind)
            with pytest.raises(DecodeError):
                rules.check(rule, message(kinds, flags_of(rule)))


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if r.ordered], ids=lambda r: r.name)
def test_order_and_strangers_in_gdois_own_messages(rule: Rule) -> None:
    kinds = full(rule)
    with pytest.raises(DecodeError):
        rules.check(rule, message(kinds[::-1] if len(kinds) > 1 else [P.SIG], flags_of(rule)))
    with pytest.raises(DecodeError, match="VENDOR_ID has no place here"):
        rules.check(rule, message([*kinds, P.VENDOR_ID], flags_of(rule)))
    with pytest.raises(DecodeError, match="200 "):
        rules.check(rule, message([*kinds, 200], flags_of(rule)))


def test_strangers_are_ignored_in_main_mode_but_sa_comes_first() -> None:
    for number, rule in rules.MAIN_MODE.items():
        strangers = [P.VENDOR_ID, 200, P.NOTIFY]
        rules.check(rule, message([*full(rule), *strangers], flags_of(rule)))
        if number <= 2:
            with pytest.raises(DecodeError, match="SA must come first"):
                rules.check(rule, message([*strangers, *full(rule)], flags_of(rule)))


def test_several_deletes_in_a_push() -> None:
    kinds = [P.SEQ, P.DELETE, P.DELETE, P.SIG]
    rules.check(rules.PUSH, message(kinds, Flags.ENCRYPTION))


def test_hash_comes_first_in_an_informational_exchange() -> None:
    with pytest.raises(DecodeError, match="HASH must come first"):
        rules.check(rules.INFORMATIONAL, message([P.NOTIFY, P.HASH], Flags.ENCRYPTION))
