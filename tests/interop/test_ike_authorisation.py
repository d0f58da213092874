"""``authorise = "ike"`` beside a real charon: who is a member, and who is none any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.support.postgres import running_postgres

from .charon import Charon
from .ike_members import (
    CONFIG,
    GCKS,
    GCKS6,
    NAMED,
    PLAIN,
    REFUSED,
    STRICT,
    VIDEO,
    Hosts,
    entity,
    hosts,
    key_server,
    listed,
    refusals,
)
from .running import Daemon, wait_for

ONE, TWO, BOTH, CERTIFIED, LEAVING = (f"10.79.0.{n}" for n in (11, 12, 13, 131, 132))
SIX = "2001:db8:79::11"
MEMBER = {n: entity(f"gm{n}", 71 + n) for n in range(1, 6)}
# charon writes both names as "C=CH, O=Example, CN=gm1".
SPOOFED = entity(
    "spoof",
    80,
    x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example, CN=gm1"),
        ]
    ),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder = tmp_path_factory.mktemp("ike")
    with hosts(folder, ONE, TWO, BOTH, CERTIFIED, LEAVING, SIX) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def theirs(site: Hosts) -> Iterator[Charon]:
    """The key server's."""
    with site.key_servers_charon() as ike:
        yield ike


@pytest.fixture(scope="module")
def gcks(site: Hosts) -> Iterator[Daemon]:
    with key_server(site, "gcks") as running:
        yield running


@pytest.fixture
def postgres() -> Iterator[str]:
    with running_postgres() as server:
        yield server.url(server.create_database())


@pytest.fixture
def connected(site: Hosts) -> Iterator[Callable[..., str]]:
    """IKE_SAs that end with the test."""
    made: list[str] = []

    def connect(*arguments: Any, **options: Any) -> str:
        made.append(site.connect(*arguments, **options))
        return made[-1]

    yield connect
    for connection in made:
        site.end(connection)


def test_an_ike_sa_makes_a_member(site: Hosts, gcks: Daemon, connected: Callable[..., str]) -> None:
    """Who has none is refused; who has one is whom IKE calls it; other groups ask for none."""
    assert site.applicant(ONE, PLAIN).run() is None
    assert REFUSED in str(site.applicant(ONE, VIDEO).run())
    assert refusals(gcks)[-1] == f"no established IKE_SA from {ONE}"
    assert listed(gcks, "video") == {}
    connected(MEMBER[1], ONE, "gm1.example.org")
    assert site.applicant(ONE, VIDEO).run() is None
    assert listed(gcks, "video")["gm1.example.org"] == "up"
    # Another address, where phase 1 works as well and no IKE_SA is from.
    assert REFUSED in str(site.applicant(TWO, VIDEO).run())
    assert refusals(gcks)[-1] == f"no established IKE_SA from {TWO}"


def test_its_state_follows_ike(site: Hosts, gcks: Daemon, connected: Callable[..., str]) -> None:
    connection = connected(MEMBER[1], ONE, "gm1.example.org")
    assert site.applicant(ONE, VIDEO).run() is None
    site.ike.terminate(connection)
    wait_for(lambda: listed(gcks, "video")["gm1.example.org"] == "down", "the IKE_SA to be missed")
    lost = gcks.events("ike-lost")[-1]
    assert (lost["group"], lost["member"]) == ("video", "gm1.example.org")
    site.again(connection)
    wait_for(lambda: listed(gcks, "video")["gm1.example.org"] == "up", "it to be back")
    before = len(gcks.events("ike-lost"))
    (old,) = site.ike.established(connection)
    site.ike._session.rekey({"ike": connection})
    wait_for(
        lambda: (
            [sa["uniqueid"] for sa in site.ike.established(connection)]
            not in ([], [old["uniqueid"]])
        ),
        "another IKE_SA in its place",
    )
    # What an IKE_SA is replaced by is there before that goes, for the key server too.
    assert site.applicant(ONE, VIDEO).run() is None
    assert len(gcks.events("ike-lost")) == before


