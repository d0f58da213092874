"""A good file gives exactly the key server engine's configuration."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import GroupConfig, Transport
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity_pattern import IdentityList
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.limits import Limits
from gdoi_plugin.protocol.nat import Traversal
from gdoi_plugin.protocol.phase1 import PreSharedKey
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow
from gdoi_plugin.protocol.silence import SilencePolicy
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.registry import (
    AckType,
    AddressPreservation,
    EncapsulationMode,
    SaDirection,
)
from tests.daemon.configs import (
    DEFAULT_SUITES,
    GCKS,
    LOOPBACK,
    PSK,
    TEK,
    gcks,
    ident,
    rekey,
    with_psk,
    write,
)


def test_nat_traversal_of_a_key_server(tmp_path: Path) -> None:
    """Behind one NAT several members have one key; which of them it is message 5 says."""
    several = 'address = "192.0.2.1"\nencap = true\nidentity = "gm1.example.org"\n'
    several += 'more_identities = ["10.0.0.2"]'
    text = GCKS + f'[[peer]]\n{several}\npsk = "another one, for all of them"\n'
    config = KeyServerDaemonConfig(write(tmp_path, text))
    phase1 = config.phase1_for(Peer(ip_address("192.0.2.1"), 30000))
    assert phase1 is not None
    (key,) = phase1.auth
    assert isinstance(key, PreSharedKey)
    assert (key.remote_identity, key.also) == (
        ident("gm1.example.org"),
        frozenset({ident("10.0.0.2")}),
    )
    assert phase1.nat is Traversal.FORCED
    assert config.nat_local == Peer(LOOPBACK, 4500)
    config.give_up_nat_traversal()
    bound = config.phase1_for(Peer(ip_address("192.0.2.1"), 30000))
    assert bound is not None
    assert bound.nat is Traversal.OFF, "nobody is told to move to a port that is not ours"


def test_key_server_with_nothing_optional(tmp_path: Path) -> None:
    config = KeyServerDaemonConfig(write(tmp_path, GCKS))
    local = Peer(LOOPBACK, 848)
    flow = Flow(None, ip_address("239.192.1.1"))
    (group,) = config.groups
    assert group == GroupConfig(
        name="video",
        group_id=GroupId.of_number(1),
        members=IdentityList.of(ident("127.0.0.2")),
        teks=(TekConfig(flow, TEK_SUITES["aes256-sha256"], 3600, EncapsulationMode.TRANSPORT),),
        source=local,
        scheme=SCHEMES["rsa2048-sha256"],
    )
    assert group.transport is Transport.UNICAST
    assert (config.local, config.interface) == (local, "lo")
    assert config.settings.state == Path("/var/lib/gdoi/gcks.sqlite")
    assert config.settings.control == Path("/run/gdoi/gcks.vici")
    assert config.phase1_for(Peer(ip_address("127.0.0.2"), 500)) == with_psk(
        ident("127.0.0.1"), None, Secret(PSK.encode()), DEFAULT_SUITES, 86400
    )


FULL_GCKS = """\
[key_server]
address = "127.0.0.1"
port = 1848
identity = "gcks.example.org"
proposals = ["aes256-sha384-ecp384", "aes128-sha256-modp2048"]
phase1_lifetime = "1h"
state = "/s"
control = "/c"
control_group = "wheel"
log = "/l"

[[peer]]
address = "127.0.0.0/8"
psk = "wide"

[[peer]]
address = "127.0.0.7"
identity = "branch7.example.org"
psk = "narrow"

[[peer]]
address = "127.0.0.0/30"
psk = "middle"

[[peer]]
address = "2001:db8::/32"
psk = "six"

[[group]]
name = "video"
id = 77
sid_bits = 12
sender_ids_limit = 20
members = ["127.0.0.2", "branch7.example.org", "2001:db8::1", "keyid:0a0b"]

[group.rekey]
address = "239.192.0.1"
port = 1850
kek = "aes128"
kek_lifetime = "7d"
signature = "ecdsa256"
ack = "none"
ack_wait = "10.5s"
retransmissions = 0
pace = 500
batch = "2.5s"
activation_delay = "0s"
deactivation_delay = "0s"

[group.silence]
log = 2
alert = 4
reminder = 1
evict = 7

