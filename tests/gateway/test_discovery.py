"""Endpoints that reporters add: they serve at once, stay over a reload, drain, leave, and go when nobody speaks for
them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from unjam.config import Config, parse

from .harness import Agent, Call, in_loop, until, until_gone
from .reporting import DISCOVERS, IDLE, reported, text
from .test_process import certificate


async def slowly(call: Call) -> None:
    """Answers when told so by its caller's hanging up, or never."""
    await until_gone(call)


def events(logs: list[Any], name: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == name]


# -- joining -----------------------------------------------------------------------------------------------------------


@in_loop
async def test_an_endpoint_serves_with_its_first_report() -> None:
    agent = await Agent().start()
    with capture_logs() as logs:
        async with reported(DISCOVERS, agent) as gw:
            client = await gw.running.connect()
            answer = await client.get()
            assert answer.status == 503
            assert b"no_endpoint" in answer.body
            reporter = await gw.connect()
            await reporter.report(agent.url)
            answer = await client.get()
            assert (answer.status, answer.body) == (200, b"ok")
            assert answer.header("x-unjam-endpoint") == agent.url
            assert gw.shown(agent.url)["discovered"] is True
            assert gw.gateway.stats.endpoints_discovered == 1
            await reporter.report(agent.url)
    (joined,) = events(logs, "endpoint_joined")
    assert (joined["endpoint"], joined["service"], joined["version"]) == (agent.url, "s", "v")


@in_loop
async def test_one_joins_those_that_are_listed() -> None:
    first, second = await Agent().start(), await Agent().start()
    services = f"{{s: {{policy: round_robin, versions: {{v: {{endpoints: ['{first.url}'], discover: true}}}}}}}}"
    async with reported(services, first, second) as gw:
        reporter = await gw.connect()
        await reporter.report(second.url)
        await reporter.report(first.url)
        client = await gw.running.connect()
        for _ in range(4):
            assert (await client.get()).status == 200
        assert len(first.requests) == len(second.requests) == 2
        assert gw.gateway.stats.endpoints_discovered == 1


@in_loop
async def test_who_waits_is_served_by_who_joins() -> None:
    busy, free = await Agent(slowly).start(), await Agent().start()
    services = f"{{s: {{versions: {{v: {{endpoints: [{{url: '{busy.url}', slots: 1}}], discover: true}}}}}}}}"
    async with reported(services, busy, free) as gw:
        first, second = await gw.running.connect(), await gw.running.connect()
        await first.send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        await busy.calls.get()
        await second.send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        await until(lambda: gw.server._control.snapshot()["services"]["s"]["queue"]["fast"] == 1)
        await (await gw.connect()).report(free.url)
        assert (await second.answer()).status == 200
        assert len(free.requests) == 1


@in_loop
async def test_what_it_says_of_itself_is_its_size() -> None:
    async with reported() as gw:
        reporter = await gw.connect()
        url = "http://127.0.0.1:9000"
        await reporter.report(url, {**IDLE, "cores": 8})
        shown = gw.shown(url)
        assert (shown["cores"], shown["slots"], shown["slots_from"]) == (8, 16, "cores")
        other = "http://127.0.0.1:9001"
        await reporter.report(other, slots=3, weight=2)
        assert (gw.shown(other)["slots"], gw.shown(other)["slots_from"]) == (3, "configured")
        # It was restarted with another size.
        await reporter.report(other, slots=5)
        assert gw.shown(other)["slots"] == 5
        assert gw.urls() == [url, other]
        assert gw.gateway.stats.endpoints_discovered == 2


@in_loop
async def test_a_region_must_be_one_that_is_there() -> None:
    regions = "regions: {us: {tokens_per_minute: 1M}}\n"
    async with reported(limits=regions) as gw:
        reporter = await gw.connect()
        url = "http://127.0.0.1:9000"
        report = {"service": "s", "url": url, "region": "eu"}
        assert await reporter.refused(report) == (400, "bad_report")
        assert gw.urls() == []
        await reporter.report(url, region="us")
        assert gw.shown(url)["region"] == "us"
        assert await reporter.refused(report) == (400, "bad_report")
        assert gw.urls() == [url]


