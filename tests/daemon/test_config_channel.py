"""``channel = "ike"``: what the configuration makes of it for charon and for the kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from gdoi_xfrm import Direction, PolicyAction, Selector

from gdoi_plugin.daemon.charon.blocks import MAX_LENGTH
from gdoi_plugin.daemon.config_channel import IkeSection, channel_options
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.daemon.guard import CHANNEL_PRIORITY
from gdoi_plugin.daemon.reload_member import propose
from gdoi_plugin.daemon.vici_message import octets_of
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.nat import Traversal
from tests.support.pki import ROOT, issue

from .configs import GCKS, GM, write

SERVER = ip_network("127.0.0.9")
ALL = ip_network("0.0.0.0/0")
INSIDE = GM.replace("id = 1\n", 'id = 1\nchannel = "ike"\n')
BY_NAME = '[group.key_server.ike]\nconnection = "gcks"\nchild = "udp848"\n'
BY_KEY = '[group.key_server.ike]\npsk = "of the IKE daemons"\n'
SECOND = """
[[group]]
name = "audio"
id = 2
"""


def member(folder: Path, text: str) -> MemberDaemonConfig:
    return MemberDaemonConfig(write(folder, text))


def test_a_connection_of_swanctl_is_named_and_not_loaded(folder: Path) -> None:
    config = member(folder, INSIDE + BY_NAME)
    (channel,) = config.channels
    assert (channel.connection, channel.child, channel.loading) == ("gcks", "udp848", ())
    assert str(channel.remote) == "127.0.0.9:848"
    (group,) = config.groups
    assert group.channel
    assert group.key_servers[0].phase1.nat is Traversal.OFF


def test_a_connection_given_here_is_loaded_with_its_secret(folder: Path) -> None:
    config = member(folder, INSIDE + BY_KEY)
    (channel,) = config.channels
    (_, shared), (_, loaded) = channel.loading
    assert [command for command, _ in channel.loading] == ["load-shared", "load-conn"]
    assert shared["data"] == "of the IKE daemons"
    assert shared["owners"] == ["127.0.0.1", "127.0.0.9"]
    connection = loaded["gdoi-127.0.0.9"]
    assert isinstance(connection, dict)
    assert connection["remote_addrs"] == ["127.0.0.9"]
    assert connection["children"] == {
        "gdoi": {
            "mode": "transport",
            "local_ts": ["dynamic[udp/848]"],
            "remote_ts": ["dynamic[udp/848]"],
            "esp_proposals": ["aes256gcm16", "aes128gcm16", "aes256-sha256"],
            "dpd_action": "clear",
            "close_action": "none",
            "start_action": "none",
        }
    }
    assert "of the IKE daemons" not in repr(channel) + repr(config.document)


def test_two_key_servers_at_one_address_have_a_connection_each() -> None:
    section, here = (
        IkeSection.model_validate({"psk": "of both"}),
        Peer(ip_address("192.0.2.1"), 848),
    )
    there = [Peer(ip_address("192.0.2.2"), port) for port in (848, 1848)]
    made = [channel_options(section, Path("gm.toml"), "ike", here, each) for each in there]
    assert [one.connection for one in made] == ["gdoi-192.0.2.2", "gdoi-192.0.2.2-1848"]


def test_certificates_and_key_are_read_from_files(folder: Path) -> None:
    entity = issue("member", ROOT)
    (folder / "cert.pem").write_bytes(entity.pem)
    (folder / "key.pem").write_bytes(entity.key_pem)
    (folder / "ca.pem").write_bytes(ROOT.pem)
    files = 'certificate = "cert.pem"\nprivate_key = "key.pem"\ncacerts = ["ca.pem"]\n'
    ike = f'[group.key_server.ike]\nauth = "pubkey"\n{files}revocation = "strict"\n'
    (channel,) = member(folder, INSIDE + ike).channels
    (command, key), (_, loaded) = channel.loading
    assert (command, octets_of(str(key["data"]))) == ("load-key", entity.key_pem)
    connection = loaded[channel.connection]
    assert isinstance(connection, dict)
    mine, theirs = connection["local"], connection["remote"]
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    assert [octets_of(data) for data in mine["certs"]] == [entity.der]
    assert [octets_of(data) for data in theirs["cacerts"]] == [ROOT.der]
    assert theirs["revocation"] == "strict"


def test_the_kernel_is_to_block_udp_848_with_the_key_server(folder: Path) -> None:
    assert set(member(folder, INSIDE + BY_NAME).fence.channels) == {
        (Selector(ALL, SERVER, 17, 0, 848), Direction.OUT),
        (Selector(SERVER, ALL, 17, 0, 848), Direction.IN),
        (Selector(SERVER, ALL, 17, 0, 4500), Direction.IN),
    }
    assert member(folder, GM).fence.channels == ()


def test_two_groups_share_a_channel(folder: Path) -> None:
    server = INSIDE[INSIDE.index("[[group.key_server]]") :]
    second = SECOND + 'channel = "ike"\n' + server
    config = member(folder, INSIDE + BY_NAME + second)
    assert [channel.connection for channel in config.channels] == ["gcks"]
    assert [group.channel for group in config.groups] == [True, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (INSIDE, "group.0.key_server.0.ike: channel = 'ike' needs [group.key_server.ike]"),
        (GM + BY_NAME, "group.0: key server 127.0.0.9 has [ike]: set channel = 'ike'"),
        (INSIDE + "encap = true\n" + BY_NAME, "group.0: encap does not go with channel"),
        (INSIDE + "[group.key_server.ike]\n", "group.0.key_server.0.ike: give connection"),
        (INSIDE + BY_NAME + 'psk = "x"\n', "connection gcks is swanctl.conf's: take psk out"),
        (INSIDE + BY_KEY + 'auth = "pubkey"\n', "auth pubkey goes with certificate"),
        (
            INSIDE + '[group.key_server.ike]\npsk_file = "none"\n',
            "group.0.key_server.0.ike.psk_file: {folder}/none: No such file or directory",
        ),
        (
            INSIDE + '[group.key_server.ike]\npsk_file = "empty.psk"\n',
            "group.0.key_server.0.ike.psk_file: {folder}/empty.psk is empty",
        ),
        (
            INSIDE + BY_NAME + SECOND + GM[GM.index("[[group.key_server]]") :],
            "group.1.key_server.0: 127.0.0.9 has channel = 'ike' in another group",
        ),
        (
            INSIDE
            + BY_NAME
            + SECOND
            + 'channel = "ike"\n'
            + GM[GM.index("[[group.key_server]]") :]
            + BY_KEY,
            "group.1.key_server.0.ike: 127.0.0.9:848 has another [ike] already",
        ),
    ],
)
def test_what_is_wrong_is_told(text: str, said: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        member(folder, text)
    assert said.format(folder=folder) in str(refused.value)


def test_a_channel_changes_with_a_restart_only(folder: Path) -> None:
    running = member(folder, INSIDE + BY_NAME)
    for text in (INSIDE + BY_KEY, GM):
        write(folder, text)
        with pytest.raises(ConfigError, match="start it again"):
            propose(running)


def test_the_key_server_blocks_what_is_to_come_inside_esp(folder: Path) -> None:
    """A more specific peer that may come in clear is let through."""
    inside = GCKS.replace('"127.0.0.0/8"\n', '"127.0.0.0/8"\nchannel = "ike"\n')
    other = '\n[[peer]]\naddress = "{}"\npsk = "of another"\n'
    more = inside + other.format("127.1.0.0/16") + other.format("10.0.0.1")
    config = KeyServerDaemonConfig(write(folder, more))
    found = {
        (p.selector.source, p.selector.destination, p.direction): (p.action, p.priority)
        for p in config.blocks()
        if 848 in (p.selector.source_port, p.selector.destination_port)
    }
    wide, narrow = ip_network("127.0.0.0/8"), ip_network("127.1.0.0/16")
    block = PolicyAction.BLOCK, CHANNEL_PRIORITY + MAX_LENGTH - 8
    allow = PolicyAction.ALLOW, CHANNEL_PRIORITY + MAX_LENGTH - 16
    assert found == {
        (wide, ALL, Direction.IN): block,
        (ALL, wide, Direction.OUT): block,
        (narrow, ALL, Direction.IN): allow,
        (ALL, narrow, Direction.OUT): allow,
    }
    assert KeyServerDaemonConfig(write(folder, GCKS)).blocks() == ()
    phase1 = config.phase1_for(config.local)
    assert phase1 is not None
    assert phase1.nat is Traversal.OFF
