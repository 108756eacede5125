"""Server-sent events (WHATWG HTML, section 9.2) as they pass by: where each one ends, and the two that tell something
of the answer itself: `error`, and `unjam.verdict`, the agent's own judgement.

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
_ERRORS = (b"event:error", b"event: error")
_VERDICTS = (b"event:unjam.verdict", b"event: unjam.verdict")
_LONGEST: Final = len(b"event: unjam.verdict")
#: How servers of OpenAI's API say in a stream that it went wrong.
_DATA_ERROR = re.compile(rb'data: ?\{ ?"error": ?[{"]')
#: Bytes of a line of data that are looked at, of a verdict or an error.
VERDICT: Final = 1024


class SseTracker:
    """Follows one stream. `at_boundary`: nothing of an event is open, so something of ours may be inserted.
    `errors`: how many `event: error` lines were completed, and with `openai` those of data that is an
    `error`, other than for a fault of the caller's (`code` 4xx). `verdict`: the first line of data of the last
    `unjam.verdict` event whose type came first, None before. `fixed`: the stream has a length, so nothing of ours may
    be inserted at all."""

    __slots__ = ("_after_cr", "_judging", "_line", "_openai", "at_boundary", "errors", "fixed", "verdict")

    def __init__(self, openai: bool = False, fixed: bool = False) -> None:
        self.fixed = fixed
        self._openai = openai
        self.at_boundary = True
        self.errors = 0
        self.verdict: bytes | None = None
        self._line = b""  # the start of the open line, as much of it as can matter
        self._after_cr = False  # the next LF belongs to the line end already seen
        self._judging = False  # the open event is a verdict without data so far

    def feed(self, payload: bytes) -> None:
        if (
            payload[-2:] == b"\n\n"
            and not self._line
            and not self._judging
            and b"error" not in payload
            and b"unjam.verdict" not in payload
        ):
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
            if self._line:
                lines[0] = self._line + lines[0]
            for line in lines:
                if self._judging or line[:6] == b"event:":
                    self._note(line)
                elif self._openai and _DATA_ERROR.match(line):
                    self.errors += not _of_the_callers(line[5:])
            self._line = tail[: self._room]
            self.at_boundary = not tail and not lines[-1]
        else:
            # What is beyond the room is of a line that is already known not to matter.
            self._line += tail[: self._room - len(self._line)]
            self.at_boundary = False

    @property
    def _room(self) -> int:
        return VERDICT if self._judging or self._openai else _LONGEST + 1

    def _note(self, line: bytes) -> None:
        if line in _ERRORS:
            self.errors += 1
        elif line in _VERDICTS:
            self._judging = True
        elif not line:
            self._judging = False
        elif self._judging and line[:5] == b"data:":
            self.verdict = line[5:VERDICT].strip(b" ")
            self._judging = False


def _of_the_callers(data: bytes) -> bool:
    """Whether an error is told to be one of the caller's making. Of one that can't be read it isn't."""
    try:
        error = json.loads(data)["error"]
        return str(error["code"])[:1] == "4" and len(str(error["code"])) == 3
    except (ValueError, RecursionError, KeyError, TypeError):
        return False


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
