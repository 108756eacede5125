"""What stores that one process owns keep in its memory: which workers are there, and which runs are watched."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from unjam.runs.model import WorkerInfo
from unjam.runs.store.base import LARGEST_WORD, MOST_WORKERS, Hints, TooLarge, Workers


def word(info: WorkerInfo) -> bytes:
    """What is kept of it. Raises TooLarge."""
    encoded = msgspec.json.encode(info)
    if len(encoded) > LARGEST_WORD:
        raise TooLarge(f"{len(encoded)} bytes of one worker; at most {LARGEST_WORD}")
    return encoded


class Presence:
    """`clock`: monotonic seconds. Not for several threads at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._there: dict[str, tuple[float, WorkerInfo]] = {}

    def announce(self, info: WorkerInfo, ttl: float) -> None:
        """Raises TooLarge."""
        word(info)
        if ttl <= 0:
            self._there.pop(info.id, None)
            return
        self._there[info.id] = (self._clock() + ttl, info)
        if len(self._there) > MOST_WORKERS:
            self._forget()
        if len(self._there) > MOST_WORKERS:
            del self._there[min(self._there, key=lambda id_: self._there[id_][0])]

    def workers(self) -> Workers:
        self._forget()
        return [info for _, (_, info) in sorted(self._there.items())]

    def _forget(self) -> None:
        now = self._clock()
        for gone in [id_ for id_, (until, _) in self._there.items() if until <= now]:
            del self._there[gone]


class OwnedStore(Hints):
    """What these stores have in common. `monotonic`: seconds, for how long a worker's word holds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._presence = Presence(monotonic)

    def watch(self, run: str) -> None:
        self._watched.add(run)

    def unwatch(self, run: str) -> None:
        self._watched.discard(run)

    async def announce(self, info: WorkerInfo, ttl: float) -> None:
        self._presence.announce(info, ttl)

    async def workers(self) -> Workers:
        return self._presence.workers()
