"""What versions promise, each once through a real gateway: exact shares, callers that stay, an outage that callers see
nothing of but the basic agent and the message, and the way back. At length: `python -m benchmarks.versions`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
import websockets

from .harness import PATIENCE, Agent, Call, Running, Wire, gateway, in_loop, until
from .test_changes import Admin, running

MESSAGE = "Soon."


async def fine(call: Call) -> None:
    await call.answer(b"fine")


def shares(old: Agent, new: Agent, more: str = "") -> str:
    return (
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\naccess_log: off\nstate: memory\n"
        f"services:\n  agent:\n    match: {{path: /}}\n{more}    versions:\n"
        f"      v7: {{weight: 90, endpoints: ['{old.url}']}}\n      v8: {{weight: 10, endpoints: ['{new.url}']}}\n"
        f"      v9: {{weight: 0, endpoints: ['{new.url}']}}\n"
    )


@in_loop
async def test_every_hundred_requests_without_a_key_are_shared_exactly() -> None:
    old, new = await Agent(fine).start(), await Agent(fine).start()
    async with gateway(old, new, config=shares(old, new)) as gw:
        wire = await gw.connect()
        versions = [(await wire.get()).header("x-unjam-version") for _ in range(1000)]
        windows = [versions[n : n + 100].count("v8") for n in range(len(versions) - 99)]
        assert 9 <= min(windows) <= max(windows) <= 11


async def everybody(gw: Running, callers: int) -> dict[int, str | None]:
    """By caller: the version."""
    found: dict[int, str | None] = {}

    async def some(first: int) -> None:
        wire = await Wire.connect(gw.port)
        try:
            for user in range(first, callers, 8):
                found[user] = (await wire.get(headers=f"x-user-id: user-{user}\r\n")).header("x-unjam-version")
        finally:
            wire.close()

    async with asyncio.TaskGroup() as group:
        for first in range(8):
            group.create_task(some(first))
    return found


@in_loop
async def test_callers_keep_their_version_and_only_those_move_that_must() -> None:
    old, new = await Agent(fine).start(), await Agent(fine).start()
    async with running(shares(old, new, "    sticky: x-user-id\n")) as (gw, admin):
        try:
            first = await everybody(gw, 400)
            assert await everybody(gw, 400) == first
            assert 20 <= Counter(first.values())["v8"] <= 60
            await admin.weigh(v7=80, v8=20)
            second = await everybody(gw, 400)
            moved = {user for user in first if first[user] != second[user]}
            assert {second[user] for user in moved} == {"v8"}
            assert len(moved) == Counter(second.values())["v8"] - Counter(first.values())["v8"] > 0
            await admin.weigh(v7=72, v8=18, v9=10)  # as a rollout takes its share of all
            third = await everybody(gw, 400)
            assert {third[user] for user in first if second[user] != third[user]} == {"v9"}
            await admin.weigh(v7=90, v8=10, v9=0)
            assert await everybody(gw, 400) == first
        finally:
            await old.stop()
            await new.stop()


async def state(admin: Admin) -> str:
    found: str = (await admin.version("v1"))["breaker"]["state"]
    return found


@in_loop
async def test_an_outage_from_the_first_failure_to_full_weight_again() -> None:
    healthy = True

    async def turncoat(call: Call) -> None:
        await call.answer(b"v1" if healthy else b"no", status=200 if healthy else 500)

    bad, basic = await Agent(turncoat).start(), await Agent(fine).start()
    text = (
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\naccess_log: off\n"
        "services:\n  agent:\n    match: {path: /}\n    breaker: {open: 300ms}\n"
        f"    fallback: [basic, {{maintenance: '{MESSAGE}', retry_after: 30s}}]\n"
        f"    versions: {{v1: {{endpoints: ['{bad.url}']}}}}\n"
        f"  basic: {{match: {{path: /basic}}, versions: {{v1: {{endpoints: ['{basic.url}']}}}}}}\n"
    )
    async with running(text) as (gw, admin):
        wire = await gw.connect()
        assert (await wire.post()).body == b"v1"
        healthy = False
        before = [(await wire.post()).status for _ in range(5)]
        assert before == [500] * 5
        sent = len(bad.requests)

        async def trips() -> int:
            count: int = (await admin.version("v1"))["breaker"]["trips"]
            return count

        # Over a ramp that fails nobody sees a failure of the version, and it gets three probes; where this machine is
        # slow, a part of the next ramp's too.
        first = await trips()
        async with asyncio.timeout(PATIENCE):
            while (ramps := await trips() - first) < 1:
                for _ in range(20):
                    got = await wire.post()
                    assert (got.status, got.body) == (200, b"fine")
        assert 3 * ramps <= len(bad.requests) - sent < 3 * (ramps + 1)
        await basic.stop()
        got = await wire.post(headers="Accept: text/event-stream\r\n")
        assert (got.status, got.body.split(b"\n")[:2]) == (503, [b"retry: 30000", b"event: error"])
        async with websockets.connect(f"ws://127.0.0.1:{gw.port}/") as socket:
            with pytest.raises(websockets.ConnectionClosed) as caught:
                await socket.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1013, MESSAGE)
        got = await wire.post()
        assert (got.status, json.loads(got.body)["error"]["code"]) == (503, "maintenance")
        healthy = True
        async with asyncio.timeout(PATIENCE):
            while await state(admin) != "closed":
                for _ in range(20):
                    got = await wire.post()
                    assert got.status == 200 or json.loads(got.body)["error"]["code"] == "maintenance"
        version = gw.gateway.balancer.services["agent"].versions[0]
        await until(lambda: version.share == 1.0)  # the next tick gives it what its breaker allows
        assert {(await wire.post()).body for _ in range(20)} == {b"v1"}
        await until(lambda: not gw.leases)
        await bad.stop()
