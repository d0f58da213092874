"""The status page in a real Chromium, of a running key server whose members register and
acknowledge; two of them do not. With GDOI_SCREENSHOTS=DIR its pictures are left there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from html import escape
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509

from gdoi_plugin.cli.client import Client
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon import status_page, survey
from gdoi_plugin.daemon.standing import State
from gdoi_plugin.daemon.status_page import FILES, ROWS, StatusPage
from gdoi_plugin.daemon.survey import Surveyor
from gdoi_plugin.daemon.web import Request, Response, WebServer
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.protocol.roster import Registrant
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.registry import IdType
from tests.daemon.children import running
from tests.daemon.configs import PSK, write
from tests.daemon.evidence import Evidence
from tests.daemon.fetching import fetch, free_tcp_port
from tests.daemon.lean_member import LeanMember
from tests.daemon.test_udp import free_port
from tests.support.chromium import Browser, Page, chromium
from tests.support.simnet import Network
from tests.support.worlds import World, build, group_config

PATIENCE = 150.0
SCREENSHOTS = os.environ.get("GDOI_SCREENSHOTS")
NET = "127.9.4"
MEMBERS = 24
SILENT = (7, 18)
CONFIG = """\
[key_server]
address = "{net}.200"
port = {port}
nat_traversal = false
state = "{folder}/gcks.sqlite"
control = "{folder}/gcks.vici"
log = "{folder}/gcks.log"
status_page = "127.0.0.1:{page}"
proposals = ["aes128-sha256-ecp256"]
work_per_source = 1000

[[peer]]
address = "{net}.0/24"
psk = "{psk}"

[[group]]
name = "video"
id = 1
members = ["{net}.0/24"]
[group.rekey]
signature = "ecdsa256"
retransmissions = 0
[[group.tek]]
destination = "239.192.1.1"