@in_loop
async def test_its_checks_begin_when_it_joins_and_end_when_it_leaves() -> None:
    async def sick(call: Call) -> None:
        await call.answer(status=500)

    agent = await Agent(sick).start()
    services = "{s: {health: {path: /h, interval: 10ms}, versions: {v: {discover: true}}}}"
    async with reported(services, agent) as gw:
        reporter = await gw.connect()
        await reporter.report(agent.url)
        await until(lambda: not gw.shown(agent.url)["healthy"])
        await reporter.report(agent.url, state="leaving")
        await until(lambda: not agent.open)
        before = len(agent.requests)
        await asyncio.sleep(0.05)  # several intervals
        assert len(agent.requests) == before


@in_loop
async def test_over_tls_it_is_verified(tmp_path: Path) -> None:
    import ssl

    cert, key = certificate(tmp_path, "localhost")
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(cert, key)
    agent = await Agent().start(ssl=served)
    url = f"https://localhost:{agent.port}"
    services = f"{{s: {{versions: {{v: {{discover: true, endpoint_tls: {{ca: '{cert}'}}}}}}}}}}"
    async with reported(services, agent) as gw:
        await (await gw.connect()).report(url)
        assert (await (await gw.running.connect()).get()).status == 200
    other = await Agent().start(ssl=served)
    async with reported(DISCOVERS, other) as gw:  # with the system's authorities, who don't know it
        await (await gw.connect()).report(f"https://localhost:{other.port}")
        assert (await (await gw.running.connect()).get()).status == 502


# -- who may not -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discover", "url"),
    [
        ("true", "http://169.254.169.254"),
        ("true", "http://[fe80::1]:80"),
        ("true", "http://[::ffff:169.254.169.254]"),
        ("true", "http://0xa9fea9fe"),
        ("true", "http://0x7f000001:9000"),
        ("true", "http://0.0.0.0:9000"),
        ("true", "http://224.0.0.1:9000"),
        ("true", "unix:/var/run/docker.sock"),
        ("{networks: [10.0.0.0/8]}", "http://127.0.0.1:9000"),
        ("{networks: [10.0.0.0/8]}", "http://11.0.0.1:9000"),
        ("{networks: [10.0.0.0/8]}", "http://localhost:9000"),
        ("{networks: [10.0.0.0/8]}", "unix:/run/a.sock"),
        ("{networks: ['::/0']}", "http://10.0.0.1:9000"),
    ],
)
@in_loop
async def test_an_address_that_is_not_allowed(discover: str, url: str) -> None:
    async with reported(f"{{s: {{versions: {{v: {{discover: {discover}}}}}}}}}") as gw:
        reporter = await gw.connect()
        assert await reporter.refused({"service": "s", "url": url, "load": IDLE}) == (403, "address_not_allowed")
        assert gw.urls() == []
        assert gw.results == {"not_allowed": 1}


@pytest.mark.parametrize(
    ("discover", "url"),
    [
        ("{networks: [10.0.0.0/8, 'fd00::/8']}", "http://10.1.2.3:9000"),
        ("{networks: [10.0.0.0/8, 'fd00::/8']}", "https://[fd00::7]"),
        ("{networks: 169.254.0.0/16}", "http://169.254.1.1"),
        ("true", "http://agents.internal:9000"),
    ],
)
@in_loop
async def test_an_address_that_is(discover: str, url: str) -> None:
    async with reported(f"{{s: {{versions: {{v: {{discover: {discover}}}}}}}}}") as gw:
        await (await gw.connect()).report(url)
        assert gw.urls() == [url]


def test_another_machine_cannot_add_this_one() -> None:
    from unjam.config.address import parse_url
    from unjam.config.services import Discover
    from unjam.gateway.members import _forbidden

    discover = Discover(networks=None)
    for url in ("http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"):
        assert "own machine" in _forbidden(parse_url(url), discover, "10.0.0.7")
        assert not _forbidden(parse_url(url), discover, "127.0.0.1")
        assert not _forbidden(parse_url(url), discover, "::1")
        assert not _forbidden(parse_url(url), discover, "unix")


