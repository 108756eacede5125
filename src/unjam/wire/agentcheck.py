"""The line an agent answers to HAProxy's agent-check (its configuration manual, section 5.2, `agent-check`).

Words in any order, divided by spaces, tabs or commas, letters of either case, ended by CR or LF: a percentage (`75%` of
the weight), `maxconn:N`, an administrative state (`ready`, `drain`, `maint`), a health (`up`, `down`, `fail` or
`failed`, `stopped`), and behind a `#` that begins a word, to the end of the line, why. Of two words of one kind the
last counts, as in HAProxy. Unlike HAProxy, which skips what it doesn't know, a line with an unknown word is refused
whole: half a line would be believed like a whole one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MOST_BYTES: Final = 1024
#: As HAProxy has them: 256 is the most a server's weight can be, 100 % the weight it was configured with.
MOST_PERCENT: Final = 256
MOST_CONNECTIONS: Final = 10_000_000

ADMIN: Final = ("ready", "drain", "maint")
HEALTH: Final = ("up", "down", "fail", "stopped")

_PERCENT = re.compile(rb"([0-9]{1,5})%").fullmatch
_MAXCONN = re.compile(rb"maxconn:([0-9]{1,9})").fullmatch
_WORDS = re.compile(rb"[^ \t,]+").finditer
_ADMIN_WORDS: Final = {word.encode(): word for word in ADMIN}
_HEALTH_WORDS: Final = {**{word.encode(): word for word in HEALTH}, b"failed": "fail"}


class BadAgentReply(ValueError):
    """The line is not an agent's answer; the text says why, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """What the line said; None: nothing of it, and what was said before holds on.

    `weight`: share of the configured weight, 0 .. 2.56. `maxconn`: most concurrent connections. `admin`: `ready`,
    `drain` or `maint`. `health`: `up`, `down`, `fail` or `stopped`. `why`: the description behind the `#`, or empty.
    """

    weight: float | None = None
    maxconn: int | None = None
    admin: str | None = None
    health: str | None = None
    why: str = ""


def parse(line: bytes) -> AgentState:
    """Reads one answer up to its first CR or LF; what is behind is not looked at. Raises `BadAgentReply`.

    Whether the line came whole is the caller's to know: `maxconn:3` may be the first part of `maxconn:30`.
    """
    line = re.split(rb"[\r\n]", line[: MOST_BYTES + 1], maxsplit=1)[0]
    if len(line) > MOST_BYTES:
        raise BadAgentReply(f"more than {MOST_BYTES} bytes")
    weight: float | None = None
    maxconn: int | None = None
    admin: str | None = None
    health: str | None = None
    for found in _WORDS(line):
        word = found[0].lower()
        if word.startswith(b"#"):
            return AgentState(weight, maxconn, admin, health, _description(line[found.start() + 1 :]))
        if word in _HEALTH_WORDS:
            health = _HEALTH_WORDS[word]
        elif word in _ADMIN_WORDS:
            admin = _ADMIN_WORDS[word]
        elif (percent := _PERCENT(word)) is not None:
            if int(percent[1]) > MOST_PERCENT:
                raise BadAgentReply(f"a percentage is more than {MOST_PERCENT}")
            weight = int(percent[1]) / 100
        elif (most := _MAXCONN(word)) is not None:
            if int(most[1]) > MOST_CONNECTIONS:
                raise BadAgentReply(f"maxconn is more than {MOST_CONNECTIONS}")
            maxconn = int(most[1])
        else:
            raise BadAgentReply("a word is none of the agent-check's")
    return AgentState(weight, maxconn, admin, health)


def render(state: AgentState) -> bytes:
    """The line with its LF. A weight is rounded to whole per cent, but never down to none. Raises `BadAgentReply` for
    what `parse` would refuse."""
    words: list[str] = []
    if state.admin is not None:
        if state.admin not in ADMIN:
            raise BadAgentReply(f"the administrative state must be one of {', '.join(ADMIN)}")
        words.append(state.admin)
    if state.health is not None:
        if state.health not in HEALTH:
            raise BadAgentReply(f"the health must be one of {', '.join(HEALTH)}")
        words.append(state.health)
    if state.weight is not None:
        if not 0 <= state.weight <= MOST_PERCENT / 100:
            raise BadAgentReply(f"the weight must be from 0 to {MOST_PERCENT / 100}")
        words.append(f"{max(round(state.weight * 100), 1 if state.weight > 0 else 0)}%")
    if state.maxconn is not None:
        if not 0 <= state.maxconn <= MOST_CONNECTIONS:
            raise BadAgentReply(f"maxconn must be from 0 to {MOST_CONNECTIONS}")
        words.append(f"maxconn:{state.maxconn}")
    if state.why:
        words.append("#" + state.why.strip(" \t"))
        _description(words[-1][1:].encode(errors="replace"))
    line = " ".join(words).encode(errors="replace")
    if len(line) > MOST_BYTES:
        raise BadAgentReply(f"more than {MOST_BYTES} bytes")
    return line + b"\n"


def _description(text: bytes) -> str:
    try:
        why = text.decode().strip(" \t")
    except UnicodeDecodeError:
        raise BadAgentReply("the description is not UTF-8") from None
    if not why.isprintable():
        raise BadAgentReply("the description holds a control character")
    return why
