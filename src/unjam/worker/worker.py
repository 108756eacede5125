"""The worker: claims as many runs as it has slots, sees each to its end, and leaves without losing one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, cast, overload

from unjam.http.gateways import Backoff, pause
from unjam.runs.store.base import LEASE, Store, StoreAway, StoreError
from unjam.worker.http_link import HttpLink
from unjam.worker.link import Job, Link
from unjam.worker.measure import Meter, supported
from unjam.worker.plain import PlainRun, in_thread
from unjam.worker.processes import Processes
from unjam.worker.run import Run, coroutine
from unjam.worker.session import LINGER, Call, Reason, Session
from unjam.worker.store_link import StoreLink

#: Seconds a claim is held while there is nothing to do: less than what is between cuts silent connections after.
WAIT: Final = 12.0
#: Seconds that runs have to end, or to come to a `save`, when the worker is to leave.
GRACE: Final = 20.0
#: Seconds for handing back what has not ended by then.
FAREWELL: Final = LINGER + 3.0
#: Seconds between two claims that came back empty at once.
_BREATH: Final = 0.5

#: Seconds that what still runs then has, before the process ends all the same.
LAST: Final = 2.0

_NAME: Final = re.compile(r"[!-~]{1,128}\Z")

log = logging.getLogger("unjam.worker")

Coroutine = TypeVar("Coroutine", bound=Callable[[Run], Awaitable[object]])
Plain = TypeVar("Plain", bound=Callable[[PlainRun], object])


def check_name(name: str) -> None:
    """Raises ValueError for what no gateway takes."""
    if not _NAME.match(name):
        raise ValueError(f"the name {name[:40]!r} won't do: give up to 128 visible ASCII characters, and no spaces")


class Worker:
    """`target`: URL of a gateway, or of several that share a store; `redis://…` (`rediss`, `redis+sentinel`,
    `redis+cluster`) for a store itself; or a `Store` or `Link`, opened by the worker only when it is a link.
    `service`: whose runs it claims. `slots`: how many at once. `lanes`: of which lanes, in this order.
    `processes`: plain functions run in processes of their own and not in threads. `key`: of the role worker, for
    gateways that have keys; `UNJAM_KEY` of the environment when not given. `ca`: file of certificates to trust for
    https. `grace`: seconds that runs have to end when the worker is to leave. `lease`: seconds without a sign of life
    after which another worker takes over; a gateway has its own. `name`: shown as the run's worker. `version`: of the
    service, that this program is: runs that it begins go on with workers of the same. `report_load`: tell how busy the
    machine is; None: where it can be read, on Linux.

    ValueError for what can't be meant."""

    def __init__(
        self,
        target: str | Sequence[str] | Store | Link,
        *,
        service: str | Sequence[str],
        slots: int = 1,
        lanes: Sequence[str] | None = None,
        processes: bool = False,
        key: str | None = None,
        ca: str | None = None,
        grace: float = GRACE,
        lease: float = LEASE,
        name: str | None = None,
        version: str | None = None,
        report_load: bool | None = None,
    ) -> None:
        self.services = (service,) if isinstance(service, str) else tuple(service)
        if not self.services or not all(self.services):
            raise ValueError("name a service at least")
        if slots < 1:
            raise ValueError(f"slots is {slots}: it must be at least 1")
        if version is not None and not version:
            raise ValueError("version is empty: name one, or none")
        if lanes is not None and not lanes:
            raise ValueError("name a lane at least, or none for all")
        if name is not None:
            check_name(name)
        self.target = target
        self.slots = slots
        self.grace = grace
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.version = version
        self._meter = Meter() if (supported() if report_load is None else report_load) else None
        self._lanes = lanes
        self._processes = processes
        self._key = key
        self._ca = ca
        self._lease = lease
        self._function: Callable[..., object] | None = None
        self._pool: Processes | None = None
        self._leave: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None
        self._link: Link | None = None
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        #: Nothing is claimed before that time of the loop: the last run could not be begun here.
        self._unfit = Backoff(first=1.0, most=30.0)
        self._unfit_until = 0.0

    @overload
    def run(self, function: Coroutine) -> Coroutine: ...

    @overload
    def run(self, function: Plain) -> Plain: ...

    def run(self, function: Callable[..., object]) -> Callable[..., object]:
        """Decorator of the function that does the work. A coroutine function is given a `Run`, a plain one a `PlainRun`
        and a thread or process. What it returns is the run's result, as JSON."""
        if self._function is not None:
            raise ValueError("a worker has one function; `run.service` tells it whose run it has")
        if self._processes and inspect.iscoroutinefunction(function):
            raise ValueError("processes are for plain functions: write `def`, or leave `processes` away")
        self._function = function
        return function

    def main(self) -> int:
        """Work until SIGTERM or ctrl-C, and leave without losing a run; a second one leaves at once. The exit code: 0,
        or 1 when it can't begin. Sets up logging unless that was done."""
        logging.basicConfig(format="%(asctime)s unjam worker: %(message)s", level=logging.INFO, stream=sys.stderr)
        ended = threading.Event()
        try:
            asyncio.run(self._with_signals(ended))
        except (ValueError, StoreError) as error:
            log.error(str(error))
            return 1
        finally:
            ended.set()
        return 0

    async def _with_signals(self, ended: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            await self.serve()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        # The loop ends when its tasks and threads do; but its runs are not theirs any more.
        threading.Thread(target=_end, args=(ended,), daemon=True).start()

    def stop(self) -> None:
        """Claim nothing more. Runs go on until they end or come to a `save`, for `grace` seconds; then, or when called
        again, they are stopped and handed back. From the loop that it serves on."""
        if self._leave is None or self._hurry is None:
            return
        if self._leave.is_set():
            self._hurry.set()
            return
        log.info(f"leaving: {len(self._sessions)} runs go on for {self.grace:g} s")
        self._leave.set()
        if self._link is not None:
            self._link.interrupt()
        for session in self._sessions:
            session.draining.set()

    async def serve(self) -> None:
        """Claim and work until `stop`. Cancelled, it leaves at once: its runs are left to their leases. Raises
        StoreError for a store that can't be used, ValueError for a target or function that can't."""
        if self._leave is not None:
            raise ValueError("this worker serves already")
        call = self._call()
        self._leave, self._hurry = leave, hurry = asyncio.Event(), asyncio.Event()
        self._link = link = self.link()
        try:
            if self._pool is not None:
                await self._pool.open()
            if not await self._open(link):
                return
            slots = f"{self.slots} slot{'' if self.slots == 1 else 's'}"
            log.info(f"{self.name} works for {', '.join(self.services)} with {slots}")
            claiming = asyncio.create_task(self._claim(link, call))
            waiting = asyncio.create_task(leave.wait())
            try:
                await asyncio.wait((claiming, waiting), return_when=asyncio.FIRST_COMPLETED)
                await claiming
                await self._drain(hurry)
            finally:
                for task in (claiming, waiting, *self._sessions.values()):
                    task.cancel()
                await asyncio.gather(claiming, waiting, *self._sessions.values(), return_exceptions=True)
        finally:
            await link.close()
            if self._pool is not None:
                await self._pool.close()
            self._leave = self._hurry = self._link = self._pool = None

    def link(self) -> Link:
        """A new line to the target. ValueError for what is none."""
        target, lanes = self.target, ("fast", "heavy") if self._lanes is None else self._lanes
        if hasattr(target, "interrupt"):
            return cast(Link, target)
        if hasattr(target, "create"):
            return StoreLink(
                cast(Store, target), self.services, self.name, lanes=lanes, lease=self._lease, standing=self
            )
        urls = [target] if isinstance(target, str) else list(target)
        if len(urls) == 1 and urls[0].partition(":")[0] in ("redis", "rediss", "redis+sentinel", "redis+cluster"):
            from unjam.runs.store.redis import RedisStore

            return StoreLink(
                RedisStore(urls[0], on_warning=log.warning),
                self.services,
                self.name,
                lanes=lanes,
                lease=self._lease,
                own=True,
                standing=self,
            )
        key = self._key if self._key is not None else os.environ.get("UNJAM_KEY") or None
        return HttpLink(urls, self.services, self.name, lanes=self._lanes, key=key, ca=self._ca, standing=self)

    @property
    def running(self) -> int:
        """Runs that it has now."""
        return len(self._sessions)

    def load(self) -> dict[str, float] | None:
        """How busy its machine is, by the names of a load report; None where that isn't told."""
        return None if self._meter is None else self._meter.read()

    def _call(self) -> Call:
        if self._function is None:
            raise ValueError("the worker has no function: put @worker.run above one")
        if inspect.iscoroutinefunction(self._function):
            return coroutine(self._function)
        if not self._processes:
            return in_thread(self._function)
        self._pool = Processes(self._function)
        return self._pool.call

    async def _open(self, link: Link) -> bool:
        """False when the worker was stopped before that was done."""
        assert self._leave is not None
        backoff = Backoff()
        while not self._leave.is_set():
            try:
                await link.open()
            except StoreAway as error:
                log.warning(f"{error}; trying again")
                await pause(backoff.next(error.retry_after), self._leave)
            else:
                return True
        return False

    async def _claim(self, link: Link, call: Call) -> None:
        assert self._leave is not None
        free = asyncio.Semaphore(self.slots)
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        trouble = ""
        while not self._leave.is_set():
            await self._either(free.acquire())
            if self._leave.is_set():
                return
            began = clock()
            if began < self._unfit_until:
                free.release()
                await pause(self._unfit_until - began, self._leave)
                continue
            try:
                job = await link.claim(WAIT)
            except Exception as error:
                free.release()
                if not isinstance(error, StoreError):
                    log.exception("a claim failed; trying again")
                elif str(error) != trouble:
                    trouble = str(error)
                    log.warning(f"{', '.join(self.services)}: {trouble}; trying again")
                at_least = error.retry_after if isinstance(error, StoreAway) else 1.0
                await pause(backoff.next(at_least), self._leave)
                continue
            if trouble:
                log.info("claims are answered again")
            trouble = ""
            backoff.reset()
            if job is not None:
                self._begin(link, job, call, free)
                continue
            free.release()
            if clock() - began < _BREATH:
                await pause(_BREATH, self._leave)

    async def _either(self, wanted: Awaitable[object]) -> None:
        """Returns when `wanted` has happened, or when the worker is to leave."""
        assert self._leave is not None
        tasks = (asyncio.ensure_future(wanted), asyncio.create_task(self._leave.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _begin(self, link: Link, job: Job, call: Call, free: asyncio.Semaphore) -> None:
        session = Session(link, job, self._hurry)
        if self._leave is not None and self._leave.is_set():
            # It came as the worker left: nothing was begun, so nothing is lost by handing it back.
            session.stop(Reason.HANDED_BACK)
        task = asyncio.create_task(self._live(session, call), name=f"unjam-{job.run}")
        self._sessions[session] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._sessions.pop(session, None)
            if session.unbegun:
                # It is at the front of its queue again: others shall have it.
                self._unfit_until = asyncio.get_running_loop().time() + self._unfit.next()
            else:
                self._unfit.reset()
            free.release()

        task.add_done_callback(ended)

    async def _live(self, session: Session, call: Call) -> None:
        job = session.job
        try:
            what = await session.live(call)
        except Exception:
            log.exception(f"{job.run}: the worker itself failed; the run goes on elsewhere when its lease ends")
            return
        told = f"{session.events} event{'' if session.events == 1 else 's'}"
        trace = f"\n{session.trace}" if session.trace else ""
        log.info(f"{job.run} {job.service} attempt {job.attempt}: {what} after {session.seconds:.1f} s, {told}{trace}")

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Returns when every run has ended or was handed back."""
        if await self._ended(self.grace, hurry):
            return
        for session in self._sessions:
            session.stop(Reason.HANDED_BACK)
        # What is away now is not waited for.
        hurry.set()
        await self._ended(FAREWELL)

    async def _ended(self, seconds: float, hurry: asyncio.Event | None = None) -> bool:
        """Whether all have, within that time."""
        if not self._sessions:
            return True
        tasks = asyncio.gather(*self._sessions.values(), return_exceptions=True)
        hurried = asyncio.create_task((hurry or asyncio.Event()).wait())
        try:
            await asyncio.wait((tasks, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return tasks.done()
        finally:
            hurried.cancel()


def _end(ended: threading.Event) -> None:
    """Ends the process unless that comes about by itself."""
    if not ended.wait(LAST):
        log.warning("a function or thread that doesn't stop is ended with the process")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