@in_loop
async def test_a_first_report_that_cannot_be_true_adds_nothing() -> None:
    async with reported() as gw:
        reporter = await gw.connect()
        report = {"service": "s", "url": "http://127.0.0.1:9000", "load": {"cores": 1e9}}
        assert await reporter.refused(report) == (422, "bad_load")
        assert gw.urls() == []


@in_loop
async def test_so_many_may_join_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from unjam.gateway import members

    monkeypatch.setattr(members, "MOST", 2)
    async with reported() as gw:
        reporter = await gw.connect()
        await reporter.report("http://127.0.0.1:9000")
        await reporter.report("http://127.0.0.1:9001")
        third = {"service": "s", "url": "http://127.0.0.1:9002"}
        assert await reporter.refused(third) == (409, "too_many_endpoints")
        await reporter.report("http://127.0.0.1:9000", state="leaving")
        assert (await reporter.send(third)).status == 200


@in_loop
async def test_refusals_are_told_once_a_minute() -> None:
    with capture_logs() as logs:
        async with reported() as gw:
            clock = gw.set_clock()
            reporter = await gw.connect()
            url = "http://127.0.0.1:9000"
            await reporter.report(url)
            for second in range(90):
                clock.now = 1000.0 + second
                await reporter.refused({"service": "s", "url": url, "load": {"cpu": -1}})
    first, second = events(logs, "reports_refused")
    assert (first["endpoint"], first["reason"]) == (url, "bad_load")
    assert first["why"] == "cpu is -1: it must be from 0 to 1"
    assert second["why"] == first["why"]


# -- going -------------------------------------------------------------------------------------------------------------


@in_loop
async def test_draining_gets_nothing_new_and_says_when_it_is_empty() -> None:
    going, staying = await Agent(slowly).start(), await Agent().start()
    async with reported(DISCOVERS, going, staying) as gw:
        reporter = await gw.connect()
        await reporter.report(going.url)
        held = await gw.running.connect()
        await held.send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        await going.calls.get()
        await reporter.report(staying.url)
        said = await reporter.report(going.url, state="draining")
        assert (said["inflight"], said["draining"]) == (1, True)
        assert gw.shown(going.url)["draining"] is True
        assert "says it is draining" in gw.shown(going.url)["why"]
        client = await gw.running.connect()
        for _ in range(5):
            assert (await client.get()).header("x-unjam-endpoint") == staying.url
        held.close()
        await gw.running.settled()
        said = await reporter.report(going.url, state="draining")
        assert (said["inflight"], said["draining"]) == (0, True)
        # It thought better of it.
        said = await reporter.report(going.url)
        assert said["draining"] is False


@in_loop
async def test_leaving_lets_what_runs_end() -> None:
    release = asyncio.Event()

    async def later(call: Call) -> None:
        await release.wait()
        await call.answer(b"at last")

    agent = await Agent(later).start()
    with capture_logs() as logs:
        async with reported(DISCOVERS, agent) as gw:
            reporter = await gw.connect()
            await reporter.report(agent.url)
            held = await gw.running.connect()
            await held.send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
            await agent.calls.get()
            said = await reporter.report(agent.url, state="leaving")
            assert (said["inflight"], said["draining"]) == (1, True)
            assert gw.urls() == []
            assert gw.gateway.stats.endpoints_discovered == 0
            client = await gw.running.connect()
            assert (await client.get()).status == 503
            release.set()
            assert (await held.answer()).body == b"at last"
            await gw.running.settled()
            # Said twice, it is still gone.
            await reporter.report(agent.url, state="leaving")
            assert gw.urls() == []
    (left,) = events(logs, "endpoint_left")
    assert left["why"] == "its reporter says so"


@in_loop
async def test_one_of_the_file_leaves_nothing_but_its_reports() -> None:
    agent = await Agent().start()
    services = f"{{s: {{versions: {{v: {{endpoints: ['{agent.url}'], discover: true}}}}}}}}"
    async with reported(services, agent) as gw:
        reporter = await gw.connect()
        await reporter.report(agent.url, {**IDLE, "cpu": 0.9})
        assert gw.shown(agent.url)["other_cpu"] > 0.5
        await reporter.report(agent.url, state="leaving")
        assert gw.urls() == [agent.url]
        assert (await (await gw.running.connect()).get()).status == 200


