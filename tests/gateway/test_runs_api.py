"""Durable runs over HTTP, with real gateways and sockets: create, follow, resume, cancel, and all that is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from unjam.runs.store.memory import MemoryStore

from .durable import Api, Fragile, Shared, Source, runs_gateway
from .harness import Agent, gateway, in_loop, until


@in_loop
async def test_a_run_from_its_creation_to_its_result() -> None:
    async with runs_gateway() as running:
        client, worker = await Api.connect(running), await Api.connect(running)
        run = await client.create(given={"pdf": "a.pdf", "pages": 500}, metadata={"who": "anna"})
        assert client.answer is not None
        assert client.answer.status == 201
        assert client.answer.header("location") == f"/v1/runs/{run['id']}" == run["links"]["self"]
        assert (run["status"], run["attempt"], run["metadata"]) == ("queued", 0, {"who": "anna"})
        assert "result" not in run

        claim = await worker.claim()
        assert claim["run"]["id"] == run["id"]
        assert claim["input"] == {"pdf": "a.pdf", "pages": 500}
        assert (claim["fence"], claim["checkpoint"], claim["run"]["status"]) == (1, None, "running")
        appended = await worker.emit(claim, 1, {"page": 1}, {"page": 2})
        assert appended == {"first": 2, "next": 4, "cancel": False}
        status, beat = await worker.call(
            "POST", f"/v1/runs/{run['id']}/heartbeat", {"fence": 1, "checkpoint": {"page": 2}}
        )
        assert (status, beat) == (200, {"cancel": False, "inputs": 0})
        settled = await worker.finish(claim, {"findings": 12})
        assert settled["changed"]

        status, run = await client.call("GET", f"/v1/runs/{run['id']}")
        assert (status, run["status"], run["result"]) == (200, "completed", {"findings": 12})
        assert run["created_at"] <= run["started_at"] <= run["ended_at"]
        _, run = await client.call("GET", f"/v1/runs/{run['id']}?result=0")
        assert "result" not in run
        _, batch = await client.call("GET", f"/v1/runs/{run['id']}/events")
        assert [(event["seq"], event["type"]) for event in batch["events"]] == [
            (0, "run.created"),
            (1, "run.attempt"),
            (2, "progress"),
            (3, "progress"),
            (4, "run.completed"),
        ]
        assert (batch["next"], batch["ended"]) == (5, True)


@in_loop
async def test_an_answer_is_held_until_the_run_has_ended() -> None:
    async with runs_gateway() as running:
        client, worker = await Api.connect(running), await Api.connect(running)
        run = await client.create()
        await client.send("GET", f"/v1/runs/{run['id']}?wait=3600")
        claim = await worker.claim()
        await worker.emit(claim, 1, "not yet")
        await worker.finish(claim, [1, 2])
        status, run = await client.read("GET", f"/v1/runs/{run['id']}")
        assert (status, run["status"], run["result"]) == (200, "completed", [1, 2])
        # And the connection is good for the next request.
        assert (await client.call("GET", f"/v1/runs/{run['id']}"))[0] == 200


@in_loop
async def test_an_answer_is_held_no_longer_than_was_asked_for() -> None:
    async with runs_gateway() as running:
        client = await Api.connect(running)
        run = await client.create()
        status, found = await client.call("GET", f"/v1/runs/{run['id']}?wait=0.2")
        assert (status, found["status"]) == (200, "queued")
        status, _ = await client.call("GET", f"/v1/runs/{run['id']}/events?after=0&wait=0.2")
        assert status == 204
        assert running.server.durable is not None
        assert not running.server.durable.held
        assert running.server.durable.hub.followers == 0


@in_loop
async def test_a_long_poll_gets_the_first_events_that_come() -> None:
    async with runs_gateway() as running:
        client, worker = await Api.connect(running), await Api.connect(running)
        run = await client.create()
        path = f"/v1/runs/{run['id']}/events?wait=60"
        _, batch = await client.call("GET", path)
        assert [event["type"] for event in batch["events"]] == ["run.created"]
        seen = 1
        claim = None
        types = []
        for step in range(4):
            await client.send("GET", f"{path}&after={seen - 1}")
            if step == 0:
                claim = await worker.claim()
            elif step < 3:
                await worker.emit(claim, step, step)
            else:
                await worker.finish(claim)
            status, batch = await client.read("GET", path)
            assert status == 200
            types += [event["type"] for event in batch["events"]]
            assert batch["events"][0]["seq"] == seen
            seen = batch["next"]
        assert types == ["run.attempt", "progress", "progress", "run.completed"]
        assert batch["ended"]
        status, batch = await client.call("GET", f"{path}&after={seen - 1}")
        assert (status, batch) == (200, {"events": [], "next": seen, "ended": True})


@in_loop
async def test_an_event_source_sees_every_event_once_although_it_is_cut_off() -> None:
    async with runs_gateway() as running:
        client, worker = await Api.connect(running), await Api.connect(running)
        run = await client.create()
        claim = await worker.claim()
        source = Source()
        path = run["links"]["events"]
        for cut in range(3):
            following = asyncio.create_task(source.follow(running.port, path))
            await worker.emit(claim, cut + 1, {"page": cut}, "two\nlines", None)
            await source.until(lambda expected=3 * (cut + 1) + 2: len(source.events) == expected)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        following = asyncio.create_task(source.follow(running.port, path))
        await worker.finish(claim)
        await following  # the stream ends with the run
        assert source.ids == list(range(12))
        assert source.events[-1][1] == "run.completed"
        assert json.loads(source.events[3][2]) == "two\nlines"
        await source.follow(running.port, path)
        assert source.status == 204, "an EventSource would come back for ever"


@in_loop
async def test_a_reader_goes_on_at_another_gateway() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as one, runs_gateway(store=shared.tap()) as other:
        client, worker = await Api.connect(one), await Api.connect(other)
        run = await client.create()
        claim = await worker.claim()
        source = Source()
        following = asyncio.create_task(source.follow(one.port, run["links"]["events"]))
        await worker.emit(claim, 1, 1, 2)
        await source.until(lambda: len(source.events) == 4)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await worker.emit(claim, 2, 3)
        following = asyncio.create_task(source.follow(other.port, run["links"]["events"]))
        await source.until(lambda: len(source.events) == 5)
        await worker.finish(claim)
        await following
        assert source.ids == list(range(6))


@in_loop
async def test_a_gateway_is_restarted_on_its_file(tmp_path: Path) -> None:
    state = f"state: sqlite:{tmp_path / 'runs.db'}\n"
    source = Source()
    async with runs_gateway(state) as running:
        client = await Api.connect(running)
        run = await client.create(given=[1, 2, 3], headers="Idempotency-Key: k1\r\n")
        claim = await client.claim()
        await client.emit(claim, 1, "before")
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await source.until(lambda: len(source.events) == 3)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    async with runs_gateway(state) as running:
        client = await Api.connect(running)
        again = await client.create(given=[1, 2, 3], headers="Idempotency-Key: k1\r\n")
        assert again["id"] == run["id"]
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await client.emit(claim, 2, "after")  # its fence still holds: the worker didn't notice
        await client.finish(claim, "done")
        await following
        assert source.ids == list(range(5))
        assert (await client.call("GET", f"/v1/runs/{run['id']}"))[1]["result"] == "done"


@in_loop
async def test_heartbeats_on_a_silent_stream() -> None:
    async with runs_gateway("heartbeat: 0.1s\n") as running:
        client = await Api.connect(running)
        run = await client.create()
        source = Source()
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await source.until(lambda: source.comments >= 2)
        await client.call("POST", f"/v1/runs/{run['id']}/cancel")
        await following
        assert source.ids == [0, 1]


@in_loop
async def test_a_silent_reader_costs_a_bounded_amount_and_only_itself() -> None:
    async with runs_gateway("limits: {stalled_timeout: 1s}\n") as running:
        client, worker, stalled = [await Api.connect(running) for _ in range(3)]
        run = await client.create()
        claim = await worker.claim()
        stalled.wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await stalled.send("GET", run["links"]["events"], headers="Accept: text/event-stream\r\n")
        source = Source()
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await source.until(lambda: len(source.events) == 2)
        connections = {connection for connection in running.gateway.clients if connection.exchange is not None}
        text, most = "x" * 60_000, 0
        total = 400
        for batch in range(total):
            await worker.emit(claim, batch + 1, text)
            most = max(most, *(c.transport.get_write_buffer_size() for c in connections))
        await source.until(lambda: len(source.events) == total + 2)
        assert most < 400_000, f"{most} bytes were kept for one reader, of {total * len(text)}"
        await until(lambda: running.server.durable and running.server.durable.hub.followers == 1)  # it was dropped
        await worker.finish(claim)
        await following
        assert source.ids == list(range(total + 3))


@in_loop
async def test_cancelling_is_said_once_and_may_be_repeated() -> None:
    async with runs_gateway() as running:
        client, worker = await Api.connect(running), await Api.connect(running)
        waiting = await client.create()
        for _ in range(2):
            status, run = await client.call("POST", f"/v1/runs/{waiting['id']}/cancel")
            assert (status, run["status"]) == (200, "cancelled")
        running_one = await client.create()
        claim = await worker.claim()
        status, run = await client.call("POST", f"/v1/runs/{running_one['id']}/cancel")
        assert (run["status"], run["cancel_requested"]) == ("running", True)
        assert (await worker.emit(claim, 1, "still here"))["cancel"]
        await worker.finish(claim, status="cancelled")
        _, run = await client.call("GET", f"/v1/runs/{running_one['id']}")
        assert run["status"] == "cancelled"


@in_loop
async def test_input_reaches_a_running_agent() -> None:
    async with runs_gateway() as running:
        client, worker = await Api.connect(running), await Api.connect(running)
        run = await client.create()
        claim = await worker.claim()
        here = f"/v1/runs/{run['id']}"
        assert await client.call("POST", f"{here}/input", {"data": {"answer": 42}}) == (200, {"n": 1})
        assert await client.call("POST", f"{here}/input", {"data": "more"}) == (200, {"n": 2})
        _, beat = await worker.call("POST", f"{here}/heartbeat", {"fence": 1})
        assert beat["inputs"] == 2
        _, found = await worker.call("GET", f"{here}/inputs?after=1")
        assert found == {"inputs": [{"n": 2, "data": "more"}]}
        await worker.finish(claim)
        status, body = await client.call("POST", f"{here}/input", {"data": 1})
        assert (status, body["error"]["code"]) == (409, "run_ended")


@in_loop
async def test_a_claim_waits_for_a_run() -> None:
    async with runs_gateway() as running:
        client, one, two = [await Api.connect(running) for _ in range(3)]
        assert await one.claim() is None
        body = {"services": ["auditor", "other"], "worker": "w", "wait": 60}
        for worker in (one, two):
            await worker.send("POST", "/v1/workers/claim", body)
        durable = running.server.durable
        assert durable is not None
        await until(lambda: len(durable.ready) == 2)
        runs = {(await client.create("auditor"))["id"], (await client.create("other"))["id"]}
        claims = [await worker.read("POST", "/v1/workers/claim") for worker in (one, two)]
        assert {claim["run"]["id"] for _, claim in claims} == runs
        assert len(durable.ready) == 0


@in_loop
async def test_a_worker_that_left_while_it_waited_gets_no_run() -> None:
    async with runs_gateway() as running:
        client, gone, there = [await Api.connect(running) for _ in range(3)]
        durable = running.server.durable
        assert durable is not None
        await gone.send("POST", "/v1/workers/claim", {"services": ["auditor"], "worker": "w", "wait": 60})
        await until(lambda: len(durable.ready) == 1)
        gone.wire.reset()
        await until(lambda: len(durable.ready) == 0)
        run = await client.create()
        claim = await there.claim()
        assert (claim["run"]["id"], claim["run"]["attempt"]) == (run["id"], 1)


@in_loop
async def test_a_stale_worker_is_fenced() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        claim = await api.claim()
        here = f"/v1/runs/{run['id']}"
        status, settled = await api.call("POST", f"{here}/release", {"fence": 1, "checkpoint": 7})
        assert (status, settled["run"]["status"], settled["run"]["attempt"]) == (200, "queued", 0)
        second = await api.claim()
        assert (second["fence"], second["checkpoint"]) == (2, 7)
        for call, body in {
            "append": {"fence": 1, "batch": 1, "events": [{"type": "late"}]},
            "heartbeat": {"fence": 1},
            "finish": {"fence": 1, "status": "completed"},
            "release": {"fence": 1},
        }.items():
            status, answer = await api.call("POST", f"{here}/{call}", body)
            assert (status, answer["error"]["code"]) == (409, "fenced"), call
        await api.emit(second, 1, 1)
        assert await api.emit(second, 1, 1) == {"first": 3, "next": 4, "cancel": False}, "a repeated batch"
        status, answer = await api.call(
            "POST", f"{here}/append", {"fence": 2, "batch": 3, "events": [{"type": "hole"}]}
        )
        assert (status, answer["error"]["code"]) == (400, "bad_batch")
        assert claim["fence"] == 1


# -- what is refused -----------------------------------------------------------------------------------------------


@in_loop
async def test_one_idempotency_key_is_one_run() -> None:
    async with runs_gateway() as running:
        client = await Api.connect(running)
        key = "Idempotency-Key: once\r\n"
        one = await client.create(given={"a": 1}, headers=key)
        two = await client.create(given={"a": 1}, headers=key)
        assert one["id"] == two["id"]
        assert client.answer is not None
        assert client.answer.status == 200
        assert client.answer.header("location") == f"/v1/runs/{one['id']}"
        status, body = await client.call("POST", "/v1/runs", {"service": "auditor", "input": 2}, key)
        assert (status, body["error"]["code"]) == (422, "idempotency_key_reused")
        status, body = await client.call("POST", "/v1/runs", {"service": "auditor"}, "Idempotency-Key: a b\r\n")
        assert (status, body["error"]["code"]) == (400, "bad_idempotency_key")


@in_loop
async def test_a_flood_is_refused_and_nothing_acknowledged_is_lost() -> None:
    async with runs_gateway(runs="{max_queued: 5}") as running:
        client = await Api.connect(running)
        made, refused = [], 0
        for n in range(12):
            status, body = await client.call("POST", "/v1/runs", {"service": "auditor", "input": n})
            if status == 201:
                made.append(body["id"])
            else:
                assert (status, body["error"]["code"]) == (429, "queue_full")
                assert client.answer is not None
                assert int(client.answer.header("retry-after") or 0) > 0
                refused += 1
        assert (len(made), refused) == (5, 7)
        claimed = [await client.claim() for _ in range(6)]
        assert [claim["run"]["id"] if claim else None for claim in claimed] == [*made, None]
        await client.create()


@in_loop
async def test_payloads_have_limits() -> None:
    limits = "{max_input: 1KiB, max_event: 1KiB, max_result: 2KiB, max_checkpoint: 1KiB}"
    async with runs_gateway(runs=limits) as running:
        api = await Api.connect(running)
        big = "x" * 2000
        status, body = await api.call("POST", "/v1/runs", {"service": "auditor", "input": big})
        assert (status, body["error"]["code"]) == (413, "payload_too_large")
        huge = b'{"service": "auditor", "input": "' + b"x" * 200_000 + b'"}'
        status, body = await api.call("POST", "/v1/runs", huge)
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        api = await Api.connect(running)
        run = await api.create(given="x" * 1000)
        claim = await api.claim()
        here = f"/v1/runs/{run['id']}"
        for call, body in {
            "append": {"fence": 1, "batch": 1, "events": [{"type": "a"}, {"type": "b", "data": big}]},
            "heartbeat": {"fence": 1, "checkpoint": big},
            "finish": {"fence": 1, "status": "completed", "result": big * 2},
            "release": {"fence": 1, "checkpoint": big},
            "input": {"data": big},
        }.items():
            status, answer = await api.call("POST", f"{here}/{call}", body)
            assert (status, answer["error"]["code"]) == (413, "payload_too_large"), call
        await api.finish(claim, "x" * 2000)
        assert len((await api.call("GET", here))[1]["result"]) == 2000


@in_loop
async def test_what_is_not_there_any_more_is_gone() -> None:
    async with runs_gateway(store=MemoryStore(max_bytes=40_000)) as running:
        api = await Api.connect(running)
        run = await api.create(given="x" * 15_000)
        await api.finish(await api.claim(), "y" * 10_000)
        await api.create(given="z" * 20_000)  # no room for both: what has ended goes
        here = f"/v1/runs/{run['id']}"
        status, body = await api.call("GET", here)
        assert (status, body["error"]["code"]) == (410, "log_expired")
        status, body = await api.call("GET", f"{here}?result=0")
        assert (status, body["status"]) == (200, "completed")
        for headers in ("", "Accept: text/event-stream\r\n"):
            status, body = await api.call("GET", f"{here}/events", headers=headers)
            assert (status, body["error"]["code"]) == (410, "log_expired")


@in_loop
async def test_a_reader_who_has_seen_more_than_the_log_has_is_told() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        status, batch = await api.call("GET", f"/v1/runs/{run['id']}/events?after=40")
        assert (status, batch) == (200, {"events": [], "next": 1, "ended": False, "gap": True})
        source = Source(last="40")
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await source.until(lambda: source.events)
        assert source.events[0] == ("0", "gap", '{"next":1}')
        claim = await api.claim()
        await api.finish(claim)
        await following
        assert source.ids == [1, 2]


@in_loop
async def test_a_browser_that_has_seen_more_than_an_ended_run_has_is_told_once() -> None:
    """It comes back with the id of what it was told last; and it is to come soon."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        await api.call("POST", run["links"]["cancel"])
        source = Source(last="999")
        await source.follow(running.port, run["links"]["events"])
        assert source.events == [("1", "gap", '{"next":2}')]
        assert source.retry == "1000"
        await source.follow(running.port, run["links"]["events"])
        assert (source.status, len(source.events)) == (204, 1)
        for bad in ("", "abc"):
            status, body = await api.call("GET", run["links"]["events"], headers=f"Last-Event-ID: {bad}\r\n")
            assert (status, body["error"]["code"]) == (400, "bad_query")
            assert "Last-Event-ID" in body["error"]["message"]


