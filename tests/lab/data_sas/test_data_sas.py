"""Options of a group's data SAs, with both daemons: octets, senders, and what a kernel cannot do.

::

    gcks ----+---- gm1, gm2, gm3
             |
          capture
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from gdoi_lab.group import Daemon, Event, GroupOptions, LabGroup
from gdoi_lab.net import Network
from gdoi_lab.waiting import wait_until

from tests.lab.running import stopped
from tests.lab.watch import (
    frozen,
    reconfigure,
    rekey,
    sas,
    sending,
    watched,
    watched_together,
)

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2", "gm3"]
LIMIT = 150.0


ACTIVATION = 2.0


def options(name: str, number: int, activation: float = ACTIVATION) -> GroupOptions:
    return GroupOptions(name, number, activation_delay=f"{activation:g}s", deactivation_delay="7s")


PLAIN = options("plain", 1)
# Octets for some seconds of the traffic below, and for so many that their last fifth is enough.
SHORT, LONG = options("short", 2), options("long", 3)
CHACHA = options("chacha", 4, activation=5.0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    folder = tmp_path_factory.mktemp("data-sas")
    with Network(["gcks", *MEMBERS], folder / "work") as network:
        more = (SHORT, LONG, CHACHA)
        lab = LabGroup(network, folder / "work", folder, PLAIN, more=more)
        data_sa(lab, SHORT, 'proposal = "aes256-sha256"\nlifetime_kilobytes = 100')
        data_sa(lab, LONG, 'proposal = "aes256-sha256"\nlifetime_kilobytes = 500')
        private = 'proposal = "chacha20poly1305"\nsenders = "members"\nesn = true'
        data_sa(lab, CHACHA, private)
        for name in ("gm1", "gm2"):
            line = f'name = "{CHACHA.name}"\n'
            reconfigure(lab.members[name], line, f"{line}accept_private_algs = true\n")
        lab.gcks.start()
        for name, groups in (("gm1", 4), ("gm2", 4), ("gm3", 3)):
            lab.members[name].start()
            lab.members[name].wait_event("registered", LIMIT, groups)
        with stopped(lab):
            yield lab


def data_sa(lab: LabGroup, chosen: GroupOptions, text: str) -> None:
    """Puts other lines into a group's one [[group.tek]]."""
    destination = f'destination = "{chosen.data_group}"\n'
    reconfigure(lab.gcks, f'{destination}proposal = "{chosen.proposal}"', destination + text)


def of(daemon: Daemon, event: str, chosen: GroupOptions) -> list[Event]:
    return [logged for logged in daemon.events(event) if logged.get("group") == chosen.name]


def reasons(lab: LabGroup, chosen: GroupOptions) -> list[str]:
    return [event["reason"] for event in of(lab.gcks, "rekey-sent", chosen)]


# -- octets ---------------------------------------------------------------------------------------


def test_octets_are_used_up(lab: LabGroup, tmp_path: Path) -> None:
    """gm1..gm3 == ESP ==> all, until 100 kB are over while the key server does nothing; with it
    comes a new TEK and all goes on. Of 500 kB nobody sees the end: the new TEK is there before."""
    with ExitStack() as away:
        away.enter_context(frozen(lab.gcks))
        with watched_together(lab, tmp_path, [SHORT, LONG], names=MEMBERS) as (short, long):
            short.scenario = "100 kB used up, key server away"
            short.note = "blocked in between"
            long.scenario = "500 kB, new TEK before"
            long.note = "lost, if any: taken up later than ATD by a busy machine"
            first = {c: set(sending(lab.network["gm1"], c.data_group)) for c in (SHORT, LONG)}
            for name in MEMBERS:
                member = lab.members[name]
                wait_until(lambda m=member: of(m, "sa-expired", SHORT), LIMIT, "an SA's end")  # type: ignore[misc]
                assert of(member, "sa-expiring", SHORT), "asked before the end"
                assert sas(lab.network[name], SHORT.data_group) == {}
            away.close()
            for chosen, spis in first.items():
                for name in MEMBERS:
                    wait_until(
                        lambda n=name, c=chosen, s=spis: in_use(lab, n, c) - s,  # type: ignore[misc]
                        LIMIT,
                        f"{name} to go on in {chosen.name}",
                        interval=0.2,
                    )
    for chosen in (SHORT, LONG):
        assert reasons(lab, chosen)[0] == "tek-kilobytes"
    short.assert_nothing_clear()
    for name in MEMBERS:
        assert 0 < short.esp_of(name) < short.reports[name].sent
    long.assert_nothing_clear()
    # On a machine that takes seconds for a registration the last fifth may be too little, and
    # members may be further apart than ATD allows.
    expired = any(of(lab.members[name], "sa-expired", LONG) for name in MEMBERS)
    if not expired and apart(lab, LONG) < ACTIVATION:
        long.assert_whole()