[[group]]
name = "scada"
id = "oid:1.2.840.10070.61850"
members = ["{net}.0/24"]
[group.rekey]
signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.2"
"""


class Mute(LeanMember):
    """It hears every rekey and says nothing."""

    def _push(self, header: Header, datagram: bytes, source: Peer) -> None: ...


class Lab:
    """A running gdoi-gcks and its members, which live in the test's loop."""

    def __init__(self, folder: Path) -> None:
        self.page, self.control = free_tcp_port(), folder / "gcks.vici"
        self.server, port = Peer(ip_address(f"{NET}.200"), free_port()), free_port()
        text = CONFIG.format(net=NET, port=self.server.port, folder=folder, page=self.page, psk=PSK)
        self.config = write(folder, text)
        self.members = [
            kind(Peer(ip_address(f"{NET}.{n}"), port), self._entry(n), ("video", 1), Evidence())
            for n in range(1, MEMBERS + 1)
            for kind in (Mute if n in SILENT else LeanMember,)
        ]

    def _entry(self, number: int) -> KeyServerEntry:
        own, other = (Identity.parse(f"{NET}.{n}") for n in (number, 200))
        way = PreSharedKey(own, other, Secret(PSK.encode()))
        return KeyServerEntry(self.server, Phase1Config((way,), (SUITES["aes128-sha256-ecp256"],)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.page}/"

    async def live(self) -> None:
        """Members answer, and ask again where nothing came."""
        loop = asyncio.get_running_loop()
        for member in self.members:
            loop.add_reader(member.socket, member.arrived)
        try:
            while True:
                for member in self.members:
                    member.tick()
                await asyncio.sleep(0.1)
        finally:
            for member in self.members:
                loop.remove_reader(member.socket)

    async def rekey(self) -> None:
        await asyncio.to_thread(self._rekey)

    def _rekey(self) -> None:
        with Client(self.control, PATIENCE) as client:
            client.request("rekey", {"group": "video"})

    async def registered(self) -> None:
        for member in self.members:
            member.register()
        await until(lambda: all(member.registered for member in self.members), "registered")

    def close(self) -> None:
        for member in self.members:
            member.socket.close()


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def laboratory(folder: Path) -> AsyncIterator[tuple[Lab, Browser]]:
    lab = Lab(folder)
    program = Path(sys.executable).with_name("gdoi-gcks")
    with running([program, "--config", lab.config]) as child:
        log = folder / "gcks.log"
        await until(lambda: '"started"' in _read(log) or child.poll() is not None, "it starts")
        living = asyncio.ensure_future(lab.live())
        try:
            async with chromium(folder / "profile") as browser:
                await lab.registered()
                yield lab, browser
        finally:
            living.cancel()
            with suppress(asyncio.CancelledError):
                await living
            lab.close()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


COUNTS = """[...document.querySelectorAll('.legend li')].map(
  item => [item.className, +item.querySelector('b').textContent])"""
ROWS_SEEN = """[...document.querySelectorAll('.members tbody tr')].map(
  row => [...row.cells].map(cell => cell.innerText.trim()))"""
LEFT = {"button": "left", "clickCount": 1}
# The colours of the cells' corners, in the order of members.
PAINTED = """(() => {
  const canvas = document.querySelector('canvas'), pen = canvas.getContext('2d');
  const {columns, size} = shape, cells = grid.dataset.cells.length, found = [];
  for (let n = 0; n < cells; n++) {
    const at = pen.getImageData((n % columns) * size + 1, Math.floor(n / columns) * size + 1, 1, 1);
    found.push([...at.data].slice(0, 3).join());
  }
  return found;
})()"""


def _some(state: str, count: int) -> str:
    return f"({COUNTS}).some(([state, n]) => state === '{state}' && n === {count})"


async def counts(page: Page) -> dict[str, int]:
    return dict(await page.evaluate(COUNTS))


async def picture(page: Page, name: str, *size: int) -> None:
    if SCREENSHOTS:
        await page.screenshot(Path(SCREENSHOTS) / name, *size)


def test_a_rekey_as_somebody_watches_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with laboratory(tmp_path) as (lab, browser):
            page, static = await browser.page(), await browser.page(scripts=False)
            await page.size(1280, 900)
            await page.open(lab.url)
            await page.until("document.getElementById('live').textContent === 'live'")
            assert (await counts(page))["current"] == MEMBERS
            before = await page.evaluate(PAINTED)
            assert len(before) == MEMBERS
            assert len(set(before)) == 1

            await lab.rekey()
            # Nobody loads the page again: it sees for itself.
            await page.until(_some("acknowledged", MEMBERS - 2))
            assert (await counts(page))["pending"] == 2
            await picture(page, "status-page-pending.png", 1280, 700)
            after = await page.evaluate(PAINTED)
            silent = {place for place, colour in enumerate(after) if colour != after[0]}
            assert len(silent) == 2
            headline = await page.evaluate("document.querySelector('h2').textContent")
            assert headline == f"{MEMBERS - 2} of {MEMBERS} have acknowledged epoch 2"

            await _no_scripts(lab, static)
            await _search(lab, page)
            await page.open(lab.url)
            if SCREENSHOTS:  # the window of ACKs is long
                await page.until(_some("missing", 2))
            await page.until("document.getElementById('live').textContent === 'live'")
            await picture(page, "status-page.png", 1280, 1040)
            await page.scheme("dark")
            await picture(page, "status-page-dark.png", 1280, 700)
            await page.scheme("light")
            await _cells(page, min(silent))
            # Canvas2D: that the test reads the canvas is no fault of the page.
            assert [text for text in page.said + static.said if "Canvas2D" not in text] == []
            own = re.compile(re.escape(lab.url) + "|about:blank")
            assert all(own.match(url) for url in page.requested + static.requested)
            assert page.requested, "and there were some"

    asyncio.run(main())


async def _no_scripts(lab: Lab, page: Page) -> None:
    """The same as a table, and a form that works."""
    await page.size(1280, 900)
    text = (await fetch(lab_place(lab), "/")).text
    await page.open(lab.url)
    document = await page.call("DOM.getDocument", depth=-1)
    html = (await page.call("DOM.getOuterHTML", nodeId=document["root"]["nodeId"]))["outerHTML"]
    assert "<canvas" not in html
    assert html.count("<tr") == text.count("<tr")
    rows = re.findall(rf"<td>({NET}\.\d+)</td><td>", html)
    assert sorted(rows) == sorted(member.name for member in lab.members)
    await picture(page, "status-page-no-scripts.png", 1280, 700)


def lab_place(lab: Lab) -> Peer:
    return Peer(ip_address("127.0.0.1"), lab.page)


async def _search(lab: Lab, page: Page) -> None:
    await page.evaluate("document.querySelector('[name=q]').value = '.18'")
    await page.evaluate("document.querySelector('form').requestSubmit()")
    await page.until("location.search.includes('q=.18') && document.readyState === 'complete'")
    await page.until(f"({ROWS_SEEN}).length === 1")
    ((name, address, state, *_),) = await page.evaluate(ROWS_SEEN)
    assert (name, address) == (f"{NET}.18", f"{NET}.18")
    assert state.split()[1] in ("pending", "missing")
    await page.open(f"{lab.url}?group=video&state=acknowledged&q={NET}.1")
    rows = await page.evaluate(ROWS_SEEN)
    assert len(rows) == len([n for n in range(1, MEMBERS + 1) if str(n)[0] == "1"]) - 1
    assert all(row[2] == "✓ acknowledged" for row in rows)
    await page.open(f"{lab.url}?group=scada")
    assert await page.evaluate("document.querySelector('h2').textContent") == (
        "No member has registered yet"
    )
    assert await page.evaluate("getComputedStyle(grid).display") == "none"


async def _cells(page: Page, place: int) -> None:
    """Over a cell: who it is. A click: its row in the table."""
    where = await page.evaluate(
        f"""(() => {{ const box = document.querySelector('canvas').getBoundingClientRect();
        return [box.x + ({place} % shape.columns + 0.5) * shape.size,
                box.y + (Math.floor({place} / shape.columns) + 0.5) * shape.size]; }})()"""
    )
    x, y = where
    await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    await page.until("!document.getElementById('tip').hidden")
    text = await page.evaluate("document.getElementById('tip').textContent")
    name, _, state = text.partition(": ")
    assert name in {f"{NET}.{n}" for n in SILENT}
    assert state in ("pending", "missing")
    for kind in ("mousePressed", "mouseReleased"):
        await page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **LEFT)
    await page.until("document.querySelector('.marked') !== null")
    marked = await page.evaluate("document.querySelector('.marked').cells[0].innerText")
    assert marked == name


