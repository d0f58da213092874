"""Registrations per second of one processor core, beside two bounds.

The key server is a gdoi-gcks of its own process, with its store, its sockets and its log; members
are engines in this one. What is counted is the processor time of the key server alone, so a rate is
that of a core which does nothing else.

    arithmetic  one side's key exchange, and with certificates one signature made and one verified,
                in C (tests/bench/phase1.c). Goal: 0.3 of that rate, phase 1 and GROUPKEY-PULL both
    charon      the same main mode without GROUPKEY-PULL, answered by charon. Goal: its rate

Rounds of all of them are interleaved; a figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from itertools import count, islice
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gdoi_bench.bound import Bound, compiled
from gdoi_bench.endpoint import Endpoint
from gdoi_bench.figure import Figure
from gdoi_bench.gcks import WITH_US, RunningKeyServer, key_server, processor_seconds
from gdoi_bench.mirror import new_namespace
from gdoi_bench.registering import Applicant, Registrations, Unregistered
from gdoi_plugin.crypto.certificate import TrustStore
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityPattern
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.nat import Traversal
from gdoi_plugin.protocol.phase1 import (
    Authentication,
    Certificates,
    Credential,
    Phase1Config,
    PreSharedKey,
    SendCertificate,
)
from gdoi_plugin.protocol.pull import PullResult
from gdoi_plugin.wire.registry import Doi
from tests.interop.charon import Charon, charon
from tests.support.pki import Entity, issue, usage

SERVER, FIRST = IPv4Address("127.0.0.1"), IPv4Address("127.1.0.0")
PORT, CHARON_PORT, MEMBER_PORT = 848, 500, 5848
PSK = b"the key of everybody in this bench"
# Groups as in proposals, and as OpenSSL calls them; keys as the tests' authority makes them.
GROUPS = {"ecp256": "P-256", "modp2048": "modp_2048", "modp3072": "modp_3072"}
KEYS = {"psk": "", "rsa2048": "rsa2048", "ecdsa256": "P-256"}
KINDS = {"rsa2048": "rsa2048", "ecdsa256": "p256"}
GOAL = 0.3
ROUNDS, EACH = 3, 60
# Members of one kind of certificate: an identity has a few phase-1 SAs at most.
CERTIFIED = 64
PATIENCE = 60.0
NOW = datetime.now(UTC)
DAYS = timedelta(days=2)
GROUP = GroupId.of_number(1)

CONFIG = """
[key_server]
address = "{server}"
state = "{folder}/gcks.sqlite"
control = "{folder}/control"
nat_traversal = false
proposals = {proposals}
{credentials}
[[peer]]
address = "127.0.0.0/8"
phase1_doi = "any"
{peer}
[[group]]
name = "bench"
id = 1
members = ["127.0.0.0/8"]
[group.rekey]
address = "239.192.0.1"
signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""
# One line for each SA, as gdoi-gcks writes, and none of charon's defences against floods.
CHARON = """
  dos_protection = no
  init_limit_half_open = 0
  ikesa_table_size = 4096
  ikesa_table_segments = 16
  filelog { all {
    default = 0
    flush_line = no
  } }
"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each figure; the median")
    parser.add_argument("--each", type=int, default=EACH, help="registrations of a round")
    parser.add_argument(
        "--suite",
        action="append",
        choices=[f"{group}-{auth}" for auth in KEYS for group in GROUPS],
        help="only these",
    )


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """As root. This process, the key servers and charon are in a network namespace of their own."""
    new_namespace()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    wanted = arguments.suite or [f"{group}-{auth}" for auth in KEYS for group in GROUPS]
    figures: list[Figure] = []
    with compiled("phase1", "crypto") as bound:
        for auth in KEYS:
            groups = [group for group in GROUPS if f"{group}-{auth}" in wanted]
            if groups:
                with tempfile.TemporaryDirectory(prefix="gdoi-bench-") as folder:
                    bench = _Bench(Path(folder), auth, bound, arguments.each)
                    figures += bench.measure(groups, arguments.rounds)
    return figures


@dataclass(slots=True)
class _Parties:
    """What the ends of phase 1 have to show: a key for all, or certificates of one authority."""

    auth: str
    authority: Entity | None = None
    server: Entity | None = None
    members: list[Entity] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.auth == "psk":
            return
        made = self._issue("authority", 1, ca=True)
        self.authority = made
        self.server = self._issue("key server", 2, str(SERVER), made)
        names = (str(FIRST + n) for n in range(CERTIFIED))
        self.members = [self._issue("member", 3, name, made) for name in names]

    def _issue(
        self,
        name: str,
        number: int,
        address: str = "",
        by: Entity | None = None,
        *,
        ca: bool = False,
    ) -> Entity:
        allowed = usage(key_cert_sign=True) if ca else usage(digital_signature=True)
        return issue(
            name,
            by,
            kind=KINDS[self.auth],
            number=number,
            ca=ca,
            names=[address] if address else [],
            key_usage=allowed,
            begin=NOW - DAYS,
            end=NOW + DAYS,
        )

    def ways(self, hosts: Iterator[int]) -> Iterator[tuple[IPv4Address, Authentication]]:
        """Members' addresses, and how each proves to be there."""
        server = Identity.of_address(SERVER)
        for number in hosts:
            if self.authority is None:
                host = FIRST + number
                yield host, PreSharedKey(Identity.of_address(host), server, Secret(PSK))
                continue
            host, member = FIRST + number % CERTIFIED, self.members[number % CERTIFIED]
            store = TrustStore((self.authority.certificate,))
            remote, own = IdentityPattern.of(server), Identity.of_address(host)
            credential: Credential = member.credential
            always = SendCertificate.ALWAYS
            yield host, Certificates(own, remote, credential, lambda s=store: s, always)  # type: ignore[misc]


