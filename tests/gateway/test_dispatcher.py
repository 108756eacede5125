"""Runs pushed to agents that know nothing of them: what agents are sent, what readers see, what becomes of the run."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.clocks import Awake
from tests.gateway.harness import Agent, Call, gateway, in_loop, until, until_gone
from tests.gateway.pushing import Faulty, Pushing, error_of, one, pushing
from unjam.gateway import envelope, journal
from unjam.runs.model import NewRun


def data(event: Any) -> Any:
    return msgspec.json.decode(event.data)


async def started(*behaviours: Any) -> list[Agent]:
    return [await Agent(behaviour).start() for behaviour in behaviours]


class Held:
    """An agent's behaviour that answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.most = self.now = 0

    async def __call__(self, call: Call) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        await call.answer(b'{"done": true}', headers="Content-Type-Of: x\r\n")


async def streams(call: Call) -> None:
    await call.start_events()
    await call.chunk(b'event: page\ndata: {"page": 1}\n\n')
    await call.chunk(b"data: not json\n\nda")
    await call.chunk(b'ta: {\ndata: "a": 1}\n\n')
    await call.last_chunk()


# -- what goes there, and what comes back ---------------------------------------------------------------------------


@in_loop
async def test_a_json_agent_gets_the_input_and_its_answer_is_the_result() -> None:
    async def audit(call: Call) -> None:
        body = b'{"findings":12}'
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + body)

    (agent,) = await started(audit)
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.submit({"pdf": "a.pdf"})
        ended = await pushed.ended(run)
        assert (ended.status, ended.attempt) == ("completed", 1)
        assert await pushed.result(run) == {"findings": 12}
        assert await pushed.types(run) == ["run.created", "run.attempt", "run.completed"]
        (seen,) = agent.requests
        assert (seen.method, seen.target, seen.body) == ("POST", "/agents/agent", b'{"pdf":"a.pdf"}')
        assert seen.header("content-type") == "application/json"
        assert seen.header("idempotency-key") == run.id
        assert seen.header("x-unjam-run-id") == run.id
        assert seen.header("x-unjam-attempt") == "1"
        await pushed.running.settled()
        assert pushed.dispatcher.active == 0


@in_loop
async def test_a_service_says_where_inputs_go_below_it() -> None:
    (agent,) = await started(streams)
    config = one(agent, more="    strip_prefix: true\n")
    async with pushing(agent, config=config, path="/invoke") as pushed:
        await pushed.ended(await pushed.submit({}))
        assert agent.requests[0].target == "/invoke"


@in_loop
async def test_server_sent_events_are_in_the_log_as_they_come() -> None:
    more = asyncio.Event()

    async def talks(call: Call) -> None:
        await call.start_events()
        await call.chunk(b'event: page\ndata: {"page": 1}\n\n')
        await more.wait()
        await streams_rest(call)

    async def streams_rest(call: Call) -> None:
        await call.chunk(b"data: not json\n\nda")
        await call.chunk(b'ta: {\ndata: "a": 1}\n\nevent: run.completed\ndata: {}\n\n')
        await call.last_chunk()

    (agent,) = await started(talks)
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.submit({})
        (page,) = await pushed.logged(run, "page")
        assert data(page) == {"page": 1}
        assert (await pushed.store.get(run.id)).status == "running"
        more.set()
        assert (await pushed.ended(run)).status == "completed"
        log = await pushed.log(run)
        assert [(event.seq, event.type) for event in log] == [
            (0, "run.created"),
            (1, "run.attempt"),
            (2, "page"),
            (3, "message"),
            (4, "message"),
            (5, "agent.run.completed"),  # an agent can't write what only unjam says
            (6, "run.completed"),
        ]
        assert [data(event) for event in log[3:5]] == ["not json", {"a": 1}]
        assert log[4].data == b'{"a":1}'


