"""Members that reach their key server inside charon's ESP, and in no other way.

::

    gcks ----+---- gm1, gm2, gm3

charon runs on every host. Each member's agent has charon bring up a CHILD_SA for UDP 848: gm1 with
a pre-shared key, gm2 with a certificate, gm3 with one that is revoked at the key server's charon.
The key server takes nothing from them that has come in clear.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from gdoi_lab.capture import Capture
from gdoi_lab.clear import read_frames
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Host, Network
from gdoi_lab.waiting import wait_until

from gdoi_plugin.daemon.charon.blocks import MAX_LENGTH
from gdoi_plugin.daemon.guard import CHANNEL_PRIORITY
from tests.interop.charon import Charon, charon
from tests.kernel.namespaces import Namespace
from tests.lab.running import stopped
from tests.lab.watch import reconfigure, rekey
from tests.support.pki import Entity, issue, revoke, usage

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2", "gm3"]
LIMIT = 150.0
PSK = "of gm1's charon and the key server's"
OPTIONS = GroupOptions(
    unicast=True,
    activation_delay="0s",
    deactivation_delay="0s",
    ack_jitter="0s",
)
# The other side's death is found out within seconds.
SETTINGS = "retransmit_tries = 2\nretransmit_timeout = 1.0\nretransmit_base = 1.0"
"""Of a strongswan.conf."""


@dataclass(slots=True)
class Lab:
    group: LabGroup
    folder: Path
    capture: Capture
    ike: dict[str, Charon] = field(default_factory=dict)
    stacks: dict[str, ExitStack] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        return self.group.network[name]

    def member(self, name: str = "gm1") -> Daemon:
        return self.group.members[name]

    def start_charon(self, name: str) -> Charon:
        stack = self.stacks[name] = ExitStack()
        before = tuple(self.host(name).command([]))
        self.ike[name] = stack.enter_context(charon(self.folder / name, SETTINGS, before=before))
        return self.ike[name]

    def stop_charon(self, name: str) -> None:
        self.stacks.pop(name).close()

    def stop_charons(self) -> None:
        for name in list(self.stacks):
            self.stop_charon(name)

    def logged(self, name: str = "gm1") -> list[str]:
        """What the member has said about its channel."""
        return [str(e["event"]) for e in self.member(name).events("ike-up", "ike-lost")]

    def wait_logged(self, *words: str, name: str = "gm1") -> None:
        """Exactly these, since the beginning."""
        wait_until(
            lambda: len(self.logged(name)) >= len(words),
            LIMIT,
            f"{name} to say {words[-1]}",
        )
        assert self.logged(name) == list(words)

    def channel(self, name: str = "gm1") -> dict[str, str]:
        """As list-groups shows it."""
        (shown,) = self.group.listed(self.member(name), "group")
        (found,) = shown["channels"].values()
        return dict(found)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Nothing runs yet."""
    folder = tmp_path_factory.mktemp("ike_channel")
    with Network(["gcks", *MEMBERS], folder / "work") as network, ExitStack() as stack:
        group = LabGroup(network, folder / "work", folder, OPTIONS)
        made = Lab(group, folder, network.capture(folder / "bridge.pcap"))
        stack.callback(made.stop_charons)
        reconfigure(group.gcks, "[[peer]]\n", '[[peer]]\nchannel = "ike"\n')
        for name in MEMBERS:
            configure(made, name)
        with stopped(group):
            yield made
        for daemon in (*group.members.values(), group.gcks):
            assert list(daemon.events("bug")) == []


# -- certificates, of charons alone ---------------------------------------------------------------


NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def entity(name: str, number: int, issuer: Entity | None = None) -> Entity:
    return issue(
        name,
        issuer,
        number=number,
        ca=issuer is None,
        names=() if issuer is None else (f"{name}.example.org",),
        key_usage=usage(key_cert_sign=True, crl_sign=True)
        if issuer is None
        else usage(digital_signature=True),
        begin=NOW - DAY,
        end=NOW + DAY,
        key_identifier=issuer is None,
    )


CA = entity("charons", 70)
ENTITIES = {name: entity(name, 71 + n, CA) for n, name in enumerate(("gcks", *MEMBERS))}


