"""A picture of a simulated rekey: which share of the members lacks the new epoch, over time."""

from __future__ import annotations

from math import log10

from gdoi_bench.rollout import Outcome, Scenario

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 320, 70, 30, 40
# The axis of shares: each line a tenth of the one above it.
DECADES = 6
STEPS = 600
STYLE = "font: 12px sans-serif; fill: #444"


def chart(scenario: Scenario, outcome: Outcome) -> str:
    """SVG. Until the last attempt is over, and a little longer."""
    end = scenario.ack_wait * (len(outcome.silent) + 1)
    points = []
    for step in range(STEPS + 1):
        now = end * step / STEPS
        lacking = max(1 - outcome.curve.share(now), 10.0**-DECADES)
        points.append(f"{_x(now, end):.1f},{_y(lacking):.1f}")
    lines = []
    for decade in range(DECADES + 1):
        y, label = _y(10.0**-decade), f"{100 * 10.0**-decade:g} %"
        lines += [
            f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>',
        ]
    for attempt in range(len(outcome.silent) + 2):
        now = attempt * scenario.ack_wait
        if now <= end:
            lines.append(
                f'<text x="{_x(now, end):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                f"{now:g} s</text>"
            )
    title = (
        f"Members without the new epoch: {scenario.members:,} over"
        f" {scenario.rekey_sas} Rekey SAs, {100 * scenario.network.lost:.2g} % loss"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            f' style="{STYLE}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            f'<text x="{LEFT}" y="18">{title}</text>',
            *lines,
            f'<polyline points="{" ".join(points)}" fill="none" stroke="#06c" stroke-width="2"/>',
            "</svg>",
            "",
        ]
    )


def _x(now: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - 10) * now / end


def _y(share: float) -> float:
    return TOP - (HEIGHT - TOP - BOTTOM) * log10(share) / DECADES
