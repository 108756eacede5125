"""The client and gateways that lose events, fall silent, are slow, or don't say what became of a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from unjam.client import AsyncClient, NotAccepted, Unavailable, aio
from unjam.client.sse import Reader
from unjam.gateway.runs_follow import gap
from unjam.runs.store.memory import MemoryStore

from ..worker.api import api
from ..worker.made import in_loop

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@asynccontextmanager
async def serving(serve: Serve, patience: float = 30.0) -> AsyncIterator[AsyncClient]:
    """A client of a gateway that answers each request by `serve`, once its head has come, and hangs up."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(url, patience=patience) as client:
        yield client


def event(seq: int, kind: str = "a", data: str = "1") -> bytes:
    return f"id: {seq}\nevent: {kind}\ndata: {data}\n\n".encode()


END = "run.completed"


@pytest.mark.parametrize(
    ("after", "said", "heard"),
    [
        (3, gap(10) + event(10) + event(11, END), [(-1, "gap"), (10, "a"), (11, END)]),
        (3, gap(5) + event(5, END), [(4, "gap"), (5, END)]),
        (9, gap(5) + event(5) + event(6, END), [(-1, "gap"), (5, "a"), (6, END)]),
        (3, gap(0) + event(0, END), [(-1, "gap"), (0, END)]),
        (-1, event(0) + b'event: gap\ndata: {"next":5}\n\n' + event(5, END), [(0, "a"), (-1, "gap"), (5, END)]),
        # An agent's own.
        (-1, event(0, "gap", '{"next":9}') + event(1, "gap", "7") + event(2, END), [(0, "gap"), (1, "gap"), (2, END)]),
    ],
)
@in_loop
async def test_a_log_that_lost_events_says_so_and_goes_on(
    after: int, said: bytes, heard: list[tuple[int, str]]
) -> None:
    """Also where it has lost its tail, and what was seen is written anew; a single event that is lost has a number."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert f"last-event-id: {after}\r\n".encode() in await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS + b"content-length: %d\r\n\r\n%b" % (len(said), said))

    async with serving(serve) as client:
        assert [(found.seq, found.type) async for found in client.follow("r", after=after)] == heard


@in_loop
async def test_a_quiet_run_is_followed_over_any_number_of_gateways_that_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens for far longer than its patience, and the streams end meanwhile: none of that is a failure."""
    monkeypatch.setattr(aio, "STEADY", 0.1)
    streams = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal streams
        await reader.readuntil(b"\r\n\r\n")
        streams += 1
        writer.write(EVENTS + b"transfer-encoding: chunked\r\n\r\n")
        silent = streams % 2  # ended well, or with a sign of life now and then and cut
        for _ in range(20):
            writer.write(b"" if silent else b"3\r\n:\n\n\r\n")
            await asyncio.sleep(0.02)
        last = event(0, END)
        writer.write(b"%x\r\n%b\r\n" % (len(last), last) if streams == 6 else b"")
        writer.write(b"0\r\n\r\n" if silent or streams == 6 else b"")

    async with serving(serve, patience=1.5) as client:
        assert [found.seq async for found in client.follow("r")] == [0]


@in_loop
async def test_a_gateway_that_opens_streams_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "STEADY", 0.1)
    monkeypatch.setattr(aio, "SILENT", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS + b"transfer-encoding: chunked\r\n\r\n")
        await reader.read()

    async with serving(serve, patience=0.5) as client:
        with pytest.raises(Unavailable, match="said nothing for"):
            async for _ in client.follow("r"):
                pass


@in_loop
async def test_a_large_result_may_take_as_long_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncClient._call, "__kwdefaults__", {"timeout": 0.8, "again": True})
    large = "x" * (400 << 10)
    body = (
        '{"id":"r","service":"s","status":"completed","lane":"fast","attempt":1,'
        f'"created_at":"2026-01-01T00:00:00Z","result":"{large}"}}'
    ).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 65536):
            await asyncio.sleep(0.2)
            writer.write(body[start : start + 65536])

    async with serving(serve, patience=3) as client:
        assert (await client.get("r")).result == large


@pytest.mark.parametrize(("status", "code"), [(500, "internal"), (502, "x"), (504, "x"), (503, "store_away")])
@in_loop
async def test_an_input_that_may_have_come_is_not_sent_again(status: int, code: str) -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        run = await client.submit("auditor")
        server.refuse["input"] = (status, code)
        with pytest.raises(Unavailable) as caught:
            await client.send(run, 1)
        assert caught.value.uncertain
        assert len(server.calls("/input")) == 1


@in_loop
async def test_a_run_that_takes_no_more_inputs_is_not_asked_again() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        run = await client.submit("auditor")
        server.refuse["input"] = (429, "inputs_full")
        with pytest.raises(NotAccepted, match="inputs_full"):
            await client.send(run, 1)


@pytest.mark.parametrize("key", ["", "order 7", "bestellung-ü", "a\r\nx-unjam-lane: heavy", "k" * 256])
@in_loop
async def test_what_cannot_be_a_key_is_not_sent(key: str) -> None:
    """Nothing is sent under another key in its stead, and nobody writes other lines into a request with it."""
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        with pytest.raises(ValueError, match="visible ASCII"):
            await client.submit("auditor", key=key)
        assert not server.asked


@in_loop
async def test_a_gateway_that_does_not_hold_the_question_is_not_flooded() -> None:
    """One that is stopping, behind a balancer that doesn't know it yet."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        body = (
            b'{"id":"r","service":"s","status":"running","lane":"fast","attempt":1,"created_at":"2026-01-01T00:00:00Z"}'
        )
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))

    async with serving(serve) as client:
        with pytest.raises(TimeoutError):
            await client.result("r", timeout=0.7)
    assert asked < 8


def test_a_large_event_is_looked_at_once() -> None:
    """However many pieces it comes in: nobody else of the program has its turn meanwhile."""
    reader, piece = Reader(), b"x" * 4096
    began = time.process_time()
    found = [*reader.feed(b"id: 7\nevent: a\ndata: \r"), *reader.feed(b"\ndata: ")]
    for _ in range(4096):
        found += reader.feed(piece)
    found += reader.feed(b"\r\n\r\n")
    assert [(each.id, each.event, len(each.data)) for each in found] == [("7", "a", 1 + (16 << 20))]
    assert time.process_time() - began < 5, "searched again with each piece it takes minutes"
