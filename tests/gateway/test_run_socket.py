"""`unjam.v1` at /v1/ws, with real gateways: create, follow, drop, resume elsewhere; slow and hostile clients."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from unjam.config import parse
from unjam.gateway import run_socket, socket_shapes
from unjam.gateway.openapi import document
from unjam.gateway.socket_connection import HIGH
from unjam.runs.model import Batch
from unjam.runs.store.base import LogExpired
from unjam.runs.store.memory import MemoryStore

from . import schema
from .durable import SERVICES, Api, Fragile, Shared, runs_gateway
from .harness import PATIENCE, Running, gateway, in_loop, until
from .held import Client, masked, text
from .test_runs_api import keys

ROOT = Path(__file__).parents[2]


class Talk:
    """A client of the protocol, by `websockets`. All that is said is held against the gateway's OpenAPI document."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.aside: list[Any] = []

    async def send(self, op: str, **more: Any) -> None:
        message = {"op": op, **more}
        schema.message(document(), "client", message)
        await self.connection.send(json.dumps(message))

    async def recv(self) -> Any:
        if self.aside:
            return self.aside.pop(0)
        return await self._recv()

    async def _recv(self) -> Any:
        said = json.loads(await asyncio.wait_for(self.connection.recv(), PATIENCE))
        schema.message(document(), "server", said)
        return said

    async def ask(self, op: str, **more: Any) -> Any:
        """Send it with a ref, and return its answer; what comes before that is kept."""
        await self.send(op, **more, ref="r")
        while (answer := await self._recv()).pop("ref", None) != "r":
            self.aside.append(answer)
        return answer

    async def create(self, service: str = "auditor", **more: Any) -> str:
        created = await self.ask("create", service=service, **more)
        assert created["op"] == "created", created
        return str(created["run"])

    async def events(self, count: int) -> list[Any]:
        found = [await self.recv() for _ in range(count)]
        assert all(each["op"] == "event" for each in found), found
        return found

    async def log(self, run: str, after: int = -1) -> list[Any]:
        """The run's events up to its end, which is told."""
        found: list[Any] = []
        while (said := await self.recv())["op"] == "event":
            assert (said["run"], said["seq"]) == (run, after + 1 + len(found))
            found.append(said)
        assert (said["op"], said["run"]) == ("done", run), said
        return found

    async def closed(self) -> int:
        """The close code, after whatever comes before it."""
        try:
            while True:
                await asyncio.wait_for(self.connection.recv(), PATIENCE)
        except ConnectionClosed:
            return self.connection.close_code or 0


@asynccontextmanager
async def talk(running: Running, key: str = "", **given: Any) -> AsyncIterator[Talk]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"ws://127.0.0.1:{running.port}/v1/ws"
    async with connect(url, proxy=None, additional_headers=headers, **given) as connection:
        yield Talk(connection)


async def raw(running: Running, small: bool = False) -> Client:
    """A client of raw frames that reads when it is told to; it hangs up at the end of the test."""
    client = await Client.connect(running.port, path="/v1/ws", small=small)
    running.wires.append(cast(Any, client))
    assert client.head.startswith(b"HTTP/1.1 101 ")
    if small:  # nor has the gateway's kernel much room for it
        only(running).transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return client


