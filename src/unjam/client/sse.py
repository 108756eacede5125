"""Server-sent events (WHATWG HTML, section 9.2) as a gateway writes them: bytes in, events out, over any splits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: Bytes of the largest event.
LARGEST: Final = 24 << 20

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Message:
    """`id`: None when the event has none."""

    id: str | None
    event: str
    data: str


class Reader:
    """One stream. ValueError for what is no UTF-8, or too long."""

    def __init__(self) -> None:
        #: The pieces of the open line, and their bytes; a CR behind them may be half of a line end.
        self._open: list[bytes] = []
        self._length = 0
        self._held = b""
        #: Bytes of the open event's data.
        self._size = 0
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Message]:
        """The events that end in it; a piece of a long line is only kept."""
        piece = self._held + piece
        self._held = b"\r" if piece.endswith(b"\r") else b""
        lines = _LINE_END.split(piece[: len(piece) - len(self._held)])
        rest = lines.pop()
        if lines and self._open:
            lines[0] = b"".join([*self._open, lines[0]])
        if lines:
            self._open, self._length = [], 0
        if rest:
            self._open.append(rest)
            self._length += len(rest)
        if self._size + self._length > LARGEST:
            raise ValueError("an event is too long")
        messages = []
        for line in lines:
            if (message := self._line(line)) is not None:
                messages.append(message)
        return messages

    def _line(self, line: bytes) -> Message | None:
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            return None
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode()
        if name == b"data":
            self._data.append(text)
            self._size += len(value)
        elif name == b"event":
            self._event = text
        elif name == b"id" and "\0" not in text:
            self._id = text
        return None

    def _dispatch(self) -> Message | None:
        message = Message(self._id, self._event or "message", "\n".join(self._data)) if self._data else None
        # Unlike a browser's: an event without an id has none, for none of ours goes without by mistake.
        self._id, self._event, self._data, self._size = None, "", [], 0
        return message
