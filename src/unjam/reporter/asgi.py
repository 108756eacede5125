"""ASGI middleware: every response says how busy this server is, in `endpoint-load-metrics` (ORCA).

A request is in flight from the call of the application until its response has ended, or the application has (whichever
is first: an application that works on after its client hung up is still busy with it). A WebSocket is in flight until
the application returns. `GET /.well-known/unjam/load` is answered here, with JSON, unless it came through a proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from unjam.reporter.figures import FORWARDED
from unjam.reporter.middleware import Middleware
from unjam.wire.orca import HEADER

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class LoadHeaders(Middleware[App]):
    """`app` with the header on its responses; see `Middleware` for the options."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if kind == "http" and scope["path"] == self._path and _is_ours(scope):
            await self._answer(scope, send)
            return
        figures = self._figures
        ended = False

        async def told(message: Message) -> None:
            nonlocal ended
            type_ = message["type"]
            if type_ in _STARTS:
                headers = list(message.get("headers") or ())
                if all(name.lower() != HEADER for name, _ in headers):
                    headers.append((HEADER, figures.header()))
                    message = {**message, "headers": headers}
            elif type_ == "http.response.body" and not message.get("more_body", False) and not ended:
                try:
                    await send(message)
                finally:
                    if not ended:
                        ended = True
                        figures.counter.end()
                return
            await send(message)

        figures.counter.begin()
        try:
            await self.app(scope, receive, told)
        finally:
            if not ended:
                ended = True
                figures.counter.end()

    async def _answer(self, scope: Scope, send: Send) -> None:
        body = self._figures.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _is_ours(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and not any(name.lower() in FORWARDED for name, _ in scope["headers"])
