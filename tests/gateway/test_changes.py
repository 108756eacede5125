"""What is changed at run time: kept over a kill, seen by other gateways, written down, and never in the way."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from tests.clocks import Awake
from tests.runs.redis_servers import Server as Redis
from unjam.config import parse
from unjam.gateway import changes as module
from unjam.gateway import server as server_module
from unjam.kept.base import Change, KeptAway
from unjam.kept.memory import MemoryKept

from .harness import Agent, Call, Running, gateway, in_loop, until
from .processes import Process, served
from .reporting import DISCOVERS, reported

VERSIONS = "{v7: {weight: 90, endpoints: ['%s']}, v8: {weight: %g, endpoints: ['%s']}}"
NOWHERE = "http://127.0.0.1:9"


def text(state: str = "memory", v8: float = 10, urls: tuple[str, str] = (NOWHERE, NOWHERE), more: str = "") -> str:
    versions = VERSIONS % (urls[0], v8, urls[1])
    return (
        f"listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\naccess_log: off\nstate: '{state}'\n"
        f"services: {{agent: {{versions: {versions}, breaker: {{error_rate: 5%, open: 60s}}{more}}}}}\n"
    )


class Admin:
    """An admin listener as an operator meets it."""

    def __init__(self, port: int) -> None:
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self._client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def weigh(self, **weights: float) -> Any:
        return await self.post("/api/weight", service="agent", weights=weights)

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self._client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def version(self, name: str) -> Any:
        return (await self.get("/api/state"))["services"]["agent"]["versions"][name]

    async def weights(self) -> dict[str, float]:
        versions = (await self.get("/api/state"))["services"]["agent"]["versions"]
        return {name: version["weight"] for name, version in versions.items()}

    async def audit(self, **query: Any) -> list[tuple[str, Any, Any]]:
        return [(each["key"], each["before"], each["after"]) for each in await self.changes(**query)]

    async def changes(self, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get("/api/audit", **query))["changes"]
        return found


@asynccontextmanager
async def running(config: str, **more: Any) -> AsyncIterator[tuple[Running, Admin]]:
    async with gateway(config=config, **more) as gw:
        assert gw.server.admin is not None
        admin = Admin(gw.server.admin.port)
        try:
            yield gw, admin
        finally:
            await admin.close()


@asynccontextmanager
async def process(path: Path) -> AsyncIterator[tuple[Process, Admin, int]]:
    async with served("--config", str(path)) as (child, port):
        match = await child.says(r'"event": ?"admin".*?127\.0\.0\.1:(\d+)')
        admin = Admin(int(match.group(1)))
        try:
            yield child, admin, port
        finally:
            await admin.close()


class Shared(MemoryKept):
    """One place for the gateways of a test. `away`: it can't be reached."""

    shared = True
    away = False

    async def put(self, *changes: Change) -> int:
        self._reach()
        return await super().put(*changes)

    async def since(self, n: int) -> list[Change]:
        self._reach()
        return await super().since(n)

    async def current(self) -> dict[str, Change]:
        self._reach()
        return await super().current()

    def _reach(self) -> None:
        if self.away:
            raise KeptAway("the shared place is away")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    kept = Shared()
    monkeypatch.setattr(server_module, "make_kept", lambda url: kept)
    monkeypatch.setattr(module, "POLL", 0.0)
    return kept


SHARED = "sqlite:/nowhere/unjam.db"  # not opened: `shared` stands in


# -- one gateway -------------------------------------------------------------------------------------------------------


@in_loop
async def test_several_weights_are_one_change_and_say_how_long_they_hold() -> None:
    async with running(text()) as (_, admin):
        answer = await admin.weigh(v7=50, v8=50)
        assert answer["before"] == {"v7": 90, "v8": 10}
        assert (answer["kept"], answer["holds"]) == (False, "until the next restart")
        assert await admin.weights() == {"v7": 50, "v8": 50}
        refused = await admin.post("/api/weight", 404, service="agent", weights={"v7": 1, "v9": 1})
        assert refused["error"]["code"] == "unknown_version"
        assert refused["error"]["message"] == "agent has no version v9. There are: v7, v8."
        refused = await admin.post("/api/weight", 404, service="nobody", weights={"v7": 1})
        assert refused["error"]["message"].startswith("There is no service nobody. There are: ")
        assert await admin.weights() == {"v7": 50, "v8": 50}


