"""The end of a fallback chain, read by the clients that people use: plain HTTP, OpenAI's SDK, event streams,
WebSocket."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import websockets

from tests.gateway.harness import Agent, Call, Running, gateway, in_loop, until

COMPLETION: dict[str, Any] = {"model": "m-1", "prompt": "hi"}
MESSAGE = "We are improving this agent. Please try again soon."


def config(agent: Agent, step: str = "", service: str = "") -> str:
    return (
        f"services:\n  main:\n    match: {{path: /}}\n{service}"
        f"    fallback: [{{maintenance: '{MESSAGE}', retry_after: 90s{step}}}]\n"
        f"    versions: {{v: {{endpoints: ['{agent.url}']}}}}\n"
    )


async def gone() -> Agent:
    """An endpoint that nobody listens at."""
    agent = await Agent().start()
    await agent.stop()
    return agent


def sdk(running: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="unused", max_retries=0)


@in_loop
async def test_json_from_the_first_request_on_and_on_the_same_connection() -> None:
    agent = await gone()
    async with gateway(config=config(agent, ", status: 529")) as gw:
        wire = await gw.connect()
        for _ in range(8):  # also of those that find out that nobody is there
            answer = await wire.get()
            assert (answer.status, answer.header("retry-after")) == (529, "90")
            error = json.loads(answer.body)["error"]
            assert (error["code"], error["message"]) == ("maintenance", MESSAGE)
            assert error["request_id"] == answer.header("x-request-id")


@in_loop
async def test_who_asked_for_events_reads_an_event() -> None:
    agent = await gone()
    async with gateway(config=config(agent)) as gw:
        wire = await gw.connect()
        answer = await wire.post(headers="Accept: text/event-stream\r\n")
        assert (answer.status, answer.header("retry-after")) == (503, "90")
        assert answer.header("content-type") == "text/event-stream"
        retry, event, data, end, last = answer.body.decode().split("\n")
        assert (retry, event, end, last) == ("retry: 90000", "event: error", "", "")
        assert json.loads(data.removeprefix("data: "))["error"]["message"] == MESSAGE


@in_loop
async def test_with_status_200_event_sources_are_told_and_come_back_later() -> None:
    agent = await gone()
    async with gateway(config=config(agent, ", status: 200")) as gw:
        wire = await gw.connect()
        answer = await wire.get(headers="Accept: text/event-stream\r\n")
        assert answer.status == 200
        assert answer.body.startswith(b"retry: 90000\nevent: maintenance\n")
        assert MESSAGE in answer.body.decode()
        answer = await wire.get()
        assert json.loads(answer.body)["maintenance"]["message"] == MESSAGE


@in_loop
async def test_openais_sdk_raises_its_own_error_with_the_message() -> None:
    agent = await gone()
    async with gateway(config=config(agent, service="    dialect: openai\n")) as gw, sdk(gw) as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hi"}], stream=stream
                )
            error = caught.value
            assert error.status_code == 503
            assert error.code == "maintenance"
            assert error.body["message"] == MESSAGE  # type: ignore[index]
            assert error.response.headers["retry-after"] == "90"


@in_loop
async def test_with_status_200_openais_sdk_reads_it_as_the_assistants_words() -> None:
    agent = await gone()
    async with (
        gateway(config=config(agent, ", status: 200", "    dialect: openai\n")) as gw,
        sdk(gw) as client,
    ):
        asked = {"model": "m-1", "messages": [{"role": "user", "content": "hi"}]}
        completion = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
        assert completion.choices[0].message.content == MESSAGE
        assert (completion.model, completion.choices[0].finish_reason) == ("m-1", "stop")
        said = []
        async for chunk in await client.chat.completions.create(**asked, stream=True):  # type: ignore[call-overload]
            said.append(chunk.choices[0].delta.content or "")
        assert "".join(said) == MESSAGE


@in_loop
async def test_and_so_do_completions_and_responses_while_what_has_no_words_stays_an_error() -> None:
    agent = await gone()
    async with (
        gateway(config=config(agent, ", status: 200", "    dialect: openai\n")) as gw,
        sdk(gw) as client,
    ):
        completion = await client.completions.create(model="m-1", prompt="hi")
        assert (completion.choices[0].text, completion.model) == (MESSAGE, "m-1")
        said = [chunk.choices[0].text async for chunk in await client.completions.create(**COMPLETION, stream=True)]
        assert "".join(said) == MESSAGE
        response = await client.responses.create(model="m-1", input="hi")
        assert (response.output_text, response.model, response.status) == (MESSAGE, "m-1", "completed")
        async with client.responses.stream(model="m-1", input="hi") as stream:
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            assert "".join(deltas) == MESSAGE
            assert (await stream.get_final_response()).output_text == MESSAGE
        for asked in (client.embeddings.create(model="m-1", input="hi"), client.responses.retrieve("resp_1")):
            with pytest.raises(openai.InternalServerError) as caught:
                await asked
            assert (caught.value.status_code, caught.value.code) == (503, "maintenance")
            assert caught.value.response.headers["retry-after"] == "90"


async def known_down(gw: Running) -> None:
    """From now on requests are refused by their head alone."""
    wire = await gw.connect()
    service = gw.gateway.balancer.services["main"]
    while service.versions[0].breaker.closed:
        await wire.get()


@in_loop
async def test_streams_are_told_in_chunks_however_late_the_body_comes() -> None:
    agent = await gone()
    async with gateway(config=config(agent, ", status: 200", "    dialect: openai\n")) as gw, sdk(gw) as client:
        await known_down(gw)
        for length in (2, 80_000):
            said = []
            asked = {"model": "m-1", "messages": [{"role": "user", "content": "x" * length}]}
            async for chunk in await client.chat.completions.create(**asked, stream=True):  # type: ignore[call-overload]
                said.append(chunk.choices[0].delta.content or "")
            assert "".join(said) == MESSAGE
        wire = await gw.connect()
        body = b'{"model": "m-2", "stream": true}'
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        for framing, pieces in (
            (f"Content-Length: {len(body)}\r\n", [body[:5], body[5:]]),
            ("Transfer-Encoding: chunked\r\n", [b"%x\r\n%b\r\n" % (len(body), body), b"0\r\n\r\n"]),
            (f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n", [body]),
        ):
            await wire.send(f"{head}{framing}\r\n".encode())
            await until(lambda: any(c.exchange and c.exchange.state_name == "refusing" for c in gw.gateway.clients))
            for piece in pieces:
                await wire.send(piece)
            answer = await wire.answer("POST")
            assert (answer.header("content-type"), b"m-2" in answer.body) == ("text/event-stream", True), framing
        await gw.settled()


@in_loop
async def test_a_body_that_is_too_long_to_look_at_or_never_comes_is_not_waited_for() -> None:
    agent = await gone()
    text = config(agent, ", status: 200", "    dialect: openai\n")
    text += "limits: {max_inspect: 10kB, body_timeout: 200ms}\n"
    async with gateway(config=text) as gw:
        await known_down(gw)
        wire = await gw.connect()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        await wire.send(f"{head}Content-Length: 10001\r\n\r\n".encode())
        assert json.loads((await wire.answer("POST")).body)["choices"][0]["message"]["content"] == MESSAGE
        wire = await gw.connect()
        await wire.send(f"{head}Transfer-Encoding: chunked\r\n\r\n2711\r\n".encode() + b"x" * 10001 + b"\r\n")
        assert (await wire.answer("POST")).status == 200
        wire = await gw.connect()
        await wire.send(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        assert (await wire.answer("POST")).status == 408
        await gw.settled()


@in_loop
async def test_who_reads_json_as_well_is_not_sent_events() -> None:
    agent = await gone()
    async with gateway(config=config(agent)) as gw:
        wire = await gw.connect()
        for accept, events in (
            ("text/event-stream", True),
            ("Text/Event-Stream; charset=utf-8;q=0.5, */*", True),
            ("text/event-stream, application/json", True),
            ("application/json;q=0.8, text/event-stream", True),
            ("application/json, text/event-stream", False),  # as MCP has it
            ("text/event-stream;q=0.5, application/json", False),
            ("text/event-stream;q=0", False),
            ("text/event-streams", False),
            ("*/*", False),
        ):
            answer = await wire.get(headers=f"Accept: {accept}\r\n")
            assert (answer.header("content-type") == "text/event-stream") is events, accept


@in_loop
async def test_a_websocket_is_closed_with_the_message_as_its_reason() -> None:
    agent = await gone()
    async with gateway(config=config(agent)) as gw:
        # Browsers fail a handshake that takes none of the subprotocols they offer, and show no reason then.
        for offered, taken in ((None, None), (["chat.v2", "chat.v1"], "chat.v2")):
            url = f"ws://127.0.0.1:{gw.port}/chat"
            async with websockets.connect(url, subprotocols=offered) as socket:  # type: ignore[arg-type]
                assert socket.subprotocol == taken
                with pytest.raises(websockets.ConnectionClosed) as caught:
                    await socket.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1013, MESSAGE)
        await gw.settled()


@in_loop
async def test_the_next_service_is_asked_before_the_message_when_the_first_cannot_be_reached() -> None:
    async def basic(call: Call) -> None:
        await call.answer(b"basic")

    agent, plain = await gone(), await Agent(basic).start()
    text = config(agent).replace("fallback: [", "fallback: [plain, ")
    text += f"  plain: {{versions: {{v: {{endpoints: ['{plain.url}']}}}}}}\n"
    async with gateway(plain, config=text) as gw:
        wire = await gw.connect()
        for _ in range(8):
            answer = await wire.get()
            assert (answer.status, answer.body, answer.header("x-unjam-fallback")) == (200, b"basic", "plain")
        await plain.stop()
        # Also once what may be tried again is used up: nobody is sent to where nobody is.
        for _ in range(200):
            answer = await wire.get()
            assert answer.status == 503
            assert json.loads(answer.body)["error"]["message"] == MESSAGE


@in_loop
async def test_a_websocket_is_told_whose_it_is_when_the_next_service_took_it() -> None:
    async def echo(socket: websockets.ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    agent = await gone()
    async with websockets.serve(echo, "127.0.0.1", 0) as plain:
        (port,) = {each.getsockname()[1] for each in plain.sockets}
        text = config(agent).replace("fallback: [", "fallback: [plain, ")
        text += f"  plain: {{versions: {{v: {{endpoints: ['http://127.0.0.1:{port}']}}}}}}\n"
        async with gateway(config=text) as gw:
            for retries in ("1", "1", None):  # the first two find out that nobody is there
                async with websockets.connect(f"ws://127.0.0.1:{gw.port}/chat") as socket:
                    assert socket.response is not None
                    fields = socket.response.headers
                    assert (fields["x-unjam-fallback"], fields.get("x-unjam-retries")) == ("plain", retries)
                    await socket.send("hello")
                    assert await socket.recv() == "hello"
            await gw.settled()
