"""Hostile input 53 to 59 through whole gateways, against real servers: what needs the store says so, the proxy goes on,
and nothing that was acknowledged is lost or given twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ..gateway.durable import Api, Source
from ..gateway.harness import Agent, Running, Wire, gateway, in_loop, until
from ..gateway.processes import served
from ..runs.redis_faults import Proxy
from ..runs.redis_servers import Server
from ..runs.test_redis_failover import Watched

#: Seconds: the least a gateway takes.
LEASE = 3


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis", "appendonly yes").start()
    yield server
    server.kill()


def config(state: str, agent: str = "http://127.0.0.1:9", lease: str = "30s") -> str:
    return (
        f"state: '{state}'\nruns: {{lease: {lease}}}\nservices:\n"
        "  auditor:\n    match: {path: /agents/auditor}\n    runs: {execute: pull}\n"
        "    versions: {v1: {endpoints: ['http://127.0.0.1:9']}}\n"
        f"  proxied:\n    match: {{path: /proxied}}\n    versions: {{v1: {{endpoints: ['{agent}']}}}}\n"
    )


@asynccontextmanager
async def gateways(count: int, state: str, **more: Any) -> AsyncIterator[tuple[Agent, list[Running]]]:
    """So many on the same store, and an endpoint behind each."""
    agent = await Agent().start()
    running: list[Running] = []
    try:
        async with AsyncExitStack() as stack:
            for _ in range(count):
                running.append(await stack.enter_async_context(gateway(config=config(state, agent.url, **more))))
            yield agent, running
    finally:
        await agent.stop()


# -- 53: the store refuses, in every way it can ------------------------------------------------------------------------


def killed(server: Server) -> Callable[[], Any]:
    server.kill()
    return lambda: server.start()


def out_of_memory(server: Server) -> Callable[[], Any]:
    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.ask("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.ask("CONFIG", "SET", "maxmemory", "0")


def read_only(server: Server) -> Callable[[], Any]:
    server.ask("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.ask("REPLICAOF", "NO", "ONE")


def password_wanted(server: Server) -> Callable[[], Any]:
    server.ask("CONFIG", "SET", "requirepass", "needed")
    server.admin["password"] = "needed"
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    return lambda: server.ask("CONFIG", "SET", "requirepass", "")


def denied(server: Server) -> Callable[[], Any]:
    server.ask("ACL", "SETUSER", "default", "-fcall")
    return lambda: server.ask("ACL", "SETUSER", "default", "+fcall")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (killed, "can't be reached"),
        (out_of_memory, "out of memory"),
        (read_only, "read-only replica"),
        (password_wanted, "wants a password"),
        (denied, "does not allow us"),
    ],
)
@in_loop
async def test_53_durable_work_is_503_the_proxy_goes_on_and_nothing_is_lost(
    redis: Server, fault: Callable[[Server], Callable[[], Any]], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateways(1, redis.url(patience=1)) as (agent, (running,)):
        api, wire = await Api.connect(running), await running.connect()
        before = [(await api.create(given=n))["id"] for n in range(3)]
        mend = await asyncio.to_thread(fault, redis)
        for method, path, body in (
            ("POST", "/v1/runs", {"service": "auditor"}),
            ("POST", "/v1/workers/claim", {"services": ["auditor"], "worker": "w"}),
        ):
            status, answer = await api.call(method, path, body)
            assert (status, answer["error"]["code"]) == (503, "store_away"), answer
            assert api.answer is not None
            assert int(api.answer.header("retry-after") or 0) > 0
            assert "needed" not in json.dumps(answer), "it tells no secret"
            assert (await wire.get("/proxied/x")).body == b"ok"
        answer = await wire.post("/proxied/x", headers="Prefer: respond-async\r\n")
        assert answer.status == 503
        assert len(agent.requests) == 2, "what was to be durable was served in passing"
        assert words in capsys.readouterr().out, "the operator is told why"
        await asyncio.to_thread(mend)
        durable = running.server.durable
        assert durable is not None
        await until(lambda: not durable.stats.away)
        after = (await api.create())["id"]
        claimed = [(await api.claim())["run"]["id"] for _ in range(4)]
        assert claimed == [*before, after]
        assert await api.claim() is None, "something that was refused was done all the same"


@in_loop
async def test_53_a_gateway_that_starts_while_the_store_is_away_serves_and_finds_it_later(tmp_path: Path) -> None:
    server = Server(tmp_path / "redis", "appendonly yes")
    async with gateways(1, server.url(patience=0.2)) as (_, (running,)):
        api, wire = await Api.connect(running), await running.connect()
        assert (await api.call("POST", "/v1/runs", {"service": "auditor"}))[0] == 503
        assert (await wire.get("/proxied/x")).body == b"ok"
        try:
            await asyncio.to_thread(server.start)
            durable = running.server.durable
            assert durable is not None
            await until(lambda: not durable.stats.away)
            await api.create()
        finally:
            server.kill()


# -- 53 under SQLite: the disk -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "small", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs to mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


@in_loop
async def test_53_a_full_disk_is_503_and_what_was_acknowledged_is_there_after_a_restart(small_disk: Path) -> None:
    agent = await Agent().start()
    (small_disk / "ballast").write_bytes(b"x" * 600_000)
    path = small_disk / "unjam.yaml"
    path.write_text(
        "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n" + config(f"sqlite:{small_disk / 'runs.db'}", agent.url)
    )
    made: list[str] = []
    refused = 0
    try:
        async with served("--config", str(path)) as (process, port):
            apis = [Api(await Wire.connect(port)) for _ in range(4)]

            async def fill(api: Api) -> None:
                nonlocal refused
                for _ in range(30):
                    status, body = await api.call("POST", "/v1/runs", {"service": "auditor", "input": "x" * 20_000})
                    if status == 201:
                        made.append(body["id"])
                        continue
                    assert (status, body["error"]["code"]) == (503, "store_away"), body
                    assert api.answer is not None
                    assert int(api.answer.header("retry-after") or 0) > 0
                    refused += 1

            await asyncio.gather(*(fill(api) for api in apis))
            assert len(made) > 10
            assert refused > 20
            assert (await apis[0].wire.get("/proxied/x")).body == b"ok"
            status, listed = await apis[0].call("GET", "/v1/runs?limit=500")
            assert (status, {run["id"] for run in listed["runs"]}) == (200, set(made))
            await process.says('"event":"store_away"')
            for api in apis:
                api.wire.close()
            process.child.kill()
            await process.exit_code()
        (small_disk / "ballast").unlink()
        async with served("--config", str(path)) as (_, port):
            api = Api(await Wire.connect(port))
            made.append((await api.create())["id"])
            _, listed = await api.call("GET", "/v1/runs?limit=500")
            assert sorted(run["id"] for run in listed["runs"]) == sorted(made)
            claim = await api.claim()
            assert (claim["run"]["id"] in made, claim["input"]) == (True, "x" * 20_000)
            await api.finish(claim)
            api.wire.close()
    finally:
        await agent.stop()


# -- 54, 57: calls that are given up, replies that are lost ------------------------------------------------------------


@in_loop
async def test_54_clients_that_leave_in_the_middle_of_a_command_leave_its_reply_to_nobody(redis: Server) -> None:
    async with gateways(1, redis.url(patience=5)) as (_, (running,)):
        api = await Api.connect(running)
        runs = [(await api.create(given=n))["id"] for n in range(16)]
        apis = [await Api.connect(running) for _ in runs]
        redis.pause()
        try:
            for each, run in zip(apis, runs, strict=True):
                await each.send("GET", f"/v1/runs/{run}")
            await until(lambda: sum(client.exchange is not None for client in running.gateway.clients) == 16)
            for each in apis[::2]:
                each.wire.reset()
            await until(lambda: len(running.gateway.clients) == 9)
        finally:
            redis.resume()
        for each, run in list(zip(apis, runs, strict=True))[1::2]:
            status, found = await each.read("GET", f"/v1/runs/{run}")
            assert (status, found["id"]) == (200, run)


@in_loop
async def test_57_one_key_is_one_run_at_two_gateways_though_replies_are_lost(redis: Server) -> None:
    async with Proxy(redis.port) as proxy:
        state = f"redis://127.0.0.1:{proxy.port}?patience=20"
        async with gateways(2, state) as (_, both):
            apis = [await Api.connect(running) for running in both for _ in range(6)]
            n = 0
            while proxy.cuts < 6:
                n += 1
                proxy.cut_every = 17
                made = await asyncio.gather(
                    *(api.create(given=n, headers=f"Idempotency-Key: same-{n}\r\n") for api in apis)
                )
                proxy.cut_every = 0
                assert len({run["id"] for run in made}) == 1
                answer = await apis[0].call(
                    "POST", "/v1/runs", {"service": "auditor", "input": "other"}, f"Idempotency-Key: same-{n}\r\n"
                )
                assert (answer[0], answer[1]["error"]["code"]) == (422, "idempotency_key_reused")
            _, listed = await apis[-1].call("GET", "/v1/runs?limit=500")
            assert len(listed["runs"]) == n


# -- 55, 56: owners and tails that are lost ----------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["redis", "sqlite"])
@in_loop
async def test_55_a_run_whose_owner_died_is_claimed_again_and_the_dead_ones_word_is_refused(
    store: str, redis: Server, tmp_path: Path
) -> None:
    state = redis.url() if store == "redis" else f"sqlite:{tmp_path / 'runs.db'}"
    async with gateways(1, state, lease=f"{LEASE}s") as (_, (running,)):
        api, second = await Api.connect(running), await Api.connect(running)
        run = await api.create()
        first = await api.claim(worker="first")
        # It holds on to it as long as its lease lasts, and no longer.
        assert await second.claim(worker="second") is None
        again = await second.claim(worker="second", wait=15)
        assert (again["run"]["id"], again["run"]["attempt"], again["fence"]) == (run["id"], 2, 2)
        for call, more in (
            ("finish", {"status": "completed", "result": "stale"}),
            ("append", {"batch": 1, "events": [{"type": "progress"}]}),
            ("heartbeat", {}),
            ("release", {}),
        ):
            status, answer = await api.call("POST", f"/v1/runs/{run['id']}/{call}", {"fence": first["fence"], **more})
            assert (status, answer["error"]["code"]) == (409, "fenced"), call
        await second.finish(again, "fresh")
        _, found = await api.call("GET", f"/v1/runs/{run['id']}")
        assert (found["status"], found["result"]) == ("completed", "fresh")
        _, batch = await api.call("GET", f"/v1/runs/{run['id']}/events")
        assert [event["type"] for event in batch["events"]] == [
            "run.created", "run.attempt", "run.attempt", "run.completed"
        ]  # fmt: skip


@in_loop
async def test_56_a_reader_is_told_of_a_tail_that_a_failover_lost_and_no_seq_is_used_twice(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    try:
        await asyncio.to_thread(watched.start)
        async with gateways(1, watched.url) as (_, (running,)):
            api = await Api.connect(running)
            run = await api.create()
            claim = await api.claim()
            await api.emit(claim, 1, "kept")
            await asyncio.to_thread(watched.replicated)
            await asyncio.to_thread(watched.part)
            source = Source()
            following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
            await api.emit(claim, 2, "lost 1", "lost 2")
            await source.until(lambda: source.ids == [0, 1, 2, 3, 4])
            await asyncio.to_thread(watched.master.kill)
            await api.emit(claim, 3, "after")
            await api.finish(claim)
            await following
            assert source.ids == list(range(8)), "who saw the tail sees each number once"
            assert [kind for _, kind, _ in source.events][4:] == ["progress", "run.gap", "progress", "run.completed"]
            # Who comes later is told that something is missing, and where.
            later = Source()
            await later.follow(running.port, run["links"]["events"])
            assert later.ids == [0, 1, 2, 5, 6, 7]
            gaps = [json.loads(data) for _, kind, data in later.events if kind == "run.gap"]
            assert gaps == [{"from": 3, "to": 4}]
            seen = {id_: data for id_, kind, data in source.events if kind == "progress"}
            assert all(seen[id_] == data for id_, kind, data in later.events if kind == "progress")
    finally:
        watched.kill()


# -- 59 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "warned"),
    [
        ("redis://192.0.2.1:6379?patience=0.1", True),
        ("rediss://192.0.2.1:6379?patience=0.1", False),
        ("redis://127.0.0.1:9?patience=0.1", False),
    ],
)
@in_loop
async def test_59_redis_without_tls_beyond_loopback_is_warned_of_at_the_start(
    state: str, warned: bool, tmp_path: Path
) -> None:
    path = tmp_path / "unjam.yaml"
    path.write_text("listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n" + config(state))
    async with served("--config", str(path)) as (process, _):
        await process.says('"event":"store_away"')
        found = [line for line in process.said.splitlines() if '"event":"store_warning"' in line]
        assert bool(found) == warned
        assert all("without TLS" in line and "192.0.2.1" in line for line in found)
