"""What the example configurations are; that they pass is tested where they are installed."""

from __future__ import annotations

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
