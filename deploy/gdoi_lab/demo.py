"""``deploy/lab demo``: a key server and members, traffic and rekeys on a real kernel.

One member's kernel refuses an SA once: it must not acknowledge that rekey, must be reported, and
must recover by itself. The exit status is 0 only if all of that was seen, nothing was lost and
nothing went out in clear.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gdoi_lab.errors import LabError
from gdoi_lab.kernel import CHOICES, choose_kernel, output_to, run_in_kernel
from gdoi_lab.scenario import REFUSED_REKEY, Options

MIN_REKEYS = 5
TIME_LIMIT = 900.0  # seconds, and some more for every member and rekey
DEFAULT_RATE = 200.0
# Every packet is encrypted once and decrypted by all others, on one virtual processor in User Mode
# Linux: above some 4,000 decryptions a second it is the lab that loses packets, not the group.
DELIVERIES = 3000.0
WIDTH = 112  # of the table; a narrower terminal wraps lines rather than words


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must have happened."""

    name: str
    passed: bool
    detail: str = ""


def judge(result: dict[str, Any], options: Options) -> list[Check]:
    """Every check the exit status stands for."""
    members, rekeys = result["members"], result["rekeys"]
    missing_acks = [
        f"{name} epoch {rekey['epoch']}"
        for rekey in rekeys
        for name in rekey["installed"]
        if name not in rekey["acknowledged"]
    ]
    lost = {m["member"]: m["lost"] for m in members if m["lost"]}
    clear = {m["member"]: m["clear"] for m in members if m["clear"]}
    new_keks = [rekey for rekey in rekeys if rekey["new_kek"]]
    stopped = {name: code for name, code in result["exit_statuses"].items() if code}
    return [
        Check("every member registered", all(m["registrations"] for m in members)),
        Check(
            f"{options.rekeys} rekeys, one with a new KEK",
            len(rekeys) == options.rekeys and len(new_keks) == 1,
            f"{len(rekeys)} rekeys, {len(new_keks)} new KEKs",
        ),
        Check(
            "every rekey acknowledged by every member that installed it",
            not missing_acks,
            ", ".join(missing_acks),
        ),
        Check(
            "every rekey installed by every member whose kernel did not refuse",
            all(len(r["installed"]) + len(r["refused"]) == len(members) for r in rekeys),
        ),
        *_judge_refusal(result),
        Check(
            "no packet lost",
            not lost and all(m["received"] for m in members),
            f"{lost or ''}",
        ),
        Check("no packet in clear", not clear and result["esp_packets"] > 0, f"{clear or ''}"),
        Check("every daemon stopped cleanly", not stopped, f"{stopped or ''}"),
    ]


def _judge_refusal(result: dict[str, Any]) -> list[Check]:
    name, rekeys = result["refusing"], result["rekeys"]
    refused = rekeys[REFUSED_REKEY - 1] if len(rekeys) >= REFUSED_REKEY else None
    if refused is None:
        return [Check("one member's kernel refused an SA", False)]
    following = rekeys[REFUSED_REKEY] if len(rekeys) > REFUSED_REKEY else None
    row = next(m for m in result["members"] if m["member"] == name)
    return [
        Check(
            f"{name}'s kernel refused the SA of epoch {refused['epoch']}",
            name in refused["refused"],
            refused["refused"].get(name, ""),
        ),
        Check(f"{name} did not acknowledge it", name not in refused["acknowledged"]),
        Check(f"{name} was reported missing", refused["missing"] == [name]),
        Check(f"{name} registered again by itself", row["registrations"] == 2),
        Check(
            f"{name} acknowledged the next rekey",
            following is not None and name in following["acknowledged"],
        ),
    ]


