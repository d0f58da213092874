"""What an operator may say about clear traffic, and what would be a mistake."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from gdoi_xfrm import Direction, Selector

from gdoi_plugin.daemon.config_guard import MAX_ENTRIES
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.daemon.guard import Fence, OnStop
from tests.daemon.configs import GM, write

ALL, ALL6 = ip_network("0.0.0.0/0"), ip_network("::/0")
BOTH = 'protect = ["239.192.0.0/16", "ff18::/16"]\n'


def fence(folder: Path, options: str) -> Fence:
    text = GM.replace("[[group]]", f"{options}\n[[group]]", 1)
    return MemberDaemonConfig(write(folder, text)).fence


def test_nothing_said(tmp_path: Path) -> None:
    assert fence(tmp_path, "") == Fence()


def test_everything_said(tmp_path: Path) -> None:
    text = f"""{BOTH}default_policy = "block"
on_stop = "remove"

[[member.bypass]]
destination = "239.192.255.0/24"
source = "192.0.2.0/24"
direction = "in"

[[member.bypass]]
destination = "ff18::/16"
protocol = 17
source_port = 9875
destination_port = 9876
"""
    first = Selector(ip_network("192.0.2.0/24"), ip_network("239.192.255.0/24"))
    second = Selector(ALL6, ip_network("ff18::/16"), 17, 9875, 9876)
    assert fence(tmp_path, text) == Fence(
        protect=(ip_network("239.192.0.0/16"), ip_network("ff18::/16")),
        bypass=((first, Direction.IN), (second, Direction.IN), (second, Direction.OUT)),
        block_by_default=True,
        on_stop=OnStop.REMOVE,
    )


def bypass(*entries: str) -> str:
    return BOTH + "".join(f"[[member.bypass]]\n{entry}\n" for entry in entries)


@pytest.mark.parametrize(
    "entry",
    [
        'destination = "239.192.1.0/24"',  # part of a protected prefix
        'destination = "239.192.0.0/16"\nprotocol = 17\ndestination_port = 9875',
        'destination = "239.192.0.0/16"\nprotocol = 103',  # PIM has no ports
        'destination = "239.1.1.1/32"\nprotocol = 17\nsource_port = 9875',  # what a TEK is for
    ],
)
def test_narrow_exceptions(tmp_path: Path, entry: str) -> None:
    assert len(fence(tmp_path, bypass(entry)).bypass) == 2


def test_exceptions_side_by_side(tmp_path: Path) -> None:
    inside, outside = (
        f'destination = "239.192.1.0/24"\ndirection = "{way}"' for way in ("in", "out")
    )
    other = 'destination = "239.192.2.0/24"'
    assert len(fence(tmp_path, bypass(inside, outside, other)).bypass) == 4


LINK = "the link's control"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('protect = ["192.0.2.0/24"]', r"member\.protect\.0: .* not multicast; must lie in 224"),
        ('protect = ["239.0.0.1/8"]', r"member\.protect\.0: .*host bits set"),
        ('protect = ["0.0.0.0/0"]', "not multicast"),
        ('protect = ["224.0.0.0/24"]', LINK),
        ('protect = ["224.0.0.5/32"]', LINK),
        ('protect = ["ff02::1:ff00:0/104"]', LINK),
        ('protect = ["224.0.0.0/4"]', f"holds 224.0.0.0/24, {LINK}.*give narrower"),
        ('protect = ["ff00::/8"]', f"holds ff01::/16, {LINK}"),
        ('protect = ["239.0.0.0/8", "239.1.0.0/16"]', "239.1.0.0/16 lies in 239.0.0.0/8 already"),
        ('protect = ["239.0.0.0/8", "239.0.0.0/8"]', "lies in 239.0.0.0/8 already"),
        (f"protect = {['239.0.0.1/32'] * (MAX_ENTRIES + 1)}".replace("'", '"'), "at most 256"),
        ('default_policy = "accept"', r"member\.default_policy: must be 'keep' or 'block'"),
        ('on_stop = "flush"', r"member\.on_stop: must be 'keep', 'remove' or 'block'"),
        (bypass('destination = "192.0.2.0/24"'), r"member\.bypass\.0\.destination: .*multicast"),
        (bypass('destination = "224.0.0.251/32"'), LINK),
        (bypass('destination = "239.192.1.1/32"\nsource = "::1/128"'), "both IPv4 or IPv6"),
        (bypass('destination = "239.192.1.1/32"\nsource = "239.1.1.1/32"'), "nobody sends from"),
        (bypass('destination = "239.192.1.1/32"\nsource_port = 1'), "ports need a protocol"),
        (bypass('destination = "239.192.1.1/32"\nport = 1'), "unknown key; known here: dest"),
        (bypass('destination = "239.192.0.0/16"'), "every protocol to 239.192.0.0/16 is too much"),
        (bypass('destination = "239.0.0.0/8"'), "every protocol to 239.0.0.0/8 is too much"),
        (bypass('destination = "239.1.1.1/32"'), "too much"),
        (bypass('destination = "ff18::/16"\nprotocol = 17'), "UDP to ff18::/16 is too much"),
        (
            bypass('destination = "239.192.1.0/24"', 'destination = "239.192.1.1/32"'),
            "bypass: 0.0.0.0/0 -> 239.192.1.1/32 is part of 0.0.0.0/0 -> 239.192.1.0/24 already",
        ),
        (bypass(*['destination = "239.192.1.0/24"'] * 2), "is part of"),
    ],
)
def test_mistakes(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fence(tmp_path, options)
