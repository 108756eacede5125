"""What the core decides, seen from outside: health, ejection, fairness, shedding, sessions, fallback, quota, retries."""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from hashlib import sha256

from .harness import PATIENCE, Agent, Answer, Call, Running, Wire, gateway, in_loop, until_gone

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def reaches(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


def one(*urls: str, more: str = "", slots: int | None = None) -> str:
    sized = "" if slots is None else f", slots: {slots}"
    endpoints = ", ".join(f"{{url: '{url}'{sized}}}" for url in urls)
    return f"services: {{default: {{{more} versions: {{v: {{endpoints: [{endpoints}]}}}}}}}}"


async def started(*behaviours: Callable[[Call], object]) -> list[Agent]:
    return [await Agent(behaviour).start() for behaviour in behaviours]  # type: ignore[arg-type]


async def fine(call: Call) -> None:
    await call.answer()


async def broken(call: Call) -> None:
    await call.answer(b"no", status=500)


@in_loop
async def test_health_checks_take_an_endpoint_out_and_bring_it_back() -> None:
    well = True

    async def checked(call: Call) -> None:
        await call.answer(
            b"sick" if not well and call.seen.target == "/health" else b"ok",
            status=200 if well or call.seen.target != "/health" else 503,
        )

    sick, other = await started(checked, fine)
    more = "health: {path: /health, interval: 30ms, timeout: 500ms, unhealthy_after: 2, healthy_after: 2}, policy: round_robin,"
    async with gateway(sick, other, config=one(sick.url, other.url, more=more)) as gw:
        endpoint = gw.endpoint(sick.url)
        wire = await gw.connect()
        for _ in range(4):
            await wire.get("/work")
        assert [s.target for s in sick.requests].count("/work") == 2
        well = False
        await reaches(lambda: not endpoint.healthy)
        for _ in range(10):
            assert (await wire.get("/work")).status == 200
        assert [s.target for s in sick.requests].count("/work") == 2
        well = True
        await reaches(lambda: endpoint.healthy)
        for _ in range(4):
            await wire.get("/work")
        assert [s.target for s in sick.requests].count("/work") > 2
        checks = [s for s in sick.requests if s.target == "/health"]
        assert checks[0].header("user-agent") == "unjam-health"


@in_loop
async def test_failures_in_a_row_eject_an_endpoint_and_time_brings_it_back() -> None:
    failing = True

    async def flaky(call: Call) -> None:
        await call.answer(status=500 if failing else 200)

    bad, good, third = await started(flaky, fine, fine)
    more = "policy: round_robin, breaker: off, ejection: {failures: 3, base: 2s, max: 2s},"
    async with gateway(bad, good, third, config=one(bad.url, good.url, third.url, more=more)) as gw:
        wire = await gw.connect()
        statuses = Counter([(await wire.get()).status for _ in range(40)])
        assert statuses == {500: 3, 200: 37}
        failing = False
        await reaches(lambda: not gw.endpoint(bad.url).ejected_until)
        before = len(bad.requests)
        for _ in range(9):
            assert (await wire.get()).status == 200
        assert len(bad.requests) > before


@in_loop
async def test_an_endpoint_that_fails_fast_attracts_no_traffic() -> None:
    """The trap of least-anything: who answers errors at once always looks idle."""

    async def works(call: Call) -> None:
        await asyncio.sleep(0.02)
        await call.answer()

    bad, *good = await started(broken, works, works, works)
    more = "breaker: off, ejection: {failures: 1000},"  # without ejection: the policy alone
    async with gateway(bad, *good, config=one(bad.url, *(g.url for g in good), more=more)) as gw:

        async def client(count: int) -> None:
            wire = await gw.connect()
            for _ in range(count):
                await wire.get()

        await asyncio.gather(*(client(25) for _ in range(12)))
        share = len(bad.requests) / 300
        assert share < 0.25, share


async def ask(gw: Running, wires: list[Wire], count: int, headers: str = "") -> list[Wire]:
    """`count` requests, each on a connection of its own, left waiting for their answers."""
    asked = []
    for _ in range(count):
        wire = await gw.connect()
        await wire.send(f"GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        asked.append(wire)
    wires.extend(asked)
    return asked


def key_lines() -> str:
    return "keys:\n" + "".join(
        f"- {{hash: 'sha256:{sha256(name.encode()).hexdigest()}', tenant: {name}}}\n" for name in ("noisy", "quiet")
    )


@in_loop
async def test_one_tenants_burst_does_not_starve_another() -> None:
    served: list[str] = []
    go = asyncio.Semaphore(0)

    async def works(call: Call) -> None:
        await go.acquire()
        served.append(call.seen.header("x-who") or "")
        await call.answer()

    (agent,) = await started(works)
    async with gateway(agent, config=key_lines() + one(agent.url, more="queue: {max: 100},", slots=1)) as gw:
        wires: list[Wire] = []
        await ask(gw, wires, 40, "x-api-key: noisy\r\nx-who: noisy\r\n")
        await reaches(lambda: len([c for c in gw.gateway.clients if c.exchange]) == 40)
        await ask(gw, wires, 4, "x-api-key: quiet\r\nx-who: quiet\r\n")
        await reaches(lambda: len([c for c in gw.gateway.clients if c.exchange]) == 44)
        for _ in range(44):
            go.release()
        await reaches(lambda: len(served) == 44)
        assert served.index("quiet") <= 4
        assert [n for n, who in enumerate(served) if who == "quiet"][-1] <= 14


@in_loop
async def test_a_full_queue_and_a_tenants_share_shed_with_a_reason_and_retry_after() -> None:
    (agent,) = await started(until_gone)
    config = key_lines() + one(agent.url, more="queue: {max: 10, tenant_share: 50%},", slots=1)
    async with gateway(agent, config=config) as gw:
        wires: list[Wire] = []
        await ask(gw, wires, 1, "x-api-key: quiet\r\n")
        await reaches(lambda: gw.leases == 1)
        await ask(gw, wires, 1, "x-api-key: quiet\r\n")
        await reaches(lambda: len([c for c in gw.gateway.clients if c.exchange]) == 2)
        await ask(gw, wires, 12, "x-api-key: noisy\r\n")
        stats = gw.gateway.stats.service("default")
        await reaches(lambda: sum(stats.sheds.values()) >= 3)
        refused: list[Answer] = []
        for wire in wires:
            if wire.reader._buffer:  # type: ignore[attr-defined]
                refused.append(await wire.answer())
        assert refused
        assert {answer.status for answer in refused} <= {429, 503}
        assert all(int(answer.header("retry-after") or 0) >= 1 for answer in refused)
        assert all(b'"code":"tenant_share"' in a.body or b'"code":"queue_full"' in a.body for a in refused)
        assert stats.sheds["tenant_share"] > 0
        # Places are left for the other tenant.
        before = stats.sheds["tenant_share"] + stats.sheds["queue_full"]
        await ask(gw, wires, 1, "x-api-key: quiet\r\n")
        await asyncio.sleep(0.05)
        assert stats.sheds["tenant_share"] + stats.sheds["queue_full"] == before
        assert len(agent.requests) == 1


@in_loop
async def test_a_wait_in_the_queue_ends_at_its_limit() -> None:
    (agent,) = await started(until_gone)
    async with gateway(agent, config=one(agent.url, more="queue: {timeout: 300ms},", slots=1)) as gw:
        wires: list[Wire] = []
        await ask(gw, wires, 1)
        await reaches(lambda: gw.leases == 1)
        answer = await (await gw.connect()).get()
        assert answer.status == 503
        assert b"queue_timeout" in answer.body
        assert answer.header("retry-after")


@in_loop
async def test_sessions_meet_the_same_endpoint_by_header_and_by_cookie_until_it_dies() -> None:
    for source, line in (("header: x-session", "x-session: {}\r\n"), ("cookie: sid", "Cookie: a=b; sid={}; c=d\r\n")):
        agents = await started(fine, fine, fine)
        config = one(*(agent.url for agent in agents), more=f"session: {{{source}}},")
        async with gateway(*agents, config=config) as gw:
            wire = await gw.connect()
            homes = {}
            for name in range(30):
                homes[name] = (await wire.get("/", line.format(name))).header("x-unjam-endpoint")
            assert len(set(homes.values())) == 3
            for name in range(30):
                assert (await wire.get("/", line.format(name))).header("x-unjam-endpoint") == homes[name]
            dead = agents[0]
            await dead.stop()
            for name in range(30):  # until it is seen to be dead, its sessions are served elsewhere, one by one
                assert (await wire.get("/", line.format(name))).status == 200
            moved = {}
            for name in range(30):
                answer = await wire.get("/", line.format(name))
                assert answer.status == 200
                moved[name] = answer.header("x-unjam-endpoint")
            assert dead.url not in moved.values()
            for name in range(30):
                if homes[name] != dead.url:
                    assert moved[name] == homes[name]
                assert (await wire.get("/", line.format(name))).header("x-unjam-endpoint") == moved[name]


@in_loop
async def test_a_broken_version_falls_back_to_another_service_and_then_to_the_message() -> None:
    first, basic = await started(broken, fine)
    config = (
        "services:\n"
        f"  main: {{match: {{path: /}}, fallback: [basic, {{maintenance: 'We will be back.', retry_after: 90s}}], versions: {{v: {{endpoints: ['{first.url}']}}}}}}\n"
        f"  basic: {{match: {{path: /basic}}, versions: {{v: {{endpoints: ['{basic.url}']}}}}}}\n"
    )
    async with gateway(first, basic, config=config) as gw:
        wire = await gw.connect()
        statuses = []
        for _ in range(60):
            answer = await wire.get()
            statuses.append(answer.status)
            if answer.status == 200:
                break
        assert statuses[-1] == 200, "the breaker never opened"
        assert answer.header("x-unjam-fallback") == "basic"
        gw.gateway.balancer.trip("basic", "v", asyncio.get_running_loop().time())
        answer = await wire.get()
        assert (answer.status, answer.header("retry-after")) == (503, "90")
        assert b"We will be back." in answer.body


@in_loop
async def test_a_providers_429_is_heeded_by_all_its_region() -> None:
    async def limited(call: Call) -> None:
        await call.answer(b"{}", status=429, headers="Retry-After: 30\r\nx-ratelimit-remaining-tokens: 0\r\n")

    east, west = await started(limited, fine)
    config = (
        "regions: {east: {tokens_per_minute: 1M}, west: {tokens_per_minute: 1M}}\n"
        f"services: {{default: {{policy: round_robin, versions: {{v: {{endpoints: [{{url: '{east.url}', region: east}}, {{url: '{west.url}', region: west}}]}}}}}}}}"
    )
    async with gateway(east, west, config=config) as gw:
        wire = await gw.connect()
        statuses = [(await wire.get()).status for _ in range(20)]
        assert statuses.count(429) <= 1
        assert statuses[-10:] == [200] * 10
        assert len(east.requests) <= 1


@in_loop
async def test_models_route_by_the_body_which_arrives_whole() -> None:
    small, large = await started(fine, fine)
    config = (
        "services:\n"
        f"  small: {{match: {{model: small-1}}, versions: {{v: {{endpoints: ['{small.url}']}}}}}}\n"
        f"  large: {{match: {{model: large-1}}, versions: {{v: {{endpoints: ['{large.url}']}}}}}}\n"
    )
    body = b'{"messages": ["' + b"x" * 5000 + b'"], "model": "large-1", "max_tokens": 5}'
    async with gateway(small, large, config=config) as gw:
        wire = await gw.connect()
        assert (await wire.post("/v1/chat", body)).status == 200
        await wire.send(b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 1000):
            piece = body[at : at + 1000]
            await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer("POST")).status == 200
        assert (await wire.post("/v1/chat", b'{"model": "small-1"}')).status == 200
        assert [seen.body for seen in large.requests] == [body, body]
        assert len(small.requests) == 1


@in_loop
async def test_retries_stay_within_their_budget() -> None:
    async def dies(call: Call) -> None:
        call.abort()

    agents = await started(dies, dies, dies)
    more = "breaker: off, ejection: {failures: 1000000}, retry: {attempts: 2, budget: 10%, floor: 0},"
    async with gateway(*agents, config=one(*(agent.url for agent in agents), more=more)) as gw:
        wire = await gw.connect()
        for _ in range(100):
            assert (await wire.get()).status == 502
        tries = sum(len(agent.requests) for agent in agents)
        assert 100 < tries <= 112
        assert gw.gateway.stats.service("default").retries == tries - 100
        assert gw.leases == 0


@in_loop
async def test_an_error_in_the_middle_of_a_pipeline_keeps_the_order() -> None:
    async def by_path(call: Call) -> None:
        number = int(call.seen.target[1:])
        if number == 3:
            call.abort()
            return
        await asyncio.sleep(0.002 * (10 - number))
        await call.answer(call.seen.target.encode())

    async with gateway(Agent(by_path), retry="off", breaker="off") as gw:
        wire = await gw.connect()
        await wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(8)))
        for number in range(8):
            answer = await wire.answer()
            if number == 3:
                assert answer.status == 502
            else:
                assert answer.body == b"/%d" % number
