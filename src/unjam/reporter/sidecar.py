"""Beside an agent: measures, tells every gateway and HAProxy, and sees the agent's work to its end.

    ready ──SIGTERM──▶ draining ──nothing runs, or --drain-timeout, or a second signal──▶ leaving ──▶ exit
    agent gone: leaving, until it is back

What is measured is cheap, but how cheap differs from machine to machine: the pause between readings grows where they
cost more than `ALLOWED` of a core.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from unjam.reporter.agent_check import AgentCheck, share
from unjam.reporter.ask import AgentLoad
from unjam.reporter.change import WINDOW, Window, news
from unjam.reporter.child import BY_SIGNAL, Child
from unjam.reporter.link import DRAINING, LEAVING, READY, Link, Statement
from unjam.reporter.options import Options
from unjam.wire.agentcheck import AgentState

#: Seconds between readings, where they are cheap, and at most.
READ_EVERY: Final = 0.5
READ_AT_MOST: Final = 2.0
#: Share of a core that readings may cost.
ALLOWED: Final = 0.003
#: Seconds in which gateways have to take notice that the agent leaves; and after a second signal.
FAREWELL: Final = 5.0
HURRIED: Final = 1.0
#: Seconds in which a HAProxy that has asked before may ask again, so that it knows of the drain.
ASKED_WITHIN: Final = 10.0

#: Readings in which an agent's port answers and its process cannot be found, before it is taken to be hidden.
HIDDEN_AFTER: Final = 4

#: Exit code when the process named by --pid is gone: no other can take its place.
GONE: Final = 1

log = logging.getLogger("unjam.reporter")


class CannotListen(Exception):
    """The address of --agent-check cannot be had; in words."""


class Meter(Protocol):
    """Measures one machine and one agent."""

    def load(self) -> dict[str, Any]:
        """What is measured now, by the names of a report."""
        ...

    def pid(self) -> int | None:
        """The agent's first process as of the last `load`; None while there is none to be seen that takes requests."""
        ...