def hurry(client: Client, connection: Any, room: int = 1 << 20) -> None:
    """From now on it reads in large pieces, which `connection` can send: `room` bytes in the gateway's kernel."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)


def only(running: Running) -> Any:
    """The one connection that is held."""
    assert running.server.durable is not None
    assert running.server.durable.sockets is not None
    (connection,) = running.server.durable.sockets.sockets.held
    return connection


def sockets(running: Running) -> Any:
    assert running.server.durable is not None
    assert running.server.durable.sockets is not None
    return running.server.durable.sockets.sockets


# -- what it is for ----------------------------------------------------------------------------------------------------


@in_loop
async def test_a_run_from_its_creation_to_its_end() -> None:
    async with runs_gateway() as running, talk(running, subprotocols=["unjam.v1"]) as client:
        assert client.connection.subprotocol == "unjam.v1"
        welcome = await client.ask("hello")
        assert (welcome["op"], welcome["protocol"], welcome["max_runs"]) == ("welcome", "unjam.v1", 256)
        run = await client.create(input={"pdf": "a.pdf"}, metadata={"who": "anna"})
        (created,) = await client.events(1)
        assert (created["run"], created["seq"], created["type"]) == (run, 0, "run.created")

        worker = await Api.connect(running)
        claim = await worker.claim()
        assert (claim["run"]["id"], claim["input"]) == (run, {"pdf": "a.pdf"})
        assert claim["run"]["metadata"] == {"who": "anna"}
        await worker.emit(claim, 1, {"page": 1}, "κόσμε\n🎉")
        attempt, one, two = await client.events(3)
        assert attempt["data"] == {"n": 1, "from_seq": 1, "reason": "first"}
        assert [(e["seq"], e["type"], e["data"]) for e in (one, two)] == [
            (2, "progress", {"page": 1}),
            (3, "progress", "κόσμε\n🎉"),
        ]
        assert await client.ask("input", run=run, data={"more": 1}) == {"op": "ok", "run": run, "n": 1}
        assert await client.ask("cancel", run=run) == {"op": "ok", "run": run}
        status, beat = await worker.call("POST", f"/v1/runs/{run}/heartbeat", {"fence": 1})
        assert (status, beat) == (200, {"cancel": True, "inputs": 1})
        await worker.finish(claim, status="cancelled")
        (end,) = await client.events(1)
        assert (end["seq"], end["type"]) == (4, "run.cancelled")
        assert await client.recv() == {"op": "done", "run": run, "status": "cancelled"}
        assert await client.ask("input", run=run, data=1) == {
            "op": "error",
            "code": "run_ended",
            "message": "The run has ended; nobody would read the input.",
            "run": run,
        }


@in_loop
async def test_many_runs_on_one_socket_each_without_a_hole() -> None:
    services = SERVICES.replace("runs: {execute: pull}", "runs: {execute: pull}\n    breaker: off")  # half of them fail
    async with runs_gateway(services=services) as running, talk(running) as client:
        for number in range(20):
            await client.send("create", service="auditor", input=number, ref=number)
        seen: dict[str, list[int]] = {}
        named: dict[int, str] = {}
        done: dict[str, str] = {}

        async def work() -> None:
            worker = await Api.connect(running)
            while claim := await worker.claim(wait=1):
                for batch in range(1, 6):
                    await worker.emit(claim, batch, *range(batch))
                await worker.finish(claim, status="failed" if claim["input"] % 2 else "completed")

        workers = [asyncio.create_task(work()) for _ in range(4)]
        while len(done) < 20:
            said = await client.recv()
            if said["op"] == "created":
                named[said["ref"]] = said["run"]
            elif said["op"] == "event":
                seen.setdefault(said["run"], []).append(said["seq"])
            else:
                assert said["op"] == "done"
                done[said["run"]] = said["status"]
        for number, run in named.items():
            assert seen[run] == list(range(18))
            assert done[run] == ("failed" if number % 2 else "completed")
        await asyncio.gather(*workers)


@in_loop
async def test_an_idempotency_key_makes_one_run_and_a_reconnecting_client_finds_it() -> None:
    async with runs_gateway() as running:
        async with talk(running) as client:
            run = await client.create(input=1, idem="audit-17", follow=False)
        async with talk(running) as client:
            again = await client.ask("create", service="auditor", input=1, idem="audit-17")
            assert again == {"op": "created", "run": run, "status": "queued", "new": False}
            await client.events(1)
            other = await client.ask("create", service="auditor", input=2, idem="audit-17")
            assert (other["op"], other["code"]) == ("error", "idempotency_key_reused")


@in_loop
async def test_a_key_is_the_same_over_http_and_however_the_request_is_written() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        key = "Idempotency-Key: audit-17\r\n"
        given = {"pdf": "a.pdf", "pages": [1, 2]}
        run = await api.create(given=given, headers=key, deadline_s=60)
        body = (
            b'{ "deadline_s": 60.0, "input": {"pages": [1,2], "pdf": "a\\u002epdf"}, '
            b'"retry": null, "service": "auditor" }'
        )
        status, again = await api.call("POST", "/v1/runs", body, key)
        assert (status, again["id"]) == (200, run["id"])
        async with talk(running) as client:
            said = await client.ask("create", service="auditor", input=given, idem="audit-17", deadline_s=60)
            assert (said["run"], said["new"]) == (run["id"], False)
            other = await client.ask("create", service="auditor", input=given, idem="audit-17", deadline_s=61)
            assert other["code"] == "idempotency_key_reused"


@in_loop
async def test_what_is_dropped_here_is_resumed_at_another_gateway() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as one, runs_gateway(store=shared.tap()) as two:
        worker = await Api.connect(two)
        async with talk(one) as client:
            run = await client.create()
            ended = await client.create("other")
            await client.events(2)
            claim = await worker.claim()
            await worker.emit(claim, 1, "a", "b")
            assert (await client.events(3))[-1]["seq"] == 3
            await client.ask("cancel", run=ended)
            client.connection.transport.abort()
        await worker.emit(claim, 2, "missed", "this")
        places = [{"run": run, "after": 3}, {"run": ended, "after": 0}, {"run": "run_" + "0" * 27}]
        async with talk(two) as client:
            assert (await client.ask("hello", resume=places))["op"] == "welcome"
            said = [await client.recv() for _ in range(5)]
            assert [e["data"] for e in said if e["op"] == "event" and e["run"] == run] == ["missed", "this"]
            rest = [e for e in said if e.get("run") == ended]
            assert [e["op"] for e in rest] == ["event", "done"]
            (error,) = (e for e in said if e["op"] == "error")
            assert (error["code"], error["run"]) == ("unknown_run", "run_" + "0" * 27)
            await worker.finish(claim)
            assert [e["seq"] for e in await client.log(run, 5)] == [6]


@in_loop
async def test_readers_that_drop_and_resume_while_it_is_written_miss_nothing() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as one, runs_gateway(store=shared.tap()) as two:
        worker = await Api.connect(one)
        run = (await worker.create())["id"]
        claim = await worker.claim()
        rng = random.Random(5)

        async def read() -> list[int]:
            seqs: list[int] = []
            while True:
                async with talk(rng.choice((one, two))) as client:
                    await client.send("hello", resume=[{"run": run, "after": len(seqs) - 1}])
                    for _ in range(rng.randrange(2, 40)):
                        said = await client.recv()
                        if said["op"] == "event":
                            seqs.append(said["seq"])
                        elif said["op"] == "done":
                            return seqs
                    client.connection.transport.abort()

        readers = [asyncio.create_task(read()) for _ in range(8)]
        for batch in range(1, 101):
            await worker.emit(claim, batch, *range(rng.randrange(1, 6)))
        await worker.finish(claim)
        _, whole = await worker.call("GET", f"/v1/runs/{run}?result=0")
        assert whole["status"] == "completed"
        seen = await asyncio.gather(*readers)
        assert len(seen[0]) > 100
        assert all(seqs == list(range(len(seen[0]))) for seqs in seen)


@in_loop
async def test_subscribe_again_goes_back_and_unsubscribe_ends_it() -> None:
    async with runs_gateway() as running, talk(running) as client:
        worker = await Api.connect(running)
        run = await client.create()
        claim = await worker.claim()
        await worker.emit(claim, 1, "a")
        assert [e["seq"] for e in await client.events(3)] == [0, 1, 2]
        assert await client.ask("subscribe", run=run, after=0) == {"op": "ok", "run": run}
        assert [e["seq"] for e in await client.events(2)] == [1, 2]
        assert await client.ask("unsubscribe", run=run) == {"op": "ok", "run": run}
        assert running.server.durable is not None
        assert running.server.durable.hub.followers == 0
        await worker.emit(claim, 2, "b")
        assert await client.ask("unsubscribe", run=run) == {"op": "ok", "run": run}  # and nothing came before that
        await client.send("subscribe", run=run, after=2)
        assert [e["data"] for e in await client.events(1)] == ["b"]


@in_loop
async def test_a_log_that_lost_something_says_so() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as running, talk(running) as client:
        worker = await Api.connect(running)
        run = await client.create(follow=False)
        await client.ask("subscribe", run=run, after=500)
        assert await client.recv() == {"op": "gap", "run": run, "next": 1}
        await worker.claim()
        assert [e["seq"] for e in await client.events(1)] == [1]
        # An end that was passed over is told all the same.
        await client.ask("unsubscribe", run=run)
        other = await client.create("other", follow=False)
        await client.ask("cancel", run=other)
        await client.ask("subscribe", run=other, after=7)
        assert await client.recv() == {"op": "gap", "run": other, "next": 2}
        assert await client.recv() == {"op": "done", "run": other, "status": "cancelled"}

        async def expired(*given: Any, **more: Any) -> Any:
            raise LogExpired("gone")

        shared.store.read = expired  # type: ignore[method-assign]
        await client.ask("subscribe", run=run)
        said = await client.recv()
        assert (said["op"], said["code"], said["run"]) == ("error", "log_expired", run)


@in_loop
async def test_an_event_is_encoded_once_for_all_who_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    real = socket_shapes.event_frame

    def counting(run: str, event: Any) -> bytes:
        encoded.append(event.seq)
        return real(run, event)

    monkeypatch.setattr(socket_shapes, "event_frame", counting)
    async with runs_gateway() as running:
        worker = await Api.connect(running)
        run = (await worker.create())["id"]
        claim = await worker.claim()
        clients = [await raw(running) for _ in range(50)]
        for client in clients:
            await client.send(text(json.dumps({"op": "subscribe", "run": run, "after": 1, "ref": 1})))
            assert "ok" in await client.message()
        await worker.emit(claim, 1, "to all")
        for client in clients:
            assert json.loads(await client.message())["data"] == "to all"
        assert encoded == [2]


# -- slow clients ------------------------------------------------------------------------------------------------------


async def long_log(running: Running, service: str = "auditor", events: int = 64, size: int = 60_000) -> str:
    """The id of a run that has ended with a log of some megabytes."""
    worker = await Api.connect(running)
    run = (await worker.create(service))["id"]
    claim = await worker.claim(service)
    for batch in range(1, events + 1):
        await worker.emit(claim, batch, "x" * size)
    await worker.finish(claim)
    return str(run)


def buffered(running: Running) -> int:
    return int(only(running).transport.get_write_buffer_size())


class Counted(MemoryStore):
    """`reads`: of logs, so far."""

    reads = 0

    async def read(self, *args: Any, **options: Any) -> Batch:
        self.reads += 1
        return await super().read(*args, **options)


@in_loop
async def test_a_slow_reader_costs_a_bounded_amount_and_misses_nothing() -> None:
    store = Counted()
    async with runs_gateway(store=store) as running:
        run = await long_log(running)
        slow = await raw(running, small=True)
        await slow.send(text(json.dumps({"op": "subscribe", "run": run})))
        await until(lambda: sockets(running).held and not only(running).writable)
        reads, most = store.reads, 0
        for _ in range(50):
            await asyncio.sleep(0)
            most = max(most, buffered(running))
        assert 0 < most <= HIGH
        assert store.reads == reads < 15  # of about 64: nothing is read for it meanwhile
        # Another reader is not held up by it.
        async with talk(running) as quick:
            await quick.send("subscribe", run=run)
            assert len(await quick.log(run)) == 67
        hurry(slow, only(running))
        for seq in range(67):
            event = json.loads(await slow.message())
            assert (event["op"], event["seq"]) == ("event", seq)
        assert json.loads(await slow.message())["op"] == "done"


@in_loop
async def test_of_many_runs_of_a_slow_reader_one_at_a_time_is_read() -> None:
    store = Counted()
    async with runs_gateway(store=store) as running:
        runs = [await long_log(running, events=6, size=60_000) for _ in range(12)]
        assert running.server.durable is not None
        hub = running.server.durable.hub
        slow = await raw(running, small=True)
        await slow.send(*(text(json.dumps({"op": "subscribe", "run": run})) for run in runs))
        await until(lambda: hub.followers == 12 and not only(running).writable)
        hurry(slow, only(running), 1 << 15)
        seqs: dict[str, int] = dict.fromkeys(runs, -1)
        done = 0
        while done < 12:
            said = json.loads(await slow.message())
            if said["op"] == "done":
                done += 1
            else:
                seqs[said["run"]] += 1
                assert said["seq"] == seqs[said["run"]]
        assert set(seqs.values()) == {8}
        # Each log takes some seven reads by itself; were all woken at once, it would be more than twenty.
        assert store.reads < 150


@in_loop
async def test_one_that_does_not_read_is_closed_with_4408() -> None:
    async with runs_gateway() as running:
        run = await long_log(running)
        sockets(running).stall = 0.3
        slow = await raw(running, small=True)
        await slow.send(text(json.dumps({"op": "subscribe", "run": run})))
        await until(lambda: sockets(running).closed_for.get(4408) == 1)
        assert running.server.durable is not None
        assert running.server.durable.hub.followers == 0
        # What it was sent before is whole, so that it knows where to go on.
        seqs = []
        while (frame := await slow.frame())[0] != 0x88:
            first, payload = frame
            while not first & 0x80:
                first, more = await slow.frame()
                if first == 0x88:
                    break
                payload += more
            if first == 0x88:
                frame = first, more
                break
            seqs.append(json.loads(payload)["seq"])
        assert frame[1][:2] == (4408).to_bytes(2, "big")
        assert seqs == list(range(len(seqs)))


@in_loop
async def test_answers_wait_for_room_too() -> None:
    async with runs_gateway() as running:
        run = await long_log(running)
        slow = await raw(running, small=True)
        await slow.send(text(json.dumps({"op": "subscribe", "run": run})))
        await until(lambda: sockets(running).held and not only(running).writable)
        await slow.send(text('{"op": "hello", "ref": "late"}'))
        hurry(slow, only(running))
        seqs, refs = [], []
        while len(seqs) < 67 or not refs:
            said = json.loads(await slow.message())
            if said["op"] == "event":
                seqs.append(said["seq"])
            elif said["op"] == "welcome":
                refs.append(said["ref"])
        assert (seqs, refs) == (list(range(67)), ["late"])


# -- the end of a gateway ----------------------------------------------------------------------------------------------


@in_loop
async def test_a_drain_tells_and_closes_with_1012_and_the_client_goes_on_elsewhere() -> None:
    shared = Shared()
    async with runs_gateway(store=shared.tap()) as two:
        worker = await Api.connect(two)
        async with runs_gateway("drain_timeout: 20s\n", store=shared.tap()) as one:
            async with talk(one) as client, talk(one) as idle:
                run = await client.create()
                await client.events(1)
                mute = await raw(one)
                drain = asyncio.create_task(one.server.drain())
                said = await client.recv()
                assert said["op"] == "drain"
                assert 0 <= said["deadline"] <= 10
                assert await client.closed() == 1012
                assert (await idle.recv())["op"] == "drain"
                assert await idle.closed() == 1012
            while (await mute.frame())[0] != 0x88:
                pass
            # One that does not say goodbye is waited for.
            await until(lambda: len(sockets(one).held) == 1)
            await one.settled()
            assert not drain.done()
            mute.hang_up()
            await asyncio.wait_for(drain, 20)
            assert not sockets(one).held
        await worker.claim()
        async with talk(two) as client:
            await client.send("hello", resume=[{"run": run, "after": 0}])
            assert (await client.recv())["op"] == "welcome"
            assert [e["seq"] for e in await client.events(1)] == [1]


@in_loop
async def test_many_clients_are_sent_away_over_time() -> None:
    async with runs_gateway() as running:
        clients = [await raw(running) for _ in range(30)]
        assert running.server.durable is not None
        running.gateway.draining = True
        sockets(running).drain(30.0)
        deadlines = sorted([json.loads(await client.message())["deadline"] for client in clients])
        assert deadlines == pytest.approx([float(number) for number in range(30)])
        await clients[0].send(text('{"op": "create", "service": "auditor", "ref": 1}'))


@in_loop
async def test_a_gateway_that_stops_at_once_holds_nobody() -> None:
    async with runs_gateway() as running:
        client = await raw(running)
        await client.send(text('{"op": "hello"}'))
        await client.message()
        await running.server.stop()
        await client.ended()
        assert not sockets(running).held
        assert running.gateway.descriptors == 0


@in_loop
async def test_one_too_many_is_sent_elsewhere() -> None:
    async with runs_gateway(runs="{sockets: 2}") as running, talk(running), talk(running):
        async with talk(running) as late:
            assert await late.closed() == 1013
        assert sockets(running).closed_for == {1013: 1}


@in_loop
async def test_while_the_store_is_away_it_says_so_and_stays_open() -> None:
    store = Fragile()
    async with runs_gateway(store=store) as running, talk(running) as client:
        run = await client.create()
        await client.events(1)
        store.away = True
        for op, more in (("create", {"service": "auditor"}), ("subscribe", {"run": run}), ("cancel", {"run": run})):
            said = await client.ask(op, **more)
            assert (said["op"], said["code"], said["retry_after_s"]) == ("error", "store_away", 3.0)
        store.away = False
        assert (await client.ask("cancel", run=run))["op"] == "ok"
        assert (await client.events(1))[0]["type"] == "run.cancelled"


# -- who calls ---------------------------------------------------------------------------------------------------------


@in_loop
async def test_with_keys_a_header_or_the_first_hello_says_who_calls() -> None:
    async with runs_gateway(keys()) as running:
        async with talk(running, "acme-key") as client:
            run = await client.create(follow=False)
        async with talk(running) as browser:
            assert (await browser.ask("hello", token="acme-key"))["op"] == "welcome"
            assert (await browser.ask("subscribe", run=run))["op"] == "ok"
            assert len(await browser.events(1)) == 1
        before = running.gateway.stats.rejects.get("unauthorized", 0)
        for first in (
            {"op": "hello"},
            {"op": "hello", "token": "wrong"},
            {"op": "hello", "token": "wrong", "resume": [{"run": run}]},
            {"op": "subscribe", "run": run},
            {"op": "create", "service": "auditor"},
            {"op": "nonsense"},
        ):
            async with talk(running) as stranger:
                await stranger.connection.send(json.dumps(first))
                await stranger.send("subscribe", run=run)
                assert await stranger.closed() == 4401
        assert running.gateway.stats.rejects["unauthorized"] == before + 6
        with pytest.raises(InvalidStatus) as refusal:
            async with talk(running, "wrong"):
                pass
        assert refusal.value.response.status_code == 401
        # A token beside a header has to be the same tenant's.
        async with talk(running, "acme-key") as client:
            assert (await client.ask("hello", token="acme-key"))["op"] == "welcome"
            await client.send("hello", token="globex-key")
            assert await client.closed() == 4401
        assert sockets(running).closed_for == {4401: 7}


@in_loop
async def test_one_that_does_not_say_who_it_is_is_closed() -> None:
    async with runs_gateway(keys() + "limits: {header_timeout: 0.2s}\n") as running, talk(running) as client:
        assert await client.closed() == 4401


@in_loop
async def test_a_stranger_may_not_make_us_keep_much() -> None:
    async with runs_gateway(keys()) as running:
        client = await raw(running)
        await client.send(masked(0x81, b"{" + b" " * 70_000))
        assert await client.closed() == (1009, True)
        async with talk(running) as known:
            await known.send("hello", token="acme-key")
            await known.recv()
            assert len(await known.create(input="x" * 200_000, follow=False)) == 31


@in_loop
async def test_a_key_that_is_taken_away_ends_its_sockets() -> None:
    services = f"runs: on\nlisten: 127.0.0.1:0\nadmin: off\naccess_log: off\n{SERVICES}"
    reloaded = [keys()]
    config = f"{keys()}{services}"

    def read() -> Any:
        return parse(f"{reloaded[0]}{services}", {})

    async with (
        gateway(config=config, reload=read) as running,
        talk(running, "acme-key") as acme,
        talk(running, "globex-key") as globex,
    ):
        await acme.ask("hello")
        await globex.ask("hello")
        lines = keys().splitlines(keepends=True)
        gone = sha256(b"acme-key").hexdigest()
        reloaded[0] = "".join(line for line in lines if gone not in line)
        assert reloaded[0] != keys()
        assert await running.server.reload() == []
        assert await acme.closed() == 4401
        assert (await globex.ask("hello"))["op"] == "welcome"


@in_loop
async def test_51_a_tenant_reaches_its_own_runs_only_and_learns_nothing_of_others() -> None:
    async with runs_gateway(keys()) as running:
        async with talk(running, "acme-key") as acme:
            run = await acme.create(follow=False)
        unknown = "run_" + "0" * 27
        for key in ("globex-key", "acme-other-key", "worker-key"):
            async with talk(running, key) as stranger:
                for op, more in (
                    ("subscribe", {}),
                    ("subscribe", {"after": 0}),
                    ("cancel", {}),
                    ("input", {"data": 1}),
                ):
                    refusal = await stranger.ask(op, run=run, **more)
                    missing = await stranger.ask(op, run=unknown, **more)
                    assert refusal["code"] == "unknown_run"
                    assert {**refusal, "run": ""} == {**missing, "run": ""}
                await stranger.send("hello", resume=[{"run": run}, {"run": unknown}])
                assert (await stranger.recv())["op"] == "welcome"
                assert [(await stranger.recv())["code"] for _ in range(2)] == ["unknown_run"] * 2
        async with talk(running, "acme-other-key") as narrow:
            assert (await narrow.ask("create", service="auditor"))["code"] == "forbidden"
            assert (await narrow.create("other", follow=False)).startswith("run_")
        async with talk(running, "acme-key") as acme:
            await acme.send("subscribe", run=run)
            assert [e["seq"] for e in await acme.events(1)] == [0]


# -- hostile -----------------------------------------------------------------------------------------------------------


@in_loop
async def test_messages_that_do_not_fit_are_errors_and_the_socket_goes_on() -> None:
    async with runs_gateway() as running, talk(running, max_size=None) as client:
        run = await client.create(follow=False)
        for sent, code in (
            ("", "bad_json"),
            ("x", "bad_json"),
            ("{", "bad_json"),
            ('{"op":"hello"} {"op":"hello"}', "bad_json"),
            ('{"op":"hello","resume":NaN}', "bad_json"),
            ("[" * 20_000 + "]" * 20_000, "bad_message"),
            ('{"op":"input","run":"RUN","data":' + "[" * 20_000 + "]" * 20_000 + "}", "bad_json"),
            ("[]", "bad_message"),
            ("null", "bad_message"),
            ("{}", "unknown_op"),
            ('{"op":7}', "bad_message"),
            ('{"op":"delete","ref":"r"}', "unknown_op"),
            ('{"op":"\\u0000\\ud800"}', "bad_json"),
            ('{"op":"\\u0000"}', "unknown_op"),
            ('{"op":"subscribe"}', "bad_message"),
            ('{"op":"subscribe","run":7}', "bad_message"),
            ('{"op":"subscribe","run":"RUN","after":-2}', "bad_message"),
            ('{"op":"subscribe","run":"RUN","after":1e99}', "bad_message"),
            ('{"op":"subscribe","run":"RUN","extra":1}', "bad_message"),
            ('{"op":"subscribe","run":' + json.dumps("x" * 10_000) + "}", "bad_message"),
            ('{"op":"subscribe","run":"run_\\u0000"}', "unknown_run"),
            ('{"op":"subscribe","run":"../../etc"}', "unknown_run"),
            ('{"op":"hello","resume":[' + ",".join(['{"run":"x"}'] * 257) + "]}", "bad_message"),
            ('{"op":"create"}', "bad_message"),
            ('{"op":"create","service":"nobody"}', "unknown_service"),
            ('{"op":"create","service":"plain"}', "unknown_service"),
            ('{"op":"create","service":"auditor","version":"v9"}', "unknown_version"),
            ('{"op":"create","service":"auditor","idem":"with space"}', "bad_message"),
            ('{"op":"create","service":"auditor","metadata":[1]}', "bad_body"),
            ('{"op":"create","service":"auditor","lane":"turbo"}', "bad_message"),
            ('{"op":"create","service":"auditor","input":' + json.dumps("x" * (1 << 20)) + "}", "payload_too_large"),
            ('{"op":"input","run":"RUN"}', "bad_message"),
            ('{"op":"input","run":"RUN","data":' + json.dumps("x" * (1 << 20)) + "}", "payload_too_large"),
            ('{"op":"cancel","run":"RUN","ref":' + json.dumps("r" * 65) + "}", "bad_message"),
        ):
            await client.connection.send(sent.replace("RUN", run))
            said = await client.recv()
            assert (said["op"], said["code"]) == ("error", code), (sent[:80], said)
            assert len(json.dumps(said)) < 600
        assert (await client.ask("subscribe", run=run))["op"] == "ok"
        assert len(await client.events(1)) == 1
        _, listed = await (await Api.connect(running)).call("GET", "/v1/runs")
        assert [each["id"] for each in listed["runs"]] == [run]


@in_loop
async def test_a_message_that_is_too_large_is_1009_and_a_binary_one_1003() -> None:
    async with runs_gateway(runs="{max_input: 1KiB}") as running:
        async with talk(running) as client:
            await client.send("input", run="x", data="x" * 70_000)
            assert await client.closed() == 1009
        async with talk(running) as client:
            await client.connection.send(b'{"op":"hello"}')
            assert await client.closed() == 1003


@in_loop
async def test_a_socket_follows_so_many_runs_and_no_more() -> None:
    async with runs_gateway() as running, talk(running) as client:
        for number in range(257):
            await client.send("create", service="auditor", follow=number < 256, input=number)
        said = [await client.recv() for _ in range(513)]
        run = {each["run"] for each in said} - {each["run"] for each in said if each["op"] == "event"}
        refusal = await client.ask("subscribe", run=run.pop())
        assert (refusal["op"], refusal["code"]) == ("error", "too_many_runs")
        assert (await client.ask("create", service="auditor"))["code"] == "too_many_runs"
        followed = said[0]["run"]
        assert (await client.ask("subscribe", run=followed, after=0))["op"] == "ok"  # one that it follows already
        assert running.server.durable is not None
        assert len(await running.server.durable.store.list("", limit=500)) == 257, "what can't be followed isn't made"
        assert running.server.durable.hub.followers == 256


@in_loop
async def test_a_flood_is_read_as_fast_as_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that doesn't answer, and a client that goes on asking."""
    store = Fragile()
    gate = asyncio.Event()
    asked: list[str] = []
    real = store.get

    async def slow(run: str) -> Any:
        asked.append(run)
        await gate.wait()
        return await real(run)

    monkeypatch.setattr(store, "get", slow)
    async with runs_gateway(store=store) as running:
        run = (await (await Api.connect(running)).create())["id"]
        client = await raw(running)
        message = text(json.dumps({"op": "cancel", "run": run, "ref": "r"}))
        await client.send(*([message] * 1000))
        await until(lambda: only(running).handler._pending >= run_socket.PENDING)
        for _ in range(20):
            await asyncio.sleep(0)
        assert only(running).handler._pending == run_socket.PENDING
        assert len(asked) == 1  # in their order: one after the other
        gate.set()
        for _ in range(1000):
            assert json.loads(await client.message()) == {"op": "ok", "run": run, "ref": "r"}
        assert only(running).handler._pending == only(running).handler._weight == 0
        # Heavy ones are not many.
        gate.clear()
        heavy = text(json.dumps({"op": "input", "run": run, "data": "x" * 400_000, "ref": "r"}))
        sending = asyncio.create_task(client.send(*([heavy] * 20)))
        await until(lambda: only(running).handler._weight >= run_socket.WEIGHT)
        assert only(running).handler._pending <= 3
        gate.set()
        for _ in range(20):
            assert json.loads(await client.message())["code"] == "run_ended"
        await sending


