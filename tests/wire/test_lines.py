"""The memo of lines saves work and nothing else: bounded, without secrets, with the same answers."""

from __future__ import annotations

import pytest

from unjam.wire import request, response
from unjam.wire.errors import Malformed
from unjam.wire.http1 import Limits, RequestReader, ResponseReader
from unjam.wire.lines import BOTH, KNOWN, PLAIN, LineTable


def table() -> LineTable:
    return LineTable({b"x-known": KNOWN, b"x-both": BOTH}, {b"x-ours-": KNOWN}, shadows=True)


def test_a_line_seen_again_is_the_same_entry() -> None:
    lines = table()
    first = lines.entry(b"X-Thing: 1")
    assert first == (PLAIN, b"X-Thing: 1\r\n", b"x-thing", b"1")
    assert lines.entry(b"X-Thing: 1") is first
    assert lines.entry(b"X-Both: 1")[:3] == (BOTH, b"X-Both: 1\r\n", b"x-both")
    assert lines.entry(b"x-ours-lane: 1")[:3] == (KNOWN, b"", b"x-ours-lane")


@pytest.mark.parametrize("line", [b"X-Thing:1", b"X-Thing:  1", b"X-Thing:\t1 ", b"X-Thing: 1\t "])
def test_white_space_is_brought_to_one_form(line: bytes) -> None:
    lines = table()
    for _ in range(2):
        assert lines.entry(line) == (PLAIN, b"X-Thing: 1\r\n", b"x-thing", b"1")


def test_the_memo_is_bounded_and_keeps_what_is_used() -> None:
    lines = table()
    used = lines.entry(b"User-Agent: one")
    for number in range(20_000):
        lines.entry(b"X-Thing: %d" % number)
        if number % 500 == 0:
            assert lines.entry(b"User-Agent: one") is used
    assert len(lines) <= 4096


def test_names_are_bounded_too() -> None:
    lines = table()
    for number in range(5_000):
        lines.entry(b"X-%d: 1" % number)
    assert len(lines._names) <= 1024


SECRETS = [
    *(
        b"Authorization",
        b"Proxy-Authorization",
        b"Cookie",
        b"X-Api-Key",
        b"api-key",
        b"x-goog-api-key",
        b"X-Auth-Token",
    ),
    *(b"X-Amz-Security-Token", b"Sec-WebSocket-Key", b"Sec-WebSocket-Protocol", b"X-Session-Id", b"X-Hub-Signature"),
]


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_never_kept(name: bytes) -> None:
    request.TABLE.clear()
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n%b: planted-secret\r\n\r\n" % name
    assert RequestReader(Limits()).feed(raw) is not None
    kept = repr((request.TABLE.young, request.TABLE._old, request.TABLE._names, request._starts, request._old_starts))
    assert "planted-secret" not in kept
    assert "Host: a" in kept


def test_queries_are_never_kept() -> None:
    assert RequestReader(Limits()).feed(b"GET /?key=planted-secret HTTP/1.1\r\nHost: a\r\n\r\n") is not None
    assert "planted-secret" not in repr((request._starts, request._old_starts))


def test_lines_that_change_with_every_message_are_not_kept() -> None:
    request.TABLE.clear()
    for number in range(1000, 1100):
        raw = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\ntraceparent: 00-%032x-1-01\r\n\r\n" % (
            number,
            number,
        )
        assert RequestReader(Limits()).feed(raw) is not None
    assert len(request.TABLE) == 1


def test_long_lines_are_not_kept() -> None:
    request.TABLE.clear()
    request.TABLE.entry(b"X-Thing: " + b"a" * 1000)
    assert len(request.TABLE) == 0


def test_set_cookie_is_never_kept() -> None:
    response.TABLE.clear()
    head = ResponseReader().feed(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=planted-secret\r\nSet-Cookie: b=2\r\n\r\n")
    assert head is not None
    assert head.forward == [b"Set-Cookie: a=planted-secret\r\n", b"Set-Cookie: b=2\r\n"]
    assert "planted-secret" not in repr(response.TABLE.young)


def test_a_head_does_not_show_its_fields() -> None:
    head = RequestReader(Limits()).feed(b"GET /p?q=s HTTP/1.1\r\nHost: a\r\nAuthorization: planted-secret\r\n\r\n")
    assert "planted-secret" not in repr(head)
    assert "q=s" not in repr(head)


def test_a_malformed_line_stays_malformed() -> None:
    lines = table()
    for _ in range(3):
        with pytest.raises(Malformed, match="bad_value"):
            lines.entry(b"X-Thing: \x00")
    assert len(lines) == 0
