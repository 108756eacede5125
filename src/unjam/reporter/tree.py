"""The agent's processes: found by pid or by listening port, followed through forks, restarts and pid reuse, cheaply.

Looking at every process of a machine costs milliseconds, so it is done as often as its cost allows and no oftener
(`Allowance`): beside a thousand processes children are seen some seconds late, and their CPU time is then counted for
the part of their life that fell into the interval. Nothing here raises because a process ended: that is normal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from unjam.reporter.system import LEAST_AGE, Process, System, system

#: Shares of a core for: looking for new children, looking at everything anew, memory and descriptors of the children,
#: whether it is still this process that listens, and finding an agent that is gone (rare, and all else waits for it).
_CHILDREN: Final = 0.0015
_EVERYTHING: Final = 0.0005
_FIGURES: Final = 0.001
_STILL: Final = 0.0005
_LOST: Final = 0.003


class Allowance:
    """Lets something be done as often as its cost allows. `share`: of a core; `least`: seconds from one to the next."""

    __slots__ = ("_next", "least", "share")

    def __init__(self, share: float, least: float = 0.0) -> None:
        self.share = share
        self.least = least
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        return now >= self._next

    def spent(self, now: float, cost: float) -> None:
        """`cost`: seconds of CPU that doing it took."""
        self._next = now + max(self.least, cost / self.share)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the agent's processes take. `cpu`: seconds of CPU since the previous read, None on the first. `memory`:
    bytes; `open_files`: descriptors; None where the kernel won't tell. `space`: address space of the largest of them,
    in bytes."""

    cpu: float | None
    memory: int | None
    open_files: int | None
    space: int
    pids: frozenset[int]