def configure(lab: Lab, name: str) -> None:
    """The member's group goes through charon, whose connection is given here."""
    member, folder = lab.member(name), lab.folder / name
    vici = folder / "vici"
    reconfigure(member, "[member]\n", f'[member]\ncharon = "{vici}"\nnat_port = 4501\n')
    reconfigure(member, "ack_jitter", 'channel = "ike"\nack_jitter')
    ike = '\n[group.key_server.ike]\nesp_proposals = ["aes128gcm16"]\n'
    if name == "gm1":
        ike += f'psk = "{PSK}"\n'
    else:
        files = {"cert.pem": ENTITIES[name].pem, "key.pem": ENTITIES[name].key_pem}
        for file, data in {**files, "ca.pem": CA.pem}.items():
            (member.work / file).write_bytes(data)
        ike += (
            'auth = "pubkey"\ncertificate = "cert.pem"\nprivate_key = "key.pem"\n'
            f'cacerts = ["ca.pem"]\nlocal_id = "{name}.example.org"\n'
            'remote_id = "gcks.example.org"\n'
        )
    config = member.work / "config.toml"
    config.write_text(config.read_text() + ike)


def load_key_server(lab: Lab) -> None:
    """At the key server's charon: whoever has the key or a certificate that is not revoked."""
    ike, address = lab.ike["gcks"], lab.host("gcks").address4
    children = {
        "gdoi": {
            "mode": "transport",
            "local_ts": ["dynamic[udp/848]"],
            "remote_ts": ["dynamic[udp/848]"],
            "esp_proposals": ["aes128gcm16"],
            "dpd_action": "clear",
        }
    }
    common = {"version": "2", "local_addrs": [address], "mobike": "no", "children": children}
    ike.load_psk(PSK.encode(), address, lab.host("gm1").address4)
    ike.load(
        "psk",
        **common,
        remote_addrs=[lab.host("gm1").address4],
        local={"auth": "psk", "id": address},
        remote={"auth": "psk"},
    )
    ike.load_authority(CA.certificate.public_bytes(Encoding.PEM))
    ike.load_key(ENTITIES["gcks"].key_pem)
    ike.load_crl(
        revoke(CA, ENTITIES["gm3"], begin=NOW - DAY, end=NOW + DAY).public_bytes(Encoding.PEM)
    )
    ike.load(
        "certificates",
        **common,
        remote_addrs=[lab.host(name).address4 for name in ("gm2", "gm3")],
        local={"auth": "pubkey", "id": "gcks.example.org", "certs": [ENTITIES["gcks"].pem]},
        remote={"auth": "pubkey", "revocation": "strict"},
    )


# -- the wire --------------------------------------------------------------------------------------


def in_clear(pcap: Path, port: int = 848) -> int:
    """UDP datagrams from or to a port that are in no ESP."""
    udps = [
        frame[14 + 4 * (frame[14] & 0x0F) :]
        for frame in read_frames(pcap)
        if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP
    ]
    return sum(port.to_bytes(2, "big") in (udp[:2], udp[2:4]) for udp in udps)


def send_clear(lab: Lab, sender: str, receiver: str, port: int = 9848) -> None:
    """A datagram to the receiver's UDP 848. Raises PermissionError where the kernel blocks it."""
    with (
        Namespace.named(lab.host(sender).namespace) as there,
        there.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(("", port))
        sock.sendto(b"in clear", (lab.host(receiver).address4, 848))


def guards(host: Host) -> int:
    """How many policies there are that block UDP 848, or the port for NATs."""
    entries = re.split(
        r"^(?=src )", host.ip("xfrm", "policy", "list", "nosock"), flags=re.MULTILINE
    )
    found = [re.search(r"action block.*priority (\d+)", entry) for entry in entries]
    numbers = [int(one[1]) for one in found if one is not None]
    return sum(CHANNEL_PRIORITY <= number <= CHANNEL_PRIORITY + MAX_LENGTH for number in numbers)


def received(lab: Lab, name: str) -> int:
    """Datagrams that a host's UDP has passed on to programs."""
    found = lab.host(name).run(["cat", "/proc/net/snmp"]).stdout
    names, counts = [line.split() for line in found.splitlines() if line.startswith("Udp:")]
    return int(counts[names.index("InDatagrams")])


# -- the tests, in this order ---------------------------------------------------------------------


def test_without_charon_nothing_passes(lab: Lab) -> None:
    """At either end, neither of the daemons nor of others."""
    lab.group.gcks.start()
    lab.member().start()
    lab.wait_logged("ike-lost")
    wait_until(lambda: lab.channel()["charon"] == "unreachable", LIMIT, "it to be shown")
    before = received(lab, "gcks"), received(lab, "gm1")
    with pytest.raises(PermissionError):
        send_clear(lab, "gm1", "gcks")
    send_clear(lab, "gm2", "gcks")  # whose agent does not run yet
    wait_until(lambda: no_policy(lab, "gcks") > 0, LIMIT, "the key server's kernel to drop it")
    assert (received(lab, "gcks"), received(lab, "gm1")) == before
    assert list(lab.group.gcks.events("member-registered")) == []
    assert len(lab.logged()) == 1


def no_policy(lab: Lab, name: str) -> int:
    """Packets that came in and were blocked."""
    lines = lab.host(name).run(["cat", "/proc/net/xfrm_stat"]).stdout.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("XfrmInPolBlock"))


