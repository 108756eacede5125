"""What is Redis' own: servers that die, connections that are cut, refusals in words, hints after a reconnect."""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unjam.runs.store import make
from unjam.runs.store.base import StoreAway, StoreError, UnknownRun
from unjam.runs.store.redis import RedisStore
from unjam.runs.store.redis_url import parse

from .redis_faults import Proxy, all_whole, in_loop, live, log, new_run, progress
from .redis_servers import Cluster, Server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that leave a server as it was."""
    server = Server(tmp_path_factory.mktemp("redis"), "appendonly yes").start()
    yield server
    server.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "appendonly yes").start()
    yield server
    server.kill()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "", request.node.name)[:40] + ":"


class Opened:
    def __init__(self, url: str, **more: Any) -> None:
        self.warnings: list[str] = []
        self.store = RedisStore(url, on_warning=self.warnings.append, **more)

    async def __aenter__(self) -> RedisStore:
        await self.store.open()
        return self.store

    async def __aexit__(self, *why: object) -> None:
        await self.store.close()


@in_loop
async def test_53_killed_and_started_again_under_load_it_has_all_that_was_acknowledged(server: Server) -> None:
    async with Opened(server.url(patience=20)) as store:
        ended: list[str] = []
        half = asyncio.Event()

        async def actor(name: int) -> None:
            for _ in range(25):
                await live(store, f"w{name}", ended)
                if len(ended) > 80:
                    half.set()

        async def fault() -> None:
            await half.wait()
            server.kill()
            await asyncio.to_thread(server.start)

        await asyncio.gather(fault(), *(actor(name) for name in range(8)))
        assert len(ended) == 200
        await all_whole(store, ended)


@in_loop
async def test_no_effect_is_doubled_when_replies_are_lost(shared: Server, prefix: str) -> None:
    async with Proxy(shared.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}?prefix={prefix}&patience=20"
        async with Opened(url) as store:
            ended: list[str] = []
            proxy.cut_every = 17

            async def actor(name: int) -> None:
                for _ in range(25):
                    await live(store, f"w{name}", ended)

            await asyncio.gather(*(actor(name) for name in range(6)))
            numbers = []
            run, _ = await store.create(new_run(service="listener"))
            proxy.cut_every = 7
            for n in range(60):
                numbers.append(await store.send(run.id, b"%d" % n))
            assert numbers == list(range(1, 61))
            assert await store.inputs(run.id, 0) == [(n + 1, b"%d" % n) for n in range(60)]
            assert await store.claim(["listener"], "w", pull=True)
            assert (await store.cancel(run.id)).changed
            assert not (await store.cancel(run.id)).changed
            assert (await store.release(run.id, 1)).changed
            proxy.cut_every = 0
            assert proxy.cuts > 20
            ended.append(run.id)
            await all_whole_but_last(store, ended)


async def all_whole_but_last(store: RedisStore, ended: list[str]) -> None:
    last = ended.pop()
    assert [event.type for event in await log(store, last)] == ["run.created", "run.attempt", "run.cancelled"]
    others = {run.id for run in await store.list(None, limit=10_000)} - {last}
    assert others == set(ended)
    for run in ended:
        assert [event.seq for event in await log(store, run)] == list(range(6))
    assert await store.depth() == {}


@in_loop
async def test_what_grew_while_the_subscription_was_cut_is_told_after(shared: Server, prefix: str) -> None:
    async with Opened(shared.url(prefix=prefix)) as other, Proxy(shared.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}?prefix={prefix}"
        async with Opened(url) as store:
            told: dict[str, int] = {}
            ready: list[str] = []
            news = asyncio.Event()

            def grown(run: str, seq: int) -> None:
                told[run] = seq
                news.set()

            store.on_growth, store.on_ready = grown, lambda service: (ready.append(service), news.set())[0]

            async def until(what: Any) -> None:
                async with asyncio.timeout(20):
                    while not what():
                        news.clear()
                        await news.wait()

            assert await store.claim(["auditor"], "w", pull=True) is None
            run, _ = await other.create(new_run())
            store.watch(run.id)
            await until(lambda: told.get(run.id) == 1)
            claim = await other.claim(["auditor"], "w", pull=True)
            assert claim is not None
            await until(lambda: told.get(run.id) == 2)
            proxy.cut_every = 1  # from now on each hint is lost with its connection
            told.clear()
            ready.clear()
            await other.append(run.id, 1, 1, [progress(1)])
            await other.create(new_run())
            async with asyncio.timeout(20):
                while not proxy.cuts:
                    await asyncio.sleep(0.005)
            await other.append(run.id, 1, 2, [progress(2)])
            proxy.cut_every = 0
            await until(lambda: told.get(run.id) == 4 and "auditor" in ready)


@in_loop
async def test_functions_that_were_flushed_are_loaded_again(shared: Server, prefix: str) -> None:
    async with Opened(shared.url(prefix=prefix)) as store:
        run, _ = await store.create(new_run())
        shared.ask("FUNCTION", "FLUSH")
        claim, got, found = await asyncio.gather(
            store.claim(["auditor"], "w", pull=True), store.get(run.id), store.read(run.id)
        )
        assert claim is not None
        assert (claim.run.id, got.id, found.events[0].type) == (run.id, run.id, "run.created")


@in_loop
async def test_53_out_of_memory_nothing_begins_but_what_runs_may_end(server: Server) -> None:
    async with Opened(server.url()) as store:
        await store.create(new_run())
        claim = await store.claim(["auditor"], "w", pull=True)
        assert claim is not None
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreAway, match="out of memory"):
            await store.create(new_run())
        with pytest.raises(StoreAway, match="out of memory"):
            await store.append(claim.run.id, 1, 1, [progress(1)])
        assert (await store.finish(claim.run.id, 1, "failed")).changed
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert (await store.create(new_run()))[1]
        assert [event.type for event in await log(store, claim.run.id)][2:] == ["run.failed"]


@in_loop
async def test_53_a_replica_is_named_as_what_it_is(server: Server, shared: Server) -> None:
    async with Opened(server.url()) as store:
        run, _ = await store.create(new_run())
        server.ask("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreAway, match="read-only replica"):
            await store.cancel(run.id)
        with pytest.raises(StoreAway, match="read-only replica"):
            async with Opened(server.url()):
                pass
        server.ask("REPLICAOF", "NO", "ONE")
        assert (await store.cancel(run.id)).changed


@in_loop
async def test_53_wrong_names_and_what_they_may_not(server: Server, prefix: str) -> None:
    server.ask("ACL", "SETUSER", "alice", "on", ">secret", "~unjam:*", "&unjam:*", "+@all", "-@dangerous", "+info")
    server.ask("ACL", "SETUSER", "bob", "on", ">secret", "~unjam:*", "&unjam:*", "+@all", "-xadd")
    at = f"127.0.0.1:{server.port}"
    async with Opened(f"redis://alice:secret@{at}") as store:
        run, made = await store.create(new_run())
        assert made
        with pytest.raises(StoreAway, match="refuses our name or password") as refused:
            async with Opened(f"redis://alice:wrong@{at}"):
                pass
        assert "wrong" not in str(refused.value)
        with pytest.raises(StoreAway, match="does not allow us"):
            async with Opened(f"redis://bob:secret@{at}"):
                pass
        with pytest.raises(StoreAway, match="does not allow us"):
            async with Opened(f"redis://alice:secret@{at}?prefix=else:"):
                pass
        server.ask("CONFIG", "SET", "requirepass", "needed")
        server.admin["password"] = "needed"
        with pytest.raises(StoreAway, match="wants a password"):
            async with Opened(f"redis://{at}"):
                pass
        assert (await store.get(run.id)).id == run.id


@in_loop
async def test_who_may_not_subscribe_is_told(server: Server) -> None:
    server.ask("ACL", "SETUSER", "carol", "on", ">secret", "~unjam:*", "&unjam:*", "+@all", "-subscribe")
    opened = Opened(f"redis://carol:secret@127.0.0.1:{server.port}?patience=0.3")
    async with opened as store:
        assert (await store.create(new_run()))[1]
        assert any("subscribe" in warning for warning in opened.warnings)


@in_loop
async def test_nobody_there(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with pytest.raises(StoreAway, match="can't be reached"):
        async with Opened(server.url(patience=0.2)):
            pass
    server.start()
    try:
        async with Opened(server.url(patience=0.2)) as store:
            server.kill()
            for _ in range(2):
                with pytest.raises(StoreAway, match="can't be reached"):
                    await store.depth()
            server.start()
            assert await asyncio.wait_for(_again(store), 20) == {}
    finally:
        server.kill()


async def _again(store: RedisStore) -> dict[str, tuple[int, int]]:
    while True:
        try:
            return await store.depth()
        except StoreAway:
            await asyncio.sleep(0.05)


@in_loop
async def test_an_operator_is_warned(server: Server) -> None:
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.ask("CONFIG", "SET", "appendonly", "no")
    opened = Opened(server.url())
    async with opened:
        assert len(opened.warnings) == 2
        assert any("allkeys-lru" in warning for warning in opened.warnings)
        assert any("append-only" in warning for warning in opened.warnings)


def test_59_beyond_this_machine_without_tls_is_warned_of() -> None:
    assert parse("redis://redis.example:6379").in_the_open() == ["redis.example"]
    assert parse("rediss://redis.example").in_the_open() == []
    assert parse("redis+sentinel://127.0.0.1,10.0.0.1/main").in_the_open() == ["10.0.0.1"]
    assert parse("unix:///run/redis.sock").in_the_open() == []


@in_loop
async def test_prefixes_keep_stores_apart(shared: Server) -> None:
    async with Opened(shared.url(prefix="one:")) as one, Opened(shared.url(prefix="two:")) as two:
        run, _ = await one.create(new_run(key="k"))
        assert await two.claim(["auditor"], "w", pull=True) is None
        with pytest.raises(UnknownRun):
            await two.get(run.id)
        other, made = await two.create(new_run(key="k"))
        assert made
        assert [found.id for found in await two.list(None)] == [other.id]
        with shared.client() as client:
            assert {key.split(b":")[0] for key in client.keys("*")} >= {b"one", b"two"}


@in_loop
async def test_54_a_cancelled_call_leaves_its_reply_to_nobody(server: Server) -> None:
    async with Opened(server.url()) as store:
        runs = [(await store.create(new_run(service=f"s{n}")))[0] for n in range(20)]
        server.pause()
        calls = [asyncio.create_task(store.get(run.id)) for run in runs]
        await asyncio.sleep(0.01)
        for call in calls[::2]:
            call.cancel()
        threading.Timer(0.05, server.resume).start()
        for run, call in list(zip(runs, calls, strict=True))[1::2]:
            assert (await call).id == run.id


@in_loop
async def test_a_claim_that_nobody_waits_for_any_more_is_given_back(server: Server) -> None:
    async with Opened(server.url()) as store:
        run, _ = await store.create(new_run())
        server.pause()
        call = asyncio.create_task(store.claim(["auditor"], "w", pull=True))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.resume()
        async with asyncio.timeout(20):
            while (claim := await store.claim(["auditor"], "w2", pull=True)) is None:
                await asyncio.sleep(0.01)
        assert (claim.run.id, claim.run.attempt) == (run.id, 1)


@in_loop
async def test_too_few_replicas_confirm(server: Server) -> None:
    with pytest.raises(StoreAway, match="0 replicas"):
        async with Opened(server.url(replicas=1)):
            pass


@in_loop
async def test_what_is_no_store_of_ours(server: Server) -> None:
    server.ask("SET", "unjam:{all}:schema", "99")
    with pytest.raises(StoreError, match="schema 99"):
        async with Opened(server.url()):
            pass


@in_loop
async def test_a_cluster_whose_partitions_move(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        await asyncio.to_thread(cluster.start)
        with pytest.raises(StoreError, match=re.escape("use redis+cluster://")):
            async with Opened(cluster.servers[0].url()):
                pass
        async with Opened(cluster.url(patience=10)) as store:
            ended: list[str] = []
            await asyncio.gather(*(live(store, f"w{n}", ended) for n in range(20)))
            await all_whole(store, ended)
            # One slot goes over, with its keys.
            part = int(ended[0][4:6], 16)
            slot = cluster.servers[0].ask("CLUSTER", "KEYSLOT", f"{{p{part:02x}}}")
            await asyncio.to_thread(cluster.move, slot)
            assert (await store.get(ended[0])).status == "completed"
            await asyncio.gather(*(live(store, f"w{n}", ended) for n in range(40)))
            await all_whole(store, ended)
    finally:
        cluster.kill()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1", "must begin with"),
        ("redis://", "must begin with"),
        ("redis://host:port", "a host that is none"),
        ("redis://host?prefix={x}", "prefix must be"),
        ("redis://host?timeout=1", "unknown option: timeout"),
        ("redis://host/one", "no number of a database"),
        ("redis+cluster://host/1", "database 0 only"),
        ("redis+sentinel://host", "must name the sentinels' service"),
        ("redis://host?ssl_ca_certs=/ca", "needs rediss://"),
        ("redis://host?patience=0", "patience must be from 0.1 to 60"),
    ],
)
def test_urls_that_are_none(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RedisStore(url)


@in_loop
async def test_a_socket_of_this_machine() -> None:
    with tempfile.TemporaryDirectory(prefix="r") as place:  # a socket's path must be short
        path = Path(place) / "redis.sock"
        server = Server(Path(place), "appendonly yes", f"unixsocket {path}").start()
        told: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        store = make(f"unix://{path}?prefix=socket:&db=3")
        store.on_growth = lambda run, following: told.put_nowait((run, following))
        try:
            await store.open()
            run, _ = await store.create(new_run())
            store.watch(run.id)
            claim = await store.claim([run.service], "w", pull=True)
            assert claim is not None
            assert claim.run.id == run.id
            while await asyncio.wait_for(told.get(), 20) != (run.id, 2):
                pass
            await store.finish(run.id, claim.run.fence, "completed", result=b"1")
            assert await store.result(run.id) == b"1"
            server.kill()
            server.start()
            assert (await store.get(run.id)).status == "completed"
        finally:
            await store.close()
            server.kill()


@in_loop
async def test_a_list_reads_whole_only_what_it_shows(shared: Server, prefix: str) -> None:
    async with Opened(shared.url(prefix=prefix)) as store:
        await asyncio.gather(*(store.create(new_run(service="other")) for _ in range(1200)))
        run, _ = await store.create(new_run())
        await asyncio.gather(*(store.create(new_run(service="other")) for _ in range(1200)))
        shared.ask("CONFIG", "RESETSTAT")
        assert [found.id for found in await store.list(None, service="auditor")] == [run.id]
        assert await store.list(None, service="auditor", status="running") == []
        with shared.client() as client:
            counts = client.info("commandstats")
        assert counts["cmdstat_hgetall"]["calls"] == 1


@in_loop
async def test_of_many_dead_runs_only_those_shown_are_read(shared: Server, prefix: str) -> None:
    async with Opened(shared.url(prefix=prefix)) as store:
        made = [(await store.create(new_run(service=name)))[0].id for name in ["auditor"] + ["other"] * 450]
        with shared.client() as client:
            client.zadd(f"{prefix}{{all}}:dead", {run: place for place, run in enumerate(made)})
        shared.ask("CONFIG", "RESETSTAT")
        assert [run.id for run in await store.dead(limit=3)] == made[:-4:-1]
        assert [run.id for run in await store.dead("auditor")] == made[:1]
        with shared.client() as client:
            assert client.info("commandstats")["cmdstat_hgetall"]["calls"] == 4
