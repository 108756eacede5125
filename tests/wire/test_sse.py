"""Events are followed over any splits and line ends, against a parser that sees the whole stream at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.sse import HEARTBEAT, VERDICT, SseTracker, error_event, event


def lines_of(stream: bytes) -> list[bytes]:
    """All lines and the open rest, by the WHATWG rule."""
    return stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def expected(stream: bytes) -> tuple[bool, int]:
    *lines, rest = lines_of(stream)
    return (not rest and (not lines or not lines[-1]), sum(line in (b"event:error", b"event: error") for line in lines))


def followed(*pieces: bytes) -> tuple[bool, int]:
    tracker = SseTracker()
    for piece in pieces:
        tracker.feed(piece)
    return tracker.at_boundary, tracker.errors


@pytest.mark.parametrize(
    ("stream", "boundary", "errors"),
    [
        (b"", True, 0),
        (b"data: x\n\n", True, 0),
        (b"data: x\n", False, 0),
        (b"data: x", False, 0),
        (b"data: x\r\n\r\n", True, 0),
        (b"data: x\r\r", True, 0),
        (b"data: x\r\n\r", True, 0),
        (b"data: x\r", False, 0),
        (b"data: x\r\n", False, 0),
        (b": comment\n\n", True, 0),
        (b"event: error\ndata: x\n\n", True, 1),
        (b"event:error\r\ndata: x\r\n\r\n", True, 1),
        (b"data: x\n\nevent: error\rdata: y\r\r", True, 1),
        (b"data: event: error\n\n", True, 0),
        (b"event: errors\n\n", True, 0),
        (b"event:  error\n\n", True, 0),
        (b"event: error \n\n", True, 0),
        (b"xevent: error\n\n", True, 0),
        (b"event: error", False, 0),
    ],
)
def test_streams_split_at_every_byte(stream: bytes, boundary: bool, errors: int) -> None:
    assert expected(stream) == (boundary, errors)
    for at in range(len(stream) + 1):
        assert followed(stream[:at], stream[at:]) == (boundary, errors), at
    assert followed(*[stream[at : at + 1] for at in range(len(stream))]) == (boundary, errors)


PIECES = st.lists(
    st.sampled_from(
        [
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"event: error",
            b"event:error",
            b"event: er",
            b"ror",
            b"data: x",
            b"error",
            b"e",
            b": c",
            b"x" * 40,
            b"event: unjam.verdict",
            b"event:unjam.ver",
            b"dict",
            b"data:  bad ",
        ]
    ),
    max_size=12,
)


@given(st.lists(PIECES.map(b"".join), max_size=6))
def test_any_stream_in_any_pieces(pieces: list[bytes]) -> None:
    tracker = SseTracker()
    stream = b""
    for piece in pieces:
        tracker.feed(piece)
        stream += piece
        assert (tracker.at_boundary, tracker.errors) == expected(stream)
        assert tracker.verdict == judged(stream)


def judged(stream: bytes) -> bytes | None:
    """By the events of a parser that sees all of it: the first data behind the type, of the last event that has it."""
    found = None
    judging = False
    for line in lines_of(stream)[:-1]:
        if line in (b"event: unjam.verdict", b"event:unjam.verdict"):
            judging = True
        elif not line:
            judging = False
        elif judging and line.startswith(b"data:"):
            found, judging = line[5:].strip(b" "), False
    return found


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_verdict_split_at_every_byte(end: bytes) -> None:
    stream = end.join([b"data: hello", b"", b"event: unjam.verdict", b'data: {"verdict": "bad"}', b"", b""])
    for at in range(len(stream) + 1):
        tracker = SseTracker()
        tracker.feed(stream[:at])
        tracker.feed(stream[at:])
        assert tracker.verdict == b'{"verdict": "bad"}', at
        assert tracker.at_boundary


def test_a_long_verdict_is_cut() -> None:
    tracker = SseTracker()
    tracker.feed(b"event: unjam.verdict\ndata: ")
    for _ in range(100):
        tracker.feed(b"x" * 65536)
    tracker.feed(b"\n\n")
    assert tracker.verdict is not None
    assert len(tracker.verdict) <= VERDICT


def test_a_long_line_is_not_held() -> None:
    tracker = SseTracker()
    for _ in range(100):
        tracker.feed(b"x" * 65536)
    assert len(tracker._line) < 64
    tracker.feed(b"event: error\n\n")
    assert (tracker.at_boundary, tracker.errors) == (True, 0)


@pytest.mark.parametrize(
    ("line", "errors"),
    [
        (b'data: {"error": {"message": "no", "code": 500}}', 1),
        (b'data:{"error":{"message":"no","type":"server_error"}}', 1),
        (b'data: {"error": "no"}', 1),
        (b'data: {"error": {"message": "no"', 1),
        (b'data: {"error": {"message": "too long", "code": 400}}', 0),
        (b'data: {"error": {"message": "too often", "code": "429"}}', 0),
        (b'data: {"error": null, "choices": []}', 0),
        (b'data: {"choices": [{"delta": {"content": "data: {\\"error\\": {"}}]}', 0),
    ],
)
def test_errors_as_openais_servers_say_them(line: bytes, errors: int) -> None:
    stream = b'data: {"choices": []}\n\n' + line + b"\n\ndata: [DONE]\n\n"
    for size in (1, 7, len(stream)):
        for openai in (True, False):
            tracker = SseTracker(openai)
            for at in range(0, len(stream), size):
                tracker.feed(stream[at : at + size])
            assert (tracker.errors, tracker.at_boundary) == (errors if openai else 0, True)


def test_a_heartbeat_is_no_event() -> None:
    assert HEARTBEAT.startswith(b":")
    assert HEARTBEAT.endswith(b"\n\n")


def test_an_error_event_is_one_event_whatever_the_message_holds() -> None:
    raw = error_event("endpoint_died", "line\nbreak\r\n\r\nevent: x\u2028", "r-1")
    assert followed(raw) == (True, 1)
    name, data, *rest = lines_of(raw)
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == {
        "error": {"code": "endpoint_died", "message": "line\nbreak\r\n\r\nevent: x\u2028", "request_id": "r-1"}
    }


def test_an_event_keeps_its_lines() -> None:
    assert event("note", "a\nb\r\nc") == b"event: note\ndata: a\ndata: b\ndata: c\n\n"
    with pytest.raises(ValueError, match="one line"):
        event("a\nb", "x")
