"""Response heads of endpoints (RFC 9112 sections 4-6), read as strictly as requests: an endpoint's nonsense is a 502,
not something to hand on. Same two paths as in `request`."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from unjam.wire.errors import Malformed
from unjam.wire.grammar import Limits, check_framing
from unjam.wire.lines import (
    BOTH,
    CODING,
    CONNECTION,
    HOP_BY_HOP,
    KNOWN,
    LENGTH,
    MEDIA,
    UPGRADE,
    LineTable,
    places_of,
    value_of,
    without,
)
from unjam.wire.scan import Scanner
from unjam.wire.shape import Memory

#: An endpoint may send a little more than a client: the head of a response is at most this many bytes.
RESPONSE_LIMITS: Final = Limits(line=16384, head=65536, fields=200)

TABLE = LineTable(
    {
        **HOP_BY_HOP,
        b"content-length": LENGTH,
        **dict.fromkeys(b"retry-after sec-websocket-accept sec-websocket-protocol".split(), BOTH),
        b"content-type": MEDIA,
        b"x-request-id": KNOWN,
    },
    {b"x-ratelimit-": BOTH, b"anthropic-ratelimit-": BOTH, b"x-unjam-": KNOWN, b"endpoint-load-metrics": KNOWN},
    shadows=False,
)

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?").fullmatch
#: (minor version, status, reason phrase)
_Status = tuple[int, int, bytes]
_statuses: dict[bytes, _Status] = {}
_STATUSES = 256

_new = object.__new__

Body = Literal["none", "length", "chunked", "close"]


class ResponseHead:
    """One response head, interim (1xx) ones included.

    `forward`: lines with CRLF, in order, for the client; without hop-by-hop and framing fields, endpoint-load-metrics*,
    x-unjam-* and x-request-id (the gateway writes its own). `known`: content-type, retry-after, x-ratelimit-*,
    anthropic-ratelimit-*, sec-websocket-accept, sec-websocket-protocol (these are in `forward` too), x-request-id,
    x-unjam-*, endpoint-load-metrics*, upgrade. Repeated lines are joined by comma.
    `length` in bytes, as announced: a HEAD response has it without a body. `sse`: Content-Type is text/event-stream.
    """

    __slots__ = (
        "_lines",
        "chunked",
        "connection_upgrade",
        "forward",
        "keep_alive",
        "known",
        "length",
        "memo",
        "minor",
        "reason",
        "sse",
        "status",
    )

    _lines: list[bytes]  # the field lines as they came
    status: int
    reason: bytes
    minor: int
    keep_alive: bool
    length: int | None
    chunked: bool
    forward: list[bytes]
    known: dict[bytes, bytes]
    memo: Any  # see `shape.Head`
    sse: bool
    connection_upgrade: bool

    def get(self, name: bytes) -> bytes | None:
        """The value of any field by lower-case name, repeated lines joined by comma. Linear in the head's size."""
        values = [value_of(self._lines[place]) for place in places_of(self._lines, name)]
        return b", ".join(values) if values else None

    def body(self, method: str) -> Body:
        """How the body is framed in answer to `method` (RFC 9112 section 6.3). A length of zero is "none"."""
        if self.chunked:
            framing: Body = "chunked"
        elif self.length is None:
            framing = "close"
        else:
            framing = "length" if self.length else "none"
        status = self.status
        if status == 200 and method != "HEAD":
            return framing
        if method == "HEAD" or status < 200 or status in (204, 304):
            return "none"
        return framing

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} HTTP/1.{self.minor}>"