@in_loop
async def test_the_audit_log_says_who_when_from_and_to() -> None:
    async with running(text()) as (_, admin):
        start = time.time()
        await admin.weigh(v8=20)
        await admin.post("/api/breaker", service="agent", version="v8", action="trip")
        await admin.post("/api/drain", endpoint=NOWHERE)
        changes = await admin.changes()
        assert [(each["key"], each["before"], each["after"]) for each in changes] == [
            (f"drain/{NOWHERE}", False, True),
            ("breaker/agent/v8", "closed", "open"),
            ("weight/agent/v8", 10, {"weight": 20, "base": 10}),
        ]
        assert {each["who"] for each in changes} == {"loopback@127.0.0.1"}
        stamp = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(start))
        assert changes[0]["at"][:13] == stamp[:13]
        assert [each["n"] for each in changes] == [3, 2, 1]
        page = await admin.get("/api/audit", limit=2)
        assert page["next"] == 2
        rest = await admin.get("/api/audit", limit=2, before=page["next"])
        assert ([each["n"] for each in rest["changes"]], rest["next"]) == ([1], None)
        assert len(await admin.audit(key="weight/agent")) == 1


@in_loop
async def test_a_trip_by_the_breaker_itself_is_written_down_with_its_reason() -> None:
    async def fails(call: Call) -> None:
        await call.answer(status=500)

    bad, good = await Agent(fails).start(), await Agent().start()
    try:
        more = ", ejection: {failures: 1000}"
        async with running(text(urls=(good.url, bad.url), v8=1000, more=more)) as (gw, admin):
            wire = await gw.connect()
            for _ in range(40):
                await wire.get()
            await until(lambda: gw.gateway.stats.changes)
            (change,) = await admin.changes()
            assert (change["key"], change["before"], change["after"]) == ("breaker/agent/v8", "closed", "open")
            assert change["who"] == change["where"] == gw.server.changes.where
            assert change["why"]
    finally:
        await bad.stop()
        await good.stop()


@in_loop
async def test_a_reload_leaves_what_was_set_unless_the_file_changed_it() -> None:
    files = [text(), text(v8=30), text(v8=30), text()]
    async with running(files[0], reload=lambda: parse(files[0], {})) as (gw, admin):
        await admin.weigh(v8=20)
        assert await gw.server.reload() == []
        assert await admin.weights() == {"v7": 90, "v8": 20}
        files.pop(0)
        assert await gw.server.reload() == []
        assert await admin.weights() == {"v7": 90, "v8": 30}
        (last, *_) = await admin.changes(key="weight/agent/v8")
        assert (last["before"], last["after"]["weight"]) == (20, 30)
        assert last["why"] == "the configuration file says so"
        # Back to what it was when a person set 20: that is over.
        files[:] = [files[-1]]
        assert await gw.server.reload() == []
        assert await admin.weights() == {"v7": 90, "v8": 10}
        assert await gw.server.reload() == []
        assert await admin.weights() == {"v7": 90, "v8": 10}


@in_loop
async def test_a_version_that_a_reload_brings_back_has_its_weight_again() -> None:
    whole, less = text(), text().replace(", v8: {weight: 10", ", v6: {weight: 10")
    files = [less]
    async with running(whole, reload=lambda: parse(files[0], {})) as (gw, admin):
        await admin.weigh(v8=20)
        assert await gw.server.reload() == []
        assert await admin.weights() == {"v7": 90, "v6": 10}
        files[0] = whole
        assert await gw.server.reload() == []
        assert await admin.weights() == {"v7": 90, "v8": 20}


