"""Receivers of webhooks are real servers: what they get, when they are slow, wrong or dead, and that nobody waits."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from unjam.config import ConfigError, parse
from unjam.config.webhooks import Webhook
from unjam.gateway import webhooks as module
from unjam.gateway.webhooks import Event, Webhooks
from unjam.telemetry.collector import Collector
from unjam.telemetry.metrics import GatewayStats

from .harness import Agent, Call, gateway, in_loop, until
from .test_process import certificate

SECRET = "planted-Hook-Secret-0123"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(module, "TIMEOUT", 2.0)


def sender(*hooks: Webhook) -> tuple[Webhooks, GatewayStats]:
    stats = GatewayStats()
    webhooks = Webhooks(stats, structlog.get_logger())
    webhooks.configure(hooks)
    return webhooks, stats


def event(kind: str = "weight", **more: Any) -> Event:
    given: dict[str, Any] = {"at": 1.5, "gateway": "g:1", "who": "loopback", "service": "agent", **more}
    return Event(event=kind, **given)


def bodies(receiver: Agent) -> list[dict[str, Any]]:
    return [json.loads(seen.body) for seen in receiver.requests]


@in_loop
async def test_what_a_receiver_gets() -> None:
    receiver = await Agent().start()
    webhooks, stats = sender(Webhook(url=f"{receiver.url}/a/b?c=d", secret=SECRET))
    webhooks.tell(event(version="v8", before=10, after=20.5, why="größer"))
    await until(lambda: stats.webhooks)
    (seen,) = receiver.requests
    assert (seen.method, seen.target) == ("POST", "/a/b?c=d")
    assert seen.header("host") == f"127.0.0.1:{receiver.port}"
    assert seen.header("content-type") == "application/json"
    expected = hmac.new(SECRET.encode(), seen.body, hashlib.sha256).hexdigest()
    assert seen.header("x-unjam-signature") == f"sha256={expected}"
    told = json.loads(seen.body)
    assert len(told.pop("id")) == 32
    assert told == {
        "event": "weight",
        "at": 1.5,
        "gateway": "g:1",
        "who": "loopback",
        "service": "agent",
        "version": "v8",
        "endpoint": None,
        "before": 10,
        "after": 20.5,
        "why": "größer",
    }
    assert stats.webhooks == {"delivered": 1}
    await webhooks.stop()
    await receiver.stop()


@in_loop
async def test_receivers_get_what_they_asked_for_and_without_a_secret_no_signature() -> None:
    all_of_it, breakers = await Agent().start(), await Agent().start()
    webhooks, stats = sender(Webhook(url=all_of_it.url), Webhook(url=breakers.url, events="breaker"))
    for kind in ("weight", "breaker", "drain", "rollout"):
        webhooks.tell(event(kind))
    await until(lambda: stats.webhooks.get("delivered") == 5)
    assert [body["event"] for body in bodies(all_of_it)] == ["weight", "breaker", "drain", "rollout"]
    assert [body["event"] for body in bodies(breakers)] == ["breaker"]
    assert bodies(breakers)[0]["id"] == bodies(all_of_it)[1]["id"]
    assert all_of_it.requests[0].header("x-unjam-signature") is None
    await webhooks.stop()
    await all_of_it.stop()
    await breakers.stop()


@in_loop
async def test_what_fails_is_tried_three_times_with_the_same_id_and_the_next_has_its_turn() -> None:
    answers = iter([503, 429, 500, 200, 200])

    async def behaviour(call: Call) -> None:
        await call.answer(status=next(answers))

    receiver = await Agent(behaviour).start()
    with structlog.testing.capture_logs() as logs:
        webhooks, stats = sender(Webhook(url=f"{receiver.url}/secret-path"))
        webhooks.tell(event(why="first"))
        webhooks.tell(event(why="second"))
        await until(lambda: stats.webhooks.get("delivered"))
    assert stats.webhooks == {"failed": 1, "delivered": 1}
    assert [body["why"] for body in bodies(receiver)] == ["first"] * 3 + ["second"]
    assert len({body["id"] for body in bodies(receiver)}) == 2
    (line,) = [line for line in logs if line["event"] == "webhook_failed"]
    assert (line["to"], line["why"], line["about"]) == (receiver.url, "it answered 500", "weight")
    assert "secret-path" not in str(logs)
    await webhooks.stop()
    await receiver.stop()


@pytest.mark.parametrize("status", [301, 400, 404, 410])
@in_loop
async def test_an_answer_that_would_come_again_is_final(status: int) -> None:
    async def behaviour(call: Call) -> None:
        await call.answer(status=status, headers="Location: http://127.0.0.1:9/\r\n")

    receiver = await Agent(behaviour).start()
    webhooks, stats = sender(Webhook(url=receiver.url))
    webhooks.tell(event())
    await until(lambda: stats.webhooks)
    assert (stats.webhooks, len(receiver.requests)) == ({"failed": 1}, 1)
    await webhooks.stop()
    await receiver.stop()


@pytest.mark.parametrize("said", [b"", b"hello\r\n\r\n", b"HTTP/1.1 2", b"x" * 100_000])
@in_loop
async def test_what_is_no_answer_is_a_failure(said: bytes) -> None:
    async def behaviour(call: Call) -> None:
        await call.write(said)
        call.writer.close()

    receiver = await Agent(behaviour).start()
    webhooks, stats = sender(Webhook(url=receiver.url))
    webhooks.tell(event())
    await until(lambda: stats.webhooks)
    assert (stats.webhooks, len(receiver.requests)) == ({"failed": 1}, 3)
    await webhooks.stop()
    await receiver.stop()


@in_loop
async def test_a_name_that_cannot_be_looked_up_fails_its_events_and_no_others() -> None:
    hook = Webhook(url="http://fine.example/").model_copy(update={"url": "http://hooks..example/"})
    with structlog.testing.capture_logs() as logs:
        webhooks, stats = sender(hook)
        webhooks.tell(event(why="first"))
        webhooks.tell(event(why="second"))
        await until(lambda: stats.webhooks.get("failed") == 2)
    assert stats.webhooks_waiting == 0
    assert [line["why"].startswith("not a host's name") for line in logs] == [True, True]
    await webhooks.stop()


@pytest.mark.parametrize("host", ["hooks..example", "a" * 64 + ".example"])
def test_such_a_name_is_not_taken_from_a_configuration(host: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        Webhook(url=f"https://{host}/x")


@in_loop
async def test_an_interim_answer_and_an_endless_body_are_no_trouble() -> None:
    async def behaviour(call: Call) -> None:
        await call.write(b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
        while not call.writer.is_closing():
            await call.write(b"x" * 65536)

    receiver = await Agent(behaviour).start()
    webhooks, stats = sender(Webhook(url=receiver.url))
    webhooks.tell(event())
    await until(lambda: stats.webhooks)
    assert stats.webhooks == {"delivered": 1}
    await webhooks.stop()
    await receiver.stop()


@in_loop
async def test_a_dead_receiver_has_a_bounded_queue_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "QUEUE", 50)
    silent = socket.create_server(("127.0.0.1", 0))  # accepts by the kernel's hand, and never answers
    alive = await Agent().start()
    try:
        with structlog.testing.capture_logs() as logs:
            webhooks, stats = sender(
                Webhook(url=f"http://127.0.0.1:{silent.getsockname()[1]}/"), Webhook(url=alive.url)
            )
            start = time.perf_counter()
            for n in range(80):
                webhooks.tell(event(why=str(n)))
            assert time.perf_counter() - start < module.TIMEOUT  # it waits for nobody
            assert stats.webhooks["dropped"] == 60  # of the living one too: nothing could be sent meanwhile
            await until(lambda: stats.webhooks.get("delivered") == 50)
            assert stats.webhooks_waiting == 50
            webhooks.tell(event(why="later"))
            await until(lambda: stats.webhooks.get("delivered") == 51)
        dropped = [line for line in logs if line["event"] == "webhooks_dropped"]
        assert len(dropped) == 2  # once for each, not once for every event
        monkeypatch.setattr(module, "GRACE", 0.05)
        await webhooks.stop()
        assert stats.webhooks_waiting == 0
    finally:
        silent.close()
        await alive.stop()


@in_loop
async def test_what_waits_when_the_gateway_stops_is_sent() -> None:
    receiver = await Agent().start()
    webhooks, stats = sender(Webhook(url=receiver.url))
    webhooks.tell(event())
    await webhooks.stop()
    assert stats.webhooks == {"delivered": 1}
    await receiver.stop()


@in_loop
async def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path, "hook")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    receiver = await Agent().start(ssl=context)
    url = f"https://localhost:{receiver.port}/"
    with structlog.testing.capture_logs() as logs:
        webhooks, stats = sender(Webhook(url=url, secret=SECRET))
        webhooks.tell(event())
        await until(lambda: stats.webhooks)
        assert (stats.webhooks, receiver.requests) == ({"failed": 1}, [])
        assert "certificate" in logs[-1]["why"]
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        webhooks, stats = sender(Webhook(url=url, secret=SECRET))
        webhooks.tell(event())
        await until(lambda: stats.webhooks)
        assert stats.webhooks == {"delivered": 1}
    await receiver.stop()


@in_loop
async def test_a_reload_changes_who_is_told() -> None:
    first, second = await Agent().start(), await Agent().start()
    config = "services: {{s: {{versions: {{v: {{endpoints: ['http://127.0.0.1:9']}}}}}}}}\nwebhooks: {}\n"
    files = [config.format(f"['{first.url}']"), config.format(f"['{second.url}']")]
    try:
        async with gateway(
            config=files[0], reload=lambda: parse("listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n" + files[1], {})
        ) as gw:
            await gw.server.changes.set_weights("s", {"v": 2.0}, "w")
            await until(lambda: first.requests)
            assert await gw.server.reload() == []
            await gw.server.changes.set_weights("s", {"v": 3.0}, "w")
            await until(lambda: second.requests)
            assert (len(first.requests), bodies(second)[0]["after"]) == (1, 3.0)
    finally:
        await first.stop()
        await second.stop()


@in_loop
async def test_a_gateway_tells_of_trips_by_itself_and_of_the_way_back() -> None:
    good = True

    async def behaviour(call: Call) -> None:
        await call.answer(status=200 if good else 500)

    agent, other, receiver = await Agent(behaviour).start(), await Agent().start(), await Agent().start()
    config = (
        f"services: {{s: {{versions: {{v1: {{endpoints: ['{agent.url}']}}, v2: {{weight: 0, endpoints: ['{other.url}']"
        "}}, breaker: {error_rate: 5%, open: 1500ms}, ejection: {failures: 1000}}}\n"
        f"webhooks: {{url: '{receiver.url}', events: [breaker, drain]}}\n"
    )
    try:
        async with gateway(config=config) as gw:
            wire = await gw.connect()
            good = False
            for _ in range(8):
                await wire.get()
            await until(lambda: receiver.requests)
            good = True
            await until(lambda: len(receiver.requests) >= 2)
            trip, ramp = bodies(receiver)[:2]
            assert (trip["event"], trip["service"], trip["version"]) == ("breaker", "s", "v1")
            assert (trip["before"], trip["after"]) == ("closed", "open")
            assert trip["who"] == trip["gateway"] == gw.server.changes.where
            assert trip["why"]
            assert (ramp["before"], ramp["after"]) == ("open", "ramping")
            await gw.server.changes.set_weights("s", {"v2": 1.0}, "w")  # nobody asked for that
            await gw.server.changes.drain(other.url, True, "token:12345678@10.0.0.9")
            await until(lambda: bodies(receiver)[-1]["event"] == "drain")
            last = bodies(receiver)[-1]
            assert (last["endpoint"], last["service"], last["after"]) == (other.url, None, True)
            assert last["who"] == "token:12345678@10.0.0.9"
            assert "weight" not in [body["event"] for body in bodies(receiver)]
    finally:
        for each in (agent, other, receiver):
            await each.stop()


@in_loop
async def test_a_dead_receiver_holds_up_no_change_and_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await Agent().start()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = (
            f"services: {{s: {{versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}\n"
            f"webhooks: ['http://127.0.0.1:{silent.getsockname()[1]}/', 'http://127.0.0.1:9/']\n"
        )
        async with gateway(config=config) as gw:
            wire = await gw.connect()
            start = asyncio.get_running_loop().time()
            for n in range(20):
                await gw.server.changes.set_weights("s", {"v": float(n + 2)}, "w")
                assert (await wire.get()).status == 200
            assert asyncio.get_running_loop().time() - start < module.TIMEOUT
            monkeypatch.setattr(module, "GRACE", 0.01)
    await agent.stop()


def test_metrics_say_what_became_of_them() -> None:
    stats = GatewayStats()
    stats.webhook("delivered")
    stats.webhook("failed")
    stats.webhooks_waiting = 3
    samples = {
        (sample.name, sample.labels.get("result", "")): sample.value
        for family in Collector(stats, {}).collect()
        for sample in family.samples
    }
    assert samples["unjam_webhooks_total", "delivered"] == samples["unjam_webhooks_total", "failed"] == 1
    assert samples["unjam_webhooks_waiting", ""] == 3


def config_with(hook: str) -> str:
    return f"services: {{s: {{versions: {{v: {{endpoints: ['http://h']}}}}}}}}\nwebhooks: {hook}\n"


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("ftp://h/x", "is not an http or https URL"),
        ("https://", "is not an http or https URL"),
        ("'https://u:planted-pw@h/x'", "has credentials or a fragment"),
        ("'https://h/x y'", "has white space"),
        ("'https://h/é'", "characters that a URL may not have"),
        ("'https://h:99999/'", "is not a URL"),
        ("{url: 'https://h/', events: [brekaer]}", "Did you mean breaker"),
        ("{url: 'https://h/', secret: planted-short}", "the secret is too short"),
        ("{events: breaker}", "is required"),
        ("{url: 'https://h/', retries: 3}", "there is no key retries here"),
    ],
)
def test_configurations_that_are_refused(hook: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(config_with(hook), {})
    assert problem in str(refused.value)
    assert "planted" not in str(refused.value)


def test_configurations_that_are_taken() -> None:
    one = parse(config_with("https://hooks.example.com/T0/B1"), {}).webhooks
    assert (one[0].url, one[0].events) == ("https://hooks.example.com/T0/B1", ("breaker", "rollout", "weight", "drain"))
    two = parse(config_with(f"[http://127.0.0.1:9/, {{url: 'https://h/', events: drain, secret: {SECRET}}}]"), {})
    assert [hook.events for hook in two.webhooks][1] == ("drain",)
    assert SECRET not in repr(two)
    assert two.warnings == ()
    warned = parse(config_with("http://hooks.example.com/"), {}).warnings
    assert "without TLS" in str(warned[0])
