"""The differences of two configurations, as an operator reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdoi_plugin.daemon.config_diff import MAX_NAMED, Change, changes
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from tests.daemon.configs import GCKS, PSK, PSK_LINE, TEK, gcks, rekey, write


def diff(folder: Path, before: str, after: str) -> list[Change]:
    old, new = (
        KeyServerDaemonConfig(write(folder, text, name)).document
        for text, name in ((before, "before.toml"), (after, "after.toml"))
    )
    return list(changes(old, new))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (GCKS, GCKS, []),
        (rekey('kek_lifetime = "24h"'), GCKS, []),
        (
            rekey('kek_lifetime = "24h"'),
            rekey('kek_lifetime = "90m"'),
            [Change("group[video].rekey.kek_lifetime", "1d", "90m")],
        ),
        (
            GCKS,
            rekey("address = '239.1.1.1'\nretransmissions = 5"),
            [
                Change("group[video].rekey.address", "", "239.1.1.1"),
                Change("group[video].rekey.retransmissions", "2", "5"),
            ],
        ),
        (
            GCKS,
            gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.3", "*.example.org"]'),
            [
                Change("group[video].members", "127.0.0.2", ""),
                Change("group[video].members", "", "127.0.0.3"),
                Change("group[video].members", "", "*.example.org"),
            ],
        ),
        (
            gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.2", "127.0.0.3"]'),
            gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.3", "127.0.0.2"]'),
            [Change("group[video].members", "", "in another order")],
        ),
        (
            GCKS,
            gcks(TEK, TEK + '\nlifetime = "10m"\nesn = true\nsource = "127.0.0.2/32"'),
            [
                Change("group[video].tek[239.192.1.1].source", "", "127.0.0.2/32"),
                Change("group[video].tek[239.192.1.1].lifetime", "1h", "10m"),
                Change("group[video].tek[239.192.1.1].esn", "false", "true"),
            ],
        ),
        (
            gcks(TEK, f'{TEK}\nsenders = ["127.0.0.2"]'),
            gcks(TEK, f'{TEK}\nsenders = ["127.0.0.2", "127.0.0.3"]'),
            [Change("group[video].tek[239.192.1.1].senders", "", "127.0.0.3")],
        ),
        (
            GCKS,
            gcks(TEK, f'{TEK}\nsenders = ["127.0.0.2", "127.0.0.3"]'),
            [Change("group[video].tek[239.192.1.1].senders", "", "127.0.0.2, 127.0.0.3")],
        ),
        (
            GCKS,
            gcks(TEK, 'destination = "239.192.1.9"'),
            [
                Change("group[video].tek[239.192.1.1]", "there", ""),
                Change("group[video].tek[239.192.1.9]", "", "new"),
            ],
        ),
        (
            GCKS,
            gcks(PSK_LINE, 'psk = "quite another"'),
            [Change("peer[127.0.0.0/8].psk", "(secret)", "(another)")],
        ),
    ],
)
def test_changes(tmp_path: Path, before: str, after: str, expected: list[Change]) -> None:
    found = diff(tmp_path, before, after)
    assert found == expected
    assert PSK not in repr(found)
    assert "quite another" not in repr(found)


def test_thousands_of_members_make_a_short_list(tmp_path: Path) -> None:
    many = ", ".join(f'"10.0.{n // 256}.{n % 256}"' for n in range(5000))
    after = gcks('members = ["127.0.0.2"]', f"members = [{many}]")
    found = diff(tmp_path, GCKS, after)
    assert len(found) == MAX_NAMED + 2
    assert found[-1] == Change("group[video].members", "", f"{5000 - MAX_NAMED} more")


def test_two_entries_of_one_destination_are_told_apart(tmp_path: Path) -> None:
    twice = f'{TEK}\nprotocol = 17\n\n[[group.tek]]\n{TEK}\nprotocol = 6\nlifetime = "%s"'
    found = diff(tmp_path, gcks(TEK, twice % "1h"), gcks(TEK, twice % "2h"))
    assert found == [Change("group[video].tek[239.192.1.1 2].lifetime", "1h", "2h")]