KEYS = """
keys:
  - {hash: "sha256:%s", tenant: acme}
  - {hash: "sha256:%s", tenant: globex}
  - {hash: "sha256:%s", tenant: acme, services: other}
  - {hash: "sha256:%s", tenant: fleet, role: worker}
  - {hash: "sha256:%s", tenant: fleet, role: worker, services: other}
"""
NAMES = ("acme-key", "globex-key", "acme-other-key", "worker-key", "other-worker-key")


def keys() -> str:
    from hashlib import sha256

    return KEYS % tuple(sha256(name.encode()).hexdigest() for name in NAMES)


@in_loop
async def test_a_tenant_sees_its_own_runs_only() -> None:
    """Another's run is answered like one that doesn't exist, byte for byte but for the request's id."""
    async with runs_gateway(keys()) as running:
        acme, globex, narrow, worker, _ = [await Api.connect(running, key) for key in NAMES]
        run = await acme.create()
        await globex.create()
        unknown = "run_" + "0" * 27
        for method, call in (
            ("GET", ""),
            ("GET", "?wait=5"),
            ("GET", "/events"),
            ("GET", "/events?after=0&wait=5"),
            ("POST", "/cancel"),
            ("POST", "/input"),
        ):
            body = {"data": 1} if call == "/input" else None
            for stranger in (globex, narrow, worker):
                status, refusal = await stranger.call(method, f"/v1/runs/{run['id']}{call}", body)
                missing = await stranger.call(method, f"/v1/runs/{unknown}{call}", body)
                for answer in (refusal, missing[1]):
                    answer["error"].pop("request_id")
                assert (status, refusal) == missing == (404, refusal)
                assert refusal["error"]["code"] == "unknown_run"
        # A stream, as it is resumed.
        source = Source(last="0")
        await source.follow(running.port, run["links"]["events"], "Authorization: Bearer globex-key\r\n")
        assert (source.status, source.events) == (404, [])
        _, listed = await globex.call("GET", "/v1/runs")
        assert [each["id"] for each in listed["runs"]] != [run["id"]]
        assert len(listed["runs"]) == 1
        _, listed = await narrow.call("GET", "/v1/runs")
        assert listed["runs"] == []
        assert (await acme.call("GET", f"/v1/runs/{run['id']}"))[1]["status"] == "queued"


