"""Hostile input, what endpoints send (33, 35, 36) and what hops must not pass on (37, 38, 40)."""

from __future__ import annotations

import pytest

from unjam.wire.forwarded import TrustedProxies
from unjam.wire.http1 import Malformed, RequestReader, ResponseReader, field_line, response_head, status_line

from .wire_driver import LIMITS, accepted, answer, bad_answer, request


def response(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return b"\r\n".join([start, *lines, b"", body])


@pytest.mark.parametrize(
    "start",
    [
        *(
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1  200 OK",
            b"HTTP/2.0 200 OK",
            b"HTTP/1.2 200 OK",
            b"http/1.1 200 OK",
        ),
        *(
            b"HTTP/1.1 099 x",
            b"HTTP/1.1 600 x",
            b"HTTP/1.1 +20 x",
            b"HTTP/1.1 200 O\x00K",
            b"HTTP/1.1",
            b"200 OK",
            b"ICY 200 OK",
        ),
        *(b" HTTP/1.1 200 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.1 200OK", b"HTTP/1.1 2\xb20 OK", b"SSH-2.0-x"),
    ],
)
def test_33_status_line(start: bytes) -> None:
    bad_answer(response(start=start), "bad_status_line")


def test_33_empty_line_first() -> None:
    bad_answer(b"\r\n" + response(), "bad_status_line")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), "length_and_coding"),
        ((b"Content-Length: 5", b"Content-Length: 5"), "duplicate_content_length"),
        ((b"Content-Length: 5, 5",), "bad_content_length"),
        ((b"Content-Length: -5",), "bad_content_length"),
        ((b"Transfer-Encoding: gzip",), "unknown_coding"),
        ((b"Transfer-Encoding: chunked, chunked",), "bad_transfer_encoding"),
        ((b"X: 1", b" folded"), "obs_fold"),
        ((b" X: 1",), "space_before_first_field"),
        ((b"X : 1",), "space_before_colon"),
        ((b"X",), "no_colon"),
        ((b"X: \x00",), "bad_value"),
        ((b"X: 1\nSet-Cookie: a",), "bare_cr_or_lf"),
        ((b"Content-Type: a/b", b"Content-Type: text/event-stream"), "duplicate_field"),
        ((b"Connection: a b",), "bad_connection"),
    ],
)
def test_33_malformed_answer(lines: tuple[bytes, ...], reason: str) -> None:
    bad_answer(response(*lines), reason)


