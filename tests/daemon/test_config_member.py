"""A good file gives exactly the member engine's configuration; a bad one a sentence that helps."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import netifaces
import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import AbsentError
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.nat import Traversal
from gdoi_plugin.protocol.phase1 import PreSharedKey
from gdoi_plugin.protocol.registration import KeyServerEntry
from tests.daemon.configs import (
    DEFAULT_SUITES,
    GM,
    HOST,
    LOOPBACK,
    NO_ID,
    ONE_PSK,
    PSK,
    PSK_LINE,
    gm,
    ident,
    refused,
    with_psk,
    write,
)


def test_member_with_nothing_optional(tmp_path: Path) -> None:
    config = MemberDaemonConfig(write(tmp_path, GM))
    phase1 = with_psk(ident("127.0.0.1"), ident("127.0.0.9"), Secret(PSK.encode()), DEFAULT_SUITES)
    assert config.groups == (
        MemberConfig(
            "video",
            GroupId.of_number(1),
            Peer(LOOPBACK, 848),
            (KeyServerEntry(Peer(ip_address("127.0.0.9"), 848), phase1),),
            nat_local=Peer(LOOPBACK, 4500),
        ),
    )
    assert config.local == Peer(LOOPBACK, 848)
    assert config.interface == "lo"
    assert config.settings.state == Path("/var/lib/gdoi/gm")
    assert config.settings.control == Path("/run/gdoi/gm.vici")
    assert config.settings.control_group == "gdoi"
    assert config.settings.log is None


FULL_GM = """\
[member]
address = "127.0.0.1"
interface = "lo"
port = 1848
state = "/s"
control = "/c"
control_group = "wheel"
log = "/l"

[[group]]
name = "video"
id = 4294967295
identity = "gm1@example.org"
proposals = ["aes128-sha256-ecp256"]
ack_jitter = "0s"
recovery_delay = "1m"
sender_ids = 4

[[group.key_server]]
address = "127.0.0.9"
port = 1849
identity = "keyid:00ff"
psk_file = "one.psk"

[[group.key_server]]
address = "127.0.0.10"
psk = "zwei\\u0020Schlüssel"

[[group]]
name = "2nd_group-of-them"
id = 0