@in_loop
async def test_events_named_result_and_error_are_the_end() -> None:
    async def ends(call: Call) -> None:
        await call.start_events()
        if b"good" in call.seen.body:
            await call.chunk(b'event: result\ndata: {"findings": 3}\n\n')
        else:
            await call.chunk(b'data: 1\n\nevent: error\ndata: {"why": "no pages"}\n\n')
        await call.last_chunk()

    (agent,) = await started(ends)
    async with pushing(agent, config=one(agent)) as pushed:
        good, bad = await pushed.submit("good"), await pushed.submit("bad")
        assert (await pushed.ended(good)).status == "completed"
        assert await pushed.result(good) == {"findings": 3}
        failed = await pushed.ended(bad)
        assert failed.status == "failed"
        assert error_of(failed)["code"] == "agent_error"
        assert error_of(failed)["data"] == {"why": "no pages"}
        assert await pushed.types(bad) == ["run.created", "run.attempt", "message", "run.failed"]


@pytest.mark.parametrize(
    ("head", "body", "result"),
    [
        ("Content-Type: text/plain", b"all good", "all good"),
        ("Content-Type: application/json", b"not json", "not json"),
        ("Content-Type: application/problem+json; charset=utf-8", b'{"a":\n 1}', {"a": 1}),
        ("Content-Type: image/png", b"\x89PNG\xff", {"content_type": "image/png", "body_b64": "iVBOR/8="}),
        ("X: y", b"", None),
    ],
)
def test_any_answer_becomes_json(head: str, body: bytes, result: object) -> None:
    @in_loop
    async def run_it() -> None:
        async def answers(call: Call) -> None:
            await call.write(f"HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

        (agent,) = await started(answers)
        async with pushing(agent, config=one(agent)) as pushed:
            run = await pushed.submit({})
            assert (await pushed.ended(run)).status == "completed"
            assert await pushed.result(run) == result

    run_it()


@in_loop
async def test_a_bad_status_fails_the_run_with_what_the_agent_said() -> None:
    async def refuses(call: Call) -> None:
        await call.answer(b'{"error":"no such pdf"}', status=422)

    (agent,) = await started(refuses)
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.ended(await pushed.submit({}))
        assert run.status == "failed"
        assert error_of(run) == {
            "code": "agent_status",
            "message": "The agent answered with status 422.",
            "status": 422,
            "body": {"error": "no such pdf"},
        }
        assert len(agent.requests) == 1


@in_loop
async def test_a_kept_request_is_replayed_as_that_very_request() -> None:
    (agent,) = await started(streams)
    async with pushing(agent, config=one(agent)) as pushed:
        headers = [("content-type", "text/csv"), ("x-trace", "7"), ("prefer", "respond-async"), ("host", "evil"),
                   ("x-bad", "a\r\nx-smuggled: 1"), ("transfer-encoding", "chunked")]  # fmt: skip
        run = await pushed.submit(envelope.wrap("PUT", "/agents/agent/docs?page=2", headers, b"a,b\n\xff"))
        assert (await pushed.ended(run)).status == "completed"
        (seen,) = agent.requests
        assert (seen.method, seen.target, seen.body) == ("PUT", "/agents/agent/docs?page=2", b"a,b\n\xff")
        assert (seen.header("content-type"), seen.header("x-trace")) == ("text/csv", "7")
        assert seen.header("host") == agent.url.removeprefix("http://")
        assert {name for name, _ in seen.headers}.isdisjoint({"prefer", "x-bad", "x-smuggled", "transfer-encoding"})


@in_loop
async def test_a_clients_own_input_never_chooses_the_path() -> None:
    (agent,) = await started(streams)
    async with pushing(agent, config=one(agent)) as pushed:
        forged = envelope.wrap("DELETE", "/admin/everything", [], b"")
        run = await pushed.submit(envelope.plain(forged))
        await pushed.ended(run)
        assert (agent.requests[0].method, agent.requests[0].target) == ("POST", "/agents/agent")
        assert msgspec.json.decode(agent.requests[0].body) == msgspec.json.decode(forged)


# -- slots, lanes, and who has none ---------------------------------------------------------------------------------


@in_loop
async def test_runs_and_requests_share_the_slots() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=2)) as pushed:
        wire = await pushed.running.connect()
        await wire.send(b"POST /agents/agent HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        await until(lambda: held.now == 1)
        runs = [await pushed.submit(number) for number in range(20)]
        await until(lambda: held.now == 2)
        # One slot is left for runs: most of them wait where every gateway can have them.
        await until(lambda: pushed.dispatcher.active > 1 and pushed.dispatcher._claiming == 0)
        queued, running = (await pushed.store.depth())["agent"]
        assert queued >= 8
        assert running == pushed.dispatcher.active
        assert pushed.running.leases == 2
        held.go.set()
        for run in runs:
            assert (await pushed.ended(run)).status == "completed"
        assert (await wire.answer("POST")).status == 200
        assert held.most == 2


@in_loop
async def test_heavy_runs_leave_room_for_fast_ones() -> None:
    held = Held()
    (agent,) = await started(held)
    config = one(agent, slots=4, more="    lanes: {heavy: {share: 0.5}}\n")
    async with pushing(agent, config=config) as pushed:
        heavy = [await pushed.submit(number, lane="heavy") for number in range(30)]
        await until(lambda: held.now == 2)
        fast = [await pushed.submit(number) for number in range(2)]
        await until(lambda: held.now == 4)
        assert {run.status for run in [await pushed.store.get(run.id) for run in fast]} == {"running"}
        held.go.set()
        for run in heavy + fast:
            assert (await pushed.ended(run)).status == "completed"
        assert held.most <= 4


@in_loop
async def test_without_an_endpoint_in_service_runs_wait_untouched() -> None:
    (agent,) = await started(streams)
    async with pushing(agent, config=one(agent)) as pushed:
        gateway = pushed.running.gateway
        endpoint = pushed.running.endpoint(agent.url)
        gateway.balancer.drain(endpoint, True, gateway.now)
        run = await pushed.submit({})
        before = gateway.now
        await until(lambda: gateway.now > before + 0.5)
        assert (await pushed.store.get(run.id)).status == "queued"
        assert await pushed.types(run) == ["run.created"]
        assert pushed.store.calls["claim"] <= 2
        gateway.balancer.drain(endpoint, False, gateway.now)
        assert (await pushed.ended(run)).status == "completed"


@in_loop
async def test_a_full_queue_of_requests_keeps_runs_in_theirs() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=1, more="    queue: {max: 0}\n")) as pushed:
        wire = await pushed.running.connect()
        await wire.send(b"GET /agents/agent HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: held.now == 1)
        run = await pushed.submit({})
        gateway = pushed.running.gateway
        before = gateway.now
        await until(lambda: gateway.now > before + 0.3)
        assert await pushed.types(run) == ["run.created"]
        held.go.set()
        assert (await pushed.ended(run)).status == "completed"


@in_loop
async def test_an_agent_that_is_not_there_charges_no_attempt() -> None:
    (agent,) = await started(streams)
    config = one(agent)
    port = agent.port
    await agent.stop()
    async with pushing(config=config) as pushed:
        run = await pushed.submit({}, max_attempts=1)
        await pushed.logged(run, "run.attempt", 2)
        (first, second) = await pushed.logged(run, "run.attempt", 2)
        assert second.at - first.at > 0.3  # it is tried now and then, not in a loop
        assert data(second) == {"n": 1, "from_seq": 1, "reason": "handed_back"}
        back = await Agent(streams).start(port=port)
        try:
            ended = await pushed.ended(run)
            assert (ended.status, ended.attempt) == ("completed", 1)
        finally:
            await back.stop()


@in_loop
async def test_a_wait_for_a_slot_outlasts_the_time_that_requests_wait() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=1, more="    queue: {timeout: 1100ms}\n")) as pushed:
        first, second = await pushed.submit(1), await pushed.submit(2)
        service = pushed.running.gateway.balancer.services["agent"]
        await until(lambda: sum(service.refused.values()) == 1)
        held.go.set()
        assert (await pushed.ended(first)).status == "completed"
        assert (await pushed.ended(second)).status == "completed"
        assert await pushed.types(second) == ["run.created", "run.attempt", "run.completed"]


