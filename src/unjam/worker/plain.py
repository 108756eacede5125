"""What a plain function is given, and how one runs in a thread: of this process, or of one of its own (`processes`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from time import monotonic
from typing import Protocol, TypeVar

import msgspec

from unjam.runs.model import NewEvent
from unjam.worker.link import Job
from unjam.worker.run import HELD, LOOK, Facts, Input, raised
from unjam.worker.session import (
    Call,
    Outcome,
    Raised,
    RunError,
    RunStopped,
    Session,
    Stopped,
    Unbegun,
    encode,
    new_event,
    returned,
)

T = TypeVar("T")


class Port(Protocol):
    """A plain function's line to its `Session`. All but `stopped` and `stopping` wait."""

    @property
    def job(self) -> Job: ...

    @property
    def stopped(self) -> threading.Event: ...

    @property
    def stopping(self) -> bool: ...

    def emit(self, event: NewEvent) -> None: ...

    def save(self, checkpoint: bytes) -> bool: ...

    def inputs(self, after: int) -> list[tuple[int, bytes]]: ...


class PlainRun(Facts):
    """One run in the hands of a plain function. When the run is to stop, the next `emit`, `save` or turn of `inputs`
    raises `RunStopped`, once; a function that calls none of them for long looks at `cancelled`."""

    def __init__(self, port: Port) -> None:
        super().__init__(port.job)
        self._port = port
        self._told = False

    @property
    def cancelled(self) -> bool:
        """The run is to stop, whatever the reason."""
        return self._port.stopped.is_set()

    @property
    def stopping(self) -> bool:
        """The worker shuts down: the next `save` hands the run back, and another worker goes on from there."""
        return self._port.stopping

    def emit(self, kind: str, data: object = None) -> None:
        """Add an event to the run's log; its followers see it at once. Returns when it is on its way, and waits only
        while much is. ValueError for a `kind` that is no event type, TypeError for `data` that is no JSON."""
        event = new_event(kind, data)
        self._stop_if_due()
        self._port.emit(event)

    def save(self, checkpoint: object) -> None:
        """Remember how far it has come, once all events before are in the log. An attempt after this one begins with
        it. TypeError for what is no JSON."""
        data = encode(checkpoint)
        self._stop_if_due()
        if self._port.save(data):
            self._told = True
            raise RunStopped("its worker shuts down")

    def inputs(self, after: int = 0) -> Iterator[Input]:
        """What is sent to the run, as it comes; those with numbers above `after`. Never ends by itself."""
        while True:
            self._stop_if_due()
            began = monotonic()
            found = self._port.inputs(after)
            for after, data in found:
                yield Input(after, msgspec.json.decode(data))
            if not found and monotonic() - began < LOOK:  # it wasn't held
                self._port.stopped.wait(LOOK)

    def _stop_if_due(self) -> None:
        if self.cancelled and not self._told:
            self._told = True
            raise RunStopped("it is to stop")


def perform(function: Callable[[PlainRun], object], port: Port) -> Outcome:
    """Runs the function, in the thread that calls this."""
    try:
        return returned(function(PlainRun(port)))
    except RunError as error:
        return Raised(error)
    except RunStopped:
        return Stopped()
    except BaseException as error:  # noqa: BLE001 — SystemExit too, which would end the thread and tell nobody
        return raised(error)


class _ThreadPort:
    def __init__(self, session: Session) -> None:
        self.job = session.job
        self.stopped = threading.Event()
        self._session = session
        self._loop = asyncio.get_running_loop()

    @property
    def stopping(self) -> bool:
        return self._session.stopping

    def emit(self, event: NewEvent) -> None:
        self._wait(self._session.emit(event))

    def save(self, checkpoint: bytes) -> bool:
        return self._wait(self._session.save(checkpoint))

    def inputs(self, after: int) -> list[tuple[int, bytes]]:
        return self._wait(self._session.inputs(after, HELD))

    def _wait(self, asked: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()


def in_thread(function: Callable[[PlainRun], object]) -> Call:
    """How to call a plain function: each run in a thread of its own. One that doesn't stop holds its slot; the end of
    the process doesn't wait for it."""

    async def call(session: Session) -> Outcome:
        loop = asyncio.get_running_loop()
        port = _ThreadPort(session)
        done: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not done.done():
                done.set_result(outcome)

        def work() -> None:
            outcome = perform(function, port)
            try:
                loop.call_soon_threadsafe(settle, outcome)
            except RuntimeError:
                # The loop has ended: nobody waits.
                pass

        stopped = asyncio.create_task(session.stopped.wait())
        try:
            try:
                threading.Thread(target=work, name=session.job.run, daemon=True).start()
            except RuntimeError as error:
                return Unbegun(f"no thread can be started: {error}")
            await asyncio.wait((done, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                port.stopped.set()
            return await done
        finally:
            port.stopped.set()
            stopped.cancel()

    return call
