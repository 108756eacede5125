"""What every example agent shares: hard slots, /health and /metrics, Server-Sent Events, a clean start and stop.

An agent can do only so many jobs at once. `Slots` is that limit: work beyond it waits *inside* the agent, first come
first served, which is how a real server jams when the balancer in front of it looks the other way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Iterable
from types import TracebackType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

T = TypeVar("T")


class Slots:
    """`async with slots:` holds one of `total` slots; waits for one in arrival order."""

    def __init__(self, total: int) -> None:
        self.total, self.running, self.waiting, self.served = total, 0, 0, 0
        self._free = asyncio.Semaphore(total)

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.running -= 1
        self.served += kind is None
        self._free.release()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up first. Read the request's body before.

    Raises ClientDisconnect, for which `make_app` has a handler.
    """
    job = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not job.done():
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
    if job.cancelled():
        raise ClientDisconnect
    return job.result()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sse(event: str | None, data: Any) -> bytes:
    """One Server-Sent Event with a JSON payload."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


class EventStream(StreamingResponse):
    """Streams an async generator of `sse(...)`; the generator is closed, at once, when the client hangs up."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str] | None = None) -> None:
        self.events = events
        super().__init__(
            events, headers={"cache-control": "no-store", **(headers or {})}, media_type="text/event-stream"
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()


def wants_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def refusal(message: str, status: int = 400) -> Response:
    return JSONResponse({"error": message}, status)


def make_app(routes: Iterable[Route], slots: Slots) -> Starlette:
    """The agent's own routes, plus GET /health and GET /metrics, which need no slot."""

    async def health(_: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "slots": slots.total,
                "running": slots.running,
                "waiting": slots.waiting,
                "pid": os.getpid(),
            }
        )

    async def metrics(_: Request) -> Response:
        kinds = {"slots": "gauge", "running": "gauge", "waiting": "gauge", "served_total": "counter"}
        figures = (slots.total, slots.running, slots.waiting, slots.served)
        lines = [f"# TYPE agent_{n} {k}\nagent_{n} {v}\n" for (n, k), v in zip(kinds.items(), figures, strict=True)]
        return PlainTextResponse("".join(lines), media_type="text/plain; version=0.0.4")

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it: nginx's code for "the client closed the request"

    return Starlette(
        routes=[*routes, Route("/health", health), Route("/metrics", metrics)],
        exception_handlers={ClientDisconnect: gone},
    )


def arguments(about: str | None, slots: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) lets the system pick one")
    parser.add_argument("--slots", type=int, default=slots, help="jobs at once; the rest wait (default %(default)s)")
    return parser


def serve(app: Starlette, options: argparse.Namespace) -> None:
    """Prints the bound URL as one line, then serves until SIGTERM or ctrl-C, which let running requests finish."""
    import uvicorn  # here and not above: worker processes import this module too, and serve nothing

    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again once drained; that is not an error
        signal.signal(number, lambda *_: None)
    listener = socket.create_server((options.host, options.port), backlog=1024)
    host, port = listener.getsockname()[:2]
    print(f"http://{host}:{port}", flush=True)
    # Longer than a balancer keeps an idle connection, so that it is never the agent that closes one under a request.
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listener])
