"""What was read before on a connection saves work and changes nothing; the fuzzer does this at length."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.errors import Malformed
from unjam.wire.http1 import Limits, RequestReader, ResponseReader
from unjam.wire.shape import MOST_VARYING


def head(*lines: bytes, start: bytes = b"POST /a HTTP/1.1") -> bytes:
    return b"\r\n".join([start, b"Host: a.example", *lines, b"", b""])


def said(head: Any) -> dict[str, Any]:
    facts = {name: getattr(head, name) for name in head.__slots__ if name != "memo"}
    return facts | {"forward": list(head.forward), "known": dict(head.known), "_lines": list(head._lines)}


def alone(raw: bytes) -> dict[str, Any] | str:
    return by(RequestReader(Limits()), raw)


def by(reader: RequestReader, raw: bytes) -> dict[str, Any] | str:
    """What the head says, or why it was refused."""
    try:
        return said(reader.feed(raw))
    except Malformed as error:
        return error.reason


def row(*messages: bytes) -> RequestReader:
    """A reader that has read these, each of them as a reader of its own would have."""
    reader = RequestReader(Limits())
    for raw in messages:
        assert said(reader.feed(raw)) == alone(raw)
    return reader


def alike(number: int) -> bytes:
    return head(
        b"Authorization: Bearer %d" % number,
        b"X-Request-Id: %d" % number,
        b"traceparent: 00-%d" % number,
        b"X-Thing: 1",
        b"Content-Length: %d" % number,
    )


def test_alike_heads_are_the_same_object_brought_up_to_date() -> None:
    reader = row(alike(1), alike(2), alike(3))
    first = reader.feed(alike(4) + b"abcd")
    assert first is not None
    assert (first.length, first.known[b"authorization"], reader.rest) == (4, b"Bearer 4", b"abcd")
    again = reader.feed(alike(5))
    assert again is first
    assert said(again) == alone(alike(5))


def test_fields_that_were_asked_for_are_those_of_the_latest_head() -> None:
    def user(number: int, *more: bytes) -> bytes:
        return head(b"X-User-Id: %d" % number, *more, b"Content-Length: 1")

    reader = row(user(1), user(2))
    first = reader.feed(user(3))
    assert first is not None
    assert (first.get(b"x-user-id"), first.get(b"x-tier")) == (b"3", None)
    again = reader.feed(user(4))
    assert again is first
    assert (again.get(b"x-user-id"), again.get(b"x-tier")) == (b"4", None)
    for more in ((b"X-Tier: premium",), (b"X-User-Id: 6", b"x-tier: premium")):
        other = reader.feed(user(5, *more))
        assert other is not None
        assert other.get(b"x-tier") == b"premium"
        assert other.get(b"x-user-id") == b", ".join([b"5", *([b"6"] if len(more) == 2 else [])])
    assert again.get(b"x-user-id") == b"4"


@pytest.mark.parametrize(
    "odd",
    [
        alike(6).replace(b"X-Thing: 1\r\n", b""),
        alike(6).replace(b"X-Thing: 1\r\n", b"X-Thing: 1\r\nX-Thing: 1\r\n"),
        alike(6).replace(b"X-Thing: 1", b"X-Thing: 2"),
        alike(6).replace(b"X-Thing: 1", b"Connection: close, traceparent"),
        alike(6).replace(b"Content-Length: 6", b"Transfer-Encoding: chunked"),
        alike(6).replace(b"POST /a", b"POST /b"),
        alike(6).replace(b"POST /a", b"GET /a"),
        alike(6).replace(b"a.example", b"b.example"),
        alike(6).replace(b"X-Request-Id", b"X-Unjam-Lane"),
        alike(6).replace(b"Authorization", b"X-Api-Key"),
        b"\r\n" + alike(6),
    ],
)
def test_a_head_of_another_shape_is_parsed(odd: bytes) -> None:
    reader = row(alike(1), alike(2), alike(3), odd.removeprefix(b"\r\n"), alike(4), alike(5), alike(7))
    assert said(reader.feed(odd)) == alone(odd)
    assert said(reader.feed(alike(8))) == alone(alike(8))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Content-Length: 6", b"Content-Length: +6", "bad_content_length"),
        (b"Content-Length: 6", b"Content-Length: 6\r\nContent-Length: 6", "duplicate_content_length"),
        (b"Content-Length: 6", b"Content-Length: 6\r\nTransfer-Encoding: chunked", "length_and_coding"),
        (b"Content-Length: 6", b"Content-Length : 6", "space_before_colon"),
        (b"traceparent: 00-6", b"traceparent: \x00", "bad_value"),
        (b"traceparent: 00-6", b"traceparent: 1\ny: 2", "bare_cr_or_lf"),
        (b"traceparent: 00-6", b"traceparent: 1\ry: 2", "bare_cr_or_lf"),
        (b"traceparent: 00-6", b" folded", "obs_fold"),
        (b"X-Request-Id: 6", b"X-Request-Id: 6\r\nX-Request-Id: 7", "duplicate_field"),
        (b"X-Request-Id: 6", b"X_Request_Id: 6", "shadow_name"),
        (b"Bearer 6", b"a" * 9000, "field_too_long"),
    ],
)
def test_a_hostile_head_after_alike_ones_is_refused_as_ever(old: bytes, new: bytes, reason: str) -> None:
    raw = alike(6).replace(old, new)
    assert alone(raw) == reason
    reader = row(alike(1), alike(2), alike(3))
    with pytest.raises(Malformed) as caught:
        reader.feed(raw)
    assert caught.value.reason == reason


def test_a_head_in_pieces_after_alike_ones() -> None:
    raw = alike(6)
    for at in range(1, len(raw)):
        reader = row(alike(1), alike(2), alike(3))
        assert reader.feed(raw[:at]) is None
        assert reader.pending
        assert said(reader.feed(raw[at:])) == alone(raw)


def test_more_varying_lines_than_are_worth_it() -> None:
    def many(number: int) -> bytes:
        return head(*[b"X-%d: %d" % (name, number) for name in range(MOST_VARYING + 1)])

    reader = row(*map(many, range(5)))
    assert reader._memory.shape is None


def test_a_continue_is_asked_for_each_time() -> None:
    def asking(number: int) -> bytes:
        return head(b"Expect: 100-continue", b"Content-Length: %d" % number)

    row(*(asking(number) for number in (3, 4, 0, 5, 0)))


def test_answers_too() -> None:
    def answer(number: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\nDate: %d\r\nServer: x\r\nContent-Length: %d\r\n\r\n" % (number, number)

    reader = ResponseReader()
    for number in range(8):
        head = reader.feed(answer(number))
        assert head is not None
        assert said(head) == said(ResponseReader().feed(answer(number)))
    event_stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    head = reader.feed(event_stream)
    assert head is not None
    assert (head.sse, head.chunked, head.length) == (True, True, None)


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([b"X-A", b"X-B", b"Prefer", b"X-Unjam-Lane", b"Connection"]),
                st.sampled_from([b"1", b"x-a", b""]),
            ),
            max_size=4,
        ),
        min_size=2,
        max_size=8,
    )
)
def test_any_row_of_heads(rows: list[list[tuple[bytes, bytes]]]) -> None:
    reader = RequestReader(Limits())
    for pairs in rows:
        raw = head(*[name + b": " + value for name, value in pairs])
        assert by(reader, raw) == alone(raw)
        if isinstance(alone(raw), str):
            return


def test_a_held_connection_lets_go() -> None:
    reader = row(alike(1), alike(2), alike(3))
    reader.feed(alike(4) + b"body")
    reader.forget()
    assert reader.rest == b""
    assert reader._memory.shape is None
    assert said(reader.feed(alike(5))) == alone(alike(5))
