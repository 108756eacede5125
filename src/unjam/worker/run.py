"""What a worker's coroutine function is given."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec

from unjam.http.gateways import pause
from unjam.worker.link import Job
from unjam.worker.session import (
    Call,
    Outcome,
    Raised,
    RunError,
    RunStopped,
    Session,
    Stopped,
    encode,
    new_event,
    returned,
)

#: Seconds between two looks for inputs while somebody waits for them, where a look can't be held until there are any;
#: and for how long it is held.
LOOK: Final = 1.0
HELD: Final = 12.0


class Input(NamedTuple):
    """Something that was sent to the run while it ran. `n`: its number, from 1."""

    n: int
    data: Any


class Facts:
    """What is known of a run from its claim on. `attempt`: executions begun, this one among them; `fence`: numbers its
    owners, so a system that the run writes to can refuse the one before. `checkpoint`: what was last saved, None the
    first time."""

    def __init__(self, job: Job) -> None:
        self.id = job.run
        self.service = job.service
        self.lane = job.lane
        self.version = job.version
        self.attempt = job.attempt
        self.fence = job.fence
        self.input: Any = msgspec.json.decode(job.input)
        self.checkpoint: Any = None if job.checkpoint is None else msgspec.json.decode(job.checkpoint)
        self.metadata: Any = None if job.metadata is None else msgspec.json.decode(job.metadata)


class Run(Facts):
    """One run in the hands of a coroutine function. When the run is to stop the function is cancelled as any asyncio
    task: `CancelledError` where it awaits."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.job)
        self._session = session

    @property
    def cancelled(self) -> bool:
        """The run is to stop, whatever the reason."""
        return self._session.stopped.is_set()

    @property
    def stopping(self) -> bool:
        """The worker shuts down: the next `save` hands the run back, and another worker goes on from there."""
        return self._session.stopping

    async def emit(self, kind: str, data: object = None) -> None:
        """Add an event to the run's log; its followers see it at once. Returns when it is on its way, and waits only
        while much is. ValueError for a `kind` that is no event type, TypeError for `data` that is no JSON."""
        await self._session.emit(new_event(kind, data))

    async def save(self, checkpoint: object) -> None:
        """Remember how far it has come, once all events before are in the log. An attempt after this one begins with
        it. TypeError for what is no JSON."""
        if await self._session.save(encode(checkpoint)):
            # Here the run is handed back: the function is being cancelled.
            await asyncio.Event().wait()

    async def inputs(self, after: int = 0) -> AsyncIterator[Input]:
        """What is sent to the run, as it comes; those with numbers above `after`. Never ends by itself."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            found = await self._session.inputs(after, HELD)
            for after, data in found:
                yield Input(after, msgspec.json.decode(data))
            if not found and clock() - began < LOOK:  # it wasn't held
                await pause(LOOK, self._session.stopped)
            if self.cancelled:
                raise RunStopped


def coroutine(function: Callable[[Run], Awaitable[object]]) -> Call:
    """How to call a coroutine function."""

    async def work(run: Run) -> Outcome:
        try:
            return returned(await function(run))
        except RunError as error:
            return Raised(error)
        except RunStopped:
            return Stopped()
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 — SystemExit too: the run fails by it, and no other
            return raised(error)

    async def call(session: Session) -> Outcome:
        try:
            run = Run(session)
        except msgspec.DecodeError as error:
            return raised(error)
        task = asyncio.create_task(work(run), name=session.job.run)
        stopped = asyncio.create_task(session.stopped.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        finally:
            stopped.cancel()
            task.cancel()
        return Stopped() if task.cancelled() else task.result()

    return call


def raised(error: BaseException) -> Raised:
    """The client learns the exception's name and no more: what it says may be a secret."""
    trace = "".join(traceback.format_exception(error))
    name = type(error).__name__
    return Raised(RunError("worker_error", f"the worker failed: {name}"), trace)