@in_loop
async def test_silence_takes_it_out_and_in_the_end_away() -> None:
    quiet, alive = await Agent().start(), await Agent().start()
    with capture_logs() as logs:
        async with reported("{s: {ejection: {panic: 0%}, versions: {v: {discover: true}}}}", quiet, alive) as gw:
            clock = gw.set_clock()
            members = gw.server.members
            reporter = await gw.connect()
            await reporter.report(quiet.url)

            async def beat(seconds: float) -> None:
                clock.now += seconds
                await reporter.report(alive.url)
                members.tick()

            await beat(59.0)
            assert "silent" not in gw.shown(quiet.url)["why"]
            await beat(2.0)
            assert "its reporter is silent" in gw.shown(quiet.url)["why"]
            client = await gw.running.connect()
            for _ in range(4):
                assert (await client.get()).header("x-unjam-endpoint") == alive.url
            # It is back, and serves.
            await reporter.report(quiet.url)
            assert "silent" not in gw.shown(quiet.url)["why"]
            for _ in range(12):
                await beat(50.0)
            assert gw.urls() == [alive.url]
            assert gw.gateway.stats.endpoints_discovered == 1
            # And after all that it may join again.
            await reporter.report(quiet.url)
            assert gw.urls() == [alive.url, quiet.url]
    assert [line["endpoint"] for line in events(logs, "reporter_silent")] == [quiet.url, quiet.url]
    (left,) = events(logs, "endpoint_left")
    assert (left["endpoint"], left["why"]) == (quiet.url, "its reporter was silent for 600 s")


@in_loop
async def test_one_that_drained_and_fell_silent_is_not_taken_back() -> None:
    agent, other = await Agent().start(), await Agent().start()
    async with reported(DISCOVERS, agent, other) as gw:
        clock = gw.set_clock()
        reporter = await gw.connect()
        await reporter.report(agent.url, state="draining")
        clock.now += 11.0
        await reporter.report(other.url)
        gw.server.members.tick()
        assert "its reporter is silent" in gw.shown(agent.url)["why"]


@in_loop
async def test_silence_about_one_of_the_file_costs_it_nothing() -> None:
    agent = await Agent().start()
    services = f"{{s: {{versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}"
    with capture_logs() as logs:
        async with reported(services, agent) as gw:
            clock = gw.set_clock()
            await (await gw.connect()).report(agent.url)
            for _ in range(3):
                clock.now += 61.0
                gw.server.members.tick()
            assert (await (await gw.running.connect()).get()).status == 200
            assert gw.urls() == [agent.url]
    assert len(events(logs, "reporter_silent")) == 1


@in_loop
async def test_two_may_speak_for_one_url() -> None:
    agent = await Agent().start()
    async with reported(DISCOVERS, agent) as gw:
        one, two = await gw.connect(), await gw.connect()
        await one.report(agent.url, {**IDLE, "cpu": 0.2})
        await two.report(agent.url.replace("127.0.0.1", "127.0.0.1") + "/", {**IDLE, "cpu": 0.9})
        assert gw.urls() == [agent.url]
        assert gw.shown(agent.url)["load"]["sources"]["reporter"]["cpu"] == 0.9
        assert gw.shown(agent.url)["load"]["accepted"] == 2
        await one.report(agent.url, state="leaving")
        assert gw.urls() == []
        await two.report(agent.url)
        assert (await (await gw.running.connect()).get()).status == 200


# -- reloads -----------------------------------------------------------------------------------------------------------


class File:
    """A configuration as it stands on disk."""

    def __init__(self, services: str = DISCOVERS) -> None:
        self.services = services

    def read(self) -> Config:
        return parse(text(self.services), {})


