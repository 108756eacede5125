"""Chunked bodies (RFC 9112 section 7.1), read strictly and passed on as they come.

Sizes are 1 to 16 hex digits and nothing else; extensions are checked, bounded over the whole message and dropped;
trailers are checked and dropped, and those that would change framing, routing or identity are refused. White space
around a size or an extension is refused: parsers differ in what they make of it.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from unjam.wire.errors import Malformed
from unjam.wire.grammar import MAX_SIZE, Limits
from unjam.wire.request import TABLE
from unjam.wire.scan import Scanner

LAST_CHUNK: Final = b"0\r\n\r\n"

_SIZE = re.compile(rb"([0-9A-Fa-f]+)((?:;.*)?)", re.DOTALL).fullmatch
_EXTENSIONS = re.compile(
    rb"(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:=(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|\"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*\"))?)*"
).fullmatch
_SIZE_DIGITS: Final = 16
#: Trailers that a careless recipient would merge into the head (RFC 9110 section 6.5.1). Prefixes end with '-'.
_FORBIDDEN = frozenset(
    b"content-length transfer-encoding host authorization proxy-authorization connection keep-alive proxy-connection"
    b" te trailer upgrade expect cookie set-cookie content-encoding content-type content-range x-api-key forwarded"
    b" x-real-ip cache-control max-forwards range if-match if-none-match if-modified-since if-unmodified-since if-range"
    b" www-authenticate proxy-authenticate location x-request-id origin".split()
)
_FORBIDDEN_PREFIXES = (b"x-forwarded-", b"x-unjam-", b"sec-websocket-")

_SIZES: dict[bytes, int] = {b"%x" % size: size for size in range(1, 1025)}
_SIZES_MAX = 8192

# Where in the body the next byte is.
_AT_SIZE: Final = 0
_IN_DATA: Final = 1
_AFTER_DATA: Final = 2
_IN_TRAILERS: Final = 3
_DONE: Final = 4


class ChunkedReader:
    """Decodes one chunked body after another; `reset` between them. `done` once the last chunk and trailers were
    read; `rest` then holds the bytes behind them."""

    __slots__ = ("_buffer", "_extensions", "_left", "_limits", "_scanner", "_side", "_state", "done", "rest")

    def __init__(self, limits: Limits, side: Literal["client", "endpoint"] = "client") -> None:
        self._limits = limits
        self._side: Literal["client", "endpoint"] = side
        self.reset()

    def reset(self) -> None:
        """Ready for the next body."""
        self._state = _AT_SIZE
        self._left = 0  # bytes of chunk data still to come
        self._extensions = 0  # bytes of chunk extensions so far
        self._buffer = b""
        self._scanner: Scanner | None = None
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payload in `data`, in order, in pieces that are never empty. Raises `Malformed`."""
        if self._state == _AT_SIZE and not self._buffer:
            # A whole chunk and nothing else: how most servers write an event.
            line = data.find(b"\r\n", 0, 18)
            if line > 0:
                size = _SIZES.get(data[:line])
                if size is not None and len(data) == line + size + 4 and data[-2:] == b"\r\n":
                    return [data[line + 2 : -2]]
        try:
            return self._feed(data)
        except Malformed as error:
            if self._side == "client":
                raise
            raise Malformed(error.reason, self._side) from None

    def _feed(self, data: bytes) -> list[bytes]:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        at = 0
        end = len(data)
        while at < end:
            state = self._state
            if state == _AT_SIZE:
                line = data.find(b"\r\n", at, at + 18)
                size = _SIZES.get(data[at:line]) if line > at else None
                if size is not None:
                    stop = line + 2 + size
                    if data[stop : stop + 2] == b"\r\n":
                        # The chunk is whole: no need to go from state to state.
                        pieces.append(data[line + 2 : stop])
                        at = stop + 2
                        continue
                elif data[at : at + 5] == LAST_CHUNK:
                    self._end(data[at + 5 :])
                    break
                after = self._read_size(data, at)
                if after < 0:
                    self._buffer = data[at:]
                    break
                at = after
            elif state == _IN_DATA:
                take = min(self._left, end - at)
                pieces.append(data[at : at + take])
                at += take
                self._left -= take
                if self._left == 0:
                    self._state = _AFTER_DATA
            elif state == _AFTER_DATA:
                if data[at] != 0x0D or (at + 1 < end and data[at + 1] != 0x0A):
                    raise Malformed("bad_chunk_end")
                if at + 1 == end:
                    self._buffer = data[at:]
                    break
                at += 2
                self._state = _AT_SIZE
            elif state == _IN_TRAILERS:
                self._read_trailers(data[at:])
                break
            else:
                self.rest += data[at:]
                break
        return pieces

    def _end(self, rest: bytes) -> None:
        self._state = _DONE
        self.done = True
        self.rest = rest

    def _read_size(self, data: bytes, at: int) -> int:
        """Where the line of a chunk size ends, with its CRLF; -1 when more is needed."""
        budget = _SIZE_DIGITS + self._limits.chunk_ext - self._extensions
        stop = data.find(b"\r\n", at)
        last = stop if stop >= 0 else len(data) - (data[-1] == 0x0D)
        bare = data.find(b"\n", at, last)
        cr = data.find(b"\r", at, last if bare < 0 else bare)
        if cr >= 0:
            bare = cr
        if 0 <= bare <= at + budget:
            raise Malformed("bare_cr_or_lf")
        if last - at > budget:
            raise Malformed("chunk_extensions_too_large")
        if stop < 0:
            return -1
        line = data[at:stop]
        size = _SIZES.get(line)
        if size is None:
            size = self._parse_size(line)
        if size:
            self._left = size
            self._state = _IN_DATA
        else:
            self._state = _IN_TRAILERS
        return stop + 2

    def _parse_size(self, line: bytes) -> int:
        match = _SIZE(line)
        if match is None:
            raise Malformed("bad_chunk_size")
        digits, extensions = match.groups()
        if len(digits) > _SIZE_DIGITS:
            raise Malformed("bad_chunk_size")
        size = int(digits, 16)
        if size > MAX_SIZE:
            raise Malformed("bad_chunk_size")
        if extensions:
            self._extensions += len(extensions)
            if self._extensions > self._limits.chunk_ext:
                raise Malformed("chunk_extensions_too_large")
            if _EXTENSIONS(extensions) is None:
                raise Malformed("bad_chunk_extension")
        elif size and len(_SIZES) < _SIZES_MAX:
            _SIZES[line] = size
        return size

    def _read_trailers(self, data: bytes) -> None:
        scanner = self._scanner
        if scanner is None:
            most = self._limits.trailers
            reasons = ("trailers_too_large", "trailers_too_large", "trailers_too_large")
            scanner = self._scanner = Scanner(most, most, most, reasons, self._check_trailer)
        rest = scanner.feed(data)
        if rest is not None:
            self._scanner = None
            self._end(rest)

    def _check_trailer(self, line: bytes, index: int) -> None:
        if index >= self._limits.fields:
            raise Malformed("trailers_too_large")
        name = TABLE.entry(line)[2]
        if name in _FORBIDDEN or name.startswith(_FORBIDDEN_PREFIXES):
            raise Malformed("forbidden_trailer")


def chunk(payload: bytes) -> bytes:
    """One chunk. An empty payload would end the body and is refused with ValueError."""
    if not payload:
        raise ValueError("an empty chunk ends the body: send LAST_CHUNK")
    return b"%x\r\n%b\r\n" % (len(payload), payload)