@in_loop
async def test_no_more_are_pushed_at_once_than_allowed() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=50), most=3) as pushed:
        runs = [await pushed.submit(number) for number in range(10)]
        await until(lambda: held.now == 3)
        held.go.set()
        for run in runs:
            assert (await pushed.ended(run)).status == "completed"
        assert held.most == 3


# -- stopping -------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_cancel_reaches_the_agent() -> None:
    (agent,) = await started(until_gone)
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.submit({})
        call = await agent.calls.get()
        await pushed.store.cancel(run.id)
        pushed.dispatcher.poke(run.id)
        await call.gone.wait()
        assert (await pushed.ended(run)).status == "cancelled"
        await pushed.running.settled()
        assert (await pushed.types(run))[-1] == "run.cancelled"


@in_loop
async def test_a_cancel_elsewhere_is_noticed_by_the_next_sign_of_life() -> None:
    (agent,) = await started(until_gone)
    async with pushing(agent, config=one(agent), lease=0.6) as pushed:
        run = await pushed.submit({})
        call = await agent.calls.get()
        await pushed.store.cancel(run.id)
        await call.gone.wait()
        assert (await pushed.ended(run)).status == "cancelled"


@in_loop
async def test_a_run_cancelled_while_it_waits_for_a_slot_leaves_the_line() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=1)) as pushed:
        first, second = await pushed.submit(1), await pushed.submit(2)
        await pushed.status(second, "running")
        await pushed.store.cancel(second.id)
        pushed.dispatcher.poke(second.id)
        assert (await pushed.ended(second)).status == "cancelled"
        held.go.set()
        assert (await pushed.ended(first)).status == "completed"
        assert len(agent.requests) == 1


