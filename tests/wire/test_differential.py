"""What we accept, two independent parsers accept too, and all three mean the same by it.

h11 and httptools (llhttp) read the very bytes of the client; where they understand something else than we do, a
gateway of ours would be desynchronised from a server built on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unjam.wire.http1 import (
    METHODS,
    ChunkedReader,
    Limits,
    Malformed,
    RequestHead,
    RequestReader,
    ResponseReader,
    request_head,
)

LIMITS = Limits()


@dataclass
class Seen:
    """One message as a parser understood it; header names in lower case, in order."""

    start: tuple[Any, ...] = ()
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    keep_alive: bool = False


def ours(raw: bytes) -> tuple[RequestHead, Seen] | None:
    """None when refused or unfinished."""
    reader = RequestReader(LIMITS)
    try:
        head = reader.feed(raw)
        if head is None:
            return None
        body, rest = reader.rest, b""
        if head.chunked:
            chunked = ChunkedReader(LIMITS)
            body = b"".join(chunked.feed(reader.rest))
            if not chunked.done:
                return None
            rest = chunked.rest
        else:
            length = head.length or 0
            if len(body) < length:
                return None
            body, rest = body[:length], body[length:]
    except Malformed:
        return None
    if rest or head.upgrade is not None:
        return None
    start = raw.lstrip(b"\r\n").split(b"\r\n", 1)[0].split(b" ")
    fields = [
        (name, line.split(b":", 1)[1].strip(b" \t")) for name, line in zip(head.names(), head._lines, strict=True)
    ]
    return head, Seen((head.method.encode(), start[1], head.minor), fields, body, head.keep_alive)


def by_h11(raw: bytes) -> Seen:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    # h11 does without the empty line that RFC 9112 section 2.2 would have servers skip.
    connection.receive_data(raw.removeprefix(b"\r\n"))
    seen = Seen()
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            minor = int(event.http_version.partition(b".")[2])
            seen.start = (event.method, event.target, minor)
            seen.fields = [(name, value) for name, value in event.headers]
            tokens = {t.strip().lower() for n, v in seen.fields if n == b"connection" for t in v.split(b",")}
            seen.keep_alive = b"close" not in tokens and (minor == 1 or b"keep-alive" in tokens)
        elif isinstance(event, h11.Data):
            seen.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return seen
        else:
            raise AssertionError(f"h11 stops at {event}")


class Llhttp:
    """Collects what httptools reports."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.url = b""
        self.done = 0
        self.trailers = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # httptools reports trailers the same way.
        if not self.trailers:
            self.seen.fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.trailers = True
        # Only here: what llhttp knows of a message is gone once it is complete.
        self.seen.keep_alive = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.seen.body += body

    def on_message_complete(self) -> None:
        self.done += 1


def by_llhttp(raw: bytes) -> Seen:
    collected = Llhttp()
    parser = collected.parser
    parser.feed_data(raw)
    assert collected.done == 1
    seen = collected.seen
    seen.start = (parser.get_method(), collected.url, int(parser.get_http_version().partition(".")[2]))
    return seen


def agree(raw: bytes) -> bool:
    """Whether we accept; then all agree, on the client's bytes and on those we would forward."""
    result = ours(raw)
    if result is None:
        return False
    head, seen = result
    assert by_llhttp(raw) == seen
    # h11 reports transfer codings in lower case.
    seen.fields = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in seen.fields]
    assert by_h11(raw) == seen
    forwarded = _forwarded(head, seen.body)
    for parser in (by_h11, by_llhttp):
        again = parser(forwarded)
        assert again.start == (seen.start[0], head.wire_target, 1)
        assert again.body == seen.body
    return True


def _forwarded(head: RequestHead, body: bytes) -> bytes:
    lines = [*head.forward, b"Content-Length: %d\r\n" % len(body)]
    return request_head(head.method, head.wire_target, head.authority, lines) + body


