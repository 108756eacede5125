"""Operators and runs: the admin API and `unjam runs` against a real gateway; metrics and log."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from unjam.cli.main import app
from unjam.gateway import durable as durable_module
from unjam.runs.store.memory import MemoryStore

from .durable import SERVICES, Api, Fragile, Source, runs_gateway
from .harness import Running, gateway, in_loop, until

ADMIN = "admin: 127.0.0.1:0\n"


async def unjam(running: Running, *words: str) -> tuple[int, str]:
    """The command, as it would run in another process: its own blocking client, in a thread."""
    assert running.server.admin is not None
    url = f"http://127.0.0.1:{running.server.admin.port}"
    result = await asyncio.to_thread(CliRunner().invoke, app, ["runs", *words, "--admin", url])
    # The gateway is of this very process, so what it logs meanwhile is caught too.
    lines = [line for line in result.output.splitlines(keepends=True) if " component=" not in line]
    return result.exit_code, "".join(lines)


async def admin(running: Running, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    assert running.server.admin is not None
    port = running.server.admin.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    writer.write(
        f"{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    raw = await reader.read()
    writer.close()
    head, _, text = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), text.decode() if path == "/metrics" else json.loads(text)


def metric(page: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found, f"{name} is not in\n" + "\n".join(line for line in page.splitlines() if "unjam_runs" in line)
    return float(found[1])


class Lossy(MemoryStore):
    """Its leases run out when the test says so."""

    def __init__(self) -> None:
        self.skipped = 0.0
        super().__init__(monotonic=self.time)

    def time(self) -> float:
        return asyncio.get_event_loop().time() + self.skipped


@in_loop
async def test_operators_list_show_cancel_and_requeue() -> None:
    store = Lossy()
    async with runs_gateway(ADMIN, store=store) as running:
        api = await Api.connect(running)
        secret = "planted-in-the-input"
        lost = await api.create(given=secret, max_attempts=1)
        await asyncio.sleep(0.002)  # of two runs of one millisecond either may be listed first
        waits = await api.create("other")
        claim = await api.claim()
        await api.emit(claim, 1, secret)
        await api.call("POST", f"/v1/runs/{lost['id']}/heartbeat", {"fence": 1, "checkpoint": secret})
        for _ in range(40):  # of which no sweep misses any: time in which nobody sweeps ends no lease
            store.skipped += 1.0
            await store.sweep(0)

        async def is_failed() -> bool:
            return (await store.get(lost["id"])).status == "failed"

        async with asyncio.timeout(20):
            while not await is_failed():  # the gateway's own sweep, once a second
                await asyncio.sleep(0.05)

        code, out = await unjam(running, "list")
        assert code == 0, out
        assert lost["id"] in out
        assert waits["id"] in out
        assert re.search(rf"^run +status +service +created +attempt\n{waits['id']}  queued  +other +\S+ s ago", out)
        code, out = await unjam(running, "list", "--limit", "1")
        assert f"older ones: --before {waits['id']}" in out
        code, out = await unjam(running, "list", "--status", "queued", "--service", "other", "--json")
        assert [run["id"] for run in json.loads(out)["runs"]] == [waits["id"]]
        code, out = await unjam(running, "dead")
        assert lost["id"] in out
        assert "attempts_exhausted" in out
        assert waits["id"] not in out

        code, out = await unjam(running, "show", lost["id"])
        assert code == 0
        assert "attempts_exhausted" in out
        assert re.search(r"run\.failed", out)
        assert re.search(r"^worker +w1$", out, re.MULTILINE)
        assert re.search(r"^attempt +1 of 1$", out, re.MULTILINE)
        assert re.search(r"^ended +\S+Z, [\d.]+ s after it began$", out, re.MULTILINE)
        assert re.search(r"^error +attempts_exhausted: ", out, re.MULTILINE)
        code, json_out = await unjam(running, "show", lost["id"], "--json")
        assert secret not in out + json_out, "what a run was given or said is its tenant's"

        assert await unjam(running, "requeue", lost["id"]) == (0, f"{lost['id']} waits again.\n")
        again = await api.claim()
        assert (again["run"]["id"], again["fence"], again["checkpoint"]) == (lost["id"], 2, secret)
        code, out = await unjam(running, "requeue", lost["id"])
        assert code == 1
        assert "running" in out

        code, out = await unjam(running, "cancel", lost["id"])
        assert (code, out) == (0, f"{lost['id']} is running; its worker is told to stop.\n")
        assert (await api.emit(again, 1, "x"))["cancel"]
        assert await unjam(running, "cancel", waits["id"]) == (0, f"{waits['id']} is cancelled.\n")
        assert await unjam(running, "cancel", waits["id"]) == (0, f"{waits['id']} was cancelled already.\n")
        await api.finish(again)
        assert await unjam(running, "cancel", lost["id"]) == (0, f"{lost['id']} has ended already: completed.\n")
        code, out = await unjam(running, "show", "run_" + "0" * 27)
        assert code == 1
        assert "There is no such run" in out


@in_loop
async def test_metrics_tell_what_became_of_runs() -> None:
    store = Lossy()
    async with runs_gateway(ADMIN, store=store) as running:
        api = await Api.connect(running)
        done, stopped = await api.create(), await api.create()
        await api.create("other", headers="Idempotency-Key: k\r\n")
        await api.create("other", headers="Idempotency-Key: k\r\n")
        await api.finish(await api.claim())
        await api.call("POST", f"/v1/runs/{stopped['id']}/cancel")
        source = Source()
        held = await Api.connect(running)
        waits = await api.create()
        following = asyncio.create_task(source.follow(running.port, waits["links"]["events"]))
        await source.until(lambda: source.events)
        await held.send("POST", "/v1/workers/claim", {"services": ["other", "plain"], "worker": "w"})
        assert (await held.read("POST", "/v1/workers/claim"))[0] == 404
        worker = await Api.connect(running)
        await worker.claim("other")
        await worker.send("POST", "/v1/workers/claim", {"services": ["other"], "worker": "w", "wait": 60})
        durable = running.server.durable
        assert durable is not None
        await until(lambda: len(durable.ready) == 1)
        await api.call("GET", f"/v1/runs/run_{'0' * 27}")
        durable.stats.depth = await durable.store.depth()
        _, page = await admin(running, "GET", "/metrics")
        assert metric(page, 'unjam_runs_created_total{service="auditor"}') == 3
        assert metric(page, 'unjam_runs_created_total{service="other"}') == 1
        assert metric(page, 'unjam_runs_ended_total{service="auditor",status="completed"}') == 1
        assert metric(page, 'unjam_runs_ended_total{service="auditor",status="cancelled"}') == 1
        assert metric(page, 'unjam_runs_store_errors_total{code="unknown_run"}') == 1
        assert metric(page, 'unjam_runs_queued{service="auditor"}') == 1
        assert metric(page, 'unjam_runs_running{service="other"}') == 1
        assert metric(page, "unjam_runs_followers") == 1
        assert metric(page, "unjam_runs_followed") == 1
        assert metric(page, "unjam_runs_claims_waiting") == 1
        assert metric(page, "unjam_runs_store_up") == 1
        assert metric(page, "unjam_held_streams") == 1
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await until(lambda: durable.hub.followers == 0)
        assert done["status"] == "queued"


@in_loop
async def test_the_log_tells_once_that_the_store_is_away_and_back(capfd: pytest.CaptureFixture[str]) -> None:
    store = Fragile()
    async with runs_gateway(ADMIN, store=store) as running:
        api = await Api.connect(running)
        run = await api.create()
        store.away = True
        for _ in range(3):
            assert (await api.call("GET", f"/v1/runs/{run['id']}"))[0] == 503
        _, page = await admin(running, "GET", "/metrics")
        assert metric(page, "unjam_runs_store_up") == 0
        status, body = await admin(running, "GET", f"/api/runs/{run['id']}")
        assert (status, body["error"]["code"]) == (503, "store_away")
        assert "Why: connection refused." in body["error"]["message"], "operators are told what lies behind the gateway"
        assert (await admin(running, "GET", "/api/state"))[1]["store_away"] == "connection refused"
        store.away = False
        assert (await api.call("GET", f"/v1/runs/{run['id']}"))[0] == 200
        assert "store_away" not in (await admin(running, "GET", "/api/state"))[1]
    said = "".join(capfd.readouterr())
    assert said.count("store_away") == 1
    assert said.count("store_back") == 1


@in_loop
async def test_what_ended_long_ago_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_module, "HOUSEKEEP", 0.02)
    wall = [1_700_000_000.0]
    store = MemoryStore(clock=lambda: wall[0])
    async with runs_gateway(runs="{keep: 2h}", store=store) as running:
        api = await Api.connect(running)
        kept = await api.create("other")
        run = await api.create(deadline_s=2_000_000)
        await api.call("POST", f"/v1/runs/{run['id']}/cancel")
        wall[0] += 2 * 3600 + 1

        async def known() -> bool:
            return (await api.call("GET", f"/v1/runs/{run['id']}"))[0] == 200

        async with asyncio.timeout(20):
            while await known():
                await asyncio.sleep(0.01)
        assert (await api.call("GET", f"/v1/runs/{kept['id']}"))[0] == 200


@in_loop
async def test_a_gateway_without_runs_says_so() -> None:
    async with gateway(config=ADMIN + SERVICES) as running:
        status, body = await admin(running, "GET", "/api/runs")
        assert (status, body["error"]["code"]) == (409, "runs_off")
        code, out = await unjam(running, "list")
        assert code == 1
        assert "runs: on" in out


@in_loop
async def test_questions_that_do_not_fit() -> None:
    async with runs_gateway(ADMIN) as running:
        for path, code in (
            ("/api/runs?status=lost", "bad_query"),
            ("/api/runs?limit=0", "bad_limit"),
            ("/api/runs?before=x", "bad_query"),
            ("/api/runs/dead?limit=9999", "bad_limit"),
            ("/api/runs/nonsense?events=x", "bad_limit"),
        ):
            status, body = await admin(running, "GET", path)
            assert (status, body["error"]["code"]) == (400, code), path
        status, body = await admin(running, "POST", f"/api/runs/run_{'0' * 27}/cancel", {})
        assert (status, body["error"]["code"]) == (404, "unknown_run")
