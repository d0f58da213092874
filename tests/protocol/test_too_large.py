"""Messages that no datagram holds: refused in words that name the group and count the octets."""

from __future__ import annotations

from gdoi_plugin.protocol.actions import Event
from gdoi_plugin.protocol.policy import Flow
from gdoi_plugin.protocol.suites import TEK_SUITES
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.worlds import FLOW, GROUP_ID, group_config, registered, wired

SUITE = TEK_SUITES["aes256-sha256"]


def teks(count: int) -> tuple[TekConfig, ...]:
    return tuple(TekConfig(Flow(None, FLOW.destination + i), SUITE) for i in range(count))


def test_policy_that_does_not_fit_message_2_is_not_offered() -> None:
    wire, world = wired(group=group_config(teks=teks(1500)))
    world.start()
    wire.settle()
    (told,) = world.server.events("message-too-large")
    assert (told.level, told.fields["group"], told.fields["message"]) == (
        "error",
        "g",
        "GROUPKEY-PULL 2",
    )
    assert str(told.fields["error"]).startswith("SA payload of ")
    assert str(told.fields["error"]).endswith(" octets, 65535 fit")
    (failed,) = world.member.events("registration-failed")
    assert "key server answered NO_PROPOSAL_CHOSEN" in str(failed.fields["error"])
    assert world.group.members == {}


def test_rekey_that_does_not_fit_is_not_sent_and_missed_by_all() -> None:
    wire, world = registered()
    # 600 SATs with their keys in one message: each payload fits, the message does not.
    world.group.config = group_config(teks=teks(600), push_limit=1 << 20)
    world.server.actions.clear()
    wire.sent.clear()
    world.rekey()
    wire.settle()
    assert world.datagrams(ExchangeType.GROUPKEY_PUSH) == []
    names = [a.name for a in world.server.actions if isinstance(a, Event)]
    assert names == ["message-too-large", "ack-missing", "rekey-closed"]
    told = world.server.events("message-too-large")[0].fields
    assert told["message"] == "GROUPKEY-PUSH"
    assert "GROUPKEY-PUSH message of " in str(told["error"])
    assert "65503 fit a UDP datagram" in str(told["error"])
    assert world.server.engine.groups
    world.server.do(world.server.engine.tick(world.now + 3600))
    assert world.server.store.rows("rekey", GROUP_ID)[-1]["closed"]