def apart(lab: LabGroup, chosen: GroupOptions) -> float:
    """Seconds between the first and the last member to take a rekey; of several, the most."""
    installed = [of(lab.members[name], "rekey-installed", chosen) for name in MEMBERS]
    times = [[datetime.fromisoformat(event["time"]) for event in events] for events in installed]
    spans: list[float] = [
        (max(nth) - min(nth)).total_seconds() for nth in zip(*times, strict=False)
    ]
    return max(spans, default=float("inf"))


def in_use(lab: LabGroup, name: str, chosen: GroupOptions) -> set[int]:
    """The SPIs that a member has sent with and would send with now."""
    host = lab.network[name]
    held, pinned = sas(host, chosen.data_group), sending(host, chosen.data_group)
    return {spi for spi in pinned if spi in held and held[spi].oseq > 0}


# -- senders --------------------------------------------------------------------------------------


def test_a_private_transform_and_a_key_for_each_sender(lab: LabGroup, tmp_path: Path) -> None:
    """gm1 =ChaCha20-Poly1305=> gm2 and back, each with its own key and 64-bit sequence numbers; gm3
    has not been told what transform 249 is, and is in all other groups."""
    pair = ["gm1", "gm2"]
    with watched(lab, tmp_path, CHACHA, names=pair, scenario="ChaCha20-Poly1305, ESN") as watch:
        rekey(lab, ["gm1", "gm2"], CHACHA.name)
        for name in ("gm1", "gm2"):
            host = lab.network[name]
            wait_until(
                lambda h=host: len(sas(h, CHACHA.data_group)) == 3,  # type: ignore[misc]
                LIMIT,
                "a TEK of each member, and no more",
            )
    watch.assert_whole()
    users: dict[int, set[str]] = {}
    for flow in watch.counts.esp:
        users.setdefault(flow.spi, set()).add(flow.source)
    assert all(len(sources) == 1 for sources in users.values())
    held = sas(lab.network["gm1"], CHACHA.data_group)
    assert {sa.algorithm for sa in held.values()} == {"rfc7539esp(chacha20,poly1305)"}
    failed = of(lab.members["gm3"], "registration-failed", CHACHA)
    assert "only accept_private_algs takes it for chacha20poly1305" in failed[0]["error"]
    told = [e["error"] for e in of(lab.gcks, "member-refused", CHACHA)]
    assert any("accept_private_algs" in error for error in told)
    assert sas(lab.network["gm3"], CHACHA.data_group) == {}


# -- what a kernel cannot do ----------------------------------------------------------------------


@contextmanager
def without_ah() -> Iterator[None]:
    """The kernel has not got AH for IPv4, and may not load it."""
    path = Path("/proc/sys/kernel/modprobe")
    loader = path.read_text()
    path.write_text("/bin/false")
    wait_until(lambda: not _loaded() or _unload(), LIMIT, "nobody to use ah4")
    try:
        yield
    finally:
        path.write_text(loader)


def _loaded() -> bool:
    return any(line.startswith("ah4 ") for line in Path("/proc/modules").read_text().splitlines())


def _unload() -> bool:
    return subprocess.run(["rmmod", "ah4"], capture_output=True, check=False).returncode == 0


@pytest.mark.own_kernel
def test_what_the_kernel_has_not_got(lab: LabGroup) -> None:
    """gcks == PUSH with an AH SA ==> all: not acknowledged, with SPI and reason; what was there is
    there, other groups are rekeyed, and with AH it works."""
    before = {name: sas(lab.network[name], PLAIN.data_group).keys() for name in MEMBERS}
    with without_ah():
        assert lab.gcks.stop() == 0
        more = '\n[[group.tek]]\ndestination = "239.192.1.99"\nah_proposal = "sha256"\n'
        end = f'destination = "{PLAIN.data_group}"\nproposal = "{PLAIN.proposal}"\nmode'
        reconfigure(lab.gcks, f"[[group.tek]]\n{end}", f"{more.lstrip()}\n[[group.tek]]\n{end}")
        lab.gcks.start()
        for name in MEMBERS:
            member = lab.members[name]
            wait_until(lambda m=member: of(m, "install-failed", PLAIN), LIMIT, "a refusal")  # type: ignore[misc]
            error = of(member, "install-failed", PLAIN)[0]["error"]
            for part in ("239.192.1.99 spi 0x", "this kernel has no ah for IPv4 (module ah4)"):
                assert part in error
            assert sas(lab.network[name], PLAIN.data_group).keys() == before[name]
        epoch = of(lab.gcks, "rekey-sent", PLAIN)[-1]["epoch"]
        assert not [e for e in of(lab.gcks, "rekey-acked", PLAIN) if e["epoch"] == epoch]
        rekey(lab, MEMBERS, LONG.name)
    rekey(lab, MEMBERS, PLAIN.name)
