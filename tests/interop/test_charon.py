"""charon as the other end of phase 1, in both roles: pre-shared keys, and the life of the SA.

All in one network namespace, on addresses of its loopback::

    10.77.0.1:500          10.77.0.2:848              10.77.0.3:848
    charon  <---- UDP ---> gdoi-gcks, a process
       ^--------- UDP ------------------------------> a group member's engine, in this process
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Event, Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.wire.registry import Doi

from .charon import PORT, Charon, Record, Refused, charon, on_loopback
from .engine_shell import Agent
from .running import Daemon, daemon, wait_for

CHARON, GCKS, GM = "10.77.0.1", "10.77.0.2", "10.77.0.3"
AT_CHARON, AT_GM = Peer(ip_address(CHARON), PORT), Peer(ip_address(GM), 848)
STRICT = "10.77.0.4"  # where charon comes from when only GDOI's own number is accepted
PSK = b"a pre-shared key of two programs"
# Each hash, each key length and each kind of group, not all of their combinations.
PROPOSALS = {
    "aes128-sha256-ecp256": ("128", "HMAC_SHA2_256_128", "ECP_256"),
    "aes256-sha384-ecp384": ("256", "HMAC_SHA2_384_192", "ECP_384"),
    "aes256-sha512-modp2048": ("256", "HMAC_SHA2_512_256", "MODP_2048"),
    "aes128-sha512-ecp256": ("128", "HMAC_SHA2_512_256", "ECP_256"),
    "aes256-sha256-modp3072": ("256", "HMAC_SHA2_256_128", "MODP_3072"),
}
CONFIG = f"""
[key_server]
address = "{GCKS}"
state = "@/state.sqlite"
control = "@/control"
proposals = {list(SUITES)}
dpd_delay = "2s"
dpd_timeout = "10s"
[[peer]]
address = "{CHARON}"
psk = "{PSK.decode()}"
phase1_doi = "any"
[[peer]]
address = "{STRICT}"
psk = "{PSK.decode()}"
[[group]]
name = "video"
id = 1234
members = ["{CHARON}"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    with on_loopback(CHARON, GCKS, GM, STRICT):
        yield


@pytest.fixture(scope="module")
def ike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Charon]:
    with charon(tmp_path_factory.mktemp("charon")) as running:
        running.load_psk(PSK, CHARON, STRICT, GCKS, GM)
        yield running


@pytest.fixture(scope="module")
def gcks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon("gdoi-gcks", CONFIG, tmp_path_factory.mktemp("gcks")) as running:
        yield running
        assert running.events("bug") == []


def connection(proposal: str, local: str = CHARON, remote: str = GCKS) -> Record:
    return {
        "local_addrs": [local],
        "remote_addrs": [remote],
        "remote_port": "848",
        "proposals": [proposal],
        "local": {"auth": "psk", "id": local},
        "remote": {"auth": "psk", "id": remote},
    }


Connect = Callable[[str, Record], Record]


def phase1_sas(gcks: Daemon) -> int:
    return int(gcks.ctl("status")[0]["stats"]["isakmp"]["established"])


@pytest.fixture
def connect(ike: Charon, gcks: Daemon) -> Iterator[Connect]:
    """Loads and initiates a connection; the key server's word of it; ended after the test."""
    made: list[str] = []

    def initiate(name: str, settings: Record) -> Record:
        ike.load(name, **settings)
        made.append(name)
        ike.initiate(name)
        (sa,) = ike.established(name)
        cookies = sa["initiator-spi"] + sa["responder-spi"]

        def said() -> list[Record]:
            events = gcks.events("phase1-established")
            return [event for event in events if event["cookies"] == cookies]

        wait_for(said, "the key server to call phase 1 established")
        return said()[0]

    yield initiate
    for name in made:
        if ike.sas(name):
            ike.terminate(name)
    wait_for(lambda: phase1_sas(gcks) == 0, "the key server to forget the phase-1 SAs")


# -- charon initiates ------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_charon_initiates(ike: Charon, connect: Connect, proposal: str) -> None:
    event = connect(f"to-gcks-{proposal}", connection(proposal))
    (sa,) = ike.established(f"to-gcks-{proposal}")
    said = (sa["encr-keysize"], sa["integ-alg"], sa["dh-group"])
    assert said == PROPOSALS[proposal]
    assert (event["identity"], event["proposal"], event["doi"]) == (CHARON, proposal, "ipsec")


def test_our_first_preference_wins(ike: Charon, connect: Connect) -> None:
    offered = connection("aes256-sha256-modp2048")
    offered["proposals"] = [
        "aes128-sha256-modp2048",
        "aes256-sha384-ecp384",
        "aes256-sha512-ecp384",
    ]
    event = connect("many", offered)
    preferred = [keyword for keyword in SUITES if keyword in offered["proposals"]]
    assert event["proposal"] == preferred[0]
    assert ike.established("many")


def test_ipsecs_number_is_refused_where_it_is_not_allowed(ike: Charon, gcks: Daemon) -> None:
    ike.load("strict", **connection("aes256-sha256-ecp256", local=STRICT))
    with pytest.raises(Refused, match="received NO_PROPOSAL_CHOSEN error notify"):
        ike.initiate("strict")
    dropped = [line for line in gcks.events("dropped") if line["peer"] == f"{STRICT}:{PORT}"]
    assert [line["reason"] for line in dropped] == ["no-proposal-chosen"]
    assert dropped[0]["detail"].startswith("DOI 1, offered ")


# -- charon answers --------------------------------------------------------------------------------