@in_loop
async def test_a_drained_endpoint_that_left_is_not_drained_when_its_address_joins_again() -> None:
    url = "http://127.0.0.1:9"
    async with reported(DISCOVERS) as gw:
        reporter = await gw.connect()
        await reporter.report(url)
        await gw.server.changes.drain(url, True, "test")
        assert gw.shown(url)["draining"] is True
        await reporter.report(url, state="leaving")
        await until(lambda: gw.server.changes.value(f"drain/{url}") is False)
        await reporter.report(url)
        assert gw.shown(url)["draining"] is False


# -- over restarts -----------------------------------------------------------------------------------------------------


@in_loop
async def test_everything_holds_over_a_kill_as_long_as_the_file_says_the_same(tmp_path: Path) -> None:
    first, second = await Agent().start(), await Agent().start()
    path = tmp_path / "unjam.yaml"
    urls = (first.url, second.url)
    path.write_text(text("sqlite:unjam.db", urls=urls))
    try:
        async with process(path) as (child, admin, _):
            answer = await admin.weigh(v7=50, v8=20)
            assert (answer["kept"], answer["holds"]) == (True, "over restarts")
            await admin.post("/api/breaker", service="agent", version="v7", action="trip")
            assert (await admin.post("/api/drain", endpoint=first.url))["kept"]
            child.send(signal.SIGKILL)
            await child.exit_code()
        async with process(path) as (child, admin, port):
            assert await admin.weights() == {"v7": 50, "v8": 20}
            v7 = await admin.version("v7")
            assert (v7["breaker"]["state"], v7["endpoints"][0]["draining"]) == ("open", True)
            assert len(await admin.changes()) == 4
            # In force before the first request.
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"http://127.0.0.1:{port}/")
            assert answer.headers["x-unjam-version"] == "v8"
            await admin.post("/api/breaker", service="agent", version="v7", action="reset")
            await admin.post("/api/drain", endpoint=first.url, draining=False)
            child.send(signal.SIGKILL)
            await child.exit_code()
        path.write_text(text("sqlite:unjam.db", v8=30, urls=urls))
        async with process(path) as (child, admin, _):
            assert await admin.weights() == {"v7": 50, "v8": 30}
            v7 = await admin.version("v7")
            assert (v7["breaker"]["state"], v7["endpoints"][0]["draining"]) == ("closed", False)
            while (await admin.changes())[0]["key"] != "weight/agent/v8":
                await asyncio.sleep(0.01)
            child.send(signal.SIGKILL)
            await child.exit_code()
        path.write_text(text("sqlite:unjam.db", urls=urls))
        async with process(path) as (_, admin, _):
            assert await admin.weights() == {"v7": 50, "v8": 10}
    finally:
        await first.stop()
        await second.stop()


@in_loop
async def test_a_trip_of_long_ago_is_over(shared: Shared) -> None:
    old = Change(key="breaker/agent/v8", before="closed", after="open", who="w", where="g", at=time.time() - 61)
    fresh = Change(key="breaker/agent/v7", before="closed", after="open", who="w", where="g", at=time.time() - 5)
    await shared.put(old, fresh)
    async with running(text(SHARED)) as (_, admin):
        assert (await admin.version("v8"))["breaker"]["state"] == "closed"
        assert (await admin.version("v7"))["breaker"]["state"] == "open"


# -- several gateways --------------------------------------------------------------------------------------------------


