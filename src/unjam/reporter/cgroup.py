"""Control groups: what limits a process, and how much of it is gone. Versions 1, 2 and both at once.

A limit holds for a group and all groups below it, so every level counts, from the process's own group up to the topmost
that can be seen from here. Inside a container that is usually the container's own group, shown as `/`. Where the
hierarchies are is read from the mount table, never assumed.

Formats: cgroups(7), https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from unjam.reporter import files

#: Where the mount table has the hierarchies on every system in use; `cgroups` of `Groups` stands in for it.
USUAL: Final = "/sys/fs/cgroup"

#: Version 1 has no word for "no limit" but the largest number of pages.
_NO_LIMIT: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One tree of groups. `top`: folder of the topmost visible group; `path`: from there to the process's own."""

    version: int
    top: str
    path: str

    @property
    def own(self) -> str:
        return self.top + self.path

    def levels(self) -> tuple[str, ...]:
        """Folders from the process's own group up to the topmost."""
        steps = [step for step in self.path.split("/") if step]
        return tuple("/".join((self.top, *steps[:depth])) for depth in range(len(steps), -1, -1))


@dataclass(frozen=True, slots=True)
class Quota:
    """`cores`: CPU time per time. `count`: folder in which the group's use is counted, None where it isn't."""

    cores: float
    count: str | None


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    root: str
    point: str
    controllers: frozenset[str]


class Groups:
    """The groups of one process, as they are now; made anew when the process may have moved.

    `unseen`: those of its groups that exist but cannot be seen from here (the agent runs in another container): their
    limits are unknown, the machine's own figures stand for them.
    """

    def __init__(self, pid: int | str, proc: str = "/proc", cgroups: str = USUAL) -> None:
        self.unseen: list[str] = []
        mounts = _mounts(files.read(f"{proc}/self/mountinfo"), cgroups)
        found: dict[str, Hierarchy] = {}
        for version, controllers, path in _memberships(files.read(f"{proc}/{pid}/cgroup")):
            for controller in controllers:
                at = _locate(version, controller, path, mounts)
                if at is not None:
                    found[controller] = at
                elif controller in _WANTED or (version == 2 and _mounted(mounts)):
                    self.unseen.append(f"{controller or 'unified'}:{path}")
        self.unified = found.get("")
        self.cpu = found.get("cpu", self.unified)
        self.memory = found.get("memory", self.unified)
        self._cpuset = found.get("cpuset", self.unified)
        self._usage = found.get("cpuacct", self.unified)

    # CPU

    def quotas(self) -> list[Quota]:
        """Of every level that has a limit in CPU time."""
        if self.cpu is None:
            return []
        found = []
        for folder in self.cpu.levels():
            cores = _quota(folder, self.cpu.version)
            if cores is not None:
                found.append(Quota(cores, self._count(folder)))
        return found

    def _count(self, folder: str) -> str | None:
        """Where the CPU time of the group in `folder`, of the hierarchy that limits it, is counted.

        Version 1 may count in another hierarchy than it limits. They are mostly one and the same, or parallel; where
        the process is elsewhere in the one than in the other nobody counts for the limited group.
        """
        usage, cpu = self._usage, self.cpu
        if usage is None or cpu is None or usage.path != cpu.path or usage.version != cpu.version:
            return None
        return usage.top + folder[len(cpu.top) :]

    @property
    def own_count(self) -> str | None:
        """Where the CPU time of the process's own group is counted."""
        return None if self._usage is None else self._usage.own

    def cpu_time(self, count: str) -> float | None:
        """Seconds of CPU used by the group that is counted there; None where the kernel won't tell."""
        if self._usage is not None and self._usage.version == 1:
            used = files.number(f"{count}/cpuacct.usage")
            return None if used is None else used / 1e9
        used = files.table(files.read(f"{count}/cpu.stat")).get(b"usage_usec")
        return None if used is None else used / 1e6

    def cpus(self) -> frozenset[int] | None:
        """The CPUs that the cpuset leaves; None where there is none."""
        if self._cpuset is None:
            return None
        name = "cpuset.effective_cpus" if self._cpuset.version == 1 else "cpuset.cpus.effective"
        return files.cpu_list(files.read(f"{self._cpuset.own}/{name}"))

    # Memory

    def memory_limits(self, total: int | None) -> list[tuple[str, int]]:
        """(folder, bytes) of every level that limits memory to less than the machine's `total`."""
        if self.memory is None:
            return []
        most = _NO_LIMIT if total is None else total
        found: list[tuple[str, int]] = []
        for folder in self.memory.levels():
            if self.memory.version == 1:
                if folder != self.memory.own and files.number(f"{folder}/memory.use_hierarchy") == 0:
                    break  # groups below don't count towards this one (kernels before 5.11)
                limits = [files.number(f"{folder}/memory.limit_in_bytes")]
                if folder == self.memory.own:
                    # Knows of the levels above the topmost that we see, too.
                    stat = files.table(files.read(f"{folder}/memory.stat"))
                    limits.append(stat.get(b"hierarchical_memory_limit"))
            else:
                # Beyond `high` the group is slowed until it has given memory back: that is no memory to promise.
                limits = [files.number(f"{folder}/memory.max"), files.number(f"{folder}/memory.high")]
            known = [limit for limit in limits if limit is not None and 0 <= limit < most]
            if known:
                found.append((folder, min(known)))
        return found

    def memory_used(self, folder: str) -> int | None:
        """Bytes that the group in `folder` holds and could not give back at once: without inactive page cache."""
        if self.memory is None:
            return None
        first = self.memory.version == 1
        used = files.number(f"{folder}/memory.{'usage_in_bytes' if first else 'current'}")
        if used is None:
            return None
        stat = files.table(files.read(f"{folder}/memory.stat"))
        return max(0, used - stat.get(b"total_inactive_file" if first else b"inactive_file", 0))

    # Pressure

    def pressure(self, what: str) -> str | None:
        """The file of the process's own group's `cpu` or `memory` pressure; it need not exist."""
        return None if self.unified is None else f"{self.unified.own}/{what}.pressure"


