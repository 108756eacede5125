"""The WSGI middleware under a threaded server, with real clients: what is in flight is told, however requests end."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import httpx
import pytest

from unjam.reporter.figures import PATH
from unjam.reporter.reading import Reading
from unjam.reporter.wsgi import LoadHeaders
from unjam.wire.orca import HEADER, parse, report

NAME = HEADER.decode()
PATIENCE = 20.0


def until(true: Callable[[], Any]) -> None:
    """Polls: what is awaited happens in another thread."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


class Work:
    """An application whose requests wait for `go`, and that counts how many entered."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = 0
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer: Iterable[bytes] = getattr(self, environ["PATH_INFO"][1:], self.nowhere)(environ, start_response)
        return answer

    def nowhere(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"no"]

    def quick(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def hold(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.entered += 1
        self.go.wait(PATIENCE)
        return self.quick(environ, start_response)

    def stream(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        try:
            start_response("200 OK", [("Content-Type", "text/event-stream")])
            yield b"data: 1\n\n"
            self.go.wait(PATIENCE)
            while True:
                yield b"data: 2\n\n"
                if environ.get("QUERY_STRING") != "for=ever":
                    return
        finally:
            self.closed += 1

    def fail(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        raise RuntimeError("as it may happen")

    def broken(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"1"
        raise RuntimeError("as it may happen")

    def own(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Endpoint-Load-Metrics", "TEXT eps=1")])
        return [b"done"]

    def written(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])(b"do")
        return [b"ne"]

    def file(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return FileWrapper(open(__file__, "rb"))


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, address: Any) -> None:
        pass


class Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerHandler, "log_exception", lambda self, info: None)


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    server = Server(("127.0.0.1", 0), Silent)
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", timeout=PATIENCE) as client:
            yield client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def meanwhile(client: httpx.Client, path: str, times: int) -> Iterator[list[httpx.Response]]:
    """Requests that run while the block does; their answers when it has ended."""
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(client.get(path))) for _ in range(times)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join()


def told(response: httpx.Response) -> dict[str, Any]:
    return report(parse(response.headers[NAME].encode()))


def load(client: httpx.Client) -> dict[str, Any]:
    answer = client.get(PATH)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert NAME not in answer.headers
    return dict(answer.json())


def until_idle(client: httpx.Client) -> None:
    """A client has its answer before the server's thread has closed it."""
    until(lambda: load(client)["in_flight"] == 0)


def test_each_answer_says_how_many_are_in_flight() -> None:
    work = Work()
    with serving(LoadHeaders(validator(work))) as client:
        for path in ("/quick", "/nowhere"):
            assert told(client.get(path)) == {"in_flight": 1}
            until_idle(client)
        with meanwhile(client, "/hold", 3) as answers:
            until(lambda: work.entered == 3)
            assert load(client) == {"in_flight": 3}
            assert told(client.get("/quick")) == {"in_flight": 4}
            work.go.set()
        assert sorted(told(answer)["in_flight"] for answer in answers)[0] >= 1
        until_idle(client)


def test_it_is_a_proper_application_itself() -> None:
    with serving(validator(LoadHeaders(validator(Work())))) as client:
        answer = client.get("/quick")
        assert answer.text == "done"
        assert client.get("/written").text == "done"
        until_idle(client)


def test_a_body_of_one_piece_keeps_its_length_and_a_file_is_whole() -> None:
    with serving(LoadHeaders(Work())) as client:
        assert client.get("/quick").headers["content-length"] == "4"
        assert client.get("/file").text.startswith('"""The WSGI middleware')
        until_idle(client)


def test_a_stream_is_in_flight_to_its_last_byte() -> None:
    work = Work()
    with serving(LoadHeaders(work)) as client:
        with client.stream("GET", "/stream") as events:
            assert told(events) == {"in_flight": 1}
            lines = events.iter_lines()
            assert next(lines) == "data: 1"
            assert load(client) == {"in_flight": 1}
            work.go.set()
            assert [line for line in lines if line] == ["data: 2"]
        until_idle(client)
        assert work.closed == 1


def test_a_stream_ends_with_its_connection() -> None:
    work = Work()
    with serving(LoadHeaders(work)) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as raw:
            raw.sendall(b"GET /stream?for=ever HTTP/1.0\r\n\r\n")
            assert raw.recv(100)
            until(lambda: load(client) == {"in_flight": 1})
        work.go.set()  # now it writes, to nobody
        until_idle(client)
        assert work.closed == 1


def test_errors_count_down() -> None:
    with serving(LoadHeaders(Work())) as client:
        for _ in range(3):
            assert client.get("/fail").status_code == 500
            client.get("/broken")
        until_idle(client)
        assert told(client.get("/quick")) == {"in_flight": 1}


def test_a_server_that_forgets_to_close_is_forgiven() -> None:
    app = LoadHeaders(Work())
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/quick"}
    body = app(environ, lambda *_: None)
    assert list(body) == [b"done"]
    del body
    told_: list[Any] = []
    app(environ, lambda status, headers: told_.append(dict(headers)))
    assert report(parse(told_[0][NAME].encode())) == {"in_flight": 1}


def test_closing_twice_counts_once() -> None:
    app = LoadHeaders(Work())
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/quick"}
    bodies: list[Any] = [app(environ, lambda *_: None) for _ in range(2)]
    bodies[0].close()
    bodies[0].close()
    seen: list[Any] = []
    app(environ, lambda status, headers: seen.append(dict(headers)))
    assert report(parse(seen[0][NAME].encode())) == {"in_flight": 2}


def test_an_applications_own_header_stands_alone() -> None:
    with serving(LoadHeaders(Work())) as client:
        assert client.get("/own").headers.get_list(NAME) == ["TEXT eps=1"]


def test_the_machines_figures_are_told() -> None:
    class Machine:
        def read(self) -> Reading:
            return Reading(cores=8, cpu=0.5)

    with serving(LoadHeaders(Work(), machine=Machine(), waiting=lambda: 0, format="json")) as client:
        until(lambda: load(client) == {"cores": 8, "cpu": 0.5, "in_flight": 0, "waiting": 0})
        assert told(client.get("/quick")) == {"cores": 8, "cpu": 0.5, "in_flight": 1, "waiting": 0}


def test_servers_that_share_a_file_count_together(tmp_path: Path) -> None:
    one, two = Work(), Work()
    file = tmp_path / "counter"
    with serving(LoadHeaders(one, shared=file)) as first, serving(LoadHeaders(two, shared=file)) as second:
        with meanwhile(first, "/hold", 2):
            until(lambda: one.entered == 2)
            assert told(second.get("/quick")) == {"in_flight": 3}
            until(lambda: load(second) == {"in_flight": 2})
            one.go.set()
        until(lambda: load(second) == {"in_flight": 0})


def test_a_request_that_came_through_a_proxy_is_not_told_the_load() -> None:
    with serving(LoadHeaders(Work())) as client:
        for name in ("x-forwarded-for", "forwarded", "via", "X-Real-IP"):
            assert client.get(PATH, headers={name: "x"}).status_code == 404
        assert client.post(PATH).status_code == 404
        assert client.head(PATH).status_code == 200
    with serving(LoadHeaders(Work(), path=None)) as client:
        assert client.get(PATH).status_code == 404


@pytest.mark.parametrize("options", [{"every": 0}, {"every": float("inf")}, {"format": "bin"}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LoadHeaders(Work(), **options)
