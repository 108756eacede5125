"""The front of a queue, kept in memory however long the queue is in the file."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from unjam.runs.machine import QUEUED
from unjam.runs.store.sqlite_rows import Live

#: Runs in a window before further ones wait in the file only; and how many are fetched when it is empty.
WIDE: Final = 4096
FETCH: Final = 1024
#: Below every place.
_NOTHING: Final = -(1 << 62)


class Window:
    """All waiting runs of a queue with a `place` up to `bound`; all of them when that is None. Those that have left the
    queue, or moved in it, are passed over when they come up."""

    __slots__ = ("_heap", "bound")

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self.bound: int | None = _NOTHING

    def add(self, live: Live) -> None:
        """One that waits from now on. It is windowed, or left to be fetched."""
        live.windowed = self.bound is None or live.place <= self.bound
        if live.windowed:
            heappush(self._heap, (live.place, live.run.id))

    def add_newest(self, live: Live) -> None:
        """Add one behind all others."""
        if self.bound is None and len(self._heap) >= WIDE:
            self.bound = live.place - 1
        self.add(live)

    def fetched(self, lives: list[Live]) -> None:
        """The next ones, in order; fewer than `FETCH`: the last."""
        self.bound = lives[-1].place if len(lives) == FETCH else None
        for live in lives:
            live.windowed = True
            heappush(self._heap, (live.place, live.run.id))

    def front(self, lives: dict[str, Live], most: int) -> list[Live]:
        """The first ones, in order, which stay; fewer than `most`: there are no more, or more are to be fetched."""
        found: list[Live] = []
        while len(found) < most and (live := self.head(lives)) is not None:
            heappop(self._heap)
            if live not in found[-1:]:
                found.append(live)
        for live in found:
            heappush(self._heap, (live.place, live.run.id))
        return found

    def head(self, lives: dict[str, Live]) -> Live | None:
        """The first one, which stays. None: there is none, or (by `bound`) more are to be fetched."""
        while self._heap:
            place, run = self._heap[0]
            live = lives.get(run)
            if live is not None and live.run.status == QUEUED and live.place == place:
                return live
            heappop(self._heap)
        return None