@in_loop
async def test_a_reload_keeps_it_with_what_runs_on_it() -> None:
    release = asyncio.Event()

    async def later(call: Call) -> None:
        await release.wait()
        await call.answer()

    agent = await Agent(later).start()
    file = File()
    async with reported(file.services, agent, reload=file.read) as gw:
        reporter = await gw.connect()
        await reporter.report(agent.url, state="ready", slots=7)
        held = await gw.running.connect()
        await held.send(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        await agent.calls.get()
        file.services = "{s: {policy: random, versions: {v: {discover: true}, w: {endpoints: ['http://127.0.0.1:9']}}}}"
        assert await gw.server.reload() == []
        shown = gw.shown(agent.url)
        assert (shown["inflight"], shown["slots"], shown["discovered"]) == (1, 7, True)
        assert gw.gateway.stats.endpoints_discovered == 1
        said = await reporter.report(agent.url, slots=7, version="v")  # over the same connection
        assert said["inflight"] == 1
        release.set()
        assert (await held.answer()).status == 200


@pytest.mark.parametrize(
    "services",
    [
        "{s: {versions: {w: {discover: true}}}}",
        "{t: {versions: {v: {discover: true}}}}",
        "{s: {versions: {v: {endpoints: ['http://127.0.0.1:9']}, w: {discover: true}}}}",
        "{s: {versions: {v: {discover: {networks: [10.0.0.0/8]}}}}}",
    ],
)
@in_loop
async def test_a_reload_that_has_no_place_for_it_removes_it(services: str) -> None:
    agent = await Agent().start()
    file = File()
    with capture_logs() as logs:
        async with reported(file.services, agent, reload=file.read) as gw:
            reporter = await gw.connect()
            await reporter.report(agent.url)
            file.services = services
            assert await gw.server.reload() == []
            assert all(agent.url not in gw.urls(service) for service in gw.gateway.balancer.services)
            assert gw.gateway.stats.endpoints_discovered == 0
            answer = await reporter.send({"service": "s", "version": "v", "url": agent.url})
            assert answer.status in (403, 404, 409)
    assert len(events(logs, "endpoint_left")) == 1


@in_loop
async def test_the_file_may_take_it_over() -> None:
    agent = await Agent().start()
    file = File()
    async with reported(file.services, agent, reload=file.read) as gw:
        clock = gw.set_clock()
        reporter = await gw.connect()
        await reporter.report(agent.url)
        file.services = f"{{s: {{versions: {{v: {{endpoints: [{{url: '{agent.url}', slots: 3}}], discover: true}}}}}}}}"
        assert await gw.server.reload() == []
        shown = gw.shown(agent.url)
        assert (shown["discovered"], shown["slots"]) == (False, 3)
        assert gw.gateway.stats.endpoints_discovered == 0
        await reporter.report(agent.url)
        # It is the file's now: no silence removes it.
        for _ in range(20):
            clock.now += 61.0
            gw.server.members.tick()
        assert gw.urls() == [agent.url]
        assert (await (await gw.running.connect()).get()).status == 200


@in_loop
async def test_a_reload_may_change_the_token_and_close_the_listener() -> None:
    file = File("{s: {versions: {v: {endpoints: ['http://127.0.0.1:9']}}}}")
    changed = {"token": "another-token-of-some-length"}

    def read() -> Config:
        config = parse(text(file.services), {})
        reporters = config.reporters
        assert reporters is not None
        return config.model_copy(update={"reporters": reporters.model_copy(update=changed) if changed else None})

    async with reported(file.services, reload=read) as gw:
        first, second = await gw.connect(), await gw.connect()
        await first.report("http://127.0.0.1:9")
        await second.report("http://127.0.0.1:9")
        port = gw.port
        assert await gw.server.reload() == []
        assert gw.port == port
        report = {"service": "s", "url": "http://127.0.0.1:9"}
        assert await first.refused(report) == (401, "report_unauthorized")
        new = "Authorization: Bearer another-token-of-some-length\r\n"
        assert (await second.send(report, headers=new)).status == 200
        changed.clear()
        assert await gw.server.reload() == []
        assert await second.wire.closed() == b""
        assert not any(listener.reporters for listener in gw.server.listeners.values())
