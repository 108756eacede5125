"""What goes wrong on the way to a Redis, on order; and a run's whole life, checked at its end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from unjam.runs.model import Event, NewEvent, NewRun
from unjam.runs.store.redis import RedisStore


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*args, **named)

        asyncio.run(bounded())

    return run


class Proxy:
    """Between store and Redis. `cut_every`: cuts a connection instead of passing on each so-manyth piece of replies,
    half of it gone; 0: never. `rate`: bytes a second that pass, in each direction of a connection; 0: as they come."""

    def __init__(self, port: int, rate: int = 0) -> None:
        self.target = port
        self.rate = rate
        self.port = 0
        self.cut_every = 0
        self.cuts = 0
        self._pieces = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *why: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, forth}
        try:
            await asyncio.gather(self._pass(reader, forth, False), self._pass(back, writer, True))
        except (OSError, EOFError):
            pass
        finally:
            for each in (writer, forth):
                each.close()
                self._writers.discard(each)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        while piece := await reader.read(1 << 16):
            if replies and self.cut_every:
                self._pieces += 1
                if self._pieces % self.cut_every == 0:
                    self.cuts += 1
                    writer.write(piece[: len(piece) // 2])
                    raise EOFError
            writer.write(piece)
            if self.rate:
                await writer.drain()
                await asyncio.sleep(len(piece) / self.rate)
        raise EOFError


def new_run(**more: Any) -> NewRun:
    given = {"service": "auditor", "input": b"{}", "digest": b"d", "pull": True, **more}
    return NewRun(**given)


def progress(page: int) -> NewEvent:
    return NewEvent("progress", b'{"page":%d}' % page)


async def live(store: RedisStore, worker: str, ended: list[str]) -> None:
    """Create a run, then do one of those that wait: three events, and the end."""
    await store.create(new_run())
    claim = await store.claim(["auditor"], worker, pull=True)
    assert claim is not None, "everyone creates before he claims"
    run, fence = claim.run.id, claim.run.fence
    for page in (1, 2, 3):
        await store.append(run, fence, page, [progress(page)])
    settled = await store.finish(run, fence, "completed")
    assert settled.changed
    ended.append(run)


async def log(store: RedisStore, run: str) -> list[Event]:
    return (await store.read(run, limit=10_000)).events


WHOLE = ["run.created", "run.attempt", "progress", "progress", "progress", "run.completed"]


async def all_whole(store: RedisStore, ended: list[str]) -> None:
    """Each run that was acknowledged is there, once, and its log is whole; and there is nothing else."""
    assert len(set(ended)) == len(ended)
    for run in ended:
        events = await log(store, run)
        assert [event.type for event in events] == WHOLE
        assert [event.seq for event in events] == list(range(6))
        assert [event.data for event in events[2:5]] == [b'{"page":%d}' % page for page in (1, 2, 3)]
    assert {run.id for run in await store.list(None, limit=10_000)} == set(ended)
    assert await store.depth() == {}
