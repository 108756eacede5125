"""Decisions in memory: gone with the process, known to nobody else."""

from __future__ import annotations

from collections import deque

from unjam.kept.base import LOGGED, MOST, Change, checked, is_below


class MemoryKept:
    shared = False

    def __init__(self) -> None:
        self._log: deque[Change] = deque(maxlen=LOGGED)
        self._values: dict[str, Change] = {}
        self._n = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def put(self, *changes: Change) -> int:
        for change, _ in checked(changes, self._n + 1):
            self._log.append(change)
            self._values[change.key] = change
            self._n = change.n
        return self._n

    async def current(self) -> dict[str, Change]:
        return dict(self._values)

    async def history(self, limit: int = 100, before: int | None = None, key: str | None = None) -> list[Change]:
        found: list[Change] = []
        for change in reversed(self._log):
            if len(found) >= min(limit, MOST):
                break
            if (before is None or change.n < before) and is_below(change.key, key):
                found.append(change)
        return found

    async def since(self, n: int) -> list[Change]:
        n = n if n <= self._n else 0
        return [change for change in self._log if change.n > n][:MOST]

    def others(self) -> None:
        return None
