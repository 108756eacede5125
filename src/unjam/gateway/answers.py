"""What an ordinary agent says, in the words of a run: JSON for its log and its result, errors for its end."""

from __future__ import annotations

import base64
import re
from typing import Final

import msgspec

#: Bytes of a bad answer that are kept in the run's error.
KEPT: Final = 4096

#: Bytes of an error event that is kept whole.
MOST_SAID: Final = 32768

#: Types of events that only the gateway writes begin so; an agent's own are set apart.
OURS: Final = "run."
THEIRS: Final = "agent."

#: Types as the log has them; anything else in an agent's becomes `_`.
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9_.:/-]")
LONGEST: Final = 64


_skip = msgspec.json.Decoder(msgspec.Raw).decode


class AnswerTooLarge(ValueError):
    """The answer has more bytes than a result may have."""


def as_json(data: bytes) -> bytes:
    """`data` itself where it is JSON, on one line; else a JSON string of it."""
    if is_json(data):
        return msgspec.json.format(data, indent=-1) if b"\n" in data or b"\r" in data else data
    return msgspec.json.encode(data.decode("utf-8", "replace"))


def is_json(data: bytes) -> bool:
    """Looked through and not taken apart: of 16 MiB that might be millions of objects."""
    try:
        if not data.isascii():
            data.decode()
        _skip(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def kind_of(kind: str) -> str:
    """The type an agent's event has in the log."""
    if kind.startswith(OURS):
        kind = THEIRS + kind
    return _UNUSUAL.sub("_", kind[:LONGEST])


def agent_error(data: bytes) -> bytes:
    """The error of a run whose agent sent an event `error`: all of it, or its beginning as text."""
    said = as_json(data)
    if len(said) > MOST_SAID:
        said = msgspec.json.encode(data[:KEPT].decode("utf-8", "replace"))
    return b'{"code":"agent_error","message":"The agent sent an error event.","data":%b}' % said


class Answer:
    """An answer that is no stream of events. `most`: bytes of it."""

    __slots__ = ("_most", "_pieces", "_size", "media", "status")

    def __init__(self, status: int, media: bytes, most: int) -> None:
        self.status = status
        self.media = media.partition(b";")[0].strip().lower()
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, payload: bytes) -> None:
        """Raises AnswerTooLarge."""
        self._size += len(payload)
        if self._size > self._most:
            raise AnswerTooLarge(f"more than {self._most} bytes")
        self._pieces.append(payload)

    def read(self) -> tuple[bytes | None, bytes | None]:
        """(result, error), both JSON; one of them is None, or both where there is nothing to tell. JSON is taken as it
        is; text becomes a string; anything else `{"content_type", "body_b64"}`."""
        body = b"".join(self._pieces)
        if not 200 <= self.status < 300:
            return None, self._error(body)
        if not body:
            return None, None
        if is_json(body) and (b"json" in self.media or not self.media):
            return as_json(body), None
        try:
            return msgspec.json.encode(body.decode()), None
        except UnicodeDecodeError:
            kept = {"content_type": self.media.decode("latin-1"), "body_b64": base64.b64encode(body).decode("ascii")}
            result = msgspec.json.encode(kept)
        return result, None

    def _error(self, body: bytes) -> bytes:
        error: dict[str, object] = {
            "code": "agent_status",
            "message": f"The agent answered with status {self.status}.",
            "status": self.status,
        }
        if body and len(body) <= KEPT and is_json(body):
            error["body"] = msgspec.Raw(as_json(body))
        elif body:
            error["body"] = body[:KEPT].decode("utf-8", "replace")
        return msgspec.json.encode(error)