NAMES = st.sampled_from(
    b"X-A|x-b|Accept|Content-Length|Transfer-Encoding|Connection|Host|Expect|Cookie|Content_Length|X A|X-\xe9|| X"
    b"|Keep-Alive|TE|Upgrade|X!#$%&'*+-.^_`~9".split(b"|")
)
VALUES = st.one_of(
    st.sampled_from(
        b"|0|5|5, 5|+5|05|chunked|Chunked |gzip, chunked|close|keep-alive|a.example|a:80|100-continue|\x00|a\tb|\xff"
        b"|x\x7f|websocket|a\r\n b|a\nb|a\rb".split(b"|")
    ),
    st.binary(max_size=12),
)
LINES = st.builds(
    lambda name, colon, value: name + colon + value, NAMES, st.sampled_from([b": ", b":", b" : ", b":\t", b""]), VALUES
)
TARGETS = st.one_of(
    st.sampled_from(
        [
            b"/",
            b"/a?b",
            b"*",
            b"http://a.example/x",
            b"//a",
            b"/a/../b",
            b"/%41",
            b"/a|b",
            b'/"<>',
            b'/a?"<>{}|^`\\',
            b"a:80",
        ]
    ),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12).map(lambda text: b"/" + text.encode()),
)
STARTS = st.builds(
    lambda method, target, version: b" ".join([method, target, version]),
    st.one_of(st.sampled_from(sorted(METHODS)), st.sampled_from([b"get", b"PRI", b"CONNECT"])),
    TARGETS,
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9"]),
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\n",
        b"0\r\n\r\n",
        b'1;a="\\"";b\r\nx\r\n00\r\n\r\n',
    ]
)
MOSTLY_GOOD = st.builds(
    lambda start, lines, last: b"\r\n".join([start, b"Host: a.example", *lines, b"", last]),
    STARTS,
    st.lists(
        st.one_of(st.sampled_from([b"X-A: 1", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X:"]), LINES),
        max_size=5,
    ),
    BODIES,
)


@settings(max_examples=3000, deadline=None)
@given(MOSTLY_GOOD)
@example(b"GET / HTTP/1.0\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;a\r\nhello\r\n0\r\nX: 1\r\n\r\n")
def test_whatever_we_accept_others_accept_and_understand_alike(raw: bytes) -> None:
    agree(raw)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_known_to_servers(method: bytes) -> None:
    assert agree(method + b" /a HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /a?b=%zz|{} HTTP/1.1\r\nHost:a:80\r\nContent-Length:  5 \r\nX:\r\nX-B: \xff\t.\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'05;a;b=c;d="e f\\"g"\r\nhello\r\n0;x\r\nX-Sum: 1\r\n\r\n',
        b"GET http://a.example/b HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_what_all_three_accept(raw: bytes) -> None:
    assert agree(raw)


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(
        [b"HTTP/1.1 200 OK", b"HTTP/1.1 404", b"HTTP/1.0 500 x y", b"HTTP/1.1 204 ", b"HTTP/1.1 099 x", b"HTTP/2 200"]
    ),
    st.lists(LINES, max_size=5),
    BODIES,
)
def test_answers_too(start: bytes, lines: list[bytes], body: bytes) -> None:
    raw = b"\r\n".join([start, *lines, b"", body])
    reader = ResponseReader()
    try:
        head = reader.feed(raw)
        if head is None:
            return
        framing = head.body("GET")
        payload = reader.rest
        if framing == "chunked":
            chunked = ChunkedReader(LIMITS, "endpoint")
            payload = b"".join(chunked.feed(reader.rest))
            if not chunked.done or chunked.rest:
                return
        elif framing == "length":
            if len(payload) != head.length:
                return
        elif framing == "none" and payload:
            return
    except Malformed:
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    if framing == "close":
        connection.receive_data(b"")
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert (event.status_code, event.reason) == (head.status, head.reason)
    assert [name for name, _ in event.headers] == [line.split(b":")[0].lower() for line in head._lines]
    got = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        got += bytes(event.data)
    assert got == payload
