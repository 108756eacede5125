"""`EventSource` in a real Chromium: it reconnects by itself, with the Last-Event-ID that it has, and that is enough."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.common.procs import free_port

from ..browser.devtools import Page, chromium
from ..gateway.harness import Agent, Call, in_loop
from ..gateway.processes import served
from .common import configure, working

#: One EventSource for each run, made once and never closed by the page.
PAGE = b"""<!doctype html><meta charset="utf-8"><script>
const sources = {}, logs = {}, opened = {};
const types = ["run.created", "run.attempt", "step", "run.completed", "run.cancelled", "run.failed"];
async function post(path, body) {
  const answer = await fetch(path, {method: "POST", headers: {"Content-Type": "application/json"}, body});
  return await answer.json();
}
async function create(steps) {
  const run = await post("/v1/runs", JSON.stringify({service: "auditor", input: {steps}}));
  const log = logs[run.id] = [];
  opened[run.id] = 0;
  const source = sources[run.id] = new EventSource(run.links.events);
  source.onopen = () => { opened[run.id] += 1; };
  for (const type of types)
    source.addEventListener(type, event => log.push([event.lastEventId, type, JSON.parse(event.data)]));
  return run.id;
}
</script>"""


async def page_for(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE)


@asynccontextmanager
async def pages() -> AsyncIterator[str]:
    agent = await Agent(page_for).start()
    try:
        yield agent.url
    finally:
        await agent.stop()


async def create(page: Page, steps: int) -> str:
    return str(await page.evaluate(f"create({steps})"))


async def log(page: Page, run: str) -> list[Any]:
    return json.loads(await page.evaluate(f"JSON.stringify(logs['{run}'])"))


def whole(steps: int, end: str = "run.completed") -> list[str]:
    return ["run.created", "run.attempt", *["step"] * steps, end]


@in_loop
async def test_create_follow_to_the_end_and_stay_away(tmp_path: Path) -> None:
    listen = free_port()
    async with pages() as url:
        config = configure(tmp_path, port=listen, pages=url)
        async with (
            served("--config", config),
            working(tmp_path, listen) as worker,
            chromium(tmp_path) as page,
        ):
            await page.open(f"http://127.0.0.1:{listen}/pages/")
            run = await create(page, 10)
            # It comes back after the end of the stream, hears 204, and gives up by itself.
            await page.until(f"sources['{run}'].readyState === EventSource.CLOSED")
            found = await log(page, run)
            assert [int(event[0]) for event in found] == list(range(13))
            assert [event[1] for event in found] == whole(10)
            assert [event[2] for event in found[2:12]] == [{"n": n} for n in range(10)]
            assert await page.evaluate(f"opened['{run}']") == 1

            # Cancel, while it follows.
            run = await create(page, 100_000)
            await page.until(f"logs['{run}'].length > 4")
            await page.evaluate(f"post('/v1/runs/{run}/cancel')")
            await page.until(f"logs['{run}'].at(-1)[1] === 'run.cancelled'")
            await worker.says(f"stopped {run} True")
            found = await log(page, run)
            assert [int(event[0]) for event in found] == list(range(len(found)))
            await page.until(f"sources['{run}'].readyState === EventSource.CLOSED")


@in_loop
async def test_the_gateway_is_killed_and_it_comes_back_by_itself_where_it_was(tmp_path: Path) -> None:
    listen = free_port()
    async with pages() as url, AsyncExitStack() as stack:
        config = configure(tmp_path, port=listen, pages=url)
        async with served("--config", config) as (first, _):
            await stack.enter_async_context(working(tmp_path, listen))
            page = await stack.enter_async_context(chromium(tmp_path))
            await page.open(f"http://127.0.0.1:{listen}/pages/")
            run = await create(page, 100)
            await page.until(f"logs['{run}'].length > 10")
            first.send(signal.SIGKILL)
            await first.exit_code()
            await page.until(f"sources['{run}'].readyState === EventSource.CONNECTING")
            had = len(await log(page, run))
        assert had < 100
        async with served("--config", config):
            await page.until(f"sources['{run}'].readyState === EventSource.CLOSED")
            found = await log(page, run)
            assert [int(event[0]) for event in found] == list(range(103))
            assert [event[1] for event in found] == whole(100)
            assert await page.evaluate(f"opened['{run}']") == 2, "the same EventSource, opened once more"
