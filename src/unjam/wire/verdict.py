"""What an agent says of its own answer: `x-unjam-verdict: bad; it made up a source`, or an event `unjam.verdict` with
`{"verdict": "bad", "reason": "it made up a source"}`."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

HEADER: Final = b"x-unjam-verdict"
#: Characters of a reason that are kept.
LONGEST: Final = 200


class Verdict(NamedTuple):
    """`reason`: one line, may be empty."""

    bad: bool
    reason: str


class BadVerdict(ValueError):
    """It says neither good nor bad."""


def from_header(value: bytes) -> Verdict:
    """Raises BadVerdict."""
    word, _, reason = value.decode("utf-8", "replace").partition(";")
    return verdict(word.strip().lower(), reason)


def from_event(data: bytes) -> Verdict:
    """Raises BadVerdict."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise BadVerdict('a verdict is {"verdict": "good" or "bad", "reason": "..."}')
    reason = said.get("reason")
    return verdict(said.get("verdict"), reason if isinstance(reason, str) else "")


def verdict(word: object, reason: str) -> Verdict:
    """Raises BadVerdict."""
    if word not in ("good", "bad"):
        raise BadVerdict("a verdict is good or bad")
    return Verdict(word == "bad", " ".join(reason.split())[:LONGEST])
