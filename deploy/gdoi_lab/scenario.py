"""The demo's run, inside the lab kernel: ``python -m gdoi_lab.scenario OPTIONS.json``.

Registers the members, sends traffic from all of them while the group is rekeyed, makes one
member's kernel refuse an SA once, and writes ``result.json`` into the results folder.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from gdoi_lab.clear import BridgeCounts, count_capture
from gdoi_lab.errors import LabError
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.kernel import esp_refusal
from gdoi_lab.net import Network
from gdoi_lab.traffic import Report, Traffic, deliveries
from gdoi_lab.waiting import wait_until
from gdoi_lab.wireshark import write_readable

PORT = 5000
# Between rekeys: shorter than DTD, so that a rekey meets the rollover of the one before.
INTERVAL = 4.0
REFUSED_REKEY = 2
# ATD: whose kernel refuses an SA registers again meanwhile, on a busy machine too.
POLICY = GroupOptions(activation_delay="10s", deactivation_delay="16s")
ROLLOVER_LIMIT = 150.0  # seconds


@dataclass(frozen=True, slots=True)
class Options:
    members: int
    rekeys: int
    rate: float
    out: str

    @property
    def kek_rekey(self) -> int:
        """The rekey, counted from 1, that brings a new KEK: the last but one."""
        return self.rekeys - 1


@dataclass(slots=True)
class MemberRow:
    """A line of the table. ACK times in seconds, as the key server measured them."""

    member: str
    address: str
    registrations: int
    rekeys_received: int
    rekeys_installed: int
    rekeys_acknowledged: int
    ack_median: float | None
    ack_max: float | None
    sent: int
    received: int
    lost: int
    clear: int


@dataclass(slots=True)
class RekeyRow:
    """One rekey: who installed it, acknowledged it, refused it, was reported missing."""

    epoch: int
    reason: str
    new_kek: bool
    seq: int
    sent: list[str]
    installed: list[str]
    acknowledged: list[str]
    refused: dict[str, str]
    missing: list[str]


class Progress:
    """Lines with the time since the start, for somebody who watches."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        print(f"{self.seconds:7.1f} s  {text}", flush=True)


def run(options: Options) -> dict[str, Any]:
    out = Path(options.out)
    progress = Progress()
    if (refused := esp_refusal()) is not None:
        raise LabError(f"this kernel cannot hold an ESP SA: {refused}")
    names = ["gcks", *(f"gm{number}" for number in range(1, options.members + 1))]
    refusing = names[min(2, options.members)]
    progress.say(f"kernel ready; building the network: {', '.join(names)} on a bridge")
    with Network(names, out / "work") as network:
        group = LabGroup(network, out / "work", out, POLICY, refusing)
        capture = network.capture(out / "bridge.pcap")
        group.start()
        progress.say(f"registered: {', '.join(group.members)}")
        hosts = [daemon.host for daemon in group.members.values()]
        traffic = Traffic(hosts, group.data_group, PORT, out / "traffic", rate=options.rate)
        traffic.open()
        traffic.start()
        progress.say(f"traffic: {options.rate:g} packets/s from each of {options.members} members")
        _rekeys(group, options, refusing, progress)
        progress.say("waiting for the last rollover to end")
        _last_rollover(group)
        reports = traffic.finish()
        for daemon in group.members.values():
            _dump_kernel(daemon, out)
        statuses = {d.host.name: d.stop() for d in [*group.members.values(), group.gcks]}
        capture.stop()
        counts = count_capture(out / "bridge.pcap", {group.data_group})
        write_readable(out / "bridge.pcap", out / "bridge-wireshark.pcap")
        progress.say(f"captured {counts.packets} packets")
        rekeys = _rekey_rows(group)
        return {
            "seconds": round(progress.seconds, 1),
            "refusing": refusing,
            "members": [asdict(row) for row in _member_rows(group, reports, counts)],
            "rekeys": [asdict(row) for row in rekeys],
            "esp_packets": sum(counts.esp.values()),
            "exit_statuses": statuses,
        }


