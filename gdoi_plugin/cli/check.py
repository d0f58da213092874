"""`gdoictl check`: what this host needs, tested, and how to mend what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from gdoi_plugin.cli.show import console, plain, print_json, say
from gdoi_plugin.daemon.check.finding import Finding, Verdict
from gdoi_plugin.daemon.check.run import check

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def run(gm: Path | None, gcks: Path | None, *, json: bool) -> bool:
    """Whether nothing fails; warnings do not count."""
    findings = check(gm, gcks)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    return not any(finding.verdict is Verdict.FAIL for finding in findings)


def _show(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "area", "tested", "found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        cells = (plain(text) for text in (finding.area, finding.test, finding.found))
        table.add_row(verdict, *map(Text, cells))
    console().print(table)
    bad = [finding for finding in findings if finding.mend]
    if bad:
        say("")
        say("To mend:")
    for finding in sorted(bad, key=lambda one: one.verdict is not Verdict.FAIL):
        say(f"  {finding.verdict}  {finding.test}")
        # On a line of its own, unbroken, to be copied.
        say(f"        {finding.mend}")
    counts = Counter(finding.verdict for finding in findings)
    words = (
        ("ok", counts[Verdict.OK]),
        ("warn", counts[Verdict.WARN]),
        ("fail", counts[Verdict.FAIL]),
    )
    say("")
    say(f"{len(findings)} tests: " + ", ".join(f"{count} {word}" for word, count in words))
