"""A thread that does the jobs of an event loop, in groups: all that came while it did the last ones.

Nothing is waited for to make a group larger: under load they grow by themselves, and a lone job is done at once.
The loop is woken once for a group. Whatever goes wrong with one, its callers are told, and the thread goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from unjam.runs.store.base import StoreAway, StoreError

#: Jobs in a group at most: what bounds how long the first of them waits for the others, and, as the thread holds the
#: interpreter while it decides on them (10 µs each), how long the event loop may have to wait for it.
GROUP: Final = 128


class Job(NamedTuple):
    """`firm`: what it does is to reach the disk before it counts as done."""

    future: asyncio.Future[Any]
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    firm: bool


Jobs = list[Job]


class Done(NamedTuple):
    job: Job
    value: Any
    error: BaseException | None


Answers = list[Done]


class Desk:
    """`serve`: does a group, on the thread. Its answer is handed to `tell` on the loop. `closed`: runs last, on the
    thread."""

    def __init__(
        self,
        name: str,
        serve: Callable[[Jobs], Any],
        tell: Callable[[Any], None],
        closed: Callable[[], None],
    ) -> None:
        self._serve = serve
        self._tell = tell
        self._closed = closed
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., Any], arguments: tuple[Any, ...], firm: bool) -> asyncio.Future[Any]:
        """Raises StoreAway after `close`."""
        if not self._open:
            raise StoreAway("the store is closed")
        future = self._loop.create_future()
        self._jobs.put(Job(future, call, arguments, firm))
        return future

    async def close(self) -> None:
        """Ends the thread, when everything that was submitted is done."""
        if self._open:
            self._open = False
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            job = self._jobs.get()
            group: list[Job] = []
            while job is not None:
                group.append(job)
                if len(group) == GROUP:
                    break
                try:
                    job = self._jobs.get_nowait()
                except Empty:
                    break
            going = job is not None
            if group:
                self._do(group)
        try:
            self._closed()
        finally:
            self._to_loop(self._end)

    def _do(self, group: Jobs) -> None:
        try:
            answer = self._serve(group)
        except Exception as error:  # noqa: BLE001 - what is left undone here would be waited for for ever
            self._to_loop(_fail, group, error)
        else:
            self._to_loop(self._tell, answer)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _to_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            pass  # the loop was closed under us: nobody waits any more


def _fail(group: Jobs, why: Exception) -> None:
    for job in group:
        error = StoreError(f"a fault of the store: {why!r}")
        error.__cause__ = why
        settle(Done(job, None, error))


def settle(done: Done) -> bool:
    """On the loop: give the answer. False: nobody waits for it any more."""
    future = done.job.future
    if future.done():
        return False
    if done.error is None:
        future.set_result(done.value)
    else:
        future.set_exception(done.error)
    return True