def test_33_transfer_encoding_on_http_1_0() -> None:
    bad_answer(response(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK"), "coding_on_http10")


def test_33_too_large() -> None:
    raw = response(*[b"X-%d: " % number + b"a" * 1000 for number in range(70)])
    for step in (3, 1000, len(raw)):
        with pytest.raises(Malformed, match="head_too_large"):
            feed_in_steps(ResponseReader(), raw, step)


def feed_in_steps(reader: ResponseReader, raw: bytes, step: int) -> None:
    for at in range(0, len(raw), step):
        reader.feed(raw[at : at + step])


def test_35_bytes_behind_the_head_are_kept_apart() -> None:
    reader = ResponseReader()
    assert reader.feed(response(b"Content-Length: 0", body=b"HTTP/1.1 200 OK\r\n")) is not None
    assert reader.rest == b"HTTP/1.1 200 OK\r\n"


def test_36_interim_answers_are_seen_one_by_one() -> None:
    reader = ResponseReader()
    head = reader.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + response())
    seen = []
    while head is not None:
        seen.append((head.status, head.body("GET")))
        head = reader.feed(reader.rest) if reader.rest else None
    assert seen == [(100, "none"), (103, "none"), (200, "close")]


@pytest.mark.parametrize(
    ("start", "lines", "method", "body"),
    [
        (b"HTTP/1.1 200 OK", (b"Content-Length: 5",), "GET", "length"),
        (b"HTTP/1.1 200 OK", (b"Content-Length: 0",), "GET", "none"),
        (b"HTTP/1.1 200 OK", (b"Content-Length: 5",), "HEAD", "none"),
        (b"HTTP/1.1 200 OK", (b"Transfer-Encoding: chunked",), "HEAD", "none"),
        (b"HTTP/1.1 200 OK", (b"Transfer-Encoding: chunked",), "POST", "chunked"),
        (b"HTTP/1.1 500", (), "GET", "close"),
        (b"HTTP/1.1 204 No Content", (b"Content-Length: 5",), "GET", "none"),
        (b"HTTP/1.1 304 Not Modified", (b"Content-Length: 5",), "GET", "none"),
        (b"HTTP/1.1 101 Switching Protocols", (), "GET", "none"),
        (b"HTTP/1.1 404 ", (b"Content-Length: 5",), "GET", "length"),
    ],
)
def test_body_framing_of_an_answer(start: bytes, lines: tuple[bytes, ...], method: str, body: str) -> None:
    assert answer(response(*lines, start=start)).body(method) == body


HOPS = [
    b"Keep-Alive: 5",
    b"Proxy-Connection: x",
    b"TE: trailers",
    b"Trailer: X",
    b"Upgrade: h2c",
    b"Proxy-Authenticate: x",
]


def test_37_hop_by_hop_fields_stay_here() -> None:
    head = accepted(
        request(b"Connection: close, X-Mine , te", b"X-Mine: 1", b"X-Yours: 2", b"Proxy-Authorization: Basic x", *HOPS)
    )
    assert head["forward"] == [b"X-Yours: 2\r\n"]
    assert head["keep_alive"] is False
    assert head["upgrade"] is None
    back = answer(response(b"X-Mine: 1", b"Connection: x-mine", b"Connection: keep-alive", b"Set-Cookie: a", *HOPS))
    assert back.forward == [b"Set-Cookie: a\r\n"]


def test_37_connection_cannot_take_what_the_gateway_reads() -> None:
    names = b"Authorization, X-API-Key, Host, Content-Length, X-Forwarded-For, X-Unjam-Lane, Cookie"
    head = accepted(
        request(
            b"Connection: " + names,
            b"Authorization: Bearer x",
            b"X-Api-Key: y",
            b"Cookie: a=b",
            b"X-Unjam-Lane: heavy",
            b"X-Forwarded-For: 1.2.3.4",
            b"Content-Length: 1",
            body=b"x",
        )
    )
    assert head["known"] == {
        b"authorization": b"Bearer x",
        b"x-api-key": b"y",
        b"cookie": b"a=b",
        b"x-unjam-lane": b"heavy",
        b"x-forwarded-for": b"1.2.3.4",
    }
    assert head["forward"] == []
    assert (head["length"], head["host"]) == (1, "a.example")


@pytest.mark.parametrize("value", [b"a b", b"a/b", b"a=b", b'"close"', b"close;"])
def test_37_connection_that_is_no_list_of_tokens(value: bytes) -> None:
    reader = RequestReader(LIMITS)
    with pytest.raises(Malformed, match="bad_connection"):
        reader.feed(request(b"Connection: " + value))


def test_37_what_is_for_the_gateway_is_not_passed_on() -> None:
    head = accepted(request(b"Authorization: Bearer x", b"x-request-id: r", b"Forwarded: for=a", b"X-Unjam-Lane: fast"))
    assert head["forward"] == []
    back = answer(
        response(b"X-Request-Id: r", b"Endpoint-Load-Metrics: TEXT cpu=1", b"X-Unjam-Verdict: bad", b"Vary: a")
    )
    assert back.forward == [b"Vary: a\r\n"]
    assert back.known[b"endpoint-load-metrics"] == b"TEXT cpu=1"


def test_38_forwarded_fields_are_overwritten_unless_the_peer_is_trusted() -> None:
    head = RequestReader(LIMITS).feed(
        request(
            b"X-Forwarded-For: 6.6.6.6",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Host: evil",
            b"Forwarded: for=6.6.6.6",
        )
    )
    assert head is not None
    stranger = TrustedProxies(["10.0.0.0/8"])
    assert stranger.client("192.0.2.1", head) == "192.0.2.1"
    lines = stranger.lines("192.0.2.1", head, secure=False)
    assert b"6.6.6.6" not in lines
    assert b"evil" not in lines
    assert lines == (
        b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.example\r\n"
        b'Forwarded: for=192.0.2.1;proto=http;host="a.example"\r\n'
    )
    assert stranger.client("10.1.2.3", head) == "6.6.6.6"
    assert b"X-Forwarded-For: 6.6.6.6, 10.1.2.3\r\n" in stranger.lines("10.1.2.3", head, secure=False)
    assert not any(b"forwarded" in line.lower() for line in head.forward)


@pytest.mark.parametrize("value", [b"a\r\nSet-Cookie: x", b"a\nb", b"a\rb", b"a\x00b", b" a", b"a "])
def test_40_cr_or_lf_in_what_we_write(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a header field"):
        field_line(b"Location", value)
    with pytest.raises(ValueError, match="not a header field"):
        field_line(b"Loc\r\nation", b"x")
    if value.strip() == value:
        with pytest.raises(ValueError, match="not a status line"):
            status_line(200, value)


def test_40_redirects_of_endpoints_are_passed_on() -> None:
    back = answer(response(b"Location: http://elsewhere/?a=b", start=b"HTTP/1.1 302 Found"))
    assert response_head(back.status, back.forward) == b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/?a=b\r\n\r\n"
