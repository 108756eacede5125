"""Whoever looks at examples/browser/audit.html all the time, in a headless Chromium."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from tests.browser.devtools import Page

from .readers import Entry

#: Seconds for the page to do what it is to.
PATIENCE: Final = 60.0

#: What the page shows right now. A gapless log has as many lines as its last number says.
_LOOK: Final = """({
  last, lines: document.querySelectorAll('#log div').length,
  gaps: document.querySelectorAll('#log div[data-kind=gap]').length,
  page: bar.value, of: bar.max, state: document.getElementById('state').textContent })"""
_LOG: Final = "[...document.querySelectorAll('#log div')].map(line => line.textContent)"
_FINDINGS: Final = """[...document.querySelectorAll('#findings tr')].map(
  row => [Number(row.cells[0].innerText), row.cells[1].innerText])"""


class Viewer:
    """`every`: seconds between two looks. `bad`: looks at a log with a gap, in words."""

    def __init__(self, page: Page, every: float) -> None:
        self.looks = 0
        self.bad: list[str] = []
        self.shows: dict[str, Any] = {}
        #: Word for word what the page said of its connection, in order.
        self.states: list[str] = []
        self._page = page
        self._every = every
        # The protocol has one answer at a time here.
        self._turn = asyncio.Lock()

    async def begin(self, url: str, pages: int) -> str:
        """Submit an audit on the page; the id of the run."""
        async with self._turn:
            await self._page.open(url)
            await self._page.evaluate(f"pages.value = {pages}; start.click()")
            return str(await self._page.until("run"))

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every)

    async def look(self) -> dict[str, Any]:
        async with self._turn:
            try:
                shown = await self._page.evaluate(_LOOK)
            except AssertionError:
                return {}  # between two documents
        self.looks += 1
        self.shows = shown
        if not self.states or self.states[-1] != shown["state"]:
            self.states.append(shown["state"])
        if shown["gaps"] or shown["lines"] != shown["last"] + 1:
            self.bad.append(f"the page's log is at {shown['last']} with {shown['lines']} lines, {shown['gaps']} gaps")
        return shown

    async def reload(self) -> None:
        async with self._turn:
            await self._page.reload()

    async def until_completed(self) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            while (await self.look()).get("state") != "completed":
                await asyncio.sleep(0.05)

    async def log(self) -> list[Entry]:
        """As it stands on the page."""
        async with self._turn:
            lines = await self._page.evaluate(_LOG)
        entries = []
        for line in lines:
            seq, _, rest = line.partition(" ")
            kind, _, data = rest.partition(" ")
            entries.append(Entry(int(seq), kind, json.loads(data)) if seq.isdigit() else Entry(-1, line, None))
        return entries

    async def findings(self) -> list[list[Any]]:
        """[page, kind], as the table has them."""
        async with self._turn:
            found: list[list[Any]] = await self._page.evaluate(_FINDINGS)
        return found
