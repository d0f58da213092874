"""What the example configurations are; that they pass is tested where they are installed."""

from __future__ import annotations

import re

from tests.deploy.examples import EXAMPLES, examples, program


def test_there_is_one_for_each_kind_of_network() -> None:
    folders = {path.parts[0] for path in examples() if len(path.parts) > 1}
    assert {
        "lan-routers",
        "unicast-wan",
        "beside-swanctl",
        "iec61850-substation",
        "three-key-servers",
    } <= folders
    for folder in folders:
        programs = {program(path) for path in examples() if path.parts[0] == folder}
        assert programs == {"gdoi-gm", "gdoi-gcks"}, folder


def test_no_example_has_a_secret_in_it() -> None:
    """They are copied as they are; a key that is written here would be everybody's."""
    for example in examples():
        lines = (EXAMPLES / example).read_text().splitlines()
        assert not [line for line in lines if line.startswith("psk =")], example


def test_servers_of_one_group_differ_in_address_and_name_only() -> None:
    files = [(EXAMPLES / f"three-key-servers/gcks-{n}.toml").read_text() for n in "abc"]
    common = [
        [
            line
            for line in text.splitlines()
            if not line.startswith(("#", 'address = "192.0.2.', 'name = "gcks'))
        ]
        for text in files
    ]
    assert common[0] == common[1] == common[2]
    assert len(set(files)) == 3


def test_what_is_proposed_works_under_the_units() -> None:
    """Logs where the sandbox lets them be written, and a port for each purpose."""
    logs, ports = set[str](), dict[str, str]()
    for name in ("gcks.toml", "gm.toml"):
        text = (EXAMPLES / name).read_text()
        logs |= set(re.findall(r'^(?:# )?log = "(.*?)"', text, re.MULTILINE))
        assert "-m 640 " in text.split("[")[0]
        for option, port in re.findall(r'^(?:# )?(\w+) = "127\.0\.0\.1:(\d+)"', text, re.MULTILINE):
            assert ports.setdefault(port, option) == option
    assert logs == {"/var/log/gdoi/gcks.jsonl", "/var/log/gdoi/gm.jsonl"}
    assert sorted(ports.values()) == ["metrics", "status_page"]
