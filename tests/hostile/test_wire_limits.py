"""Hostile input, limits of heads (24, 25) and paths (49), each split at every byte or at random."""

from __future__ import annotations

import pytest

from unjam.wire.http1 import Limits, RequestReader

from .wire_driver import accepted, play, refused, request

SMALL = Limits(line=40, head=120, fields=4)


def in_steps(raw: bytes, step: int) -> list[bytes]:
    return [raw[at : at + step] for at in range(0, len(raw), step)]


def test_24_request_line_over_its_limit() -> None:
    exact = b"GET /" + b"a" * (40 - 14) + b" HTTP/1.1"
    assert len(exact) == 40
    accepted(request(start=exact, host=b"Host: a"), SMALL)
    refused(request(start=exact.replace(b" HTTP", b"a HTTP"), host=b"Host: a"), "request_line_too_long", 414, SMALL)
    # Without waiting for its end.
    refused(b"G" * 41, "request_line_too_long", 414, SMALL)
    assert play([b"G" * 40 + b"\r"], SMALL).refused == ""
    refused(b"G" * 40 + b"\rx", "bare_cr_or_lf", 400, SMALL)
    refused(b"G" * 41 + b"\n", "request_line_too_long", 414, SMALL)


def test_24_request_line_over_8_kib() -> None:
    raw = request(start=b"GET /" + b"a" * 8192 + b" HTTP/1.1")
    for step in (1, 7, 1000, len(raw)):
        exchange = play(in_steps(raw, step))
        assert (exchange.refused, exchange.status) == ("request_line_too_long", 414)


def test_24_field_line_over_its_limit() -> None:
    accepted(request(host=b"Host: " + b"a" * 34), SMALL)
    refused(request(host=b"Host: " + b"a" * 35), "field_too_long", 431, SMALL)
    raw = request(b"X: " + b"a" * 8190)
    for step in (1, 7, 1000, len(raw)):
        assert play(in_steps(raw, step)).refused == "field_too_long"


def test_24_head_over_its_limit() -> None:
    def head(fill: int) -> bytes:
        return request(b"A: " + b"a" * 33, b"B: " + b"b" * fill, host=b"Host: a")

    accepted(head(36 - 1), Limits(line=40, head=len(head(35)), fields=4))
    refused(head(35), "head_too_large", 431, Limits(line=40, head=len(head(35)) - 1, fields=4))
    refused(head(35)[:-3], "head_too_large", 431, Limits(line=40, head=len(head(35)) - 20, fields=4))


def test_24_headers_over_32_kib() -> None:
    raw = request(*[b"X-%d: " % number + b"a" * 1000 for number in range(40)])
    for step in (1, 7, 1000, len(raw)):
        exchange = play(in_steps(raw, step))
        assert (exchange.refused, exchange.status) == ("head_too_large", 431)


def test_24_too_many_fields() -> None:
    accepted(request(b"A:", b"B:", b"C:"), SMALL)
    refused(request(b"A:", b"B:", b"C:", b"D:"), "too_many_fields", 431, SMALL)
    raw = request(*[b"X-%d: 1" % number for number in range(100)])
    for step in (1, 7, 1000, len(raw)):
        exchange = play(in_steps(raw, step))
        assert (exchange.refused, exchange.status) == ("too_many_fields", 431)


def test_24_the_first_offence_wins_over_a_later_limit() -> None:
    refused(request(b"A:", b"B ;:", b"C:", b"D:", b"E:"), "bad_name", 400, SMALL)
    refused(request(b"A:", b"B:", b"C:", b"D ;:"), "too_many_fields", 431, SMALL)


def test_24_a_partial_head_is_pending_and_bounded() -> None:
    reader = RequestReader(Limits())
    assert not reader.pending
    assert reader.feed(b"GET / HT") is None
    assert reader.pending
    assert reader.feed(b"TP/1.1\r\nHost: a\r\n\r\n") is not None
    assert not reader.pending