[[group.key_server]]
address = "127.0.0.9"
psk = "x"
"""


def test_member_with_everything(tmp_path: Path) -> None:
    (tmp_path / "one.psk").write_bytes(b"  from a file\n")
    config = MemberDaemonConfig(write(tmp_path, FULL_GM))
    local, suites = Peer(LOOPBACK, 1848), (SUITES["aes128-sha256-ecp256"],)
    me = ident("gm1@example.org")
    first, second = ip_address("127.0.0.9"), ip_address("127.0.0.10")
    assert config.groups[0] == MemberConfig(
        name="video",
        group_id=GroupId.of_number(0xFFFFFFFF),
        local=local,
        key_servers=(
            KeyServerEntry(
                Peer(first, 1849),
                with_psk(me, ident("keyid:00ff"), Secret(b"from a file"), suites),
            ),
            KeyServerEntry(
                Peer(second, 848),
                with_psk(me, ident("127.0.0.10"), Secret("zwei Schlüssel".encode()), suites),
            ),
        ),
        ack_jitter=0.0,
        recovery_delay=60.0,
        sender_ids=4,
        nat_local=Peer(LOOPBACK, 4500),
    )
    assert (config.groups[1].name, config.groups[1].group_id) == (
        "2nd_group-of-them",
        GroupId.of_number(0),
    )
    settings = config.settings
    assert (settings.state, settings.control, settings.log) == (Path("/s"), Path("/c"), Path("/l"))
    assert settings.control_group == "wheel"


def test_router(tmp_path: Path) -> None:
    config = MemberDaemonConfig(write(tmp_path, gm("id = 1", 'id = 1\nlan = ["eth1", "eth2.7"]')))
    assert config.groups[0].forwards
    assert config.lans == {"video": ("eth1", "eth2.7")}
    assert config.joins == {"video": ("lo",)}, "without it a router decrypts nothing"
    assert config.settings.firewall == "iptables"
    text = gm("id = 1", 'id = 1\njoin = ["eth0"]\nlan = ["eth1"]')
    assert MemberDaemonConfig(write(tmp_path, text)).joins == {"video": ("eth0",)}
    plain = MemberDaemonConfig(write(tmp_path, GM))
    assert (plain.groups[0].forwards, plain.lans) == (False, {"video": ()})


def test_nat_traversal_of_a_member(tmp_path: Path) -> None:
    options = 'nat_port = 4501\nkeep_alive = "10s"'
    text = GM.replace("[member]", f"[member]\n{options}") + "encap = true\nnat_port = 4502\n"
    (group,) = MemberDaemonConfig(write(tmp_path, text)).groups
    assert (group.nat_local, group.keep_alive) == (Peer(LOOPBACK, 4501), 10.0)
    (server,) = group.key_servers
    assert server.nat_endpoint == Peer(ip_address("127.0.0.9"), 4502)
    assert server.phase1.nat is Traversal.FORCED
    off = GM.replace("[member]", "[member]\nnat_traversal = false")
    (group,) = MemberDaemonConfig(write(tmp_path, off)).groups
    assert (group.nat_local, group.key_servers[0].phase1.nat) == (None, Traversal.OFF)
    same = GM.replace("[member]", "[member]\nnat_port = 848")
    said = refused(MemberDaemonConfig, write(tmp_path, same))
    assert "member: nat_port and port are both 848" in str(said)


def test_an_interface_alone_means_its_ipv4_address(tmp_path: Path) -> None:
    config = MemberDaemonConfig(
        write(tmp_path, GM.replace('address = "127.0.0.1"', 'interface = "lo"', 1))
    )
    assert config.local.host == LOOPBACK


KNOWN = ", ".join(netifaces.interfaces())
FORWARDED = "packets that are forwarded have no mark and no if_id: take those out"
BAD_MEMBERS = {
    "no address": (
        gm('address = "127.0.0.1"', ""),
        "member: give address, or interface to take its first IPv4 address, or both",
    ),
    "address multicast": (
        gm('address = "127.0.0.1"', 'address = "ff02::1"'),
        f"member.address: ff02::1 {HOST}",
    ),
    "interface too long": (
        gm('address = "127.0.0.1"', 'interface = "sixteen-letters0"'),
        "member.interface: 'sixteen-letters0' is no name of an interface",
    ),
    "join a name": (
        gm("id = 1", 'id = 1\njoin = "eth0"'),
        "group.0.join: must be true, false or names of interfaces, e.g. ['eth0', 'eth1']",
    ),
    "join a bad name": (
        gm("id = 1", 'id = 1\njoin = ["eth0", "a/b"]'),
        "group.0.join: 'a/b' is no name of an interface",
    ),
    "lan of no name": (
        gm("id = 1", 'id = 1\nlan = ["eth+"]'),
        "group.0.lan.0: 'eth+' is no name that iptables takes for one interface",
    ),
    "lan is the outside": (
        gm("id = 1", 'id = 1\nlan = ["lo"]'),
        "group.0.lan: lo is [member]'s interface, where the group's packets are in ESP",
    ),
    "lan with IPv6": (
        gm("id = 1", 'id = 1\nlan = ["eth1"]').replace("127.0.0.1", "::1"),
        "group.0.lan: only IPv4 multicast is forwarded, and this member is ::1",
    ),
    "lan with marks": (
        gm("id = 1", 'id = 1\nlan = ["eth1"]\nmark_out = "0x10"'),
        f"group.0.lan: {FORWARDED}",
    ),
    "lan of an XFRM interface": (
        gm("id = 1", 'id = 1\nlan = ["eth1"]\nif_id = 5'),
        f"group.0.lan: {FORWARDED}",
    ),
    "firewall": (
        gm("[member]", '[member]\nfirewall = "ufw"'),
        "member.firewall: must be 'iptables', 'iptables-legacy', 'iptables-nft' or 'none'",
    ),
    "join nothing": (
        gm("id = 1", "id = 1\njoin = []"),
        "group.0.join: must be true, false or names of interfaces, e.g. ['eth0', 'eth1']",
    ),
    "interface a number": (
        gm('address = "127.0.0.1"', "interface = 1"),
        "member.interface: must be a string",
    ),
    "no key server": (
        GM[: GM.index("[[group.key_server]]")],
        "group.0.key_server: missing",
    ),
    "key server families": (
        gm('address = "127.0.0.9"', 'address = "2001:db8::9"'),
        "group.0.key_server.0.address: 2001:db8::9 cannot be reached from 127.0.0.1",
    ),
    "no psk": (gm(PSK_LINE, ""), f"group.0.key_server.0: {ONE_PSK}"),
    "psk file missing": (
        gm(PSK_LINE, 'psk_file = "none.psk"'),
        "group.0.key_server.0.psk_file: {folder}/none.psk: No such file or directory",
    ),
    "ack_id": (
        gm("id = 1", 'id = 1\nack_id = "oid"'),
        "group.0: ack_id oid needs an id that is one, as oid:1.2.3, and not 1",
    ),
    "sender_ids": (
        gm("id = 1", "id = 1\nsender_ids = 64"),
        "group.0.sender_ids: must be 0 to 63",
    ),
    "ack_jitter": (
        gm("id = 1", 'id = 1\nack_jitter = "5.1s"'),
        "group.0.ack_jitter: must be 0s to 5s",
    ),
    "recovery_delay": (
        gm("id = 1", 'id = 1\nrecovery_delay = "61m"'),
        "group.0.recovery_delay: must be 0s to 1h",
    ),
    "identity malformed": (
        gm("id = 1", 'id = 1\nidentity = "gm1@"'),
        f"group.0.identity: 'gm1@' {NO_ID}",
    ),
    "name twice": (
        GM + GM[GM.index("[[group]]") :].replace("id = 1", "id = 2"),
        "group.name: video twice",
    ),
    "id twice": (
        GM + GM[GM.index("[[group]]") :].replace("video", "audio"),
        "group.id: 1 twice",
    ),
    "ids with one reqid": (
        GM
        + GM[GM.index("[[group]]") :]
        .replace("video", "audio")
        .replace("id = 1", "id = 1073741825"),
        "group.1.id: 1073741825 and 1 share a reqid in the kernel; they need two agents",
    ),
    "key server's section": (
        gm("[member]", "[key_server]"),
        "member: missing",
    ),
}


ABSENT = {
    "address of another": (
        gm('address = "127.0.0.1"', 'address = "127.0.0.77"'),
        "member.address: 127.0.0.77 is no address of any interface of this host",
    ),
    "address of another interface": (
        gm('address = "127.0.0.1"', 'address = "198.51.100.1"\ninterface = "lo"'),
        "member.address: 198.51.100.1 is no address of lo",
    ),
    "interface unknown": (
        gm('address = "127.0.0.1"', 'interface = "nosuch0"'),
        f"member.interface: no interface nosuch0; this host has {KNOWN}",
    ),
}


@pytest.mark.parametrize("case", ABSENT)
def test_what_this_host_has_not(folder: Path, case: str) -> None:
    """The file is right; what it names may come, and is looked for again."""
    text, expected = ABSENT[case]
    config = MemberDaemonConfig(write(folder, text))
    assert str(config.absent) == f"{config.path}: {expected}"
    with pytest.raises(AbsentError) as caught:
        config.here()
    assert str(caught.value) == str(config.absent)
    assert [group.name for group in config.groups] == ["video"]


def test_a_bad_file_is_refused_before_its_interface_is_there(folder: Path) -> None:
    text = gm('address = "127.0.0.1"', 'interface = "nosuch0"')
    path = write(folder, text.replace('"127.0.0.9"', '"2001:db8::9"'))
    said = "group.0.key_server.0.address: 2001:db8::9 cannot be reached from an IPv4 address"
    assert str(refused(MemberDaemonConfig, path)) == f"{path}: {said}"


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_member_file(folder: Path, case: str) -> None:
    text, expected = BAD_MEMBERS[case]
    path = write(folder, text)
    sentence = f"{path}: {expected.replace('{folder}', str(folder))}"
    assert str(refused(MemberDaemonConfig, path)) == sentence


def test_an_interface_without_ipv4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    six = {netifaces.AF_INET6: [{"addr": "2001:db8::1"}, {"addr": "fe80::1%net0"}]}
    monkeypatch.setattr(netifaces, "interfaces", lambda: ["net0"])
    monkeypatch.setattr(netifaces, "ifaddresses", lambda _name: six)
    path = write(tmp_path, gm('address = "127.0.0.1"', 'interface = "net0"'))
    said = "member.interface: net0 has no IPv4 address; give member.address"
    assert str(MemberDaemonConfig(path).absent) == f"{path}: {said}"
    text = gm('address = "127.0.0.1"', 'address = "2001:db8::1"').replace("127.0.0.9", "::9")
    config = MemberDaemonConfig(write(tmp_path, text))
    assert (config.interface, str(config.local)) == ("net0", "[2001:db8::1]:848")
    path = write(tmp_path, text.replace("2001:db8::1", "fe80::1"))
    said = "member.address: fe80::1 is no address of any interface of this host"
    assert str(MemberDaemonConfig(path).absent) == f"{path}: {said}"


def test_an_address_is_kept_as_long_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one before it changes nothing; and the identity is that of the address in use."""
    host: dict[str, dict[int, list[dict[str, str]]]] = {}

    def has(*addresses: str) -> None:
        host["net0"] = {netifaces.AF_INET: [{"addr": address} for address in addresses]}

    monkeypatch.setattr(netifaces, "interfaces", lambda: list(host))
    monkeypatch.setattr(netifaces, "ifaddresses", lambda name: host[name])
    (tmp_path / "psk").write_text(PSK)
    text = gm('address = "127.0.0.1"', 'interface = "net0"').replace(PSK_LINE, 'psk_file = "psk"')
    config = MemberDaemonConfig(write(tmp_path, text))
    (tmp_path / "psk").unlink()
    has("192.0.2.1")
    first = config.here()
    assert (first.absent, str(first.local.host)) == (None, "192.0.2.1")
    has("192.0.2.7", "192.0.2.1")
    assert first.here() is first
    has("192.0.2.7", "192.0.2.8")
    moved = first.here()
    (group,) = moved.groups
    assert (str(moved.local), str(moved.nat_local)) == ("192.0.2.7:848", "192.0.2.7:4500")
    assert group.local == moved.local
    (way,) = group.key_servers[0].phase1.auth
    assert isinstance(way, PreSharedKey)
    assert way.local_identity == ident("192.0.2.7")
    assert str(first.local.host) == "192.0.2.1"
    del host["net0"]
    with pytest.raises(AbsentError, match="no interface net0"):
        moved.here()


@pytest.mark.parametrize(
    ("line", "joined"),
    [
        ("", ()),
        ("join = false", ()),
        ("join = true", ("lo",)),
        ('join = ["eth0", "eth1.7"]', ("eth0", "eth1.7")),
    ],
)
def test_interfaces_that_data_is_joined_on(
    tmp_path: Path, line: str, joined: tuple[str, ...]
) -> None:
    config = MemberDaemonConfig(write(tmp_path, gm("id = 1", f"id = 1\n{line}")))
    assert config.joins == {"video": joined}


def test_acks_with_the_groups_oid(folder: Path) -> None:
    text = gm("id = 1", 'id = "oid:1.2.3"\nack_id = "oid"')
    (group,) = MemberDaemonConfig(write(folder, text)).groups
    assert group.acknowledges_as == group.group_id.payload()
    (plain,) = MemberDaemonConfig(write(folder, gm("id = 1", "id = 1"))).groups
    assert plain.acknowledges_as == Identity.of_address(plain.local.host).payload()
