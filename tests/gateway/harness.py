"""Real gateways, endpoints and clients inside one event loop, for tests.

`gateway(...)` runs a `Server` on a port the system picks; `Agent` is an endpoint whose behaviour is a coroutine and
that records what it was sent;
`Wire` is a client that writes raw bytes. Nothing here waits for a length of time: everything
waits for bytes or events.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import uvloop
from benchmarks.common.procs import free_port

from unjam.config import from_urls, parse
from unjam.gateway.server import Server
from unjam.runs.store.base import Store

PATIENCE = 20.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in a uvloop of its own, as the gateway runs, within `PATIENCE`. Agents that it leaves are
    stopped: uvloop waits for ever for a server that a failed test has left open."""

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(PATIENCE * 5):
                    await test(*args, **kwargs)
            finally:
                for agent in list(_serving):
                    await agent.stop()

        uvloop.run(bounded())

    return wrapper


_serving: set[Agent] = set()


@dataclass
class Seen:
    """One request as an endpoint saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.lower()]
        return ", ".join(values) if values else None


@dataclass
class Call:
    """One request at an endpoint, and the means to answer it."""

    seen: Seen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    #: Set when the peer hung up while the behaviour ran.
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"ok", status: int = 200, headers: str = "") -> None:
        await self.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nContent-Type: text/plain\r\n{headers}\r\n".encode()
            + body
        )

    async def start_events(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, payload: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(payload), payload))

    async def last_chunk(self) -> None:
        await self.write(b"0\r\n\r\n")

    def abort(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[[Call], Awaitable[None]]


async def answers_ok(call: Call) -> None:
    await call.answer()


class Agent:
    """An endpoint. Requests are read whole (by h11: a parser that is not ours), recorded, then given to `behaviour`."""

    def __init__(self, behaviour: Behaviour = answers_ok) -> None:
        self.behaviour = behaviour
        self.requests: list[Seen] = []
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.lost: asyncio.Queue[Seen] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, ssl: Any = None, path: str | None = None, port: int = 0) -> Agent:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=ssl)
            self.port = self._server.sockets[0].getsockname()[1]
        _serving.add(self)
        return self

    async def stop(self) -> None:
        _serving.discard(self)
        assert self._server is not None
        self._server.close()
        for writer in list(self.open):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(5 if self.port else 0):
            try:
                free_port(port=self.port)  # whoever asks for any is not given one that a test takes for dead
                break
            except OSError:
                await asyncio.sleep(0)  # it is closed at the end of a turn

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open.add(writer)
        parser = h11.Connection(h11.SERVER)
        try:
            while True:
                seen = await self._read(parser, reader)
                if seen is None:
                    return
                self.requests.append(seen)
                call = Call(seen, reader, writer)
                self.calls.put_nowait(call)
                await self.behaviour(call)
                if writer.is_closing():
                    return
                parser = h11.Connection(h11.SERVER)
        except (ConnectionError, asyncio.CancelledError, h11.RemoteProtocolError):
            pass
        finally:
            self.open.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _read(self, parser: h11.Connection, reader: asyncio.StreamReader) -> Seen | None:
        seen: Seen | None = None
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                if not data and seen is not None:
                    self.lost.put_nowait(seen)
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                seen = Seen(
                    event.method.decode(),
                    event.target.decode(),
                    [(name.decode(), value.decode("latin-1")) for name, value in event.headers],
                )
            elif isinstance(event, h11.Data):
                assert seen is not None
                seen.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:
                return seen
            else:
                return None


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


async def until_gone(call: Call) -> None:
    """A behaviour that never answers; it ends when the peer hangs up."""
    while await call.reader.read(65536):
        pass
    call.gone.set()


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    #: Whether the body ended as its framing said it would.
    whole: bool

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.lower()]
        return ", ".join(values) if values else None


class Wire:
    """A client's end of one connection: raw bytes out, answers (read by h11) in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._extra = b""

    @classmethod
    async def connect(cls, port: int, ssl: Any = None) -> Wire:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=ssl, server_hostname="localhost" if ssl else None
        )
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "GET", interim: list[int] | None = None) -> Answer:
        """Read one answer. `interim` collects the 1xx before it."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._extra:
            parser.receive_data(self._extra)
            self._extra = b""
        answer: Answer | None = None
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                assert answer is not None, "the gateway hung up without an answer"
                return answer
            if event is h11.NEED_DATA:
                try:
                    data = await asyncio.wait_for(self.reader.read(65536), PATIENCE)
                except ConnectionResetError:
                    assert answer is not None, "the connection was reset before an answer"
                    return answer
                parser.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                if interim is not None:
                    interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer = Answer(
                    event.status_code,
                    [(name.decode(), value.decode("latin-1")) for name, value in event.headers],
                    b"",
                    False,
                )
            elif isinstance(event, h11.Data):
                assert answer is not None
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert answer is not None
                answer.whole = True
                self._extra = parser.trailing_data[0]
                return answer
            else:
                raise AssertionError(f"unexpected {event!r}")

    async def get(self, path: str = "/", headers: str = "") -> Answer:
        await self.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())
        return await self.answer()

    async def post(self, path: str = "/", body: bytes = b"{}", headers: str = "") -> Answer:
        await self.send(
            f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body
        )
        return await self.answer("POST")

    async def closed(self) -> bytes:
        """Read until the gateway hangs up; what came first."""
        data = self._extra
        try:
            while more := await asyncio.wait_for(self.reader.read(65536), PATIENCE):
                data += more
        except ConnectionResetError:
            pass
        return data

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class Running:
    """A gateway under test."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.gateway = server.gateway
        self.wires: list[Wire] = []

    @property
    def port(self) -> int:
        return next(iter(self.server.listeners.values())).port

    @property
    def leases(self) -> int:
        return self.gateway.balancer.leases

    async def connect(self, ssl: Any = None) -> Wire:
        wire = await Wire.connect(self.port, ssl)
        self.wires.append(wire)
        return wire

    async def settled(self) -> None:
        """Until nothing is in flight."""
        async with asyncio.timeout(PATIENCE):
            while self.leases or any(client.exchange for client in self.gateway.clients):
                await asyncio.sleep(0)

    def endpoint(self, url: str) -> Any:
        for service in self.gateway.balancer.services.values():
            for version in service.versions:
                for pool in version.pools:
                    for endpoint in pool.endpoints:
                        if endpoint.url == url:
                            return endpoint
        raise KeyError(url)


@asynccontextmanager
async def gateway(
    *agents: Agent,
    config: str | None = None,
    reload: Callable[[], Any] | None = None,
    store: Store | None = None,
    **overrides: Any,
) -> AsyncIterator[Running]:
    """A gateway in front of `agents`; or of a whole configuration in YAML. Everything is stopped at the end. `store`:
    of its runs, in place of the one that the configuration names."""
    for agent in agents:
        if not agent.port:
            await agent.start()
    try:
        if config is None:
            overrides = {"listen": "127.0.0.1:0", "admin": "off", "access_log": "off", **overrides}
            parsed = from_urls([agent.url for agent in agents], **overrides)
        else:
            defaults = {"listen": "127.0.0.1:0", "admin": "off", "access_log": "off"}
            given = {line.partition(":")[0] for line in config.splitlines()}
            parsed = parse("".join(f"{k}: {v}\n" for k, v in defaults.items() if k not in given) + config, {})
        server = Server(parsed, reload, seed=1, store=store)
        await server.start()
    except BaseException:
        for agent in agents:
            await agent.stop()
        raise
    running = Running(server)
    try:
        yield running
    finally:
        for wire in running.wires:
            wire.reset()
        await server.stop()
        for agent in agents:
            await agent.stop()
