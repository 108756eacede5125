"""Load in the heads of answers: heeded, bounded in rate, and never shown to a client."""

from __future__ import annotations

import asyncio
import time

import pytest

from unjam.wire.websocket import accept_for

from .harness import Agent, Call, gateway, in_loop
from .told import listen, source, told

BUSY = "TEXT cpu_utilization=0.9, mem_utilization=0.5, named_metrics.in_flight=7"


def saying(value: str, name: str = "endpoint-load-metrics") -> Agent:
    """An endpoint that says this of its load in every answer."""

    async def answers(call: Call) -> None:
        await call.answer(headers=f"{name}: {value}\r\n")

    return Agent(answers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint-load-metrics", BUSY),
        ("Endpoint-Load-Metrics", 'JSON {"cpu_utilization": 0.9, "named_metrics": {"in_flight": 7}}'),
        ("endpoint-load-metrics-json", '{"cpu_utilization": 0.9, "named_metrics": {"in_flight": 7}}'),
    ],
)
@in_loop
async def test_it_is_heeded_and_stays_inside(name: str, value: str) -> None:
    agent = saying(value, name)
    async with gateway(agent) as running:
        answer = await (await running.connect()).get()
        assert (answer.status, answer.body) == (200, b"ok")
        assert not [key for key, _ in answer.headers if key.startswith("endpoint-load")]
        figures = source(running, agent, "header")
        assert (figures["cpu"], figures["in_flight"]) == (0.9, 7)
        assert running.gateway.stats.reports == {"accepted": 1}


async def no_body(call: Call) -> None:
    await call.write(f"HTTP/1.1 304 X\r\nendpoint-load-metrics: {BUSY}\r\n\r\n".encode())


async def only_head(call: Call) -> None:
    await call.write(f"HTTP/1.1 200 X\r\nContent-Length: 9\r\nendpoint-load-metrics: {BUSY}\r\n\r\n".encode())


async def events(call: Call) -> None:
    await call.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        + f"endpoint-load-metrics: {BUSY}\r\n\r\n".encode()
    )
    await call.chunk(b"data: 1\n\n")
    await call.last_chunk()


async def early(call: Call) -> None:
    """As an interim head says it, it is not the answer's: passed over, and not passed on."""
    await call.write(f"HTTP/1.1 103 Early\r\nendpoint-load-metrics: {BUSY}\r\n\r\n".encode())
    await call.answer(headers=f"endpoint-load-metrics: {BUSY}\r\n")


async def at_the_end(call: Call) -> None:
    """A trailer is dropped, the head counts."""
    await call.write(
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nendpoint-load-metrics: {BUSY}\r\n\r\n".encode()
        + b"2\r\nok\r\n0\r\nendpoint-load-metrics: TEXT cpu_utilization=0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "behaviour"),
    [("GET", no_body), ("HEAD", only_head), ("GET", events), ("GET", early), ("GET", at_the_end)],
)
@in_loop
async def test_in_answers_of_every_shape(method: str, behaviour: object) -> None:
    agent = Agent(behaviour)  # type: ignore[arg-type]
    async with gateway(agent) as running:
        wire = await running.connect()
        await wire.send(f"{method} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        seen = await wire.closed()
        assert b"HTTP/1.1 " in seen
        assert b"load-metrics" not in seen.lower()
        assert source(running, agent, "header")["cpu"] == 0.9


@in_loop
async def test_in_the_answer_to_a_handshake() -> None:
    async def agrees(call: Call) -> None:
        key = call.seen.header("sec-websocket-key")
        assert key is not None
        await call.write(
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
            b"endpoint-load-metrics: %b\r\n\r\n" % (accept_for(key.encode()), BUSY.encode())
        )

    agent = Agent(agrees)
    async with gateway(agent) as running:
        wire = await running.connect()
        await wire.send(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head = await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 20)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"load-metrics" not in head.lower()
        assert source(running, agent, "header")["cpu"] == 0.9


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("TEXT cpu_utilization=NaN", "not a number"),
        ("TEXT cpu_utilization=-1", "less than 0"),
        ("cpu 0.5", "neither TEXT nor JSON"),
        ("JSON {", "not JSON"),
        ("BIN CgVkYXRhMQ==", "binary"),
        ("TEXT named_metrics.cores=1e9", "cores is 1e+09: it must be from 0 to 4096"),
        ("TEXT named_metrics.in_flight=-3", "in_flight is -3"),
        ("TEXT named_metrics.waiting=9, named_metrics.in_flight=1", "of which it is a part"),
        ("TEXT " + "a" * 8000, "more than 4096 bytes"),
    ],
)
@in_loop
async def test_what_makes_no_sense_is_counted_and_told_once_and_the_answer_goes_on(value: str, why: str) -> None:
    agent = saying(value)
    async with gateway(agent) as running:
        log = listen(running)
        wire = await running.connect()
        for _ in range(3):
            answer = await wire.get()
            assert (answer.status, answer.body, answer.header("endpoint-load-metrics")) == (200, b"ok", None)
        assert running.gateway.stats.reports == {"bad_load": 1}
        assert source(running, agent, "header") is None
        ((level, ok, told_why),) = log.of("load_header")
        assert (level, ok) == ("warning", False)
        assert why in told_why
        # A word that can't be true of a figure is named where the operator looks, too.
        if "utilization" not in value and "named" in value:
            assert why in told(running, agent).problem