@in_loop
async def test_one_that_leaves_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Fragile()
    gate = asyncio.Event()
    real = store.get

    async def slow(run: str) -> Any:
        await gate.wait()
        return await real(run)

    monkeypatch.setattr(store, "get", slow)
    async with runs_gateway(store=store) as running:
        run = (await (await Api.connect(running)).create())["id"]
        client = await raw(running)
        await client.send(*([text(json.dumps({"op": "subscribe", "run": run}))] * 5))
        await until(lambda: sockets(running).held and only(running).handler._pending == 5)
        client.hang_up()
        await until(lambda: not sockets(running).held)
        gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert running.server.durable is not None
        assert running.server.durable.hub.followers == 0
        assert not running.gateway._tasks


@in_loop
async def test_41_and_42_handshakes_that_are_refused() -> None:
    async with runs_gateway() as running:
        good = f"Host: 127.0.0.1:{running.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        version = "Sec-WebSocket-Version: 13\r\n"
        for start, fields, status in (
            ("GET", "Host: x\r\n", 400),
            ("GET", good + version, 400),
            ("POST", good + key + version, 400),
            ("GET", good + key + "Sec-WebSocket-Version: 8\r\n", 426),
            ("GET", good + key + version + "Origin: https://evil.example\r\n", 403),
            ("GET", good + key + version + "Origin: null\r\n", 403),
            ("GET", good + key + version + "Sec-WebSocket-Protocol: graphql-ws, unjam.v2\r\n", 400),
        ):
            wire = await running.connect()
            await wire.send(f"{start} /v1/ws HTTP/1.1\r\n{fields}\r\n".encode())
            assert (await wire.answer(start)).status == status, fields
        assert not sockets(running).held
        async with talk(running, origin=f"http://127.0.0.1:{running.port}", subprotocols=["x", "unjam.v1"]) as client:
            assert client.connection.subprotocol == "unjam.v1"
    async with runs_gateway(runs="{origins: ['https://app.example.com']}") as running:
        async with talk(running, origin="https://app.example.com") as client:
            assert (await client.ask("hello"))["op"] == "welcome"
        with pytest.raises(InvalidStatus):
            async with talk(running, origin=f"http://127.0.0.1:{running.port}"):
                pass


