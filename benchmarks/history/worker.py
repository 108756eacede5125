"""A worker under test: the SDK's, with each call it makes recorded before and after. Killed at any moment, its records
are in its file.

    python -m benchmarks.history.worker --target URL [--target URL] --service NAME --name NAME --records FILE
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from unjam.runs.model import Appended, Beat, NewEvent
from unjam.runs.store.base import Fenced, StoreAway, StoreError, UnknownRun
from unjam.runs.store.redis import RedisStore
from unjam.worker import HttpLink, Job, Link, Run, RunError, StoreLink, Worker

from .records import Book, Claimed, Mark, Said

#: Type of the events that the work shows.
STEP = "step"


class Given(msgspec.Struct):
    """What a run is to do: `steps`, `pause` seconds after each; `save` after every so many, 0: never; `fail` after the
    last."""

    steps: int
    pause: float
    save: int = 0
    fail: bool = False


class Saved(msgspec.Struct):
    """A checkpoint: who saved it, and the step to go on with."""

    fence: int
    step: int


_saved = msgspec.json.Decoder(Saved).decode
_mark = msgspec.json.Decoder(Mark).decode


def _place(checkpoint: bytes | None) -> tuple[int, int] | None:
    if checkpoint is None:
        return None
    saved = _saved(checkpoint)
    return saved.fence, saved.step


class RecordingLink:
    """A link that writes down what goes over it."""

    def __init__(self, inner: Link, who: str, book: Book) -> None:
        self._inner = inner
        self._who = who
        self._book = book

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    def interrupt(self) -> None:
        self._inner.interrupt()

    async def claim(self, wait: float) -> Job | None:
        begin = monotonic()
        job = await self._inner.claim(wait)
        if job is not None:
            place = _place(job.checkpoint)
            self._book.write(Claimed(self._who, job.run, job.fence, job.attempt, begin, monotonic(), place))
        return job

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        said = self._said("append", run, fence, batch=batch, events=_marks(events))
        answer = await self._told(said, self._inner.append(run, fence, batch, events))
        return answer  # type: ignore[no-any-return]

    async def heartbeat(self, run: str, fence: int, checkpoint: bytes | None, number: int = 0) -> Beat:
        said = self._said("heartbeat", run, fence, checkpoint=_place(checkpoint))
        answer = await self._told(said, self._inner.heartbeat(run, fence, checkpoint, number))
        return answer  # type: ignore[no-any-return]

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        result: bytes | None,
        error: bytes | None,
        batch: int | None,
        events: Sequence[NewEvent],
    ) -> None:
        said = self._said("finish", run, fence, status=status, batch=batch, events=_marks(events))
        await self._told(said, self._inner.finish(run, fence, status, result, error, batch, events))

    async def release(self, run: str, fence: int, checkpoint: bytes | None) -> None:
        said = self._said("release", run, fence, checkpoint=_place(checkpoint))
        await self._told(said, self._inner.release(run, fence, checkpoint))

    async def inputs(self, run: str, after: int) -> list[tuple[int, bytes]]:
        return await self._inner.inputs(run, after)

    def _said(self, verb: str, run: str, fence: int, **more: Any) -> Said:
        said = Said(self._who, self._book.next_id(), verb, run, fence, monotonic(), **more)
        self._book.write(said)
        return said

    async def _told(self, said: Said, asking: Any) -> Any:
        """Cancelled, or away: nobody knows, and the record stays as it was."""
        try:
            answer = await asking
        except StoreAway:
            raise
        except (Fenced, UnknownRun):
            self._answered(said, outcome="fenced")
            raise
        except StoreError:
            self._answered(said, outcome="refused")
            raise
        if isinstance(answer, Appended):
            self._answered(said, outcome="ok", first=answer.first, next=answer.next)
        else:
            self._answered(said, outcome="ok")
        return answer

    def _answered(self, said: Said, **more: Any) -> None:
        self._book.write(msgspec.structs.replace(said, end=monotonic(), **more))


def _marks(events: Sequence[NewEvent]) -> tuple[Mark, ...]:
    return tuple(_mark(event.data) for event in events)


def link_to(targets: Sequence[str], service: str, name: str, lease: float) -> Link:
    """Over HTTP, or straight to a Redis."""
    if targets[0].startswith("redis"):
        return StoreLink(RedisStore(targets[0]), (service,), name, lease=lease, own=True)
    return HttpLink(targets, (service,), name)


async def work(run: Run) -> object:
    """Show each step that isn't saved yet."""
    given = msgspec.convert(run.input, Given)
    done = 0 if run.checkpoint is None else msgspec.convert(run.checkpoint, Saved).step
    by = f"{run.id}:{run.fence}"
    for n, step in enumerate(range(done, given.steps), start=1):
        await run.emit(STEP, Mark(by, n, step, fence=run.fence))
        await asyncio.sleep(given.pause)
        if given.save and (step + 1) % given.save == 0:
            await run.save(Saved(run.fence, step + 1))
    if given.fail:
        raise RunError("asked_to_fail", "as it was asked to")
    return {"fence": run.fence}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--lease", type=float, default=3.0, help="where it has a store for itself")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    book = Book(given.records)
    link = RecordingLink(link_to(given.target, given.service, given.name, given.lease), given.name, book)
    worker = Worker(link, service=given.service, slots=given.slots, name=given.name, grace=1.0)
    worker.run(work)
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
