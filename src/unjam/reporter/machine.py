"""How busy this machine is, for the agent on it: one `Reading` at a time, over the time since the one before.

What counts is what the agent may use: the CPUs of its affinity mask, the limits of its control group and of every group
above it, its own limit of address space. A figure that cannot be read is None; nothing is guessed, nothing raises.

The formula, in cores, over the interval:

    own       CPU time of the agent's processes (of its control group, when nobody else is in it)
    idle      CPUs of the mask × idle share of their time; waiting for disks counts as idle, stolen time as others'
    group     for every control group with a quota: quota − (CPU time of the group − own)
    cores     the least of: CPUs of the mask, every quota
    could     the least of: cores, idle + own, every group; what the agent could have while others keep what they have
    cpu       1 − (could − own) / cores
    agent_cpu own / cores

so that what others take, `cpu − agent_cpu`, is 1 − could / cores: nothing while they leave the agent its whole quota,
however busy the machine is. Both are kept within 0 .. 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from unjam.reporter import cgroup, files
from unjam.reporter.cgroup import Groups, Quota
from unjam.reporter.reading import Reading
from unjam.reporter.system import system
from unjam.reporter.tree import Agent, Taken

#: Seconds after which limits, groups and affinity are read again: they change by an operator's hand.
LIMITS_EVERY: Final = 10.0

#: The kernel counts CPU time in hundredths of a second: over less than this, shares are noise, and the last reading
#: is given again.
SHORTEST: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Limits:
    """What bounds the agent; holds until it is read again. `own_cpu`, `own_memory`: where its control group is counted,
    when nobody else was in it."""

    groups: Groups
    cpus: frozenset[int] | None
    quotas: list[Quota]
    memory: list[tuple[str, int]]
    space: int | None
    own_cpu: str | None
    own_memory: str | None


class Machine:
    """Measures. `agent`: whose processes to tell apart from others', None for nobody's: then the limits are our own.
    `proc`, `cgroups`: where the kernel's files are; a sidecar that watches its host has them elsewhere. `clock`:
    seconds, monotonic.
    """

    def __init__(
        self,
        agent: Agent | None = None,
        proc: str = "/proc",
        cgroups: str = cgroup.USUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._proc = proc
        self._system = system(proc)
        self._cgroups = cgroups
        self._clock = clock
        self._at: float | None = None
        self._latest = Reading()
        self._counters: dict[str, float] = {}
        self._cpus: dict[int, tuple[float, float]] = {}
        self._limits: _Limits | None = None
        self._limits_at = 0.0
        self._limits_of: int | None = None

    @property
    def unseen(self) -> list[str]:
        """Control groups of the agent that cannot be seen from here: the machine's own figures stand for theirs."""
        return [] if self._limits is None else list(self._limits.groups.unseen)

    def read(self) -> Reading:
        """What is so now, with shares over the time since the last read. The first has no shares. A read within
        `SHORTEST` of the last gives the same again."""
        now = self._clock()
        elapsed = None if self._at is None else now - self._at
        if elapsed is not None and 0 <= elapsed < SHORTEST:
            return replace(self._latest)
        self._at = now
        taken = None if self._agent is None else self._agent.read(now)
        limits = self._current_limits(now, taken)
        interval = _Interval(elapsed if elapsed is not None and elapsed > 0 else None, self._counters)

        seen = self._system.cpus()
        idle, cpus = self._idle(seen.times, limits.cpus)
        cores = min([float(cpus), *(quota.cores for quota in limits.quotas)]) if cpus else None
        own = self._own_cpu(limits, taken, interval)
        cpu = _cpu_in_use(cores, idle, own, limits, interval)
        memory, free = self._memory(limits, taken)
        self._latest = Reading(
            cores=cores,
            memory=memory,
            cpu=cpu,
            agent_cpu=None if own is None or cores is None else min(1.0, own / cores),
            memory_free=free,
            agent_memory=self._agent_memory(limits, taken),
            pressure=self._pressure("cpu", limits, interval),
            memory_pressure=self._pressure("memory", limits, interval),
            run_queue=None if seen.running is None else float(max(0, seen.running - 1)),
            open_files=None if taken is None else taken.open_files,
        )
        self._counters = interval.after
        return replace(self._latest)

    # Limits

    def _current_limits(self, now: float, taken: Taken | None) -> _Limits:
        pid = None if self._agent is None else self._agent.pid
        if self._limits is not None:
            if pid is None and self._limits_of is not None:
                # It is being started again and comes back into the same group: until then, what held, holds. Its pid
                # may be a stranger's by now.
                return self._limits
            if pid == self._limits_of and now - self._limits_at < LIMITS_EVERY:
                return self._limits
        whose: int | str = "self" if pid is None else pid
        status = files.read(f"{self._proc}/{whose}/status")
        if status is None and self._limits is not None:
            return self._limits  # it ended just now
        groups = Groups(whose, self._proc, self._cgroups)
        members = frozenset() if taken is None else taken.pids
        total, _ = self._system.machine_memory()
        self._limits = _Limits(
            groups=groups,
            cpus=_allowed(status, groups.cpus()),
            quotas=groups.quotas(),
            memory=groups.memory_limits(total),
            space=_address_space(files.read(f"{self._proc}/{whose}/limits")) if members else None,
            own_cpu=_only_ours(groups.own_count, members),
            own_memory=_only_ours(None if groups.memory is None else groups.memory.own, members),
        )
        self._limits_at, self._limits_of = now, pid
        return self._limits

    # CPU

    def _idle(self, lines: dict[int, tuple[float, float]], allowed: frozenset[int] | None) -> tuple[float | None, int]:
        """(CPUs' worth of idle time since the last read, number of CPUs), of those we may use."""
        # Containers may be shown other CPUs than they run on (lxcfs): all of those, then.
        mine = [cpu for cpu in lines if allowed is None or cpu in allowed] or list(lines)
        idle = total = 0.0
        for cpu in mine:
            before = self._cpus.get(cpu)
            if before is not None and lines[cpu][1] > before[1]:
                total += lines[cpu][1] - before[1]
                idle += max(0, lines[cpu][0] - before[0])  # the kernel lets it run backwards at times
        self._cpus = lines
        return (min(1.0, idle / total) * len(mine) if total else None), len(mine)

    def _own_cpu(self, limits: _Limits, taken: Taken | None, interval: _Interval) -> float | None:
        """Cores that the agent's processes used."""
        if taken is None:
            return None
        used = taken.cpu
        if limits.own_cpu is not None:
            # The group's count misses no child, however short its life; but a stranger may have come in just now.
            grown = interval.grown(limits.own_cpu, limits.groups.cpu_time(limits.own_cpu))
            if grown is not None and cgroup.holds_only(limits.own_cpu, taken.pids):
                used = grown
        return None if used is None or interval.elapsed is None else used / interval.elapsed

    # Memory

    def _memory(self, limits: _Limits, taken: Taken | None) -> tuple[int | None, int | None]:
        """(limit, free), bytes: the least of the machine's, of every group's and of the agent's own."""
        total, available = self._system.machine_memory()
        most = [] if total is None else [total]
        free = [] if available is None else [available]
        for folder, limit in limits.memory:
            most.append(limit)
            if (used := limits.groups.memory_used(folder)) is not None:
                free.append(limit - used)
        if limits.space is not None and taken is not None:
            most.append(limits.space)
            free.append(limits.space - taken.space)
        memory = min(most, default=None)
        if not free:
            return memory, None
        return memory, max(0, min(free if memory is None else [*free, memory]))

    def _agent_memory(self, limits: _Limits, taken: Taken | None) -> int | None:
        if taken is None:
            return None
        if limits.own_memory is not None and cgroup.holds_only(limits.own_memory, taken.pids):
            # Counts every page once, also those that processes share, and those of the kernel on their behalf.
            used = limits.groups.memory_used(limits.own_memory)
            if used is not None:
                return used
        return taken.memory

    # Pressure

    def _pressure(self, what: str, limits: _Limits, interval: _Interval) -> float | None:
        """Share of the time in which `some` task was held up: of the agent's group, else of the machine."""
        for where in (limits.groups.pressure(what), f"{self._proc}/pressure/{what}"):
            stalled = None if where is None else _stalled(files.read(where))
            if where is not None and stalled is not None:
                grown = interval.grown(where, stalled)
                if grown is None or interval.elapsed is None:
                    return None
                return min(1.0, grown / interval.elapsed)
        return None


