"""What the lab's scenarios look at: traffic, the bridge, the members' kernels, the ledger.

Nothing here believes a daemon about what matters: what was lost comes from the traffic's own
account, what was in clear from a capture, SAs and policies from ``ip xfrm``, and the SEQs that
were used from the datagrams on the wire.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from gdoi_lab.clear import BridgeCounts, count_capture, read_frames
from gdoi_lab.errors import LabError
from gdoi_lab.group import GROUP, Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Host
from gdoi_lab.table import Row, report
from gdoi_lab.traffic import Delivery, Report, Traffic, deliveries
from gdoi_lab.waiting import wait_until

from gdoi_plugin.crypto.signature import load_public
from gdoi_plugin.protocol.policy import Kek
from gdoi_plugin.protocol.push import open_push
from gdoi_plugin.protocol.record import read_kek
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import GDOI_PORT, ExchangeType

PORT = 5000
# Packets a second from each member: what is left of one processor has to start daemons.
RATE = 50.0
REKEY_LIMIT = 150.0
ROLLOVER_LIMIT = 150.0


def let_pass(seconds: float) -> None:
    """Time in which traffic flows; nothing is waited for."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, seconds + 5, "time to pass")


def reconfigure(daemon: Daemon, old: str, new: str) -> None:
    """Changes a daemon's configuration file, for its next start."""
    config = daemon.work / "config.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


@contextmanager
def frozen(daemon: Daemon) -> Iterator[None]:
    """The daemon is there and does nothing."""
    process = daemon.process
    assert process is not None
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


# -- traffic and capture -------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """A stretch of time with traffic from every member. The accounts are there after its end."""

    group: LabGroup
    options: GroupOptions
    names: Sequence[str]
    traffic: Traffic
    pcap: Path
    # The row's name and remark in the scenarios' table; without a name there is no row.
    scenario: str = ""
    note: str = ""
    reports: dict[str, Report] = field(default_factory=dict)
    counts: BridgeCounts = field(default_factory=BridgeCounts)
    # Packets that the lab's links had no room for.
    queue_drops: int = 0

    @property
    def pairs(self) -> list[Delivery]:
        """Between members; what outsiders sent and received is in ``reports``."""
        members = {name: self.reports[name] for name in self.names if name in self.group.members}
        return deliveries(members)

    def esp_of(self, name: str) -> int:
        """ESP or AH packets that a member has put on the wire."""
        address = self.group.address(self.group.network[name])
        seen = self.counts.esp + self.counts.ah
        return sum(count for flow, count in seen.items() if flow.source == address)

    def assert_nothing_clear(self) -> None:
        """No member has put a packet to the group on the wire but in ESP."""
        for name in self.group.members:
            address = self.group.address(self.group.network[name])
            assert self.counts.clear[address] == 0, f"{name} sent in clear"

    def assert_whole(self) -> None:
        """Everything that members sent has arrived at every other, once, and was in ESP."""
        self.assert_nothing_clear()
        assert self.queue_drops == 0, "the lab's links could not hold all that was under way"
        wrong = {
            name: (report, self.esp_of(name), refused_to_send(self.group.network[name]))
            for name, report in self.reports.items()
            if report.sent != self.esp_of(name) or report.send_errors or report.socket_drops
        }
        assert wrong == {}
        assert [name for name in self.names if self.reports[name].sent == 0] == []
        assert [pair for pair in self.pairs if pair.gaps or pair.duplicates] == []

    def row(self, seconds: float, rekeys: int) -> Row:
        """Between members: what outsiders did is a test's own affair."""
        members = [name for name in self.names if name in self.group.members]
        addresses = [self.group.address(self.group.network[name]) for name in members]
        return Row(
            scenario=self.scenario,
            sent=sum(self.reports[name].sent for name in members),
            received=sum(pair.received for pair in self.pairs),
            lost=sum(pair.lost for pair in self.pairs),
            clear=sum(self.counts.clear[address] for address in addresses),
            seconds=round(seconds, 1),
            rekeys=rekeys,
            note=self.note,
        )


@contextmanager
def watched(
    group: LabGroup,
    folder: Path,
    options: GroupOptions | None = None,
    *,
    names: Sequence[str] = (),
    scenario: str = "",
    rate: float = RATE,
) -> Iterator[Watch]:
    """Traffic to a group's address from the named hosts, or all members, and a capture.

    With ``scenario`` the stretch is a row of that name in the scenarios' table.
    """
    chosen = [options or group.options]
    with watched_together(group, folder, chosen, names=names, rate=rate) as watches:
        watches[0].scenario = scenario
        yield watches[0]