# -- pages of an engine alone --------------------------------------------------------------------


EVIL = "<img/src=x/onerror=window.pwned=1>"
SCRIPT = "'\"><script>window.pwned=1</script>&lt;"


def _world(identities: Sequence[Identity] = ()) -> World:
    world = build(Network(1), 3, group=group_config(3))
    world.start()
    world.network.run(5)
    (group,) = world.server.engine.groups.values()
    for number, identity in enumerate(identities):
        address = IPv4Address("127.16.0.1") + number
        group.roster.add(Registrant(identity, Peer(address, 848), world.network.now))
    return world


def _page_of(world: World, **facts: Any) -> StatusPage:
    engine = world.server.engine
    clock = SimpleNamespace(now=lambda: world.network.now)
    usual = {"trouble": None, "role": (True, 0), "clock": clock, "time_of_day": lambda t: t}
    daemon: Any = SimpleNamespace(engine=engine, **usual | facts)
    return StatusPage(daemon, Surveyor(engine))


def _get(page: StatusPage, path: str = "/", /, **query: str) -> Response:
    return asyncio.run(page.answer(Request(path, query)))


def _text(page: StatusPage, /, **query: str) -> str:
    got = _get(page, **query)
    assert (got.status, got.content_type) == (200, "text/html; charset=utf-8")
    return got.body.decode()


@asynccontextmanager
async def served(page: StatusPage, folder: Path) -> AsyncIterator[tuple[Peer, Page]]:
    place = Peer(ip_address("127.0.0.1"), free_tcp_port())
    server = WebServer("page", place, page.answer, lambda *_: None)
    await server.start()
    try:
        async with chromium(folder / "profile") as browser:
            yield place, await browser.page()
    finally:
        await server.close()


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "FRESH", 0.0)


