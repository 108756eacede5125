"""One claimed run from the claim to its end: signs of life, events, checkpoints, and one of finish, release or neither.

The function that does the work runs beside it (`Call`) and is told to stop by `stopped`; `reason` says why. What ends
the run is decided here, once:

- the function returned: `completed`, with the events that were still on their way, in one call;
- it raised: `failed`, with an error that gives nothing away but the exception's name, unless it raised `RunError`;
- the run was cancelled: `cancelled`, with what it returned, if it did;
- the worker shuts down: handed back, with the last checkpoint;
- it could not be begun here: handed back, and the worker claims nothing for a while;
- the run is another's by now (fenced), or its process died: nothing is said. The lease tells.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from unjam.http.gateways import Backoff, pause
from unjam.runs.model import NewEvent
from unjam.runs.store.base import LARGEST, Fenced, StoreAway, StoreError, UnknownRun
from unjam.worker.link import Job, Link, Refused
from unjam.worker.outbox import Outbox

#: Seconds that a function which was stopped because the worker ends has before its run is handed back all the same.
LINGER: Final = 5.0
#: Seconds between two attempts to reach a store that is away; less where leases are short.
MOST_PAUSE: Final = 10.0
#: Seconds for which a refusal that may pass is taken for no answer.
DOUBT: Final = 120.0

log = logging.getLogger("unjam.worker")

T = TypeVar("T")

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_TYPE = re.compile(r"[A-Za-z0-9_.:/-]{1,64}\Z")
_MOST_MESSAGE: Final = 2000
_MOST_DETAIL: Final = 32768


class RunError(Exception):
    """Raise it to end a run as failed with an error that its client shall see. `code`: snake_case; `detail`: more that
    is JSON, at most 32 KiB: in place of what is larger the client is told its size, and of what is no JSON its type. Of
    any other exception the client sees only that there was one."""

    def __init__(self, code: str, message: str, **detail: object) -> None:
        if not _CODE.match(code):
            raise ValueError(f"{code!r} is no code: give snake_case of up to 64 characters")
        super().__init__(message)
        self.code = code
        # Names of files may hold what is no text.
        self.message = message[:_MOST_MESSAGE].encode("utf-8", "replace").decode()
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.code, self.message, self._plain())

    def encode(self) -> bytes:
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if detail := self._plain():
            size = len(msgspec.json.encode(detail))
            body["detail"] = detail if size <= _MOST_DETAIL else {"left_out": size}
        return msgspec.json.encode(body)

    def _plain(self) -> dict[str, object]:
        """`detail` as JSON has it."""
        plain: dict[str, object] = {}
        for name, value in self.detail.items():
            try:
                plain[name] = msgspec.json.decode(msgspec.json.encode(value))
            except Exception:  # noqa: BLE001 - the end of the run must not hang on what is said beside it
                plain[name] = {"not_json": type(value).__name__}
        return plain


def _remade(code: str, message: str, detail: dict[str, object]) -> RunError:
    return RunError(code, message, **detail)


class RunStopped(BaseException):
    """The run is over for this worker: cancelled, handed back, or another's. Like asyncio's own CancelledError no
    `except Exception` catches it. Clean up and let it pass."""


class Reason(enum.Enum):
    """Why a run's function is stopped."""

    CANCELLED = "it was cancelled"
    HANDED_BACK = "its worker shuts down"
    FENCED = "it is another worker's by now, or has ended"
    REFUSED = "what it said was refused"


@dataclass(frozen=True, slots=True)
class Returned:
    """`value`: JSON; None for nothing."""

    value: bytes | None


@dataclass(frozen=True, slots=True)
class Raised:
    """`error`: for the client. `trace`: for the worker's log."""

    error: RunError
    trace: str = ""


class Stopped:
    """It stopped because it was to."""


@dataclass(frozen=True, slots=True)
class Died:
    """Its process ended under it, in words."""

    why: str


@dataclass(frozen=True, slots=True)
class Unbegun:
    """There was no process or thread for it to begin in, in words."""

    why: str


Outcome = Returned | Raised | Stopped | Died | Unbegun
#: Runs the function, and sees to it that it stops once `stopped` is set.
Call = Callable[["Session"], Awaitable[Outcome]]


def encode(value: object) -> bytes:
    """Raises TypeError for what is no JSON, ValueError for what no store takes."""
    data = msgspec.json.encode(value)
    if len(data) > LARGEST:
        raise ValueError(f"{len(data)} bytes of JSON; at most {LARGEST} can be kept")
    return data


def returned(value: object) -> Outcome:
    """What a function gave back, for the log."""
    if value is None:
        return Returned(None)
    try:
        data = msgspec.json.encode(value)
        if len(data) > LARGEST:
            words = f"the result has {len(data)} bytes; at most {LARGEST} can be kept"
            return Raised(RunError("result_too_large", words), words)
        return Returned(data)
    except (TypeError, ValueError, RecursionError) as error:
        return Raised(RunError("bad_result", "what the worker returned is not JSON"), f"{error}")


