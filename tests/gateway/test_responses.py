"""OpenAI's SDK as its users use it, against a real gateway: create in the background, poll, stream, go on, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import msgspec
import openai
import pytest

from tests.gateway.durable import Shared
from tests.gateway.harness import Agent, Call, Running, gateway, in_loop, until, until_gone
from unjam.gateway.response_events import Story
from unjam.runs.model import Event


def config(*agents: Agent, more: str = "", service: str = "", top: str = "") -> str:
    endpoints = ", ".join(f'{{url: "{agent.url}", slots: 8}}' for agent in agents)
    return (
        f"runs: on\nstate: 'memory:'\n{top}services:\n  auditor:\n    match: {{path: /agents/auditor}}\n{service}"
        f"    versions: {{v1: {{endpoints: [{endpoints}]}}}}\n{more}"
    )


@asynccontextmanager
async def sdk(running: Running, key: str = "unused", **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{running.port}/v1", api_key=key, max_retries=0, **options
    ) as client:
        yield client


async def done(client: openai.AsyncOpenAI, response: Any) -> Any:
    """The loop that OpenAI's guide shows."""
    async with asyncio.timeout(20):
        while response.status in {"queued", "in_progress"}:
            await asyncio.sleep(0.01)
            response = await client.responses.retrieve(response.id)
    return response


def answers(body: Any) -> Any:
    async def behaviour(call: Call) -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        await call.write(head.encode() + data)

    return behaviour


