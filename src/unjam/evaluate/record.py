"""One exchange as evaluators see it, and what they say of it."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any, Final

import msgspec

from unjam.evaluate.text import said

#: Bytes that a compressed answer may become.
MOST: Final = 4 << 20
#: Characters of a reason that are kept.
LONGEST: Final = 200

#: zlib's window for each content coding that is read.
_WINDOWS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Unreadable(ValueError):
    """The answer can't be read; in words."""


class Verdict(msgspec.Struct, frozen=True):
    """`reason`: one line for an operator; what is in it may be logged."""

    good: bool
    reason: str = ""


class Record(msgspec.Struct, frozen=True, eq=False, dict=True, kw_only=True):
    """`request`: its body, empty where it was longer than 64 KiB, or of a run. `answer`: the body, whole. `seconds`:
    from the dispatch to the end. `encoding`: of the answer as it is here."""

    service: str
    version: str
    request: bytes
    answer: bytes
    status: int
    content_type: str
    seconds: float
    encoding: str = ""

    @cached_property
    def text(self) -> str:
        """What the agent said in it: of OpenAI's shapes the words, of a stream of events their data, else all of it."""
        return self._said[0]

    @cached_property
    def json(self) -> Any:
        """The answer as JSON: of OpenAI's shapes that in the words. Raises ValueError for what is none."""
        words, shaped = self._said
        try:
            return msgspec.json.decode(words.encode() if shaped else self.answer)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise ValueError("the answer is not JSON") from None

    @cached_property
    def _said(self) -> tuple[str, bool]:
        return said(self.answer, self.content_type)

    @property
    def size(self) -> int:
        return len(self.request) + len(self.answer)


def plain(record: Record) -> Record:
    """The record with its answer decompressed. Raises Unreadable."""
    coding = record.encoding.strip().lower()
    if coding in ("", "identity"):
        return record
    window = _WINDOWS.get(coding)
    if window is None:
        raise Unreadable(f"content-encoding {coding[:40]} is not read")
    reader = zlib.decompressobj(window)
    try:
        answer = reader.decompress(record.answer, MOST)
    except zlib.error:
        raise Unreadable(f"the answer is not {coding}") from None
    if reader.unconsumed_tail or not reader.eof:
        raise Unreadable("the answer is too long, or cut")
    return msgspec.structs.replace(record, answer=answer, encoding="")


def one_line(reason: str) -> str:
    """Printable, and short."""
    words = " ".join(reason.split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:LONGEST]
