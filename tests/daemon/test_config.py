"""A good file gives exactly the engine's configuration; a bad one a sentence that helps."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import netifaces
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.daemon.config import (
    DEFAULT_PROPOSALS,
    KeyServerDaemonConfig,
    MemberDaemonConfig,
)
from gdoi_plugin.daemon.config_values import parse_duration
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.dpd import DpdConfig
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import GroupConfig, Transport
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityList
from gdoi_plugin.protocol.isakmp import SUITES, Suite
from gdoi_plugin.protocol.limits import Limits
from gdoi_plugin.protocol.member import MemberConfig
from gdoi_plugin.protocol.nat import Traversal
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.protocol.suites import ESP_SUITES
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.registry import (
    AckType,
    AddressPreservation,
    Doi,
    EncapsulationMode,
    SaDirection,
)
from tests.daemon.configs import GCKS, GM, PSK, write

LOOPBACK = ip_address("127.0.0.1")
DEFAULT_SUITES = tuple(SUITES[keyword] for keyword in DEFAULT_PROPOSALS)


def with_psk(
    local: Identity,
    remote: Identity | None,
    psk: Secret,
    suites: tuple[Suite, ...],
    lifetime: int = 86400,
) -> Phase1Config:
    return Phase1Config((PreSharedKey(local, remote, psk),), suites, lifetime)


def ident(text: str) -> Identity:
    return Identity.parse(text)


# -- good files ----------------------------------------------------------------------------------


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


def test_an_interface_alone_means_its_ipv4_address(tmp_path: Path) -> None:
    config = MemberDaemonConfig(
        write(tmp_path, GM.replace('address = "127.0.0.1"', 'interface = "lo"', 1))
    )
    assert config.local.host == LOOPBACK


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
activation_delay = "0s"
deactivation_delay = "0s"

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


def test_the_examples_are_good(tmp_path: Path) -> None:
    """deploy/config is what people copy; its addresses are for documentation, not of this host."""
    folder = Path(__file__).parents[2] / "deploy" / "config"
    for name in ("lan.psk", "branch7.psk", "gcks.psk"):
        (tmp_path / name).write_text("secret")
    config = KeyServerDaemonConfig(write(tmp_path, (folder / "gcks.toml").read_text()))
    assert config.groups
    text = (folder / "gm.toml").read_text().replace('interface = "eth0"', 'interface = "lo"')
    assert MemberDaemonConfig(write(tmp_path, text)).groups


# -- durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1.5s", 1.5), ("10m", 600), ("1h", 3600), ("2d", 172800), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "s", "30", "-1s", "+1s", " 1s", "1s ", "1 s", "1S", "1w", "1h30m", ".5s", "1.s", "1e3s",
     "\u0661s", "nans", "infs", "0x1s", 30, 1.5, True, None, ["1s"], {}],
)  # fmt: skip
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="is no time; write it as 30s, 10m, 1h or 2d"):
        parse_duration(value)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_duration(text) >= 0


# -- bad files -----------------------------------------------------------------------------------


def swap(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def gcks(old: str, new: str) -> str:
    return swap(GCKS, old, new)


def gm(old: str, new: str) -> str:
    return swap(GM, old, new)


@pytest.mark.parametrize(
    ("written", "dois"),
    [
        ("gdoi", (Doi.GDOI,)),
        ("ipsec", (Doi.IPSEC,)),
        ("any", (Doi.GDOI, Doi.IPSEC)),
    ],
)
def test_phase_1_under_ipsecs_number(written: str, dois: tuple[Doi, ...], tmp_path: Path) -> None:
    line = f'\nphase1_doi = "{written}"\n\n'
    server = KeyServerDaemonConfig(write(tmp_path, gcks(f'"{PSK}"\n\n', f'"{PSK}"{line}')))
    phase1 = server.phase1_for(Peer(ip_address("127.0.0.2"), 848))
    assert phase1 is not None
    assert phase1.dois == dois
    if written != "any":
        member = MemberDaemonConfig(write(tmp_path, GM + line))
        assert member.groups[0].key_servers[0].phase1.dois == dois


def test_the_life_of_phase_1(tmp_path: Path) -> None:
    written = 'phase1_lifetime = "2h"\ndpd_delay = "1m"\ndpd_timeout = "20s"\n'
    server = KeyServerDaemonConfig(write(tmp_path, gcks("[[peer]]", f"{written}[[peer]]")))
    assert server.dpd == DpdConfig(60.0, 20.0)
    phase1 = server.phase1_for(Peer(ip_address("127.0.0.2"), 848))
    assert phase1 is not None
    assert phase1.lifetime == 7200
    member = MemberDaemonConfig(write(tmp_path, f"{GM}{written}initial_contact = false\n"))
    (entry,) = member.groups[0].key_servers
    assert entry.dpd == DpdConfig(60.0, 20.0)
    assert entry.phase1.lifetime == 7200
    assert not entry.initial_contact


@pytest.mark.parametrize("text", ["239.1.1.1", "ff05::1", "oid:1.2.3:05", "7"])
def test_group_named_otherwise(text: str, tmp_path: Path) -> None:
    written = f'id = "{text}"'
    server = KeyServerDaemonConfig(write(tmp_path, gcks("id = 1", written), "gcks.toml"))
    member = MemberDaemonConfig(write(tmp_path, gm("id = 1", written), "gm.toml"))
    assert server.groups[0].group_id == member.groups[0].group_id == GroupId.parse(text)


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


def rekey(line: str) -> str:
    return gcks("[[group.tek]]", f"[group.rekey]\n{line}\n\n[[group.tek]]")


SUITE_NAMES = ", ".join(sorted(SUITES))
TEK = 'destination = "239.192.1.1"'
PSK_LINE = f'psk = "{PSK}"'
PEER = 'address = "127.0.0.0/8"'
NO_TIME = "is no time; write it as 30s, 10m, 1h or 2d"
NAME = "must be lower-case letters, digits, - and _, at most 32, e.g. 'video'"
HOST = "is no address of a host"
NO_ID = "is no address, FQDN, user@FQDN, DN or keyid:HEX"
ONE_PSK = "give psk or psk_file, one of the two, or auth = 'pubkey'"
MULTICAST = "is not multicast; must be in 224.0.0.0/4 or ff00::/8"
DTD = (
    "deactivation_delay must be longer than activation_delay, or packets are lost"
    " (RFC 6407 section 5.4.1)"
)
SENDERS = (
    "aes256gcm16 needs source = one sender's address and a [[group.tek]] per sender: senders"
    " must not share a counter-mode key (RFC 6407 section 3.5)"
)


def gcm_senders(number: int) -> str:
    """More data SAs, each with one sender in counter mode."""
    return "".join(
        f"""
