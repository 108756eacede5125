"""What holds for any input: what is written reads back, pieces don't matter, normal forms are normal."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.errors import Malformed
from unjam.wire.http1 import (
    LAST_CHUNK,
    ChunkedReader,
    Limits,
    RequestReader,
    ResponseReader,
    chunk,
    field_line,
    request_head,
    response_head,
)
from unjam.wire.target import normalise, parse_path

TOKEN_BYTES = b"!#$%&'*+-.^`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
names = st.lists(st.sampled_from(TOKEN_BYTES), min_size=1, max_size=20).map(bytes).map(b"x-".__add__)
values = (
    st.lists(st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=40)
    .map(bytes)
    .map(lambda v: v.strip(b" \t"))
)
fields = st.lists(st.tuples(names, values), max_size=12)
paths = st.lists(
    st.sampled_from([b"/", b".", b"..", b"a", b"%2e", b"%41", b"%C3", b"%20", b"|", b";", b"b", b"%25", b"%"]),
    max_size=10,
).map(lambda parts: b"/" + b"".join(parts))


def cuts(data: bytes, places: list[int]) -> Iterator[bytes]:
    """`data` in pieces, cut at `places` (taken modulo its length)."""
    at = 0
    for place in sorted(place % (len(data) + 1) for place in places):
        yield data[at:place]
        at = place
    yield data[at:]


places = st.lists(st.integers(min_value=0, max_value=10_000), max_size=6)


@given(st.sampled_from(["GET", "POST", "DELETE"]), fields, places)
def test_a_request_head_reads_back_in_any_pieces(method: str, pairs: list[tuple[bytes, bytes]], cut: list[int]) -> None:
    lines = [
        field_line(name, value) for name, value in pairs if not name.lower().startswith((b"x-unjam-", b"x-forwarded-"))
    ]
    raw = request_head(method, b"/a/b?c=d", b"host:1", lines)
    reader = RequestReader(Limits())
    head = None
    rest = b""
    for piece in cuts(raw + b"the body", cut):
        if head is None:
            head = reader.feed(piece)
            rest = reader.rest if head is not None else b""
        else:
            rest += piece
    assert head is not None
    assert (head.method, head.wire_target, head.authority, head.forward) == (method, b"/a/b?c=d", b"host:1", lines)
    assert rest == b"the body"


@given(st.integers(min_value=100, max_value=599), fields, places)
def test_a_response_head_reads_back_in_any_pieces(
    status: int, pairs: list[tuple[bytes, bytes]], cut: list[int]
) -> None:
    lines = [field_line(name, value) for name, value in pairs if not name.lower().startswith(b"x-unjam-")]
    reader = ResponseReader()
    head = None
    for piece in cuts(response_head(status, lines), cut):
        head = reader.feed(piece) if head is None else head
    assert head is not None
    assert (head.status, head.forward) == (status, lines)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.binary(max_size=10), places)
def test_a_chunked_body_reads_back_in_any_pieces(payloads: list[bytes], behind: bytes, cut: list[int]) -> None:
    raw = b"".join(map(chunk, payloads)) + LAST_CHUNK + behind
    reader = ChunkedReader(Limits())
    got = b""
    for piece in cuts(raw, cut):
        got += b"".join(reader.feed(piece))
    assert (got, reader.done, reader.rest) == (b"".join(payloads), True, behind)


@given(paths)
def test_a_normal_path_is_normal(path: bytes) -> None:
    try:
        text, wire = parse_path(path)
    except Malformed:
        return
    assert normalise(wire) == wire
    assert parse_path(wire) == (text, wire)
    assert text.encode() == wire
    assert b"//" not in wire
    assert not {b".", b".."} & set(wire.split(b"/"))