class _Interval:
    """How counters grew since the last read. `elapsed`: seconds, None on the first."""

    __slots__ = ("_before", "after", "elapsed")

    def __init__(self, elapsed: float | None, before: dict[str, float]) -> None:
        self.elapsed = elapsed
        self.after: dict[str, float] = {}
        self._before = before

    def grown(self, name: str, value: float | None) -> float | None:
        """None where there is no count, or none before, or it was set back: then it isn't the same counter."""
        if value is None:
            return None
        self.after[name] = value
        before = self._before.get(name)
        return None if before is None or value < before or self.elapsed is None else value - before


def _cpu_in_use(
    cores: float | None, idle: float | None, own: float | None, limits: _Limits, interval: _Interval
) -> float | None:
    """Share of what we may use that is in use by anybody; the formula is the module's."""
    own = own or 0.0
    groups = []
    for quota in limits.quotas:
        if quota.count is not None:
            grown = interval.grown(quota.count, limits.groups.cpu_time(quota.count))
            if grown is not None and interval.elapsed is not None:
                groups.append(quota.cores - max(0.0, grown / interval.elapsed - own))
    if cores is None or idle is None or interval.elapsed is None:
        return None
    could = min([cores, idle + own, *groups])
    return min(1.0, max(0.0, 1.0 - (could - own) / cores))


def _allowed(status: bytes | None, cpuset: frozenset[int] | None) -> frozenset[int] | None:
    """CPUs of the affinity mask that the cpuset leaves, too; None where neither is known."""
    mask = None
    for line in (status or b"").splitlines():
        if line.startswith(b"Cpus_allowed_list:"):
            mask = files.cpu_list(line.partition(b":")[2])
    if mask is None or cpuset is None:
        return cpuset if mask is None else mask
    return (mask & cpuset) or mask


def _address_space(limits: bytes | None) -> int | None:
    """The soft limit of address space (RLIMIT_AS) in bytes, None for none."""
    for line in (limits or b"").splitlines():
        if line.startswith(b"Max address space"):
            return files.whole(line.split()[3])
    return None


def _stalled(pressure: bytes | None) -> float | None:
    """Seconds in which some task was held up, since boot: https://docs.kernel.org/accounting/psi.html"""
    for line in (pressure or b"").splitlines():
        if line.startswith(b"some "):
            total = files.whole(line.rpartition(b"total=")[2])
            return None if total is None else total / 1e6
    return None


def _only_ours(folder: str | None, pids: frozenset[int]) -> str | None:
    """The folder, when nobody but these processes is in its group."""
    return folder if folder is not None and pids and cgroup.holds_only(folder, pids) else None
