"""The other gateways of one state: asked all at once, each answers for itself. Nothing of it is kept anywhere.

Promises, of every kind:
- `ask` tells true: all who are there have answered, or it says that somebody hasn't.
- Nobody waits for one who is silent for longer than the asker's patience, and what nobody reads piles up nowhere.
- Who asks and who answers trust what others may write at the state's place; what isn't understood is passed over.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import Final

from unjam.kept.base import KeptAway

#: Bytes of a question or an answer that is looked at.
LARGEST: Final = 256 << 10

#: Who sends it, and the number of the question at the one who asked.
_HEAD: Final = re.compile(rb"([0-9a-f]{16}) (\d{1,15})\n").match

#: The answer to a question; None: none is given.
Respond = Callable[[bytes], bytes | None]


class Round:
    """One question. `asked`: how many it has reached, None: not sent yet."""

    def __init__(self, on_answer: Callable[[bytes], None]) -> None:
        self.asked: int | None = None
        self.done = asyncio.Event()
        self._heard: set[str] = set()
        self._on_answer = on_answer

    def heard(self, who: str, answer: bytes | None) -> None:
        """None: of ourselves, who need no answer. A second one of the same gateway is none."""
        if who not in self._heard:
            self._heard.add(who)
            if answer is not None:
                self._on_answer(answer)
            self.look()

    def look(self) -> None:
        if self.asked is not None and len(self._heard) >= self.asked:
            self.done.set()


class Others:
    """What all kinds have in common; they send, and call `_asked` and `_answered` with what comes. `name`: of this
    gateway among them, for as long as this object lives."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self._respond: Respond = lambda question: None
        self._warn: Callable[[str], None] = lambda why: None
        self._rounds: dict[int, Round] = {}
        self._n = 0

    def listen(self, respond: Respond, on_warning: Callable[[str], None]) -> None:
        """Begin, within a running loop. `respond` is called on it and must not wait; `on_warning` is told in words what
        an operator should know. A place that is away is tried again; until then `ask` raises."""
        self._respond = respond
        self._warn = on_warning
        self._begin()

    async def close(self) -> None:
        """Harmless before `listen`."""
        raise NotImplementedError

    async def ask(self, question: bytes, patience: float, on_answer: Callable[[bytes], None]) -> bool:
        """Whether all others have answered within `patience` seconds; `on_answer` is called with each answer as it
        comes. Raises KeptAway when they can't be asked at all."""
        self._n += 1
        n, round_ = self._n, Round(on_answer)
        self._rounds[n] = round_
        try:
            async with asyncio.timeout(patience):
                round_.asked = await self._send(self._framed(n, question), round_)
                round_.look()
                await round_.done.wait()
        except TimeoutError:
            if round_.asked is None:
                raise KeptAway("other gateways can't be asked just now") from None
            return False
        finally:
            del self._rounds[n]
        return True

    def _begin(self) -> None:
        raise NotImplementedError

    async def _send(self, frame: bytes, round_: Round) -> int:
        """To all. Returns how many have been told; whoever of them isn't there says so by `heard`. Raises KeptAway."""
        raise NotImplementedError

    def _framed(self, n: int, data: bytes) -> bytes:
        return b"%b %d\n%b" % (self.name.encode(), n, data)

    def _asked(self, frame: bytes) -> tuple[str, bytes] | None:
        """A question: who is to be sent which answer, if anybody."""
        head = _HEAD(frame)
        if head is None or len(frame) > LARGEST:
            return None
        who, n = head[1].decode(), int(head[2])
        if who == self.name:
            if n in self._rounds:
                self._rounds[n].heard(who, None)
            return None
        answer = self._respond(frame[head.end() :])
        return None if answer is None else (who, self._framed(n, answer))

    def _answered(self, frame: bytes) -> None:
        head = _HEAD(frame)
        if head is not None and len(frame) <= LARGEST:
            round_ = self._rounds.get(int(head[2]))
            if round_ is not None:
                round_.heard(head[1].decode(), frame[head.end() :])
