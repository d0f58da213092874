"""The key server's status page: groups, epochs, who has acknowledged, and the members.

It shows and does nothing. Whatever is said by a member comes from the network, so everything is
escaped that is no markup of ours, and the browser is told to run nothing that is not
here (``daemon.web``). The page is whole without JavaScript; its script asks for it again every two
seconds and puts what has changed in place of what was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import islice
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from .. import __version__
from ..protocol.group import Group
from ..protocol.page import Rekey
from ..protocol.roster import Registrant
from .standing import State
from .survey import PORTION, STATES, GroupView, Surveyor
from .web import Request, Response, refusal

if TYPE_CHECKING:
    from .gcks import KeyServerDaemon

FILES = Path(__file__).parent / "status_page_files"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Rows of the table of members on one page; rekeys that are shown, the newest.
ROWS = 100
REKEYS = 8
# Characters that are searched for: more than any identity that somebody types.
MAX_WANTED = 128
# A sign for who cannot tell the colours apart, and what the state means. The grid has a letter for
# each, in this order.
SIGNS = {
    State.ACKNOWLEDGED: ("✓", "has acknowledged the last rekey"),
    State.CURRENT: ("·", "nothing is asked of it since it registered"),
    State.RE_REGISTERED: ("↻", "has registered again instead of acknowledging"),
    State.PENDING: ("…", "may still acknowledge"),
    State.MISSING: ("✕", "has not acknowledged in time"),
    State.DEAD: ("†", "does not answer, says dead peer detection"),
}
_LETTERS = bytes(range(ord("a"), ord("a") + len(STATES)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks to see of the members; ``at`` is the place of one."""

    text: str = ""
    state: State | None = None
    page: int = 0
    at: int | None = None

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Wanted:
        state = query.get("state", "")
        return cls(
            query.get("q", "").strip()[:MAX_WANTED].casefold(),
            State(state) if state in list(State) else None,
            _number(query.get("page", "")) or 0,
            _number(query.get("at", "")),
        )

    def link(self, group: str, **other: object) -> str:
        """To the same with something else."""
        mine = {"q": self.text, "state": self.state, "page": self.page}
        every = {"group": group, **mine, **other}
        return escape("?" + urlencode({key: value for key, value in every.items() if value}))