def test_an_identity_is_text_and_nothing_else(tmp_path: Path) -> None:
    """Those that a member may have: in a real browser nothing of them runs, and all is shown."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, EVIL)])
    hostile = [
        Identity(IdType.ID_FQDN, EVIL.encode()),
        Identity(IdType.ID_USER_FQDN, SCRIPT.encode()),
        Identity(IdType.ID_DER_ASN1_DN, name.public_bytes()),
        Identity(IdType.ID_FQDN, b"</td><script>window.pwned=1</script>\xff\x1b[2J\0"),
    ]
    page = _page_of(_world(hostile), trouble=f"disk {SCRIPT}")

    async def main() -> None:
        async with served(page, tmp_path) as (place, tab):
            await tab.open(f"http://{place}/?{urlencode({'q': '<', 'at': '5'})}")
            await tab.until("document.getElementById('live').textContent === 'live'")
            shown = [row[0] for row in await tab.evaluate(ROWS_SEEN)]
            assert shown[3:] == [str(identity) for identity in hostile]
            trouble = await tab.evaluate("document.querySelector('[role=alert]').textContent")
            assert trouble == f"The state cannot be saved. disk {SCRIPT}"
            await tab.open(f"http://{place}/?{urlencode({'q': SCRIPT})}")
            value = "document.querySelector('[name=q]').value"
            assert await tab.evaluate(value) == SCRIPT.casefold()
            assert len(await tab.evaluate(ROWS_SEEN)) == 1
            pwned = "'pwned' in window || document.querySelectorAll('img, td script').length"
            assert not await tab.evaluate(pwned)
            assert tab.said == []
            # And if something were forgotten one day, the browser would not run it.
            await tab.evaluate(
                "document.body.append(Object.assign(document.createElement('script'),"
                " {textContent: 'window.pwned = 1'}))"
            )
            assert not await tab.evaluate("'pwned' in window")
            assert "Content Security Policy" in "".join(tab.said)

    asyncio.run(main())


def test_no_octet_of_an_identity_is_markup() -> None:
    evil = "".join(map(chr, range(33, 127)))
    text = _text(_page_of(_world([Identity(IdType.ID_FQDN, evil.encode())])))
    assert evil not in text
    assert escape(evil) in text


def test_ten_thousand_members(tmp_path: Path) -> None:
    """One cell each, and a table of a hundred."""
    identities = [Identity.of_address(IPv4Address("127.16.0.1") + n) for n in range(10_000)]
    page = _page_of(_world(identities))
    text = _text(page)
    assert len(text) < 100_000
    assert text.count("<tr") == ROWS + 2 + 1
    assert "page 1 of 101" in text
    cells = re.search('data-cells="([a-f]+)"', text)
    assert cells is not None
    assert len(cells[1]) == 10_003
    last = _text(page, page="100")
    assert last.count("<tr") == 3 + 2 + 1
    assert "page 101 of 101" in last
    assert _text(page, page="99999999").count("<tr") == 3 + 2 + 1, "there is none beyond"
    around = _text(page, at="9999")
    assert 'class="marked"><td>127.16.39.13<' in around
    assert _get(page, "/member", at="9999").body == b"127.16.39.13: current"
    assert "<p>1 member</p>" in _text(page, q="127.16.39.13")

    async def main() -> None:
        async with served(page, tmp_path) as (place, tab):
            await tab.size(1280, 900)
            await tab.open(f"http://{place}/")
            painted = await tab.evaluate(PAINTED)
            assert len(painted) == 10_003
            high = await tab.evaluate("document.querySelector('canvas').clientHeight")
            assert high <= 440
            await picture(tab, "status-page-ten-thousand.png", 1280, 900)

    asyncio.run(main())


@pytest.mark.parametrize("query", [{"group": "none"}, {"group": ""}])
def test_a_group_that_is_not_there(query: dict[str, str]) -> None:
    assert _get(_page_of(_world()), **query).status == 404


@pytest.mark.parametrize(
    "query",
    [
        {"page": "x"}, {"page": "-1"}, {"page": "٣"}, {"page": "9" * 30}, {"at": "9" * 30},
        {"at": "-5"}, {"state": "none"}, {"q": "x" * 5000}, {"other": "1"},
    ],
)  # fmt: skip
def test_strange_questions_have_an_answer(query: dict[str, str]) -> None:
    text = _text(_page_of(_world()), **query)
    assert len(text) < 20_000


@pytest.mark.parametrize("path", ["/x", "/page.html", "/../page.css", "/page.css/", "//page.css"])
def test_nothing_else_is_served(path: str) -> None:
    assert _get(_page_of(_world()), path).status == 404


def test_a_member_that_is_not_there() -> None:
    page = _page_of(_world())
    for at in ("", "3", "x", "-1"):
        assert _get(page, "/member", at=at).status == 404


@pytest.mark.usefixtures("_fresh")
def test_states_are_as_the_ledger_has_them() -> None:
    world = _world()
    page = _page_of(world)
    assert "3 members, no rekey yet" in _text(page)
    world.members[0].crash()
    world.rekey()
    world.network.run(8)
    text = _text(page)
    assert "2 of 3 have acknowledged epoch 2" in text
    assert "<b>1</b>" in re.findall(r'<li class="pending".*', text)[0]
    world.network.run(60)
    text = _text(page)
    assert f'<td class="{State.MISSING}"' in text
    assert "1 not acknowledged" in text


@pytest.mark.usefixtures("_fresh")
def test_the_dead_are_not_taken_for_converged() -> None:
    world = _world()
    page = _page_of(world)
    (group,) = world.server.engine.groups.values()
    world.members[0].crash()
    world.rekey()
    world.network.run(8)
    members, page_2 = list(group.members.values()), group.ledger[2]
    (silent,) = (member for member in members if not page_2.acknowledged.has(member.number))
    silent.dead = True
    text = _text(page)
    assert "3 members, 1 dead, nobody else is missing in epoch 2" in text
    assert "<span>1 dead</span>" in text
    world.members[1].crash()
    world.rekey()
    world.network.run(8)
    silent.dead = True
    text = _text(page)
    assert "1 of 2 have acknowledged epoch 3, 1 dead" in text
    assert "<span>1 not acknowledged, 1 dead</span>" in text


def test_searches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are at once: in a turn of the loop, one portion of one of them."""
    page, turns, moments = _page_of(_world()), 0, Counter[int]()

    def like(*_: object) -> bool:
        moments[turns] += 1
        return True

    monkeypatch.setattr(status_page, "PORTION", 1)
    monkeypatch.setattr(status_page, "_is_like", like)

    async def main() -> None:
        nonlocal turns
        clients = [asyncio.ensure_future(page.answer(Request("/", {"q": "x"}))) for _ in range(20)]
        while not all(client.done() for client in clients):
            turns += 1
            await asyncio.sleep(0)
        assert all("<p>3 members</p>" in client.result().body.decode() for client in clients)

    asyncio.run(main())
    assert moments.total() == 20 * 3
    # Two where the counter is late in one turn and early in the next.
    assert max(moments.values()) <= 2


def test_who_follows_says_so() -> None:
    world = _world()
    assert "follows" in _text(_page_of(world, role=(False, 0)))
    assert "leads, fence 7" in _text(_page_of(world, role=(True, 7)))
    assert 'class="role"' not in _text(_page_of(world))


def test_files_are_whole_by_themselves() -> None:
    """No host but this one, no script and no style in the markup."""
    files = {file.name: file.read_text() for file in FILES.iterdir()}
    assert set(files) == {"page.html", "page.css", "page.js", "page.svg"}
    for text in files.values():
        assert "http:" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "https:" not in text
    assert re.findall(r"<script[^>]*>", files["page.html"]) == ['<script src="/page.js" defer>']
    assert not re.search(r"\son\w+=|style=|<style", files["page.html"] + _text(_page_of(_world())))
    assert "innerHTML =" not in files["page.js"]
