"""Real Redis that dies, hangs and comes back, and one whose answers are lost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from benchmarks.common.procs import free_port

from tests.runs.redis_servers import Server
from tests.runs.test_redis_failover import Watched
from unjam.kept.base import KeptAway, KeptError
from unjam.kept.redis import RedisKept

from .conftest import change


async def test_what_was_kept_outlives_a_killed_server(tmp_path: Path) -> None:
    server = Server(tmp_path, "appendonly yes", "appendfsync always").start()
    kept = RedisKept(server.url(patience=5))
    try:
        await kept.open()
        for n in range(20):
            await kept.put(change("weight/a/v7", n), change("weight/a/v8", -n))
        server.kill()
        server.start()
        assert sorted(each.after for each in (await kept.current()).values()) == [-19, 19]
        assert await kept.put(change("weight/a/v7", 20)) == 41
    finally:
        await kept.close()
        server.kill()


async def test_away_is_said_within_the_patience_and_it_works_again(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    kept = RedisKept(server.url(patience=1))
    try:
        await kept.open()
        server.pause()
        start = time.monotonic()
        with pytest.raises(KeptAway, match="doesn't answer"):
            await kept.put(change("weight/a/v7", 1))
        assert time.monotonic() - start < 5
        server.resume()
        server.kill()
        with pytest.raises(KeptAway, match=r"Redis at 127\.0\.0\.1"):
            await kept.current()
        server.start()
        assert await kept.put(change("weight/a/v7", 2)) == 1
    finally:
        await kept.close()
        server.kill()


async def test_what_is_not_ours_is_refused_in_words(tmp_path: Path) -> None:
    server = Server(tmp_path, "requirepass sesame").start(wait=False)
    kept = RedisKept(server.url(patience=20))
    try:
        with pytest.raises(KeptAway, match="doesn't let us"):
            await kept.open()
    finally:
        await kept.close()
        server.kill()
    with pytest.raises(ValueError, match="no host"):
        RedisKept("redis:///0")


async def test_other_types_under_our_keys(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    server.ask("SET", "x:{kept}:latest", "theirs")
    kept = RedisKept(server.url(prefix="x:"))
    try:
        await kept.open()
        with pytest.raises(KeptError, match="something else"):
            await kept.current()
    finally:
        await kept.close()
        server.kill()


async def test_a_change_whose_answer_was_lost_is_not_made_twice(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    port = free_port()
    swallowed = 0

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal swallowed
        up_reader, up = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while data := await reader.read(65536):
                up.write(data)
                reply = await up_reader.read(65536)
                if b"EVAL" in data and not swallowed:
                    swallowed += 1
                    return
                writer.write(reply)
        except ConnectionError:
            pass
        finally:
            up.close()
            writer.close()

    proxy = await asyncio.start_server(through, "127.0.0.1", port)
    kept = RedisKept(f"redis://127.0.0.1:{port}")
    try:
        await kept.open()
        assert await kept.put(change("weight/a/v7", 1)) == 1
        assert swallowed == 1
        assert [each.after for each in await kept.since(0)] == [1]
        assert await kept.put(change("weight/a/v7", 1)) == 2
    finally:
        await kept.close()
        proxy.close()
        server.kill()
        if passing := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(passing)


async def test_behind_sentinels_it_follows_a_failover(tmp_path: Path) -> None:
    servers = Watched(tmp_path).start()
    kept = RedisKept(servers.url)
    try:
        await kept.open()
        assert await kept.put(change("weight/a/v7", 1)) == 1
        servers.replicated()
        servers.master.kill()
        assert await kept.put(change("weight/a/v7", 2)) == 2
        assert [each.after for each in await kept.since(0)] == [1, 2]
    finally:
        await kept.close()
        servers.kill()