class StatusPage:
    def __init__(self, daemon: KeyServerDaemon, surveyor: Surveyor) -> None:
        self._daemon, self._surveyor = daemon, surveyor
        self._frame = Template((FILES / "page.html").read_text(encoding="utf-8"))
        self._files = {
            f"/{file.name}": Response(file.read_bytes(), TYPES[file.suffix])
            for file in FILES.iterdir()
            if file.suffix in TYPES
        }
        self._searching = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        if request.path in self._files:
            return self._files[request.path]
        if request.path not in ("/", "/member"):
            return refusal(404, "there is nothing here")
        found = self._group(request.query.get("group"))
        if found is None:
            return refusal(404, "there is no such group")
        views = await self._surveyor.look()
        key, group = found
        view = views.get(key, GroupView())
        if request.path == "/member":
            return _named(view, _number(request.query.get("at", "")))
        wanted = Wanted.read(request.query)
        places = await _chosen(view, wanted, self._searching)
        body = self._frame.substitute(
            title=escape(f"{group.config.name}, key server {self._where}"),
            head=self._head(),
            trouble=self._trouble(),
            groups="".join(self._cards(views, group)),
            group=self._of_group(group, view),
            search=_search(group, wanted),
            members=self._members(group, view, wanted, places),
            version=escape(__version__),
        )
        return Response(body.encode(), "text/html; charset=utf-8")

    def _group(self, name: str | None) -> tuple[int, Group] | None:
        groups = self._daemon.engine.groups.items()
        return next((each for each in groups if name in (None, each[1].config.name)), None)

    @property
    def _where(self) -> str:
        return str(next(iter(self._daemon.engine.groups.values())).config.source.host)

    # -- the key server ----------------------------------------------------------------------------

    def _head(self) -> str:
        leads, fence = self._daemon.role
        role = "follows" if not leads else f"leads, fence {fence}" if fence else ""
        now = datetime.now(UTC).strftime("%H:%M:%S")
        role = f'<span class="role">{escape(role)}</span>' if role else ""
        return f"<h1>Key server {escape(self._where)}</h1>{role}<p>as of <time>{now}</time> UTC</p>"

    def _trouble(self) -> str:
        why = self._daemon.trouble
        if why is None:
            return ""
        return f'<p role="alert"><strong>The state cannot be saved.</strong> {escape(why)}</p>'

    def _cards(self, views: Mapping[int, GroupView], shown: Group) -> Iterator[str]:
        for key, group in self._daemon.engine.groups.items():
            counts = views.get(key, GroupView()).counts
            name = group.config.name
            current = ' aria-current="page"' if group is shown else ""
            yield (
                f'<a class="card" href="{Wanted().link(name)}"{current}><b>{escape(name)}</b>'
                f"<span>{_count(sum(counts.values()), 'member')}, epoch {group.epoch}</span>"
                f"<span>{_summary(counts)}</span>{_bar(counts)}</a>"
            )

    # -- one group ---------------------------------------------------------------------------------

    def _of_group(self, group: Group, view: GroupView) -> str:
        counts = view.counts
        rows = "".join(
            self._rekey_row(rekey) for rekey in islice(reversed(group.ledger.values()), REKEYS)
        )
        none = '<tr><td colspan="6">none yet</td></tr>'
        facts = "".join(
            f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in self._facts(group)
        )
        cells = view.states.translate(_LETTERS.ljust(256, b"?")).decode()
        total, label = len(view.members), ", ".join(f"{n:,} {s}" for s, n in counts.items() if n)
        legend = "".join(_legend(group, state, n) for state, n in counts.items())
        return (
            f'<section data-live="state"><h2>{_headline(group, counts)}</h2>{_bar(counts)}'
            f'<ul class="legend">{legend}</ul></section>'
            f'<section class="grid" data-cells="{cells}" data-group="{escape(group.config.name)}"'
            f' data-states="{" ".join(STATES)}" aria-label="{_count(total, "member")}: {label}">'
            "</section>"
            f'<section data-live="facts"><dl>{facts}</dl></section>'
            '<section data-live="rekeys"><h2>Rekeys</h2><div class="wide"><table><thead><tr>'
            '<th class="n">Epoch<th>Sent<th>Reason<th class="n">Rounds'
            '<th class="n">Acknowledged<th></thead>'
            f"<tbody>{rows or none}</tbody></table></div></section>"
        )

    def _facts(self, group: Group) -> Iterator[tuple[str, str]]:
        now, config = self._daemon.clock.now(), group.config
        yield "Group", str(config.group_id)
        yield "Epoch", f"{group.epoch:,}"
        yield "Transport", str(config.transport)
        if group.sas:
            yield "SEQ", f"{group.current_kek().seq:,}"
            yield "KEK", f"{group.current_kek().kek.name[:16]}…"
            yield "Next rekey", f"in {_span(group.next_rekey()[0] - now)}"
            yield "KEK ends", f"in {_span(min(sa.kek.expires for sa in group.sas) - now)}"
        ends = [tek.expires for tek in group.teks if tek.retire_at is None]
        if ends:
            yield "Data SAs", f"{len(ends)}, first ends in {_span(min(ends) - now)}"
        if len(group.sas) > 1:
            yield "Rekey SAs", f"{len(group.sas):,}"
        if group.denied:
            yield "Evicted", f"{len(group.denied):,}"

    def _rekey_row(self, rekey: Rekey) -> str:
        expected, heard = len(rekey.expected), len(rekey.acknowledged)
        share = f"{heard:,} of {expected:,}" if expected else "nobody is asked"
        left = max(0, expected - heard)
        counts = {State.ACKNOWLEDGED: heard, _late(rekey): left}
        return (
            f'<tr><td class="n">{rekey.epoch}<td>{self._ago(rekey.first_sent)}<td>'
            f'{escape(rekey.reason)}<td class="n">{rekey.attempts}<td class="n">{share}'
            f"<td>{_bar(counts) if expected else ''}</tr>"
        )

    # -- its members -------------------------------------------------------------------------------

    def _members(self, group: Group, view: GroupView, wanted: Wanted, places: Sequence[int]) -> str:
        page = min(wanted.page, max(0, (len(places) - 1) // ROWS))
        shown = places[page * ROWS : (page + 1) * ROWS]
        rows = "".join(self._row(view, place, marked=place == wanted.at) for place in shown)
        pages = _pages(group, wanted, page, len(places))
        none = '<tr><td colspan="7">No member is like that.</td></tr>'
        return (
            f'<section data-live="members"><p>{_count(len(places), "member")}{pages}</p>'
            '<div class="wide"><table class="members"><thead><tr><th>Member<th>Address<th>State'
            '<th>Last ACK<th class="n">Round trip<th class="n">Missed<th>Registered</thead>'
            f"<tbody>{rows or none}</tbody></table></div></section>"
        )

    def _row(self, view: GroupView, place: int, *, marked: bool) -> str:
        member, state = view.members[place], STATES[view.states[place]]
        sign, about = SIGNS[state]
        rtt = "" if member.rtt is None else f"{1000 * member.rtt:,.0f} ms"
        mark = ' class="marked"' if marked else ""
        return (
            f"<tr{mark}><td>{escape(str(member.identity))}<td>{escape(_address(member))}"
            f'<td class="{state}" title="{escape(about)}"><i aria-hidden="true">{sign}</i> {state}'
            f'<td>{self._ago(member.last_ack)}<td class="n">{rtt}<td class="n">{member.missed}'
            f"<td>{self._ago(member.registered_at)}</tr>"
        )

    def _ago(self, moment: float | None) -> str:
        if moment is None:
            return "never"
        day = self._daemon.time_of_day(moment) or 0.0
        when = datetime.fromtimestamp(day, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        ago = max(0.0, self._daemon.clock.now() - moment)
        return f'<time title="{when}">{_span(ago)} ago</time>'


async def _chosen(view: GroupView, wanted: Wanted, gate: asyncio.Lock) -> Sequence[int]:
    """Places of the members that are asked for; of one, those around it. ``gate``: one portion in
    a turn of the loop, of all who search at the same time."""
    total = len(view.members)
    if wanted.at is not None:
        start = min(wanted.at, max(0, total - 1)) // ROWS * ROWS
        return range(start, min(start + ROWS, total))
    places: Sequence[int] = range(total)
    if wanted.state is not None:
        number = STATES.index(wanted.state)
        places = [place for place, state in enumerate(view.states) if state == number]
    if not wanted.text:
        return places
    found: list[int] = []
    for begin in range(0, len(places), PORTION):
        async with gate:
            portion = places[begin : begin + PORTION]
            found += [place for place in portion if _is_like(view.members[place], wanted.text)]
            await asyncio.sleep(0)
    return found


def _is_like(member: Registrant, text: str) -> bool:
    return text in str(member.identity).casefold() or text in _address(member)


def _named(view: GroupView, at: int | None) -> Response:
    """One line about the member at a place of the grid."""
    if at is None or at >= len(view.members):
        return refusal(404, "there is no such member")
    state = STATES[view.states[at]]
    return Response(f"{view.members[at].identity}: {state}".encode())


def _search(group: Group, wanted: Wanted) -> str:
    """Not replaced while somebody types."""
    options = "".join(
        f"<option{' selected' if state is wanted.state else ''}>{state}" for state in STATES
    )
    return (
        '<form role="search">'
        f'<input type="hidden" name="group" value="{escape(group.config.name)}">'
        f'<label>Identity or address <input type="search" name="q" maxlength="{MAX_WANTED}"'
        f' value="{escape(wanted.text)}"></label> <label>State <select name="state">'
        f'<option value="">any{options}</select></label> <button>Show</button></form>'
    )


def _pages(group: Group, wanted: Wanted, page: int, count: int) -> str:
    name, parts = group.config.name, []
    if wanted.at is not None:
        return f' around number {wanted.at:,} · <a href="{wanted.link(name)}">all</a>'
    last = max(0, (count - 1) // ROWS)
    if page:
        parts.append(f'<a rel="prev" href="{wanted.link(name, page=page - 1)}">previous</a>')
    if last:
        parts.append(f"page {page + 1:,} of {last + 1:,}")
    if page < last:
        parts.append(f'<a rel="next" href="{wanted.link(name, page=page + 1)}">next</a>')
    return "".join(f" · {part}" for part in parts)


def _headline(group: Group, counts: Mapping[State, int]) -> str:
    total, behind, dead = sum(counts.values()), _behind(counts), counts[State.DEAD]
    if not total:
        return "No member has registered yet"
    also, rekey = f", {dead:,} dead" if dead else "", group.last_rekey()
    who = f"{_count(total, 'member')}{also}"
    if rekey is None:
        return f"{who}, no rekey yet"
    if not behind:
        return f"{who}, nobody {'else ' if dead else ''}is missing in epoch {rekey.epoch:,}"
    heard = counts[State.ACKNOWLEDGED]
    return f"{heard:,} of {heard + behind:,} have acknowledged epoch {rekey.epoch:,}{also}"


def _summary(counts: Mapping[State, int]) -> str:
    """Whoever is dead is not asked, and has no current keys either."""
    late = ((_behind(counts), "not acknowledged"), (counts[State.DEAD], "dead"))
    if any(count for count, _ in late):
        return ", ".join(f"{count:,} {what}" for count, what in late if count)
    return "converged" if any(counts.values()) else "nobody yet"


def _behind(counts: Mapping[State, int]) -> int:
    return counts[State.PENDING] + counts[State.MISSING]


def _late(rekey: Rekey) -> State:
    return State.MISSING if rekey.closed else State.PENDING


def _legend(group: Group, state: State, count: int) -> str:
    sign, about = SIGNS[state]
    link = Wanted(state=state).link(group.config.name)
    return (
        f'<li class="{state}" title="{escape(about)}"><a href="{link}">'
        f'<i aria-hidden="true">{sign}</i> {state} <b>{count:,}</b></a>'
    )


def _bar(counts: Mapping[State, int]) -> str:
    """One line, a hundred wide; who is one of thousands can still be seen."""
    total, parts, x = sum(counts.values()) or 1, [], 0.0
    for state, count in counts.items():
        if count:
            width = max(100 * count / total, 0.6)
            parts.append(f'<rect class="{state}" x="{x:.2f}" width="{width:.2f}" height="1"/>')
            x += width
    shape = f'viewBox="0 0 {max(x, 100):.2f} 1" preserveAspectRatio="none"'
    return f'<svg class="bar" {shape} aria-hidden="true">{"".join(parts)}</svg>'


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _span(seconds: float) -> str:
    """The two largest units: nobody reads more."""
    left = max(0, int(seconds))
    for unit, name, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if left >= unit:
            return f"{left // unit} {name} {left % unit // below} {small}"
    return f"{left // 60} min {left % 60} s" if left >= 60 else f"{left} s"


def _address(member: Registrant) -> str:
    """Behind a NAT the port is half of it."""
    return str(member.address if member.behind_nat else member.address.host)


def _number(text: str) -> int | None:
    """None for what is no place of a member."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else None
