"""What clients of runs get by asking in odd ways, or by going on after they lost the right to."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from unjam.config import parse
from unjam.gateway.respond_async import prefers
from unjam.runs.model import age

from .durable import SERVICES, Api, Source, runs_gateway
from .harness import Agent, Call, Running, gateway, in_loop, until
from .held import masked
from .test_run_socket import raw, sockets, talk


def keys(**services: str) -> str:
    """A key `key-of-NAME` for each tenant, for these services only; of the others' role where it says `worker`."""
    lines = []
    for name, given in services.items():
        more = ", role: worker" if given == "worker" else f", services: [{given}]" if given else ""
        lines.append(f"- {{tenant: {name}, hash: 'sha256:{sha256(f'key-of-{name}'.encode()).hexdigest()}'{more}}}\n")
    return "keys:\n" + "".join(lines)


async def says_its_target(call: Call) -> None:
    await call.answer(f"{call.seen.method} {call.seen.target}".encode())


def by_model(one: Agent, two: Agent, first: str = "", second: str = "") -> str:
    """`one` has all paths, `two` the model `m`. `first`, `second`: more of each."""
    return (
        "services:\n"
        f"  one:\n    match: {{path: /}}\n    versions: {{v1: {{endpoints: ['{one.url}']}}}}\n{first}"
        f"  two:\n    match: {{model: m}}\n    versions: {{v1: {{endpoints: ['{two.url}']}}}}\n{second}"
    )


