"""The planted bug: a store that doesn't look at fences. What checks histories has to find it.

python -m benchmarks.history.planted CONFIG      a gateway with such a store, in memory
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unjam.runs.machine import RUNNING
from unjam.runs.model import Appended, NewEvent, Settled
from unjam.runs.store.base import Fenced
from unjam.runs.store.memory import MemoryStore


class Unfenced(MemoryStore):
    """Whoever had a run once may go on with it as long as it runs."""

    def _owned(self, run: str, fence: int) -> Any:
        held = self._get(run)
        if held.run.status != RUNNING:
            raise Fenced(f"{run} is {held.run.status}")
        return held

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        return await super().append(run, fence, self._batch(run, fence, batch), events)

    async def finish(self, run: str, fence: int, status: str, *, batch: int | None = None, **more: Any) -> Settled:
        if batch is not None:
            batch = self._batch(run, fence, batch)
        return await super().finish(run, fence, status, batch=batch, **more)

    def _batch(self, run: str, fence: int, batch: int) -> int:
        held = self._get(run)
        return batch if held.run.fence == fence else held.batch + 1


def main() -> int:
    from unjam.cli.serve import Choices, run
    from unjam.gateway import durable

    durable.make = lambda url, on_warning, lease: Unfenced()  # type: ignore[assignment]
    return run(Choices(config=Path(sys.argv[1])), os.environ)


if __name__ == "__main__":
    sys.exit(main())