class Paused:
    """Streams what it is given; before each None it waits to be told to go on."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = pieces
        self.go = asyncio.Semaphore(0)

    async def __call__(self, call: Call) -> None:
        await call.start_events()
        for piece in self.pieces:
            if piece is None:
                await self.go.acquire()
            else:
                await call.chunk(piece)
        await call.last_chunk()


async def started(behaviour: Any) -> Agent:
    return await Agent(behaviour).start()


# -- create, poll ---------------------------------------------------------------------------------------------------


@in_loop
async def test_create_in_the_background_and_poll() -> None:
    held = asyncio.Event()

    async def audit(call: Call) -> None:
        await held.wait()
        await answers("Twelve findings.")(call)

    agent = await started(audit)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        created = await client.responses.create(
            model="auditor",
            input="Audit this.",
            instructions="Be brief.",
            metadata={"case": "7"},
            temperature=0.5,
            background=True,
        )
        assert created.status == "queued"
        assert created.id.startswith("resp_")
        assert (created.background, created.model, created.instructions) == (True, "auditor", "Be brief.")
        assert (created.metadata, created.temperature, created.tools) == ({"case": "7"}, 0.5, [])
        await agent.calls.get()
        assert (await client.responses.retrieve(created.id)).status == "in_progress"
        held.set()
        response = await done(client, created)
        assert (response.status, response.output_text, response.error) == ("completed", "Twelve findings.", None)
        assert response.output[0].role == "assistant"
        assert response.created_at == created.created_at
        (seen,) = agent.requests
        assert seen.target == "/agents/auditor"
        assert msgspec.json.decode(seen.body) == {
            "model": "auditor",
            "input": "Audit this.",
            "instructions": "Be brief.",
            "metadata": {"case": "7"},
            "temperature": 0.5,
        }


def test_the_blocking_client_does_the_same() -> None:
    @in_loop
    async def run_it() -> None:
        agent = await started(answers("Done."))
        async with gateway(agent, config=config(agent)) as running:

            def use() -> str:
                with openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="x") as client:
                    response = client.responses.create(model="auditor", input="Go.", background=True)
                    while response.status in {"queued", "in_progress"}:
                        response = client.responses.retrieve(response.id)
                    with client.responses.stream(response_id=response.id) as stream:
                        kinds = [event.type for event in stream]
                        final = stream.get_final_response()
                    assert kinds[0] == "response.created"
                    assert kinds[-1] == "response.completed"
                    assert final.output_text == response.output_text
                    return response.output_text

            assert await asyncio.to_thread(use) == "Done."

    run_it()


RESPONSE = {
    "id": "resp_theirs",
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "From a response.", "annotations": []}],
        },
    ],
    "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
}
CHAT = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "From a chat."}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
}


@pytest.mark.parametrize(
    ("answer", "text", "tokens"),
    [
        ("Just text.", "Just text.", None),
        (RESPONSE, "From a response.", 7),
        (CHAT, "From a chat.", 11),
        ({"findings": 12}, '{"findings":12}', None),
        (None, "null", None),
    ],
)
def test_any_answer_becomes_output(answer: Any, text: str, tokens: int | None) -> None:
    @in_loop
    async def run_it() -> None:
        agent = await started(answers(answer))
        async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
            response = await done(client, await client.responses.create(model="auditor", input="x", background=True))
            expected = "" if answer is None else text
            assert (response.status, response.output_text) == ("completed", expected)
            assert (response.usage and response.usage.total_tokens) == tokens
            async with client.responses.stream(response_id=response.id) as stream:
                final = await stream.get_final_response()
            assert final.output_text == expected
            assert [item.type for item in final.output] == [item.type for item in response.output]

    run_it()


# -- streams --------------------------------------------------------------------------------------------------------

TEXT = (b"data: Twelve\n\n", None, b"data:  findings\n\n", None, b'data: "."\n\ndata: [DONE]\n\n')


@in_loop
async def test_a_stream_is_live() -> None:
    talks = Paused(*TEXT)
    agent = await started(talks)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        stream = await client.responses.create(model="auditor", input="x", background=True, stream=True)
        kinds, text = [], ""
        async for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
                talks.go.release()  # it goes on only because we have heard it
        assert text == "Twelve findings."
        assert kinds == [
            "response.created",
            "response.queued",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 3,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]


@in_loop
async def test_a_cut_stream_goes_on_after_any_number_on_another_gateway() -> None:
    agent = await started(Paused(*(piece for piece in TEXT if piece is not None)))
    shared = Shared()
    async with (
        gateway(agent, config=config(agent), store=shared.tap()) as one,
        gateway(config=config(agent), store=shared.tap()) as two,
        sdk(one) as client,
        sdk(two) as elsewhere,
    ):
        created = await client.responses.create(model="auditor", input="x", background=True)
        await done(elsewhere, created)
        whole = [event async for event in await client.responses.retrieve(created.id, stream=True)]
        assert [event.sequence_number for event in whole] == list(range(len(whole)))
        for after in range(len(whole)):
            rest = await elsewhere.responses.retrieve(created.id, stream=True, starting_after=after)
            assert [event.to_dict() async for event in rest] == [event.to_dict() for event in whole[after + 1 :]]


@in_loop
async def test_a_client_that_drops_in_the_middle_misses_and_repeats_nothing() -> None:
    talks = Paused(*TEXT)
    agent = await started(talks)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        stream = await client.responses.create(model="auditor", input="x", background=True, stream=True)
        seen: list[Any] = []
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await until(lambda: not any(client.exchange for client in running.gateway.clients))
        identity = seen[0].response.id
        again = await client.responses.retrieve(identity, stream=True, starting_after=seen[-1].sequence_number)
        talks.go.release()
        talks.go.release()
        seen += [event async for event in again]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert (
            "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "Twelve findings."
        )
        assert seen[-1].response.output_text == "Twelve findings."


@in_loop
async def test_the_helper_that_puts_a_response_together_replays_from_the_start() -> None:
    talks = Paused(*TEXT)
    agent = await started(talks)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        created = await client.responses.create(model="auditor", input="x", background=True)
        talks.go.release()
        talks.go.release()
        async with client.responses.stream(response_id=created.id, starting_after=4) as stream:
            numbers = [event.sequence_number async for event in stream]
            final = await stream.get_final_response()
        assert numbers == list(range(5, 12))
        assert final.output_text == "Twelve findings."


@in_loop
async def test_an_agent_that_speaks_responses_is_passed_on_under_our_numbers() -> None:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "sequence_number": 70, "response": {"id": "resp_theirs", "object": "response"}},
        {"type": "response.output_item.added", "sequence_number": 71, "output_index": 0,
         "item": {"id": "msg_9", "type": "message", "role": "assistant", "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", "sequence_number": 72, "output_index": 0, "content_index": 0,
         "item_id": "msg_9", "part": {"type": "output_text", "text": "", "annotations": []}},
        {"type": "response.output_text.delta", "sequence_number": 73, "output_index": 0, "content_index": 0,
         "item_id": "msg_9", "delta": "Passed on.", "logprobs": []},
        {"type": "response.output_item.done", "sequence_number": 74, "output_index": 0,
         "item": {"id": "msg_9", "type": "message", "role": "assistant", "status": "completed",
                  "content": [{"type": "output_text", "text": "Passed on.", "annotations": []}]}},
        {"type": "response.completed", "sequence_number": 75,
         "response": {"id": "resp_theirs", "object": "response", "status": "completed",
                      "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}},
    ]  # fmt: skip
    agent = await started(
        Paused(*(f"event: {e['type']}\ndata: ".encode() + msgspec.json.encode(e) + b"\n\n" for e in events))
    )
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        stream = await client.responses.create(model="auditor", input="x", background=True, stream=True)
        seen = [event async for event in stream]
        assert [event.sequence_number for event in seen] == list(range(8))
        assert [event.type for event in seen][3:] == [event["type"] for event in events[1:]]
        final = seen[-1].response
        assert final.id == seen[0].response.id != "resp_theirs"
        assert (final.output_text, final.usage.total_tokens) == ("Passed on.", 3)
        assert (await client.responses.retrieve(final.id)).output_text == "Passed on."


@in_loop
async def test_chat_chunks_become_text() -> None:
    chunks = [
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hel"}}]},
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "lo"}}]},
        {"object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
    ]
    agent = await started(
        Paused(*(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n")
    )
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        response = await done(client, await client.responses.create(model="auditor", input="x", background=True))
        assert response.output_text == "Hello"
        assert response.usage.total_tokens == 2


@in_loop
async def test_an_attempt_that_is_repeated_leaves_an_unfinished_item_behind() -> None:
    left = 1

    async def breaks(call: Call) -> None:
        nonlocal left
        await call.start_events()
        await call.chunk(b"data: Half\n\n")
        if left:
            left -= 1
            call.abort()
            return
        await call.chunk(b"data:  and half\n\n")
        await call.last_chunk()

    agent = await started(breaks)
    service = "    runs: {retry: restart}\n"
    async with gateway(agent, config=config(agent, service=service)) as running, sdk(running) as client:
        created = await client.responses.create(model="auditor", input="x", background=True)
        response = await done(client, created)
        assert response.output_text == "Half and half"
        seen = [event async for event in await client.responses.retrieve(created.id, stream=True)]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        items = [event for event in seen if event.type == "response.output_item.done"]
        assert [(item.output_index, item.item.status) for item in items] == [(0, "incomplete"), (1, "completed")]
        assert seen[-1].response.output_text == "Half and half"
        async with client.responses.stream(response_id=created.id) as stream:
            assert (await stream.get_final_response()).output_text == "Half and half"


# -- ends -----------------------------------------------------------------------------------------------------------


@in_loop
async def test_failures_are_told_as_such() -> None:
    async def refuses(call: Call) -> None:
        await call.answer(b"no", status=500)

    agent = await started(refuses)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        created = await client.responses.create(model="auditor", input="x", background=True)
        response = await done(client, created)
        assert (response.status, response.error.code) == ("failed", "agent_status")
        assert response.error.message == "The agent answered with status 500."
        seen = [event async for event in await client.responses.retrieve(created.id, stream=True)]
        assert seen[-1].type == "response.failed"
        assert seen[-1].response.error.code == "agent_status"


@in_loop
async def test_cancel_stops_the_agent_and_says_so() -> None:
    agent = await started(until_gone)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        stream = await client.responses.create(model="auditor", input="x", background=True, stream=True)
        first = await anext(aiter(stream))
        call = await agent.calls.get()
        cancelled = await client.responses.cancel(first.response.id)
        assert cancelled.status == "cancelled"
        await call.gone.wait()
        assert (await client.responses.retrieve(cancelled.id)).status == "cancelled"
        rest = [event async for event in stream]
        assert rest[-1].type == "response.incomplete"
        assert rest[-1].response.status == "cancelled"
        again = await client.responses.cancel(cancelled.id)
        assert again.status == "cancelled"


@in_loop
async def test_delete_forgets_it_and_stops_the_agent() -> None:
    agent = await started(until_gone)
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        created = await client.responses.create(model="auditor", input="x", background=True)
        call = await agent.calls.get()
        await client.responses.delete(created.id)
        await call.gone.wait()
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(created.id)


@in_loop
async def test_the_input_can_be_listed() -> None:
    agent = await started(answers("ok"))
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        given: Any = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
        created = await client.responses.create(model="auditor", input=given, background=True)
        items = [item async for item in client.responses.input_items.list(created.id, order="asc")]
        assert [item.content[0].text for item in items] == ["One.", "Two."]
        assert msgspec.json.decode((await agent.calls.get()).seen.body)["input"] == given
        large = await client.responses.create(model="auditor", input="x" * 20_000, background=True)
        with pytest.raises(openai.APIStatusError) as refused:
            await client.responses.input_items.list(large.id)
        assert (refused.value.status_code, refused.value.code) == (410, "input_not_kept")


# -- who, and what isn't ours ---------------------------------------------------------------------------------------


@in_loop
async def test_errors_are_those_that_the_sdk_knows() -> None:
    agent = await started(answers("ok"))
    async with gateway(agent, config=config(agent)) as running, sdk(running) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.create(model="nobody", input="x", background=True)
        assert (unknown.value.code, unknown.value.type) == ("model_not_found", "invalid_request_error")
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="auditor", input="x", background=True, store=False)
        created = await client.responses.create(model="auditor", input="x", background=True)
        other = created.id[:-1] + ("0" if created.id[-1] != "0" else "1")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(other)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_unheard_of")


async def _create_many(client: openai.AsyncOpenAI, times: int) -> None:
    for _ in range(times):
        await client.responses.create(model="auditor", input="x", background=True)


@in_loop
async def test_a_full_queue_is_a_rate_limit_that_the_sdk_waits_for() -> None:
    agent = await started(until_gone)
    text = config(agent).replace("runs: on", "runs: {max_queued: 1}").replace("slots: 8", "slots: 1")
    async with gateway(agent, config=text) as running, sdk(running) as client:
        # One at the agent, a few in line for its slot, one in the store's queue: no more than that are taken.
        with pytest.raises(openai.RateLimitError) as full:
            await _create_many(client, 50)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1


@in_loop
async def test_responses_are_their_tenants_alone() -> None:
    agent = await started(answers("secret"))
    hashes = {name: f"sha256:{sha256(f'key-of-{name}'.encode()).hexdigest()}" for name in ("one", "two")}
    keys = f"keys: [{{tenant: one, hash: '{hashes['one']}'}}, {{tenant: two, hash: '{hashes['two']}'}}]\n"
    async with (
        gateway(agent, config=config(agent, top=keys)) as running,
        sdk(running, "key-of-one") as one,
        sdk(running, "key-of-two") as two,
    ):
        created = await one.responses.create(model="auditor", input="x", background=True)
        for call in (
            two.responses.retrieve,
            two.responses.cancel,
            two.responses.delete,
            two.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                await call(created.id)
        assert (await done(one, created)).output_text == "secret"


@in_loop
async def test_calls_that_ask_for_nothing_durable_go_to_the_service_as_ever() -> None:
    async def backend(call: Call) -> None:
        if call.seen.method == "GET":
            await answers({**RESPONSE, "id": call.seen.target.rpartition("/")[2]})(call)
        elif b'"stream"' in call.seen.body:
            event = {"type": "response.output_text.delta", "delta": "live", "sequence_number": 5}
            await call.start_events()
            await call.chunk(b"event: x\ndata: " + msgspec.json.encode(event) + b"\n\n")
            await call.last_chunk()
        else:
            await answers(RESPONSE)(call)

    agent = await started(backend)
    models = f'  models:\n    match: {{model: gpt-x}}\n    versions: {{v1: {{endpoints: ["{agent.url}"]}}}}\n'
    anything = f'  rest:\n    match: {{path: /v1}}\n    versions: {{v1: {{endpoints: ["{agent.url}"]}}}}\n'
    async with gateway(agent, config=config(agent, more=models + anything)) as running, sdk(running) as client:
        for _ in range(2):
            response = await client.responses.create(model="gpt-x", input="x")
            assert (response.id, response.output_text) == ("resp_theirs", "From a response.")
        stream = await client.responses.create(model="gpt-x", input="x", stream=True)
        assert [event.delta async for event in stream] == ["live"]
        assert (await client.responses.retrieve("resp_theirs")).output_text == "From a response."
        assert {seen.target for seen in agent.requests} == {"/v1/responses", "/v1/responses/resp_theirs"}
        # In the background, that backend is called as the API that it speaks.
        agent.requests.clear()
        stream = await client.responses.create(model="gpt-x", input="x", background=True, stream=True)
        assert "live" in [event.delta async for event in stream if event.type == "response.output_text.delta"]
        (seen,) = agent.requests
        assert (seen.method, seen.target) == ("POST", "/v1/responses")
        assert msgspec.json.decode(seen.body) == {"model": "gpt-x", "input": "x", "stream": True}


# -- the story ------------------------------------------------------------------------------------------------------


def test_a_story_told_in_pieces_is_the_story_told_at_once() -> None:
    log = [
        Event(0, "run.created", b"{}", 0.0),
        Event(1, "run.attempt", b'{"n":1}', 0.0),
        Event(2, "message", b'"a"', 0.0),
        Event(3, "run.failed", b'{"error":{"code":"worker_lost","message":"m"}}', 0.0),
        Event(4, "run.requeued", b"{}", 0.0),
        Event(5, "run.attempt", b'{"n":1}', 0.0),
        Event(6, "page", b'{"page":1}', 0.0),
    ]
    once = Story("resp_x", 0.0, {"model": "m"})
    told = [event for entry in log for event in once.tell(entry)] + once.end(None)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told if "response" in event] == [
        *("created", "queued", "in_progress", "failed", "completed")
    ]
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == '{"page":1}'


def test_items_of_an_attempt_that_was_lost_are_finished_before_the_next() -> None:
    added = msgspec.json.encode(
        {"type": "response.output_item.added", "output_index": 0, "item": {"id": "msg_1", "type": "message"}}
    )
    log = [
        Event(0, "run.created", b"{}", 0.0),
        Event(1, "run.attempt", b'{"n":1}', 0.0),
        Event(2, "response.output_item.added", added, 0.0),
        Event(3, "run.attempt", b'{"n":2}', 0.0),
        Event(4, "message", b'"Again."', 0.0),
    ]
    story = Story("resp_x", 0.0, {"model": "m"})
    told = [event for entry in log for event in story.tell(entry)]
    items = [event for event in told if event["type"].startswith("response.output_item.")]
    assert [
        (event["type"].rpartition(".")[2], event["output_index"], event["item"].get("status")) for event in items
    ] == [
        ("added", 0, None),
        ("done", 0, "incomplete"),
        ("added", 1, "in_progress"),
    ]
    assert [item["id"] for item in story.end(None)[-1]["response"]["output"]] == ["msg_x_1"]