@in_loop
async def test_the_same_idempotency_key_of_two_tenants_is_two_runs() -> None:
    async with runs_gateway(keys()) as running:
        acme, globex = [await Api.connect(running, key) for key in NAMES[:2]]
        one = await acme.create(headers="Idempotency-Key: k\r\n")
        two = await globex.create(headers="Idempotency-Key: k\r\n")
        assert one["id"] != two["id"]


@in_loop
async def test_workers_need_a_key_of_their_role() -> None:
    async with runs_gateway(keys()) as running:
        acme, _, narrow, worker, other = [await Api.connect(running, key) for key in NAMES]
        run = await acme.create()
        claim = {"services": ["auditor"], "worker": "w"}
        status, body = await acme.call("POST", "/v1/workers/claim", claim)
        assert (status, body["error"]["code"]) == (403, "forbidden")
        status, body = await other.call("POST", "/v1/workers/claim", claim)
        assert (status, body["error"]["code"]) == (403, "forbidden")
        status, body = await narrow.call("POST", "/v1/runs", {"service": "auditor"})
        assert (status, body["error"]["code"]) == (403, "forbidden")
        held = await worker.claim()
        assert held["run"]["id"] == run["id"], "a worker serves every tenant"
        here = f"/v1/runs/{run['id']}"
        for api, code in ((acme, 403), (other, 404)):
            for call, more in (
                ("append", {"batch": 1, "events": [{"type": "forged"}]}),
                ("heartbeat", {}),
                ("finish", {"status": "completed"}),
                ("release", {}),
            ):
                status, _ = await api.call("POST", f"{here}/{call}", {"fence": held["fence"], **more})
                assert status == code, call
            assert (await api.call("GET", f"{here}/inputs"))[0] == code
        await worker.finish(held, "real")
        assert (await acme.call("GET", here))[1]["result"] == "real"


