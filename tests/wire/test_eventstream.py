"""Server-sent events read: the standard's examples, any splits, bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.eventstream import EventStream, EventTooLarge

EXAMPLES = [
    (b"data: This is the first message.\n\n", [("message", b"This is the first message.")]),
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", b"YHOO\n+2\n10")]),
    (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
     [("message", b"first event"), ("message", b"second event"), ("message", b" third event")]),
    (b"data\n\ndata\ndata\n\ndata:", [("message", b""), ("message", b"\n")]),
    (b"\xef\xbb\xbfevent: add\r\ndata: 73\r\n\r\nevent: remove\rdata: 21\r\r", [("add", b"73"), ("remove", b"21")]),
    (b"event: lonely\n\ndata: x\n\n", [("message", b"x")]),
    (b"data: cut off\n", []),
    (b"retry: 5\nnonsense\ndata: a:b\n\n", [("message", b"a:b")]),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "events"), EXAMPLES)
def test_streams_are_read_as_the_standard_says(stream: bytes, events: list[tuple[str, bytes]]) -> None:
    assert EventStream(1000).feed(stream) == events


@given(st.sampled_from(EXAMPLES), st.lists(st.integers(0, 80), max_size=12))
def test_pieces_make_no_difference(example: tuple[bytes, list[tuple[str, bytes]]], cuts: list[int]) -> None:
    stream, events = example
    reader = EventStream(1000)
    ends = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    found = []
    for begin, end in itertools.pairwise(ends):
        found += reader.feed(stream[begin:end])
    assert found == events


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 101, b"data: x\n" * 20, b":" + b"x" * 60 + b"\ndata:" + b"y" * 60]
)
def test_an_event_above_the_limit_is_refused(stream: bytes) -> None:
    with pytest.raises(EventTooLarge):
        EventStream(100).feed(stream)
    reader = EventStream(100)
    with pytest.raises(EventTooLarge):
        _ = [reader.feed(bytes([byte])) for byte in stream]


def test_the_limit_is_of_one_event_not_of_the_stream() -> None:
    reader = EventStream(100)
    assert sum(len(reader.feed(b"data: " + b"x" * 60 + b"\n\n")) for _ in range(50)) == 50
