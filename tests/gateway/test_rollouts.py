"""Progressive rollouts through a real gateway: a good version arrives by itself, a bad one is back at 0 before it has
had a hundred calls, and whoever looks, asks or restarts finds what was decided."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from unjam.core import promotion
from unjam.core.spec import RolloutSpec

from .harness import PATIENCE, Agent, Call, Running, Wire, gateway, in_loop, until
from .test_changes import SHARED, Admin, Shared, process, running, shared

__all__ = ["shared"]


@pytest.fixture(autouse=True)
def _as_fast_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's pauses may fall on calls of the new version, which is none the worse for them."""
    monkeypatch.setattr(promotion, "LEAST_SLOWER", PATIENCE)


def config(old: Agent, new: Agent, rollout: str = "", state: str = "memory", more: str = "") -> str:
    rollout = rollout or "{steps: [10%, 50%, 100%], hold: 200ms, min_requests: 20}"
    return (
        f"listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\naccess_log: off\nstate: '{state}'\n{more}"
        f"services:\n  agent:\n    match: {{path: /}}\n    rollout: {rollout}\n    versions:\n"
        f"      v7: {{weight: 1, endpoints: ['{old.url}']}}\n      v8: {{weight: 0, endpoints: ['{new.url}']}}\n"
    )


async def fine(call: Call) -> None:
    await call.answer()


async def broken(call: Call) -> None:
    await call.answer(b"no", status=500)


@asynccontextmanager
async def fleet(new: Any = fine) -> AsyncIterator[tuple[Agent, Agent]]:
    agents = await Agent(fine).start(), await Agent(new).start()
    try:
        yield agents
    finally:
        for agent in agents:
            await agent.stop()


async def rollout_of(admin: Admin) -> dict[str, Any]:
    found: dict[str, Any] = (await admin.get("/api/rollout"))["rollouts"].get("agent", {})
    return found


async def under_load(gw: Running, admin: Admin, state: str) -> list[int]:
    """Requests until the rollout is in this state; their statuses."""
    wire = await gw.connect()
    statuses = []
    async with asyncio.timeout(PATIENCE):
        while gw.server.rollouts.status().get("agent", {}).get("state") != state:
            statuses.append((await wire.get()).status)
            if len(statuses) % 20 == 0:
                await asyncio.sleep(0.001)
    return statuses


@in_loop
async def test_a_good_version_reaches_everyone_by_itself() -> None:
    async with fleet() as (old, new), running(config(old, new)) as (gw, admin):
        await under_load(gw, admin, "promoted")
        await until(lambda: gw.gateway.balancer.services["agent"].versions[0].weight == 0.0)
        assert await admin.weights() == {"v7": 0.0, "v8": 100.0}
        story = [change["after"] for change in reversed(await admin.changes(key="rollout/agent"))]
        assert [(each["state"], each["share"]) for each in story] == [
            ("running", 0.1),
            ("running", 0.5),
            ("running", 1.0),
            ("promoted", 1.0),
        ]
        wire = await gw.connect()
        assert {(await wire.get()).header("x-unjam-version") for _ in range(20)} == {"v8"}


@in_loop
async def test_each_step_has_its_share_exactly() -> None:
    async with fleet() as (old, new), running(config(old, new, "{steps: [10%, 100%], hold: 1h}")) as (gw, admin):
        await until(lambda: gw.server.rollouts.status())
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 10.0)
        wire = await gw.connect()
        got = Counter([(await wire.get()).header("x-unjam-version") for _ in range(200)])
        assert got == {"v7": 180, "v8": 20}
        row = await rollout_of(admin)
        assert (row["state"], row["share"], row["new"]["calls"], row["old"]["calls"]) == ("running", 0.1, 20, 180)
        assert "s of its hold are left" in row["waits_for"]