def test_registration_and_rekeys_inside_esp(lab: Lab) -> None:
    """charon comes: the agent loads its connection, brings the CHILD_SA up, and registers."""
    lab.start_charon("gcks")
    load_key_server(lab)
    lab.start_charon("gm1")
    lab.wait_logged("ike-lost", "ike-up")
    lab.member().wait_event("registered", LIMIT)
    rekey(lab.group, ["gm1"])
    shown = lab.channel()
    assert (shown["state"], shown["charon"]) == ("up", "reachable")
    assert (shown["ike-sa"], shown["child-sa"]) == ("established", "installed")
    (child,) = lab.ike["gm1"].children(shown["connection"])
    assert min(int(child["packets-in"]), int(child["packets-out"])) >= 6


def test_certificates_and_one_that_is_revoked(lab: Lab) -> None:
    for name in ("gm2", "gm3"):
        lab.start_charon(name)
        lab.member(name).start()
    lab.member("gm2").wait_event("registered", LIMIT)
    lab.ike["gcks"].wait_for_log("certificate was revoked")
    lab.wait_logged("ike-lost", name="gm3")
    rekey(lab.group, ["gm1", "gm2"])
    assert lab.logged("gm2") == ["ike-up"]
    assert list(lab.member("gm3").events("registered")) == []
    (lost,) = lab.member("gm3").events("ike-lost")
    assert "AUTHENTICATION_FAILED" in str(lost["error"])
    registered = {str(e["member"]) for e in lab.group.gcks.events("member-registered")}
    assert lab.host("gm3").address4 not in registered
    assert lab.member("gm3").stop() == 0
    lab.stop_charon("gm3")


FROM_FILE = """
connections {{
  from-file {{
    version = 2
    mobike = no
    local_addrs = {gm}
    remote_addrs = {gcks}
    local {{
      auth = psk
    }}
    remote {{
      auth = psk
    }}
    children {{
      udp848 {{
        mode = transport
        local_ts = dynamic[udp/848]
        remote_ts = dynamic[udp/848]
        esp_proposals = aes128gcm16
      }}
    }}
  }}
}}
secrets {{
  ike-1 {{
    id-1 = {gm}
    id-2 = {gcks}
    secret = "{psk}"
  }}
}}
"""


def load_all(lab: Lab, name: str) -> str:
    """The real `swanctl --load-all`, with a connection of its own; what it says."""
    folder = lab.folder / name / "swanctl"
    folder.mkdir(exist_ok=True)
    addresses = {one: lab.host(one).address4 for one in ("gcks", name)}
    text = FROM_FILE.format(gm=addresses[name], gcks=addresses["gcks"], psk=PSK)
    (folder / "swanctl.conf").write_text(text)
    (folder / "strongswan.conf").write_text("")
    where = {"SWANCTL_DIR": str(folder), "STRONGSWAN_CONF": str(folder / "strongswan.conf")}
    command = ["swanctl", "--load-all", "--uri", f"unix://{lab.folder / name / 'vici'}"]
    return subprocess.run(
        command, env={**os.environ, **where}, capture_output=True, text=True, check=True
    ).stdout


def test_load_all_unloads_the_connection(lab: Lab) -> None:
    """Which swanctl's own configuration has not. It is loaded again, and the CHILD_SA, which
    swanctl leaves, goes on."""
    name, ike = lab.channel()["connection"], lab.ike["gm1"]
    (before,) = ike.children(name)
    start = len(ike.log())
    said = load_all(lab, "gm1")
    assert f"unloaded connection '{name}'" in said or "loaded connection 'from-file'" in said
    ike.wait_for_log(f"added vici connection: {name}", start)
    (after,) = ike.children(name)
    assert after["spi-in"] == before["spi-in"]
    rekey(lab.group, ["gm1", "gm2"])
    assert lab.logged() == ["ike-lost", "ike-up"]