def test_25_the_length_is_known_before_the_body() -> None:
    exchange = play([request(b"Content-Length: 1000000000000", b"Expect: 100-continue")])
    assert exchange.open is not None
    assert (exchange.open["length"], exchange.open["expect_continue"]) == (10**12, True)


def test_30_expectations() -> None:
    refused(request(b"Expect: 200-ok", b"Content-Length: 1"), "unknown_expectation", 417)
    refused(request(b"Expect: 100-continue, x", b"Content-Length: 1"), "unknown_expectation", 417)
    head = accepted(request(b"Expect: 100-Continue", b"Content-Length: 1", body=b"x"))
    assert head["expect_continue"] is True
    assert head["forward"] == []
    # Nothing to continue with.
    assert accepted(request(b"Expect: 100-continue"))["expect_continue"] is False
    assert accepted(request(b"Expect: 100-continue", start=b"GET / HTTP/1.0"))["expect_continue"] is False


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/a/b", "/a/b"),
        (b"/a/../b", "/b"),
        (b"/a/./b", "/a/b"),
        (b"/../../etc/passwd", "/etc/passwd"),
        (b"/a/%2e%2E/b", "/b"),
        (b"/a/%2e/b", "/a/b"),
        (b"/a/.%2e/b", "/b"),
        (b"//a///b//", "/a/b/"),
        (b"/a//../b", "/b"),
        (b"/..", "/"),
        (b"/a/..", "/"),
        (b"/a/b/..", "/a/"),
        (b"/a/.", "/a/"),
        (b"/.", "/"),
        (b"/.hidden/..a/a..", "/.hidden/..a/a.."),
        (b"/%61dmin", "/admin"),
        (b"/%7Euser/%2d%5f", "/~user/-_"),
        (b"/caf%c3%a9", "/caf%C3%A9"),
        (b"/a%20b%3Ac%25", "/a%20b%3Ac%25"),
        (b"/%252e%252e/x", "/%252e%252e/x"),
        (b'/a|b"c<d>^`{}[]', "/a%7Cb%22c%3Cd%3E%5E%60%7B%7D%5B%5D"),
        (b"/a;b=c,d!$&'()*+@:", "/a;b=c,d!$&'()*+@:"),
    ],
)
def test_49_paths_are_normalised_once(raw: bytes, path: str) -> None:
    head = accepted(request(start=b"GET " + raw + b"?x=/../%2f//%00 HTTP/1.1".replace(b" ", b" ")))
    assert head["path"] == path
    assert head["wire_target"] == path.encode() + b"?x=/../%2f//%00"
    assert head["query"] == b"x=/../%2f//%00"
    again = accepted(request(start=b"GET " + path.encode() + b" HTTP/1.1"))
    assert again["path"] == path


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"/a%2fb", "encoded_slash"),
        (b"/%2F..%2Fetc", "encoded_slash"),
        (b"/a%00", "encoded_control"),
        (b"/a%0d%0aX:1", "encoded_control"),
        (b"/a%0A", "encoded_control"),
        (b"/a%7f", "encoded_control"),
        (b"/a%1b", "encoded_control"),
        (b"/a%5cb", "backslash"),
        (b"/a\\b", "backslash"),
        (b"/\\..\\x", "backslash"),
        (b"/a%", "bad_escape"),
        (b"/a%2", "bad_escape"),
        (b"/a%zz", "bad_escape"),
        (b"/a%u0041", "bad_escape"),
        (b"/a%%41", "bad_escape"),
        (b"/a/..;x=1/b", "dot_segment"),
        (b"/a/.;/b", "dot_segment"),
        (b"/a/%2e%2e;/b", "dot_segment"),
        (b"/a#b", "bad_target"),
        (b"/a?b#c", "bad_target"),
    ],
)
def test_49_paths_that_servers_read_differently(raw: bytes, reason: str) -> None:
    refused(request(start=b"GET " + raw + b" HTTP/1.1"), reason)
    refused(request(start=b"GET http://a.example" + raw + b" HTTP/1.1"), reason)
