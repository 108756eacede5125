"""Workers in the balancer's view, through a real gateway: what a claim is given, what its lease counts for, what other
gateways see of it."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

from unjam.core.model import Outcome
from unjam.runs.model import NewRun, WorkerInfo
from unjam.runs.store.memory import MemoryStore

from . import durable as made
from .durable import Api, Shared, runs_gateway
from .harness import Running, in_loop, until

TWO = """
services:
  auditor:
    match: {path: /agents/auditor}
    runs: {execute: pull}
    breaker: {open: 60s}
    versions:
      v7: {endpoints: ["http://127.0.0.1:9"], weight: 1}
      v8: {endpoints: ["http://127.0.0.1:9"], weight: 9}
"""


async def claim(api: Api, worker: str = "w1", service: str = "auditor", **more: Any) -> Any:
    status, found = await api.call("POST", "/v1/workers/claim", {"services": [service], "worker": worker, **more})
    assert status in (200, 204), found
    return found


async def finish(api: Api, claimed: Any, status: str = "completed", **more: Any) -> Any:
    body = {"fence": claimed["fence"], "status": status, **more}
    answer, found = await api.call("POST", f"/v1/runs/{claimed['run']['id']}/finish", body)
    assert answer == 200, found
    return found


def workers(running: Running, version: str = "v1", service: str = "auditor") -> dict[str, dict[str, Any]]:
    state = running.server.gateway.balancer.snapshot(asyncio.get_running_loop().time())
    return {entry["name"]: entry for entry in state["services"][service]["versions"][version]["workers"]}


def refused(running: Running) -> dict[tuple[str, str], int]:
    assert running.server.durable is not None
    return running.server.durable.stats.claims_refused


@in_loop
async def test_a_claimed_run_holds_a_slot_until_it_ends() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        await api.create()
        await api.create()
        claimed = await claim(api, slots=1, running=0)
        seen = workers(running)["w1"]
        assert (seen["kind"], seen["slots"], seen["inflight"], seen["why"]) == ("worker", 1, 1, ["full"])
        assert running.server.gateway.balancer.leases == 1
        assert await claim(api, slots=1) is None
        assert refused(running) == {("auditor", "slots"): 1}
        await finish(api, claimed)
        service = running.server.gateway.balancer.services["auditor"]
        assert (service.ended[Outcome.OK], service.live) == (1, 0)
        assert await claim(api, slots=1) is not None
        bucket = service.estimator.bucket("RUN s1")
        assert bucket.weight > 0.0


@in_loop
async def test_a_service_of_workers_alone_needs_no_endpoints() -> None:
    services = "services: {auditor: {runs: {execute: pull}, versions: {v1: {}}}}\n"
    async with runs_gateway(services=services) as running:
        api = await Api.connect(running)
        await api.create()
        claimed = await claim(api)
        assert workers(running)["w1"]["inflight"] == 1
        assert (await finish(api, claimed))["run"]["status"] == "completed"
        breaker = running.server.gateway.balancer.services["auditor"].versions[0].breaker
        assert breaker.closed, "no endpoint is away, as there never was one"
        assert (await api.call("GET", "/anything"))[0] == 404, "it takes no requests"


@in_loop
async def test_an_end_told_twice_counts_once() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        await api.create()
        claimed = await claim(api)
        await finish(api, claimed)
        assert not (await finish(api, claimed))["changed"]
        assert running.server.gateway.balancer.services["auditor"].ended[Outcome.OK] == 1


@in_loop
async def test_how_a_run_ended_is_how_its_lease_did() -> None:
    async with runs_gateway(
        services=made.SERVICES.replace("execute: pull", "execute: pull, max_attempts: 9")
    ) as running:
        api = await Api.connect(running)
        for status, error in (
            ("completed", None),
            ("failed", "bad_input"),
            ("failed", "invalid_pages"),
            ("failed", "worker_error"),
            ("cancelled", None),
        ):
            await api.create()
            more = {} if error is None else {"error": {"code": error, "message": "m"}}
            await finish(api, await claim(api), status, **more)
        await api.create()
        back = await claim(api)
        run = back["run"]["id"]
        assert (await api.call("POST", f"/v1/runs/{run}/release", {"fence": back["fence"]}))[0] == 200
        ended = running.server.gateway.balancer.services["auditor"].ended
        assert {outcome.value: count for outcome, count in ended.items() if count} == {
            "ok": 1,
            "client_error": 2,
            "server_error": 1,
            "cancelled": 2,
        }
        assert workers(running)["w1"]["failed"] == 1


@in_loop
async def test_a_lost_worker_gives_its_slot_back_and_counts_as_a_timeout() -> None:
    clock = [1000.0]
    store = MemoryStore(monotonic=lambda: clock[0])
    async with runs_gateway(store=store) as running:
        api = await Api.connect(running)
        await api.create()
        await claim(api)
        for _ in range(60):  # sweeps go on meanwhile: time in which nobody sweeps ends no lease
            clock[0] += 1.0
            await store.sweep(0)
        service = running.server.gateway.balancer.services["auditor"]
        await until(lambda: service.ended[Outcome.TIMEOUT] == 1)
        assert service.live == 0


@in_loop
async def test_whoever_sweeps_a_slot_is_given_back() -> None:
    """A push that was given up sweeps too, and may come before the gateway's own turn."""
    clock = [1000.0]
    store = MemoryStore(monotonic=lambda: clock[0])
    async with runs_gateway(store=store) as running:
        api = await Api.connect(running)
        await api.create()
        await claim(api)
        durable, balancer = running.server.durable, running.server.gateway.balancer
        assert durable is not None
        for _ in range(60):
            clock[0] += 1.0
            await store.sweep(0)
        assert len(await durable.store.sweep()) == 1
        assert (balancer.leases, balancer.services["auditor"].ended[Outcome.TIMEOUT]) == (0, 1)