def show(result: dict[str, Any], checks: list[Check], console: Console) -> None:
    table = _table(
        "\nmember",
        "\nregistered",
        "rekeys\nreceived",
        "\ninstalled",
        "\nacknowledged",
        "ACK time\nmedian, max",
        "packets\nsent",
        "\nreceived",
        "\nlost",
        "in\nclear",
    )
    for m in result["members"]:
        table.add_row(
            m["member"],
            {0: "no", 1: "yes"}.get(m["registrations"], f"{m['registrations']} times"),
            *(str(m[f"rekeys_{k}"]) for k in ("received", "installed", "acknowledged")),
            _times(m),
            *(str(m[k]) for k in ("sent", "received", "lost", "clear")),
        )
    console.print(table)
    _show_rekeys(result, console)
    for check in checks:
        mark = "[green]ok[/]  " if check.passed else "[red]FAIL[/]"
        console.print(f"{mark} {check.name}")
        if check.detail:
            console.print(f"     [dim]{check.detail}[/]")


def _show_rekeys(result: dict[str, Any], console: Console) -> None:
    table = _table("epoch", "SEQ", "new KEK", "installed", "acknowledged", "refused", "missing")
    members = len(result["members"])
    for r in result["rekeys"]:
        table.add_row(
            str(r["epoch"]),
            str(r["seq"]),
            "yes" if r["new_kek"] else "",
            *(f"{len(r[k])} of {members}" for k in ("installed", "acknowledged")),
            " ".join(r["refused"]),
            " ".join(r["missing"]),
        )
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _times(member: dict[str, Any]) -> str:
    if member["ack_median"] is None:
        return "-"
    return f"{member['ack_median']:.2f} s {member['ack_max']:.2f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy/lab demo", description=__doc__)
    parser.add_argument("--members", type=_members, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--rekeys", type=_rekeys, default=MIN_REKEYS, metavar="N", help="at least 5, the default"
    )
    parser.add_argument(
        "--rate", type=float, metavar="R", help="packets/s of each member, default: 200 or less"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON, progress aside")
    parser.add_argument("--out", type=Path, metavar="DIR", help="logs, capture, keys, kernel state")
    parser.add_argument("--kernel", choices=CHOICES, default="auto", help="default: auto")
    return parser


def default_rate(members: int) -> float:
    """Packets per second of each member: 200, or less where the group would drown the lab."""
    return round(min(DEFAULT_RATE, DELIVERIES / (members * (members - 1))), 1)


def _rekeys(text: str) -> int:
    if (number := int(text)) < MIN_REKEYS:
        raise argparse.ArgumentTypeError(f"at least {MIN_REKEYS} rekeys")
    return number


def _members(text: str) -> int:
    if not 2 <= (number := int(text)) <= 50:
        raise argparse.ArgumentTypeError("2 to 50 members")
    return number


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="gdoi-demo-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise LabError(f"{out} is not empty; give --out a new folder")
    console = Console(stderr=arguments.json, highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    kernel = choose_kernel(arguments.kernel)
    where = "this host's kernel" if kernel == "host" else "User Mode Linux"
    console.print(f"lab: {arguments.members} members and a key server on {where}; files in {out}")
    rate = arguments.rate or default_rate(arguments.members)
    options = Options(arguments.members, arguments.rekeys, rate, str(out))
    limit = TIME_LIMIT + 20 * options.members + 15 * options.rekeys
    command = [sys.executable, "-m", "gdoi_lab.scenario", json.dumps(asdict(options))]
    with output_to(sys.stderr if arguments.json else sys.stdout):
        status = run_in_kernel(kernel, command, out, limit)
    if status != 0:
        raise LabError(f"the run ended with status {status}; logs are in {out}")
    result = json.loads((out / "result.json").read_text())
    checks = judge(result, options)
    passed = all(check.passed for check in checks)
    if arguments.json:
        document = {"kernel": kernel, "passed": passed, **result}
        document["checks"] = [asdict(check) for check in checks]
        print(json.dumps(document, indent=2))
    else:
        show(result, checks, console)
        verdict = "all checks passed" if passed else "NOT all checks passed"
        console.print(f"lab: {verdict} in {result['seconds']} s; files in {out}")
    return 0 if passed else 1
