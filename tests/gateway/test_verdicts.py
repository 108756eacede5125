"""Who judges answers and what comes of it, through real gateways: users, evaluators in their process, hooks."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.gateway.harness import PATIENCE, Agent, Answer, Call, Running, Wire, gateway, in_loop, until
from unjam.config import parse

KEYS = {"acme": "a-key-of-some-length-acme", "other": "a-key-of-some-length-other"}

FUNCTIONS = """
import json, os, subprocess, time

def grounded(record):
    return "made up" not in record.text, "it made up a source"

def hangs(record):
    while True:
        pass

def crashes(record):
    os._exit(3)

def slow(record):
    time.sleep(0.3)
    return True

def leaves_children(record):
    subprocess.Popen(["sleep", "1000"])
    while True:
        pass

def told(record):
    with open("told.json", "a") as out:
        out.write(json.dumps([record.service, record.version, record.request.decode(), record.text, record.status,
                              record.content_type, record.seconds >= 0]) + "\\n")
    return True
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of evaluators, which is the current one."""
    (tmp_path / "judges.py").write_text(FUNCTIONS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(quality: str, *versions: tuple[str, float, Agent], breaker: str = "{open: 1h}", top: str = "") -> str:
    listed = ", ".join(f"{name}: {{weight: {weight}, endpoints: ['{agent.url}']}}" for name, weight, agent in versions)
    return (
        f"{top}services:\n  main:\n    match: {{path: /}}\n    breaker: {breaker}\n    quality: {quality}\n"
        f"    versions: {{{listed}}}\n"
    )


async def fine(call: Call) -> None:
    await call.answer(b"The answer is 42.")


async def invents(call: Call) -> None:
    await call.answer(b"This is made up.")


async def vote(wire: Wire, request_id: str | None, verdict: str, headers: str = "", reason: str = "") -> Answer:
    body = json.dumps({"verdict": verdict, **({"reason": reason} if reason else {})}).encode()
    return await wire.post(f"/v1/requests/{request_id}/verdict", body, f"content-type: application/json\r\n{headers}")


def breaker(gw: Running, name: str) -> Any:
    return next(v for v in gw.gateway.balancer.services["main"].versions if v.name == name).breaker


def evaluations(gw: Running) -> dict[tuple[str, str], int]:
    return gw.gateway.stats.service("main").evaluations


# -- users -------------------------------------------------------------------------------------------------------------


@in_loop
async def test_thumbs_down_trip_the_version_although_every_answer_was_200() -> None:
    agent = await Agent(invents).start()
    async with gateway(agent, config=config("on", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        answers = []
        for n in range(5):
            assert breaker(gw, "v").state == "closed", n
            answers.append(await wire.post())
            taken = await vote(wire, answers[-1].header("x-request-id"), "bad", reason="it made up a source")
            assert (taken.status, json.loads(taken.body)) == (
                202,
                {"service": "main", "version": "v", "verdict": "bad"},
            )
        assert {answer.status for answer in answers} == {200}
        assert breaker(gw, "v").state == "open"
        assert "it made up a source" in breaker(gw, "v").why
        assert gw.gateway.stats.service("main").verdicts == {("user", "bad"): 5}


@in_loop
async def test_other_paths_that_begin_like_a_verdicts_are_the_agents() -> None:
    agent = await Agent(fine).start()
    async with gateway(agent, config=config("on", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for path in ("/v1/requests", "/v1/requests/", "/v1/requests/17", "/v1/requests/17/verdicts", "/v1/requests//x"):
            assert (await wire.get(path)).body == b"The answer is 42.", path
        assert (await wire.get("/v1/requests/17/verdict")).status == 405
        assert len(agent.requests) == 5


@in_loop
async def test_good_verdicts_are_counted_and_change_nothing_else() -> None:
    agent = await Agent(fine).start()
    async with gateway(agent, config=config("on", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for _ in range(20):
            answer = await wire.post()
            assert (await vote(wire, answer.header("x-request-id"), "good")).status == 202
        version = gw.gateway.balancer.services["main"].versions[0]
        assert (version.breaker.state, version.breaker.evidence, version.good, version.bad) == ("closed", 0.0, 20, 0)


@in_loop
async def test_the_same_verdict_again_is_no_second_one_and_changing_it_counts_no_twice() -> None:
    agent = await Agent(fine).start()
    async with gateway(agent, config=config("on", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        request_id = (await wire.post()).header("x-request-id")
        said = [
            (await vote(wire, request_id, word)).status for word in ("bad", "bad", "good", "good", "bad", "good", "bad")
        ]
        assert said == [202, 200, 202, 200, 202, 202, 202]
        version = gw.gateway.balancer.services["main"].versions[0]
        assert version.bad == 1
        assert version.breaker.state == "closed"


@in_loop
async def test_a_late_verdict_counts_for_the_version_that_answered() -> None:
    """Weights have moved, and the version is gone from the configuration meanwhile."""
    old, new = await Agent(invents).start(), await Agent(fine).start()
    first = config("on", ("old", 1, old), ("new", 0, new))
    after = parse("listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n" + config("on", ("new", 1, new)), {})
    async with gateway(old, new, config=first, reload=lambda: after) as gw:
        wire = await gw.connect()
        ids = [(await wire.post()).header("x-request-id") for _ in range(12)]
        was = gw.gateway.balancer.services["main"].versions[0]
        for name, weight in (("new", 1.0), ("old", 0.0)):
            gw.gateway.balancer.set_weight("main", name, weight, monotonic())
        assert (await wire.post()).body == b"The answer is 42."
        for request_id in ids[:6]:
            assert json.loads((await vote(wire, request_id, "bad")).body)["version"] == "old"
        assert was.breaker.state == "open"
        assert await gw.server.reload() == []
        for request_id in ids[6:]:
            assert json.loads((await vote(wire, request_id, "bad")).body)["version"] == "old"
        assert was.bad == 12
        now = gw.gateway.balancer.services["main"].versions
        assert [(v.name, v.bad, v.breaker.state, v.breaker.evidence) for v in now] == [("new", 0, "closed", 0.0)]


@in_loop
async def test_what_failed_already_or_was_the_clients_fault_does_not_count_again() -> None:
    async def as_asked(call: Call) -> None:
        await call.answer(status=int(call.seen.target[1:]))

    agent = await Agent(as_asked).start()
    text = config("on", ("v", 1, agent)).replace("versions:", "ejection: {failures: 100}\n    versions:")
    async with gateway(agent, config=text) as gw:
        wire = await gw.connect()
        evidence = []
        for status in (500, 422):
            request_id = (await wire.post(f"/{status}")).header("x-request-id")
            evidence.append(breaker(gw, "v").evidence)
            assert (await vote(wire, request_id, "bad")).status == 202
            assert breaker(gw, "v").evidence == evidence[-1]
        assert evidence[0] > 0


@in_loop
async def test_nobody_votes_on_requests_of_another_tenant_whatever_ids_they_choose() -> None:
    from hashlib import sha256

    agent = await Agent(fine).start()
    listed = ", ".join(
        f"{{hash: 'sha256:{sha256(key.encode()).hexdigest()}', tenant: {name}}}" for name, key in KEYS.items()
    )
    async with gateway(agent, config=config("on", ("v", 1, agent), top=f"keys: [{listed}]\n")) as gw:
        wire = await gw.connect()
        acme, other = (f"authorization: Bearer {key}\r\n" for key in KEYS.values())
        chosen = "x-request-id: the+same%20id\r\n"
        assert (await wire.post(headers=acme + chosen)).status == 200
        path = "the+same%2520id"
        assert (await vote(wire, path, "bad", other)).status == 404
        assert (await wire.post(headers=other + chosen)).status == 200
        assert (await vote(wire, path, "bad", other)).status == 202
        assert (await vote(wire, path, "bad", acme)).status == 202  # of its own, as it was
        assert (await vote(wire, path, "bad")).status == 401
        # The latest request of an id is the one that is judged.
        assert (await wire.post(headers=acme + chosen)).status == 200
        assert (await vote(wire, path, "bad", acme)).status == 202
        assert gw.gateway.balancer.services["main"].versions[0].bad == 3


@in_loop
async def test_what_cannot_be_understood_is_refused_and_what_is_unknown_not_found() -> None:
    agent = await Agent(fine).start()
    async with gateway(agent, config=config("on", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        request_id = (await wire.post()).header("x-request-id")
        path = f"/v1/requests/{request_id}/verdict"
        kind = "content-type: application/json\r\n"
        for body, status in (
            (b"{}", 400),
            (b'{"verdict": "perhaps"}', 400),
            (b'{"verdict": "bad", "weight": 9}', 400),
            (b"x", 400),
        ):
            assert (await wire.post(path, body, kind)).status == status, body
        assert (await wire.post(path, b'{"verdict": "bad"}')).status == 415
        assert (await wire.get(path)).status == 405
        unknown = await vote(wire, "nobody-knows", "bad")
        assert (unknown.status, json.loads(unknown.body)["error"]["code"]) == (404, "unknown_request")
        assert gw.gateway.balancer.services["main"].versions[0].bad == 0


@in_loop
async def test_without_quality_the_paths_are_the_services_own() -> None:
    agent = await Agent(fine).start()
    async with gateway(agent, config=config("off", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        answer = await vote(wire, "x", "bad")
        assert (answer.status, answer.body) == (200, b"The answer is 42.")


@in_loop
async def test_a_reload_may_switch_it_on_and_off() -> None:
    agent = await Agent(fine).start()
    frame = "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n"
    texts = [config(word, ("v", 1, agent)) for word in ("on", "off", "{evaluators: [{refusal: on}]}")]
    configs = iter([parse(frame + text, {}) for text in texts])
    async with gateway(agent, config=config("off", ("v", 1, agent)), reload=lambda: next(configs)) as gw:
        service = gw.gateway.balancer.services["main"]
        assert service.shell is None
        seen = []
        for _ in texts:
            assert await gw.server.reload() == []
            wire = await gw.connect()
            answer = await wire.post()
            seen.append((await vote(wire, answer.header("x-request-id"), "bad")).status)
        assert seen == [202, 404, 202]


def test_the_latest_hundred_thousand_are_remembered_for_a_day() -> None:
    from unjam.gateway.quality import KEPT, PART, REMEMBERED, VERSIONS, Remembered

    def add(n: int, at: float) -> None:
        remembered.add(("t", b"%d" % n), version, at)

    version: Any = object()
    remembered = Remembered()
    for n in range(2 * REMEMBERED):
        add(n, 0.0)
    assert REMEMBERED <= len(remembered) <= REMEMBERED + PART
    latest, gone = ("t", b"%d" % (2 * REMEMBERED - 1)), ("t", b"%d" % (REMEMBERED - PART - 1))
    assert remembered.find(latest, 1.0) is not None
    assert remembered.find(("t", b"%d" % REMEMBERED), 1.0) is not None
    assert remembered.find(gone, 1.0) is None
    assert remembered.find(latest, KEPT + 1.0) is None
    add(1, KEPT)
    remembered.expire(KEPT + 1.0)
    assert len(remembered) <= PART
    for _ in range(2 * VERSIONS):
        remembered.number(object())  # type: ignore[arg-type]
    remembered.expire(KEPT + 1.0)
    assert list(remembered.numbers) == [version]


# -- evaluators --------------------------------------------------------------------------------------------------------

ALL = "{sample: 100%, timeout: 10s, evaluators: "
HURRIED = ALL.replace("10s", "500ms")


@in_loop
async def test_evaluators_alone_trip_the_version_with_every_answer_200(functions: Path) -> None:
    (functions / "answer.json").write_text('{"type": "object"}')
    for evaluator, why in (
        ("{python: 'judges:grounded'}", "python: it made up a source"),
        ("{name: ours, pattern: {never: 'made +up'}}", "ours: what must never be there is"),
        ("{schema: answer.json}", "schema: the answer is not JSON"),
        ("{length: {most: 3}}", "length: 16 characters, more than 3"),
    ):
        agent = await Agent(invents).start()
        async with gateway(agent, config=config(f"{ALL}[{evaluator}]}}", ("v", 1, agent))) as gw:
            wire = await gw.connect()
            for n in range(5):
                assert (await wire.post()).status == 200
                await until(lambda n=n: sum(evaluations(gw).values()) == n + 1)
            assert breaker(gw, "v").state == "open", evaluator
            assert why in breaker(gw, "v").why
            assert gw.gateway.stats.service("main").verdicts == {("evaluators", "bad"): 5}


@in_loop
async def test_good_and_bad_ones_are_one_stream_and_one_verdict_for_each_answer() -> None:
    """Other evaluators that find nothing wrong don't water down the one that does."""
    agent = await Agent(invents).start()
    others = "{refusal: on}, {repetition: on}, {length: {least: 1}}"
    quality = f"{ALL}[{others}, {{pattern: {{never: made}}}}]}}"
    async with gateway(agent, config=config(quality, ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for _ in range(5):
            await wire.post()
        await until(lambda: sum(evaluations(gw).values()) == 20)
        version = gw.gateway.balancer.services["main"].versions[0]
        assert (version.good, version.bad, version.breaker.state) == (0, 5, "open")


@in_loop
async def test_what_evaluators_are_shown(functions: Path) -> None:
    async def chunks(call: Call) -> None:
        await call.start_events()
        for word in ("Hello", ", world"):
            await call.chunk(b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % word.encode())
        await call.chunk(b"data: [DONE]\n\n")
        await call.last_chunk()

    agent = await Agent(chunks).start()
    async with gateway(agent, config=config(f"{ALL}[{{python: 'judges:told'}}]}}", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        await wire.post(body=b'{"q": 1}')
        await until(lambda: evaluations(gw))
        (line,) = (functions / "told.json").read_text().splitlines()
        assert json.loads(line) == ["main", "v", '{"q": 1}', "Hello, world", 200, "text/event-stream", True]


@in_loop
async def test_only_a_sample_of_whole_good_answers_is_looked_at() -> None:
    async def as_asked(call: Call) -> None:
        kind = call.seen.target[1:]
        await call.answer(b"x" * (2000 if kind == "long" else 10), status=int(kind) if kind.isdigit() else 200)

    agent = await Agent(as_asked).start()
    quality = "{sample: 100%, largest: 1KiB, evaluators: [{length: {least: 1}}]}"
    async with gateway(agent, config=config(quality, ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for path in ("/long", "/404", "/503", "/302", "/ok"):
            await wire.post(path)
        await until(lambda: evaluations(gw))
        assert evaluations(gw) == {("length", "good"): 1}
    quality = "{sample: 20%, queue: 1000, evaluators: [{length: {least: 1}}]}"
    async with gateway(agent := await Agent(fine).start(), config=config(quality, ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for _ in range(300):
            await wire.post()
        watch = gw.gateway.balancer.services["main"].shell
        await until(lambda: not watch.panel.waiting)
        assert 25 <= sum(evaluations(gw).values()) <= 110


@in_loop
async def test_evaluators_that_hang_crash_or_are_slow_change_nothing_for_callers(functions: Path) -> None:
    """Every answer comes while they have the first one still; what can't wait is dropped and counted."""
    for name, result in (("hangs", "timeout"), ("crashes", "error"), ("slow", "good"), ("leaves_children", "timeout")):
        agent = await Agent(fine).start()
        quality = f"{{sample: 100%, timeout: 1s, queue: 5, evaluators: [{{python: 'judges:{name}'}}]}}"
        async with gateway(agent, config=config(quality, ("v", 1, agent))) as gw:
            wire = await gw.connect()
            took = []
            for _ in range(100):
                began = monotonic()
                assert (await wire.post()).status == 200
                took.append(monotonic() - began)
            panel = gw.gateway.balancer.services["main"].shell.panel
            assert panel.waiting <= 5
            assert evaluations(gw).get(("python", "dropped"), 0) >= 80, name
            assert sorted(took)[90] < 0.25, name
            await until(lambda result=result: evaluations(gw).get(("python", result)))
            assert breaker(gw, "v").state == "closed"
            assert breaker(gw, "v").quality_evidence == 0.0


@in_loop
async def test_one_that_hangs_does_not_keep_the_next_from_judging(functions: Path) -> None:
    agent = await Agent(invents).start()
    quality = f"{HURRIED}[{{name: stuck, python: 'judges:hangs'}}, {{name: ours, python: 'judges:grounded'}}]}}"
    async with gateway(agent, config=config(quality, ("v", 1, agent))) as gw:
        wire = await gw.connect()
        await wire.post()
        await until(lambda: sum(evaluations(gw).values()) == 2)
        assert evaluations(gw) == {("stuck", "timeout"): 1, ("ours", "bad"): 1}
        assert gw.gateway.stats.service("main").verdicts == {("evaluators", "bad"): 1}


@in_loop
async def test_a_catastrophic_pattern_takes_no_longer_than_it_may() -> None:
    async def lure(call: Call) -> None:
        await call.answer(b"a" * 60 + b"!")

    agent = await Agent(lure).start()
    async with gateway(agent, config=config(f"{HURRIED}[{{pattern: {{never: '(a+)+$'}}}}]}}", ("v", 1, agent))) as gw:
        wire = await gw.connect()
        await wire.post()
        await until(lambda: evaluations(gw))
        assert evaluations(gw) == {("pattern", "timeout"): 1}


@in_loop
async def test_nothing_is_left_behind(functions: Path) -> None:
    agent = await Agent(fine).start()
    before = sorted(os.listdir("/proc/self/fd"))
    quality = "{sample: 100%, timeout: 100ms, evaluators: [{python: 'judges:leaves_children'}]}"
    async with gateway(agent, config=config(quality, ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for _ in range(3):
            await wire.post()
        await until(lambda: sum(evaluations(gw).values()) == 3)
        child = gw.server.quality.judges.child
        assert child.starts == 3
        await wire.post()
        await until(lambda: child._process is not None)
        pid = child._process.pid  # type: ignore[union-attr]
    await asyncio.sleep(0)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


@in_loop
async def test_a_hook_is_asked_and_what_it_says_counts() -> None:
    agent = await Agent(invents).start()
    asked: list[Any] = []

    async def judges(call: Call) -> None:
        asked.append(json.loads(call.seen.body))
        await call.answer(b'{"verdict": "bad", "reason": "it made up a source"}')

    judge = await Agent(judges).start()
    quality = f"{ALL}[{{http: '{judge.url}/verdict?x=1'}}]}}"
    async with gateway(agent, judge, config=config(quality, ("v", 1, agent))) as gw:
        wire = await gw.connect()
        for _ in range(5):
            assert (await wire.post(body=b'{"q": 1}')).status == 200
        await until(lambda: evaluations(gw) == {("http", "bad"): 5})
        assert breaker(gw, "v").state == "open"
        assert "http: it made up a source" in breaker(gw, "v").why
        assert judge.requests[0].target == "/verdict?x=1"
        assert asked[0].pop("seconds") >= 0
        assert asked[0] == {
            "service": "main",
            "version": "v",
            "status": 200,
            "content_type": "text/plain",
            "request": '{"q": 1}',
            "answer": "This is made up.",
        }


@in_loop
async def test_hooks_that_are_down_slow_or_talk_nonsense_are_counted_and_say_nothing() -> None:
    async def nonsense(call: Call) -> None:
        await call.answer(b'{"verdict": 5}')

    async def refuses(call: Call) -> None:
        await call.answer(status=500)

    async def waits(call: Call) -> None:
        await asyncio.sleep(PATIENCE)

    gone = await Agent(fine).start()
    await gone.stop()
    for behaviour, result in ((nonsense, "error"), (refuses, "error"), (waits, "timeout"), (None, "error")):
        agent = await Agent(fine).start()
        judge = gone if behaviour is None else await Agent(behaviour).start()
        patience = "200ms" if result == "timeout" else "5s"
        quality = f"{{sample: 100%, timeout: {patience}, queue: 2, evaluators: [{{http: '{judge.url}'}}]}}"
        both = (agent,) if behaviour is None else (agent, judge)
        async with gateway(*both, config=config(quality, ("v", 1, agent))) as gw:
            wire = await gw.connect()
            for _ in range(20):
                assert (await wire.post()).status == 200
            await until(lambda result=result: evaluations(gw).get(("http", result), 0) >= 2)
            assert gw.gateway.balancer.services["main"].shell.panel.waiting <= 2
            assert gw.gateway.stats.service("main").verdicts == {}
