"""Plain functions in processes of their own, each kept for one run after another.

What a process is killed for (memory, a crash in a library) costs its run one attempt and the worker nothing. A function
that doesn't stop when it is to is killed. Processes end with the worker, also when that is killed: they see the end of
their pipe. What a function has started of its own ends with its process: each leads a process group.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from unjam.runs.model import NewEvent
from unjam.worker.link import Job
from unjam.worker.plain import PlainRun, perform
from unjam.worker.session import LINGER, Died, Outcome, RunStopped, Session, Stopped, Unbegun

#: Seconds that an idle process has to end; and one that has closed its pipe, to say with which exit code.
FAREWELL: Final = 2.0
ENDING: Final = 0.5

log = logging.getLogger("unjam.worker")

Function = Callable[[PlainRun], object]


# --------------------------------------------------------------------------------------------------- in the process


class _PipePort:
    def __init__(self, pipe: Connection, job: Job) -> None:
        self.job = job
        self.stopped = threading.Event()
        self.stopping = False
        self.answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._pipe = pipe
        self._asking = threading.Lock()

    def emit(self, event: NewEvent) -> None:
        self._ask("emit", event)

    def save(self, checkpoint: bytes) -> bool:
        return bool(self._ask("save", checkpoint))

    def inputs(self, after: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = self._ask("inputs", after)
        return found

    def _ask(self, verb: str, what: object) -> Any:
        with self._asking:
            self._pipe.send(("ask", verb, what))
            good, answer = self.answers.get()
        if not good:
            raise RunStopped(answer)
        return answer


def _serve(pipe: Connection, function: Function) -> None:
    """The process: runs what it is given until the pipe ends."""
    os.setpgid(0, 0)
    # Signals are for the worker, which tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    jobs: queue.SimpleQueue[_PipePort] = queue.SimpleQueue()

    def listen() -> None:
        port: _PipePort | None = None
        try:
            while True:
                kind, *what = pipe.recv()
                if kind == "job":
                    port = _PipePort(pipe, what[0])
                    jobs.put(port)
                elif port is None:
                    continue
                elif kind == "stop":
                    port.stopped.set()
                elif kind == "stopping":
                    port.stopping = True
                else:
                    port.answers.put((kind == "answer", what[0]))
        except (EOFError, OSError):
            # The worker is gone: nobody shall work on in its name.
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=listen, name="unjam-worker", daemon=True).start()
    pipe.send(("ready",))
    while True:
        port = jobs.get()
        pipe.send(("ended", perform(function, port)))


# ---------------------------------------------------------------------------------------------------- in the worker


class _Child:
    """One process. `ended`: what became of its run."""

    def __init__(self, function: Function) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, function))
        self._process.start()
        theirs.close()
        self._to_say: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._session: Session | None = None
        self._asked: set[asyncio.Task[None]] = set()
        # Our end of the pipe, under a number that is nobody else's until `_wait` is done with it.
        self._end = socket.socket(fileno=os.dup(self._pipe.fileno()))
        self._exited = threading.Event()
        self.alive = True
        self.ended: asyncio.Future[Outcome]

    def attach(self) -> None:
        """Call this on the loop on which its runs are. Raises RuntimeError where there are no threads to be had; it has
        ended then."""
        self._loop = asyncio.get_running_loop()
        self.gone = asyncio.Event()
        #: It has found the function; or is gone.
        self.ready = asyncio.Event()
        # Threads: a process that is stopped within a message must not stop the worker's loop.
        begun = 0
        try:
            # First who sees its end, which the others wait for.
            for work in (self._wait, self._read, self._write):
                threading.Thread(target=work, daemon=True).start()
                begun += 1
        except RuntimeError:
            self.kill()
            if not begun:
                self._wait()
            raise

    def begin(self, session: Session) -> None:
        self._session = session
        self.ended = self._loop.create_future()
        self.say("job", session.job)
        if not self.alive:
            self._settle(Died("its process had ended"))

    def say(self, *message: object) -> None:
        self._to_say.put(message)

    def kill(self) -> None:
        """With what it has started."""
        if not self._exited.is_set() and not self._kill_group():
            self._process.kill()

    def _kill_group(self) -> bool:
        """False: it has none yet, or none any more."""
        assert self._process.pid is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def leave(self) -> None:
        """The process ends as soon as it is idle."""
        self._to_say.put(None)

    def _write(self) -> None:
        try:
            while (message := self._to_say.get()) is not None:
                self._pipe.send(message)
            self.kill()
        except OSError:
            # It is gone, as `_read` will tell.
            pass

    def _read(self) -> None:
        try:
            while True:
                self._tell(self._heard, self._pipe.recv())
        except Exception:  # noqa: BLE001 - its end, or something that no process of ours says
            self._exited.wait(ENDING)
            self.kill()
        self._exited.wait()
        self._to_say.put(None)
        self._tell(self._lost)

    def _wait(self) -> None:
        """Its end, also where others that it has started hold the pipe open."""
        self._process.join()
        self._kill_group()
        self._exited.set()
        with self._end as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            # The loop has ended: nobody waits.
            pass

    def _heard(self, message: tuple[Any, ...]) -> None:
        if message[0] == "ready":
            self.ready.set()
            return
        if message[0] == "ended":
            self._settle(message[1])
            return
        _, verb, what = message
        task = asyncio.create_task(self._answer(verb, what))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, verb: str, what: Any) -> None:
        session = self._session
        assert session is not None
        answer: object
        try:
            answer = None
            if verb == "emit":
                await session.emit(what)
            elif verb == "save":
                answer = await session.save(what)
            else:
                answer = await session.inputs(what)
        except RunStopped as error:
            self.say("stopped", str(error))
        except Exception as error:  # whoever asked waits for an answer
            log.exception(f"{session.job.run}: {verb} failed")
            self.say("stopped", f"a fault: {type(error).__name__}")
        else:
            self.say("answer", answer)

    def _lost(self) -> None:
        self.alive = False
        self._pipe.close()
        code = self._process.exitcode or 0
        why = f"its process was ended by signal {-code}" if code < 0 else f"its process ended: {code}"
        # It says that it is ready before it looks for a run.
        self._settle(Died(why) if self.ready.is_set() else Unbegun(f"{why}, before it had found the function"))
        self.gone.set()
        self.ready.set()

    def _settle(self, outcome: Outcome) -> None:
        if self._session is not None and not self.ended.done():
            self.ended.set_result(outcome)


class Processes:
    """`linger`: seconds that a function has when it is to stop, before its process is killed. ValueError for a function
    that another process can't find by its name."""

    def __init__(self, function: Function, linger: float = LINGER) -> None:
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"a function for processes must be at the top of a module: {error}") from None
        self._function = function
        self._linger = linger
        self._idle: list[_Child] = []

    async def open(self) -> None:
        """Starts one, to see that it can be done. ValueError when it can't."""
        child = await self._take()
        await child.ready.wait()
        if not child.alive:
            raise ValueError("a new process ended before it had found the function: what it printed says why")
        self._idle.append(child)

    async def call(self, session: Session) -> Outcome:
        """A `Call`."""
        try:
            child = await self._take()
        except (OSError, RuntimeError) as error:  # of processes, and of threads, there may be no more
            return Unbegun(f"no process can be started: {error}")
        stopped = asyncio.create_task(session.stopped.wait())
        draining = asyncio.create_task(session.draining.wait())

        def tell(task: asyncio.Task[Any]) -> None:
            if not task.cancelled():
                child.say("stopping")

        draining.add_done_callback(tell)
        whole = False
        try:
            child.begin(session)
            await asyncio.wait((child.ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not child.ended.done():
                child.say("stop")
                await asyncio.wait((child.ended,), timeout=self._linger)
            if not child.ended.done():
                return Stopped()
            whole = True
            return child.ended.result()
        finally:
            stopped.cancel()
            draining.cancel()
            if whole and child.alive:
                self._idle.append(child)
            else:
                child.kill()

    async def close(self) -> None:
        children, self._idle = self._idle, []
        for child in children:
            child.leave()
        try:
            async with asyncio.timeout(FAREWELL):
                for child in children:
                    await child.gone.wait()
        except TimeoutError:
            for child in children:
                child.kill()

    async def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
        child = await asyncio.to_thread(_Child, self._function)
        child.attach()
        return child
