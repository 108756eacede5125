"""A TCP proxy before a gateway: it knows who holds which connection for how long, and can reset it.

Requests are told by their heads, each taken for one read: what stands in front of it sends small ones.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_HEAD: Final = re.compile(rb"(?:GET|POST) (\S+) HTTP/1\.1\r\n")
_AGENT: Final = re.compile(rb"\r\nuser-agent: *([^\r]*)", re.IGNORECASE)
_LAST: Final = re.compile(rb"\r\nlast-event-id: *(\d+)", re.IGNORECASE)
#: Closing with it resets the connection, whatever is still unsent.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass
class Held:
    """One request. `agent`: its User-Agent. `after`: the Last-Event-ID, None without. `began`, `last`: seconds of the
    story at which it was sent and at which the last byte of its answer came. `cut`: by this proxy."""

    gateway: str
    agent: str
    path: str
    after: int | None
    began: float
    last: float
    cut: bool = False

    @property
    def seconds(self) -> float:
        return self.last - self.began


class Proxy:
    """`clock`: seconds of the story. `resumed`: called with each request that has a Last-Event-ID."""

    def __init__(
        self, name: str, target: int, clock: Callable[[], float], resumed: Callable[[Held], None] = lambda held: None
    ) -> None:
        self.name = name
        self.held: list[Held] = []
        self._resumed = resumed
        self._target = target
        self._clock = clock
        self._open: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, list[Held]]] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self, agent: str) -> int:
        """Reset every connection whose last request was of this agent; how many."""
        count = 0
        for task, (writer, held) in list(self._open.items()):
            if held and agent in held[-1].agent:
                held[-1].cut = True
                _reset(writer)
                task.cancel()
                count += 1
        return count

    async def close(self) -> None:
        self._server.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        held: list[Held] = []
        self._open[task] = (writer, held)
        theirs: asyncio.StreamWriter | None = None
        try:
            answers, theirs = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, theirs, held, asked=True))
                group.create_task(self._pass(answers, writer, held, asked=False))
        except (OSError, ExceptionGroup):
            # No gateway there, or one side was reset: so is the other.
            _reset(writer)
        except asyncio.CancelledError:
            # We are cutting it, or closing. Nobody waits for this task.
            pass
        finally:
            del self._open[task]
            if held and held[-1].last == held[-1].began:
                # Nothing was answered: it was held until now.
                held[-1].last = self._clock()
            for each in (writer, theirs):
                if each is not None:
                    each.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, held: list[Held], *, asked: bool
    ) -> None:
        while data := await source.read(65536):
            if asked:
                self._note(data, held)
            elif held:
                held[-1].last = self._clock()
            target.write(data)
            await target.drain()
        if asked:
            return
        # The gateway has said all: so that nobody takes it for a cut, what is unsent goes first.
        target.close()
        await target.wait_closed()
        raise ConnectionResetError

    def _note(self, data: bytes, held: list[Held]) -> None:
        if head := _HEAD.match(data):
            agent, last, now = _AGENT.search(data), _LAST.search(data), self._clock()
            after = int(last[1]) if last else None
            name = agent[1].decode("latin-1") if agent else ""
            held.append(Held(self.name, name, head[1].decode("latin-1"), after, now, now))
            self.held.append(held[-1])
            if after is not None:
                self._resumed(held[-1])


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