[[group.tek]]
destination = "239.192.9.{n}"
source = "10.0.0.{n}"
proposal = "aes128gcm16"
"""
        for n in range(number)
    )


BAD_KEY_SERVERS = {
    "empty file": ("", "key_server: missing"),
    "no peer": (gcks(f"[[peer]]\n{PEER}\n{PSK_LINE}\n", ""), "peer: missing"),
    "no group": (GCKS[: GCKS.index("[[group]]")], "group: missing"),
    "no tek": (
        GCKS[: GCKS.index("[[group.tek]]")],
        "group.0: 0 of [[group.tek]] and [[group.iec61850]], must be 1 to 64",
    ),
    "empty tek": (
        GCKS[: GCKS.index("[[group.tek]]")] + "tek = []",
        "group.0: 0 of [[group.tek]] and [[group.iec61850]], must be 1 to 64",
    ),
    "no address": (gcks('address = "127.0.0.1"', ""), "key_server.address: missing"),
    "unknown section": (
        GCKS + "[keyserver]\n",
        "keyserver: unknown key; known here: group, key_server, peer",
    ),
    "unknown key": (
        gcks("id = 1", "id = 1\nindex = 2"),
        "group.0.index: unknown key; known here: id, iec61850, members, name, rekey,"
        " sender_ids_limit, sid_bits, tek",
    ),
    "unknown key with a dash": (
        rekey('ack-wait = "10s"'),
        "group.0.rekey.ack-wait: unknown key; known here: ack, ack_exempt, ack_l, ack_wait,"
        " activation_delay,"
        " address, deactivation_delay, kek, kek_lifetime, kek_management, lkh_arity,"
        " lkh_members, port, push_limit, rekey_on_join, retransmissions,"
        " signature",
    ),
    "unknown key in capitals": (
        gcks(PEER, f"{PEER}\nPSK = 'x'"),
        "peer.0.PSK: unknown key;"
        " known here: address, auth, encap, identity, more_identities, phase1_doi, psk, psk_file",
    ),
    "unknown key of two lines": (
        gcks(PEER, f'{PEER}\n"a\\nb" = 1'),
        'peer.0."a\\nb": unknown key;'
        " known here: address, auth, encap, identity, more_identities, phase1_doi, psk, psk_file",
    ),
    "section is a value": ("key_server = 3\npeer = []\ngroup = []", "key_server: must be a table"),
    "array is a table": (gcks("[[peer]]", "[peer]"), "peer: must be an array"),
    "address is a number": (
        gcks('address = "127.0.0.1"', "address = 2130706433"),
        "key_server.address: 2130706433 is no IPv4 or IPv6 address",
    ),
    "address is a name": (
        gcks('address = "127.0.0.1"', 'address = "localhost"'),
        "key_server.address: 'localhost' is no IPv4 or IPv6 address",
    ),
    "address with a zone": (
        gcks('address = "127.0.0.1"', 'address = "fe80::1%eth0"'),
        "key_server.address: 'fe80::1%eth0' is no IPv4 or IPv6 address",
    ),
    "address multicast": (
        gcks('address = "127.0.0.1"', 'address = "239.0.0.1"'),
        f"key_server.address: 239.0.0.1 {HOST}",
    ),
    "address unspecified": (
        gcks('address = "127.0.0.1"', 'address = "0.0.0.0"'),
        f"key_server.address: 0.0.0.0 {HOST}",
    ),
    "port text": (
        gcks("[[peer]]", 'port = "848"\n[[peer]]'),
        "key_server.port: must be a whole number",
    ),
    "port bool": (
        gcks("[[peer]]", "port = true\n[[peer]]"),
        "key_server.port: must be a whole number",
    ),
    "port real": (
        gcks("[[peer]]", "port = 848.0\n[[peer]]"),
        "key_server.port: must be a whole number",
    ),
    "port 0": (gcks("[[peer]]", "port = 0\n[[peer]]"), "key_server.port: must be 1 to 65535"),
    "port high": (
        gcks("[[peer]]", "port = 65536\n[[peer]]"),
        "key_server.port: must be 1 to 65535",
    ),
    "unknown proposal": (
        gcks("[[peer]]", 'proposals = ["aes256-sha256-ecp256", "3des-md5-modp768"]\n[[peer]]'),
        f"key_server.proposals: '3des-md5-modp768' is none of {SUITE_NAMES}",
    ),
    "no proposal": (
        gcks("[[peer]]", "proposals = []\n[[peer]]"),
        "key_server.proposals: must not be empty",
    ),
    "proposals text": (
        gcks("[[peer]]", 'proposals = "aes256-sha256-ecp256"\n[[peer]]'),
        "key_server.proposals: must be an array",
    ),
    "proposal no text": (
        gcks("[[peer]]", "proposals = [1]\n[[peer]]"),
        "key_server.proposals.0: must be a string",
    ),
    "short phase 1": (
        gcks("[[peer]]", 'phase1_lifetime = "59s"\n[[peer]]'),
        "key_server.phase1_lifetime: must be 1m to 365d",
    ),
    "no work": (
        gcks("[[peer]]", "work_per_source = 1\n[[peer]]"),
        "key_server.work_per_source: must be 2 to 100000",
    ),
    "no half-open exchange": (
        gcks("[[peer]]", "block_threshold = 0\n[[peer]]"),
        "key_server.block_threshold: must be 1 to 10000",
    ),
    "short dpd timeout": (
        gcks("[[peer]]", 'dpd_timeout = "4s"\n[[peer]]'),
        "key_server.dpd_timeout: must be 5s to 1h",
    ),
    "unknown DOI": (
        gcks("[[peer]]", '[[peer]]\nphase1_doi = "2"'),
        "peer.0.phase1_doi: must be 'gdoi', 'ipsec' or 'any'",
    ),
    "half seconds": (
        gcks("[[peer]]", 'phase1_lifetime = "60.5s"\n[[peer]]'),
        "key_server.phase1_lifetime: '60.5s' is not a whole number of seconds",
    ),
    "endless": (
        gcks("[[peer]]", f'phase1_lifetime = "{"9" * 400}s"\n[[peer]]'),
        f"key_server.phase1_lifetime: '{'9' * 400}s' is not a whole number of seconds",
    ),
    "state empty": (
        gcks("[[peer]]", 'state = ""\n[[peer]]'),
        "key_server.state: must be the name of a file",
    ),
    "state with NUL": (
        gcks("[[peer]]", 'state = "a\\u0000b"\n[[peer]]'),
        "key_server.state: must be the name of a file",
    ),
    "log no text": (
        gcks("[[peer]]", "log = 1\n[[peer]]"),
        "key_server.log: must be the name of a file",
    ),
    "identity malformed": (
        gcks("[[peer]]", 'identity = "two words"\n[[peer]]'),
        f"key_server.identity: 'two words' {NO_ID}",
    ),
    "peer with host bits": (
        gcks(PEER, 'address = "127.0.0.1/8"'),
        "peer.0.address: 127.0.0.1/8 has host bits set",
    ),
    "peer no network": (
        gcks(PEER, "address = 127"),
        "peer.0.address: 127 is no network, write it as 192.0.2.0/24 or 2001:db8::/64",
    ),
    "peer network rubbish": (
        gcks(PEER, 'address = "lan"'),
        "peer.0.address: 'lan' does not appear to be an IPv4 or IPv6 network",
    ),
    "peer twice": (
        gcks("[[group]]", f"[[peer]]\n{PEER}\npsk = 'y'\n\n[[group]]"),
        "peer.address: 127.0.0.0/8 twice",
    ),
    "network with identity": (
        gcks(PEER, f'{PEER}\nidentity = "gm1.example.org"'),
        "peer.0: identity needs one address: main mode finds a pre-shared key by address alone",
    ),
    "network of several": (
        gcks(PEER, f'{PEER}\nmore_identities = ["gm1.example.org"]'),
        "peer.0: more_identities is for a pre-shared key and one address, a NAT's",
    ),
    "no psk": (gcks(PSK_LINE, ""), f"peer.0: {ONE_PSK}"),
    "two psks": (gcks(PSK_LINE, f'{PSK_LINE}\npsk_file = "f"'), f"peer.0: {ONE_PSK}"),
    "psk empty": (gcks(PSK_LINE, 'psk = ""'), "peer.0.psk: must not be empty"),
    "psk number": (gcks(PSK_LINE, "psk = 1234"), "peer.0.psk: must be a string"),
    "psk file missing": (
        gcks(PSK_LINE, 'psk_file = "none.psk"'),
        "peer.0.psk_file: {folder}/none.psk: No such file or directory",
    ),
    "psk file a directory": (
        gcks(PSK_LINE, 'psk_file = "folder"'),
        "peer.0.psk_file: {folder}/folder: Is a directory",
    ),
    "psk file empty": (
        gcks(PSK_LINE, 'psk_file = "empty.psk"'),
        "peer.0.psk_file: {folder}/empty.psk is empty",
    ),
    "psk file with NUL": (
        gcks(PSK_LINE, 'psk_file = "\\u0000"'),
        "peer.0.psk_file: must be the name of a file",
    ),
    "name in capitals": (gcks('name = "video"', 'name = "Video"'), f"group.0.name: {NAME}"),
    "name a path": (gcks('name = "video"', 'name = "../x"'), f"group.0.name: {NAME}"),
    "name long": (gcks('name = "video"', f'name = "{"v" * 33}"'), f"group.0.name: {NAME}"),
    "id negative": (gcks("id = 1", "id = -1"), "group.0.id: must be 0 to 4294967295"),
    "id of 5 octets": (gcks("id = 1", "id = 4294967296"), "group.0.id: must be 0 to 4294967295"),
    "id a truth": (gcks("id = 1", "id = true"), "group.0.id: must be a number or a string"),
    "id a name": (
        gcks("id = 1", 'id = "video.example.org"'),
        "group.0.id: 'video.example.org' names no group; must be a number, an IPv4 or IPv6 address,"
        " or oid:1.2.3 with :HEX for its payload",
    ),
    "id no OID": (
        gcks("id = 1", 'id = "oid:1.2.x"'),
        "group.0.id: '1.2.x' is no OID; write it as 1.2.840.10070",
    ),
    "no members": (
        gcks('members = ["127.0.0.2"]', "members = []"),
        "group.0.members: must not be empty",
    ),
    "member malformed": (
        gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.2", "127.0.0.300"]'),
        f"group.0.members.1: '127.0.0.300' {NO_ID}",
    ),
    "member a network with a host in it": (
        gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.1/8"]'),
        "group.0.members.0: 127.0.0.1/8 has host bits set",
    ),
    "member with a wildcard in the middle": (
        gcks('members = ["127.0.0.2"]', 'members = ["gm*.example.org"]'),
        "group.0.members.0: 'gm*.example.org' must be an identity, %any, *.example.org,"
        " *@example.org, a network, or a DN with * for values: C=CH, O=Example, CN=*",
    ),
    "keyid malformed": (
        gcks('members = ["127.0.0.2"]', 'members = ["keyid:0x12"]'),
        f"group.0.members.0: 'keyid:0x12' {NO_ID}",
    ),
    "keyid empty": (
        gcks('members = ["127.0.0.2"]', 'members = ["keyid:"]'),
        f"group.0.members.0: 'keyid:' {NO_ID}",
    ),
    "user without name": (
        gcks('members = ["127.0.0.2"]', 'members = ["@example.org"]'),
        f"group.0.members.0: '@example.org' {NO_ID}",
    ),
    "group name twice": (
        GCKS + GCKS[GCKS.index("[[group]]") :].replace("id = 1", "id = 2"),
        "group.name: video twice",
    ),
    "group id twice": (
        GCKS + GCKS[GCKS.index("[[group]]") :].replace("video", "audio"),
        "group.id: 1 twice",
    ),
    "tek not multicast": (
        gcks(TEK, 'destination = "10.0.0.1"'),
        f"group.0.tek.0.destination: 10.0.0.1 {MULTICAST}",
    ),
    "tek for the link": (
        gcks(TEK, 'destination = "224.0.0.5"'),
        "group.0.tek.0.destination: 224.0.0.5 is for the link's control (IGMP, neighbours): never"
        " encrypted",
    ),
    "tek twice": (
        GCKS + f"[[group.tek]]\n{TEK}\n",
        "group.0.tek: any -> 239.192.1.1 twice",
    ),
    "tek families": (
        gcks(TEK, f'{TEK}\nsource = "2001:db8::1"'),
        "group.0.tek.0: source 2001:db8::1/128 and destination 239.192.1.1 must be both IPv4 or"
        " IPv6",
    ),
    "ports without protocol": (
        gcks(TEK, f"{TEK}\ndestination_port = 5000"),
        "group.0.tek.0: ports need a protocol, e.g. protocol = 17 for UDP",
    ),
    "protocol": (
        gcks(TEK, f"{TEK}\nprotocol = 256"),
        "group.0.tek.0.protocol: must be 0 to 255",
    ),
    "tek port": (
        gcks(TEK, f"{TEK}\nprotocol = 17\nsource_port = 65536"),
        "group.0.tek.0.source_port: must be 0 to 65535",
    ),
    "unknown tek proposal": (
        gcks(TEK, f'{TEK}\nproposal = "aes192-sha1"'),
        f"group.0.tek.0.proposal: must be one of {', '.join(ESP_SUITES)}",
    ),
    "tek proposal of AH": (
        gcks(TEK, f'{TEK}\nproposal = "sha256"'),
        f"group.0.tek.0.proposal: must be one of {', '.join(ESP_SUITES)}",
    ),
    "tek AH proposal of ESP": (
        gcks(TEK, f'{TEK}\nah_proposal = "aes256gcm16"'),
        "group.0.tek.0.ah_proposal: must be one of sha256, sha384, sha512",
    ),
    "tek of ESP and AH": (
        gcks(TEK, f'{TEK}\nproposal = "aes256-sha256"\nah_proposal = "sha256"'),
        "group.0.tek.0: give proposal for ESP or ah_proposal for AH, one of the two",
    ),
    "tek of no kilobytes": (
        gcks(TEK, f"{TEK}\nlifetime_kilobytes = 0"),
        "group.0.tek.0.lifetime_kilobytes: must be 1 to 4294967295",
    ),
    "tek direction": (
        gcks(TEK, f'{TEK}\ndirection = "both"'),
        "group.0.tek.0.direction: must be 'symmetric', 'per-member' or 'receiver-only'",
    ),
    "tek direction of many": (
        gcks(TEK, f'{TEK}\ndirection = "per-member"'),
        'group.0.tek.0: direction = "per-member" needs source = one sender\'s address: an SA of'
        " several senders is symmetric (RFC 6407 section 5.5.1.1.2)",
    ),
    "tek preservation in transport mode": (
        gcks(TEK, f'{TEK}\naddress_preservation = "destination-only"'),
        'group.0.tek.0: address_preservation is for mode = "tunnel"',
    ),
    "sid_bits": (
        gcks("id = 1", "id = 1\nsid_bits = 10"),
        "group.0.sid_bits: must be 8, 12 or 16",
    ),
    "sender_ids_limit": (
        gcks("id = 1", "id = 1\nsender_ids_limit = 64"),
        "group.0.sender_ids_limit: must be 1 to 63",
    ),
    "more Sender-IDs than there are": (
        gcks("id = 1", "id = 1\nsid_bits = 8\nsender_ids_limit = 52") + gcm_senders(5),
        "group.0: 5 senders with up to sender_ids_limit = 52 Sender-IDs each are more than"
        " sid_bits = 8 can tell apart",
    ),
    "gcm without source": (
        gcks(TEK, f'{TEK}\nproposal = "aes256gcm16"'),
        f"group.0.tek.0: {SENDERS}",
    ),
    "gcm with many sources": (
        gcks(TEK, f'{TEK}\nproposal = "aes256gcm16"\nsource = "10.0.0.0/31"'),
        f"group.0.tek.0: {SENDERS}",
    ),
    "tek lifetime": (
        gcks(TEK, f'{TEK}\nlifetime = "29s"'),
        "group.0.tek.0.lifetime: must be 30s to 30d",
    ),
    "duration a number": (
        gcks(TEK, f"{TEK}\nlifetime = 3600"),
        f"group.0.tek.0.lifetime: 3600 {NO_TIME}",
    ),
    "duration without unit": (
        gcks(TEK, f'{TEK}\nlifetime = "3600"'),
        f"group.0.tek.0.lifetime: '3600' {NO_TIME}",
    ),
    "mode": (
        gcks(TEK, f'{TEK}\nmode = "beet"'),
        "group.0.tek.0.mode: must be 'transport' or 'tunnel'",
    ),
    "rekey not multicast": (
        rekey('address = "10.0.0.1"'),
        f"group.0.rekey.address: 10.0.0.1 {MULTICAST}",
    ),
    "rekey family": (
        rekey('address = "ff05::1"'),
        "group.0.rekey.address: ff05::1 cannot be sent from 127.0.0.1:848",
    ),
    "kek": (rekey('kek = "aes512"'), "group.0.rekey.kek: must be 'aes128', 'aes192' or 'aes256'"),
    "signature": (
        rekey('signature = "rsa"'),
        f"group.0.rekey.signature: must be one of {', '.join(SCHEMES)}",
    ),
    "ack": (
        rekey("ack = false"),
        "group.0.rekey.ack: must be 'kek-sha256', 'kek-sha512', 'lkh-sha256', 'lkh-sha512' or"
        " 'none'",
    ),
    "lkh ack without lkh": (
        rekey('ack = "lkh-sha256"'),
        "group.0.rekey: ack lkh-sha256 is keyed by each member's own key of an LKH, which this"
        ' group has not; must be kek-sha256, kek-sha512 or none, or kek_management "lkh"',
    ),
    "lkh option without lkh": (
        rekey("lkh_members = 8"),
        'group.0.rekey: lkh_arity, lkh_members and rekey_on_join need kek_management = "lkh"',
    ),
    "key management": (
        rekey('kek_management = "oft"'),
        "group.0.rekey.kek_management: must be 'none' or 'lkh'",
    ),
    "lkh with half a block": (
        rekey('kek = "aes192"\nkek_management = "lkh"'),
        "group.0.rekey: kek aes192 cannot be in a tree, IV and key are not whole blocks of AES;"
        " must be aes128 or aes256",
    ),
    "lkh arity": (
        rekey('kek_management = "lkh"\nlkh_arity = 1'),
        "group.0.rekey.lkh_arity: must be 2 to 16",
    ),
    "a tree too large for its ids": (
        rekey('kek_management = "lkh"\nlkh_arity = 2\nlkh_members = 40000'),
        "group.0.rekey: lkh_members 40000 is more than a tree of arity 2 can hold, LKH IDs have 16"
        " bits: must be 1 to 32768; more members get more trees",
    ),
    "push limit": (rekey("push_limit = 511"), "group.0.rekey.push_limit: must be 512 to 65503"),
    "L": (rekey("ack_l = [65536]"), "group.0.rekey.ack_l.0: must be 1 to 65535"),
    "exempt": (
        rekey('ack_exempt = ["10.0.0.300"]'),
        "group.0.rekey.ack_exempt.0: '10.0.0.300' is no address, FQDN, user@FQDN, DN or keyid:HEX",
    ),
    "ack_wait": (rekey('ack_wait = "9.9s"'), "group.0.rekey.ack_wait: must be 10s to 1h"),
    "retransmissions": (
        rekey("retransmissions = 61"),
        "group.0.rekey.retransmissions: must be 0 to 60",
    ),
    "kek lifetime": (
        rekey('kek_lifetime = "366d"'),
        "group.0.rekey.kek_lifetime: must be 1m to 365d",
    ),
    "DTD before ATD": (
        rekey('activation_delay = "30s"\ndeactivation_delay = "29s"'),
        f"group.0.rekey: {DTD}",
    ),
    "DTD is ATD": (
        rekey('activation_delay = "30s"\ndeactivation_delay = "30s"'),
        f"group.0.rekey: {DTD}",
    ),
    "DTD and lifetime": (
        gcks(TEK, f'{TEK}\nlifetime = "59s"'),
        "group.0: deactivation_delay 30 s is more than half of the TEK lifetime 59 s",
    ),
}

KNOWN = ", ".join(netifaces.interfaces())
BAD_MEMBERS = {
    "no address": (
        gm('address = "127.0.0.1"', ""),
        "member: give address, or interface to take its first IPv4 address, or both",
    ),
    "address multicast": (
        gm('address = "127.0.0.1"', 'address = "ff02::1"'),
        f"member.address: ff02::1 {HOST}",
    ),
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

Config = Callable[[Path], object]


def refused(make: Config, path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make(path)
    assert caught.value.exit_code == 2
    assert caught.value.file == path
    assert "\n" not in str(caught.value)
    assert PSK not in str(caught.value) + repr(caught.value)
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty.psk").write_text(" \n")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize("case", BAD_KEY_SERVERS)
def test_bad_key_server_file(folder: Path, case: str) -> None:
    text, expected = BAD_KEY_SERVERS[case]
    path = write(folder, text)
    sentence = f"{path}: {expected.replace('{folder}', str(folder))}"
    assert str(refused(KeyServerDaemonConfig, path)) == sentence


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
    assert str(refused(MemberDaemonConfig, path)) == f"{path}: {said}"
    text = gm('address = "127.0.0.1"', 'address = "2001:db8::1"').replace("127.0.0.9", "::9")
    config = MemberDaemonConfig(write(tmp_path, text))
    assert (config.interface, str(config.local)) == ("net0", "[2001:db8::1]:848")
    path = write(tmp_path, gm('address = "127.0.0.1"', 'address = "fe80::1"'))
    said = "member.address: fe80::1 is no address of any interface of this host"
    assert str(refused(MemberDaemonConfig, path)) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"[key_server\n", "not TOML: Expected ']' at the end of a table declaration"),
        (b"x = 1\nx = 2\n", "not TOML: Cannot overwrite a value"),
        (b'x = "\xff"\n', "not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"x = " + b"[" * 5000, "not TOML: "),
        (b"x = " + b"9" * 5000, "not TOML: "),
        (b"x = 2026-13-01\n", "not TOML: "),
        (b"\0", "not TOML: "),
    ],
)
@pytest.mark.parametrize("make", [KeyServerDaemonConfig, MemberDaemonConfig])
def test_not_toml(tmp_path: Path, make: Config, octets: bytes, said: str) -> None:
    path = tmp_path / "daemon.toml"
    path.write_bytes(octets)
    assert str(refused(make, path)).startswith(f"{path}: {said}")


@pytest.mark.parametrize("make", [KeyServerDaemonConfig, MemberDaemonConfig])
def test_no_file(tmp_path: Path, make: Config) -> None:
    missing = tmp_path / "none.toml"
    assert str(refused(make, missing)) == f"{missing}: No such file or directory"
    assert str(refused(make, tmp_path)) == f"{tmp_path}: Is a directory"
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    assert str(refused(make, loop)) == f"{loop}: Too many levels of symbolic links"


def test_no_permission(tmp_path: Path) -> None:
    """In a child that is nobody: root may read everything."""
    path = write(tmp_path, GCKS)
    path.chmod(0o600)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            KeyServerDaemonConfig(path)
        except ConfigError as error:
            code = 0 if str(error) == f"{path}: Permission denied" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("psk", [f'psk = "{PSK}"', 'psk_file = "file.psk"'])
def test_the_key_shows_nowhere(tmp_path: Path, psk: str) -> None:
    (tmp_path / "file.psk").write_text(PSK)
    member = MemberDaemonConfig(write(tmp_path, gm(PSK_LINE, psk), "gm.toml"))
    server = KeyServerDaemonConfig(write(tmp_path, gcks(PSK_LINE, psk), "gcks.toml"))
    phase1 = server.phase1_for(Peer(ip_address("127.0.0.2"), 848))
    assert phase1 is not None
    (way,) = phase1.auth
    assert isinstance(way, PreSharedKey)
    assert way.psk.reveal() == PSK.encode()
    shown = repr((vars(member), vars(server), phase1))
    assert PSK not in shown
    assert PSK.encode().hex() not in shown


@pytest.mark.parametrize(
    "line", [f'psk = "{PSK}', f'psk = "{PSK}" x', f"psk = {PSK}", f'psk = "{PSK}\\q"']
)
def test_the_key_shows_in_no_syntax_error(tmp_path: Path, line: str) -> None:
    refused(KeyServerDaemonConfig, write(tmp_path, gcks(PSK_LINE, line)))


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


def test_acks_with_the_groups_oid(folder: Path) -> None:
    text = gm("id = 1", 'id = "oid:1.2.3"\nack_id = "oid"')
    (group,) = MemberDaemonConfig(write(folder, text)).groups
    assert group.acknowledges_as == group.group_id.payload()
    (plain,) = MemberDaemonConfig(write(folder, gm("id = 1", "id = 1"))).groups
    assert plain.acknowledges_as == Identity.of_address(plain.local.host).payload()


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