@in_loop
async def test_two_gateways_on_one_redis_do_the_same_within_two_seconds(tmp_path: Path) -> None:
    async def fails(call: Call) -> None:
        await call.answer(status=500)

    redis = Redis(tmp_path / "redis").start()
    first, second = await Agent().start(), await Agent().start()
    path = tmp_path / "unjam.yaml"
    path.write_text(text(redis.url(), urls=(first.url, second.url), more=", ejection: {failures: 1000}"))
    try:
        async with process(path) as (_, one, port), process(path) as (_, other, _):

            async def seen(what: Any, name: str) -> None:
                clock = Awake()
                start = clock()
                while not await what():
                    assert clock() - start < 2.0, name
                    await asyncio.sleep(0.02)

            async def weighed() -> bool:
                return await other.weights() == {"v7": 60, "v8": 40}

            async def drained() -> bool:
                return bool((await other.version("v7"))["endpoints"][0]["draining"])

            async def back() -> bool:
                return not await drained()

            async def tripped() -> bool:
                return bool((await other.version("v8"))["breaker"]["state"] == "open")

            assert (await one.weigh(v7=60, v8=40))["kept"]
            await seen(weighed, "weights")
            await one.post("/api/drain", endpoint=first.url)
            await seen(drained, "drain")
            await other.post("/api/drain", endpoint=first.url, draining=False)
            await seen(back, "undrain")
            # One of them finds v8 bad; the other has sent it nothing.
            second.behaviour = fails
            await one.weigh(v7=0, v8=1)
            async with httpx.AsyncClient(trust_env=False) as client:
                for _ in range(8):
                    await client.get(f"http://127.0.0.1:{port}/")
            assert (await one.version("v8"))["breaker"]["state"] == "open"
            await seen(tripped, "trip")
            (trip,) = await other.changes(key="breaker")
            assert (trip["after"], trip["who"]) == ("open", trip["where"])
            assert trip["why"] in (await other.version("v8"))["breaker"]["why"]
            assert await one.audit() == await other.audit()
    finally:
        await first.stop()
        await second.stop()
        redis.kill()


@in_loop
async def test_a_trip_by_a_gateway_whose_clock_is_wrong_is_one_all_the_same(shared: Shared) -> None:
    hour = 3600.0
    async with running(text(SHARED)) as (gw, admin):
        versions = gw.gateway.balancer.services["agent"].versions
        for version, off in zip(versions, (-hour, hour), strict=True):
            key = f"breaker/agent/{version.name}"
            await shared.put(Change(key=key, before="closed", after="open", who="w", where="g", at=time.time() + off))
            await until(lambda version=version: version.breaker.state == "open")  # type: ignore[misc]
    # At a start there is nothing but clocks to tell.
    async with running(text(SHARED)) as (_, admin):
        assert (await admin.version("v8"))["breaker"]["state"] == "closed"


@in_loop
async def test_a_trip_that_could_not_be_told_is_not_told_when_it_is_over(shared: Shared) -> None:
    brief = text(SHARED).replace("open: 60s", "open: 300ms")
    async with running(brief) as (gw, admin), running(brief) as (other, _):
        shared.away = True
        await admin.post("/api/breaker", service="agent", version="v8", action="trip")
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].breaker.state == "ramping")
        await admin.weigh(v7=1)
        shared.away = False
        await until(lambda: other.gateway.balancer.services["agent"].versions[0].weight == 1)
        assert other.gateway.balancer.services["agent"].versions[1].breaker.trips == 0


@in_loop
async def test_a_trip_is_told_once_and_not_back(shared: Shared) -> None:
    receiver = await Agent().start()
    config = text(SHARED) + f"webhooks: '{receiver.url}'\n"
    async with running(config) as (one, admin), running(config) as (other, there):
        await admin.post("/api/breaker", service="agent", version="v8", action="trip")
        await until(lambda: other.gateway.balancer.services["agent"].versions[1].breaker.state == "open")
        await there.post("/api/breaker", service="agent", version="v8", action="reset")
        await until(lambda: one.gateway.balancer.services["agent"].versions[1].breaker.state == "closed")
        for gw in (one, other):
            gw.server.changes.tick()
        await asyncio.sleep(0.05)
        assert await admin.audit() == [("breaker/agent/v8", "open", "closed"), ("breaker/agent/v8", "closed", "open")]
    told = [json.loads(seen.body) for seen in receiver.requests]
    assert [(each["gateway"], each["after"]) for each in told] == [
        (one.server.changes.where, "open"),
        (other.server.changes.where, "closed"),
    ]
    await receiver.stop()


@in_loop
async def test_the_later_of_two_changes_counts_for_everybody(shared: Shared) -> None:
    async with running(text(SHARED)) as (_, admin), running(text(SHARED)) as (_, there):
        for n in range(6):
            await asyncio.gather(admin.weigh(v8=n), there.weigh(v8=100 + n))
            shared_weight = (await shared.current())["weight/agent/v8"].after["weight"]
            async with asyncio.timeout(20):
                while not ((await admin.weights())["v8"] == (await there.weights())["v8"] == shared_weight):
                    await asyncio.sleep(0.01)