@in_loop
async def test_a_bad_one_is_back_at_nothing_within_a_hundred_of_its_calls() -> None:
    seen: list[dict[str, Any]] = []

    async def hook(call: Call) -> None:
        import json

        seen.append(json.loads(call.seen.body))
        await call.answer(b"", status=204)

    hooked = await Agent(hook).start()
    async with fleet(broken) as (old, new):
        more = f"webhooks: [{{url: '{hooked.url}/hook', events: [rollout], secret: 0123456789abcdef}}]\n"
        async with running(config(old, new, more=more)) as (gw, admin):
            await under_load(gw, admin, "rolled_back")
            assert 0 < len(new.requests) <= 100
            await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 0.0)
            assert await admin.weights() == {"v7": 100.0, "v8": 0.0}
            (last, *_) = await admin.changes(key="rollout/agent")
            assert last["after"]["state"] == "rolled_back"
            assert "breaker" in last["why"]
            await until(lambda: any(event["after"]["state"] == "rolled_back" for event in seen))
            wire = await gw.connect()
            assert {(await wire.get()).status for _ in range(50)} == {200}
            await hooked.stop()


@in_loop
async def test_a_version_that_is_worse_without_tripping_goes_back_at_the_end_of_its_step() -> None:
    n = 0

    async def sometimes(call: Call) -> None:
        nonlocal n
        n += 1
        await call.answer(b"", status=500 if n % 25 == 0 else 200)

    async with fleet(sometimes) as (old, new):
        rollout = "{steps: [50%, 100%], hold: 100ms, min_requests: 400}"
        text = config(old, new, rollout).replace("    rollout", "    breaker: {error_rate: 20%}\n    rollout")
        async with running(text) as (gw, admin):
            await under_load(gw, admin, "rolled_back")
            row = await rollout_of(admin)
            assert "calls failed" in row["why"]


@in_loop
async def test_operators_steer_it_and_are_named() -> None:
    async with (
        fleet() as (old, new),
        running(config(old, new, "{steps: [10%, 50%, 100%], hold: 1h}")) as (gw, admin),
    ):
        await until(lambda: gw.server.rollouts.status())

        async def steer(action: str, status: int = 200) -> Any:
            return await admin.post("/api/rollout", status, service="agent", action=action)

        assert (await steer("pause"))["state"] == "paused"
        assert (await steer("pause", 409))["error"]["code"] == "not_now"
        assert (await steer("resume"))["state"] == "running"
        assert (await steer("promote"))["share"] == 0.5
        assert (await steer("abort"))["state"] == "rolled_back"
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 0.0)
        assert (await steer("resume", 409))["error"]["code"] == "not_now"
        assert (await steer("start"))["share"] == 0.1
        whos = {change["who"] for change in (await admin.changes(key="rollout/agent"))[:-1]}
        assert whos == {"loopback@127.0.0.1"}


@in_loop
async def test_weights_set_by_hand_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.gateway.rollouts.PATIENCE", 0.1)
    async with fleet() as (old, new), running(config(old, new)) as (gw, admin):
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 10.0)
        await admin.weigh(v7=60, v8=40)
        await until(lambda: gw.server.rollouts.status()["agent"]["state"] == "paused")
        assert await admin.weights() == {"v7": 60.0, "v8": 40.0}
        assert "by hand" in (await rollout_of(admin))["why"]


@in_loop
async def test_it_goes_on_where_it_was_after_the_gateway_was_killed(tmp_path: Path) -> None:
    async with fleet() as (old, new):
        path = tmp_path / "unjam.yaml"
        path.write_text(config(old, new, "{steps: [10%, 50%, 100%], hold: 1h}", f"sqlite:{tmp_path}/unjam.db"))
        async with process(path) as (child, admin, _):
            async with asyncio.timeout(PATIENCE):
                while await admin.weights() != {"v7": 90.0, "v8": 10.0}:
                    await asyncio.sleep(0.02)
                await admin.post("/api/rollout", service="agent", action="promote")
                while await admin.weights() != {"v7": 50.0, "v8": 50.0}:
                    await asyncio.sleep(0.02)
                while (await rollout_of(admin))["held"] < 2.0:
                    await asyncio.sleep(0.02)
            child.send(signal.SIGKILL)
        await child.exit_code()
        async with process(path) as (_, admin, _port):
            async with asyncio.timeout(PATIENCE):
                while not await rollout_of(admin):
                    await asyncio.sleep(0.02)
            before = time.time()
            row = await rollout_of(admin)
            after = time.time()
            assert (row["state"], row["share"], row["why"]) == ("running", 0.5, "promoted by hand")
            # All the time since the step began, by the log, is time held.
            (change, *_) = await admin.changes(key="rollout/agent")
            begun = datetime.fromisoformat(change["at"]).timestamp()
            assert before - begun - 2.0 < row["held"] <= after - begun + 1.0
            assert await admin.weights() == {"v7": 50.0, "v8": 50.0}