@in_loop
async def test_the_binary_field_is_counted_and_stays_inside_too() -> None:
    async with gateway(saying("CgVkYXRhMQ==", "endpoint-load-metrics-bin")) as running:
        answer = await (await running.connect()).get()
        assert not [key for key, _ in answer.headers if key.startswith("endpoint-load")]
        assert running.gateway.stats.reports == {"bad_load": 1}


@in_loop
async def test_its_end_is_told_too() -> None:
    agent = saying("nonsense")
    async with gateway(agent) as running:
        log = listen(running)
        wire = await running.connect()
        await wire.get()
        agent.behaviour = saying(BUSY).behaviour
        while not source(running, agent, "header"):
            await wire.get()
        assert [(level, ok) for level, ok, _ in log.of("load_header")] == [("warning", False), ("info", True)]


@in_loop
async def test_many_answers_are_a_few_reports() -> None:
    count = 0

    async def changing(call: Call) -> None:
        nonlocal count
        count += 1
        await call.answer(headers=f"endpoint-load-metrics: TEXT named_metrics.in_flight={count}\r\n")

    async with gateway(Agent(changing)) as running:
        wire = await running.connect()
        started = time.monotonic()
        reports = running.gateway.stats.reports
        while time.monotonic() - started < 0.5 or reports["accepted"] < 2:
            await wire.get()
        took = time.monotonic() - started
        assert count > 20
        assert reports["accepted"] <= took / 0.2 + 1


@in_loop
async def test_a_machine_that_is_measured_less_often_than_answers_come_is_believed() -> None:
    """The count of requests is new in every answer, the rest is from some seconds ago: it is not made up for that."""
    count = 0

    async def answers(call: Call) -> None:
        nonlocal count
        count += 1
        machine = "cpu_utilization=0.41, named_metrics.agent_cpu=0.2, named_metrics.memory_free=1000"
        await call.answer(headers=f"endpoint-load-metrics: TEXT {machine}, named_metrics.in_flight={count}\r\n")

    agent = Agent(answers)
    async with gateway(agent) as running:
        wire = await running.connect()
        until = time.monotonic() + 0.7  # four headers are looked at
        while time.monotonic() < until:
            await wire.get()
        assert running.gateway.stats.reports == {"accepted": 1}
        assert told(running, agent).problem == ""


@pytest.mark.parametrize("load", ["off", "{headers: off}"])
@in_loop
async def test_switched_off_it_is_not_heeded_and_still_not_shown(load: str) -> None:
    agent = await saying(BUSY).start()
    config = f"services: {{s: {{load: {load}, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    async with gateway(agent, config=config) as running:
        answer = await (await running.connect()).get()
        assert answer.header("endpoint-load-metrics") is None
        assert told(running, agent) is None
        assert running.gateway.stats.reports == {}


@in_loop
async def test_it_moves_traffic() -> None:
    """Two endpoints of one size; what one of them says of its processor sends work to the other."""
    busy = await saying("TEXT cpu_utilization=1, named_metrics.agent_cpu=0").start()
    idle = await saying("TEXT cpu_utilization=0").start()
    endpoints = ", ".join(f"{{url: '{agent.url}', cores: 4, slots: 8}}" for agent in (busy, idle))
    config = f"services: {{s: {{versions: {{v: {{endpoints: [{endpoints}]}}}}}}}}\n"
    async with gateway(busy, idle, config=config) as running:
        wire = await running.connect()
        while not busy.requests:
            await wire.get()
        before = len(idle.requests)
        for _ in range(20):
            await wire.get()
        assert len(busy.requests) == 1
        assert len(idle.requests) == before + 20
