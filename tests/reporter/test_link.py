"""The line to a gateway: what it says, how it takes trouble, and that one gateway's trouble is its own."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from unjam.reporter.link import DRAINING, LEAVING, READY, Gateway, Link, Statement

from .gateways import TOKEN, FakeGateway, fake_gateway
from .skipping import skipping

ABOUT = {"service": "auditor", "url": "http://10.0.0.1:9000"}


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def linked(gateway: FakeGateway, interval: float = 2.0, token: str = TOKEN) -> AsyncIterator[Link]:
    link = Link(Gateway.at(gateway.url), lambda: token, ABOUT, interval, rng=random.Random(1))
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: object) -> None:
    async with asyncio.timeout(600):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.05)


@skipping
async def test_reports_come_at_the_interval_over_one_connection() -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        link.say(Statement(READY, {"cores": 8}, now()))
        await gateway.report(30)
        assert gateway.connections == 1
        assert gateway.reports[0] == {**ABOUT, "state": "ready", "load": {"cores": 8}}
        assert gateway.tokens[0] == f"Bearer {TOKEN}"
        assert all(later - earlier == pytest.approx(2.0, abs=0.05) for earlier, later in pairwise(gateway.times))


@skipping
async def test_a_gateway_may_ask_for_fewer() -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.interval = 5.0
        link.say(Statement(READY, {}, now()))
        await gateway.report(3)
        assert gateway.times[3] - gateway.times[0] == pytest.approx(15.0, abs=0.2)


@skipping
async def test_echo_and_how_long_it_was_held() -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        link.say(Statement(READY, {}, now()))
        await gateway.report(0)
        await asyncio.sleep(1.5)
        link.say(Statement(READY, {}, now()))  # measured half a second before it is sent
        second = await gateway.report(1)
        assert second["echo"] == "1:1"
        assert second["held"] == pytest.approx(1.5, abs=0.05)
        third = await gateway.report(2)
        assert (third["echo"], third["held"]) == ("1:2", 0.0), "measured before the answer came"


@skipping
async def test_news_is_said_at_once() -> None:
    async with fake_gateway() as gateway, linked(gateway, interval=60.0) as link:
        link.say(Statement(READY, {"cpu": 0.1}, now()))
        await gateway.report(0)
        await asyncio.sleep(1.0)
        link.say(Statement(READY, {"cpu": 0.2}, now()))
        link.say(Statement(READY, {"cpu": 0.9}, now()), at_once=True)
        await gateway.says(cpu=0.9)
        link.say(Statement(DRAINING, {"cpu": 0.9}, now()))
        await gateway.says(state="draining")
        assert gateway.times[-1] - gateway.times[0] < 1.5
        assert len(gateway.reports) == 3


@skipping
async def test_who_has_taken_leave_is_silent_until_it_is_back() -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        link.say(Statement(READY, {}, now()))
        await gateway.report(0)
        link.say(Statement(LEAVING, {}, now()))
        await gateway.report(1)
        await asyncio.sleep(60)
        assert gateway.states == ["ready", "leaving"]
        link.say(Statement(READY, {}, now()))
        await gateway.report(2)
        assert gateway.states[-1] == "ready"


@skipping
async def test_a_restarted_gateway_hears_everything_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with fake_gateway() as gateway, linked(gateway) as link:
        link.say(Statement(READY, {"cores": 8}, now()))
        await gateway.report(1)
        await gateway.stop()
        await until(lambda: not link.reachable)
        before, at = len(gateway.reports), now()
        await gateway.start()
        again = await gateway.report(before)
        assert gateway.times[-1] - at < 6.0
        assert again["load"] == {"cores": 8}
        await until(lambda: link.reachable)
        assert [record.message for record in caplog.records] == [
            f"registered with {gateway.url}",
            f"{gateway.url} cannot be reached: Connection refused; trying again",
            f"{gateway.url} takes reports again",
        ]


@skipping
async def test_a_connection_that_was_closed_meanwhile_is_renewed_unseen(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        link.say(Statement(READY, {}, now()))
        await gateway.report(0)
        for writer in list(gateway._writers):
            writer.close()
        await gateway.report(1)
        assert gateway.connections == 2
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@skipping
async def test_attempts_get_rarer_and_never_rarer_than_five_seconds() -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.status = 503
        link.say(Statement(READY, {}, now()))
        await gateway.report(14)
        pauses = [later - earlier for earlier, later in pairwise(gateway.times)]
        assert pauses[0] <= 0.3
        assert all(pause <= 5.1 for pause in pauses)
        assert pauses[-1] >= 2.4
        assert len(set(pauses[-5:])) == 5, "without jitter all reporters come back together"


@skipping
async def test_a_gateway_that_hangs_is_left_after_five_seconds_and_delays_no_other() -> None:
    async with fake_gateway() as hung, fake_gateway() as fine, linked(hung) as one, linked(fine) as other:
        hung.mute = True
        for link in (one, other):
            link.say(Statement(READY, {}, now()))
        await fine.report(10)
        assert fine.times[10] - fine.times[0] == pytest.approx(20.0, abs=0.3)
        assert 2 <= hung.connections <= 5
        assert hung.times[1] - hung.times[0] == pytest.approx(5.2, abs=0.2)
        assert not one.reachable
        assert other.reachable


@skipping
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_refusal_is_told_once_and_tried_again_slowly(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.status, gateway.message = status, "cores is 1e+09: it must be\nfrom 0 to 4096"
        link.say(Statement(READY, {"cores": 1e9}, now()))
        await gateway.report(3)
        assert [round(later - earlier) for earlier, later in pairwise(gateway.times)] == [5, 5, 5]
        (warning,) = caplog.records
        assert str(status) in warning.message
        assert ("token" if status == 401 else "cores is 1e+09: it must be from 0 to 4096") in warning.message
        assert TOKEN not in warning.message
        gateway.status = 200
        await until(lambda: link.reachable)


@skipping
async def test_a_new_token_is_used_after_a_refusal() -> None:
    tokens = iter(["the-first-of-the-tokens", "the-second-of-the-tokens"])
    async with fake_gateway() as gateway:
        gateway.status = 401
        link = Link(Gateway.at(gateway.url), lambda: next(tokens), ABOUT, 2.0)
        task = asyncio.create_task(link.run())
        link.say(Statement(READY, {}, now()))
        await gateway.report(0)
        gateway.status = 200
        await gateway.report(2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert gateway.tokens == [
            "Bearer the-first-of-the-tokens",
            "Bearer the-second-of-the-tokens",
            "Bearer the-second-of-the-tokens",
        ]


@skipping
async def test_draining_is_heard_whatever_is_thought_of_the_figures() -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.status = 422
        link.say(Statement(DRAINING, {"cores": 1e9}, now()))
        second = await gateway.report(1)
        assert (second["state"], second["load"]) == ("draining", {})


@skipping
@pytest.mark.parametrize("status", [403, 404, 409])
async def test_leave_of_one_that_is_unknown_is_taken(status: int) -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.status = status
        link.say(Statement(LEAVING, {}, now()))
        await until(lambda: link.told == LEAVING)
        await asyncio.sleep(30)
        assert gateway.states == ["leaving"]


GOOD = json.dumps({"inflight": 0, "heavy": 0, "echo": "e", "interval": 2.0, "draining": False}).encode()


@skipping
@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 40000\r\n\r\n" + b"[" * 40000,
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad line\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20000 + b"\r\n\r\n",
        b'HTTP/1.1 200 OK\r\ncontent-length: 31\r\n\r\n{"inflight": -1, "echo": "none"}',
    ],
)
async def test_nonsense_is_no_answer(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.raw = answer
        link.say(Statement(READY, {}, now()))
        await until(lambda: link.failures == 3)
        assert link.heard is None
        assert "is not understood" in caplog.records[0].message
        gateway.raw = None
        await until(lambda: link.heard is not None)


@skipping
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\ncontent-length: %d\r\n\r\n%b" % (len(GOOD), GOOD),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\nt: u\r\n\r\n"
        % (GOOD[:5], len(GOOD) - 5, GOOD[5:]),
        b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(GOOD), GOOD),
    ],
)
async def test_what_proxies_make_of_an_answer_is_understood(answer: bytes) -> None:
    async with fake_gateway() as gateway, linked(gateway) as link:
        gateway.raw = answer
        link.say(Statement(READY, {}, now()))
        await gateway.report(2)
        assert link.failures == 0
        assert link.heard is not None
        assert link.heard.echo == "e"


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("ftp://a", "http"),
        ("10.0.0.1:8082", "http"),
        ("http://", "host"),
        ("http://a:99999", "port"),
        ("http://user@a", "nothing else"),
        ("http://a/?b", "nothing else"),
        ("http://a b", "may not have"),
    ],
)
def test_what_is_no_gateway(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Gateway.at(url)


def test_gateways_have_ports_and_may_have_a_path() -> None:
    assert (Gateway.at("https://a").port, Gateway.at("http://a").port) == (443, 80)
    head = Gateway.at("http://[::1]:8082/unjam/").head
    assert head.startswith(b"POST /unjam/v1/report HTTP/1.1\r\nhost: [::1]:8082\r\n")