class ResponseReader:
    """Reads response heads off one endpoint connection. After a head, `rest` holds the bytes behind it. A head is good
    until the next `feed`, as with `RequestReader`, which it resembles line by line: what both have in common would cost
    every message a call if it stood in one place."""

    __slots__ = ("_fast", "_limits", "_memory", "_most", "_scanner", "rest")

    def __init__(self, limits: Limits = RESPONSE_LIMITS) -> None:
        self._limits = limits
        self._memory = Memory(TABLE)
        self._fast = min(limits.line, limits.head) - 4
        self._most = limits.fields + 1
        self._scanner: Scanner | None = None
        self.rest = b""

    @property
    def pending(self) -> bool:
        """Whether part of a head has arrived."""
        return self._scanner is not None and self._scanner.pending

    def forget(self) -> None:
        """Let go of earlier heads and of `rest`."""
        self._memory = Memory(TABLE)
        self.rest = b""

    def feed(self, data: bytes) -> ResponseHead | None:
        """The head once it is complete, else None. Raises `Malformed` with side endpoint and status 502."""
        if self._scanner is None:
            shape = self._memory.shape
            if shape is not None:
                length = shape.read(data)
                if 0 < length <= self._fast:
                    self.rest = data[length:]
                    return shape.head  # type: ignore[no-any-return]
            head, end, rest = data.partition(b"\r\n\r\n")
            if end and len(head) <= self._fast:
                lines = head.split(b"\r\n")
                if len(lines) <= self._most:
                    start = lines[0]
                    try:
                        result = build(lines)
                    except Malformed:
                        pass  # the slow path names the first offence in order
                    else:
                        self._memory.parsed(start, result)
                        self.rest = rest
                        return result
        try:
            return self._slow(data)
        except Malformed as error:
            raise Malformed(error.reason, "endpoint") from None

    def _slow(self, data: bytes) -> ResponseHead | None:
        scanner = self._scanner
        if scanner is None:
            limits = self._limits
            scanner = self._scanner = Scanner(
                limits.line,
                limits.line,
                limits.head,
                ("bad_status_line", "field_too_long", "head_too_large"),
                self._check,
            )
        rest = scanner.feed(data)
        if rest is None:
            return None
        if not scanner.lines:
            raise Malformed("bad_status_line")
        head = build(scanner.lines)
        self._scanner = None
        self.rest = rest
        return head

    def _check(self, line: bytes, index: int) -> None:
        if index == 0:
            _status(line)
            return
        if index > self._limits.fields:
            raise Malformed("too_many_fields")
        if index == 1 and line[:1] in (b" ", b"\t"):
            raise Malformed("space_before_first_field")
        TABLE.entry(line)


def _status(line: bytes) -> _Status:
    status = _statuses.get(line)
    if status is None:
        match = _STATUS_LINE(line)
        if match is None:
            raise Malformed("bad_status_line")
        minor, code, reason = match.groups()
        status = int(minor), int(code), reason or b""
        if len(_statuses) < _STATUSES and len(line) <= 64:
            _statuses[line] = status
    return status


def build(lines: list[bytes]) -> ResponseHead:
    """A head from its lines. Raises `Malformed` for a bad line or a bad combination, not necessarily the first."""
    first = lines.pop(0)
    head = _new(ResponseHead)
    head.memo = None
    minor, head.status, head.reason = _statuses.get(first) or _status(first)
    head.minor = minor
    head._lines = lines
    forward: list[bytes] = []
    known: dict[bytes, bytes] = {}
    length = connection = coding = None
    sse = False
    get = TABLE.young.get
    append = forward.append
    for line in lines:
        kind, wire, name, value = get(line) or TABLE.miss(line)
        if not kind:  # PLAIN
            append(wire)
        elif kind <= KNOWN:
            if kind == BOTH:
                append(wire)
            known[name] = known[name] + b", " + value if name in known else value
        elif kind == LENGTH:
            if length is not None:
                raise Malformed("duplicate_content_length")
            length = value
        elif kind == MEDIA:
            if name in known:
                raise Malformed("duplicate_field")
            append(wire)
            known[name], sse = value
        elif kind == CONNECTION:
            connection = value if connection is None else connection | value
        elif kind == CODING:
            coding = value if coding is None else coding + b"," + value
        elif kind == UPGRADE:
            known[name] = known[name] + b", " + value if name in known else value
    head.forward = forward
    head.known = known
    head.sse = sse
    head.length = length
    if coding is None:
        head.chunked = False
    else:
        check_framing(coding, length, minor)
        head.chunked = True
    if connection is None:
        head.keep_alive = minor == 1
        head.connection_upgrade = False
    else:
        head.keep_alive = not connection.close and (minor == 1 or connection.keep_alive)
        head.connection_upgrade = connection.upgrade
        if connection.named:
            head.forward = without(forward, connection.named)
    return head
