"""Who judges the answers of a service, and what waits to be judged: bounded in number and in bytes, the newest dropped.

All services share one process, each with the same claim on its time; each HTTP hook has a line of its own. Of one
exchange there is one verdict: bad as soon as one evaluator says so, good when all have answered and none said bad. One
that failed or took too long says nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final, Protocol

from unjam.evaluate.child import TIMEOUT, Child, Spec
from unjam.evaluate.frames import BAD, ERROR, GOOD, Said
from unjam.evaluate.hook import ASKED, Hook
from unjam.evaluate.record import Record

#: Bytes that wait for one service's process, and for each of its hooks.
MOST: Final = 64 << 20

DROPPED: Final = "dropped"


class Job:
    """One exchange to be judged. `context`: the teller's own."""

    __slots__ = ("bad", "context", "good", "left", "record")

    def __init__(self, record: Record, context: Any) -> None:
        self.record = record
        self.context = context
        #: Evaluators that have not answered yet.
        self.left = 0
        self.good = False
        self.bad = False


class Teller(Protocol):
    def evaluated(self, evaluator: str, said: Said) -> None:
        """One evaluator has judged, or failed to: `said.result` is good, bad, error, timeout or dropped."""

    def judged(self, job: Job, bad: bool, reason: str) -> None:
        """The verdict on an exchange; not told when nobody came to one."""


class _Line:
    """Jobs that wait, at most `most` of them."""

    __slots__ = ("jobs", "most", "size")

    def __init__(self, most: int) -> None:
        self.most = most
        self.jobs: deque[Job] = deque()
        self.size = 0

    def add(self, job: Job) -> bool:
        if len(self.jobs) >= self.most or self.size + job.record.size > MOST:
            return False
        self.jobs.append(job)
        self.size += job.record.size
        return True

    def take(self) -> Job:
        job = self.jobs.popleft()
        self.size -= job.record.size
        return job


class Panel:
    """Of one service. `queue`: jobs that may wait; `timeout`: seconds of one evaluation; ``hooks`: names and URLs."""

    def __init__(
        self,
        judges: Judges,
        specs: Sequence[Spec],
        hooks: Sequence[tuple[str, str]],
        queue: int,
        timeout: float,
        teller: Teller,
    ) -> None:
        self.specs = tuple(specs)
        self.timeout = timeout
        self.teller = teller
        self.line = _Line(queue)
        #: Seconds of the shared process, as `Judges` reckons them.
        self.spent = 0.0
        self._judges = judges
        self._hooks = [_HookLine(self, name, Hook(url), queue) for name, url in hooks]

    @property
    def waiting(self) -> int:
        return len(self.line.jobs) + sum(len(each.line.jobs) for each in self._hooks)

    def offer(self, job: Job) -> None:
        """Never waits, never fails."""
        job.left = len(self.specs) + len(self._hooks)
        if self.specs:
            if self.line.add(job):
                self._judges.wake(self)
            else:
                self._dropped(job, [spec.name for spec in self.specs])
        for each in self._hooks:
            if not each.offer(job):
                self._dropped(job, [each.name])

    def told(self, job: Job, evaluator: str, said: Said) -> None:
        teller = self.teller
        teller.evaluated(evaluator, said)
        job.left -= 1
        if said.result == BAD and not job.bad:
            job.bad = True
            teller.judged(job, True, f"{evaluator}: {said.reason}" if said.reason else evaluator)
        elif said.result == GOOD:
            job.good = True
        if not job.left and job.good and not job.bad:
            teller.judged(job, False, "")

    def _dropped(self, job: Job, evaluators: Sequence[str]) -> None:
        for name in evaluators:
            self.told(job, name, Said(DROPPED))

    async def close(self) -> None:
        """End it; what still waits to be judged is dropped."""
        while self.line.jobs:
            self._dropped(self.line.take(), [spec.name for spec in self.specs])
        for each in self._hooks:
            await each.close()


class _HookLine:
    def __init__(self, panel: Panel, name: str, hook: Hook, queue: int) -> None:
        self.name = name
        self.line = _Line(queue)
        self._panel = panel
        self._hook = hook
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, job: Job) -> bool:
        if not self.line.add(job):
            return False
        if len(self._tasks) < ASKED:
            task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    async def _work(self) -> None:
        panel = self._panel
        while self.line.jobs:
            job = self.line.take()
            try:
                said = await self._hook.judge(job.record, panel.timeout)
            except TimeoutError:
                said = Said(TIMEOUT, f"no verdict in {panel.timeout:g} s")
            panel.told(job, self.name, said)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hook.close()
        while self.line.jobs:
            self._panel.told(self.line.take(), self.name, Said(DROPPED))


class Judges:
    """The process, and who waits for it: the one that has had the least of its time is next, so that evaluators which
    hang delay those of other services by one time-out at once, and take half of the time at most. A task exists only
    while something waits."""

    def __init__(self) -> None:
        self.child = Child()
        self._waiting: list[Panel] = []
        #: What the one that was served last had had by then: who begins to wait has no claim to what is past.
        self._spent = 0.0
        self._task: asyncio.Task[None] | None = None

    def wake(self, panel: Panel) -> None:
        """Something has come to wait in its line."""
        if panel not in self._waiting:
            panel.spent = max(panel.spent, self._spent)
            self._waiting.append(panel)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._waiting.clear()
        await self.child.close()

    async def _work(self) -> None:
        try:
            while self._waiting:
                panel = min(self._waiting, key=_spent)
                if not panel.line.jobs:
                    self._waiting.remove(panel)
                    continue
                self._spent, begun = panel.spent, monotonic()
                job = panel.line.take()
                for spec in panel.specs:
                    try:
                        said = await self.child.judge(job.record, spec, panel.timeout)
                    except OSError as error:
                        said = Said(ERROR, str(error))
                    panel.told(job, spec.name, said)
                panel.spent += monotonic() - begun
        finally:
            self._task = None


def _spent(panel: Panel) -> float:
    return panel.spent
