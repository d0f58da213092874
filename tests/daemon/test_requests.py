"""What commands may be asked: everything else gets a sentence that says what is allowed."""

from __future__ import annotations

import pytest

from gdoi_plugin.daemon import gcks_commands, gm_commands
from gdoi_plugin.daemon.requests import CommandFailed, check, spi_of
from gdoi_plugin.daemon.vici_message import Message

KEY_SERVER, MEMBER = gcks_commands.ACCEPTS, gm_commands.ACCEPTS


@pytest.mark.parametrize(
    ("command", "request_", "said"),
    [
        ("rekey", {"gruop": "video"}, "unknown key 'gruop'; rekey takes group, kek, replace"),
        ("stats", {"group": "video"}, "unknown key 'group'; stats takes none"),
        ("rekey", {}, "group is missing; rekey needs it"),
        ("rekey", {"group": ""}, "group is missing; rekey needs it"),
        ("rekey", {"group": ["a", "b"]}, "group is a list, must be text"),
        ("list-members", {"group": {"a": "b"}}, "group is a section, must be text"),
        ("rekey", {"group": "v", "kek": "1"}, "kek is '1', must be yes or no"),
        ("reload", {"dry-run": ["yes"]}, "dry-run is a list, must be yes or no"),
        ("evict", {"group": "v"}, "identities is missing; evict needs it"),
        ("evict", {"group": "v", "identities": "a"}, "identities must be a list, with at least"),
        ("revoke", {"group": "v", "identities": []}, "identities must be a list, with at least"),
        ("delete-tek", {"group": "v"}, "spi is missing; delete-tek needs it"),
    ],
)
def test_what_is_refused(command: str, request_: Message, said: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        check(command, request_, KEY_SERVER[command])
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        ("rekey", {"group": "video", "kek": "yes", "replace": "no"}),
        ("evict", {"group": "video", "identities": ["192.0.2.1"]}),
        ("list-members", {}),
        ("list-sas", {"group": "video"}),
    ],
)
def test_what_is_taken(command: str, request_: Message) -> None:
    check(command, request_, KEY_SERVER[command])


def test_a_member_is_asked_less() -> None:
    check("list-keys", {"secrets": "yes"}, MEMBER["list-keys"])
    with pytest.raises(CommandFailed, match="unknown key 'replace'; reload takes dry-run"):
        check("reload", {"replace": "yes"}, MEMBER["reload"])


def test_spis() -> None:
    assert spi_of({"spi": "0x1A2B3C4D"}) == "0x1a2b3c4d"
    assert spi_of({"spi": "0x100"}) == "0x00000100"
    for bad in ("1a2b3c4d", "0x", "0x123456789", "0xg", "-0x1", "", "0x1 "):
        with pytest.raises(CommandFailed, match="is no SPI; write it as 0x1a2b3c4d"):
            spi_of({"spi": bad})