@in_loop
async def test_a_run_past_its_deadline_is_taken_from_the_agent() -> None:
    store = Faulty()
    (agent,) = await started(until_gone)
    async with pushing(agent, config=one(agent), store=store) as pushed:
        run = await pushed.submit({}, deadline=store._clock() + 1.5)
        call = await agent.calls.get()
        await until(lambda: store._clock() > (run.deadline or 0.0))
        assert [settled.run.id for settled in await store.sweep()] == [run.id]
        await call.gone.wait()
        await until(lambda: pushed.dispatcher.active == 0)
        assert (await store.get(run.id)).status == "expired"


# -- losses ---------------------------------------------------------------------------------------------------------


class Breaks:
    """Breaks off its first answers in the middle, then streams."""

    def __init__(self, times: int, after: bytes = b"data: 1\n\n") -> None:
        self.left = times
        self.after = after

    async def __call__(self, call: Call) -> None:
        if self.left:
            self.left -= 1
            if self.after:
                await call.start_events()
                await call.chunk(self.after)
            call.abort()
            return
        await streams(call)


@in_loop
async def test_output_that_breaks_off_fails_the_run_by_default() -> None:
    (agent,) = await started(Breaks(1))
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.ended(await pushed.submit({}))
        assert (run.status, error_of(run)["code"]) == ("failed", "worker_lost")
        assert await pushed.types(run) == ["run.created", "run.attempt", "message", "run.failed"]
        assert len(agent.requests) == 1


@in_loop
async def test_output_that_breaks_off_is_begun_again_where_that_is_wanted() -> None:
    (agent,) = await started(Breaks(2))
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.ended(await pushed.submit({}, retry="restart"))
        assert (run.status, run.attempt) == ("completed", 3)
        attempts = await pushed.logged(run, "run.attempt", 3)
        assert [data(event)["reason"] for event in attempts] == ["first", "lost", "lost"]
        assert {request.header("idempotency-key") for request in agent.requests} == {run.id}
        assert [request.header("x-unjam-attempt") for request in agent.requests] == ["1", "2", "3"]


