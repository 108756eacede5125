"""A connection taken over from redis-py: replies as they come, commands in few packets, and every way to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from unjam.runs.store.redis_line import Line, Lost
from unjam.runs.store.redis_wire import Wire

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[Connection]:
    """redis-py's connection to a server that greets nobody."""

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = Connection(
            host="127.0.0.1", port=port, protocol=2, driver_info=None, retry=Retry(NoBackoff(), 0), socket_timeout=None
        )
        await connection.connect()
        yield connection
        await connection.disconnect(nowait=True)


def test(serve: Serve) -> Callable[[Callable[[Connection], Awaitable[None]]], Callable[[], None]]:
    def wrap(work: Callable[[Connection], Awaitable[None]]) -> Callable[[], None]:
        def run() -> None:
            async def main() -> None:
                async with asyncio.timeout(20), connected(serve) as connection:
                    await work(connection)

            asyncio.run(main())

        run.__name__ = work.__name__
        return run

    return wrap


test.__test__ = False  # type: ignore[attr-defined]


async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"PING\r\n")
    for piece in (b"+PO", b"NG\r\n*2\r\n$3\r\nab", b"c\r\n:7\r\n-ERR no such thing\r\n", b"+last\r\n"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    await reader.read()


@test(in_pieces)
async def test_replies_come_whole_and_in_order(connection: Connection) -> None:
    replies: list[Any] = []
    done = asyncio.Event()

    def heard(reply: Any) -> None:
        replies.append(reply)
        if reply == b"last":
            done.set()

    wire = Wire(connection, heard)
    wire.send(b"PING\r\n")
    await done.wait()
    assert replies[:2] == [b"PONG", [b"abc", 7]]
    assert isinstance(replies[2], ResponseError)
    assert "no such thing" in str(replies[2])
    assert wire.lost is None
    wire.close()
    await wire.gone()
    assert wire.lost == "closed"
    wire.send(b"PING\r\n")  # nothing happens


packets: list[bytes] = []


async def count_packets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        packets.append(data)
        writer.write(b"+OK\r\n" * data.count(b"PING"))


@test(count_packets)
async def test_commands_of_one_turn_leave_together(connection: Connection) -> None:
    packets.clear()
    line = Line(connection, "test", 0)
    assert await asyncio.gather(*(line.send(("PING",)) for _ in range(50))) == [b"OK"] * 50
    assert len(packets) == 1
    await line.close()


async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.2)
    seen = 0
    while seen < 16 << 20:
        seen += len(await reader.read(65536))
    writer.write(b"+OK\r\n+OK\r\n")
    await reader.read()


@test(slow)
async def test_what_the_other_side_does_not_read_yet_waits(connection: Connection) -> None:
    line = Line(connection, "test", 0)
    first = line.send(("SET", "a", b"x" * (8 << 20)))
    await asyncio.sleep(0.05)
    second = line.send(("SET", "b", b"x" * (8 << 20)))
    assert await asyncio.gather(first, second) == [b"OK", b"OK"]
    await line.close()


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"PING\r\n")


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"PING\r\n")
    writer.transport.abort()


async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"PING\r\n")
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()


async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"PING\r\n")
    writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
    await reader.read()


@pytest.mark.parametrize("serve", [close_at_once, reset, nonsense, loading])
def test_a_line_whose_other_side_fails_is_lost_as_a_whole(serve: Serve) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), connected(serve) as connection:
            line = Line(connection, "test", 0)
            asked = [line.send(("PING",)) for _ in range(3)]
            for each in asked:
                with pytest.raises(Lost) as lost:
                    await each
                assert lost.value.sent
                assert str(lost.value)
            with pytest.raises(Lost) as lost:
                line.send(("PING",))
            assert not lost.value.sent
            await line.close()

    asyncio.run(main())


async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"+OK\r\n")
    await reader.read()


@test(talks)
async def test_a_reply_that_nobody_asked_for_ends_the_line(connection: Connection) -> None:
    line = Line(connection, "test", 0)
    while line.lost is None:
        await asyncio.sleep(0.005)
    assert "asked" in line.lost
    await line.close()