@in_loop
async def test_a_head_of_a_stream_is_answered_without_a_body() -> None:
    """What came behind the head would be taken for the next answer, by a proxy perhaps for somebody else's."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        for path in (f"/v1/responses/resp_{run['id'][4:]}?stream=true", f"/v1/runs/{run['id']}/events"):
            await api.wire.send(f"HEAD {path} HTTP/1.1\r\nHost: t\r\nAccept: text/event-stream\r\n\r\n".encode())
            answer = await api.wire.answer("HEAD")
            assert (answer.status, answer.header("content-type"), answer.body) == (200, "text/event-stream", b"")
        status, found = await api.call("GET", f"/v1/runs/{run['id']}")
        assert (status, found["status"]) == (200, "queued")
        assert running.server.gateway.stats.held == 0


# -- what below /v1/responses is the services' ---------------------------------------------------------------------


@in_loop
async def test_a_key_reaches_no_other_service_by_way_of_responses() -> None:
    async with Agents() as (one, two):
        config = f"runs: on\n{keys(caller='two')}{by_model(one, two)}"
        async with gateway(config=config) as running:
            wire = await running.connect()
            key = "Authorization: Bearer key-of-caller\r\n"
            assert (await wire.get("/x", key)).status == 403
            for method in ("GET", "DELETE"):
                await wire.send(f"{method} /v1/responses/resp_theirs HTTP/1.1\r\nHost: t\r\n{key}\r\n".encode())
                assert (await wire.answer(method)).status == 403
            assert (await wire.post("/v1/responses/resp_theirs", b"", key)).status == 403
            assert (await wire.post("/v1/responses", b'{"model": "other"}', key)).status == 403
            answer = await wire.post("/v1/responses", b'{"model": "m"}', key)
            assert (answer.status, answer.body) == (200, b"POST /v1/responses")
            assert not one.requests


@in_loop
async def test_what_is_not_ours_below_responses_is_the_services_whatever_its_method() -> None:
    agent = await Agent(says_its_target).start()
    async with gateway(agent, config=by_path(agent)) as running:
        wire = await running.connect()
        ours = "/v1/responses/resp_00" + "0" * 25
        for method, path in (
            ("GET", "/v1/responses"), ("OPTIONS", "/v1/responses"), ("PUT", "/v1/responses/resp_theirs"),
            ("GET", "/v1/responses/"), ("GET", "/v1/responses/a/b/c"), ("POST", "/v1/responses/input_tokens"),
            ("GET", "/v1/responses/00" + "0" * 25), ("OPTIONS", ours), ("POST", ours),
        ):  # fmt: skip
            await wire.send(f"{method} {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n".encode())
            answer = await wire.answer(method)
            assert (answer.status, answer.body) == (200, f"{method} {path}".encode())
        assert (await wire.get(ours)).status == 404


@in_loop
async def test_what_is_passed_on_is_heeded_as_any_request() -> None:
    agent = await Agent(says_its_target).start()
    async with gateway(agent, config=by_path(agent)) as running:
        wire = await running.connect()
        assert (await wire.post("/v1/responses", headers="x-unjam-lane: none\r\n")).status == 400
        assert (await wire.post("/v1/responses", headers="x-unjam-deadline: -1\r\n")).status == 400
        answer = await wire.post("/v1/responses", headers="Prefer: respond-async\r\n")
        assert (answer.status, answer.header("preference-applied")) == (202, "respond-async")
        await wire.send(
            b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        assert (await wire.answer("POST")).status == 400


def by_path(agent: Agent) -> str:
    return f"runs: on\nservices:\n  a:\n    match: {{path: /}}\n    versions: {{v1: {{endpoints: ['{agent.url}']}}}}\n"


class Agents:
    """Two that say what they were asked for."""

    async def __aenter__(self) -> tuple[Agent, Agent]:
        self.agents = Agent(says_its_target), Agent(says_its_target)
        for agent in self.agents:
            await agent.start()
        return self.agents

    async def __aexit__(self, *_: object) -> None:
        for agent in self.agents:
            await agent.stop()


# -- Prefer: respond-async -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["one", "two"])
@in_loop
async def test_the_service_of_the_model_says_whether_a_request_is_kept(off: str) -> None:
    async with Agents() as (one, two):
        given = {"first" if off == "one" else "second": "    runs: off\n"}
        async with gateway(config=f"runs: {{max_input: 100KiB}}\n{by_model(one, two, **given)}") as running:
            wire = await running.connect()
            for model, service in (("x", "one"), ("m", "two")):
                for size in (1, 200 << 10):
                    body = b'{"model": "%b", "input": "%b"}' % (model.encode(), b"y" * size)
                    answer = await wire.post("/v1/chat/completions", body, "Prefer: respond-async\r\n")
                    kept = 202 if size == 1 else 413
                    assert answer.status == (200 if service == off else kept), (model, size)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"respond-async", True), (b"wait=10, Respond-Async ; a=b", True), (b'respond-async=""', True),
        (b'foo="a \\" b, c", respond-async', True), (b"respond-async=1", False), (b"respond-asynchronous", False),
        (b'foo="a, respond-async, b"', False), (b'foo="a \\", respond-async', False),
        (b"return=minimal; respond-async", False), (b"", False), (b",,;=,", False),
    ],
)  # fmt: skip
def test_a_preference_is_told_from_what_only_looks_like_one(value: bytes, wanted: bool) -> None:
    assert prefers(value) is wanted


# -- keys that a reload takes away, or narrows ---------------------------------------------------------------------


@asynccontextmanager
async def rekeyed(
    configured: str = SERVICES, **services: str
) -> AsyncIterator[tuple[Running, Callable[..., Awaitable[None]]]]:
    """A gateway with these `keys`, and how to give it others."""
    top = f"runs: on\nlisten: 127.0.0.1:0\nadmin: off\naccess_log: off\n{configured}"
    given = [keys(**services)]

    async def rekey(**services: str) -> None:
        given[0] = keys(**services)
        assert await running.server.reload() == []

    async with gateway(config=given[0] + top, reload=lambda: parse(given[0] + top, {})) as running:
        yield running, rekey


@in_loop
async def test_a_key_that_is_taken_away_or_narrowed_hears_no_more_of_its_runs() -> None:
    async with rekeyed(gone="", narrow="", other="", w="worker") as (running, rekey):
        worker = await Api.connect(running, "key-of-w")
        for tenant, status, code in (("gone", 401, "unauthorized"), ("narrow", 404, "unknown_run"), ("other", 200, "")):
            api = await Api.connect(running, f"key-of-{tenant}")
            run = await api.create("other")
            claim = await worker.claim("other")
            source = Source()
            path = f"/v1/runs/{run['id']}"
            key = f"Authorization: Bearer key-of-{tenant}\r\n"
            stream = asyncio.create_task(source.follow(running.port, f"{path}/events", key))
            await source.until(lambda source=source: len(source.events) == 2)
            held = [await Api.connect(running, f"key-of-{tenant}") for _ in range(3)]
            await held[0].send("GET", f"{path}?wait=60")
            await held[1].send("GET", f"{path}/events?after=1&wait=60")
            response = f"/v1/responses/resp_{run['id'][4:]}"
            await held[2].send("GET", f"{response}?stream=true")
            told = held[2].wire.reader
            await told.readuntil(b"response.in_progress")
            await until(lambda: len(running.server.durable.held) == 4)
            await rekey(narrow="auditor", other="", w="worker")
            await worker.emit(claim, 1, "secret")
            await worker.finish(claim)
            await stream
            rest = await told.readuntil(b"0\r\n\r\n")
            if status == 200:
                assert [kind for _, kind, _ in source.events][2:] == ["progress", "run.completed"]
                assert b"secret" in rest
            else:
                assert [kind for _, kind, _ in source.events][2:] == ["error"]
                assert code in source.events[2][2]
                assert b"secret" not in rest
                for each, where in zip(held[:2], (path, f"{path}/events"), strict=True):
                    answered, body = await each.read("GET", where)
                    assert (answered, body["error"]["code"]) == (status, code)
            await rekey(gone="", narrow="", other="", w="worker")


@in_loop
async def test_a_worker_whose_key_was_taken_away_while_it_waited_is_given_nothing() -> None:
    async with rekeyed(me="", w="worker", x="worker", y="worker") as (running, rekey):
        waiting = []
        for name in ("w", "x", "y"):
            worker = await Api.connect(running, f"key-of-{name}")
            await worker.send("POST", "/v1/workers/claim", {"services": ["auditor"], "worker": name, "wait": 60})
            waiting.append(worker)
            await until(lambda: len(running.server.durable.ready) == len(waiting))
        await rekey(me="", x="auditor", y="worker")
        api = await Api.connect(running, "key-of-me")
        run = await api.create()
        answers = [await worker.read("POST", "/v1/workers/claim") for worker in reversed(waiting)]
        assert answers[0][1]["run"]["id"] == run["id"]
        # Those that waited longer are woken first, told why they get nothing, and the run goes to who may have it.
        assert sorted(status for status, _ in answers[1:]) == [401, 403]


@in_loop
async def test_nor_one_that_waited_for_what_another_s_claim_came_to() -> None:
    versions = "".join(f"      {name}: {{endpoints: ['http://127.0.0.1:9'], weight: 1}}\n" for name in ("v7", "v8"))
    services = "services:\n  auditor:\n    match: {path: /a}\n    runs: {execute: pull}\n    versions:\n" + versions
    async with rekeyed(services, me="", w="worker", x="worker") as (running, rekey):
        durable = running.server.durable
        api, w, x = [await Api.connect(running, f"key-of-{name}") for name in ("me", "w", "x")]
        body = {"services": ["auditor"], "worker": "y", "version": "v8"}
        assert (await w.call("POST", "/v1/workers/claim", body))[0] == 204
        real, asked, answered = durable.store.claim, asyncio.Event(), asyncio.Event()

        async def claim(*args: Any, **more: Any) -> Any:
            found = await real(*args, **more)
            asked.set()
            await answered.wait()
            return found

        durable.store.claim = claim
        await w.send("POST", "/v1/workers/claim", body | {"worker": "w", "version": "v7"})
        await asked.wait()
        await x.send("POST", "/v1/workers/claim", body | {"worker": "x", "version": "v7", "wait": 60})
        await until(lambda: len(durable.workers.crossed))
        run = await api.create()
        await rekey(me="", w="worker")
        answered.set()
        assert (await w.read("POST", "/v1/workers/claim"))[0] == 204
        assert (await x.read("POST", "/v1/workers/claim"))[0] == 401
        assert (await w.call("POST", "/v1/workers/claim", body))[1]["run"]["id"] == run["id"]


@in_loop
async def test_a_socket_goes_by_the_services_of_its_key_as_they_are_now() -> None:
    async with rekeyed(me="") as (running, rekey), talk(running, "key-of-me") as client:
        await client.ask("hello")
        kept, lost = await client.create(service="auditor"), await client.create(service="other")
        assert [(await client.recv())["run"] for _ in range(2)] == [kept, lost]
        await rekey(me="auditor")
        refusal = await client.recv()
        assert (refusal["op"], refusal["run"], refusal["code"]) == ("error", lost, "unknown_run")
        assert (await client.ask("create", service="other"))["code"] == "forbidden"
        assert (await client.ask("subscribe", run=lost))["code"] == "unknown_run"
        await client.send("cancel", run=kept)
        assert [(await client.recv())["op"] for _ in range(2)] == ["event", "done"]


@in_loop
async def test_a_key_for_some_services_is_given_whole_pages_of_their_runs() -> None:
    """And none of the tenant's other runs by name, not even as the place to go on from."""
    some = keys(some="auditor, third").removeprefix("keys:\n").replace("tenant: some", "tenant: all")
    third = "  third:\n    runs: {execute: pull}\n    versions: {v1: {endpoints: ['http://127.0.0.1:9']}}\n"
    async with runs_gateway(keys(all="") + some, services=SERVICES + third) as running:
        api = await Api.connect(running, "key-of-all")
        made = [await api.create(("other", "other", "auditor", "third")[number % 4]) for number in range(20)]
        visible = sorted((run["id"] for run in made if run["service"] != "other"), key=age, reverse=True)
        narrow = await Api.connect(running, "key-of-some")
        pages, before = [], ""
        while True:
            status, page = await narrow.call("GET", f"/v1/runs?limit=4{before}")
            assert status == 200
            pages.append([run["id"] for run in page["runs"]])
            if page["next"] is None:
                break
            assert page["next"] in visible
            before = f"&before={page['next']}"
        assert pages == [visible[:4], visible[4:8], visible[8:]]


