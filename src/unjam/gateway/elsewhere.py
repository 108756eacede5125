"""Verdicts on requests that another gateway of this `state` served: all of them are asked at once, and who remembers
one counts it and says for which version.

Bounded at both ends, however many verdicts come on made-up ids: they go in batches, so many a second, and no more wait
than that takes; a gateway that is asked looks up so many a second and is silent to the rest. Nothing of it is stored.
The tenant goes with the question, and only the request of that tenant is an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from unjam.gateway.gateway import REQUEST_ID
from unjam.kept.base import KeptError

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway
    from unjam.kept.others import Others

#: Verdicts that are asked about at once, and seconds between two times: 1,000 a second of each gateway.
BATCH: Final = 50
PACE: Final = 0.05
#: Verdicts that wait to be asked about, of all tenants and of one: as many as go in half a second.
HELD: Final = 500
HELD_OF_ONE: Final = 250
#: Seconds for which the others may think.
PATIENCE: Final = 1.0
#: Ids looked up for others in a second, and at once.
LOOKED: Final = 2000.0

#: Why nobody has said whether they remember it.
TOO_MANY: Final = "Too many verdicts at once are on requests that other gateways served. Try again."
AWAY: Final = "The other gateways can't be asked just now. Try again."
SILENT: Final = "Not every gateway has answered whether it remembers this request. Try again."


class Vote(NamedTuple):
    """What became of a user's verdict. `changed`: it is the first, or another than before."""

    service: str
    version: str
    changed: bool


class Unanswered(Exception):
    """It isn't known whether anybody remembers it: worth another try, which counts nothing twice. In words."""


class Question(msgspec.Struct, array_like=True, forbid_unknown_fields=False):
    tenant: str
    id: str
    bad: bool
    reason: str


class Known(msgspec.Struct, array_like=True, forbid_unknown_fields=False):
    """`place`: of the question in its batch."""

    place: int
    service: str
    version: str
    changed: bool


_encode = msgspec.json.Encoder().encode
_questions = msgspec.json.Decoder(list[Question]).decode
_known = msgspec.json.Decoder(list[Known]).decode

#: A verdict on a request that is remembered here: tenant, id, bad, reason.
Remember = Callable[[str, bytes, bool, str], Vote | None]
_Waiting = tuple[Question, asyncio.Future[Vote | None]]


class Elsewhere:
    """`others`: None where nobody shares the state."""

    def __init__(self, others: Others | None, remember: Remember, gateway: Gateway) -> None:
        self._others = others
        self._remember = remember
        self._stats = gateway.stats
        self._log = gateway.log
        self._waiting: deque[_Waiting] = deque()
        self._held: dict[str, int] = {}
        self._pacing: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._on = False
        self._looks = LOOKED
        self._looked = monotonic()

    def start(self) -> None:
        """Answer the others, and ask them from now on. Again is harmless."""
        if self._others is not None and not self._on:
            self._on = True
            self._others.listen(self._asked, lambda why: self._log.warning("verdicts_stay_here", why=why))

    async def stop(self) -> None:
        tasks = [*self._asking, *([self._pacing] if self._pacing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        if self._others is not None:
            await self._others.close()

    # -- asking -------------------------------------------------------------------------------------------------------

    async def vote(self, tenant: str, request_id: bytes, bad: bool, reason: str) -> Vote | None:
        """None: no gateway remembers such a request of this tenant. Raises Unanswered."""
        if not self._on or REQUEST_ID(request_id) is None:
            return None
        if len(self._waiting) >= HELD or self._held.get(tenant, 0) >= HELD_OF_ONE:
            self._stats.handed_on("refused")
            raise Unanswered(TOO_MANY)
        future: asyncio.Future[Vote | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((Question(tenant, request_id.decode("ascii"), bad, reason), future))
        self._held[tenant] = self._held.get(tenant, 0) + 1
        if self._pacing is None:
            self._pacing = asyncio.create_task(self._pace())
        try:
            vote = await future
        except Unanswered:
            self._stats.handed_on("unanswered")
            raise
        self._stats.handed_on("unknown" if vote is None else "taken")
        return vote

    async def _pace(self) -> None:
        """While there is something to ask, and once a pause after it."""
        while self._waiting:
            task = asyncio.create_task(self._ask(self._batch()))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            await asyncio.sleep(PACE)
        self._pacing = None

    def _batch(self) -> list[_Waiting]:
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        for question, _ in batch:
            left = self._held[question.tenant] - 1
            if left:
                self._held[question.tenant] = left
            else:
                del self._held[question.tenant]
        return batch

    async def _ask(self, batch: list[_Waiting]) -> None:
        assert self._others is not None

        def answered(data: bytes) -> None:
            try:
                found = _known(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return  # none of ours
            for known in found:
                if 0 <= known.place < len(batch) and not (future := batch[known.place][1]).done():
                    future.set_result(Vote(known.service, known.version, known.changed))

        why: str | None = SILENT
        try:
            if await self._others.ask(_encode([question for question, _ in batch]), PATIENCE, answered):
                why = None
        except KeptError:
            why = AWAY
        finally:
            for _, future in batch:
                if future.done():
                    continue
                if why is None:
                    future.set_result(None)
                else:
                    future.set_exception(Unanswered(why))

    # -- answering ----------------------------------------------------------------------------------------------------

    def _asked(self, data: bytes) -> bytes | None:
        """What is remembered here of what another gateway asks; None: too much is asked, or none of ours asks."""
        now = monotonic()
        self._looks = min(LOOKED, self._looks + (now - self._looked) * LOOKED)
        self._looked = now
        if self._looks < BATCH:
            self._stats.asked("dropped")
            return None
        try:
            questions: list[Question] = _questions(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if len(questions) > BATCH:
            return None
        self._looks -= len(questions)
        found: list[Any] = []
        for place, asked in enumerate(questions):
            vote = self._remember(asked.tenant, asked.id.encode(), asked.bad, asked.reason)
            if vote is not None:
                found.append(Known(place, *vote))
        self._stats.asked("known", len(found))
        self._stats.asked("unknown", len(questions) - len(found))
        return _encode(found)
