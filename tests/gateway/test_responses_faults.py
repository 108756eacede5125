"""The Responses API over runs of agents that say odd things, at length, and over gateways that stop."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from unjam.gateway import response_events
from unjam.gateway.body_cache import BodyCache
from unjam.gateway.response_events import Story, frame
from unjam.gateway.response_streams import Stream, Tellings
from unjam.runs.hub import Delivery, Hub
from unjam.runs.model import Event, NewEvent, NewRun, Run
from unjam.runs.store.memory import MemoryStore

from .durable import SERVICES, Api, runs_gateway
from .harness import Agent, Running, in_loop

RESPONSE = {"model": "auditor", "input": "x", "background": True}


async def created(api: Api) -> tuple[str, Any]:
    """A response and the claim of its run."""
    status, found = await api.call("POST", "/v1/responses", RESPONSE)
    assert status == 200
    return found["id"], await api.claim()


async def say(api: Api, claim: Any, batch: int, *data: bytes) -> None:
    events = b",".join(b'{"type":"delta","data":%b}' % each for each in data)
    body = b'{"fence":%d,"batch":%d,"events":[%b]}' % (claim["fence"], batch, events)
    status, answer = await api.call("POST", f"/v1/runs/{claim['run']['id']}/append", body)
    assert status == 200, answer


class Reader:
    """One stream, from its request on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, running: Running, response: str, after: int | None = None) -> Reader:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1 << 26)
        start = "" if after is None else f"&starting_after={after}"
        writer.write(f"GET /v1/responses/{response}?stream=true{start} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        return cls(reader, writer)

    async def until(self, mark: bytes) -> bytes:
        return await self.reader.readuntil(mark)

    async def rest(self) -> list[Any]:
        """The events until the stream's end."""
        events = []
        data = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            data += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        self.writer.close()
        for block in data.split(b"\n\n"):
            lines = [line for line in block.split(b"\n") if line.startswith(b"data: ")]
            events += [msgspec.json.decode(line[6:]) for line in lines]
        return events


@in_loop
async def test_a_number_that_is_none_here_is_told_as_text_and_the_stream_ends() -> None:
    """JSON has no largest number."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        response, claim = await created(api)
        stream = await Reader.of(running, response)
        await say(api, claim, 1, b"1e999", b'" and on"')
        await api.call(
            "POST", f"/v1/runs/{claim['run']['id']}/finish", b'{"fence":1,"status":"completed","result":[1e999]}'
        )
        events = await stream.rest()
        assert events[-1]["type"] == "response.completed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        _, found = await api.call("GET", f"/v1/responses/{response}")
        assert found["output"][0]["content"][0]["text"] == "1e999 and on"


@pytest.mark.parametrize(
    "data",
    [
        {"object": "chat.completion.chunk", "choices": 5, "usage": {"prompt_tokens": "many"}},
        {"object": "chat.completion.chunk", "choices": [{"delta": "text"}, 7, {"delta": {"content": 1}}]},
        {"type": "response.output_item.added", "output_index": "first", "item": 7},
        {"type": "response.completed", "response": {"object": "response", "output": 5}},
        {"type": "response.one\nid: 5\n\n"},
    ],
)
def test_what_is_not_as_it_should_be_is_passed_over(data: Any) -> None:
    story = Story("resp_1", 0.0, {})
    said = story.tell(Event(0, "delta", msgspec.json.encode(data), 0.0))
    frames = b"".join(map(frame, [*said, *story.end(b'{"object":"response","output":5}')]))
    assert frames.count(b"\n\n") == frames.count(b"event: ")
    assert b"\nid:" not in frames


class Gated(MemoryStore):
    """`get` waits while `gate` is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, run: str) -> Run:
        self.asked.set()
        await self.gate.wait()
        return await super().get(run)


@in_loop
async def test_a_stream_that_is_asked_for_as_a_drain_begins_does_not_hold_it_up() -> None:
    store = Gated()
    async with runs_gateway("drain_timeout: 60s\n", store=store) as running:
        api = await Api.connect(running)
        response, _ = await created(api)
        store.asked.clear()
        store.gate.clear()
        asking = asyncio.create_task(Reader.of(running, response))
        await store.asked.wait()
        draining = asyncio.create_task(running.server.drain())
        async with asyncio.timeout(20):
            while not running.gateway.draining:
                await asyncio.sleep(0.01)
            store.gate.set()
            assert await (await asking).rest() == []
            await draining