@in_loop
async def test_two_gateways_agree_and_what_one_finds_bad_is_back_for_both(shared: Shared) -> None:
    async with fleet(broken) as (old, new):
        text = config(old, new, "{steps: [10%, 50%, 100%], hold: 1h}", SHARED)
        async with AsyncExitStack() as stack:
            first, admin = await stack.enter_async_context(running(text))
            second, other = await stack.enter_async_context(running(text))
            await until(lambda: second.server.rollouts.status().get("agent", {}).get("state") == "running")
            await under_load(first, admin, "rolled_back")
            await until(lambda: second.server.rollouts.status()["agent"]["state"] == "rolled_back")
            await until(lambda: second.gateway.balancer.services["agent"].versions[1].weight == 0.0)
            assert await other.weights() == await admin.weights() == {"v7": 100.0, "v8": 0.0}


@in_loop
async def test_other_steps_in_a_reload_go_on_from_where_it_was() -> None:
    async with fleet() as (old, new):
        given = {"text": config(old, new, "{steps: [10%, 100%], hold: 1h}")}
        from unjam.config import parse

        async with gateway(config=given["text"], reload=lambda: parse(given["text"], {})) as gw:
            await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 10.0)
            given["text"] = config(old, new, "{steps: [10%, 30%, 100%], hold: 50ms, min_requests: 5}")
            assert await gw.server.reload() == []
            wire: Wire = await gw.connect()
            async with asyncio.timeout(PATIENCE):
                while gw.server.rollouts.status()["agent"]["state"] != "promoted":
                    await wire.get()
            given["text"] = config(old, new).replace("    rollout:", "    strip_prefix: false\n    #")
            assert await gw.server.reload() == []
            await until(lambda: not gw.server.rollouts.status())


def three(old: Agent, new: Agent, rollout: str) -> str:
    """With a version before the old one, retired but still listed."""
    text = config(old, new, rollout)
    return text.replace("      v7:", f"      v6: {{weight: 1, endpoints: ['{old.url}']}}\n      v7:")


@in_loop
async def test_a_version_that_leaves_the_file_meanwhile_takes_nothing_along() -> None:
    from unjam.config import parse

    async with fleet(broken) as (old, new):
        rollout = "{steps: [10%, 100%], hold: 300ms, min_requests: 1000000}"
        given = {"text": three(old, new, rollout)}
        async with gateway(config=given["text"], reload=lambda: parse(given["text"], {})) as gw:
            await until(lambda: gw.gateway.balancer.services["agent"].versions[2].weight == 10.0)
            wire = await gw.connect()
            for _ in range(30):
                await wire.get(headers="x: y\r\n")
            given["text"] = config(old, new, rollout)
            assert await gw.server.reload() == []
            async with asyncio.timeout(PATIENCE):
                while gw.server.rollouts.status()["agent"]["state"] != "rolled_back":
                    await wire.get()
                    await asyncio.sleep(0)
            v7, v8 = gw.gateway.balancer.services["agent"].versions
            assert (v7.weight, v8.weight) == (100.0, 0.0)


@in_loop
async def test_who_is_compared_has_changed_and_nothing_breaks() -> None:
    """What a version that is gone had done is no part of what the others did."""
    from unjam.config import parse

    n = 0

    async def sometimes(call: Call) -> None:
        nonlocal n
        n += 1
        await call.answer(b"", status=500 if n % 30 == 0 else 200)

    async with fleet(sometimes) as (old, new):
        rollout = "{steps: [50%, 100%], hold: 1s, min_requests: 1}"
        given = {"text": three(old, new, rollout)}
        async with gateway(config=given["text"], reload=lambda: parse(given["text"], {})) as gw:
            await until(lambda: gw.gateway.balancer.services["agent"].versions[2].weight == 50.0)
            wire = await gw.connect()
            for _ in range(200):
                await wire.get()
            given["text"] = config(old, new, rollout)
            assert await gw.server.reload() == []
            row = gw.server.rollouts.status()["agent"]
            assert (row["new"]["calls"], row["old"]["calls"]) == (0, 0)
            async with asyncio.timeout(PATIENCE):
                while (row := gw.server.rollouts.status()["agent"])["step"] == 0 and row["state"] == "running":
                    await wire.get()