def test_a_child_that_is_ended_comes_back(lab: Lab) -> None:
    lab.ike["gm1"].terminate(lab.channel()["connection"])
    wait_until(lambda: lab.ike["gm1"].children(lab.channel()["connection"]), LIMIT, "it")
    rekey(lab.group, ["gm1", "gm2"])


def test_charon_stands_still(lab: Lab) -> None:
    """Noticed once, its return too. Its SAs are the kernel's: rekeys go on meanwhile."""
    said = lab.logged()
    process = lab.ike["gm1"].process
    os.kill(process.pid, signal.SIGSTOP)
    try:
        lab.wait_logged(*said, "ike-lost")
        rekey(lab.group, ["gm1", "gm2"])
    finally:
        os.kill(process.pid, signal.SIGCONT)
    lab.wait_logged(*said, "ike-lost", "ike-up")
    rekey(lab.group, ["gm1", "gm2"])


def test_charon_is_killed_and_started_again(lab: Lab) -> None:
    said = lab.logged()
    lab.ike["gm1"].process.kill()
    lab.wait_logged(*said, "ike-lost")
    rekey(lab.group, ["gm1", "gm2"])
    lab.stop_charon("gm1")
    lab.start_charon("gm1")
    lab.wait_logged(*said, "ike-lost", "ike-up")
    rekey(lab.group, ["gm1", "gm2"])


def test_the_agent_is_killed_and_its_guards_stay(lab: Lab) -> None:
    member = lab.member()
    registered = len(list(member.events("registered")))
    member.kill()
    lab.stop_charon("gm1")
    assert guards(lab.host("gm1")) == 3
    with pytest.raises(PermissionError):
        send_clear(lab, "gm1", "gcks")
    lab.start_charon("gm1")
    member.start()
    member.wait_event("registered", LIMIT, registered + 1)
    rekey(lab.group, ["gm1", "gm2"])


@pytest.mark.parametrize(("name", "many"), [("gm1", 3), ("gcks", 4)])
def test_guards_are_put_back(lab: Lab, name: str, many: int) -> None:
    host = lab.host(name)
    assert guards(host) == many
    host.ip("xfrm", "policy", "deleteall", "action", "block")
    wait_until(lambda: guards(host) == many, LIMIT, "the policies")


def test_a_connection_of_swanctl_by_its_name(lab: Lab) -> None:
    """Until it is loaded there is none, and the agent says so."""
    member = lab.member()
    assert member.stop() == 0
    lab.stop_charon("gm1")
    config = member.work / "config.toml"
    text = config.read_text().split("[group.key_server.ike]")[0]
    named = '[group.key_server.ike]\nconnection = "from-file"\nchild = "udp848"\n'
    config.write_text(text + named)
    said, registered = lab.logged(), len(list(member.events("registered")))
    lab.start_charon("gm1")
    member.start()
    lab.wait_logged(*said, "ike-lost")
    *_, lost = member.events("ike-lost")
    assert "no connection from-file" in str(lost["error"])
    load_all(lab, "gm1")
    lab.wait_logged(*said, "ike-lost", "ike-up")
    member.wait_event("registered", LIMIT, registered + 1)
    rekey(lab.group, ["gm1", "gm2"])
    assert len(lab.ike["gm1"].children("from-file")) == 1


def test_nothing_of_all_that_was_in_clear(lab: Lab) -> None:
    """But for what was sent so at the beginning, and came to nobody."""
    lab.capture.stop()
    assert in_clear(lab.capture.path) == 1


def test_without_the_channel_the_guards_go(lab: Lab) -> None:
    """At the next start; and the reverse was shown at the first."""
    for name in ("gm1", "gm2"):
        member = lab.member(name)
        assert member.stop() == 0
        config = member.work / "config.toml"
        text = config.read_text().split("\n[group.key_server.ike]")[0]
        config.write_text(text.replace('channel = "ike"\n', ""))
        lab.stop_charon(name)
    reconfigure(lab.group.gcks, 'channel = "ike"\n', "")
    assert lab.group.gcks.stop() == 0
    lab.stop_charon("gcks")
    lab.group.gcks.start()
    for name in ("gm1", "gm2"):
        member = lab.member(name)
        registered = len(list(member.events("registered")))
        member.start()
        member.wait_event("registered", LIMIT, registered + 1)
        assert guards(lab.host(name)) == 0
    assert "action block" not in lab.host("gcks").ip("xfrm", "policy", "list", "nosock")
    rekey(lab.group, ["gm1", "gm2"])