def holds_only(folder: str, pids: Iterable[int]) -> bool:
    """Whether all processes of this group are among `pids`; not so if there are groups below: theirs aren't listed."""
    listed = files.read(f"{folder}/cgroup.procs")
    if not listed:
        return False
    try:
        members = {int(pid) for pid in listed.split()}
        with os.scandir(folder) as entries:
            below = any(entry.is_dir(follow_symlinks=False) for entry in entries)
    except (OSError, ValueError):
        return False
    return not below and members <= set(pids)


_WANTED: Final = frozenset({"cpu", "cpuacct", "memory", "cpuset"})


def _quota(folder: str, version: int) -> float | None:
    if version == 1:
        quota, period = files.number(f"{folder}/cpu.cfs_quota_us"), files.number(f"{folder}/cpu.cfs_period_us")
    else:
        words = (files.read(f"{folder}/cpu.max") or b"").split()
        quota, period = (files.whole(words[0]), files.whole(words[1])) if len(words) == 2 else (None, None)
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _memberships(text: bytes | None) -> list[tuple[int, list[str], str]]:
    """(version, controllers, path) of each line of /proc/PID/cgroup; version 2 has one line and no controllers: ""."""
    found = []
    for line in (text or b"").decode("utf-8", "surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            found.append((2 if number == "0" and not controllers else 1, controllers.split(","), path))
    return found


def _mounts(text: bytes | None, cgroups: str) -> list[_Mount]:
    """The mounted hierarchies, from /proc/PID/mountinfo: proc_pid_mountinfo(5)."""
    found = []
    for line in (text or b"").decode("utf-8", "surrogateescape").splitlines():
        before, separator, after = line.partition(" - ")
        words, kind = before.split(" "), after.split(" ")
        if not separator or len(words) < 6 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, point = _unescaped(words[3]), _unescaped(words[4])
        if point == USUAL or point.startswith(USUAL + "/"):
            point = cgroups + point[len(USUAL) :]
        version = 2 if kind[0] == "cgroup2" else 1
        found.append(_Mount(version, root, point, frozenset(kind[2].split(",")) if version == 1 else frozenset({""})))
    # A machine's own hierarchies may be mounted a second time for us to see: those under `cgroups` come first.
    found.sort(key=lambda mount: not (mount.point + "/").startswith(cgroups + "/"))
    return found


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _mounted(mounts: list[_Mount]) -> bool:
    return any(mount.version == 2 for mount in mounts)


def _locate(version: int, controller: str, path: str, mounts: list[_Mount]) -> Hierarchy | None:
    for mount in mounts:
        if mount.version != version or controller not in mount.controllers:
            continue
        # A container may see no more than its own part of the tree: the mount's root is then not the tree's. Paths that
        # begin with `/..` are outside of our own namespace.
        root = mount.root.rstrip("/")
        if path == root or path.startswith(root + "/"):
            relative = path[len(root) :].rstrip("/")
            if ".." not in relative.split("/"):
                return Hierarchy(version, mount.point, relative)
    return None