@in_loop
async def test_a_version_that_nobody_can_reach_waits_where_it_is() -> None:
    async with fleet() as (old, new), running(config(old, new, "{steps: [10%, 100%], hold: 1h}")) as (gw, admin):
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 10.0)
        port = new.port
        await new.stop()
        wire = await gw.connect()
        version = gw.gateway.balancer.services["agent"].versions[1]
        async with asyncio.timeout(PATIENCE):
            while not version.down:
                assert (await wire.get()).status == 200
        await asyncio.sleep(1.2)  # two looks of the rollout
        row = await rollout_of(admin)
        assert (row["state"], row["share"]) == ("running", 0.1)
        assert row["waits_for"] == "no endpoint of it is in service"
        await new.start(port=port)


@in_loop
async def test_a_store_that_hangs_delays_no_rollback(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = asyncio.Event()

    async def put(*changes: Any) -> int:
        await hang.wait()
        raise AssertionError("not reached")

    async with fleet(broken) as (old, new), running(config(old, new, state=SHARED)) as (gw, _):
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 10.0)
        await until(lambda: not gw.server.rollouts._rollouts["agent"].busy)
        monkeypatch.setattr(shared, "put", put)
        wire = await gw.connect()
        async with asyncio.timeout(PATIENCE):
            while gw.server.rollouts.status()["agent"]["state"] != "rolled_back":
                await wire.get()
        assert gw.gateway.balancer.services["agent"].versions[1].weight == 0.0


@in_loop
async def test_no_step_is_taken_over_weights_that_somebody_has_just_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.gateway.rollouts.PATIENCE", 0.1)
    async with fleet() as (old, new), running(config(old, new, "{steps: [10%, 100%], hold: 1s}")) as (gw, admin):
        v7, v8 = gw.gateway.balancer.services["agent"].versions
        await until(lambda: v8.weight == 10.0)
        await admin.weigh(v7=100, v8=0)
        rollout = gw.server.rollouts._rollouts["agent"].promotion
        rollout.spec = RolloutSpec("v8", rollout.spec.steps, hold=0.0, min_requests=0)  # it is due at the next look
        await until(lambda: gw.server.rollouts.status()["agent"]["state"] != "running")
        assert (v7.weight, v8.weight) == (100.0, 0.0)
        assert (await rollout_of(admin))["why"] == "paused: the weights were changed by hand"


@in_loop
async def test_one_that_goes_back_leaves_the_weights_of_the_others_as_they_were_set() -> None:
    async with fleet() as (old, new), running(three(old, new, "{steps: [10%, 100%], hold: 1h}")) as (gw, admin):
        versions = gw.gateway.balancer.services["agent"].versions
        await until(lambda: versions[2].weight == 10.0)

        async def tripped() -> dict[str, float]:
            gw.gateway.balancer.trip("agent", "v8", asyncio.get_running_loop().time())
            await until(lambda: gw.server.rollouts.status()["agent"]["state"] == "rolled_back")
            return await admin.weights()

        await admin.weigh(v6=0, v7=7, v8=3)
        assert await tripped() == {"v6": 0.0, "v7": 7.0, "v8": 0.0}
        # But somebody has to be there.
        await admin.post("/api/breaker", service="agent", version="v8", action="reset")
        await admin.post("/api/rollout", service="agent", action="start")
        await admin.weigh(v6=0, v7=0, v8=3)
        assert await tripped() == {"v6": 0.0, "v7": 100.0, "v8": 0.0}


