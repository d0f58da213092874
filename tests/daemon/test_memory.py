"""What outlives the agent, and the machine's reboot."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from gdoi_xfrm import DefaultPolicy, Direction, PolicyAction, Selector

from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.memory import MAX_FLOWS, Memory
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.policy import Flow
from tests.daemon.teks import flow

VIDEO, AUDIO = flow(), flow("192.0.2.0/24", "ff18::1", protocol=17, destination_port=5000)


def flows(memory: Memory) -> list[Flow]:
    return [one for known in memory.groups.values() for one in known]


def memory(folder: Path, *groups: str) -> Memory:
    return Memory(StateDirectory(folder), groups)


def test_nothing_yet(tmp_path: Path) -> None:
    fresh = memory(tmp_path, "video")
    assert (flows(fresh), fresh.default) == ([], None)


def test_flows_and_default_are_there_again(tmp_path: Path) -> None:
    first = memory(tmp_path, "video", "audio")
    first.add("video", [VIDEO])
    first.add("audio", [AUDIO])
    former = DefaultPolicy(forwarded=PolicyAction.BLOCK)
    first.keep_default(former)
    assert (tmp_path / "_guard.json").stat().st_mode & 0o777 == 0o600
    again = memory(tmp_path, "video", "audio")
    assert (flows(again), again.default) == ([VIDEO, AUDIO], former)
    again.keep_default(None)
    assert memory(tmp_path, "video", "audio").default is None


def test_exceptions_are_there_again(tmp_path: Path) -> None:
    first = memory(tmp_path)
    assert first.bypass == frozenset()
    narrow = Selector(
        ip_network("192.0.2.0/24"), ip_network("239.1.0.0/16"), 17, destination_port=5000
    )
    both = frozenset({(narrow, Direction.IN), (narrow, Direction.OUT)})
    first.keep_bypass(both)
    assert memory(tmp_path).bypass == both


def test_chains_are_there_again(tmp_path: Path) -> None:
    first = memory(tmp_path, "video")
    both = frozenset({("iptables-legacy", 0x40000007), ("iptables", 0x40000008)})
    first.keep_chains(both)
    first.add("video", [VIDEO])
    assert memory(tmp_path).chains == both
    first.keep_chains(frozenset())
    assert (memory(tmp_path).chains, flows(memory(tmp_path, "video"))) == (frozenset(), [VIDEO])


def test_a_group_that_is_configured_no_more_is_forgotten(tmp_path: Path) -> None:
    first = memory(tmp_path, "video", "audio")
    first.add("video", [VIDEO])
    first.add("audio", [AUDIO])
    memory(tmp_path, "audio").add("audio", [VIDEO])
    assert flows(memory(tmp_path, "video", "audio")) == [AUDIO, VIDEO]


def test_known_flows_are_not_written_again(tmp_path: Path) -> None:
    first = memory(tmp_path, "video")
    first.add("video", [VIDEO, AUDIO])
    (tmp_path / "_guard.json").unlink()
    first.add("video", [AUDIO, VIDEO])
    assert not (tmp_path / "_guard.json").exists()


def test_none_is_forgotten_for_another(tmp_path: Path) -> None:
    """Not even when there are as many as there may be: only those that are blocked anyway."""
    first = memory(tmp_path, "video", "audio")
    several = [flow(protocol=17, destination_port=port + 1) for port in range(MAX_FLOWS)]
    first.add("video", several)
    first.add("video", several[:7])
    for again in (first, memory(tmp_path, "video", "audio")):
        assert flows(again) == several
        with pytest.raises(ValueError, match=f"group video has had {MAX_FLOWS} .*member.protect"):
            again.add("video", [several[0], VIDEO], lambda one: one == AUDIO)
        assert flows(again) == several
        again.add("audio", [VIDEO])
    first.add("video", [VIDEO], lambda one: one == several[1])
    assert flows(first) == [several[0], *several[2:], VIDEO, VIDEO]


def test_what_cannot_be_saved_is_not_held(tmp_path: Path) -> None:
    first = memory(tmp_path, "video")
    (tmp_path / "_guard.json").mkdir()
    with pytest.raises(StoreError, match=r"_guard\.json"):
        first.add("video", [VIDEO])
    with pytest.raises(StoreError, match=r"_guard\.json"):
        first.keep_default(DefaultPolicy())
    assert (flows(first), first.default) == ([], None)


@pytest.mark.parametrize(
    "document",
    [
        {"groups": []},
        {"groups": {"video": 7}},
        {"groups": {"video": [{}]}},
        {"groups": {"video": [{"source": None, "destination": 7}]}},
        {"default": "accept"},
        {"bypass": [{"source": "0.0.0.0/0"}]},
        {"chains": [["/tmp/iptables", 7]]},
        {"default": {"inbound": "ALLOW", "outbound": "ALLOW"}},
        {"default": {"inbound": 0, "forwarded": "ALLOW", "outbound": "ALLOW"}},
    ],
)
def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path, document: Any) -> None:
    """Whoever took it for empty would let pass in clear what it blocks."""
    (tmp_path / "_guard.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"_guard\.json: .*remove it"):
        memory(tmp_path, "video")
