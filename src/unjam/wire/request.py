"""Request heads (RFC 9112 sections 2-3, 5-6): read strictly, handed over ready to be serialised anew.

`RequestReader` turns the bytes of a client connection into `RequestHead`s. The common case, a whole head in one piece,
is a split and one look-up per line; anything it does not like is done again by the slow path, which goes line by line
and names the first offence. Both build the head with the same function, so they cannot disagree.

Decisions where the RFC leaves room: one empty line before a request line is skipped, a second is refused. HTTP/1.0 may
come without Host (`host` is empty then). Methods are the registered ones, others get 501. A `Connection` field can
strip fields from `forward`, never from `known`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from unjam.wire.errors import Malformed
from unjam.wire.grammar import Limits, check_framing
from unjam.wire.lines import (
    BOTH,
    CODING,
    CONNECTION,
    EXPECT,
    HANDSHAKE,
    HOP_BY_HOP,
    HOST,
    KNOWN,
    LENGTH,
    UPGRADE,
    LineTable,
    places_of,
    value_of,
    without,
)
from unjam.wire.scan import Scanner
from unjam.wire.shape import Memory
from unjam.wire.target import check_query, parse_path, split_absolute

#: Fields the gateway reads; see `RequestHead.known`.
FORWARDED_TOO = (
    b"cookie traceparent tracestate idempotency-key prefer origin last-event-id request-timeout x-request-timeout"
    b" x-stainless-timeout grpc-timeout sec-websocket-version sec-websocket-protocol"
    b" sec-websocket-extensions".split()
)
FOR_THE_GATEWAY = b"authorization x-api-key x-request-id forwarded x-real-ip".split()

#: Repeated lines of these are one list (RFC 9110 section 5.3); the separator. Any other known field may occur once.
_LISTS = {
    b"forwarded": b", ",
    b"x-forwarded-for": b", ",
    b"x-forwarded-host": b", ",
    b"x-forwarded-proto": b", ",
    b"prefer": b", ",
    b"tracestate": b", ",
    b"sec-websocket-protocol": b", ",
    b"sec-websocket-extensions": b", ",
    b"cookie": b"; ",
}

TABLE = LineTable(
    {
        **HOP_BY_HOP,
        b"host": HOST,
        b"content-length": LENGTH,
        b"expect": EXPECT,
        b"sec-websocket-key": HANDSHAKE,
        **dict.fromkeys(FORWARDED_TOO, BOTH),
        **dict.fromkeys(FOR_THE_GATEWAY, KNOWN),
    },
    {b"x-unjam-": KNOWN, b"x-forwarded-": KNOWN},
    shadows=True,
)

#: The registered methods that servers know (IANA HTTP Method Registry), without the refused CONNECT and TRACE.
METHODS = frozenset(
    b"GET HEAD POST PUT PATCH DELETE OPTIONS ACL BIND CHECKOUT COPY LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE"
    b" PROPFIND PROPPATCH REBIND REPORT SEARCH UNBIND UNLINK UNLOCK".split()
)
_REFUSED = frozenset((b"CONNECT", b"TRACE", b"TRACK"))

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9])\.([0-9])").fullmatch
_NO_HOST: Final = ("", b"")
_new = object.__new__

#: (method, path, wire target, query, minor version, authority of an absolute target)
_Start = tuple[str, str, bytes, bytes, int, tuple[str, bytes] | None]


class RequestHead:
    """One request head.

    `path` is normalised text and `wire_target` the same bytes with `?query` behind: route on one, forward the other.
    `host` is lower case without port, `authority` is the Host value to forward; both empty for HTTP/1.0 without Host.
    `length` in bytes, None when there is no Content-Length. `expect_continue` only where a body is announced.
    `upgrade` is "websocket" when the client tries a WebSocket handshake, well-formed or not
    (`websocket.check_handshake` decides); every other upgrade is ignored. `connection_upgrade`: Connection lists it.

    `forward`: lines with CRLF, in order, that may go to the endpoint. Not in it: hop-by-hop fields and those that
    Connection names, framing, Host, Expect, and what is for the gateway alone.
    `known`: lower-case name → value. For the gateway alone: authorization, x-api-key, x-request-id, x-real-ip,
    forwarded, x-forwarded-*, x-unjam-*, upgrade. In `forward` as well: `FORWARDED_TOO` (cookie, traceparent,
    tracestate, idempotency-key, prefer, origin, last-event-id, the time-out fields, sec-websocket-*).
    """

    __slots__ = (
        "_lines",
        "_places",
        "authority",
        "chunked",
        "connection_upgrade",
        "expect_continue",
        "forward",
        "host",
        "keep_alive",
        "known",
        "length",
        "memo",
        "method",
        "minor",
        "path",
        "query",
        "upgrade",
        "wire_target",
    )

    _lines: list[bytes]  # the field lines as they came
    _places: dict[bytes, tuple[int, ...]] | None  # of fields that were asked for: which lines they are
    method: str
    path: str
    wire_target: bytes
    query: bytes
    host: str
    authority: bytes
    minor: int
    keep_alive: bool
    length: int | None
    chunked: bool
    expect_continue: bool
    upgrade: str | None
    connection_upgrade: bool
    forward: list[bytes]
    known: dict[bytes, bytes]
    memo: Any  # see `shape.Head`

    def get(self, name: bytes) -> bytes | None:
        """The value of any field by lower-case name, repeated lines joined by comma. Linear in the head's size the
        first time; the next head of its shape has its fields on the same lines."""
        places = self._places
        if places is None:
            places = self._places = {}
        found = places.get(name)
        if found is None:
            found = places[name] = places_of(self._lines, name)
        if not found:
            return None
        lines = self._lines
        if len(found) == 1:
            return value_of(lines[found[0]])
        return b", ".join([value_of(lines[place]) for place in found])

    def names(self) -> list[bytes]:
        """The field names in lower case, in order."""
        return [line[: line.find(b":")].lower() for line in self._lines]

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)

    def __repr__(self) -> str:
        # No fields: this may end up in a traceback, and fields hold credentials.
        return f"<RequestHead {self.method} HTTP/1.{self.minor}>"


class RequestReader:
    """Reads request heads off one client connection; reused for each request. After `feed` returned a head, `rest`
    holds the bytes behind it: the body, or the next request. After `Malformed` nothing more may be fed.

    A head is good until the next `feed`: one that looks like its predecessor is the same object brought up to date."""

    __slots__ = ("_fast", "_limits", "_memory", "_most", "_scanner", "_skipped", "rest")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._memory = Memory(TABLE)
        # A head this short can break no limit of size.
        self._fast = min(limits.line, limits.head) - 4
        self._most = limits.fields + 1
        self._scanner: Scanner | None = None
        self._skipped = False
        self.rest = b""

    @property
    def pending(self) -> bool:
        """Whether part of a head has arrived: the header time-out applies."""
        return self._scanner is not None and self._scanner.pending

    def forget(self) -> None:
        """Let go of earlier heads and of `rest`: for a connection that is now held rather than used."""
        self._memory = Memory(TABLE)
        self.rest = b""

    def feed(self, data: bytes) -> RequestHead | None:
        """The head once it is complete, else None. Raises `Malformed`; the verdict does not depend on the splits."""
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
                        if not result.expect_continue:
                            self._memory.parsed(start, result)
                        self.rest = rest
                        return result
        return self._slow(data)

    def _slow(self, data: bytes) -> RequestHead | None:
        while True:
            scanner = self._scanner
            if scanner is None:
                limits = self._limits
                scanner = self._scanner = Scanner(
                    limits.line,
                    limits.line,
                    limits.head,
                    ("request_line_too_long", "field_too_long", "head_too_large"),
                    self._check,
                )
            rest = scanner.feed(data)
            if rest is None:
                return None
            self._scanner = None
            if scanner.lines:
                self._skipped = False
                head = build(scanner.lines)
                self.rest = rest
                return head
            if self._skipped:
                raise Malformed("empty_line")
            self._skipped = True
            data = rest

    def _check(self, line: bytes, index: int) -> None:
        if index == 0:
            _start(line)
            return
        if index > self._limits.fields:
            raise Malformed("too_many_fields")
        if index == 1 and line[:1] in (b" ", b"\t"):
            raise Malformed("space_before_first_field")
        TABLE.entry(line)


_starts: dict[bytes, _Start] = {}
_old_starts: dict[bytes, _Start] = {}
_STARTS = 2048


def _start(line: bytes) -> _Start:
    """The checked request line. Lines without query are remembered; a query may hold a secret and is not."""
    global _starts, _old_starts
    start = _starts.get(line)
    if start is not None:
        return start
    mark = line.find(b"?")
    if mark >= 0:
        # The memo is asked for the same line without the query.
        space = line.rfind(b" ")
        query = line[mark + 1 : space]
        if space > mark and line[:mark].count(b" ") == 1:
            check_query(query)
            method, path, wire, _, minor, where = _start(line[:mark] + line[space:])
            if wire == b"*":
                raise Malformed("bad_target")
            return method, path, wire + b"?" + query, query, minor, where
    start = _old_starts.get(line)
    if start is None:
        start = _parse_start(line)
        if len(line) > 256:
            return start
    if len(_starts) >= _STARTS:
        _old_starts = _starts
        _starts = {}
    _starts[line] = start
    return start


def _parse_start(line: bytes) -> _Start:
    match = _REQUEST_LINE(line)
    if match is None:
        raise Malformed("bad_request_line")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise Malformed("unsupported_version")
    if method in _REFUSED:
        raise Malformed("method_not_allowed")
    if method not in METHODS:
        raise Malformed("unknown_method")
    where = None
    if target == b"*" and method == b"OPTIONS":
        path, wire = "*", b"*"
    else:
        if target[:1] != b"/":
            where, target = split_absolute(target)
        path, wire = parse_path(target)
    return method.decode("ascii"), path, wire, b"", int(minor), where


def build(lines: list[bytes]) -> RequestHead:
    """A head from its lines. Raises `Malformed` for a bad line or a bad combination, not necessarily the first."""
    first = lines.pop(0)
    start = _starts.get(first) or _start(first)
    head = _new(RequestHead)
    head.memo = head._places = None
    head.method, head.path, head.wire_target, head.query, minor, where = start
    head.minor = minor
    head._lines = lines
    forward: list[bytes] = []
    known: dict[bytes, bytes] = {}
    host = length = connection = coding = None
    expect = False
    # A request with a WebSocket key means a WebSocket, whatever its Upgrade says: better a 400 than a wrong relay.
    upgrade: str | None = None
    get = TABLE.young.get
    append = forward.append
    for line in lines:
        kind, wire, name, value = get(line) or TABLE.miss(line)
        if not kind:  # PLAIN
            append(wire)
        elif kind <= KNOWN:
            if kind == BOTH:
                append(wire)
            if name in known:
                separator = _LISTS.get(name)
                if separator is None:
                    raise Malformed("duplicate_field")
                value = known[name] + separator + value
            known[name] = value
        elif kind == HOST:
            if host is not None:
                raise Malformed("duplicate_host")
            host = value
        elif kind == LENGTH:
            if length is not None:
                raise Malformed("duplicate_content_length")
            length = value
        elif kind == CONNECTION:
            connection = value if connection is None else connection | value
        elif kind == CODING:
            coding = value if coding is None else coding + b"," + value
        elif kind == HANDSHAKE:
            if name in known:
                raise Malformed("duplicate_field")
            append(wire)
            known[name] = value
            upgrade = "websocket"
        elif kind == UPGRADE:
            known[name] = value = known[name] + b", " + value if name in known else value
            if b"websocket" in [part.strip(b" \t").lower() for part in value.split(b",")]:
                upgrade = "websocket"
        elif kind == EXPECT:
            if value != b"100-continue":
                raise Malformed("unknown_expectation")
            expect = True
    head.forward = forward
    head.known = known
    if host is None:
        if minor:
            raise Malformed("host_missing")
        host = _NO_HOST
    head.host, head.authority = host if where is None else where
    head.length = length
    if coding is None:
        head.chunked = False
    else:
        check_framing(coding, length, minor)
        head.chunked = True
    head.expect_continue = expect and minor == 1 and head.has_body
    if connection is None:
        head.keep_alive = minor == 1
        head.connection_upgrade = False
    else:
        head.keep_alive = not connection.close and (minor == 1 or connection.keep_alive)
        head.connection_upgrade = connection.upgrade
        if connection.named:
            head.forward = without(forward, connection.named)
    head.upgrade = upgrade
    return head


__all__ = ["FORWARDED_TOO", "FOR_THE_GATEWAY", "METHODS", "RequestHead", "RequestReader"]
