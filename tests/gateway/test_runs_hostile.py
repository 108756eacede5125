"""What clients of runs get by asking in odd ways, or by going on after they lost the right to."""

from __future__ import annotations

from hashlib import sha256

import pytest

from unjam.gateway.respond_async import prefers

from .durable import Api, runs_gateway
from .harness import Agent, Call, gateway, in_loop


def keys(**services: str) -> str:
    """A key `key-of-NAME` for each tenant, for these services only; of the others' role where it says `worker`."""
    lines = []
    for name, given in services.items():
        more = ", role: worker" if given == "worker" else f", services: [{given}]" if given else ""
        lines.append(f"- {{tenant: {name}, hash: 'sha256:{sha256(f'key-of-{name}'.encode()).hexdigest()}'{more}}}\n")
    return "keys:\n" + "".join(lines)


async def says_its_target(call: Call) -> None:
    await call.answer(f"{call.seen.method} {call.seen.target}".encode())


def by_model(one: Agent, two: Agent, first: str = "", second: str = "") -> str:
    """`one` has all paths, `two` the model `m`. `first`, `second`: more of each."""
    return (
        "services:\n"
        f"  one:\n    match: {{path: /}}\n    versions: {{v1: {{endpoints: ['{one.url}']}}}}\n{first}"
        f"  two:\n    match: {{model: m}}\n    versions: {{v1: {{endpoints: ['{two.url}']}}}}\n{second}"
    )


@in_loop
async def test_a_head_of_a_stream_is_answered_without_a_body() -> None:
    """What came behind the head would be taken for the next answer, by a proxy perhaps for somebody else's."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        for path in (f"/v1/responses/resp_{run['id'][4:]}?stream=true", f"/v1/runs/{run['id']}/events"):
            await api.wire.send(f"HEAD {path} HTTP/1.1\r\nHost: t\r\nAccept: text/event-stream\r\n\r\n".encode())
            answer = await api.wire.answer("HEAD")
            assert (answer.status, answer.header("content-type"), answer.body) == (200, "text/event-stream", b"")
        status, found = await api.call("GET", f"/v1/runs/{run['id']}")
        assert (status, found["status"]) == (200, "queued")
        assert running.server.gateway.stats.held == 0


# -- what below /v1/responses is the services' ---------------------------------------------------------------------


@in_loop
async def test_a_key_reaches_no_other_service_by_way_of_responses() -> None:
    async with Agents() as (one, two):
        config = f"runs: on\n{keys(caller='two')}{by_model(one, two)}"
        async with gateway(config=config) as running:
            wire = await running.connect()
            key = "Authorization: Bearer key-of-caller\r\n"
            assert (await wire.get("/x", key)).status == 403
            for method in ("GET", "DELETE"):
                await wire.send(f"{method} /v1/responses/resp_theirs HTTP/1.1\r\nHost: t\r\n{key}\r\n".encode())
                assert (await wire.answer(method)).status == 403
            assert (await wire.post("/v1/responses/resp_theirs", b"", key)).status == 403
            assert (await wire.post("/v1/responses", b'{"model": "other"}', key)).status == 403
            answer = await wire.post("/v1/responses", b'{"model": "m"}', key)
            assert (answer.status, answer.body) == (200, b"POST /v1/responses")
            assert not one.requests


@in_loop
async def test_what_is_not_ours_below_responses_is_the_services_whatever_its_method() -> None:
    agent = await Agent(says_its_target).start()
    async with gateway(agent, config=by_path(agent)) as running:
        wire = await running.connect()
        ours = "/v1/responses/resp_00" + "0" * 25
        for method, path in (
            ("GET", "/v1/responses"), ("OPTIONS", "/v1/responses"), ("PUT", "/v1/responses/resp_theirs"),
            ("GET", "/v1/responses/"), ("GET", "/v1/responses/a/b/c"), ("POST", "/v1/responses/input_tokens"),
            ("GET", "/v1/responses/00" + "0" * 25), ("OPTIONS", ours), ("POST", ours),
        ):  # fmt: skip
            await wire.send(f"{method} {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n".encode())
            answer = await wire.answer(method)
            assert (answer.status, answer.body) == (200, f"{method} {path}".encode())
        assert (await wire.get(ours)).status == 404


@in_loop
async def test_what_is_passed_on_is_heeded_as_any_request() -> None:
    agent = await Agent(says_its_target).start()
    async with gateway(agent, config=by_path(agent)) as running:
        wire = await running.connect()
        assert (await wire.post("/v1/responses", headers="x-unjam-lane: none\r\n")).status == 400
        assert (await wire.post("/v1/responses", headers="x-unjam-deadline: -1\r\n")).status == 400
        answer = await wire.post("/v1/responses", headers="Prefer: respond-async\r\n")
        assert (answer.status, answer.header("preference-applied")) == (202, "respond-async")
        await wire.send(
            b"POST /v1/responses HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        assert (await wire.answer("POST")).status == 400


def by_path(agent: Agent) -> str:
    return f"runs: on\nservices:\n  a:\n    match: {{path: /}}\n    versions: {{v1: {{endpoints: ['{agent.url}']}}}}\n"


class Agents:
    """Two that say what they were asked for."""

    async def __aenter__(self) -> tuple[Agent, Agent]:
        self.agents = Agent(says_its_target), Agent(says_its_target)
        for agent in self.agents:
            await agent.start()
        return self.agents

    async def __aexit__(self, *_: object) -> None:
        for agent in self.agents:
            await agent.stop()


# -- Prefer: respond-async -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["one", "two"])
@in_loop
async def test_the_service_of_the_model_says_whether_a_request_is_kept(off: str) -> None:
    async with Agents() as (one, two):
        given = {"first" if off == "one" else "second": "    runs: off\n"}
        async with gateway(config=f"runs: {{max_input: 100KiB}}\n{by_model(one, two, **given)}") as running:
            wire = await running.connect()
            for model, service in (("x", "one"), ("m", "two")):
                for size in (1, 200 << 10):
                    body = b'{"model": "%b", "input": "%b"}' % (model.encode(), b"y" * size)
                    answer = await wire.post("/v1/chat/completions", body, "Prefer: respond-async\r\n")
                    kept = 202 if size == 1 else 413
                    assert answer.status == (200 if service == off else kept), (model, size)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"respond-async", True), (b"wait=10, Respond-Async ; a=b", True), (b'respond-async=""', True),
        (b'foo="a \\" b, c", respond-async', True), (b"respond-async=1", False), (b"respond-asynchronous", False),
        (b'foo="a, respond-async, b"', False), (b'foo="a \\", respond-async', False),
        (b"return=minimal; respond-async", False), (b"", False), (b",,;=,", False),
    ],
)  # fmt: skip
def test_a_preference_is_told_from_what_only_looks_like_one(value: bytes, wanted: bool) -> None:
    assert prefers(value) is wanted