@in_loop
async def test_while_the_place_is_away_changes_hold_here_and_are_told_as_not_kept(shared: Shared) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(text(SHARED)) as (gw, admin), running(text(SHARED)) as (_, there):
            shared.away = True
            answer = await admin.weigh(v8=20)
            assert (answer["kept"], answer["holds"]) == (False, "here, until the next restart")
            assert answer["warning"] == "it is not kept: the shared place is away"
            assert await admin.weights() == {"v7": 90, "v8": 20}
            assert "unjam_changes_kept 0" in (await admin._client.get("/metrics")).text
            shared.away = False
            await there.weigh(v7=1)
            await until(lambda: gw.gateway.balancer.services["agent"].versions[0].weight == 1)
            assert await admin.weights() == {"v7": 1, "v8": 20}
            assert "unjam_changes_kept 1" in (await admin._client.get("/metrics")).text
            # What others decide now counts for all, whatever our clock says of what could not be kept.
            await shared.put(Change(key="weight/agent/v8", after={"weight": 5, "base": 10}, who="w", where="g", at=1.0))
            await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 5)
            assert (await admin.weigh(v8=21))["kept"]
    events = [line["event"] for line in logs]
    assert events.count("changes_not_kept") == events.count("changes_kept_again") <= 2
    assert "changes_not_kept" in events


@in_loop
async def test_what_could_not_be_kept_is_kept_when_the_place_is_back(shared: Shared) -> None:
    async with running(text(SHARED)) as (gw, admin), running(text(SHARED)) as (other, _):
        await admin.weigh(v8=11)
        shared.away = True  # before anybody has read that back
        assert not (await admin.weigh(v8=20))["kept"]
        assert not (await admin.weigh(v7=30))["kept"]
        shared.away = False
        # Somebody else decides on one of the two.
        await shared.put(
            Change(key="weight/agent/v7", after={"weight": 1, "base": 90}, who="w", where="g", at=time.time() + 1)
        )
        for each in (gw, other):
            v7, v8 = each.gateway.balancer.services["agent"].versions
            await until(lambda v7=v7, v8=v8: (v7.weight, v8.weight) == (1, 20))  # type: ignore[misc]
        assert [change.after["weight"] for change in shared._log] == [11, 1, 20]
    async with running(text(SHARED)) as (_, admin):
        assert await admin.weights() == {"v7": 1, "v8": 20}


@in_loop
async def test_what_could_not_be_kept_waits_until_what_others_decided_is_known(shared: Shared) -> None:
    asked, answered, since = asyncio.Event(), asyncio.Event(), shared.since

    async def slowly(n: int) -> list[Change]:
        found = await since(n)
        asked.set()
        await answered.wait()
        return found

    async with running(text(SHARED)) as (gw, admin):
        shared.away = True
        assert not (await admin.weigh(v8=20))["kept"]
        shared.since = slowly  # type: ignore[method-assign]
        shared.away = False
        await shared.put(Change(key="weight/agent/v8", after={"weight": 5, "base": 10}, who="w", where="g"))
        await asked.wait()
        assert (await admin.weigh(v7=1))["kept"], "while it reads: so that it has to read once more"
        answered.set()
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 5)
        assert [change.after["weight"] for change in shared._log] == [5, 1]


@in_loop
async def test_a_place_that_is_away_at_the_start_is_caught_up_with(shared: Shared) -> None:
    await shared.put(Change(key="weight/agent/v8", after={"weight": 20, "base": 10}, who="w", where="g"))
    shared.away = True
    async with running(text(SHARED)) as (gw, admin):
        assert await admin.weights() == {"v7": 90, "v8": 10}
        await admin.weigh(v7=5)
        shared.away = False
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 20)
        # Not what was changed here since.
        assert await admin.weights() == {"v7": 5, "v8": 20}


