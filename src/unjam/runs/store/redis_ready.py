"""Which partitions of a cluster have runs waiting, so that a claim needn't ask all of them.

A cluster can't keep one queue in order without keeping it on one server; so each partition has its own, and its head's
place in the order of creation is known here from the last look at all, from the hints of every enqueueing, and from
what came after each claim. The oldest known head is claimed first: near-FIFO, off by what is newer than `STALE`. None
is answered only after a look at all partitions that began after the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

#: Seconds after which all partitions are looked at again.
STALE = 0.25

#: Asks all partitions: (partition, places by lane; None: nothing waits).
Places = list[tuple[int, list[float | None]]]
Look = Callable[[], Awaitable[Places]]


class Kind(NamedTuple):
    """What a claim is for. `version`: None: any; `known`: other versions that there are; `pinned`: only what is pinned
    to `version`."""

    services: frozenset[str]
    pull: bool
    lanes: tuple[str, ...]
    version: str | None
    known: frozenset[str]
    pinned: bool = False

    def argv(self) -> list[str | int]:
        """What scripts take it by, but for `pull`."""
        if self.version is None:
            wanted: list[str | int] = [-1]
        elif self.pinned:
            wanted = [-2, self.version]
        else:
            wanted = [len(self.known), self.version, *self.known]
        return [*wanted, len(self.lanes), *self.lanes, *self.services]


class Heads:
    """Of the queues that claims of a kind look at."""

    def __init__(self, kind: Kind, look: Look) -> None:
        self.kind = kind
        self._look = look
        self._places: list[dict[int, float]] = [{} for _ in kind.lanes]
        self._begun = 0
        self._finished = 0
        self._at = float("-inf")
        self._waiting = False
        self._task: asyncio.Task[None] | None = None

    @property
    def looking(self) -> bool:
        return self._task is not None and not self._task.done()

    def asked(self) -> int:
        """For `look`: the looks that had begun by now."""
        return self._begun

    async def look(self, asked: int) -> bool:
        """Returns when a look that began after `asked` has ended: whether anything waited. All who ask share it."""
        while self._finished <= asked:
            if self._task is None or self._task.done():
                self._begun += 1
                self._task = asyncio.create_task(self._all(self._begun))
                self._task.add_done_callback(lambda task: None if task.cancelled() else task.exception() and None)
            await asyncio.shield(self._task)
        return self._waiting

    def stale(self) -> bool:
        return asyncio.get_running_loop().time() - self._at > STALE

    def take(self) -> tuple[int, int] | None:
        """Lane and partition of the oldest head of the first lane that has one. It is out until `note`d again."""
        for lane, places in enumerate(self._places):
            if places:
                part = min(places, key=places.__getitem__)
                del places[part]
                return lane, part
        return None

    def note(self, lane: int, part: int, place: float | None) -> None:
        places = self._places[lane]
        if place is not None and place < places.get(part, float("inf")):
            places[part] = place

    def hint(self, pull: bool, lane: str, service: str, part: int, place: float) -> None:
        kind = self.kind
        if kind.pinned:
            return  # hardly any is; to ask each partition in turn would take longer than a look at all of them
        if pull == kind.pull and service in kind.services and lane in kind.lanes:
            self.note(kind.lanes.index(lane), part, place)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _all(self, number: int) -> None:
        found = await self._look()
        for part, places in found:
            for lane, place in enumerate(places):
                self.note(lane, part, place)
        self._waiting = any(place is not None for _, places in found for place in places)
        self._finished = number
        self._at = asyncio.get_running_loop().time()