@in_loop
async def test_attempts_are_exhausted_and_the_run_is_listed_as_dead() -> None:
    (agent,) = await started(Breaks(9))
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.ended(await pushed.submit({}, retry="restart", max_attempts=2))
        assert (run.status, error_of(run)["code"]) == ("failed", "attempts_exhausted")
        assert len(agent.requests) == 2
        assert [dead.id for dead in await pushed.store.dead()] == [run.id]


@in_loop
async def test_an_agent_lost_before_it_said_anything_is_tried_again() -> None:
    (agent,) = await started(Breaks(1, b""))
    async with pushing(agent, config=one(agent)) as pushed:
        run = await pushed.ended(await pushed.submit({}))
        assert (run.status, run.attempt) == ("completed", 2)


@in_loop
async def test_an_agent_is_abandoned_when_the_run_has_another_owner() -> None:
    (agent,) = await started(until_gone)
    # Its lease runs out while the store can't be reached, and another gateway sweeps and claims.
    store = Faulty()
    async with pushing(agent, config=one(agent), store=store, lease=0.3) as pushed:
        run = await pushed.submit({})
        call = await agent.calls.get()
        store.away = {"heartbeat", "claim"}
        swept: list[Any] = []
        while not swept:
            await asyncio.sleep(0.01)
            swept = await store.sweep()
        super_claim = super(Faulty, store).claim
        other = await super_claim(["agent"], "other", pull=False)
        assert other is not None
        assert other.run.fence == 2
        store.away = set()
        await call.gone.wait()
        await until(lambda: pushed.dispatcher.active == 0)
        assert (await store.get(run.id)).worker == "other"
        assert pushed.dispatcher.fenced == 1


@in_loop
async def test_what_an_agent_says_while_the_store_is_away_is_written_when_it_is_back() -> None:
    store = Faulty()

    async def talks(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: 1\n\n")
        await until(lambda: store.refused["append"] >= 2)
        await call.chunk(b"data: 2\n\ndata: 3\n\n")
        await call.last_chunk()

    (agent,) = await started(talks)
    async with pushing(agent, config=one(agent), store=store) as pushed:
        store.away = {"append", "finish"}
        run = await pushed.submit({})
        await until(lambda: store.refused["append"] >= 2)
        await pushed.running.settled()  # the agent's slot doesn't wait for the store
        assert pushed.dispatcher.active == 1
        store.away = set()
        assert (await pushed.ended(run)).status == "completed"
        log = await pushed.log(run)
        assert [(event.type, data(event)) for event in log[2:]] == [
            ("message", 1), ("message", 2), ("message", 3), ("run.completed", {})]  # fmt: skip


@in_loop
async def test_runs_are_claimed_when_the_store_is_back() -> None:
    store = Faulty()
    (agent,) = await started(streams)
    async with pushing(agent, config=one(agent), store=store) as pushed:
        store.away = {"claim"}
        run = await pushed.submit({})
        await until(lambda: store.refused["claim"] >= 2)
        store.away = set()
        assert (await pushed.ended(run)).status == "completed"
        assert store.refused["claim"] < 20


# -- time and size --------------------------------------------------------------------------------------------------


@in_loop
async def test_long_silence_is_held_without_a_task_for_each_run() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=100), store=Faulty(monotonic=Awake()), lease=0.6) as pushed:
        runs = [await pushed.submit(number) for number in range(40)]
        await until(lambda: held.now == 40)
        while pushed.store.calls["heartbeat"] < 4 * 40:
            assert await pushed.store.sweep() == []  # silent for more than a lease, and never lost
            await asyncio.sleep(0.02)
        await until(lambda: not pushed.dispatcher._tasks)
        held.go.set()
        for run in runs:
            ended = await pushed.ended(run)
            assert (ended.status, ended.attempt) == ("completed", 1)