@contextmanager
def watched_together(
    group: LabGroup,
    folder: Path,
    chosen: Sequence[GroupOptions],
    *,
    names: Sequence[str] = (),
    rate: float = RATE,
) -> Iterator[list[Watch]]:
    """As `watched`, of several groups at the same time, in one capture."""
    names = list(names or group.members)
    hosts = [group.network[name] for name in names]
    capture = group.network.capture(folder / "bridge.pcap")
    watches = []
    for options in chosen:
        work = folder / options.name
        traffic = Traffic(hosts, options.data_group, PORT, work, rate=rate)
        watches.append(Watch(group, options, names, traffic, capture.path))
        traffic.open()
    before = [rekeys_sent(group, options.name) for options in chosen]
    drops_before = queue_drops()
    began = time.monotonic()
    for watch in watches:
        watch.traffic.start()
    try:
        yield watches
    except BaseException:  # the next test on these hosts shall not hear this one's traffic
        with suppress(LabError):
            for watch in watches:
                watch.traffic.finish()
            capture.stop()
        raise
    for watch in watches:
        watch.traffic.stop()
    seconds = time.monotonic() - began
    for watch in watches:
        watch.reports = watch.traffic.finish()
    capture.stop()
    dropped = queue_drops() - drops_before
    for watch, known in zip(watches, before, strict=True):
        watch.queue_drops = dropped
        watch.counts = count_capture(capture.path, {watch.options.data_group})
        if watch.scenario:
            rekeys = rekeys_sent(group, watch.options.name) - known
            report(watch.row(seconds, len(rekeys)))


def queue_drops() -> int:
    """Packets that the kernel threw away since its start, its queue of all links being full."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def rekeys_sent(group: LabGroup, name: str) -> set[int]:
    """The epochs that the key server has sent so far."""
    return {e["epoch"] for e in group.gcks.events("rekey-sent") if e["group"] == name}


# -- the ledger ----------------------------------------------------------------------------------


def ledger(group: LabGroup, name: str = GROUP) -> dict[int, dict[str, object]]:
    """The key server's rekeys by epoch, as ``gdoictl rekeys`` shows them."""
    return {int(row["epoch"]): row for row in group.listed(group.gcks, "rekey", group=name)}


def acknowledged_by(group: LabGroup, epoch: int, name: str = GROUP) -> set[str]:
    row = ledger(group, name).get(epoch, {})
    times = row.get("acknowledged-by") or {}
    assert isinstance(times, dict)
    return {group.name_of(address) for address in times}


def rekey(group: LabGroup, names: Iterable[str], name: str = GROUP, **fields: str) -> int:
    """A rekey that every named member acknowledges; returns its epoch."""
    answer = group.command(group.gcks, "rekey", group=name, **fields)
    epoch = int(answer["epoch"])
    wait_acknowledged(group, names, epoch, name)
    return epoch


def wait_acknowledged(group: LabGroup, names: Iterable[str], epoch: int, name: str = GROUP) -> None:
    wanted = set(names)
    wait_until(
        lambda: acknowledged_by(group, epoch, name) >= wanted,
        REKEY_LIMIT,
        f"the acknowledgements of {', '.join(sorted(wanted))} for {name}, epoch {epoch}",
        interval=0.2,
    )


# -- the kernel ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KernelSa:
    """What ``ip -s xfrm state`` says of an SA; ``oseq`` is the last sequence number sent."""

    spi: int
    destination: str
    mode: str
    algorithm: str
    oseq: int


def state_entries(host: Host) -> list[str]:
    """What ``ip -s xfrm state`` says of each SA of a host."""
    return re.split(r"^(?=src )", host.ip("-s", "xfrm", "state"), flags=re.MULTILINE)[1:]


def state_entry(host: Host, spi: int) -> str:
    """The one of an SPI."""
    (entry,) = [entry for entry in state_entries(host) if f"spi 0x{spi:08x}" in entry]
    return entry


_AH_ONLY = r"^\sauth-trunc (\S+)"


def sas(host: Host, destination: str) -> dict[int, KernelSa]:
    """A host's SAs to a group, by SPI."""
    found = {}
    for entry in state_entries(host):
        sa = KernelSa(
            spi=int(_find(r"proto (?:esp|ah) spi 0x([0-9a-f]+)", entry), 16),
            destination=_find(r"^src \S+ dst (\S+)", entry),
            mode=_find(r"mode (\w+)", entry),
            algorithm=_find(_AH_ONLY if "proto ah" in entry else r"^\s(?:aead|enc) (\S+)", entry),
            oseq=int(_find(r"oseq 0x([0-9a-f]+)", entry), 16),
        )
        if sa.destination == destination:
            found[sa.spi] = sa
    return found


def policies(host: Host, destination: str) -> list[tuple[str, str, int | None]]:
    """(source, direction, SPI of the template) of a host's policies for a group."""
    text = host.ip("xfrm", "policy")
    found = []
    for entry in re.split(r"^(?=src )", text, flags=re.MULTILINE)[1:]:
        if _find(r"dst ([^\s/]+)", entry) == destination:
            pinned = re.search(r"proto (?:esp|ah) spi 0x([0-9a-f]+)", entry)
            spi = None if pinned is None else int(pinned[1], 16)
            found.append((_find(r"^src (\S+)", entry), _find(r"dir (\w+)", entry), spi))
    return sorted(found, key=str)


def sending(host: Host, destination: str) -> list[int]:
    """The SPIs that the kernel's outbound policies for a group name."""
    return [spi for _, way, spi in policies(host, destination) if way == "out" and spi is not None]


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, f"no {pattern} in what ip says:\n{text}"
    return found[1]