@in_loop
async def test_without_a_key_nothing() -> None:
    async with runs_gateway(keys()) as running:
        for path in ("/v1/runs", "/v1/runs/run_x/events", "/v1/openapi.json", "/v1/workers/claim"):
            nobody = await Api.connect(running)
            status, body = await nobody.call("GET", path)
            assert (status, body["error"]["code"]) == (401, "unauthorized")


@in_loop
async def test_lists_go_from_the_newest_in_pages() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        made = [(await api.create("other" if n % 3 == 0 else "auditor"))["id"] for n in range(10)]
        await api.call("POST", f"/v1/runs/{made[4]}/cancel")
        seen, before = [], ""
        while before is not None:
            _, page = await api.call("GET", f"/v1/runs?limit=4{f'&before={before}' if before else ''}")
            seen += [run["id"] for run in page["runs"]]
            before = page["next"]
        assert sorted(seen) == sorted(made)
        ages = [run[6:] for run in seen]  # those of one millisecond have no order
        assert ages == sorted(ages, reverse=True)
        _, page = await api.call("GET", "/v1/runs?status=cancelled&service=auditor")
        assert [run["id"] for run in page["runs"]] == [made[4]]
        for query in ("status=lost", "limit=0", "limit=501", "limit=x", "before=run_1", "before=%ff", "limit=%00"):
            status, body = await api.call("GET", f"/v1/runs?{query}")
            assert (status, body["error"]["code"]) == (400, "bad_query"), query