[[group.tek]]
destination = "239.192.1.1"
source = "10.0.0.0/8"
protocol = 17
source_port = 5000
destination_port = 5001
proposal = "aes128-sha256"
lifetime = "30s"
mode = "tunnel"

[[group.tek]]
destination = "ff05::1"
source = "2001:db8::1"
proposal = "aes128gcm16"
lifetime = "30d"
mode = "transport"
"""


def test_key_server_with_everything(tmp_path: Path) -> None:
    config = KeyServerDaemonConfig(write(tmp_path, FULL_GCKS))
    one = Flow(ip_network("10.0.0.0/8"), ip_address("239.192.1.1"), 17, 5000, 5001)
    six = Flow(ip_network("2001:db8::1/128"), ip_address("ff05::1"))
    names = ("127.0.0.2", "branch7.example.org", "2001:db8::1", "keyid:0a0b")
    assert config.groups == (
        GroupConfig(
            name="video",
            group_id=GroupId.of_number(77),
            members=IdentityList.parse(names),
            teks=(
                TekConfig(one, TEK_SUITES["aes128-sha256"], 30, EncapsulationMode.TUNNEL),
                TekConfig(six, TEK_SUITES["aes128gcm16"], 2592000, EncapsulationMode.TRANSPORT),
            ),
            source=Peer(LOOPBACK, 1848),
            rekey_address=ip_address("239.192.0.1"),
            rekey_port=1850,
            kek_bits=128,
            kek_lifetime=604800,
            scheme=SCHEMES["ecdsa256"],
            ack=None,
            ack_wait=10.5,
            retransmissions=0,
            pace=500,
            batch=2.5,
            silence=SilencePolicy(2, 4, 1, 7),
            activation_delay=0,
            deactivation_delay=0,
            sid_bits=12,
            sender_ids_limit=20,
        ),
    )
    settings = config.settings
    assert (settings.state, settings.control, settings.log) == (Path("/s"), Path("/c"), Path("/l"))
    assert config.groups[0].ack is None
    assert AckType.REKEY_ACK_KEK_SHA256 is GroupConfig.__dataclass_fields__["ack"].default


@pytest.mark.parametrize(
    ("host", "identity", "psk"),
    [
        ("127.0.0.7", "branch7.example.org", b"narrow"),
        ("127.0.0.2", None, b"middle"),
        ("127.0.0.4", None, b"wide"),
        ("2001:db8::9", None, b"six"),
    ],
)
def test_the_most_specific_network_wins(
    tmp_path: Path, host: str, identity: str | None, psk: bytes
) -> None:
    """``identity`` None: it is to be the address itself."""
    expected = None if identity is None else ident(identity)
    config = KeyServerDaemonConfig(write(tmp_path, FULL_GCKS))
    suites = (SUITES["aes256-sha384-ecp384"], SUITES["aes128-sha256-modp2048"])
    assert config.phase1_for(Peer(ip_address(host), 848)) == with_psk(
        ident("gcks.example.org"), expected, Secret(psk), suites, 3600
    )


@pytest.mark.parametrize("host", ["128.0.0.1", "2001:db9::1", "::ffff:127.0.0.1"])
def test_strangers_have_no_key(tmp_path: Path, host: str) -> None:
    config = KeyServerDaemonConfig(write(tmp_path, FULL_GCKS))
    assert config.phase1_for(Peer(ip_address(host), 848)) is None


def test_what_a_tek_may_say(tmp_path: Path) -> None:
    text = gcks(
        TEK,
        TEK
        + """
source = "192.0.2.7"
ah_proposal = "sha384"
lifetime_kilobytes = 4194304
mode = "tunnel"
direction = "per-member"
address_preservation = "destination-only"

[[group.tek]]
destination = "239.192.1.2"
direction = "receiver-only"
""",
    )
    first, second = KeyServerDaemonConfig(write(tmp_path, text)).groups[0].teks
    assert first == TekConfig(
        Flow(ip_network("192.0.2.7/32"), ip_address("239.192.1.1")),
        TEK_SUITES["sha384"],
        mode=EncapsulationMode.TUNNEL,
        lifetime_kilobytes=4194304,
        per_member=True,
        preservation=AddressPreservation.DESTINATION_ONLY,
    )
    assert isinstance(second, TekConfig)
    assert (second.direction, second.per_member) == (SaDirection.RECEIVER_ONLY, False)


def test_an_sa_for_each_sender(tmp_path: Path) -> None:
    text = gcks(
        TEK,
        f"""{TEK}
