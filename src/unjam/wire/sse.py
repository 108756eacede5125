"""Server-sent events (WHATWG HTML, section 9.2) seen from the side: where events end, and whether one says `error`.

The relay passes the bytes on untouched; this only follows them, over any splits and all three line ends, so that a
heartbeat or an error event of ours never lands in the middle of an endpoint's event.
"""

from __future__ import annotations

import json
import re
from typing import Final

#: A comment and an empty line: parsers skip it, proxies see traffic.
HEARTBEAT: Final = b":\n\n"

_LINE_END = re.compile(rb"\r\n|\n|\r")
_ERROR_LINE = re.compile(rb"(?:\A|[\r\n])event: ?error(?=[\r\n])").findall
_ERRORS = (b"event:error", b"event: error")
_LONGEST: Final = len(b"event: error")


class SseTracker:
    """Follows one stream. `at_boundary`: nothing of an event is open, so something of ours may be inserted.
    `errors`: how many `event: error` lines were completed."""

    __slots__ = ("_after_cr", "_line", "at_boundary", "errors")

    def __init__(self) -> None:
        self.at_boundary = True
        self.errors = 0
        self._line = b""  # the start of the open line, as much of it as can matter
        self._after_cr = False  # the next LF belongs to the line end already seen

    def feed(self, payload: bytes) -> None:
        if payload[-2:] == b"\n\n" and not self._line and b"error" not in payload:
            # Whole events, as servers flush them.
            self.at_boundary = True
            self._after_cr = False
            return
        if not payload:
            return
        if self._after_cr and payload[0] == 0x0A:
            payload = payload[1:]
            if not payload:
                self._after_cr = False
                return
        self._after_cr = payload[-1] == 0x0D
        lines = _LINE_END.split(payload)
        tail = lines.pop()
        if lines:
            first = self._line + lines[0] if self._line else lines[0]
            if first in _ERRORS:
                self.errors += 1
            for line in lines[1:]:
                if line in _ERRORS:
                    self.errors += 1
            self._line = tail[: _LONGEST + 1]
            last = lines[-1] if len(lines) > 1 else first
            self.at_boundary = not tail and not last
        elif len(self._line) <= _LONGEST:
            self._line += tail[: _LONGEST + 1 - len(self._line)]
            self.at_boundary = False
        # else: more of a line that is already known not to matter


def event(name: str, data: str) -> bytes:
    """One event. ValueError for a name that holds a line end; data may have several lines."""
    if "\n" in name or "\r" in name:
        raise ValueError("an event name is one line")
    lines = "".join(f"data: {line}\n" for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return f"event: {name}\n{lines}\n".encode()


def error_event(code: str, message: str, request_id: str = "") -> bytes:
    """The event a stream ends with when its endpoint died: `{"error": {"code", "message", "request_id"}}`."""
    error = {"code": code, "message": message}
    if request_id:
        error["request_id"] = request_id
    return event("error", json.dumps({"error": error}, ensure_ascii=True, separators=(",", ":")))
