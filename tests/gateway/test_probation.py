"""A version on probation may fail, but not in front of callers: somebody else's answer is what they get."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.gateway.harness import PATIENCE, Agent, Answer, Call, Running, Wire, gateway, in_loop, until, until_gone


def config(bad: Agent, other: Agent, service: str = "", fallback: str = "basic") -> str:
    return (
        "services:\n"
        f"  main:\n    match: {{path: /}}\n    breaker: {{open: 30ms}}\n    fallback: [{fallback}]\n{service}"
        f"    versions: {{v: {{endpoints: ['{bad.url}']}}}}\n"
        f"  basic: {{match: {{path: /basic}}, versions: {{v: {{endpoints: ['{other.url}']}}}}}}\n"
    )


async def on_probation(gw: Running) -> None:
    """Trip the breaker and wait for the ramp."""
    balancer = gw.gateway.balancer
    version = balancer.services["main"].versions[0]
    balancer.trip("main", "v", asyncio.get_running_loop().time())
    async with asyncio.timeout(PATIENCE):
        while version.breaker.state != "ramping":
            await asyncio.sleep(0.005)


async def tried_again(wire: Wire, bad: Agent, method: str = "POST", body: bytes = b"{}") -> list[Answer]:
    """Answers until the version on probation has failed a few."""
    before = len(bad.requests)
    answers = []
    async with asyncio.timeout(PATIENCE):
        while len(bad.requests) < before + 3:
            answers.append(await (wire.post(body=body) if method == "POST" else wire.get()))
    return answers


async def fine(call: Call) -> None:
    await call.answer(b"basic")


async def broken(call: Call) -> None:
    await call.answer(b"no", status=500)


async def in_pieces(call: Call) -> None:
    await call.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n")
    await call.write(b"0\r\n\r\n")


async def nonsense(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n")


async def ashamed(call: Call) -> None:
    await call.answer(b"made up", headers="x-unjam-verdict: bad; made up\r\n")


def all_good(answers: list[Answer], probes: int = 3) -> None:
    assert Counter((a.status, a.body, a.header("x-unjam-fallback")) for a in answers) == {
        (200, b"basic", "basic"): len(answers)
    }
    assert Counter(a.header("x-unjam-retries") for a in answers) == {None: len(answers) - probes, "1": probes}


@in_loop
async def test_callers_see_nothing_of_probes_that_fail() -> None:
    for behaviour in (broken, in_pieces, nonsense, ashamed):
        bad, basic = await Agent(behaviour).start(), await Agent(fine).start()
        async with gateway(bad, basic, config=config(bad, basic)) as gw:
            await on_probation(gw)
            wire = await gw.connect()
            all_good(await tried_again(wire, bad))
            version = gw.gateway.balancer.services["main"].versions[0]
            assert version.breaker.state == "open", behaviour
            await gw.settled()


async def hangs(call: Call) -> None:
    await until_gone(call)


async def hangs_up(call: Call) -> None:
    call.abort()


FAST = "    lanes: {fast: {first_byte: 100ms}, heavy: {first_byte: 100ms}}\n"


@in_loop
async def test_nor_of_probes_that_get_no_answer_whatever_the_method() -> None:
    for behaviour in (hangs, hangs_up):
        for method in ("POST", "GET"):
            bad, basic = await Agent(behaviour).start(), await Agent(fine).start()
            async with gateway(bad, basic, config=config(bad, basic, FAST)) as gw:
                await on_probation(gw)
                wire = await gw.connect()
                all_good(await tried_again(wire, bad, method))
                version = gw.gateway.balancer.services["main"].versions[0]
                assert version.breaker.state == "open", (behaviour, method)
                await gw.settled()


@in_loop
async def test_without_an_answer_a_post_is_sent_again_on_probation_only_and_never_means_never() -> None:
    for behaviour, shown in ((hangs, 504), (hangs_up, 502)):
        for word, probation in (("probes", False), ("always", False), ("never", True)):
            bad, basic = await Agent(behaviour).start(), await Agent(fine).start()
            service = f"{FAST}    retry: {{answers: {word}}}\n"
            async with gateway(bad, basic, config=config(bad, basic, service)) as gw:
                if probation:
                    await on_probation(gw)
                wire = await gw.connect()
                answers = await tried_again(wire, bad)
                assert Counter(a.status for a in answers)[shown] == 3, (behaviour, word)


@in_loop
async def test_a_body_that_is_still_coming_follows_to_where_the_request_went() -> None:
    bad, basic = await Agent(broken).start(), await Agent(fine).start()

    async def refuses_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        early.append(1)
        writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    early: list[int] = []
    server = await asyncio.start_server(refuses_early, "127.0.0.1", 0)
    text = config(bad, basic).replace(bad.url, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with gateway(bad, basic, config=text) as gw:
        await on_probation(gw)
        wire = await gw.connect()
        async with asyncio.timeout(PATIENCE):
            while len(early) < 3:
                before = len(early)
                await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
                stats = gw.gateway.stats.service("main")
                tried = stats.retries

                def decided() -> bool:
                    answered = len(early) > before and not any(client.exchange for client in gw.gateway.clients)  # noqa: B023
                    return stats.retries > tried or gw.endpoint(basic.url).inflight > 0 or answered  # noqa: B023

                await until(decided)
                assert len(early) - before == stats.retries - tried
                await wire.send(b"def")
                assert (await wire.answer("POST")).body == b"basic"
        assert {seen.body for seen in basic.requests} == {b"abcdef"}
    server.close()


@in_loop
async def test_hints_of_an_answer_that_was_not_taken_are_not_shown() -> None:
    async def hints(call: Call) -> None:
        await call.write(b"HTTP/1.1 103 Early Hints\r\nLink: </of-v8.css>; rel=preload\r\n\r\n")
        await call.answer(b"no", status=500)

    bad, basic = await Agent(hints).start(), await Agent(fine).start()
    async with gateway(bad, basic, config=config(bad, basic)) as gw:
        wire = await gw.connect()
        interim: list[int] = []
        await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer(interim=interim)).status == 500
        assert interim == [103]  # its answer is taken whatever it will be
        interim.clear()
        await on_probation(gw)
        before = len(bad.requests)
        async with asyncio.timeout(PATIENCE):
            while len(bad.requests) < before + 3:
                await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await wire.answer(interim=interim)).body == b"basic"
        assert interim == []


@in_loop
async def test_the_body_is_sent_again_whole() -> None:
    bad, basic = await Agent(broken).start(), await Agent(fine).start()
    async with gateway(bad, basic, config=config(bad, basic)) as gw:
        await on_probation(gw)
        wire = await gw.connect()
        answers = await tried_again(wire, bad, body=b"x" * 5000)
        all_good(answers)
        assert {len(seen.body) for seen in basic.requests} == {5000}


@in_loop
async def test_the_message_at_the_end_of_the_chain_stands_in_too() -> None:
    bad, basic = await Agent(broken).start(), await Agent(fine).start()
    text = config(bad, basic, fallback="{maintenance: 'Back soon.', status: 529}")
    async with gateway(bad, basic, config=text) as gw:
        await on_probation(gw)
        wire = await gw.connect()
        answers = await tried_again(wire, bad)
        assert {a.status for a in answers} == {529}


@in_loop
async def test_a_closed_breaker_or_never_lets_answers_through_and_always_lets_none() -> None:
    for word, probation, shown in (("probes", False, True), ("never", True, True), ("always", False, False)):
        bad, basic = await Agent(broken).start(), await Agent(fine).start()
        async with gateway(bad, basic, config=config(bad, basic, f"    retry: {{answers: {word}}}\n")) as gw:
            if probation:
                await on_probation(gw)
            wire = await gw.connect()
            answers = await tried_again(wire, bad)
            assert (500 in {a.status for a in answers}) is shown, word


@in_loop
async def test_without_anybody_else_the_agents_own_answer_is_shown() -> None:
    bad = await Agent(broken).start()
    text = f"services: {{main: {{breaker: {{open: 30ms}}, versions: {{v: {{endpoints: ['{bad.url}']}}}}}}}}\n"
    async with gateway(bad, config=text) as gw:
        await on_probation(gw)
        wire = await gw.connect()
        answer = await wire.post()
        assert (answer.status, answer.body) == (500, b"no")


@in_loop
async def test_what_the_agent_says_of_its_answers_trips_its_breaker_and_is_counted() -> None:
    async def streams(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: hello\n\n")
        await call.chunk(b'event: unjam.verdict\ndata: {"verdict": "bad", "reason": "made up"}\n\n')
        await call.last_chunk()

    for behaviour, body in ((ashamed, b"made up"), (streams, b"hello")):
        bad, basic = await Agent(behaviour).start(), await Agent(fine).start()
        async with gateway(bad, basic, config=config(bad, basic).replace("30ms", "1h")) as gw:
            wire = await gw.connect()
            answers = []
            async with asyncio.timeout(PATIENCE):
                while not answers or answers[-1].body != b"basic":
                    answers.append(await wire.post())
            assert {a.status for a in answers} == {200}
            assert all(body in a.body for a in answers[:-1])
            assert len(answers) == 6
            assert answers[0].header("x-unjam-verdict") is None
            stats = gw.gateway.stats.service("main")
            assert stats.verdicts == {("agent", "bad"): 5}
            assert stats.lane(False).outcomes["rejected_quality"] == 5


@in_loop
async def test_a_verdict_that_makes_no_sense_is_counted_and_means_nothing() -> None:
    async def odd(call: Call) -> None:
        await call.answer(b"x", headers="x-unjam-verdict: perhaps\r\n")

    agent = await Agent(odd).start()
    async with gateway(agent) as gw:
        wire = await gw.connect()
        for _ in range(20):
            assert (await wire.post()).status == 200
        stats = gw.gateway.stats.service("default")
        assert stats.verdicts == {("agent", "unreadable"): 20}
        assert stats.lane(False).outcomes["ok"] == 20


@in_loop
async def test_answers_of_all_versions_are_replaced_within_the_budget_only() -> None:
    n = 0

    async def every_other(call: Call) -> None:
        nonlocal n
        n += 1
        await call.answer(b"main", status=500 if n % 2 else 200)

    for budget, most in (("budget: 0%, floor: 0", 0), ("budget: 20%, floor: 0", 10)):
        n = 0
        main, basic = await Agent(every_other).start(), await Agent(fine).start()
        text = config(main, basic, f"    retry: {{answers: always, {budget}}}\n").replace("{open: 30ms}", "off")
        async with gateway(main, basic, config=text) as gw:
            wire = await gw.connect()
            answers = Counter([(await wire.post()).body for _ in range(50)])
            assert len(main.requests) == 50
            assert len(basic.requests) == answers[b"basic"] <= most
            assert bool(answers[b"basic"]) is bool(most)