senders = ["192.0.2.7", "192.0.2.8", "192.0.2.7"]
proposal = "chacha20poly1305"
esn = true

[[group.tek]]
destination = "239.192.1.2"
senders = "members"
proposal = "aes256gcm16"
direction = "per-member"
""",
    )
    teks = KeyServerDaemonConfig(write(tmp_path, text)).groups[0].teks
    named = [tek for tek in teks if isinstance(tek, TekConfig)]
    assert [str(tek.flow) for tek in named] == [
        "192.0.2.7/32 -> 239.192.1.1",
        "192.0.2.8/32 -> 239.192.1.1",
        "127.0.0.2/32 -> 239.192.1.2",
    ]
    assert [(tek.suite.keyword, tek.esn, tek.per_member) for tek in named] == [
        ("chacha20poly1305", True, False),
        ("chacha20poly1305", True, False),
        ("aes256gcm16", False, True),
    ]


def test_lkh_and_its_defaults(folder: Path) -> None:
    def group(text: str) -> GroupConfig:
        return KeyServerDaemonConfig(write(folder, rekey(text))).groups[0]

    assert group("").lkh is None
    assert group('kek_management = "lkh"').lkh == LkhPolicy(arity=4, members=4096)
    given = group('kek_management = "lkh"\nlkh_arity = 2\nlkh_members = 32768\nack = "lkh-sha512"')
    assert given.lkh == LkhPolicy(arity=2, members=32768)
    assert given.ack is AckType.REKEY_ACK_LKH_SHA512


def test_acknowledgements(folder: Path) -> None:
    text = 'ack = "kek-sha512"\nack_l = [256, 128]\nack_exempt = ["10.0.0.3"]\npush_limit = 1400'
    group = KeyServerDaemonConfig(write(folder, rekey(text))).groups[0]
    assert group.ack is AckType.REKEY_ACK_KEK_SHA512
    assert group.ack_l == (256, 128)
    assert group.ack_exempt == IdentityList.parse(["10.0.0.3"])
    assert group.push_limit == 1400


def test_the_bounds_of_phase_1_are_options(tmp_path: Path) -> None:
    assert KeyServerDaemonConfig(write(tmp_path, GCKS)).settings.limits == Limits()
    text = GCKS.replace(
        "[[peer]]",
        'init_limit_half_open = 100\nblock_threshold = 5\nhalf_open_timeout = "10s"\n'
        "work_per_source = 7\nnew_offers = 8\n[[peer]]",
        1,
    )
    limits = KeyServerDaemonConfig(write(tmp_path, text)).settings.limits
    assert limits == Limits(100, 5, 10.0, 7, 8)


def test_the_policy_of_an_address_is_that_of_its_most_specific_network(tmp_path: Path) -> None:
    """Thousands of peers cost a look-up per prefix length, not one per peer."""
    many = "".join(
        f'[[peer]]\naddress = "10.{n >> 8}.{n & 255}.1"\npsk = "k{n}"\nidentity = "m{n}.test"\n'
        for n in range(3000)
    )
    wide = '[[peer]]\naddress = "10.0.0.0/8"\npsk = "w"\n'
    wide += '[[peer]]\naddress = "::/0"\npsk = "6"\n'
    text = GCKS.replace("[[peer]]", wide + many + "[[peer]]", 1)
    config = KeyServerDaemonConfig(write(tmp_path, text))
    assert {v: len(lengths) for v, lengths in config._peers._lengths.items()} == {4: 2, 6: 1}
    for host, psk in (("10.4.210.1", b"k1234"), ("10.4.210.2", b"w"), ("2001:db8::1", b"6")):
        found = config.phase1_for(Peer(ip_address(host), 848))
        assert found is not None
        (way,) = found.auth
        assert isinstance(way, PreSharedKey)
        assert way.psk.reveal() == psk
        assert config.phase1_for(Peer(ip_address(host), 9)) is found
    assert config.phase1_for(Peer(ip_address("192.0.2.1"), 848)) is None
