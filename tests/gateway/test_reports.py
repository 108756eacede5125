"""The reports listener: what it answers, what it refuses, and how old it knows a report to be."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from .harness import Agent, Wire, in_loop, until
from .reporting import BEARER, IDLE, TOKEN, Reported, reported
from .test_process import certificate

URL = "http://127.0.0.1:9000"
LISTED = f"{{s: {{versions: {{v: {{endpoints: ['{URL}']}}}}}}}}"
GOOD: dict[str, Any] = {"service": "s", "url": URL, "load": IDLE}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key not in keys}


@in_loop
async def test_a_report_is_taken_and_answered() -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        answer = await reporter.send({**GOOD, "version": "v", "state": "ready", "region": None, "slots": None})
        assert answer.status == 200
        assert answer.header("content-type") == "application/json"
        said = json.loads(answer.body)
        assert isinstance(said.pop("echo"), str)
        assert said == {"endpoint": URL, "inflight": 0, "heavy": 0, "interval": 2.0, "draining": False}
        shown = gw.shown(URL)
        assert shown["load"]["accepted"] == 1
        assert shown["load"]["sources"]["reporter"]["cpu"] == 0.1
        assert shown["discovered"] is False
        assert gw.results == {"accepted": 1}


@in_loop
async def test_many_on_one_connection() -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        for number in range(50):
            await reporter.report(URL, {**IDLE, "cpu": number / 100})
        body = json.dumps(GOOD).encode()
        one = b"POST /v1/report HTTP/1.1\r\nHost: g\r\n%bContent-Length: %d\r\n\r\n%b" % (
            BEARER.encode(),
            len(body),
            body,
        )
        await reporter.wire.send(one * 20)  # ahead of the answers
        for _ in range(20):
            assert (await reporter.wire.answer("POST")).status == 200
        for piece in (one[:10], one[10:90], one[90:-5], one[-5:]):
            await reporter.wire.send(piece)
            await asyncio.sleep(0)
        assert (await reporter.wire.answer("POST")).status == 200
        assert gw.results == {"accepted": 71}
        assert len(gw.server.reports.connections) == 1


@pytest.mark.parametrize(
    ("report", "status", "code", "result"),
    [
        (b"", 400, "bad_json", "bad_report"),
        (b"{", 400, "bad_json", "bad_report"),
        (b"\xff{}", 400, "bad_json", "bad_report"),
        (b"[" * 16000, 400, "bad_report", "bad_report"),
        (b'{"a":' * 3000, 400, "bad_report", "bad_report"),
        (b"[]", 400, "bad_report", "bad_report"),
        (without("service"), 400, "bad_report", "bad_report"),
        (without("url"), 400, "bad_report", "bad_report"),
        ({**GOOD, "colour": "red"}, 400, "bad_report", "bad_report"),
        ({**GOOD, "load": {"cpus": 1}}, 400, "bad_report", "bad_report"),
        ({**GOOD, "load": {"cpu": "NaN"}}, 400, "bad_report", "bad_report"),
        ({**GOOD, "load": {"cpu": True}}, 400, "bad_report", "bad_report"),
        ({**GOOD, "load": float("nan")}, 400, "bad_json", "bad_report"),
        ({**GOOD, "held": -1.0}, 400, "bad_report", "bad_report"),
        ({**GOOD, "slots": 0}, 400, "bad_report", "bad_report"),
        ({**GOOD, "weight": 0}, 400, "bad_report", "bad_report"),
        ({**GOOD, "state": "tired"}, 400, "bad_report", "bad_report"),
        ({**GOOD, "url": "9000"}, 400, "bad_report", "bad_report"),
        ({**GOOD, "url": "http://u:p@h:1"}, 400, "bad_report", "bad_report"),
        ({**GOOD, "url": "http://h:1/path"}, 400, "bad_report", "bad_report"),
        ({**GOOD, "load": {"cores": 1e400}}, 400, "bad_json", "bad_report"),
        (json.dumps(GOOD).replace("12000000000.0", "1" + "0" * 400).encode(), 400, "bad_report", "bad_report"),
        ({**GOOD, "service": "t"}, 404, "unknown_service", "unknown"),
        ({**GOOD, "version": "w"}, 404, "unknown_version", "unknown"),
        ({**GOOD, "url": "http://127.0.0.1:9001"}, 409, "not_discoverable", "not_allowed"),
        ({**GOOD, "load": {"cpu": -0.1}}, 422, "bad_load", "bad_load"),
        ({**GOOD, "load": {"cores": 1e9}}, 422, "bad_load", "bad_load"),
        ({**GOOD, "load": {"cpu": 0.1, "agent_cpu": 0.9}}, 422, "bad_load", "bad_load"),
    ],
)
@in_loop
async def test_what_is_refused_is_counted_and_changes_nothing(
    report: dict[str, Any] | bytes, status: int, code: str, result: str
) -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        assert await reporter.refused(report) == (status, code)
        assert gw.results == {result: 1}
        assert gw.urls() == [URL]
        assert gw.shown(URL)["load"] is None or not gw.shown(URL)["load"]["accepted"]
        # The connection is good for more.
        assert (await reporter.report(URL))["endpoint"] == URL


@in_loop
async def test_a_version_must_be_named_when_there_are_two() -> None:
    two = f"{{s: {{versions: {{v: {{endpoints: ['{URL}']}}, w: {{endpoints: ['{URL}']}}}}}}}}"
    async with reported(two) as gw:
        reporter = await gw.connect()
        assert await reporter.refused(GOOD) == (400, "bad_report")
        await reporter.report(URL, version="w")
        versions = gw.server._control.snapshot()["services"]["s"]["versions"]
        assert versions["v"]["endpoints"][0]["load"] is None
        assert versions["w"]["endpoints"][0]["load"]["accepted"] == 1


@in_loop
async def test_a_liar_is_named_and_believed_nothing() -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        await reporter.report(URL)
        for load, problem in (
            ({"cores": 1e9}, "cores is 1e+09: it must be from 0 to 4096"),
            ({"cpu": -1}, "cpu is -1: it must be from 0 to 1"),
            ({"cpu": float("nan")}, "cpu is not a number"),
            ({"memory_free": float("inf")}, "memory_free is not a number"),
        ):
            status, _ = await reporter.refused({**GOOD, "load": load})
            assert status in (400, 422)
            assert gw.shown(URL)["load"]["problem"] == problem
            assert f"reports refused: {problem}" in gw.shown(URL)["why"]
        assert gw.shown(URL)["load"]["refused"] == 4
        assert gw.results == {"accepted": 1, "bad_load": 2, "bad_report": 2}


# -- who may report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [TOKEN, "sha256:b0e4fcc5a0a4a6a6c45b0b0f2f6ad3fba2b9e4ad0b1a6ce3a1eafd2e8c3d6f10"])
@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Authorization: Bearer wrong-token-of-some-length\r\n",
        "Authorization: Bearer\r\n",
        f"Authorization: Basic {TOKEN}\r\n",
        f"Authorization: {TOKEN}\r\n",
        f"Authorization: Bearer {TOKEN}x\r\n",
        f"x-api-key: {TOKEN}\r\n",
        "Authorization: Bearer \xff\xff\r\n",
    ],
)
@in_loop
async def test_without_the_token_there_is_one_answer(headers: str, token: str) -> None:
    if token != TOKEN:
        headers = headers.replace(TOKEN, token)  # knowing the digest is of no use
    async with reported(LISTED) as gw:
        answers = []
        for path, body in (("/v1/report", json.dumps(GOOD).encode()), ("/v1/report", b"{"), ("/", b""), ("/x", b"y")):
            reporter = await gw.connect()
            request = f"POST {path} HTTP/1.1\r\nHost: g\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
            await reporter.wire.send(request.encode("latin-1") + body)
            answer = await reporter.wire.answer("POST")
            answers.append((answer.status, sorted(answer.headers), answer.body))
            assert await reporter.wire.closed() == b""
        assert answers[0][0] == 401
        assert answers[1:] == answers[:1] * 3
        assert json.loads(answers[0][2])["error"]["code"] == "report_unauthorized"
        assert gw.results == {"unauthorized": 4}
        assert gw.gateway.stats.rejects == {"report_unauthorized": 4}
        assert gw.shown(URL)["load"] is None


@in_loop
async def test_a_token_given_as_its_digest() -> None:
    from hashlib import sha256

    digest = sha256(b"another-token-of-some-length").hexdigest()
    config = f"{{s: {{versions: {{v: {{endpoints: ['{URL}']}}}}}}}}"
    async with reported(config, reporters="") as gw:
        reporters = gw.server.config.reporters
        assert reporters is not None
        gw.server.reports.configure(reporters.model_copy(update={"token": f"sha256:{digest}"}))
        reporter = await gw.connect()
        answer = await reporter.send(GOOD, headers="Authorization: bearer another-token-of-some-length\r\n")
        assert answer.status == 200
        reporter = await gw.connect()
        assert (await reporter.send(GOOD)).status == 401


@in_loop
async def test_over_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "localhost")
    async with reported(LISTED, reporters=f", tls: {{cert: '{cert}', key: '{key}'}}") as gw:
        trust = ssl.create_default_context(cafile=str(cert))
        reporter = await gw.connect(trust)
        assert (await reporter.report(URL))["endpoint"] == URL
        assert await reporter.refused(GOOD, headers="") == (401, "report_unauthorized")
        assert await reporter.wire.closed() == b""


@in_loop
async def test_without_reporters_nobody_listens() -> None:
    from .harness import gateway

    async with gateway(Agent()) as running:
        assert not any(listener.reporters for listener in running.server.listeners.values())


# -- framing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ("GARBAGE\r\n\r\n", 400, "bad_request_line"),
        ("POST /v1/report HTTP/1.1\r\n\r\n", 400, "host_missing"),
        ("POST /v1/report HTTP/2.0\r\nHost: g\r\n\r\n", 505, "unsupported_version"),
        (f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}\r\n", 411, "length_required"),
        (
            f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
            411,
            "length_required",
        ),
        (
            f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "length_and_coding",
        ),
        (
            f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}",
            400,
            "duplicate_content_length",
        ),
        (
            f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}{BEARER}Content-Length: 2\r\n\r\n{{}}",
            400,
            "duplicate_field",
        ),
        (f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Content-Length: 16385\r\n\r\n", 413, "body_too_large"),
        (f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}X: {'x' * 9000}\r\n\r\n", 431, "field_too_long"),
        (f"GET /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}\r\n", 405, "method_not_allowed"),
        (f"POST /v1/reports HTTP/1.1\r\nHost: g\r\n{BEARER}Content-Length: 2\r\n\r\n{{}}", 404, "not_found"),
    ],
)
@in_loop
async def test_hostile_framing_is_answered_once_and_ends_the_connection(request_: str, status: int, code: str) -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        good = json.dumps(GOOD).encode()
        # What follows is not parsed.
        smuggled = f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Content-Length: {len(good)}\r\n\r\n".encode() + good
        await reporter.wire.send(request_.encode() + smuggled)
        answer = await reporter.wire.answer("POST")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
        assert await reporter.wire.closed() == b""
        assert gw.results == {"bad_report": 1}
        assert gw.gateway.stats.rejects == {"report_malformed": 1}


@in_loop
async def test_the_largest_report_fits_and_the_next_does_not() -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        body = json.dumps(GOOD).encode()
        assert (await reporter.send(body + b" " * (16384 - len(body)))).status == 200
        assert await reporter.refused(body + b" " * (16385 - len(body))) == (413, "body_too_large")


@in_loop
async def test_one_who_expects_100_gets_it() -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        body = json.dumps(GOOD).encode()
        await reporter.wire.send(
            f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Expect: 100-continue\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
        )
        assert await reporter.wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await reporter.wire.send(body)
        assert (await reporter.wire.answer("POST")).status == 200


@pytest.mark.parametrize(
    ("begun", "code"),
    [
        ("POST /v1/rep", "head_timeout"),
        (f"POST /v1/report HTTP/1.1\r\nHost: g\r\n{BEARER}Content-Length: 100\r\n\r\n{{", "body_timeout"),
    ],
)
@in_loop
async def test_one_who_sends_slowly_is_cut_off(begun: str, code: str) -> None:
    async with reported(LISTED, limits="limits: {header_timeout: 150ms}\n") as gw:
        reporter = await gw.connect()
        await reporter.wire.send(begun.encode())
        answer = await reporter.wire.answer("POST")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, code)
        assert await reporter.wire.closed() == b""
        assert gw.results == {"bad_report": 1}


@in_loop
async def test_one_who_sends_nothing_is_let_go() -> None:
    async with reported(LISTED, limits="limits: {keepalive: 150ms}\n") as gw:
        silent, reporter = await gw.connect(), await gw.connect()
        await reporter.report(URL)
        assert await silent.wire.closed() == b""
        assert await reporter.wire.closed() == b""
        await until(lambda: not gw.server.reports.connections)
        assert gw.gateway.descriptors == 0


@in_loop
async def test_one_who_never_reads_is_not_read_from() -> None:
    async with reported(LISTED) as gw:
        reporter = await gw.connect()
        body = json.dumps(GOOD).encode()
        one = b"POST /v1/report HTTP/1.1\r\nHost: g\r\n%bContent-Length: %d\r\n\r\n%b" % (
            BEARER.encode(),
            len(body),
            body,
        )
        (connection,) = gw.server.reports.connections
        for end in (connection.transport, reporter.wire.writer.transport):
            bound = end.get_extra_info("socket")
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reporter.wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        connection.transport.set_write_buffer_limits(0)
        reporter.wire.writer.write(one * 5_000)
        await until(lambda: connection._paused)
        before = gw.results["accepted"]
        for _ in range(20):
            await asyncio.sleep(0)
        assert gw.results["accepted"] == before < 5_000
        reporter.wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
        while gw.results["accepted"] == before:
            assert await reporter.wire.reader.read(1 << 20)


@in_loop
async def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from unjam.gateway import reports as module

    monkeypatch.setattr(module, "MOST_CONNECTIONS", 2)
    async with reported(LISTED) as gw:
        first, second = await gw.connect(), await gw.connect()
        await first.report(URL)
        await second.report(URL)
        third = await gw.connect()
        answer = await third.wire.answer("POST")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "too_many_reporters")
        first.wire.close()
        await until(lambda: len(gw.server.reports.connections) == 1)
        await (await gw.connect()).report(URL)


@in_loop
async def test_what_many_say_waits_for_the_tick_and_is_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from unjam.gateway import reports as module

    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    async with reported(LISTED) as gw:
        reports = gw.server.reports
        reporters = [await gw.connect() for _ in range(5)]
        await until(lambda: len(reports.connections) == 5)
        body = json.dumps(GOOD).encode()
        one = b"POST /v1/report HTTP/1.1\r\nHost: g\r\n%bContent-Length: %d\r\n\r\n%b" % (
            BEARER.encode(),
            len(body),
            body,
        )
        for reporter in reporters:
            await reporter.wire.send(one)
            assert (await reporter.wire.answer("POST")).status == 200
        assert all(each in reports.parking for each in reports.connections)
        gw.server._ticker.cancel()  # type: ignore[union-attr]
        await reporters[0].wire.send(one[:50])
        await reporters[1].wire.send(one * 3)
        await reporters[2].wire.send(b"GARBAGE\r\n\r\n")
        await reporters[3].wire.send(one * 200)
        reporters[4].wire.close()
        assert gw.results == {"accepted": 5}
        gw.server._tick()
        await reporters[0].wire.send(one[50:])
        for reporter, count in zip(reporters, (1, 3, 0, 200), strict=False):
            for _ in range(count):
                assert (await reporter.wire.answer("POST")).status == 200
        assert (await reporters[2].wire.answer("POST")).status == 400
        assert await reporters[2].wire.closed() == b""
        assert gw.results == {"accepted": 209, "bad_report": 1}
        await until(lambda: len(reports.connections) == 3)
        assert len(reports.parking._descriptors) == 3


# -- how old a report is -----------------------------------------------------------------------------------------------


def age(gw: Reported) -> float:
    found: float = gw.shown(URL)["load"]["sources"]["reporter"]["age"]
    return found


@in_loop
async def test_a_report_that_was_held_back_is_known_to_be_old() -> None:
    async with reported(LISTED) as gw:
        clock = gw.set_clock()
        reporter = await gw.connect()
        echo = (await reporter.report(URL))["echo"]
        clock.now += 2.0
        echo = (await reporter.report(URL, echo=echo, held=2.0))["echo"]
        assert gw.results == {"accepted": 2}
        # Measured 2 s after that answer, and on its way for 60.
        clock.now += 62.0
        echo = (await reporter.report(URL, echo=echo, held=2.0))["echo"]
        assert gw.results == {"accepted": 2, "late": 1}
        # A fresh one counts again.
        clock.now += 2.0
        await reporter.report(URL, echo=echo, held=1.99)
        assert gw.results == {"accepted": 3, "late": 1}
        assert gw.shown(URL)["load"]["late"] == 1


@in_loop
async def test_the_age_is_that_of_the_measurement() -> None:
    async with reported(LISTED) as gw:
        clock = gw.set_clock()
        reports = gw.server.reports
        reporter = await gw.connect()
        echo = (await reporter.report(URL))["echo"]
        clock.now += 12.5
        assert reports._age(echo, 0.5, clock.now) == pytest.approx(12.0, abs=1e-4)
        assert reports._age(echo, 99.0, clock.now) == 0.0
        assert reports._age(None, 0.0, clock.now) == 0.0


@pytest.mark.parametrize("echo", ["", "x", "deadbeef-ff", "-", "z" * 500])
@in_loop
async def test_the_echo_of_another_gateway_means_nothing(echo: str) -> None:
    async with reported(LISTED) as gw:
        clock = gw.set_clock()
        reporter = await gw.connect()
        clock.now += 100.0
        await reporter.report(URL, echo=echo)
        ours = (await reporter.report(URL))["echo"].partition("-")[0]
        await reporter.report(URL, echo=f"{ours}-{echo}")
        await reporter.report(URL, echo=f"{ours}-{'f' * 400}")
        assert gw.results == {"accepted": 4}


# -- the gateway stops -------------------------------------------------------------------------------------------------


@in_loop
async def test_a_drain_ends_the_listener_and_its_connections() -> None:
    async with reported(LISTED) as gw:
        idle = await gw.connect()
        await idle.report(URL)
        port = gw.port
        await gw.server.drain()
        assert await idle.wire.closed() == b""
        with pytest.raises(ConnectionError):
            await Wire.connect(port)
        await until(lambda: not gw.server.reports.connections)
