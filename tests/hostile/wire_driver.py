"""Plays bytes at the codecs the way a gateway does, whole or in pieces, and says what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from unjam.wire.http1 import (
    RESPONSE_LIMITS,
    ChunkedReader,
    Limits,
    Malformed,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
)

LIMITS = Limits()


def facts(head: RequestHead | ResponseHead) -> dict[str, Any]:
    """Everything a head says, copied: a head may be brought up to date for the next message. `memo` is the shell's."""
    said = {name: getattr(head, name) for name in head.__slots__ if name != "memo"}
    for name in ("_lines", "forward"):
        said[name] = list(said[name])
    said["known"] = dict(said["known"])
    return said


@dataclass
class Exchange:
    """What a connection amounted to: finished messages, the head of one that is open, and how it ended."""

    messages: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    open: dict[str, Any] | None = None
    refused: str = ""
    status: int = 0


class RequestSide:
    """One client connection: heads and bodies until something is refused."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.reader = RequestReader(limits)
        self.chunked = ChunkedReader(limits)
        self.exchange = Exchange()
        self.body = bytearray()
        self.left = 0
        self.head: RequestHead | None = None

    def feed(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange.refused:
            return
        try:
            while True:
                if self.head is None:
                    head = self.reader.feed(data)
                    if head is None:
                        return
                    self.head = head
                    exchange.open = facts(head)
                    self.left = head.length or 0
                    self.chunked.reset()
                    data = self.reader.rest
                if self.head.chunked:
                    if data:
                        for piece in self.chunked.feed(data):
                            assert piece
                            self.body += piece
                    data = self.chunked.rest
                    if not self.chunked.done:
                        return
                else:
                    self.body += data[: self.left]
                    data, self.left = data[self.left :], max(0, self.left - len(data))
                    if self.left:
                        return
                assert exchange.open is not None
                exchange.messages.append((exchange.open, bytes(self.body)))
                exchange.open = None
                self.body.clear()
                self.head = None
                if not data:
                    return
        except Malformed as error:
            exchange.refused, exchange.status = error.reason, error.status


def play(pieces: Iterable[bytes], limits: Limits = LIMITS) -> Exchange:
    """What comes of these pieces of a client connection."""
    side = RequestSide(limits)
    for piece in pieces:
        side.feed(piece)
    return side.exchange


def splits(raw: bytes) -> Iterator[list[bytes]]:
    """Every way to cut `raw` in two, and cut at every byte."""
    for at in range(len(raw) + 1):
        yield [raw[:at], raw[at:]]
    yield [raw[at : at + 1] for at in range(len(raw))]


def played(raw: bytes, limits: Limits = LIMITS) -> Exchange:
    """What comes of a client's bytes, the same however they are split (case 23)."""
    whole = play([raw], limits)
    for pieces in splits(raw):
        assert play(pieces, limits) == whole, pieces[0]
    return whole


def refused(raw: bytes, reason: str, status: int = 400, limits: Limits = LIMITS) -> None:
    """The bytes are refused for `reason`, however they are split, and nothing of them was taken for a message."""
    exchange = played(raw, limits)
    assert (exchange.refused, exchange.status, exchange.messages) == (reason, status, [])


def accepted(raw: bytes, limits: Limits = LIMITS) -> dict[str, Any]:
    """The bytes are exactly one message, however they are split; what its head says."""
    exchange = played(raw, limits)
    assert (exchange.refused, exchange.open, len(exchange.messages)) == ("", None, 1)
    return exchange.messages[0][0]


def request(
    *lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a.example", body: bytes = b""
) -> bytes:
    """A request head with its empty line; Host is added unless it is empty."""
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", body])


def answer(raw: bytes, limits: Limits = RESPONSE_LIMITS) -> ResponseHead:
    """The head of an endpoint's answer, the same however it is split."""
    head = ResponseReader(limits).feed(raw)
    assert head is not None
    for pieces in splits(raw):
        assert _answer(pieces, limits) == facts(head)
    return head


def _answer(pieces: list[bytes], limits: Limits) -> dict[str, Any] | None:
    reader = ResponseReader(limits)
    head = None
    for piece in pieces:
        if head is None:
            head = reader.feed(piece)
    return facts(head) if head is not None else None


def bad_answer(raw: bytes, reason: str) -> None:
    """The answer is the endpoint's fault, however it is split."""
    for pieces in [[raw], *splits(raw)]:
        with pytest.raises(Malformed) as caught:
            _answer(pieces, RESPONSE_LIMITS)
        assert (caught.value.reason, caught.value.status, caught.value.side) == (reason, 502, "endpoint")