class Sidecar:
    """`child`: the agent when it was started here. `cost`: seconds of CPU used so far by this thread. `every`: seconds
    between readings; `window`: seconds over which shares are measured."""

    def __init__(
        self,
        options: Options,
        meter: Meter,
        links: Sequence[Link],
        child: Child | None = None,
        cost: Callable[[], float] = time.thread_time,
        every: float = READ_EVERY,
        window: float = WINDOW,
    ) -> None:
        self.options = options
        self.links = links
        self.check_port = 0
        self._meter = meter
        self._child = child
        self._cost = cost
        self._phase = READY
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        self._every = every
        self._window = Window(window)
        self._load: dict[str, Any] = {}
        #: None until it was looked for.
        self._present: bool | None = None
        self._seen_pid: int | None = None
        self._unseen = 0
        self._costs: deque[float] = deque(maxlen=4)
        self._signals = 0
        #: HAProxy has asked; and when it was first told to drain.
        self._polled = False
        self._drain_told_at: float | None = None
        secure = options.url is not None and options.url.startswith("https://")
        self._agent = AgentLoad(options.port, secure) if options.port is not None else None
        self._check = AgentCheck(self.verdict, self._told) if options.agent_check is not None else None
        for link in links:
            link.heard_from = self._changed.set

    async def run(self) -> int:
        """Until a signal, or the end of an agent that cannot come back; the exit code. Raises `CannotListen`."""
        if self._check is not None and self.options.agent_check is not None:
            host, port = self.options.agent_check
            try:
                self.check_port = await self._check.start(host, port)
            except OSError as error:
                raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
            log.info(f"HAProxy's agent-check is answered on port {self.check_port}")
        tasks = [asyncio.create_task(link.run()) for link in self.links]
        tasks.append(asyncio.create_task(self._read()))
        if self._agent is not None:
            tasks.append(asyncio.create_task(self._ask(self._agent)))
        try:
            return await self._live(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._check is not None:
                self._check.close()

    def stop(self) -> None:
        """What SIGTERM does: drain; the second time hurry; the third time end the child."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._hurry.set()
        if self._signals > 2 and self._child is not None:
            self._child.send(signal.SIGKILL)

    def verdict(self) -> AgentState:
        """For HAProxy."""
        if self._child is not None and self._phase == LEAVING and not self._child.ended.is_set():
            return AgentState(health="stopped", why="the agent is being stopped")
        if not self._present:
            return AgentState(health="down", why="agent is gone" if self._present is False else "agent is awaited")
        if self._phase != READY:
            return AgentState(admin="drain", health="up", why="draining")
        return AgentState(weight=share(self._load), maxconn=self.options.slots, health="up")

    # What goes on

    async def _live(self, tasks: Sequence[asyncio.Task[None]]) -> int:
        ended = asyncio.create_task(self._over())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([ended, stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # it never ends but by a fault of ours
            if not ended.done():
                await self._drain(ended)
            code = ended.result() if ended.done() else None
        finally:
            ended.cancel()
            stopped.cancel()
        await self._leave()
        if code is not None:
            return code
        return 0 if self._child is None else await self._end(self._child)

    async def _over(self) -> int:
        """Waits for the end of an agent that cannot come back."""
        if self._child is not None:
            await self._child.ended.wait()
            log.info(f"the agent ended with exit code {self._child.code}")
            return self._child.code
        if self.options.pid is None or self._check is not None:
            # It may come back; or HAProxy has to be told that it is gone.
            await asyncio.Event().wait()
        while self._present is not False:
            await self._change()
        return GONE

    async def _drain(self, ended: asyncio.Task[int]) -> None:
        """Returns when nothing runs at the agent any more."""
        self._phase = DRAINING
        self._tell()
        log.info("draining: nothing new is to come, what runs at the agent ends first")
        loop = asyncio.get_running_loop()
        began = loop.time()
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            async with asyncio.timeout(self.options.drain_timeout):
                while not self._drained(began) and not hurried.done() and not ended.done():
                    change = asyncio.create_task(self._change())
                    try:
                        await asyncio.wait([change, hurried, ended], return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
                    finally:
                        change.cancel()
        except TimeoutError:
            log.warning(f"work still runs at the agent after {self.options.drain_timeout:g} s: leaving it")
        finally:
            hurried.cancel()

    def _drained(self, began: float) -> bool:
        if not self._present:
            return True
        for link in self.links:
            if link.reachable and not (link.told == DRAINING and link.heard is not None and link.heard.inflight == 0):
                return False
        since = began
        if self._check is not None:
            if self._drain_told_at is not None:
                since = self._drain_told_at
            elif self._polled and asyncio.get_running_loop().time() - began < ASKED_WITHIN:
                return False
        if self._agent is None or not self._agent.tells:
            return True
        return self._agent.figures(since).get("in_flight", 1) == 0

    async def _leave(self) -> None:
        self._phase = LEAVING
        self._tell()
        try:
            async with asyncio.timeout(HURRIED if self._hurry.is_set() else FAREWELL):
                while any(link.sent and link.reachable and link.told != LEAVING for link in self.links):
                    await self._change()
        except TimeoutError:
            log.warning("not every gateway could be told that the agent leaves: it will find out")

    async def _end(self, child: Child) -> int:
        """Stops the agent; the exit code: 0 where it ended as it was told."""
        child.send(signal.SIGTERM)
        await child.ended.wait()
        return 0 if child.code == BY_SIGNAL + signal.SIGTERM else child.code

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # Readings

    async def _read(self) -> None:
        while True:
            began = self._cost()
            load = self._meter.load()
            self._costs.append(self._cost() - began)
            # The cheapest: looking for the agent costs more, and is rare.
            pause = min(READ_AT_MOST, max(self._every, min(self._costs) / ALLOWED))
            self._notice()
            if self._present:
                self._window.add(self._overridden(load), asyncio.get_running_loop().time())
            self._tell()
            self._changed.set()
            await asyncio.sleep(pause if len(self._costs) > 2 else self._every)

    def _notice(self) -> None:
        """Whether the agent is there: its process can be seen, or at least somebody answers at its port."""
        pid = self._meter.pid()
        if pid != self._seen_pid:
            # Another process, or none: nothing that was measured or told is about it.
            self._window.clear()
            self._unseen = 0
            if self._agent is not None:
                self._agent.again()
        if pid is None and self._agent is not None and self._agent.reached:
            # A process that has just begun is found a moment later than it answers.
            self._unseen += 1
            if self._unseen == HIDDEN_AFTER:
                log.warning(
                    "somebody listens at the agent's port, but the process cannot be seen from here: what it uses "
                    "counts as others' use (in containers, share the process namespace)"
                )
        else:
            self._unseen = 0
        present = pid is not None or self._unseen >= HIDDEN_AFTER
        if pid is not None and pid != self._seen_pid:
            log.info(f"the agent is process {pid}")
        elif not present and self._present:
            log.warning("the agent is gone")
        elif not present and self._present is None:
            log.info("there is no agent yet: waiting for it")
        self._seen_pid, self._present = pid, present

    def _overridden(self, load: dict[str, Any]) -> dict[str, Any]:
        if self.options.cores is not None:
            load["cores"] = self.options.cores
        if self.options.memory is not None:
            load["memory"] = self.options.memory
            if "memory_free" in load:
                load["memory_free"] = min(load["memory_free"], self.options.memory)
        return load

    def _tell(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._present is None or (not self._present and not any(link.sent for link in self.links)):
            return
        load = self._window.mean()
        if self._agent is not None:
            load |= self._agent.figures(now - 2 * self.options.interval - 1.0)
        self._load = load
        state = self._phase if self._present else LEAVING
        statement = Statement(state, load, now)
        for link in self.links:
            link.say(statement, link.said is not None and bool(news(link.said.load, load)))

    def _told(self, state: AgentState) -> None:
        self._polled = True
        if state.admin == "drain" and self._drain_told_at is None:
            self._drain_told_at = asyncio.get_running_loop().time()
            self._changed.set()

    async def _ask(self, agent: AgentLoad) -> None:
        while True:
            by_port = self._child is None and self.options.pid is None
            if self._present or by_port:
                await agent.ask(knock=by_port and self._seen_pid is None)
                self._changed.set()
            await asyncio.sleep(self._every if self._phase == DRAINING else self.options.interval)