class Agent:
    """An agent's processes. `find` names the pid of its first process, None while there is none."""

    def __init__(
        self,
        find: Callable[[], int | None],
        of: System,
        cost: Callable[[], float] = time.thread_time,
    ) -> None:
        self._find = find
        self._system = of
        self._cost = cost
        self._root: tuple[int, float] | None = None  # pid and start
        self._members: dict[int, float] = {}  # start by pid
        self._others: set[int] = set()
        self._before: dict[int, Process] = {}
        self._read_at: float | None = None
        self._memory: int | None = None
        self._files: int | None = None
        self._children = Allowance(_CHILDREN)
        self._everything = Allowance(_EVERYTHING, least=30.0)
        self._figures = Allowance(_FIGURES)
        self._still = Allowance(_STILL, least=5.0)
        self._lost = Allowance(_LOST, least=0.25)

    @classmethod
    def of_pid(cls, pid: int, proc: str = "/proc", cost: Callable[[], float] = time.thread_time) -> Agent:
        """The tree of this process. ProcessLookupError: there is none. Another one that gets its pid later isn't it."""
        of = system(proc)
        first = of.process(pid)
        if first is None:
            raise ProcessLookupError(f"there is no process {pid}")

        def find() -> int | None:
            found = of.process(pid)
            return pid if found is not None and found.start == first.start and not found.dead else None

        return cls(find, of, cost)

    @classmethod
    def of_port(cls, port: int, proc: str = "/proc", cost: Callable[[], float] = time.thread_time) -> Agent:
        """The tree of the process that listens on this local TCP port; found again when another takes its place.
        ValueError: no port."""
        if not 0 < port < 65536:
            raise ValueError(f"{port} is not a port: 1 to 65535")
        of = system(proc)
        last: int | None = None

        def find() -> int | None:
            nonlocal last
            if last is None or not of.listens(last, port):  # asking one is cheap, asking all is not
                last = of.listener(port)
            return last

        return cls(find, of, cost)

    @property
    def pid(self) -> int | None:
        """The first process, None while there is none."""
        return None if self._root is None else self._root[0]

    def read(self, now: float) -> Taken | None:
        """What the processes take at `now` (seconds, monotonic); None while there are none."""
        self._settle(now)
        self._look_for_children(now)
        processes = {}
        for pid, start in list(self._members.items()):
            found = self._system.process(pid)
            if found is None or found.start != start:
                del self._members[pid]
            else:
                processes[pid] = found
        cpu = self._cpu(processes, now)
        self._before, self._read_at = processes, now
        if self._root is not None and (self._root[0] not in processes or processes[self._root[0]].dead):
            self._root = None
        if not any(not process.dead for process in processes.values()):
            self._memory = self._files = None
            return None
        if self._figures.due(now) or self._memory is None:
            began = self._cost()
            self._memory = _summed(self._system.memory(pid) for pid in processes)
            self._files = _summed(self._system.open_files(pid) for pid in processes)
            self._figures.spent(now, self._cost() - began)
        space = max(process.space for process in processes.values())
        return Taken(cpu, self._memory, self._files, space, frozenset(processes))

    # Which processes

    def _settle(self, now: float) -> None:
        """See to it that the first process is the right one."""
        asked = self._lost if self._root is None else self._still
        if not asked.due(now):
            return
        began = self._cost()
        pid = self._find()
        found = None if pid is None else self._system.process(pid)
        asked.spent(now, self._cost() - began)
        if pid is None or found is None or found.dead:
            return  # whatever children are left are the agent's still
        if self._root != (pid, found.start):
            if self._root is None or pid not in self._members:
                self._members = {}
            self._root = (pid, found.start)
            self._members[pid] = found.start
            self._others = set()
            self._children = Allowance(_CHILDREN)
            self._still.spent(now, 0.0)

    def _look_for_children(self, now: float) -> None:
        if not self._members or not self._children.due(now):
            return
        began = self._cost()
        everything = self._everything.due(now)
        if everything:  # a pid that was a stranger's may be a child's by now
            self._others = set()
        listed = self._system.pids()
        self._others &= listed
        new: dict[int, Process] = {}
        for pid in listed:
            if (
                pid not in self._others
                and pid not in self._members
                and (found := self._system.process(pid)) is not None
            ):
                new[pid] = found
        more = True
        while more:
            children = [pid for pid, found in new.items() if found.parent in self._members]
            for pid in children:
                self._members[pid] = new.pop(pid).start
            more = bool(children)
        self._others.update(new)
        (self._everything if everything else self._children).spent(now, self._cost() - began)

    # What they take

    def _cpu(self, processes: dict[int, Process], now: float) -> float | None:
        """Seconds of CPU since the last read.

        The time of children that ended since is in their parent's `reaped`, together with what had been counted while
        they lived: that part is taken off again. A process that wasn't seen before counts for the part of its life that
        fell into the interval.
        """
        if self._read_at is None:
            return None
        elapsed = now - self._read_at
        counted: dict[int, float] = {}
        for pid, was in self._before.items():
            if not _same(was, processes.get(pid)):
                heir = self._heir(was, processes)
                counted[heir] = counted.get(heir, 0.0) + was.own + was.reaped
        used = 0.0
        today = None
        for pid, process in processes.items():
            before = self._before.get(pid)
            if before is not None and _same(before, process):
                used += max(0.0, process.own - before.own)
                used += max(0.0, process.reaped - before.reaped - counted.get(pid, 0.0))
            else:
                today = self._system.now() if today is None else today
                age = max(LEAST_AGE, today - process.start)
                used += (process.own + process.reaped) * min(1.0, elapsed / age)
        return used

    def _heir(self, gone: Process, processes: dict[int, Process]) -> int:
        """The nearest forebear that lives: the time of one that ended is in its `reaped`."""
        pid, steps = gone.parent, len(self._before)
        while steps and (before := self._before.get(pid)) is not None and not _same(before, processes.get(pid)):
            pid, steps = before.parent, steps - 1
        return pid


def listener(port: int, proc: str = "/proc") -> int | None:
    """The pid of the process that listens on this local TCP port; None when there is none, or it is hidden from us."""
    return system(proc).listener(port)


def _same(before: Process, now: Process | None) -> bool:
    return now is not None and now.start == before.start


def _summed(figures: Iterable[int | None]) -> int | None:
    """None when not one is known: a process that just ended takes nothing, one that is hidden hides its part only."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None