def test_who_has_an_ike_sa_is_nobody_else(
    site: Hosts, gcks: Daemon, connected: Callable[..., str]
) -> None:
    """gm3's certificate, or key, behind gm2's IKE_SA."""
    connected(MEMBER[2], CERTIFIED, "gm2.example.org")
    assert REFUSED in str(site.applicant(CERTIFIED, VIDEO, MEMBER[3]).run())
    assert refusals(gcks)[-1] == (
        f"phase 1 is with gm3.example.org, IKE from {CERTIFIED} with gm2.example.org"
    )
    assert "gm3.example.org" not in listed(gcks, "video")
    assert site.applicant(CERTIFIED, VIDEO, MEMBER[2]).run() is None
    assert listed(gcks, "video")["gm2.example.org"] == "up"


def test_two_identities_at_one_address(
    site: Hosts, gcks: Daemon, connected: Callable[..., str]
) -> None:
    connected(MEMBER[2], CERTIFIED, "gm2.example.org")
    connected(MEMBER[3], CERTIFIED, "gm3.example.org")
    for number in (2, 3):
        assert site.applicant(CERTIFIED, VIDEO, MEMBER[number]).run() is None
    assert {"gm2.example.org", "gm3.example.org"} <= set(listed(gcks, "video"))
    # A key that the whole network knows tells nobody from the other.
    connected(MEMBER[4], BOTH, "gm4.example.org")
    connected(MEMBER[5], BOTH, "gm5.example.org")
    assert REFUSED in str(site.applicant(BOTH, VIDEO).run())
    assert "gm4.example.org and gm5.example.org, and phase 1 does not tell" in refusals(gcks)[-1]


def test_who_may_call_itself_anything_is_nobody(site: Hosts, theirs: Charon, gcks: Daemon) -> None:
    """A connection of charon's for others: a pre-shared key, and no name that is asked for."""
    theirs.load(
        "supplier",
        version="2",
        childless="allow",
        local={"auth": "psk", "id": "vpn"},
        remote={"auth": "psk"},
    )
    # charon shows it as text, as a name is shown.
    key_id = f"@#{b'gm1.example.org'.hex()}"
    theirs.load_psk(b"of the supplier", "vpn")
    site.ike.load_psk(b"of the supplier", "vpn", key_id)
    site.ike.load(
        "supplied",
        version="2",
        childless="force",
        local_addrs=[ONE],
        remote_addrs=[GCKS],
        local={"auth": "psk", "id": key_id},
        remote={"auth": "psk", "id": "vpn"},
    )
    site.again("supplied")
    wait_for(lambda: theirs.established("supplier"), "the supplier's IKE_SA")
    assert theirs.established("supplier")[0]["remote-id"] == "gm1.example.org"
    assert REFUSED in str(site.applicant(ONE, VIDEO).run())
    assert refusals(gcks)[-1] == f"no established IKE_SA from {ONE}"
    # Its word is taken where an operator says so.
    path = site.folder / "gcks" / "config.toml"
    path.write_text(path.read_text().replace('["members"]', '["members", "supplier"]'))
    assert gcks.ask("reload")["done"] == b"yes"
    assert site.applicant(ONE, VIDEO).run() is None
    assert listed(gcks, "video")["gm1.example.org"] == "up"
    path.write_text(path.read_text().replace('["members", "supplier"]', '["members"]'))
    gcks.ask("reload")
    wait_for(lambda: listed(gcks, "video")["gm1.example.org"] == "down", "it to be doubted again")
    site.end("supplied")


def test_a_name_that_only_looks_like_another(
    site: Hosts, gcks: Daemon, connected: Callable[..., str]
) -> None:
    """charon's text of a distinguished name is not proof by itself."""
    connection = connected(SPOOFED, TWO)
    (sa,) = site.ike.established(connection)
    assert sa["local-id"] == "C=CH, O=Example, CN=gm1"
    assert REFUSED in str(site.applicant(TWO, NAMED).run())
    assert refusals(gcks)[-1] == (
        f"IKE from {TWO} is with C=CH, O=Example, CN=gm1, which phase 1 has to prove as well"
    )
    assert listed(gcks, "named") == {}