def _rekeys(group: LabGroup, options: Options, refusing: str, progress: Progress) -> None:
    for number in range(1, options.rekeys + 1):
        began = time.monotonic()
        new_kek = number == options.kek_rekey
        if number == REFUSED_REKEY:
            group.refusal_flag.touch()
        what = "a new KEK and new TEKs" if new_kek else "new TEKs"
        if number == REFUSED_REKEY:
            what += f"; {refusing}'s kernel will refuse the SA"
        progress.say(f"rekey {number} of {options.rekeys}: {what}")
        answer = group.rekey(*(["--kek"] if new_kek else []))
        progress.say(f"  {_outcome(answer)}")
        left = INTERVAL - (time.monotonic() - began)
        if left > 0:
            time.sleep(left)


def _outcome(answer: Any) -> str:
    """gdoictl's answer in words."""
    result = answer[0] if isinstance(answer, list) else answer
    missing = result.get("missing") or []
    text = f"{result.get('acknowledged')} of {result.get('expected')} acknowledged"
    return text + (f"; missing: {', '.join(missing)}" if missing else "")


def _last_rollover(group: LabGroup) -> None:
    """Until every member sends with the newest SA and holds no other."""

    def rolled_over(daemon: Daemon) -> bool:
        sas = group.gdoictl(daemon, "sas")
        return len(sas) == 1 and sas[0]["state"] == "sending"

    for daemon in group.members.values():
        wait_until(
            partial(rolled_over, daemon),
            ROLLOVER_LIMIT,
            f"{daemon.host.name} to hold one SA",
            interval=0.5,
        )


def _dump_kernel(daemon: Daemon, out: Path) -> None:
    for what in ("state", "policy"):
        shown = daemon.host.run(["ip", "-s", "xfrm", what]).stdout
        (out / f"{daemon.host.name}.xfrm-{what}").write_text(shown)


def _rekey_rows(group: LabGroup) -> list[RekeyRow]:
    """From the logs: a PUSH is known by its KEK's SPI and its SEQ."""
    rows: dict[int, RekeyRow] = {}
    epochs: dict[tuple[str, int], int] = {}
    for event in group.gcks.events("rekey-sent", "rekey-acked", "ack-missing"):
        epoch = event["epoch"]
        if event["event"] == "rekey-sent":
            epochs[event["kek-spi"], event["seq"]] = epoch
            row = RekeyRow(epoch, event["reason"], False, event["seq"], [], [], [], {}, [])
            rows.setdefault(epoch, row).sent.append(event["time"])
        elif event["event"] == "rekey-acked":
            rows[epoch].acknowledged.append(group.name_of(event["member"]))
        else:
            rows[epoch].missing.append(group.name_of(event["member"]))
    for name, daemon in group.members.items():
        installed = 0
        for event in daemon.events("rekey-installed", "install-failed", "kek-replaced"):
            if event["event"] == "kek-replaced":
                if installed:  # the first KEK comes with the registration
                    rows[installed].new_kek = True
                continue
            if "kek-spi" not in event:
                continue
            epoch = epochs[event["kek-spi"], event["seq"]]
            if event["event"] == "rekey-installed":
                if name not in rows[epoch].installed:  # a repeated rekey is installed again
                    rows[epoch].installed.append(name)
                installed = epoch
            else:
                rows[epoch].refused[name] = event["error"]
    return list(rows.values())


def _member_rows(
    group: LabGroup, reports: dict[str, Report], counts: BridgeCounts
) -> list[MemberRow]:
    rows = []
    pairs = deliveries(reports)
    for name, daemon in group.members.items():
        address = group.address(daemon.host)
        acked = [e["rtt"] for e in group.gcks.events("rekey-acked") if e["member"] == address]
        mine = [pair for pair in pairs if pair.receiver == name]
        rows.append(
            MemberRow(
                member=name,
                address=address,
                registrations=len(list(daemon.events("registered"))),
                rekeys_received=len(list(daemon.events("rekey-received"))),
                rekeys_installed=len(list(daemon.events("rekey-installed"))),
                rekeys_acknowledged=len(acked),
                ack_median=median(acked) if acked else None,
                ack_max=max(acked, default=None),
                sent=reports[name].sent,
                received=sum(pair.received for pair in mine),
                lost=sum(pair.lost for pair in mine),
                clear=counts.clear[address],
            )
        )
    return rows


def main() -> int:
    options = Options(**json.loads(sys.argv[1]))
    try:
        result = run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    (Path(options.out) / "result.json").write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
