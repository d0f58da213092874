"""Whose IKE_SAs are ended; with real charons what is asked of them is in tests/interop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

from gdoi_plugin.daemon.charon.authorising import IkeWatch
from gdoi_plugin.protocol.actions import Action, Event
from gdoi_plugin.protocol.authorising import NOT_ASKED, IkeAuthority
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.ike_sas import IkeSa

PATIENCE = 60.0
A, B = (Identity.parse(f"{name}.example.org") for name in "ab")
SAS = [IkeSa(number, ip_address(f"192.0.2.{number}"), of) for number, of in (("1", A), ("2", B))]


class Told(list[Event]):
    def __call__(self, actions: Sequence[Action]) -> None:
        self += [action for action in actions if isinstance(action, Event)]

    def about(self, name: str) -> list[object]:
        return [event.fields["identity"] for event in self if event.name == name]


async def until(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def test_who_is_readmitted_before_charon_is_back_keeps_the_ike_sa(tmp_path: Path) -> None:
    """There is no charon to end the others': that is told, and tried again."""

    async def scenario() -> None:
        authority, told = IkeAuthority({}), Told()
        watch = IkeWatch(tmp_path / "vici", ["members"], authority, lambda: 0.0, told)
        authority.lose("it hangs")
        watch.end([A, B])
        watch.keep([A])
        authority.take(SAS, 0.0, 0.0)
        working = asyncio.create_task(watch._end())
        await until(lambda: told)
        assert told.about("ike-not-terminated") == [str(B)]
        # While one is being ended, too.
        told.clear()
        watch.end([A])
        watch.keep([A, B])
        watch.end([B])
        await until(lambda: told)
        assert told.about("ike-not-terminated") == [str(B)]
        working.cancel()

    asyncio.run(scenario())


def test_nobody_is_vouched_for_until_other_connections_have_been_asked_for(tmp_path: Path) -> None:
    authority, told = IkeAuthority({}), Told()
    watch = IkeWatch(tmp_path / "vici", ["members"], authority, lambda: 0.0, told)
    authority.take(SAS, 0.0, 0.0)
    watch.believe(["members"])
    assert authority.unknown is None
    assert not watch._wanted.is_set()
    watch.believe(["members", "others"])
    assert authority.unknown == NOT_ASKED
    assert watch._wanted.is_set()
    assert told == []