@in_loop
async def test_an_endpoint_that_is_away_for_a_moment_ends_no_rollout() -> None:
    async with fleet() as (old, new), running(config(old, new, "{steps: [10%, 100%], hold: 1h}")) as (gw, admin):
        version = gw.gateway.balancer.services["agent"].versions[1]
        await until(lambda: version.weight == 10.0)
        endpoint, now = gw.endpoint(new.url), asyncio.get_running_loop().time
        gw.gateway.balancer.set_health(endpoint, False, now())
        assert version.breaker.state == "open"
        gw.gateway.balancer.set_health(endpoint, True, now())
        gw.server.rollouts.tick()
        assert (await rollout_of(admin))["state"] == "running"
        gw.gateway.balancer.trip("agent", "v8", now())
        gw.server.rollouts.tick()
        assert (await rollout_of(admin))["state"] == "rolled_back"


async def looked(gw: Running) -> None:
    """The rollout has looked at what is there."""
    await until(lambda: not gw.server.rollouts._rollouts["agent"].busy)
    gw.server.rollouts.tick()


@in_loop
async def test_a_reload_that_changes_the_present_step_or_the_versions_changes_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from unjam.config import parse

    monkeypatch.setattr("unjam.gateway.rollouts.PATIENCE", 0.0)
    async with fleet() as (old, new):
        given = {"text": config(old, new, "{steps: [10%, 100%], hold: 1h}")}

        async def reloaded(text: str) -> tuple[str, dict[str, float]]:
            given["text"] = text
            assert await gw.server.reload() == []
            await looked(gw)
            state = gw.server.rollouts.status()["agent"]["state"]
            return state, {each.name: each.weight for each in gw.gateway.balancer.services["agent"].versions}

        async with gateway(config=given["text"], reload=lambda: parse(given["text"], {})) as gw:
            await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 10.0)
            rollout = "{steps: [20%, 100%], hold: 1h}"
            assert await reloaded(config(old, new, rollout)) == ("running", {"v7": 80.0, "v8": 20.0})
            assert await reloaded(three(old, new, rollout)) == ("running", {"v6": 40.0, "v7": 40.0, "v8": 20.0})
            assert await reloaded(config(old, new, rollout)) == ("running", {"v7": 80.0, "v8": 20.0})
            # What the file itself says of weights is somebody's wish.
            text = config(old, new, rollout).replace("weight: 1,", "weight: 3,")
            assert await reloaded(text) == ("paused", {"v7": 3.0, "v8": 20.0})


@in_loop
async def test_a_gateway_that_has_not_been_reloaded_yet_leaves_the_steps_of_others_alone(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unjam.config import parse

    monkeypatch.setattr("unjam.gateway.rollouts.PATIENCE", 0.0)
    async with fleet() as (old, new):
        given = {"text": config(old, new, "{steps: [10%, 100%], hold: 1h}", SHARED)}
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(
                gateway(config=given["text"], reload=lambda: parse(given["text"], {}))
            )
            second = await stack.enter_async_context(gateway(config=given["text"]))
            there = second.gateway.balancer.services["agent"].versions[1]
            await until(lambda: there.weight == 10.0)
            given["text"] = given["text"].replace("10%", "20%")
            assert await first.server.reload() == []
            await until(lambda: there.weight == 20.0)
            for each in (first, second):
                await looked(each)
            assert [each.server.rollouts.status()["agent"]["state"] for each in (first, second)] == ["running"] * 2


@in_loop
async def test_versions_that_only_another_gateway_has_yet_are_in_nobodys_way(shared: Shared) -> None:
    from unjam.config import parse

    async with fleet(broken) as (old, new):
        rollout = "{steps: [10%, 100%], hold: 1h}"
        given = {"text": config(old, new, rollout, SHARED)}
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(
                gateway(config=given["text"], reload=lambda: parse(given["text"], {}))
            )
            second, admin = await stack.enter_async_context(running(given["text"]))
            await until(lambda: second.gateway.balancer.services["agent"].versions[1].weight == 10.0)
            given["text"] = three(old, new, rollout).replace("'memory'", f"'{SHARED}'")
            assert await first.server.reload() == []
            v6, v7, v8 = first.gateway.balancer.services["agent"].versions
            assert (v6.weight, v7.weight, v8.weight) == (45.0, 45.0, 10.0)
            await until(lambda: second.gateway.balancer.services["agent"].versions[0].weight == 45.0)
            await under_load(second, admin, "rolled_back")
            assert await admin.weights() == {"v7": 100.0, "v8": 0.0}
            await until(lambda: v8.weight == 0.0)
            assert v7.weight > 0.0