@in_loop
async def test_a_socket_goes_by_the_limits_that_a_reload_sets() -> None:
    base = f"listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n{SERVICES}"
    given = ["runs: {max_input: 10KiB}\n"]
    async with (
        gateway(config=given[0] + base, reload=lambda: parse(given[0] + base, {})) as running,
        talk(running) as client,
    ):
        small = (await client.ask("hello"))["max_message"]
        given[0] = "runs: {max_input: 300KiB}\n"
        assert await running.server.reload() == []
        assert (await client.ask("hello"))["max_message"] > small
        assert len(await client.create(input="x" * 250_000)) == 31


# -- bodies --------------------------------------------------------------------------------------------------------


@in_loop
async def test_bodies_under_way_cost_a_bounded_amount_and_small_ones_get_in() -> None:
    agent = await Agent(says_its_target).start()
    async with gateway(agent, config=by_path(agent)) as running:
        intake = running.gateway.intake
        intake.most = 1 << 20
        half = b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n"
        slow = []
        for size in (300_000, 400_000):
            wire = await running.connect()
            await wire.send(half % (2 * size) + b" " * size)
            slow.append(wire)
            await until(lambda: intake.size == 300_000 if len(slow) == 1 else intake.size == 700_000)
        large = await running.connect()
        await large.send(half % 3_000_000 + b" " * 700_000)
        answer = await large.answer("POST")
        assert (answer.status, answer.header("retry-after")) == (503, "2")
        assert b'"bodies_full"' in answer.body
        await until(lambda: intake.size == 700_000)
        for wire, size in zip(slow, (300_000, 400_000), strict=True):
            other = await running.connect()
            assert (await other.post("/v1/responses", b'{"input": "%b"}' % (b"x" * 100_000))).status == 200
            await wire.send(b"1" * size)
            assert (await wire.answer("POST")).status == 200
        assert [len(seen.body) for seen in agent.requests] == [100_013, 600_000, 100_013, 800_000]
        await running.settled()
        await until(lambda: not intake.size)


