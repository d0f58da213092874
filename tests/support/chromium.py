"""A real Chromium without a screen, driven through a pipe by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 120.0
OPTIONS = (
    "--no-sandbox",  # it is root in the tests; what it sees is ours
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
)


class Page:
    """One tab. ``said``: what the console, or the browser about the page, has said."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.said: list[str] = []
        self.requested: list[str] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return await self._browser.call(method, parameters, self._session)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await self.evaluate(expression):  # noqa: ASYNC110 (in another process)
                await asyncio.sleep(0.05)

    async def screenshot(self, path: Path, width: int, height: int | None = None) -> None:
        """Of the whole page, or its first ``height`` pixels."""
        await self.size(width, height or 900)
        tall = height or await self.evaluate("document.documentElement.scrollHeight")
        await self.size(width, tall)
        answer = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(answer["data"]))

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    async def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    def heard(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(parameters["exceptionDetails"]))
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {parameters['message']}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])


class Browser:
    def __init__(self, reader: asyncio.StreamReader, out: int) -> None:
        self._reader, self._out = reader, out
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._waiting[number] = asyncio.get_running_loop().create_future()
        os.write(self._out, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(PATIENCE):
            answer = await self._waiting[number]
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    async def page(self, *, scripts: bool = True) -> Page:
        target = await self.call("Target.createTarget", {"url": "about:blank"})
        attached = await self.call(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
        )
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        await page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        return page

    async def read(self) -> None:
        """Until it ends."""
        while True:
            try:
                octets = await self._reader.readuntil(b"\0")
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            message = json.loads(octets[:-1])
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].heard(message["method"], message["params"])


def _pipe() -> tuple[int, int]:
    """Beyond the numbers that Chromium has its own ideas of."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return reading, writing


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Browser]:
    ours, theirs = _pipe(), _pipe()  # what it says, what it is told
    # It reads file descriptor 3 and writes 4, whatever those are here.
    script = f'exec chromium-headless-shell "$@" 3<&{theirs[0]} 4>&{ours[1]}'
    process = subprocess.Popen(  # noqa: ASYNC220 (and it is spoken to through pipes)
        ["bash", "-c", script, "bash", f"--user-data-dir={profile}", *OPTIONS],
        pass_fds=(theirs[0], ours[1]),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs[0])
    os.close(ours[1])
    reader = asyncio.StreamReader(limit=64 << 20)
    pipe = os.fdopen(ours[0], "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    browser = Browser(reader, theirs[1])
    reading = asyncio.ensure_future(browser.read())
    try:
        yield browser
    finally:
        os.close(theirs[1])  # who is told nothing more ends
        with suppress(ProcessLookupError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await reading
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        transport.close()
