"""What a head says, beyond what hostile input shows."""

from __future__ import annotations

import pytest

from unjam.wire.errors import REASONS, Malformed
from unjam.wire.http1 import (
    Limits,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
    chunk,
    field_line,
    request_head,
    response_head,
    status_line,
)
from unjam.wire.request import FORWARDED_TOO


def read(raw: bytes) -> RequestHead:
    reader = RequestReader(Limits())
    head = reader.feed(raw)
    assert head is not None
    return head


def read_back(raw: bytes) -> ResponseHead:
    head = ResponseReader().feed(raw)
    assert head is not None
    return head


def test_a_request_as_clients_send_it() -> None:
    reader = RequestReader(Limits())
    head = reader.feed(
        b"POST /v1/chat?stream=1 HTTP/1.1\r\nHost: Agents.example:8080\r\nUser-Agent: x/1\r\nConnection: keep-alive\r\n"
        b"Content-Type: application/json\r\nAuthorization: Bearer k\r\ntraceparent: 00-1-2-03\r\n"
        b"X-Unjam-Lane: heavy\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert head is not None
    assert (head.method, head.path, head.query, head.wire_target) == (
        "POST",
        "/v1/chat",
        b"stream=1",
        b"/v1/chat?stream=1",
    )
    assert (head.host, head.authority, head.minor) == ("agents.example", b"agents.example:8080", 1)
    assert (head.keep_alive, head.length, head.chunked, head.has_body) == (True, 2, False, True)
    assert head.forward == [
        b"User-Agent: x/1\r\n",
        b"Content-Type: application/json\r\n",
        b"traceparent: 00-1-2-03\r\n",
    ]
    assert head.known == {b"authorization": b"Bearer k", b"traceparent": b"00-1-2-03", b"x-unjam-lane": b"heavy"}
    assert head.get(b"user-agent") == b"x/1"
    assert head.get(b"x-missing") is None
    assert head.get(b"host") == b"Agents.example:8080"
    assert reader.rest == b"{}"


def test_get_joins_repeated_lines() -> None:
    assert read(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a:2\r\n\r\n").get(b"x-a") == b"1, 2"


@pytest.mark.parametrize(
    "name", [b"X-Api-Key", b"Authorization", b"X-Request-Id", b"X-Unjam-Lane", b"traceparent", b"Idempotency-Key"]
)
def test_fields_that_decide_something_may_occur_once(name: bytes) -> None:
    with pytest.raises(Malformed, match="duplicate_field"):
        read(b"GET / HTTP/1.1\r\nHost: a\r\n%b: 1\r\n%b: 1\r\n\r\n" % (name, name))


def test_lists_are_joined_and_still_forwarded_line_by_line() -> None:
    head = read(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\nCookie: b=2\r\nPrefer: x\r\nPrefer: wait=5\r\n\r\n")
    assert head.known == {b"cookie": b"a=1; b=2", b"prefer": b"x, wait=5"}
    assert head.forward == [b"Cookie: a=1\r\n", b"Cookie: b=2\r\n", b"Prefer: x\r\n", b"Prefer: wait=5\r\n"]


@pytest.mark.parametrize("name", FORWARDED_TOO)
def test_known_fields_that_are_forwarded_too(name: bytes) -> None:
    head = read(b"GET / HTTP/1.1\r\nHost: a\r\n%b: v\r\n\r\n" % name)
    assert head.known == {name: b"v"}
    assert head.forward == [name + b": v\r\n"]


@pytest.mark.parametrize(
    ("start", "connection", "keep"),
    [
        (b"GET / HTTP/1.1", None, True),
        (b"GET / HTTP/1.1", b"close", False),
        (b"GET / HTTP/1.1", b"Keep-Alive, Close", False),
        (b"GET / HTTP/1.0", None, False),
        (b"GET / HTTP/1.0", b"Keep-Alive", True),
        (b"GET / HTTP/1.0", b"keep-alive, close", False),
        (b"GET / HTTP/1.1", b",, ,", True),
    ],
)
def test_keep_alive(start: bytes, connection: bytes | None, keep: bool) -> None:
    line = b"" if connection is None else b"Connection: " + connection + b"\r\n"
    assert read(start + b"\r\nHost: a\r\n" + line + b"\r\n").keep_alive is keep
    answer = start.replace(b"GET / ", b"") + b" 200 OK\r\n" + line + b"\r\n"
    assert read_back(answer).keep_alive is keep


@pytest.mark.parametrize(
    ("media", "sse"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"text/event-stream ;x", True),
        (b"text/event-streams", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_event_streams_are_recognised(media: bytes, sse: bool) -> None:
    head = read_back(b"HTTP/1.1 200 OK\r\nContent-Type: " + media + b"\r\nX: text/event-stream\r\n\r\n")
    assert head.sse is sse
    assert head.known == {b"content-type": media.strip()}
    assert head.forward[0] == b"Content-Type: " + media + b"\r\n"


def test_a_response_as_providers_send_it() -> None:
    head = read_back(
        b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\nx-ratelimit-remaining-tokens: 0\r\nServer: x\r\n"
        b"Content-Length: 0\r\nX-Request-Id: r\r\n\r\n"
    )
    assert (head.status, head.reason, head.length, head.body("POST")) == (429, b"Too Many Requests", 0, "none")
    assert head.known == {b"retry-after": b"7", b"x-ratelimit-remaining-tokens": b"0", b"x-request-id": b"r"}
    assert head.forward == [b"retry-after: 7\r\n", b"x-ratelimit-remaining-tokens: 0\r\n", b"Server: x\r\n"]
    assert head.get(b"server") == b"x"


def test_what_we_write_reads_back() -> None:
    lines = [field_line(b"X-A", b"1"), field_line(b"X-B", b"")]
    head = read(request_head("POST", b"/a?b", b"host:1", lines))
    assert (head.method, head.wire_target, head.authority, head.forward) == ("POST", b"/a?b", b"host:1", lines)
    back = read_back(response_head(503, lines))
    assert (back.status, back.reason, back.forward) == (503, b"Service Unavailable", lines)
    assert status_line(299) == b"HTTP/1.1 299 \r\n"
    assert status_line(200, b"Fine") == b"HTTP/1.1 200 Fine\r\n"
    for status in (99, 600):
        with pytest.raises(ValueError, match="status"):
            status_line(status, b"x")


def test_chunks() -> None:
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    with pytest.raises(ValueError, match="empty"):
        chunk(b"")


def test_every_reason_has_a_status_and_a_sentence() -> None:
    for reason, (status, detail) in REASONS.items():
        error = Malformed(reason)
        assert (error.status, error.detail, error.side) == (status, detail, "client")
        assert 400 <= status < 600
        assert Malformed(reason, "endpoint").status == 502
    with pytest.raises(KeyError):
        Malformed("never_heard_of")
