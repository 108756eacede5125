"""The ASGI middleware under a real server, with real clients: what is in flight is told, however requests end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.gateway.harness import gateway, in_loop, until
from tests.gateway.processes import process
from unjam.reporter.asgi import LoadHeaders
from unjam.reporter.reading import Reading
from unjam.wire.orca import HEADER, parse, report

NAME = HEADER.decode()
LOAD = "/.well-known/unjam/load"


class Work:
    """An application whose requests wait for `go`, and that counts how many entered."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.entered = 0
        self.waiting = 0

    async def hold(self, request: Request) -> Response:
        self.entered += 1
        await self.go.wait()
        return PlainTextResponse("done")

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            self.entered += 1
            yield b"data: 1\n\n"
            await self.go.wait()
            yield b"data: 2\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def background(self, request: Request) -> Response:
        async def later() -> None:
            self.entered += 1
            await self.go.wait()

        return PlainTextResponse("done", background=BackgroundTask(later))

    async def fail(self, request: Request) -> Response:
        raise RuntimeError("as it may happen")

    async def broken(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            raise RuntimeError("as it may happen")

        return StreamingResponse(events(), media_type="text/event-stream")

    async def own(self, request: Request) -> Response:
        return PlainTextResponse("done", headers={"Endpoint-Load-Metrics": "TEXT eps=1"})

    async def quick(self, request: Request) -> Response:
        return PlainTextResponse("done")

    async def socket(self, socket: WebSocket) -> None:
        self.entered += 1
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except WebSocketDisconnect:
            pass

    def app(self) -> Starlette:
        names = ("hold", "stream", "background", "fail", "broken", "own", "quick")
        routes = [Route(f"/{name}", getattr(self, name)) for name in names]
        return Starlette(routes=[*routes, WebSocketRoute("/socket", self.socket)])


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    config = uvicorn.Config(
        app, port=0, host="127.0.0.1", log_level="critical", lifespan="off", ws="websockets-sansio", http="h11"
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        server.should_exit = True
        await running


def told(response: httpx.Response) -> dict[str, Any]:
    return report(parse(response.headers[NAME].encode()))


async def load(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get(LOAD)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert NAME not in answer.headers
    return dict(answer.json())


async def until_idle(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while (await load(client))["in_flight"]:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("form", ["text", "json"])
@in_loop
async def test_each_answer_says_how_many_are_in_flight(form: Any) -> None:
    work = Work()
    async with serving(LoadHeaders(work.app(), format=form)) as client:
        assert told(await client.get("/quick")) == {"in_flight": 1}
        assert (await client.get("/quick")).headers[NAME].startswith(form.upper() + " ")
        held = [asyncio.create_task(client.get("/hold")) for _ in range(3)]
        await until(lambda: work.entered == 3)
        assert await load(client) == {"in_flight": 3}
        assert told(await client.get("/quick")) == {"in_flight": 4}
        assert told(await client.get("/nowhere")) == {"in_flight": 4}
        work.go.set()
        assert sorted(told(answer)["in_flight"] for answer in await asyncio.gather(*held)) == [1, 2, 3]
        assert await load(client) == {"in_flight": 0}


@in_loop
async def test_a_stream_is_in_flight_to_its_last_byte() -> None:
    work = Work()
    async with serving(LoadHeaders(work.app())) as client:
        async with client.stream("GET", "/stream") as events:
            assert told(events) == {"in_flight": 1}
            lines = events.aiter_lines()
            assert await anext(lines) == "data: 1"
            assert await load(client) == {"in_flight": 1}
            work.go.set()
            assert [line async for line in lines if line] == ["data: 2"]
        await until_idle(client)


@in_loop
async def test_a_stream_ends_with_its_connection() -> None:
    work = Work()
    async with serving(LoadHeaders(work.app())) as client:
        async with client.stream("GET", "/stream") as events:
            assert await anext(events.aiter_lines()) == "data: 1"
            assert await load(client) == {"in_flight": 1}
        await until_idle(client)
        assert not work.go.is_set()


@in_loop
async def test_work_that_outlives_its_client_is_in_flight_until_it_is_done() -> None:
    """It still takes what the server has."""
    work = Work()
    async with serving(LoadHeaders(work.app())) as client:
        impatient = asyncio.create_task(client.get("/hold"))
        await until(lambda: work.entered == 1)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert await load(client) == {"in_flight": 1}
        work.go.set()
        await until_idle(client)


@in_loop
async def test_what_goes_on_behind_a_whole_response_is_not_in_flight() -> None:
    work = Work()
    async with serving(LoadHeaders(work.app())) as client:
        assert (await client.get("/background")).text == "done"
        await until(lambda: work.entered == 1)
        assert await load(client) == {"in_flight": 0}
        work.go.set()


@in_loop
async def test_errors_count_down() -> None:
    async with serving(LoadHeaders(Work().app())) as client:
        for _ in range(3):
            assert (await client.get("/fail")).status_code == 500
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/broken")
        await until_idle(client)
        assert told(await client.get("/quick")) == {"in_flight": 1}


@in_loop
async def test_an_application_that_raises_before_it_answers_counts_down() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("as it may happen")

    async with serving(LoadHeaders(app)) as client:
        assert (await client.get("/")).status_code == 500
        assert await load(client) == {"in_flight": 0}


@in_loop
async def test_a_websocket_is_in_flight_while_it_is_open() -> None:
    work = Work()
    async with serving(LoadHeaders(work.app())) as client:
        url = f"ws://127.0.0.1:{client.base_url.port}/socket"
        async with websockets.connect(url) as socket:
            assert socket.response is not None
            assert report(parse(socket.response.headers[NAME].encode())) == {"in_flight": 1}
            await socket.send("hello")
            assert await socket.recv() == "hello"
            assert await load(client) == {"in_flight": 1}
        await until_idle(client)
        broken = await websockets.connect(url)
        assert await load(client) == {"in_flight": 1}
        broken.transport.abort()
        await until_idle(client)
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url + "/nowhere")
        assert refused.value.response.status_code == 403


@in_loop
async def test_how_many_wait_is_the_applications_to_say() -> None:
    work = Work()
    async with serving(LoadHeaders(work.app(), waiting=lambda: work.waiting)) as client:
        assert await load(client) == {"in_flight": 0, "waiting": 0}
        held = [asyncio.create_task(client.get("/hold")) for _ in range(2)]
        await until(lambda: work.entered == 2)
        work.waiting = 1
        assert await load(client) == {"in_flight": 2, "waiting": 1}
        assert told(await client.get("/quick")) == {"in_flight": 3, "waiting": 1}
        work.waiting = 9
        assert await load(client) == {"in_flight": 2, "waiting": 2}
        work.go.set()
        await asyncio.gather(*held)


@in_loop
async def test_an_applications_own_header_stands_alone() -> None:
    async with serving(LoadHeaders(Work().app())) as client:
        assert (await client.get("/own")).headers.get_list(NAME) == ["TEXT eps=1"]


class StubMachine:
    def __init__(self) -> None:
        self.reads = 0
        self.reading = Reading(cores=8, memory=1000, cpu=0.5, memory_free=250)

    def read(self) -> Reading:
        self.reads += 1
        return self.reading


@in_loop
async def test_the_machines_figures_are_told_and_no_request_waits_for_them() -> None:
    machine = StubMachine()
    async with serving(LoadHeaders(Work().app(), machine=machine, every=60)) as client:
        assert told(await client.get("/quick")) == {"in_flight": 1}
        async with asyncio.timeout(20):
            while "cpu" not in (answer := await load(client)):
                await asyncio.sleep(0.005)
        assert answer == {"cores": 8, "memory": 1000, "cpu": 0.5, "memory_free": 250, "in_flight": 0}
        full = told(await client.get("/quick"))
        assert full == {"cores": 8, "memory": 1000, "cpu": 0.5, "memory_free": 250, "in_flight": 1}
        assert machine.reads == 2  # shares are over the time between two


@in_loop
async def test_a_request_that_came_through_a_proxy_is_not_told_the_load() -> None:
    """Whoever may ask the agent directly may know; the public may not."""
    async with serving(LoadHeaders(Work().app())) as client:
        for name in ("x-forwarded-for", "forwarded", "via", "X-Real-IP"):
            assert (await client.get(LOAD, headers={name: "x"})).status_code == 404
        assert (await client.post(LOAD)).status_code == 404
        assert (await client.head(LOAD)).status_code == 200
    async with serving(LoadHeaders(Work().app(), path=None)) as client:
        assert (await client.get(LOAD)).status_code == 404
    async with serving(LoadHeaders(Work().app(), path="/load")) as client:
        assert (await client.get("/load")).json() == {"in_flight": 0}


@in_loop
async def test_a_gateway_heeds_the_load_and_its_client_sees_none_of_it() -> None:
    async with serving(LoadHeaders(Work().app())) as agent:
        assert NAME in (await agent.get("/quick")).headers

        url = str(agent.base_url).rstrip("/")
        config = f"services: {{agent: {{versions: {{v1: {{endpoints: ['{url}']}}}}}}}}"
        async with gateway(config=config) as running, httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{running.port}/quick")
            assert answer.text == "done"
            assert NAME not in answer.headers
            assert (await client.get(f"http://127.0.0.1:{running.port}{LOAD}")).status_code == 404
            tally = running.endpoint(url).tally
            assert (tally.accepted, tally.problem) == (1, "")


@in_loop
async def test_worker_processes_count_together_and_a_killed_ones_requests_are_gone(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import asyncio, os\n"
        "from unjam.reporter.asgi import LoadHeaders\n"
        "async def hold(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan': return\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'%d\\n' % os.getpid(), 'more_body': True})\n"
        "    if scope['path'] == '/hold': await receive(); await receive()\n"
        "    await send({'type': 'http.response.body', 'body': b''})\n"
        "app = LoadHeaders(hold, shared='load.counter')\n"
    )
    command = ["-m", "uvicorn", "app:app", "--workers", "2", "--port", "0", "--lifespan", "off"]
    async with process(*command, cwd=tmp_path) as server:
        port = int((await server.says(r"running on http://127.0.0.1:(\d+)")).group(1))
        await server.says(r"Started server process(?s:.*)Started server process")
        holders: list[int] = []
        open_: list[asyncio.StreamWriter] = []

        async def hold(how_many: int) -> None:
            """One more request that stays, at whichever worker takes it."""
            async with asyncio.timeout(20):
                while True:
                    try:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                        break
                    except ConnectionRefusedError:  # its processes say that they have started before they listen
                        await asyncio.sleep(0.01)
            open_.append(writer)
            writer.write(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
            assert f"in_flight={how_many}".encode() in await reader.readuntil(b"\r\n\r\n")
            holders.append(int((await reader.readuntil(b"\n\r\n")).split()[1]))

        try:
            await hold(1)
            victim = holders[0]
            await hold(2)
            # Now the other one has to take it.
            os.kill(victim, signal.SIGSTOP)
            await hold(3)
            os.kill(victim, signal.SIGCONT)
            lost = holders.count(victim)
            assert 1 <= lost <= 2
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                for _ in range(4):  # whichever worker answers
                    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as other:
                        assert await load(other) == {"in_flight": 3}
                os.kill(victim, signal.SIGKILL)
                async with asyncio.timeout(20):
                    while True:
                        try:
                            answer = await client.get(LOAD)
                        except httpx.TransportError:
                            continue
                        if answer.json()["in_flight"] == 3 - lost:
                            break
                        await asyncio.sleep(0.01)
        finally:
            for writer in open_:
                writer.close()
            server.send(signal.SIGTERM)
            await server.exit_code()


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": float("nan")}, {"every": -1}, {"format": "bin"}, {"format": ""}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LoadHeaders(Work.app, **options)  # type: ignore[arg-type]


def test_the_middleware_brings_little_with_it(tmp_path: Path) -> None:
    """It is imported into other people's servers."""
    script = (
        "import sys, json; before = set(sys.modules); import unjam.reporter.asgi, unjam.reporter.wsgi;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    brought = {name for name in json.loads(ran.stdout) if name not in sys.stdlib_module_names}
    assert brought == {"unjam"}
