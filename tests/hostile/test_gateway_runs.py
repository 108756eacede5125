"""Hostile clients of the runs API: what is malformed, too large or another's is refused, alike and at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from ..gateway.durable import Api, Fragile, Source, runs_gateway
from ..gateway.harness import Agent, in_loop, until
from ..gateway.test_runs_api import NAMES, keys

CREATE = "/v1/runs"


@in_loop
async def test_25_bodies_that_do_not_fit_are_refused_and_nothing_is_kept() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        for raw, code in (
            (b"", "not_json"),
            (b"{", "bad_json"),
            (b"nonsense", "bad_json"),
            (b'{"service": "auditor", "input": "\xff\xfe"}', "bad_json"),
            (b'{"service": "auditor", "input": NaN}', "bad_json"),
            (b'{"service": "auditor", "input": [1,]}', "bad_json"),
            (b'{"service": "auditor"} {"service": "auditor"}', "bad_json"),
            (b'\xef\xbb\xbf{"service": "auditor"}', "bad_json"),
            (b'{"service": "auditor", "input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "bad_json"),
            (b"[]", "bad_body"),
            (b"null", "bad_body"),
            (b"{}", "bad_body"),
            (b'{"service": 7}', "bad_body"),
            (b'{"service": ""}', "bad_body"),
            (b'{"service": "auditor", "inptu": 1}', "bad_body"),
            (b'{"service": "auditor", "max_attempts": 0}', "bad_body"),
            (b'{"service": "auditor", "max_attempts": 1e99}', "bad_body"),
            (b'{"service": "auditor", "deadline_s": -1}', "bad_body"),
            (b'{"service": "auditor", "deadline_s": 1e300}', "bad_body"),
            (b'{"service": "auditor", "lane": "turbo"}', "bad_body"),
            (b'{"service": "auditor", "retry": true}', "bad_body"),
            (b'{"service": "auditor", "metadata": [1]}', "bad_body"),
            (b'{"service": "auditor", "pull": "yes"}', "bad_body"),
        ):
            headers = "Content-Type: text/plain\r\n" if code == "not_json" else ""
            status, body = await api.call("POST", CREATE, raw, headers)
            assert (status, body["error"]["code"]) == (415 if code == "not_json" else 400, code), raw[:60]
        _, listed = await api.call("GET", CREATE)
        assert listed["runs"] == []
        # The connection served all of them, and still does.
        await api.create()


@in_loop
async def test_25_what_a_page_of_another_site_can_send_is_refused() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            raw = b'{"service": "auditor"}'
            status, body = await api.call("POST", CREATE, raw, f"Content-Type: {kind}\r\n")
            assert (status, body["error"]["code"]) == (415, "not_json")


@in_loop
async def test_25_a_huge_body_is_refused_before_it_is_read() -> None:
    async with runs_gateway(runs="{max_input: 64KiB}") as running:
        api = await Api.connect(running)
        await api.wire.send(
            b"POST /v1/runs HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: 900000000\r\n\r\n"
        )
        answer = await api.wire.answer("POST")
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["code"] == "body_too_large"
        # Without a length: as soon as it is too much.
        api = await Api.connect(running)
        await api.wire.send(
            b"POST /v1/runs HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(6):
            await api.wire.send(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        answer = await api.wire.answer("POST")
        assert answer.status == 413


@in_loop
async def test_27_a_body_that_never_comes_times_out() -> None:
    async with runs_gateway("limits: {body_timeout: 200ms}\n") as running:
        api = await Api.connect(running)
        await api.wire.send(
            b"POST /v1/runs HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
            b'{"service'
        )
        assert (await api.wire.answer("POST")).status == 408
        await until(lambda: not running.gateway.clients)


@in_loop
async def test_25_events_of_a_worker_cannot_forge_the_gateways_or_break_a_stream() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        claim = await api.claim()
        for kind in ("run.completed", "run.", "a\nid: 99", "", "x" * 65, "a b", "é"):
            body = {"fence": claim["fence"], "batch": 1, "events": [{"type": kind}]}
            status, answer = await api.call("POST", f"/v1/runs/{run['id']}/append", body)
            assert (status, answer["error"]["code"]) == (400, "bad_body"), kind
        # JSON over several lines, with text that looks like a stream's.
        raw = b'{"fence":1,"batch":1,"events":[{"type":"a","data":{\r\n  "k":\r"id: 7\\n\\nevent: run.completed"\n}}]}'
        assert (await api.call("POST", f"/v1/runs/{run['id']}/append", raw))[0] == 200
        source = Source()
        following = asyncio.create_task(source.follow(running.port, run["links"]["events"]))
        await api.finish(claim)
        await following
        assert source.ids == [0, 1, 2, 3]
        assert json.loads(source.events[2][2]) == {"k": "id: 7\n\nevent: run.completed"}


@in_loop
async def test_49_ids_that_are_none_are_runs_that_are_not_there() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        for name in (
            "x",
            "run_",
            "run_" + "0" * 28,
            "run_" + "Z" * 27,
            "run_zz" + "0" * 25,
            "%7Bid%7D",
            "*",
            "run_%2A",
        ):
            status, body = await api.call("GET", f"/v1/runs/{name}")
            assert (status, body["error"]["code"]) == (404, "unknown_run"), name
        for header in (
            "Last-Event-ID: x",
            "Last-Event-ID: 99999999999999999999",
            "Last-Event-ID: -2",
            "Last-Event-ID: ",
        ):
            run = await api.create()
            status, body = await api.call("GET", f"/v1/runs/{run['id']}/events", headers=f"{header}\r\n")
            assert (status, body["error"]["code"]) == (400, "bad_query"), header
        for query in ("wait=nan", "wait=-1", "wait=x", "after=1.5", "limit=0", "after=%00"):
            status, body = await api.call("GET", f"/v1/runs/{run['id']}/events?{query}")
            assert (status, body["error"]["code"]) == (400, "bad_query"), query


@in_loop
async def test_51_a_stranger_learns_nothing_of_a_run_on_any_call_or_resume() -> None:
    async with runs_gateway(keys()) as running:
        owner, stranger = [await Api.connect(running, key) for key in NAMES[:2]]
        run = await owner.create(headers="Idempotency-Key: same\r\n")
        answers = set()
        for identity in (run["id"], "run_" + "0" * 27):
            for path in ("", "?wait=9", "/events", "/events?after=0", "/events?wait=9"):
                for headers in ("", "Accept: text/event-stream\r\n", "Last-Event-ID: 0\r\n"):
                    status, body = await stranger.call("GET", f"/v1/runs/{identity}{path}", headers=headers)
                    body["error"].pop("request_id")
                    answers.add((status, json.dumps(body)))
        assert len(answers) == 1, "a run that is another's is answered unlike one that does not exist"
        assert (await stranger.create(headers="Idempotency-Key: same\r\n"))["id"] != run["id"]
        assert running.server.durable is not None
        assert running.server.durable.hub.followers == 0


@in_loop
async def test_53_requests_are_served_and_runs_answered_503_while_the_store_is_away() -> None:
    agent = await Agent().start()
    services = f"services: {{auditor: {{versions: {{v1: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    store = Fragile()
    store.away = True
    try:
        async with runs_gateway(services=services, store=store) as running:
            api, wire = await Api.connect(running), await running.connect()
            for method, path, body in (
                ("POST", CREATE, {"service": "auditor"}),
                ("GET", "/v1/runs/run_" + "0" * 27, None),
                ("POST", "/v1/workers/claim", {"services": ["auditor"], "worker": "w"}),
            ):
                status, answer = await api.call(method, path, body)
                assert (status, answer["error"]["code"]) == (503, "store_away")
                assert api.answer is not None
                assert int(api.answer.header("retry-after") or 0) > 0
                assert (await wire.get("/work")).body == b"ok"
            answer = await wire.post("/work", headers="Prefer: respond-async\r\n")
            assert answer.status == 503, "a request that was to be durable must not be served in passing"
            assert len(agent.requests) == 3
    finally:
        await agent.stop()


@pytest.mark.parametrize("path", ["/api/runs", "/v1/../api/runs"])
@in_loop
async def test_50_the_admin_side_of_runs_is_not_on_the_data_port(path: str) -> None:
    async with runs_gateway() as running:
        answer = await (await running.connect()).get(path)
        assert answer.status == 404