@in_loop
async def test_a_drained_worker_gets_nothing_and_says_why() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        assert await claim(api, slots=2) is None
        balancer = running.server.gateway.balancer
        (worker,) = balancer.workers.named("w1")
        balancer.drain(worker, True, 0.0)
        await api.create()
        assert await claim(api, slots=2) is None
        assert refused(running) == {("auditor", "draining"): 1}
        assert "draining" in workers(running)["w1"]["why"]
        assert await claim(api, "w2") is not None


@in_loop
async def test_a_held_claim_goes_on_when_what_kept_it_is_over() -> None:
    async with runs_gateway(services=TWO) as running:
        api, other = await Api.connect(running), await Api.connect(running)
        balancer = running.server.gateway.balancer
        balancer.set_weight("auditor", "v7", 0.0, 0.0)
        await other.create()
        body = {"services": ["auditor"], "worker": "w1", "version": "v7", "wait": 20}
        await api.send("POST", "/v1/workers/claim", body)
        await until(lambda: refused(running) == {("auditor", "weight"): 1})
        assert workers(running, "v7")["w1"]["why"] == ["version has no weight"]
        balancer.set_weight("auditor", "v7", 1.0, 0.0)
        status, found = await api.read("POST", "/v1/workers/claim")
        assert status == 200
        assert found["run"]["version"] == "v7"


@in_loop
async def test_an_open_breaker_keeps_the_version_s_workers_from_new_runs() -> None:
    async with runs_gateway(services=TWO) as running:
        api = await Api.connect(running)
        running.server.gateway.balancer.trip("auditor", "v8", asyncio.get_running_loop().time())
        await api.create()
        assert await claim(api, version="v8") is None
        assert refused(running) == {("auditor", "breaker"): 1}
        assert await claim(api, version="v7") is not None


@in_loop
async def test_a_worker_at_its_heavy_share_still_takes_fast_runs() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        for lane in ("heavy", "heavy", "fast"):
            await api.create(lane=lane)
        claims = [await claim(api, slots=2, lanes=["heavy", "fast"]) for _ in range(2)]
        assert [each["run"]["lane"] for each in claims] == ["heavy", "fast"]
        assert "no more heavy work" in " ".join(workers(running)["w1"]["why"]) or workers(running)["w1"]["heavy"] == 1