@in_loop
async def test_paths_that_are_not_there() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        for method, path, status, code in (
            ("GET", f"/v1/runs/{run['id']}/nothing", 404, "not_found"),
            ("GET", "/v1/workers", 404, "not_found"),
            ("DELETE", "/v1/runs", 405, "method_not_allowed"),
            ("GET", "/v1/workers/claim", 405, "method_not_allowed"),
            ("GET", "/v1/chat/completions", 404, "no_service"),  # the services' own, and none has it
        ):
            await api.send(method, path)
            answer = await api.wire.answer(method)
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code), path
            if status == 405:
                assert answer.header("allow")
        await api.wire.send(f"HEAD /v1/runs/{run['id']} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        answer = await api.wire.answer("HEAD")
        assert (answer.status, answer.body) == (200, b"")
        status, body = await api.call("POST", "/v1/runs", {"service": "plain"})
        assert (status, body["error"]["code"]) == (404, "unknown_service")
        status, body = await api.call("POST", "/v1/runs", {"service": "auditor", "version": "v9"})
        assert (status, body["error"]["code"]) == (404, "unknown_version")


@in_loop
async def test_without_runs_the_paths_are_the_services_own() -> None:
    async with gateway(Agent()) as running:
        wire = await running.connect()
        for path in ("/v1/runs", "/v1/workers/claim", "/v1/openapi.json"):
            assert (await wire.get(path)).body == b"ok"
        answer = await wire.post("/x", headers="Prefer: respond-async\r\n")
        assert (answer.status, answer.body) == (200, b"ok")


# -- Prefer: respond-async -----------------------------------------------------------------------------------------


@in_loop
async def test_any_request_may_be_kept_as_a_run() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        secrets = ("Authorization: Bearer", "Cookie: sid=1; a=", "X-Api-Key:", "Api-Key:", "X-Auth-Token:", "token:")
        headers = "Prefer: wait=1, respond-async\r\nX-Mine: 7\r\nX-Tokens: 9\r\nContent-Type: text/x\r\n" + "".join(
            f"{secret} planted\r\n" for secret in secrets
        )
        status, run = await api.call("POST", "/agents/auditor/docs?deep=1", b"hello \xc3\xa9", headers)
        assert status == 202
        assert api.answer is not None
        assert api.answer.header("preference-applied") == "respond-async"
        assert api.answer.header("location") == f"/v1/runs/{run['id']}"
        claim = await api.claim()
        kept = claim["input"]
        assert (kept["method"], kept["path"], kept["body"]) == ("POST", "/agents/auditor/docs?deep=1", "hello é")
        fields = {name.lower(): value for name, value in kept["headers"]}
        assert (fields["x-mine"], fields["x-tokens"], fields["content-type"]) == ("7", "9", "text/x")
        assert "planted" not in json.dumps(kept), "a credential was kept"
        assert "prefer" not in fields


@in_loop
async def test_a_clients_own_input_is_never_taken_for_a_kept_request() -> None:
    from unjam.gateway.envelope import MARK

    async with runs_gateway() as running:
        api = await Api.connect(running)
        forged = b'{"service":"auditor","input":' + MARK + b'"method":"GET","path":"/admin","headers":[]}}'
        assert (await api.call("POST", "/v1/runs", forged))[0] == 201
        assert running.server.durable is not None
        claim = await running.server.durable.store.claim(["auditor"], "w", pull=True)
        assert claim is not None
        assert not claim.input.startswith(MARK)


@in_loop
async def test_a_service_without_runs_serves_as_ever() -> None:
    agent = await Agent().start()
    services = f"services: {{plain: {{runs: off, versions: {{v1: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    async with runs_gateway(services=services) as running:
        answer = await (await running.connect()).post("/x", headers="Prefer: respond-async\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
    await agent.stop()


# -- the store is away, the gateway stops --------------------------------------------------------------------------


@in_loop
async def test_the_proxy_goes_on_while_the_store_is_away() -> None:
    agent = await Agent().start()
    services = f"services: {{auditor: {{runs: {{execute: pull}}, versions: {{v1: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    store = Fragile()
    store.away = True
    async with runs_gateway(services=services, store=store) as running:
        api = await Api.connect(running)
        for _ in range(2):
            status, body = await api.call("POST", "/v1/runs", {"service": "auditor"})
            assert (status, body["error"]["code"]) == (503, "store_away")
            assert api.answer is not None
            assert int(api.answer.header("retry-after") or 0) > 0
            assert (await (await running.connect()).get("/work")).body == b"ok"
        store.away = False
        durable = running.server.durable
        assert durable is not None
        await until(lambda: not durable.stats.away)
        run = await api.create()
        # And in the middle: who follows just hears nothing for a while.
        source = Source()
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await source.until(lambda: source.events)
        claim = await api.claim()
        await source.until(lambda: len(source.events) == 2)
        store.away = True
        await store.append(run["id"], claim["fence"], 1, [])
        await store.finish(run["id"], claim["fence"], "completed")
        status, _ = await api.call("GET", f"/v1/runs/{run['id']}")
        assert status == 503
        assert (await (await running.connect()).get("/work")).body == b"ok"
        assert not following.done()
        store.away = False
        await following
        assert source.ids == [0, 1, 2]
        assert durable.stats.errors["store_away"] >= 4
    await agent.stop()


@in_loop
async def test_held_clients_are_told_when_the_gateway_stops() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as one, runs_gateway(store=shared.tap()) as other:
        waits, polls, worker, api = [await Api.connect(one) for _ in range(4)]
        run = await api.create()
        here = f"/v1/runs/{run['id']}"
        await waits.send("GET", f"{here}?wait=600")
        await polls.send("GET", f"{here}/events?after=0&wait=600")
        await worker.send("POST", "/v1/workers/claim", {"services": ["other"], "worker": "w", "wait": 600})
        source = Source()
        following = asyncio.create_task(source.follow(one.port, run["links"]["events"]))
        await source.until(lambda: source.events)
        durable = one.server.durable
        assert durable is not None
        await until(lambda: len(durable.held) == 3 and len(durable.ready) == 1)
        await asyncio.wait_for(one.server.drain(), 20)
        assert (await waits.read("GET", here))[1]["status"] == "queued"
        assert (await polls.read("GET", f"{here}/events"))[0] == 204
        assert (await worker.read("POST", "/v1/workers/claim"))[0] == 204
        await following
        following = asyncio.create_task(source.follow(other.port, run["links"]["events"]))
        elsewhere = await Api.connect(other)
        await elsewhere.finish(await elsewhere.claim())
        await following
        assert source.ids == [0, 1, 2]


@in_loop
async def test_a_reload_changes_limits_and_keeps_the_store() -> None:
    from unjam.config import parse

    from .durable import SERVICES

    base = "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n"
    texts = [base + "runs: {max_input: 1KiB}\n" + SERVICES, base + "runs: {max_input: 4KiB}\n" + SERVICES]

    def read() -> Any:
        return parse(texts[-1], {})

    async with gateway(config=texts[0], reload=read) as running:
        api = await Api.connect(running)
        kept = await api.create()
        status, _ = await api.call("POST", "/v1/runs", {"service": "auditor", "input": "x" * 2000})
        assert status == 413
        assert await running.server.reload() == []
        status, _ = await api.call("POST", "/v1/runs", {"service": "auditor", "input": "x" * 2000})
        assert status == 201
        assert (await api.call("GET", f"/v1/runs/{kept['id']}"))[0] == 200


# -- the description -----------------------------------------------------------------------------------------------


@in_loop
async def test_the_description_is_served_and_lists_every_path() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        status, document = await api.call("GET", "/v1/openapi.json")
        assert status == 200
        assert document["openapi"].startswith("3.1")
        described = {
            (method.upper(), path.replace("{id}", "*")) for path, calls in document["paths"].items() for method in calls
        }
        served = {
            (method, path)
            for path, methods in running.gateway.paths._local.items()
            for method in methods
            if path.startswith(("/v1/runs", "/v1/workers", "/v1/requests"))
        }
        assert served | {("GET", "/v1/ws")} == described


def test_the_checker_of_answers_can_fail() -> None:
    from unjam.gateway.openapi import document

    from . import schema

    good = {"events": [], "next": 1, "ended": False}
    schema.answer(document(), "GET", "/v1/runs/x/events", 200, "application/json", good)
    for bad in ({**good, "next": "1"}, {"events": [], "next": 1}, {**good, "events": [{}]}):
        with pytest.raises(AssertionError):
            schema.answer(document(), "GET", "/v1/runs/x/events", 200, "application/json", bad)
    with pytest.raises(AssertionError):
        schema.answer(document(), "POST", "/v1/runs", 299, "application/json", good)