def wait_agreed(group: LabGroup, names: Sequence[str], options: GroupOptions) -> int:
    """Until all the named members send with one SPI, the newest of each; returns it."""

    def agreed() -> bool:
        newest = [_newest(group.members[name], options.name) for name in names]
        if newest != newest[:1] * len(names):  # no program is needed to see that
            return False
        every = (sending(group.network[name], options.data_group) for name in names)
        first = next(every)
        return first[-1:] == newest[0] and all(used == first for used in every)

    wait_until(agreed, ROLLOVER_LIMIT, f"one SPI at {', '.join(names)}", interval=0.3)
    return sending(group.network[names[0]], options.data_group)[0]


def _newest(member: Daemon, name: str) -> list[int]:
    """The TEK installed last, by the member's state file."""
    saved = json.loads((member.work / "state" / f"{name}.json").read_text())
    newest = max(saved["teks"], key=lambda entry: entry["generation"], default=None)
    return [] if newest is None else [int(newest["tek"]["spi"], 16)]


def assert_adopted(
    host: Host, before: Mapping[int, KernelSa], destination: str
) -> dict[int, KernelSa]:
    """No SA but those from before, one to send with among them, and no number is used twice.

    The time of an older one may have come. Returns what is there now.
    """
    after = sas(host, destination)
    assert after.keys() <= before.keys()
    assert after.keys() & set(sending(host, destination))
    assert {spi for spi, sa in after.items() if sa.oseq < before[spi].oseq} == set()
    return after


def refused_to_send(host: Host) -> dict[str, int]:
    """The kernel's counters of outbound packets that XFRM has dropped, by reason."""
    lines = host.run(["cat", "/proc/net/xfrm_stat"]).stdout.splitlines()
    counters = (line.split() for line in lines if line.startswith("XfrmOut"))
    return {name: int(number) for name, number in counters if int(number)}


# -- PUSH datagrams ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PushSeen:
    """A GROUPKEY-PUSH on the bridge (IPv4): who sent it where, and its octets."""

    source: str
    destination: str
    datagram: bytes

    @property
    def kek_spi(self) -> bytes:
        return pull_header(self.datagram).spi


def pushes(pcap: Path) -> list[PushSeen]:
    """Every PUSH of a capture, in order."""
    found = []
    for frame in read_frames(pcap):
        if frame[12:14] != b"\x08\x00" or frame[23] != 17:
            continue
        udp = frame[14 + 4 * (frame[14] & 0x0F) :]
        datagram = udp[8 : int.from_bytes(udp[4:6], "big")]
        if GDOI_PORT not in (int.from_bytes(udp[:2], "big"), int.from_bytes(udp[2:4], "big")):
            continue
        if pull_header(datagram).exchange_type == ExchangeType.GROUPKEY_PUSH:
            ends = [str(IPv4Address(frame[at : at + 4])) for at in (26, 30)]
            found.append(PushSeen(ends[0], ends[1], datagram))
    return found


def saved_keks(group: LabGroup) -> dict[bytes, Kek]:
    """The KEKs in the key server's state, old ones too, by SPI, of all groups."""
    state = group.gcks.work / "state.sqlite"
    with closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True)) as database:
        rows = database.execute('SELECT record FROM "groups"').fetchall()
    keks = [read_kek(entry["kek"]) for (row,) in rows for entry in json.loads(row)["keks"]]
    return {kek.spi: kek for kek in keks}


def read_seqs(seen: Iterable[PushSeen], keks: dict[bytes, Kek]) -> dict[bytes, list[int]]:
    """The SEQs used under each KEK, in the order of the wire; each PUSH decrypted and verified."""
    used: dict[bytes, list[int]] = {}
    for push in seen:
        kek = keks[push.kek_spi]
        key = load_public(kek.scheme, kek.public_der)
        opened = open_push(kek, key, 0, pull_header(push.datagram), push.datagram)
        used.setdefault(kek.spi, []).append(opened.seq)
    return used


_SEND_RAW = """
import socket, struct, sys
source, destination = sys.argv[1:3]
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for text in sys.argv[3:]:
    data = bytes.fromhex(text)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(data), 0, 0, 8, 17, 0) + ends
    udp = struct.pack("!4H", 848, 848, 8 + len(data), 0)
    sock.sendto(ip + udp + data, (destination, 0))
"""


def send_again(host: Host, seen: Sequence[PushSeen]) -> None:
    """Puts captured PUSHes on the wire again, with the addresses and ports they had."""
    for destination in sorted({push.destination for push in seen}):
        chosen = [push for push in seen if push.destination == destination]
        octets = [push.datagram.hex() for push in chosen]
        argv = ["python3", "-ISc", _SEND_RAW, chosen[0].source, destination, *octets]
        host.run(argv)


def drops(group: LabGroup, member: Daemon, reason: str) -> int:
    """How many datagrams a daemon has dropped for a reason."""
    counted = group.command(member, "stats").get("drops") or {}
    return int(counted.get(reason, 0))