@in_loop
async def test_an_agent_is_stopped_by_the_lanes_limits() -> None:
    (agent,) = await started(until_gone)
    config = one(agent, more="    lanes: {fast: {connect: 200ms, timeout: 300ms}}\n")
    async with pushing(agent, config=config) as pushed:
        run = await pushed.ended(await pushed.submit({}))
        assert (run.status, error_of(run)["code"]) == ("failed", "total_timeout")
        await (await agent.calls.get()).gone.wait()


@in_loop
async def test_a_slow_store_slows_the_agent_down_and_costs_bounded_memory() -> None:
    store = Faulty()
    sent = 0
    pieces = 400

    async def floods(call: Call) -> None:
        nonlocal sent
        await call.start_events()
        for _ in range(pieces):
            await call.chunk(b"data: " + b"x" * 60_000 + b"\n\n")
            sent += 1
        await call.last_chunk()

    (agent,) = await started(floods)
    async with pushing(agent, config=one(agent), store=store) as pushed:
        store.gate.clear()
        run = await pushed.submit({})
        await until(lambda: run.id in pushed.dispatcher._active)
        push = pushed.dispatcher._active[run.id]
        await until(lambda: push.upstream is not None and push.upstream.paused)
        assert push.journal.size < journal.HIGH + 200_000
        await asyncio.sleep(0.1)  # what the sockets' buffers take
        assert sent < pieces
        store.gate.set()
        assert (await pushed.ended(run)).status == "completed"
        assert len(await pushed.logged(run, "message", pieces)) == pieces


@in_loop
async def test_what_is_too_large_fails_the_run_and_stops_the_agent() -> None:
    async def too_much(call: Call) -> None:
        if b"stream" in call.seen.body:
            await call.start_events()
            await call.chunk(b"data: " + b"x" * 5000 + b"\n\n")
        else:
            await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"x" * 5000)
        await until_gone(call)

    (agent,) = await started(too_much)
    async with pushing(agent, config=one(agent), max_event=4096, max_result=4096) as pushed:
        stream = await pushed.ended(await pushed.submit("stream"))
        answer = await pushed.ended(await pushed.submit("answer"))
        assert error_of(stream)["code"] == "event_too_large"
        assert error_of(answer)["code"] == "result_too_large"
        for _ in range(2):
            await (await agent.calls.get()).gone.wait()


# -- the gateway stops ----------------------------------------------------------------------------------------------


async def _busy(pushed: Pushing, agent: Agent) -> tuple[Any, Any]:
    """One run at the agent, one that waits for its slot."""
    first, second = await pushed.submit(1), await pushed.submit(2)
    await agent.calls.get()
    await pushed.status(second, "running")
    return first, second


@in_loop
async def test_draining_finishes_what_runs_and_hands_back_what_waits() -> None:
    held = Held()
    (agent,) = await started(held)
    async with pushing(agent, config=one(agent, slots=1)) as pushed:
        first, second = await _busy(pushed, agent)
        draining = asyncio.create_task(pushed.dispatcher.drain(10.0))
        handed_back = await pushed.status(second, "queued")
        assert handed_back.attempt == 0
        third = await pushed.submit(3)
        held.go.set()
        await draining
        assert (await pushed.ended(first)).status == "completed"
        assert (await pushed.store.get(third.id)).status == "queued"
        assert pushed.dispatcher.active == 0


@in_loop
async def test_draining_hands_back_what_takes_too_long() -> None:
    (agent,) = await started(until_gone)
    async with pushing(agent, config=one(agent, slots=1)) as pushed:
        first, _ = await _busy(pushed, agent)
        await pushed.dispatcher.drain(0.05)
        run = await pushed.store.get(first.id)
        assert (run.status, run.attempt) == ("queued", 0)
        assert pushed.running.leases == 0


@pytest.mark.parametrize(("retry", "status"), [("fail", "failed"), ("restart", "queued")])
def test_draining_repeats_no_output_unasked(retry: str, status: str) -> None:
    @in_loop
    async def run_it() -> None:
        async def talks(call: Call) -> None:
            await call.start_events()
            await call.chunk(b"data: 1\n\n")
            await until_gone(call)

        (agent,) = await started(talks)
        async with pushing(agent, config=one(agent)) as pushed:
            run = await pushed.submit({}, retry=retry)
            await pushed.logged(run, "message")
            await pushed.dispatcher.drain(0.05)
            assert (await pushed.store.get(run.id)).status == status

    run_it()