def new_event(kind: str, data: object) -> NewEvent:
    """Raises ValueError for a type that is none of a user's, TypeError for data that is no JSON."""
    if not _TYPE.match(kind) or kind.startswith("run."):
        raise ValueError(f"{kind!r} is no event type: up to 64 letters, digits and _.:/-, and run.* is taken")
    return NewEvent(kind, encode(data))


class Session:
    """`gave_up`: set when the worker ends and no call may be tried again. `draining`: set while the worker shuts down,
    when the next `save` hands the run back."""

    def __init__(self, link: Link, job: Job, gave_up: asyncio.Event | None = None) -> None:
        self.job = job
        self.reason: Reason | None = None
        self.stopped = asyncio.Event()
        self.draining = asyncio.Event()
        #: Nothing of it was done, for want of what it takes.
        self.unbegun = False
        #: What its function raised, with all its lines; empty where one says it all.
        self.trace = ""
        self._link = link
        self._gave_up = gave_up or asyncio.Event()
        self._over = asyncio.Event()
        self._checkpoint: bytes | None = None
        self._refusal: StoreError | None = None
        self._rest: tuple[int | None, list[NewEvent]] | None = None
        self._saving = asyncio.Lock()
        self._saves = 0
        self._away = False
        self._outbox = Outbox(self._append, self._why_stopped)
        self._began = asyncio.get_running_loop().time()

    @property
    def stopping(self) -> bool:
        return self.draining.is_set()

    # -- what the function asks for ---------------------------------------------------------------------------------

    async def emit(self, event: NewEvent) -> None:
        """Raises RunStopped once nothing can be said any more."""
        await self._outbox.put(event)

    async def save(self, checkpoint: bytes) -> bool:
        """After all events before it. While the worker shuts down this is where the run is handed back: True then, and
        the function is to stop here. Raises RunStopped."""
        await self._outbox.flush()
        async with self._saving:
            if self.reason is Reason.FENCED or self._over.is_set():
                raise self._why_stopped()
            if self.reason is Reason.HANDED_BACK:
                self._checkpoint = checkpoint
                return False
            if self.stopping and self.reason is None:
                self._checkpoint = checkpoint
                self.stop(Reason.HANDED_BACK)
                return True
            try:
                await self._beat(checkpoint)
            except (Fenced, UnknownRun):
                raise self._why_stopped() from None
            except StoreError as error:
                self._refuse(error)
                raise self._why_stopped() from None
            return False

    async def inputs(self, after: int, wait: float = 0.0) -> list[tuple[int, bytes]]:
        """As soon as there are any; none after `wait` seconds, or before. Raises RunStopped, also while it waits."""
        asked = asyncio.ensure_future(self._insist(lambda: self._link.inputs(self.job.run, after, wait)))
        stopped = asyncio.create_task(self.stopped.wait())
        try:
            await asyncio.wait((asked, stopped) if wait else (asked,), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise self._why_stopped()
            return asked.result()
        except StoreError as error:
            self._refuse(error)
            raise self._why_stopped() from None
        finally:
            stopped.cancel()
            asked.cancel()

    def stop(self, reason: Reason) -> None:
        """The first reason stays, but for one: what is another's is neither finished nor handed back."""
        if self.reason is None or reason is Reason.FENCED:
            self.reason = reason
        self.stopped.set()

    # -- its life ----------------------------------------------------------------------------------------------------

    async def live(self, call: Call) -> str:
        """To the end of the run, or of our part in it; what became of it, in words."""
        beats = asyncio.create_task(self._beat_on())
        try:
            outcome = await self._outcome(call)
            try:
                return await self._end(outcome)
            except (Fenced, UnknownRun):
                return f"stopped: {Reason.FENCED.value}"
            except StoreAway as error:
                return f"given up ({error}): it goes on elsewhere when its lease ends"
        finally:
            self._over.set()
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)

    @property
    def seconds(self) -> float:
        """Since the claim."""
        return asyncio.get_running_loop().time() - self._began

    @property
    def events(self) -> int:
        """In the log by now."""
        return self._outbox.sent

    async def _outcome(self, call: Call) -> Outcome:
        """A function that doesn't stop holds its slot; but not the end of the worker."""
        if self.stopped.is_set():
            return Stopped()
        running = asyncio.ensure_future(call(self))
        gave_up = asyncio.create_task(self._gave_up.wait())
        try:
            await asyncio.wait((running, gave_up), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await asyncio.wait((running,), timeout=LINGER)
            if running.done():
                return running.result()
            return Stopped()
        finally:
            gave_up.cancel()
            if not running.done():
                running.cancel()

    async def _end(self, outcome: Outcome) -> str:
        if isinstance(outcome, Died):
            try:
                await self._outbox.flush()
            except RunStopped:
                pass
            return f"lost: {outcome.why}; it is tried again when its lease ends"
        try:
            return await self._say_end(outcome)
        except (Fenced, UnknownRun, StoreAway):
            raise
        except StoreError as error:
            if isinstance(error, Refused) and error.passing:
                raise StoreAway(str(error)) from None
            # The end itself is refused, by its size as a rule.
            return await self._end_refused(error)

    async def _end_refused(self, error: StoreError) -> str:
        code = "result_too_large" if error.code == "payload_too_large" else _code(error.code)
        refusal = RunError(code, f"{error}")
        for _ in range(2):
            try:
                return await self._finish("failed", error=refusal, trace=refusal.message)
            except (Fenced, UnknownRun, StoreAway):
                raise
            except StoreError:
                # Then it is the last events that are refused.
                self._rest = (None, [])
        return f"given up ({error}): it is tried again when its lease ends"

    async def _say_end(self, outcome: Outcome) -> str:
        if self.reason is Reason.FENCED:
            raise Fenced
        if isinstance(outcome, Unbegun):
            self.unbegun = True
            return f"not begun ({outcome.why}): {await self._release()}"
        if self.reason is Reason.HANDED_BACK and not isinstance(outcome, Returned):
            return await self._release()
        if self.reason is Reason.REFUSED:
            assert self._refusal is not None
            error = RunError(_code(self._refusal.code), f"{self._refusal}")
            return await self._finish("failed", error=error, trace=error.message)
        if self.reason is Reason.CANCELLED:
            result = outcome.value if isinstance(outcome, Returned) else None
            return await self._finish("cancelled", result=result)
        if isinstance(outcome, Raised):
            return await self._finish("failed", error=outcome.error, trace=outcome.trace)
        if isinstance(outcome, Returned):
            return await self._finish("completed", result=outcome.value)
        # Stopped without a reason: it stopped itself.
        return await self._finish("failed", error=RunError("worker_error", "the worker stopped by itself"))

    async def _finish(
        self, status: str, *, result: bytes | None = None, error: RunError | None = None, trace: str = ""
    ) -> str:
        job = self.job
        if self._rest is None:
            self._rest = await self._outbox.close()
        batch, events = self._rest
        body = None if error is None else error.encode()
        await self._insist(lambda: self._link.finish(job.run, job.fence, status, result, body, batch, events))
        self._outbox.sent += len(events)
        if error is None:
            return status
        words = trace.rstrip().rpartition("\n")[2]
        if words != trace:
            self.trace = trace.rstrip()
        return f"{status} ({error.code}{': ' if words else ''}{words})"

    async def _release(self) -> str:
        job, checkpoint = self.job, self._checkpoint
        try:
            await self._outbox.flush()
        except RunStopped:
            if self.reason is Reason.FENCED:
                raise Fenced from None
        await self._outbox.close()
        await self._insist(lambda: self._link.release(job.run, job.fence, checkpoint))
        return "handed back"

    # -- to the store ------------------------------------------------------------------------------------------------

    async def _append(self, batch: int, events: list[NewEvent]) -> None:
        job = self.job
        try:
            appended = await self._insist(lambda: self._link.append(job.run, job.fence, batch, events))
        except StoreError as error:
            self._refuse(error)
            raise
        if appended.cancel:
            self.stop(Reason.CANCELLED)

    async def _beat(self, checkpoint: bytes | None) -> None:
        job = self.job
        if checkpoint is not None:
            self._saves += 1
        number = self._saves
        beat = await self._insist(lambda: self._link.heartbeat(job.run, job.fence, checkpoint, number))
        if beat.cancel:
            self.stop(Reason.CANCELLED)

    async def _beat_on(self) -> None:
        while not self._over.is_set():
            try:
                await pause(self.job.lease / 3, self._over)
                if not self._over.is_set():
                    await self._beat(None)
            except StoreError as error:
                self._refuse(error)
                return
            except Exception:
                # The run is well as long as signs of life come: the next one may.
                log.exception(f"{self.job.run}: a sign of life failed; it is tried again")

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Until it is answered, whatever the answer: also while the store is away, for as long as that takes."""
        # Whatever the store asks for: one that is back finds the lease run out if it hears of us too late.
        most = min(MOST_PAUSE, self.job.lease / 6)
        backoff = Backoff(most=most)
        clock = asyncio.get_running_loop().time
        doubt = clock() + DOUBT
        while True:
            try:
                answer = await attempt()
            except (StoreAway, Refused) as error:
                if self._gave_up.is_set() or (isinstance(error, Refused) and not (error.passing and clock() < doubt)):
                    raise
                if not self._away:
                    log.warning(f"{self.job.run}: {error}; trying again")
                    self._away = True
                at_least = error.retry_after if isinstance(error, StoreAway) else 0.0
                await pause(min(backoff.next(at_least), most), self._gave_up)
            except (Fenced, UnknownRun):
                self.stop(Reason.FENCED)
                raise
            else:
                self._away = False
                return answer

    def _refuse(self, error: StoreError) -> None:
        if not isinstance(error, Fenced | UnknownRun | StoreAway):
            self._refusal = self._refusal or error
            self.stop(Reason.REFUSED)

    def _why_stopped(self) -> RunStopped:
        return RunStopped(self.reason.value if self.reason is not None else "it has ended")


def _code(code: str) -> str:
    return code if _CODE.match(code) else "refused"