@in_loop
async def test_a_body_whose_request_is_refused_on_its_way_to_its_service_counts_no_longer() -> None:
    agent = await Agent(says_its_target).start()
    b = f"  b: {{match: {{path: /b}}, versions: {{v1: {{endpoints: ['{agent.url}']}}}}}}\n"
    async with gateway(agent, config=keys(some="b") + by_path(agent) + b) as running:
        wire, body = await running.connect(), b'{"input": "%b"}' % (b"x" * 200_000)
        key = "Authorization: Bearer key-of-some\r\n"
        assert (await wire.post("/v1/responses", body, key)).status == 403
        assert not running.gateway.intake.size
    async with gateway(agent, config=by_path(agent)) as running:
        wire = await running.connect()
        assert (await wire.post("/v1/responses", body, "x-unjam-lane: none\r\n")).status == 400
        assert not running.gateway.intake.size


@in_loop
async def test_small_bodies_of_answers_that_last_leave_room_for_large_ones() -> None:
    last = asyncio.Event()

    async def lasts(call: Call) -> None:
        if len(call.seen.body) < 65536:
            await call.start_events()
            await last.wait()
        else:
            await call.answer()

    agent = await Agent(lasts).start()
    async with gateway(agent, config=by_path(agent)) as running:
        running.gateway.intake.most = 150_000
        for _ in range(3):
            wire = await running.connect()
            await wire.send(b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Length: 60000\r\n\r\n" + b" " * 60_000)
            await wire.reader.readuntil(b"\r\n\r\n")
        large = [await running.connect() for _ in range(2)]
        for wire in large:
            await wire.send(b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nContent-Length: 70001\r\n\r\n" + b" " * 70_000)
        await until(lambda: running.gateway.intake.size == 140_000)
        for wire in large:
            await wire.send(b" ")
            assert (await wire.answer("POST")).status == 200
        last.set()


@in_loop
async def test_messages_under_way_count_among_them() -> None:
    async with runs_gateway() as running:
        intake = running.gateway.intake
        intake.most = 1 << 20
        clients = [await raw(running) for _ in range(3)]
        large, small = [masked(0x81, b'{"token": "' + b"x" * size + b'"}') for size in (900_000, 450_000)]
        for client, part in zip(clients[:2], (500_000, 400_000), strict=True):
            await client.send(large[:part])
        await until(lambda: intake.size > 899_000)
        await clients[2].send(small[:200_000])
        assert await clients[0].closed() == (1013, True)
        await until(lambda: 599_000 < intake.size < 600_001)
        assert sockets(running).closed_for == {1013: 1}
        await clients[2].send(small[200_000:])
        assert "unknown_op" in await clients[2].message()
        clients[1].writer.transport.abort()
        await until(lambda: not intake.size)


@in_loop
async def test_a_large_input_is_not_taken_apart_for_its_key() -> None:
    async with runs_gateway(runs="{max_input: 8MiB}") as running:
        api = await Api.connect(running)
        body = b'{"service":"auditor","input":[' + b"[]," * 1_000_000 + b"[]]}"
        tracemalloc.start()
        try:
            answers = [await api.call("POST", "/v1/runs", body, "Idempotency-Key: k\r\n") for _ in range(2)]
            assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
        finally:
            tracemalloc.stop()
        assert [status for status, _ in answers] == [201, 200]
        body = body.replace(b"[]]", b"[] ]")
        assert (await api.call("POST", "/v1/runs", body, "Idempotency-Key: k\r\n"))[0] == 422