@in_loop
async def test_what_a_worker_says_of_its_machine_is_seen_and_heeded() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        await api.create()
        gib = 1 << 30
        load = {"cores": 8, "memory": 16 * gib, "memory_free": gib // 8, "cpu": 0.2}
        assert await claim(api, slots=4, load=load) is None
        seen = workers(running)["w1"]
        assert seen["load"]["sources"]["worker"]["memory_free"] == gib // 8
        assert seen["why"][0].startswith("memory short")
        assert await claim(api, slots=4, load={**load, "memory_free": 8 * gib}) is not None
        status, found = await api.call(
            "POST", "/v1/workers/claim", {"services": ["auditor"], "worker": "w1", "load": {"speed": 1}}
        )
        assert (status, found["error"]["code"]) == (400, "bad_body")


@in_loop
async def test_a_version_that_is_not_there_is_an_error() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        body = {"services": ["auditor"], "worker": "w1", "version": "v9"}
        status, found = await api.call("POST", "/v1/workers/claim", body)
        assert (status, found["error"]["code"]) == (404, "unknown_version")
        status, found = await api.call("POST", "/v1/runs", {"service": "auditor", "input": 1, "version": "v9"})
        assert (status, found["error"]["code"]) == (404, "unknown_version")


@in_loop
async def test_a_run_keeps_to_the_version_that_began_it_until_that_is_gone() -> None:
    async with runs_gateway(services=TWO) as running:
        api = await Api.connect(running)
        await api.create()
        pinned = await api.create(version="v8")
        first = await claim(api, "old", version="v7")
        assert first["run"]["version"] == "v7"
        assert (await api.call("POST", f"/v1/runs/{first['run']['id']}/release", {"fence": first["fence"]}))[0] == 200
        assert (await claim(api, "new", version="v8"))["run"]["id"] == pinned["id"]
        assert await claim(api, "new", version="v8") is None
        assert (await claim(api, "old", version="v7"))["run"]["id"] == first["run"]["id"]


@in_loop
async def test_a_worker_that_was_there_before_the_gateway_is_seen_by_its_sign_of_life() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as running:
        api = await Api.connect(running)
        run, _ = await shared.store.create(NewRun(service="auditor", input=b"1", digest=b"", pull=True))
        claimed = await shared.store.claim(["auditor"], "w1", pull=True)
        assert claimed is not None
        assert (await api.call("POST", f"/v1/runs/{run.id}/heartbeat", {"fence": 1}))[0] == 200
        seen = workers(running)["w1"]
        assert (seen["inflight"], seen["slots"]) == (1, 1)
        assert (await api.call("POST", f"/v1/runs/{run.id}/finish", {"fence": 1, "status": "completed"}))[0] == 200
        assert running.server.gateway.balancer.services["auditor"].ended[Outcome.OK] == 1


@in_loop
async def test_what_ended_by_another_gateway_gives_the_slot_back() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as here, runs_gateway(store=shared.tap()) as there:
        one, two = await Api.connect(here), await Api.connect(there)
        await one.create()
        claimed = await claim(one)
        await finish(two, claimed)
        assert here.server.durable is not None
        here.server.durable.workers.lost(claimed["run"]["id"], claimed["fence"])
        service = here.server.gateway.balancer.services["auditor"]
        await until(lambda: service.ended[Outcome.OK] == 1)


@in_loop
async def test_other_gateways_show_a_worker_and_those_that_ask_the_store_itself() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as here, runs_gateway(store=shared.tap()) as there:
        api = await Api.connect(here)
        await claim(api, slots=3)
        await shared.store.announce(WorkerInfo(id="direct", services=("auditor",), slots=2, running=1), 60)
        assert here.server.durable is not None
        assert there.server.durable is not None
        await here.server.durable.workers.exchange()
        await there.server.durable.workers.exchange()
        seen = workers(there)
        assert seen["w1"]["why"] == ["asks another gateway"]
        assert (seen["w1"]["slots"], seen["direct"]["inflight"]) == (3, 1)
        assert seen["direct"]["why"] == ["asks the store itself"]
        assert set(workers(here)) == {"w1", "direct"}
        assert workers(here)["w1"]["via"] == ""


@in_loop
async def test_a_held_claim_keeps_its_worker_in_the_view_and_a_silent_one_leaves_it() -> None:
    async with runs_gateway() as running:
        api, held = await Api.connect(running), await Api.connect(running)
        await claim(api, "gone")
        await held.send("POST", "/v1/workers/claim", {"services": ["auditor"], "worker": "held", "wait": 20})
        await until(lambda: "held" in workers(running))
        for worker in running.server.gateway.balancer.workers.seen.values():
            worker.seen -= 60.0
        assert running.server.durable is not None
        await running.server.durable.workers.look()
        assert set(workers(running)) == {"held"}
        held.wire.close()
        await until(lambda: workers(running)["held"]["claiming"] == 0)


@in_loop
async def test_inputs_are_held_until_one_is_sent() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as running, runs_gateway(store=shared.tap()) as other:
        worker, client, elsewhere = await Api.connect(running), await Api.connect(running), await Api.connect(other)
        run = await client.create()
        await claim(worker)
        path = f"/v1/runs/{run['id']}/inputs"
        assert running.server.durable is not None
        for api, n in ((client, 1), (elsewhere, 2)):
            await worker.send("GET", f"{path}?after={n - 1}&wait=20")
            await until(lambda: len(running.server.durable.given) == 1)  # type: ignore[union-attr]
            await api.call("POST", f"/v1/runs/{run['id']}/input", {"data": n})
            assert await worker.read("GET", path) == (200, {"inputs": [{"n": n, "data": n}]})
        assert await worker.call("GET", f"{path}?after=2") == (200, {"inputs": []})
        assert len(running.server.durable.given) == 0


@in_loop
async def test_a_tenant_has_so_many_waiting_runs_and_others_have_theirs() -> None:
    given = {"a": "key-of-a-0123456789", "b": "key-of-b-0123456789"}
    keys = "keys:\n" + "".join(
        f'  - {{tenant: {name}, hash: "sha256:{sha256(key.encode()).hexdigest()}"}}\n' for name, key in given.items()
    )
    services = made.SERVICES.replace("runs: {execute: pull}", "runs: {execute: pull, max_queued_tenant: 2}")
    async with runs_gateway(keys, services=services) as running:
        a = await Api.connect(running, given["a"])
        b = await Api.connect(running, given["b"])
        await a.create()
        await a.create()
        status, found = await a.call("POST", "/v1/runs", {"service": "auditor", "input": 1})
        assert (status, found["error"]["code"]) == (429, "tenant_queue_full")
        assert a.answer is not None
        assert a.answer.header("retry-after")
        await a.create("other")
        await b.create()


@in_loop
async def test_an_ended_run_can_be_deleted_and_no_other() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        path = f"/v1/runs/{run['id']}"
        status, found = await api.call("DELETE", path)
        assert (status, found["error"]["code"]) == (409, "run_not_ended")
        await api.call("POST", f"{path}/cancel")
        assert (await api.call("DELETE", path))[0] == 204
        assert (await api.call("GET", path))[0] == 404
        assert (await api.call("DELETE", path))[0] == 404


@in_loop
async def test_a_deleted_response_is_gone_at_every_gateway() -> None:
    shared = Shared()
    services = "\n".join(made.SERVICES.splitlines()[:6]) + "\n"
    async with (
        runs_gateway(services=services, store=shared.tap()) as here,
        runs_gateway(services=services, store=shared.tap()) as there,
    ):
        one, two = await Api.connect(here), await Api.connect(there)
        responses = []
        for _ in range(2):
            body = {"model": "auditor", "input": "x", "background": True}
            status, response = await one.call("POST", "/v1/responses", body)
            assert status == 200, response
            responses.append(f"/v1/responses/{response['id']}")
        claimed = await claim(two)
        for path in responses:
            assert (await one.call("DELETE", path))[0] == 200
        assert (await one.call("GET", responses[0]))[0] == 404
        assert (await two.call("GET", responses[1]))[0] == 404
        # The one that runs is gone everywhere when its worker has heard of it.
        await finish(two, claimed, "cancelled")
        async with asyncio.timeout(20):
            while (await two.call("GET", responses[0]))[0] != 404:
                await asyncio.sleep(0.05)


@in_loop
async def test_a_drain_holds_for_a_worker_s_other_services_and_ends_when_it_leaves() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        await claim(api)
        before, trouble = await running.server.changes.drain("w1", True, "me")
        assert (before, trouble) == (False, "")
        await api.create("other")
        assert await claim(api, service="other") is None
        assert "draining" in workers(running, service="other")["w1"]["why"]
        for worker in running.server.gateway.balancer.workers.seen.values():
            worker.seen -= 60.0
        assert running.server.durable is not None
        await running.server.durable.workers.look()
        await until(lambda: running.server.changes.value("drain/w1") is False)
        assert await claim(api, service="other") is not None
