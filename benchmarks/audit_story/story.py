"""The story itself: what is done when, and what is kept of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
from tests.browser.devtools import chromium

from unjam.client import AsyncClient
from unjam.runs.store import make as make_store

from .proxy import Held, Proxy
from .readers import SSE, WAIT, Entry, Readers
from .scene import EXAMPLES, Scene
from .settings import Settings
from .verdict import Told, longest, repeated
from .viewer import Viewer

#: Seconds without a page, beside the lease and what is away, after which the story is given up.
STUCK: Final = 60.0
#: Agents as the proxies know them.
CLIENT: Final = "unjam-client"
BROWSER: Final = "Mozilla"
_NAMES: Final = {CLIENT: "unjam.client", SSE: "curl", BROWSER: "the browser"}

Tell = Callable[[str], None]


class Story:
    """One audit. `tell`: given the timeline, line by line."""

    def __init__(self, folder: Path, settings: Settings, tell: Tell) -> None:
        self.settings = settings
        self.scene = Scene(folder, settings)
        self.timeline: list[dict[str, Any]] = []
        self.trouble: list[str] = []
        self._tell = tell
        self._began = monotonic()
        self._page = 0
        self._turned = asyncio.Event()
        self._left = 0

    def clock(self) -> float:
        """Seconds of the story."""
        return monotonic() - self._began

    def note(self, words: str, kind: str = "") -> None:
        """`kind`: of what is done to the system."""
        self.timeline.append({"at": round(self.clock(), 2), "page": self._page, "kind": kind, "words": words})
        self._tell(f"{self.clock():7.1f} s  page {self._page:4d}  {words}")

    async def play(self) -> tuple[Told, dict[str, Any]]:
        """What is to be judged, and figures. Raises RuntimeError when it doesn't get on."""
        settings, scene = self.settings, self.scene
        async with AsyncExitStack() as stack:
            stack.push_async_callback(scene.close)
            straight, _ = await asyncio.gather(
                asyncio.to_thread(_straight, scene.folder / "ledger.pdf", settings.pages), scene.start()
            )
            self._proxies = {name: Proxy(name, port, self.clock, self._resumes) for name, port in scene.ports.items()}
            for proxy in self._proxies.values():
                await proxy.start()
                stack.push_async_callback(proxy.close)
            self._began = monotonic()
            viewer = None
            if settings.browser:
                viewer = Viewer(await stack.enter_async_context(chromium(scene.folder)), settings.every)
                self.note("the browser has started")
            told, figures = await self._with(viewer, straight)
        told.log, told.left = await self._kept(figures["run"])
        return told, figures

    async def _with(self, viewer: Viewer | None, straight: dict[str, Any]) -> tuple[Told, dict[str, Any]]:
        urls = [proxy.url for proxy in self._proxies.values()]
        settings = self.settings
        async with AsyncClient(urls, patience=STUCK + settings.away) as client:
            if viewer is not None:
                run = await viewer.begin(f"{urls[0]}/audit.html", settings.pages)
            else:
                run = (await client.submit("auditor", {"pages": settings.pages})).id
            self.note(f"{run}: an audit of {settings.pages} pages, {settings.pace:.3g} s each")
            self._readers = readers = Readers(run, self.clock, self._heard)
            # curl begins at the last gateway, the client and the browser at the first.
            backwards = list(reversed(urls))
            following: list[asyncio.Task[Any]] = [
                asyncio.create_task(readers.follow(client)),
                asyncio.create_task(readers.follow_with_curl(backwards)),
                asyncio.create_task(readers.wait_with_curl(backwards)),
            ]
            watching: list[asyncio.Task[Any]] = [asyncio.create_task(viewer.watch())] if viewer is not None else []
            try:
                for part, act in self._acts(run, viewer):
                    await self._reached(round(part * settings.pages), following + watching)
                    await act()
                await self._reached(settings.pages, following + watching)
                async with asyncio.timeout(STUCK):
                    result, *_ = await asyncio.gather(*following)
                self.note("completed")
                view = await self._seen(viewer) if viewer is not None else None
                last = await client.get(run)
            finally:
                for task in following + watching:
                    task.cancel()
                await asyncio.gather(*following, *watching, return_exceptions=True)
        readings = {"unjam.client": readers.client.entries, "curl, events": readers.curl.entries}
        if view is not None and viewer is not None:
            readings |= view.pop("logs")
            self.trouble += viewer.bad
        held = [each for proxy in self._proxies.values() for each in proxy.held]
        assert last.ended_at is not None
        told = Told(
            log=[],
            readings=readings,
            results={"unjam.client": result, "curl, ?wait=": readers.waited.get("result")},
            straight=straight,
            took=(last.ended_at - last.created_at).total_seconds(),
            least=settings.pages * settings.pace,
            held=held,
            resumed=self._resumed(viewer is not None),
            view=view,
            left={},
            trouble=self.trouble,
        )
        return told, self._figures(run, told, viewer, held)

    # -- acts ----------------------------------------------------------------------------------------------------

    def _acts(self, run: str, viewer: Viewer | None) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
        """At which part of the pages what is done."""
        redis = self.settings.store == "redis"
        acts: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (0.12, lambda: self._cut(CLIENT, "a")),
            (0.50, lambda: self._kill_worker(run)),
            (0.68, self._restart_redis if redis else self._kill_gateway),
            (0.82, self._restart_gateway),
            (0.28, lambda: self._cut(SSE, "b" if redis else "a")),
        ]
        if viewer is not None:
            acts += [(0.20, lambda: self._cut(BROWSER, "a")), (0.37, lambda: self._reload(viewer))]
        return sorted(acts, key=lambda each: each[0])

    def _resumed(self, browser: bool) -> dict[str, list[str]]:
        """Who must have gone on where with its last id, by what was done."""
        other = "b" if self.settings.store == "redis" else "a"
        return {CLIENT: [other], SSE: ["a", other]} | ({BROWSER: ["a"]} if browser else {})

    async def _cut(self, agent: str, gateway: str) -> None:
        if not self._proxies[gateway].cut(agent):
            self.trouble.append(f"{_NAMES[agent]} had no connection to gateway {gateway} that could be cut")
        self.note(f"{_NAMES[agent]} is cut off gateway {gateway} by a reset", "cut")

    async def _reload(self, viewer: Viewer) -> None:
        self.note("the browser's page is reloaded", "reload")
        await viewer.reload()

    async def _kill_worker(self, run: str) -> None:
        name = await self.scene.worker_of(run)
        self.note(f"{name}, at work, is killed with -9", "kill worker")
        left = await self.scene.kill(name)
        self._left += len(left)

    async def _restart_redis(self) -> None:
        self.note(f"Redis is ended with SIGTERM, for {self.settings.away:g} s", "redis away")
        await self.scene.stop("redis")
        await asyncio.sleep(self.settings.away)
        await self.scene.start_redis()
        self.note("Redis is there again, on the same append-only file", "redis back")

    async def _kill_gateway(self) -> None:
        self.note(f"gateway a is killed with -9, for {self.settings.away:g} s", "gateway killed")
        self._left += len(await self.scene.kill("gateway-a"))
        await asyncio.sleep(self.settings.away)
        await self.scene.start_gateway("a")
        self.note("gateway a is there again, on the same file", "gateway back")

    async def _restart_gateway(self) -> None:
        self.note(f"gateway a is ended with SIGTERM, for {self.settings.away:g} s", "gateway away")
        await self.scene.stop("gateway-a")
        await asyncio.sleep(self.settings.away)
        await self.scene.start_gateway("a")
        self.note("gateway a is there again", "gateway back")

    async def _seen(self, viewer: Viewer) -> dict[str, Any]:
        """What the page shows in the end, and again after a reload."""
        logs = {}
        await viewer.until_completed()
        logs["browser"] = await viewer.log()
        await viewer.reload()
        await viewer.until_completed()
        logs["browser, reloaded"] = await viewer.log()
        shown = viewer.shows
        self.note(f"the page shows {shown['page']} of {shown['of']} and {shown['lines']} lines, also after a reload")
        return {"page": shown["page"], "of": shown["of"], "findings": await viewer.findings(), "logs": logs}

    # -- how far it is -------------------------------------------------------------------------------------------

    def _heard(self, entry: Entry) -> None:
        if entry.type == "progress":
            self._page = entry.data["page"]
        elif entry.type == "run.attempt":
            data = entry.data
            self.note(f"attempt {data['n']} ({data['reason']}), on from event {data['from_seq']}", "attempt")
        self._turned.set()

    def _resumes(self, held: Held) -> None:
        name = next((name for agent, name in _NAMES.items() if agent in held.agent), held.agent)
        self.note(f"{name} goes on at gateway {held.gateway} after event {held.after}")

    async def _reached(self, page: int, tasks: list[asyncio.Task[Any]]) -> None:
        """Raises what ended one of `tasks`."""
        while self._page < page and not self._readers.client.ended:
            self._turned.clear()
            try:
                async with asyncio.timeout(STUCK + self.settings.lease + self.settings.away):
                    await self._turned.wait()
            except TimeoutError:
                raise RuntimeError(f"nothing is heard of the audit any more: {self.timeline[-1]['words']}") from None
            for task in tasks:
                if task.done():
                    task.result()

    # -- afterwards ----------------------------------------------------------------------------------------------

    async def _kept(self, run: str) -> tuple[list[Entry], dict[str, int]]:
        """The log as the store itself has it, once every process is gone, and what is left over."""
        if self.settings.store == "redis":
            await self.scene.start_redis()
        store = make_store(self.scene.url)
        await store.open()
        try:
            log: list[Entry] = []
            while True:
                batch = await store.read(run, len(log) - 1, 500)
                log += [Entry(each.seq, each.type, msgspec.json.decode(each.data)) for each in batch.events]
                if not batch.events:
                    break
            depth = await store.depth()
        finally:
            await store.close()
            await self.scene.close()
        queued, running = (sum(each[place] for each in depth.values()) for place in (0, 1))
        return log, {"runs queued": queued, "runs running": running, "processes of a killed one": self._left}

    def _figures(self, run: str, told: Told, viewer: Viewer | None, held: list[Held]) -> dict[str, Any]:
        readers = self._readers
        readings = {"unjam.client": readers.client, "curl, events": readers.curl}
        agents = {"unjam.client": CLIENT, "curl, events": SSE, "curl, ?wait=": WAIT, "browser": BROWSER}
        following = [each for each in held if "/events" in each.path or "?wait=" in each.path]
        rows = {}
        for name, agent in agents.items():
            own = [each for each in following if agent in each.agent]
            if own:
                rows[name] = {
                    "connections": [
                        {"gateway": each.gateway, "after": each.after, "began": each.began, "held_s": each.seconds}
                        for each in own
                    ],
                    "longest_held_s": longest(own, agent),
                }
        faults = [each for each in self.timeline if each["kind"] and each["kind"] not in ("attempt", "reload")]
        silences = {
            name: [
                {"kind": fault["kind"], "at": fault["at"], "until_next_event_s": found[0] - fault["at"]}
                for fault in faults
                if (found := [at for at in reading.at if at > fault["at"]])
            ]
            for name, reading in readings.items()
        }
        return {
            "run": run,
            "took_s": told.took,
            "events": len(readers.client.entries),
            "pages_again": repeated(readers.client.entries),
            "findings": len(told.straight["findings"]),
            "readers": rows,
            "after_each_fault": silences,
            "looks_at_the_page": viewer.looks if viewer is not None else 0,
            "page_said": viewer.states if viewer is not None else [],
            "cpu_s": self.scene.cpu(),
            "timeline": self.timeline,
        }


async def tell(folder: Path, settings: Settings, say: Tell) -> tuple[Told, dict[str, Any]]:
    """Make the ledger, play the story."""
    await _ledger(folder / "ledger.pdf", settings.pages)
    return await Story(folder, settings, say).play()


async def _ledger(path: Path, pages: int) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "make_pdf.py"),
        str(path),
        "--pages",
        str(pages),
        stdout=asyncio.subprocess.DEVNULL,
    )
    if await child.wait():
        raise RuntimeError("the ledger could not be made")


def _straight(path: Path, pages: int) -> dict[str, Any]:
    """The same audit in one go, by the agent's own functions."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        from auditor import Audit, read_page  # type: ignore[import-not-found,unused-ignore]
    finally:
        sys.path.remove(str(EXAMPLES))
    audit, findings = Audit(), []
    for page in range(1, pages + 1):
        findings += audit.check(page, read_page(str(path), page))
    return {"pages": pages, "findings": findings}