def agent(*proposals: str, local: Peer = AT_GM, server: Peer = AT_CHARON) -> Agent:
    """A member. With charon for its key server phase 1 is as far as the two can get."""
    phase1 = Phase1Config(
        (
            PreSharedKey(
                Identity.of_address(local.host), Identity.of_address(server.host), Secret(PSK)
            ),
        ),
        tuple(SUITES[keyword] for keyword in proposals),
        dois=(Doi.IPSEC,),
    )
    config = MemberConfig(
        "video", GroupId.of_number(1234), local, (KeyServerEntry(server, phase1),)
    )
    return Agent(GroupMember(config, os.urandom))


def run_until(agent: Agent, condition: Callable[[], object], what: str) -> None:
    def step() -> object:
        agent.socket.settimeout(0.02)
        try:
            agent.arrived()
        except TimeoutError:
            agent.tick()
        return condition()

    wait_for(step, what)


def established(agent: Agent) -> list[Event]:
    return [event for event in agent.events if event.name == "phase1-established"]


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_charon_answers(ike: Charon, proposal: str) -> None:
    ike.load("from-gm", **connection(proposal, remote=GM))
    member = agent(proposal)
    try:
        member.start()
        run_until(member, lambda: established(member), "main mode with charon")
        (event,) = established(member)
        (sa,) = ike.established("from-gm")
        assert "initiator" not in sa
        said = (sa["encr-keysize"], sa["integ-alg"], sa["dh-group"])
        assert said == PROPOSALS[proposal]
        assert event.fields["cookies"] == sa["initiator-spi"] + sa["responder-spi"]
        assert (event.fields["identity"], event.fields["doi"]) == (CHARON, "ipsec")
        member.perform(member.engine.stop())
        wait_for(lambda: not ike.sas("from-gm"), "charon to take our Delete")
    finally:
        member.socket.close()


# -- the life of phase 1 ---------------------------------------------------------------------------


def test_quick_mode_is_refused(ike: Charon, gcks: Daemon, connect: Connect) -> None:
    """Its exchange has GROUPKEY-PULL's number. charon gives up the CHILD_SA, not the IKE_SA."""
    settings = connection("aes256-sha256-ecp256")
    settings["children"] = {"net": {"remote_ts": [GCKS]}}
    connect("quick", settings)
    with pytest.raises(Refused, match=r"HASH N\(NO_PROP\)"):
        ike.initiate("quick", "net")
    (sa,) = ike.established("quick")
    assert "tasks-active" not in sa
    assert phase1_sas(gcks) == 1


def test_charon_deletes(ike: Charon, gcks: Daemon, connect: Connect) -> None:
    event = connect("ending", connection("aes256-sha256-ecp256"))
    ike.terminate("ending")
    assert ended(gcks, event) == "peer"


def ended(gcks: Daemon, event: Record) -> str:
    """Why the key server let go of a phase-1 SA."""

    def said() -> list[str]:
        events = gcks.events("phase1-deleted")
        return [other["reason"] for other in events if other["cookies"] == event["cookies"]]

    wait_for(said, "the key server to end the SA")
    return str(said()[0])


def test_charons_initial_contact(ike: Charon, gcks: Daemon, connect: Connect) -> None:
    """In message 5: whoever had its identity before, a member's engine here, has it no more."""
    before = agent(
        "aes256-sha256-ecp256",
        local=Peer(ip_address(CHARON), 8848),
        server=Peer(ip_address(GCKS), 848),
    )
    try:
        before.start()
        run_until(before, lambda: "registered" in before.names(), "a registration")
        connect("again", connection("aes256-sha256-ecp256"))
        assert ended(gcks, dict(established(before)[0].fields)) == "initial-contact"
        run_until(before, lambda: "phase1-deleted" in before.names(), "the key server's Delete")
        assert phase1_sas(gcks) == 1
        assert ike.established("again")
    finally:
        before.socket.close()


def test_our_initial_contact(ike: Charon) -> None:
    """charon takes it for what it is: the IKE_SA of the run before goes."""
    ike.load("from-gm", **connection("aes256-sha256-ecp256", remote=GM))
    for _ in range(2):
        cookies = main_mode_with_charon()
        (sa,) = ike.established("from-gm")
        assert cookies == sa["initiator-spi"] + sa["responder-spi"]
    ike.terminate("from-gm")


def main_mode_with_charon() -> str:
    """A member that establishes phase 1 and is killed: the cookies of its SA."""
    member = agent("aes256-sha256-ecp256")
    try:
        member.start()
        run_until(member, lambda: established(member), "main mode with charon")
    finally:
        member.socket.close()
    return str(established(member)[0].fields["cookies"])


def test_dpd_by_charon(ike: Charon, connect: Connect) -> None:
    """RFC 3706: our key server has announced it, so charon asks, and is answered."""
    before = len(ike.log())
    connect("asking", {**connection("aes256-sha256-ecp256"), "dpd_delay": "1"})
    ike.wait_for_log("[ HASH N(DPD) ]", before)
    ike.wait_for_log("[ HASH N(DPD_ACK) ]", before)
    said = [line for line in ike.log()[before:].splitlines() if "N(DPD" in line]
    assert [line.split()[1] for line in said[:2]] == ["generating", "parsed"]
    assert ike.established("asking")


def test_dpd_by_our_key_server(ike: Charon, connect: Connect) -> None:
    before = len(ike.log())
    connect("asked", connection("aes256-sha256-ecp256"))
    ike.wait_for_log("[ HASH N(DPD_ACK) ]", before)
    said = [line for line in ike.log()[before:].splitlines() if "N(DPD" in line]
    assert [line.split()[1] for line in said[:2]] == ["parsed", "generating"]
    assert ike.established("asked")
