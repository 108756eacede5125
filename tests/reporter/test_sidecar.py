"""The sidecar's life beside an agent: what it says when, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise

import pytest

from unjam.reporter.agent_check import share
from unjam.wire.agentcheck import parse

from ..gateway.harness import Agent, Call
from .gateways import fake_gateway
from .measured import GIB, sidecar
from .skipping import skipping


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(7200):
        while not condition():
            await asyncio.sleep(0.05)


@skipping
async def test_it_registers_at_once_and_tells_the_cpu_when_it_knows() -> None:
    async with fake_gateway() as gateway:
        given = ("--version", "v7", "--slots", "4", "--region", "us-east-1", "--weight", "2", "--pid", "1")
        async with sidecar(*given, gateways=(gateway,)):
            first = await gateway.report(0)
            assert {name: first[name] for name in first if name != "load"} == {
                "service": "auditor",
                "version": "v7",
                "url": "http://127.0.0.1:9",
                "slots": 4,
                "region": "us-east-1",
                "weight": 2.0,
                "state": "ready",
            }
            assert first["load"] == {"cores": 8.0, "memory": 16 * GIB, "memory_free": 12 * GIB}
            second = await gateway.report(1)
            assert (second["load"]["cpu"], second["load"]["agent_cpu"]) == (0.25, 0.05)
            assert gateway.times[1] - gateway.times[0] < 1.6
            await gateway.report(20)
            assert all(1.9 < later - earlier < 2.2 for earlier, later in pairwise(gateway.times[1:]))


@skipping
async def test_a_hog_is_told_within_a_second_and_a_blip_is_not() -> None:
    async with fake_gateway() as gateway, sidecar("--interval", "60s", "--pid", "1", gateways=(gateway,)) as running:
        await gateway.says(cpu=0.25)
        said = len(gateway.reports)
        reads = running.meter.reads
        running.meter.figures["cpu"] = 0.5  # for one reading: half of a second
        await until(lambda: running.meter.reads > reads)
        running.meter.figures["cpu"] = 0.25
        await asyncio.sleep(10)
        assert len(gateway.reports) == said
        running.meter.figures["cpu"] = 0.95
        began = asyncio.get_running_loop().time()
        await gateway.says(cpu=0.95)
        assert gateway.times[-1] - began < 1.6


@skipping
async def test_memory_that_goes_is_told_at_once() -> None:
    async with fake_gateway() as gateway, sidecar("--interval", "60s", "--pid", "1", gateways=(gateway,)) as running:
        await gateway.says(cpu=0.25)
        running.meter.figures["memory_free"] = 10 * GIB
        began = asyncio.get_running_loop().time()
        await gateway.says(memory_free=10 * GIB)
        assert gateway.times[-1] - began < 0.6


@skipping
async def test_an_agent_that_is_gone_leaves_and_comes_back() -> None:
    async with fake_gateway() as gateway, sidecar("--interval", "60s", "--port", "9", gateways=(gateway,)) as running:
        await gateway.says(cpu=0.25)
        began = asyncio.get_running_loop().time()
        running.meter.process = None
        await gateway.says(state="leaving")
        assert gateway.times[-1] - began < 0.6
        said = len(gateway.reports)
        await asyncio.sleep(60)
        assert len(gateway.reports) == said
        began = asyncio.get_running_loop().time()
        running.meter.process = 4343
        back = await gateway.report(said)
        assert back["state"] == "ready"
        assert "cpu" not in back["load"], "what was measured before was another process"
        assert gateway.times[-1] - began < 0.6


@skipping
async def test_nobody_is_registered_before_there_is_an_agent() -> None:
    async with fake_gateway() as gateway, sidecar("--port", "9", gateways=(gateway,)) as running:
        running.meter.process = None
        await asyncio.sleep(60)
        assert gateway.reports == []
        running.meter.process = 1
        assert (await gateway.report(0))["state"] == "ready"


@skipping
async def test_a_process_that_was_named_cannot_come_back() -> None:
    async with fake_gateway() as gateway, sidecar("--pid", "1", gateways=(gateway,)) as running:
        await gateway.report(0)
        running.meter.process = None
        assert await running.exit_code() == 1
        assert gateway.states[-1] == "leaving"


@skipping
async def test_every_gateway_hears_everything_and_a_hung_one_delays_none() -> None:
    async with (
        fake_gateway() as one,
        fake_gateway() as hung,
        fake_gateway() as other,
        sidecar("--pid", "1", gateways=(one, hung, other)) as running,
    ):
        hung.mute = True
        await one.report(10)
        await other.report(10)
        assert one.times[10] - one.times[1] == pytest.approx(18, abs=1)
        assert one.reports[-1]["echo"] != other.reports[-1]["echo"] or one.reports[-1] is not other.reports[-1]
        running.sidecar.stop()
        assert await running.exit_code() == 0, "one that does not answer is not waited for"
        assert one.states[-1] == other.states[-1] == "leaving"


@skipping
async def test_it_drains_until_no_gateway_has_work_at_the_agent() -> None:
    async with fake_gateway() as one, fake_gateway() as other, sidecar("--pid", "1", gateways=(one, other)) as running:
        one.inflight, other.inflight = 2, 1
        await one.report(2)
        await other.report(2)
        began = asyncio.get_running_loop().time()
        running.sidecar.stop()
        await one.says(state="draining")
        await other.says(state="draining")
        assert max(one.times[-1], other.times[-1]) - began < 0.2
        await asyncio.sleep(15)
        one.inflight = 0
        await asyncio.sleep(15)
        assert not running.task.done()
        assert "leaving" not in one.states + other.states
        assert one.reports[-1]["load"]["cpu"] == 0.25, "it goes on reporting"
        other.inflight = 0
        assert await running.exit_code() == 0
        assert one.states[-1] == other.states[-1] == "leaving"


@skipping
async def test_a_second_signal_hurries() -> None:
    async with fake_gateway() as gateway, sidecar("--pid", "1", gateways=(gateway,)) as running:
        gateway.inflight = 1
        await gateway.report(1)
        running.sidecar.stop()
        await gateway.says(state="draining")
        began = asyncio.get_running_loop().time()
        running.sidecar.stop()
        assert await running.exit_code() == 0
        assert asyncio.get_running_loop().time() - began < 1.5
        assert gateway.states[-1] == "leaving"


@skipping
async def test_draining_ends_after_the_time_for_it(caplog: pytest.LogCaptureFixture) -> None:
    given = ("--pid", "1", "--drain-timeout", "20s")
    async with fake_gateway() as gateway, sidecar(*given, gateways=(gateway,)) as running:
        gateway.inflight = 1
        await gateway.report(1)
        running.sidecar.stop()
        began = asyncio.get_running_loop().time()
        assert await running.exit_code() == 0
        assert asyncio.get_running_loop().time() - began == pytest.approx(20, abs=2)
        assert "work still runs" in caplog.text


@skipping
async def test_a_wrong_token_is_told_and_does_not_keep_it_from_ending(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_gateway() as gateway, sidecar("--pid", "1", gateways=(gateway,)) as running:
        gateway.status = 401
        await gateway.report(3)
        assert len([record for record in caplog.records if "refuses the token (401)" in record.message]) == 1
        running.sidecar.stop()
        assert await running.exit_code() == 0


@skipping
async def test_overrides_are_what_is_said() -> None:
    given = ("--pid", "1", "--cores", "2.5", "--memory", "4GiB")
    async with fake_gateway() as gateway, sidecar(*given, gateways=(gateway,)):
        load = (await gateway.report(0))["load"]
        assert (load["cores"], load["memory"], load["memory_free"]) == (2.5, 4 * GIB, 4 * GIB)


async def tells(call: Call) -> None:
    await call.answer(b'{"in_flight": 3, "waiting": 1, "cpu": 0.5}')


async def has_no_route(call: Call) -> None:
    await call.answer(b"what?", status=404)


@skipping
async def test_what_the_agent_tells_is_passed_on_and_waited_for() -> None:
    agent = await Agent(tells).start()
    try:
        async with fake_gateway() as gateway:
            given = ("--pid", "1", "--port", str(agent.port))
            async with sidecar(*given, gateways=(gateway,)) as running:
                report = await gateway.says(in_flight=3)
                assert report["load"]["waiting"] == 1
                assert report["load"]["cpu"] == 0.25, "what is measured is not taken from the agent"
                assert agent.requests[0].target == "/.well-known/unjam/load"
                running.sidecar.stop()
                await gateway.says(state="draining")
                await asyncio.sleep(30)
                assert not running.task.done(), "the gateways have nothing there, but the agent works"
                agent.behaviour = lambda call: call.answer(b'{"in_flight": 0}')
                assert await running.exit_code() == 0
    finally:
        await agent.stop()


@skipping
async def test_an_agent_without_the_route_is_asked_once() -> None:
    agent = await Agent(has_no_route).start()
    try:
        given = ("--port", str(agent.port))
        async with fake_gateway() as gateway, sidecar(*given, gateways=(gateway,)) as running:
            await gateway.report(20)
            assert len(agent.requests) == 1
            assert all("in_flight" not in report["load"] for report in gateway.reports)
            running.meter.process = 4343  # another process may have it
            await gateway.report(25)
            assert len(agent.requests) == 2
    finally:
        await agent.stop()


@skipping
async def test_an_agent_in_another_container_counts_by_its_port(caplog: pytest.LogCaptureFixture) -> None:
    agent = await Agent(has_no_route).start()
    try:
        async with fake_gateway() as gateway:
            url = f"http://127.0.0.1:{agent.port}"
            async with sidecar("--url", url, gateways=(gateway,)) as running:
                running.meter.process = None
                assert (await gateway.report(0))["state"] == "ready"
                await gateway.report(3)
                assert caplog.text.count("cannot be seen from here") == 1
                await agent.stop()
                await gateway.says(state="leaving")
    finally:
        await agent.stop()


@skipping
async def test_readings_get_rarer_where_they_are_dear(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    spent = iter(range(1_000_000))
    async with sidecar("--pid", "1", "--agent-check", "127.0.0.1:0") as running:
        running.sidecar._cost = lambda: next(spent) * 0.005  # 5 ms each
        await asyncio.sleep(10)
        before = running.meter.reads
        await asyncio.sleep(100)
        assert (running.meter.reads - before) / 100 == pytest.approx(0.003 / 0.005, abs=0.05)


async def asked(port: int, say: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(say)
    line = await reader.read()
    writer.close()
    await writer.wait_closed()
    return line


@skipping
async def test_what_haproxy_is_told() -> None:
    async with sidecar("--pid", "1", "--agent-check", "127.0.0.1:0", "--slots", "12") as running:
        await until(lambda: bool(running.sidecar.check_port) and "cpu" in running.sidecar._load)
        port = running.sidecar.check_port
        assert await asked(port) == b"ready up 80% maxconn:12\n"
        await asyncio.sleep(60)
        assert await asked(port, b"hello\n") == b"up 80% maxconn:12\n", "`ready` undoes what operators order"
        running.meter.process = None
        await asyncio.sleep(1)
        assert await asked(port) == b"down #agent is gone\n"
        running.meter.process = 7
        await asyncio.sleep(2)
        assert await asked(port) == b"up 80% maxconn:12\n"
        running.sidecar.stop()
        await asyncio.sleep(0.1)
        assert not running.task.done(), "HAProxy has to hear of it"
        assert parse(await asked(port)).admin == "drain"
        assert await running.exit_code() == 0


@skipping
async def test_nobody_waits_for_a_haproxy_that_never_asked() -> None:
    async with sidecar("--pid", "1", "--agent-check", "127.0.0.1:0") as running:
        await until(lambda: bool(running.sidecar.check_port))
        began = asyncio.get_running_loop().time()
        running.sidecar.stop()
        assert await running.exit_code() == 0
        assert asyncio.get_running_loop().time() - began < 2.0


@skipping
async def test_a_peer_that_does_not_hang_up_is_left() -> None:
    async with sidecar("--pid", "1", "--agent-check", "127.0.0.1:0") as running:
        await until(lambda: bool(running.sidecar.check_port))
        reader, writer = await asyncio.open_connection("127.0.0.1", running.sidecar.check_port)
        assert (await reader.read()).endswith(b"\n")
        check = running.sidecar._check
        assert check is not None
        assert len(check._peers) == 1
        await asyncio.sleep(1.5)
        assert not check._peers
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize(
    ("load", "left"),
    [
        ({}, 1.0),
        ({"cpu": 0.5}, 0.5),
        ({"cpu": 0.9, "agent_cpu": 0.6}, 0.7),
        ({"cpu": 1.0}, 0.01),
        ({"cpu": 0.2, "agent_cpu": 0.4}, 1.0),
        ({"memory": 100, "memory_free": 50}, 1.0),
        ({"memory": 100, "memory_free": 5}, 0.5),
        ({"memory": 100, "memory_free": 0}, 0.01),
        ({"cpu": 0.8, "memory": 100, "memory_free": 5}, 0.2),
    ],
)
def test_share_of_the_machine(load: dict[str, float], left: float) -> None:
    assert share(load) == pytest.approx(left)