# -- what it costs -----------------------------------------------------------------------------------------------------

MEASURE = """
import asyncio, gc, json, resource, socket, sys
import uvloop
from tests.gateway.durable import Api, runs_gateway
from tests.gateway.held import HANDSHAKE, masked

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

async def main(many, runs):
    async with runs_gateway() as running:
        loop = asyncio.get_running_loop()
        api = await Api.connect(running)
        ids = [(await api.create())["id"] for _ in range(runs)]
        socks = []
        async def add(count):
            for _ in range(count):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", running.port))
                message = json.dumps({"op": "subscribe", "run": ids[len(socks) % runs], "after": 0, "ref": 1})
                head = HANDSHAKE.replace("/ws", "/v1/ws") + "\\r\\n"
                await loop.sock_sendall(sock, head.encode() + masked(0x81, message.encode()))
                data = b""
                while b'"op":"ok"' not in data:
                    data += await loop.sock_recv(sock, 4096)
                socks.append(sock)
        await add(200)
        gc.collect()
        before = resident()
        await add(many)
        # What the gateway's wheel holds of spent connections goes within seconds.
        sockets = running.server.durable.sockets.sockets
        running.gateway.wheel.turn(running.gateway.now + 14, print)
        gc.collect()
        after = resident()
        assert len(sockets.held) == running.server.durable.hub.followers == many + 200
        print("per client", (after - before) / many)
        for sock in socks:
            sock.close()

uvloop.run(main(2000, int(sys.argv[1])))
"""


@pytest.mark.parametrize("runs", [1, 2200])
def test_an_idle_subscriber_costs_less_than_four_kib(runs: int) -> None:
    """All of it, the test's own end of the socket too; whether all follow one run or each its own."""
    argv = [sys.executable, "-c", MEASURE, str(runs)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.rsplit("per client ", 1)[1]) < 4096