class _Bench:
    """One way to authenticate: a gdoi-gcks, a charon, and every group's key exchange."""

    def __init__(self, folder: Path, auth: str, bound: Bound, each: int) -> None:
        self._folder, self._auth, self._bound, self._each = folder, auth, bound, each
        self._parties = _Parties(auth)
        self._hosts = count()
        self._taken: dict[str, list[float]] = defaultdict(list)

    def measure(self, groups: list[str], rounds: int) -> list[Figure]:
        config = self._configuration()
        control, log = self._folder / "control", self._folder / "log"
        with ExitStack() as stack:
            gcks = stack.enter_context(key_server(config, control, log))
            peer = stack.enter_context(charon(self._folder / "charon", CHARON, before=WITH_US))
            self._configure(peer)
            endpoint = Endpoint(MEMBER_PORT)
            stack.callback(endpoint.close)
            for number in range(rounds + 1):
                for group in groups:
                    self._round(group, gcks, peer, endpoint)
                if not number:
                    self._taken.clear()  # everybody has filled tables and caches
        return [figure for group in groups for figure in self._figures(group)]

    def _configuration(self) -> Path:
        folder, credentials, peer = self._folder, "", f'psk = "{PSK.decode()}"'
        if self._parties.authority is not None and self._parties.server is not None:
            authority = self._parties.authority.certificate
            (folder / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
            (folder / "gcks.pem").write_bytes(self._parties.server.pem)
            (folder / "gcks.key").write_bytes(self._parties.server.key_pem)
            credentials = (
                'certificate = "gcks.pem"\nprivate_key = "gcks.key"\ncacerts = ["ca.pem"]\n'
                f'identity = "{SERVER}"'
            )
            peer = 'auth = "pubkey"'
        path = folder / "gcks.toml"
        path.write_text(
            CONFIG.format(
                server=SERVER,
                folder=folder,
                proposals=[f"aes256-sha256-{group}" for group in GROUPS],
                credentials=credentials,
                peer=peer,
            )
        )
        return path

    def _configure(self, peer: Charon) -> None:
        local: dict[str, object] = {"auth": "psk", "id": str(SERVER)}
        remote: dict[str, object] = {"auth": "psk"}
        if self._parties.authority is None or self._parties.server is None:
            peer.load_psk(PSK)
        else:
            peer.load_authority(_pem(self._parties.authority.certificate))
            peer.load_key(self._parties.server.key_pem)
            local |= {"auth": "pubkey", "certs": [_pem(self._parties.server.certificate)]}
            remote |= {"auth": "pubkey"}
        settings = {
            "local_addrs": [str(SERVER)],
            "remote_addrs": ["%any"],
            "unique": "never",
            "proposals": [f"aes256-sha256-{group}" for group in GROUPS],
            "local": local,
            "remote": remote,
        }
        peer.load("bench", **settings)

    # -- rounds ----------------------------------------------------------------------------------

    def _round(self, group: str, gcks: RunningKeyServer, peer: Charon, endpoint: Endpoint) -> None:
        exchange = self._bound.run("exchange", GROUPS[group], self._each)[0]
        proof = self._bound.run("prove", KEYS[self._auth], self._each)[0] if KEYS[self._auth] else 0
        self._note(group, "arithmetic", exchange + proof)
        ours, theirs = gcks.process.pid, peer.process.pid
        self._timed(group, "registration", ours, endpoint, GROUP, PORT)
        self._timed(group, "main mode", ours, endpoint, None, PORT)
        self._timed(group, "charon", theirs, endpoint, None, CHARON_PORT)
        gcks.check()

    def _timed(
        self,
        group: str,
        what: str,
        pid: int,
        endpoint: Endpoint,
        asked: GroupId | None,
        port: int,
    ) -> None:
        """Processor seconds that one of ``each`` takes the process ``pid``."""

        def failed(applicant: Applicant, why: str) -> None:
            raise Unregistered(f"{group}-{self._auth}, {what}, {applicant.host}: {why}")

        def done(_applicant: Applicant, _result: PullResult | None) -> None:
            pass

        dois = (Doi.GDOI,) if port == PORT else (Doi.IPSEC,)
        suites = (SUITES[f"aes256-sha256-{group}"],)
        applicants = (
            Applicant(host, Phase1Config((way,), suites, dois=dois, nat=Traversal.OFF), asked)
            for host, way in self._parties.ways(islice(self._hosts, self._each))
        )
        running = Registrations(endpoint, Peer(SERVER, port), done, failed)
        before = processor_seconds(pid)
        running.run(applicants, PATIENCE)
        self._note(group, what, (processor_seconds(pid) - before) / self._each)

    def _note(self, group: str, what: str, seconds: float) -> None:
        self._taken[f"{group} {what}"].append(seconds)

    def _figures(self, group: str) -> list[Figure]:
        def rate(what: str) -> float:
            return 1 / statistics.median(self._taken[f"{group} {what}"])

        name = f"{group}-{self._auth}"
        arithmetic, peer = rate("arithmetic"), rate("charon")
        return [
            Figure(
                f"{name}: registrations; bound: arithmetic",
                rate("registration"),
                "/s and core",
                GOAL * arithmetic,
                arithmetic,
                at_least=True,
                why="Python: messages, payloads and keys of six messages, and a commit for each",
            ),
            Figure(
                f"{name}: main modes; bound: charon's",
                rate("main mode"),
                "/s and core",
                peer,
                peer,
                at_least=True,
                why="charon does it in C; here it is Python around the same arithmetic",
            ),
        ]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
