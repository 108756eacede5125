"""A headless Chromium by its DevTools protocol: open a page, evaluate, wait for what it shows."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import websockets

PATIENCE = 30.0
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)


class Page:
    """One tab."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(PATIENCE):
            while True:
                message = json.loads(await self._socket.recv())
                if message.get("id") == number:
                    assert "error" not in message, message
                    return message["result"]

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def reload(self) -> None:
        await self.evaluate("window.before = true")
        await self.call("Page.reload")
        await self.until("document.readyState === 'complete' && !window.before")

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Its value, once it is true."""
        found = None
        try:
            async with asyncio.timeout(PATIENCE):
                while not (found := await self._try(expression)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never: {expression}\n{await self._try('document.body.innerText')}") from None
        return found

    async def _try(self, expression: str) -> Any:
        try:
            return await self.evaluate(expression)
        except AssertionError:
            return None  # between two documents


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Page]:
    """A browser with a profile of its own in `folder`; ended with the test."""
    assert CHROMIUM, "there is no Chromium; `make unit` installs it"
    with (folder / "chromium.txt").open("wb") as said:
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank", stdout=said, stderr=said
        )
    try:
        where = folder / "profile" / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE):
            while not (where.exists() and len(where.read_text().splitlines()) == 2):
                assert browser.returncode is None, (folder / "chromium.txt").read_text()
                await asyncio.sleep(0.05)
        port = where.read_text().splitlines()[0]
        async with asyncio.timeout(PATIENCE):
            while not (found := [each for each in await asyncio.to_thread(_read, port) if each["type"] == "page"]):
                await asyncio.sleep(0.05)
        (target,) = found
        async with websockets.connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            page = Page(socket)
            await page.call("Page.enable")
            yield page
    finally:
        if browser.returncode is None:
            browser.kill()
        await browser.wait()


def _read(port: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as answer:
        return json.loads(answer.read())