# -- many streams of one response -------------------------------------------------------------------------------------


class Client:
    """The exchange of one stream, whose client reads when it likes."""

    def __init__(self, rng: random.Random) -> None:
        self.got = bytearray()
        self.rng = rng
        self.slow = rng.random() < 0.6
        self.room = self.started = True
        self.over = False
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None: ...

    def write(self, data: bytes) -> bool:
        self.got += data
        self.room = not (self.slow and self.rng.random() < 0.5)
        return self.room

    async def send(self, data: bytes) -> None:
        self.got += data

    def work(self, handler: Any) -> None:
        self.tasks.append(asyncio.create_task(handler(self)))

    def end(self) -> None:
        self.over = True


@pytest.mark.parametrize("seed", range(12))
def test_all_streams_of_a_response_tell_the_same_however_they_are_read(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one gets is the end of what one gets who was there from the beginning and read all at once."""

    async def test() -> None:
        rng = random.Random(seed)
        monkeypatch.setattr("unjam.runs.hub.LIMIT", 16)
        store = MemoryStore()
        hub = Hub(store)
        durable: Any = SimpleNamespace(
            hub=hub, store=store, held=set(), gateway=SimpleNamespace(draining=False), check=lambda exchange: None
        )
        run, _ = await store.create(NewRun(service="a", input=b"1", digest=b"", pull=True, retry="restart"))
        claim = await store.claim(["a"], "w", pull=True)
        tellings = Tellings()
        streams: list[tuple[int, Any, Stream]] = []
        reference = Story("resp_1", 0.0, {})
        known = batch = 0
        for turn in range(40):
            if rng.random() < 0.1 and claim is not None:
                await store.release(run.id, claim.run.fence)
                claim, batch = await store.claim(["a"], "w", pull=True), 0
            assert claim is not None
            batch += 1
            words = [msgspec.json.encode(f"{turn}.{number} ") for number in range(rng.randrange(1, 40))]
            await store.append(run.id, claim.run.fence, batch, [NewEvent("delta", word) for word in words])
            for _ in range(rng.randrange(3)):
                after = rng.choice((-1, known - 1, known - 1, rng.randrange(-1, known + 1)))
                client = Client(rng)
                stream = Stream(durable, client, tellings, run.id, Story("resp_1", 0.0, {}), after)  # type: ignore[arg-type]
                stream.begin()
                streams.append((after, client, stream))
            for _, client, stream in streams:
                if not client.room and rng.random() < 0.4:
                    client.room = True
                    stream._go_on()
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                known = max((stream._telling.story.number for _, _, stream in streams), default=0)
        await store.finish(run.id, claim.run.fence, "completed", result=b'"done"')
        async with asyncio.timeout(20):
            while not all(client.over for _, client, _ in streams):
                for _, client, stream in streams:
                    if not client.room:
                        client.room = True
                        stream._go_on()
                await asyncio.sleep(0)
        log = (await store.read(run.id, limit=100_000, size=1 << 30)).events
        told = [event for each in log for event in reference.tell(each)] + reference.end(b'"done"')
        assert len(streams) > 10
        for after, client, _ in streams:
            assert bytes(client.got) == b"".join([frame(event) for event in told if event["sequence_number"] > after])
        await hub.close()

    asyncio.run(test())


@in_loop
async def test_a_stream_that_is_up_to_date_costs_no_copy_of_the_text() -> None:
    async with runs_gateway("limits: {max_body: 64MiB}\n") as running:
        api = await Api.connect(running)
        response, claim = await created(api)
        for batch in range(20):
            await say(api, claim, batch + 1, b'"' + b"x" * 200_000 + b'"')
        first = await Reader.of(running, response)
        await first.until(b'"sequence_number":24')
        tracemalloc.start()
        try:
            idle = [await Reader.of(running, response, after=1_000_000) for _ in range(20)]
            assert tracemalloc.get_traced_memory()[1] < 12_000_000, "three copies of it"
        finally:
            tracemalloc.stop()
        await api.finish(claim, "done")
        for reader in idle:
            assert await reader.rest() == []
        await first.until(b'"type":"response.completed"')
        first.writer.close()


def test_a_large_result_that_is_only_text_is_not_taken_apart() -> None:
    lists = b"[" + b"[]," * 600_000 + b"[]]"
    whole = b'{"object": "response", "output": [], "padding": "%b"}' % (b"x" * (1 << 20))
    tracemalloc.start()
    try:
        assert response_events.answer_of(lists) == lists.decode()
        assert response_events.answer_of(b'{"rows":%b}' % lists) == f'{{"rows":{lists.decode()}}}'
        assert tracemalloc.get_traced_memory()[1] < 8 * len(lists)
    finally:
        tracemalloc.stop()
    assert response_events.answer_of(whole)["output"] == []
    assert response_events.answer_of(b'"%b"' % (b"x" * (2 << 20))) == "x" * (2 << 20)
    assert response_events.answer_of(b"[[],[]]") == [[], []]


@in_loop
async def test_what_is_passed_on_is_not_taken_apart_and_what_is_kept_is_bounded() -> None:
    """A body of empty lists takes some twenty times its bytes as objects; nobody else is served while they are made."""
    answered = Agent()
    await answered.start()
    models = f"{SERVICES}  any:\n    match: {{path: /}}\n    versions: {{v1: {{endpoints: ['{answered.url}']}}}}\n"
    async with runs_gateway("limits: {max_body: 64MiB}\n", "{max_input: 200KiB}", services=models) as running:
        api = await Api.connect(running)
        body = b'{"background":%b,"model":"auditor","input":[' + b"[]," * 2_000_000 + b"[]]}"
        tracemalloc.start()
        try:
            assert (await api.wire.post("/v1/responses", body % b"false")).status == 200
            assert (await api.wire.post("/v1/responses", body % b"true")).status == 413
            assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
        finally:
            tracemalloc.stop()
        for odd in (b'{"background": true, "model": "auditor", "input": 1e999}', b'{"background":true,"model":"\xff"}'):
            assert (await api.wire.post("/v1/responses", odd, "Content-Type: application/json\r\n")).status == 400
        # What pages of other sites can send without asking makes no runs.
        body = b'{"background": true, "model": "auditor", "input": "x"}'
        assert (await api.wire.post("/v1/responses", body, "Content-Type: text/plain\r\n")).status == 415
        for odd in (b'{"background": "true"}', b"[true]", b"{", b'{"background": true'):
            assert (await api.wire.post("/v1/responses", odd)).body == b"ok"
    await answered.stop()


@in_loop
async def test_a_key_that_is_used_again_gives_the_response_as_it_stands() -> None:
    """Ended ones with their output: whoever gets one asks for it no more."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        answers = []
        for step in range(3):
            status, found = await api.call("POST", "/v1/responses", RESPONSE, "Idempotency-Key: k\r\n")
            answers.append((status, found["status"], [item["content"][0]["text"] for item in found["output"]]))
            if step == 0:
                claim = await api.claim()
            elif step == 1:
                await api.finish(claim, "all done")
        assert answers == [(200, "queued", []), (200, "in_progress", []), (200, "completed", ["all done"])]


def test_streams_have_one_text_in_common_wherever_they_stand() -> None:
    size, number = 100_000, 60
    log = [Event(at, "delta", b'"%b"' % (b"%c" % (97 + at % 26) * size), 0.0) for at in range(number)]
    tellings = Tellings()
    readers = [tellings.begin("run", Story("resp_1", 0.0, {}), -1) for _ in range(20)]
    tracemalloc.start()
    try:
        for at, event in enumerate(log):
            for place, reader in enumerate(readers):
                if at < number - place:  # each stands elsewhere
                    reader.tell(Delivery([event], at, at + 1, False))
        assert tracemalloc.get_traced_memory()[0] < 2 * size * number
        whole = "".join(chr(97 + at % 26) * size for at in range(number))
        for place, reader in reversed(list(enumerate(readers))):
            for at in range(number - place, number):
                reader.tell(Delivery([log[at]], at, at + 1, False))
            response = reader.story.summary("in_progress")  # nothing of the text is put together until it ends
            assert response["output"][0]["content"][0]["text"] == ""
            assert reader.story.end(None)[-1]["response"]["output"][0]["content"][0]["text"] == whole
        assert tracemalloc.get_traced_memory()[0] < 3 * size * number
    finally:
        tracemalloc.stop()


def test_a_stream_goes_on_with_a_run_that_was_queued_again() -> None:
    async def test() -> None:
        store = MemoryStore()
        run, _ = await store.create(NewRun(service="a", input=b"1", digest=b"", pull=True, max_attempts=1))
        claim = await store.claim(["a"], "w", pull=True)
        assert claim is not None
        await store.finish(run.id, claim.run.fence, "failed")
        tellings = Tellings()
        telling = tellings.met(tellings.begin(run.id, Story("resp_1", 0.0, {}), -1))
        await tell_on(store, telling)
        assert (await telling.end(store)).since(-1) == b""
        other = telling.fork()
        assert other is not telling, "whoever tells on first leaves the other where it is"
        await store.requeue(run.id)
        claim = await store.claim(["a"], "w", pull=True)
        assert claim is not None
        await store.finish(run.id, claim.run.fence, "completed", result=b'"at last"')
        for each in telling, other:
            told = [await tell_on(store, each), (await each.end(store)).since(-1)]
            assert b"".join(told).count(b"response.completed") == 2, "its event and its type"

    async def tell_on(store: MemoryStore, telling: Any) -> bytes:
        batch = await store.read(telling.run, telling.cursor - 1)
        return bytes(telling.tell(Delivery(batch.events, telling.cursor, batch.next, batch.ended)).since(-1))

    asyncio.run(test())


@in_loop
async def test_an_ended_response_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stories: list[Story] = []

    class Counted(Story):
        def __init__(self, *given: Any) -> None:
            stories.append(self)
            super().__init__(*given)

    async with runs_gateway() as running:
        api = await Api.connect(running)
        response, claim = await created(api)
        await say(api, claim, 1, b'"some text"')
        await api.finish(claim)
        monkeypatch.setattr("unjam.gateway.responses.Story", Counted)
        answers = [await api.call("GET", f"/v1/responses/{response}") for _ in range(3)]
        others = [await Api.connect(running) for _ in range(5)]
        answers += await asyncio.gather(*(other.call("GET", f"/v1/responses/{response}") for other in others))
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][1]["output"][0]["content"][0]["text"] == "some text"
        assert len(stories) == 1


