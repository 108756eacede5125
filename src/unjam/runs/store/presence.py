"""Which workers are there: in memory, for the stores that one process owns."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from unjam.runs.model import WorkerInfo
from unjam.runs.store.base import LARGEST_WORD, MOST_WORKERS, TooLarge, Workers


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