@in_loop
async def test_a_place_that_lost_its_data_is_followed_from_its_beginning(shared: Shared) -> None:
    async with running(text(SHARED)) as (gw, admin):
        for n in range(5):
            await admin.weigh(v8=n)
        shared._log.clear()
        shared._values.clear()
        shared._n = 0
        later = time.time() + 1
        await shared.put(Change(key="weight/agent/v8", after={"weight": 77, "base": 10}, who="w", where="g", at=later))
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 77)


@in_loop
async def test_what_could_not_be_kept_is_kept_by_a_place_that_comes_back_with_less(shared: Shared) -> None:
    async with running(text(SHARED)) as (_, admin), running(text(SHARED)) as (other, _):
        for n in range(3):
            await admin.weigh(v7=n)
        await until(lambda: other.gateway.balancer.services["agent"].versions[0].weight == 2)
        shared.away = True
        assert not (await admin.weigh(v8=20))["kept"]
        while len(shared._log) > 1:
            shared._log.pop()
        shared._values["weight/agent/v7"], shared._n = shared._log[0], 1
        shared.away = False
        await until(lambda: other.gateway.balancer.services["agent"].versions[1].weight == 20)
        assert [change.key for change in shared._log] == ["weight/agent/v7", "weight/agent/v8"]


@in_loop
async def test_a_longer_absence_than_the_log_goes_back(shared: Shared) -> None:
    async with running(text(SHARED)) as (gw, admin):
        await admin.post("/api/drain", endpoint=NOWHERE)
        shared.away = True
        await asyncio.sleep(0)
        shared.away = False
        await shared.put(
            Change(key=f"drain/{NOWHERE}", after=False, who="w", where="g"),
            Change(key="weight/agent/v8", after={"weight": 20, "base": 10}, who="w", where="g"),
            Change(key="weight/agent/v7", after={"weight": 1, "base": 90}, who="w", where="g"),
        )
        while len(shared._log) > 1:
            shared._log.popleft()
        await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 20)
        assert await admin.weights() == {"v7": 1, "v8": 20}
        assert (await admin.version("v7"))["endpoints"][0]["draining"] is False


@in_loop
async def test_what_others_say_of_what_is_not_here_is_no_trouble(shared: Shared) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(text(SHARED)) as (gw, admin):
            foreign = {"who": "w", "where": "g"}
            await shared.put(
                Change(key="weight/agent/v9", after={"weight": 20, "base": 10}, **foreign),
                Change(key="weight/agent/v8", after="nonsense", **foreign),
                Change(key="weight/agent/v7", after={"weight": 20, "base": 17}, **foreign),
                Change(key="breaker/nobody/v1", after="open", **foreign),
                Change(key="drain/http://elsewhere", after=True, **foreign),
                Change(key="something/new", after=[1], **foreign),
                Change(key="weight/agent/v8", after={"weight": 33, "base": 10}, **foreign),
            )
            await until(lambda: gw.gateway.balancer.services["agent"].versions[1].weight == 33)
            assert await admin.weights() == {"v7": 90, "v8": 33}
    assert "fault" not in [line["event"] for line in logs]


@in_loop
async def test_state_of_rollouts_is_kept_and_told(shared: Shared) -> None:
    async with running(text(SHARED)) as (one, _), running(text(SHARED)) as (other, _):
        told: list[tuple[str, Any]] = []
        other.server.changes.on_rollout = lambda service, change: told.append((service, change.after))
        state = {"version": "v8", "state": "running", "step": 1, "held": 0.0, "before": {"v7": 90, "v8": 10}}
        weights = {"v7": 50, "v8": 50}
        keeping = one.server.changes.rollout("agent", None, state, "w", "half of the calls", weights)
        assert one.gateway.balancer.services["agent"].versions[1].weight == 50  # at once, whatever the store does
        assert await keeping == ""
        await until(lambda: told)
        assert told == [("agent", state)]
        assert other.server.changes.value("rollout/agent") == state
    async with running(text(SHARED)) as (again, admin):
        assert again.server.changes.value("rollout/agent") == state
        assert await admin.weights() == weights