def test_a_response_has_a_text_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_events, "MOST_TEXT", 10)
    story = Story("resp_1", 0.0, {})
    deltas = [
        event["delta"] for number in range(5) for event in story.tell(Event(number, "delta", b'"four"', 0.0))[-1:]
    ]
    assert "".join(deltas) == "four" * 5
    last = story.end(None)[-1]
    assert (last["type"], last["response"]["incomplete_details"]) == (
        "response.incomplete",
        {"reason": "text_too_long"},
    )
    assert last["response"]["output"][0]["content"][0]["text"] == "fourfourfo"


def test_what_is_made_is_made_once_and_kept_within_bounds() -> None:
    async def test() -> None:
        bodies, calls = BodyCache(most=10), list[str]()

        def give(key: str, size: int) -> Any:
            async def make() -> bytes:
                calls.append(key)
                await asyncio.sleep(0)
                if not size:
                    raise LookupError(key)
                return key.encode() * size

            return bodies.get(key, make)

        both = await asyncio.gather(give("a", 6), give("a", 6))
        assert both[0] is both[1]
        assert await give("a", 6) is both[0]
        assert calls == ["a"]
        await give("b", 6)
        assert bodies.size == 6
        await give("a", 6)
        await give("c", 11)
        assert calls == ["a", "b", "a", "c"]
        for _ in range(2):
            with pytest.raises(LookupError):
                await give("d", 0)
        assert calls[4:] == ["d", "d"]

    asyncio.run(test())