def test_behind_a_nat(site: Hosts, gcks: Daemon, connected: Callable[..., str]) -> None:
    """UDP encapsulation that one end asks for looks like a NAT to the other: others may have the
    address, too."""
    connected(MEMBER[4], BOTH, "gm4.example.org", encap="yes")
    assert REFUSED in str(site.applicant(BOTH, VIDEO).run())
    assert "come through a NAT, gm4.example.org, and phase 1" in refusals(gcks)[-1]
    connected(MEMBER[5], LEAVING, "gm5.example.org", encap="yes")
    assert site.applicant(LEAVING, VIDEO, MEMBER[5]).run() is None


def test_with_a_database_that_is_shared(
    site: Hosts, postgres: str, connected: Callable[..., str]
) -> None:
    """What charon says is no step: it goes on whether this key server leads or not. By IPv6."""
    database = postgres.replace("@", "\\u0040")  # which stands for the folder
    config = CONFIG.replace("[key_server]", f'[key_server]\ndatabase = "{database}"')
    config = config.replace('state = "@/state.sqlite"', 'name = "a"\nlease = "5s"')
    config = config.replace('on_ike_down = "evict"\nike_grace = "1s"\n', "")
    config = config.replace(f'address = "{GCKS}"', f'address = "{GCKS6}"')
    with key_server(site, "shared", config) as gcks:
        connection = connected(MEMBER[1], SIX, "gm1.example.org")
        assert site.applicant(SIX, VIDEO).run() is None
        assert listed(gcks, "video") == {"gm1.example.org": "up"}
        site.ike.terminate(connection)
        wait_for(lambda: listed(gcks, "video") == {"gm1.example.org": "down"}, "its IKE_SA to go")
        assert REFUSED in str(site.applicant(SIX, VIDEO).run())
        assert "no established IKE_SA" in refusals(gcks)[-1]


def test_evicted_where_policy_says_so(
    site: Hosts, gcks: Daemon, connected: Callable[..., str]
) -> None:
    connection = connected(MEMBER[1], ONE, "gm1.example.org")
    assert site.applicant(ONE, STRICT).run() is None
    assert listed(gcks, "strict") == {"gm1.example.org": "up"}
    site.ike.terminate(connection)
    wait_for(lambda: listed(gcks, "strict") == {}, "its eviction")
    evicted = gcks.events("member-evicted")[-1]
    assert (evicted["member"], evicted["reason"]) == ("gm1.example.org", "ike-lost")
    (*_, rekey) = gcks.ctl("rekeys", "--group", "strict")
    assert rekey["reason"] == "ike-lost"
    # It is not kept out for that.
    site.again(connection)
    assert site.applicant(ONE, STRICT).run() is None


def test_an_evicted_members_ike_sa_is_ended(
    site: Hosts, gcks: Daemon, connected: Callable[..., str]
) -> None:
    connection = connected(MEMBER[4], LEAVING, "gm4.example.org")
    other = connected(MEMBER[5], LEAVING, "gm5.example.org")
    assert site.applicant(LEAVING, VIDEO, MEMBER[4]).run() is None
    gcks.ask("revoke", group="video", identities=["gm4.example.org"])
    wait_for(lambda: not site.ike.established(connection), "charon to delete its IKE_SA")
    wait_for(lambda: gcks.events("ike-terminated"), "the log to say so")
    (ended,) = gcks.events("ike-terminated")
    assert (ended["identity"], ended["address"]) == ("gm4.example.org", LEAVING)
    assert len(site.ike.established(other)) == 1
    # It may come up again, which is charon's business, and does not make a member any more.
    site.again(connection)
    assert REFUSED in str(site.applicant(LEAVING, VIDEO, MEMBER[4]).run())
    assert refusals(gcks)[-1] == "gm4.example.org is no member of video"
