"""Server-sent events read (WHATWG HTML, section 9.2): from bytes in any pieces to events.

All three line ends, a byte order mark and comments are as the standard has them; `id` and `retry` are passed over. As
there, an event without its empty line at the end of the stream is none. Bounded: an event above the limit is refused.
"""

from __future__ import annotations

import re
from typing import Final

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event has more bytes than allowed."""


class EventStream:
    """Reads one stream. `limit`: bytes of an event, its comments included."""

    __slots__ = ("_after_cr", "_data", "_fresh", "_limit", "_line", "_open", "_size", "_type")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line: list[bytes] = []  # the pieces of the open line
        self._open = 0  # their bytes
        self._data: list[bytes] = []
        self._type = b""
        self._size = 0  # bytes of the open event
        self._after_cr = False  # the next LF belongs to the line end already seen
        self._fresh = True

    def feed(self, payload: bytes) -> list[tuple[str, bytes]]:
        """The events that are complete now: type (`message` where none is given) and data. Raises EventTooLarge; then
        nothing more may be fed."""
        events: list[tuple[str, bytes]] = []
        if self._after_cr and payload[:1] == b"\n":
            payload = payload[1:]
        if not payload:
            self._after_cr = False
            return events
        self._after_cr = payload[-1] == 0x0D
        lines = _LINE_END.split(payload)
        tail = lines.pop()
        for line in lines:
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)
                self._line = []
                self._open = 0
            if self._fresh:
                self._fresh = False
                line = line.removeprefix(_BOM)
            if line:
                self._field(line)
            else:
                if self._data:
                    events.append((self._type.decode("utf-8", "replace") or "message", b"\n".join(self._data)))
                    self._data = []
                self._type = b""
                self._size = 0
        if tail:
            self._line.append(tail)
            self._open += len(tail)
            if self._size + self._open > self._limit:
                raise EventTooLarge(f"an event has more than {self._limit} bytes")
        return events

    def _field(self, line: bytes) -> None:
        self._size += len(line) + 1
        if self._size > self._limit:
            raise EventTooLarge(f"an event has more than {self._limit} bytes")
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._type = value
