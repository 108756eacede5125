"""WSGI middleware: every response says how busy this server is, in `endpoint-load-metrics` (ORCA).

A request is in flight from the call of the application until the server closes what it returned (PEP 3333), which it
does when the response has ended and when the connection broke. `GET /.well-known/unjam/load` is answered here, with
JSON, unless it came through a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from unjam.reporter.figures import FORWARDED
from unjam.reporter.middleware import Middleware
from unjam.wire.orca import HEADER

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_NAME = HEADER.decode()
_FORWARDED = tuple("HTTP_" + name.decode().upper().replace("-", "_") for name in FORWARDED)


class LoadHeaders(Middleware[App]):
    """`app` with the header on its responses; see `Middleware` for the options."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        if path == self._path and _is_ours(environ):
            return self._answer(environ["REQUEST_METHOD"], start_response)
        figures = self._figures

        def told(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if all(name.lower() != _NAME for name, _ in headers):
                headers = [*headers, (_NAME, figures.header().decode())]
            return start_response(status, headers, *rest)

        figures.counter.begin()
        try:
            body = self.app(environ, told)
        except BaseException:
            figures.counter.end()
            raise
        return (_Sized if hasattr(body, "__len__") else _Body)(body, figures.counter.end)

    def _answer(self, method: str, start_response: StartResponse) -> Iterable[bytes]:
        body = self._figures.body()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response("200 OK", headers)
        return [] if method == "HEAD" else [body]


def _is_ours(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] in ("GET", "HEAD") and not any(name in environ for name in _FORWARDED)


class _Body:
    """What the application returned, and `ended` once when it is closed."""

    def __init__(self, body: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._body = body
        self._ended: Callable[[], None] | None = ended

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            if (close := getattr(self._body, "close", None)) is not None:
                close()
        finally:
            ended, self._ended = self._ended, None
            if ended is not None:
                ended()

    def __del__(self) -> None:
        # A server that forgets to close.
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


class _Sized(_Body):
    """Servers give a body of one piece its Content-Length: they ask how many there are."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]