@in_loop
async def test_a_gateway_that_stops_lets_the_agent_finish() -> None:
    held = Held()
    (agent,) = await started(held)
    async with gateway(agent, config=f"state: 'memory:'\nruns: on\n{one(agent)}") as running:
        durable = running.server.durable
        assert durable is not None
        run, _ = await durable.store.create(NewRun(service="agent", input=b"{}", digest=b""))
        await agent.calls.get()
        draining = asyncio.create_task(running.server.drain())
        await until(lambda: running.gateway.draining)
        assert (await durable.store.get(run.id)).status == "running"
        held.go.set()
        await draining
        assert (await durable.store.get(run.id)).status == "completed"


# -- versions ---------------------------------------------------------------------------------------------------------


def two_versions(old: Agent, new: Agent, old_weight: float = 1.0) -> str:
    return f"""
services:
  agent:
    versions:
      v7: {{endpoints: ["{old.url}"], weight: {old_weight}}}
      v8: {{endpoints: ["{new.url}"], weight: 1}}
"""


@in_loop
async def test_a_run_keeps_to_the_version_that_began_it() -> None:
    """Also when that gets no traffic any more; the run says which it is."""
    tries = [0]
    shown = asyncio.Event()

    async def breaks(call: Call) -> None:
        tries[0] += 1
        if tries[0] == 1:
            await call.start_events()
            await call.chunk(b"data: 1\n\n")
            await shown.wait()
            call.abort()
        else:
            await call.answer(b"old")

    async def other(call: Call) -> None:
        await call.answer(b"new")

    old, new = await started(breaks, other)
    async with pushing(old, new, config=two_versions(old, new)) as pushed:
        balancer = pushed.running.gateway.balancer
        balancer.set_weight("agent", "v8", 0.0, 0.0)
        run = await pushed.submit(retry="restart")
        await pushed.logged(run, "message")
        shown.set()
        async with asyncio.timeout(20):
            while (await pushed.store.get(run.id)).version != "v7":
                await asyncio.sleep(0.01)
        balancer.set_weight("agent", "v8", 1.0, 0.0)
        balancer.set_weight("agent", "v7", 0.0, 0.0)
        found = await pushed.ended(run)
        assert (found.status, found.version, found.attempt) == ("completed", "v7", 2)
        assert await pushed.result(run) == "old"
        fresh = await pushed.submit()
        await pushed.ended(fresh)
        assert await pushed.result(fresh) == "new"


@in_loop
async def test_a_run_waits_for_its_version_and_others_do_not_wait_behind_it() -> None:
    async def answers(call: Call) -> None:
        await call.answer(b"done")

    old, new = await started(answers, answers)
    async with pushing(old, new, config=two_versions(old, new)) as pushed:
        balancer = pushed.running.gateway.balancer
        balancer.trip("agent", "v7", asyncio.get_running_loop().time())
        pinned = [await pushed.submit(version="v7") for _ in range(3)]
        for _ in range(5):
            assert (await pushed.ended(await pushed.submit())).status == "completed"
        assert {(await pushed.store.get(run.id)).status for run in pinned} == {"running"}
        balancer.reset("agent", "v7", asyncio.get_running_loop().time())
        for run in pinned:
            assert (await pushed.ended(run)).version == "v7"
        assert len(old.requests) >= 3


@in_loop
async def test_a_pin_to_a_version_that_is_gone_holds_nobody() -> None:
    async def answers(call: Call) -> None:
        await call.answer(b"done")

    old, new = await started(answers, answers)
    async with pushing(old, new, config=two_versions(old, new)) as pushed:
        run = await pushed.submit(version="v1")
        found = await pushed.ended(run)
        assert found.status == "completed", bytes(found.error or b"")
