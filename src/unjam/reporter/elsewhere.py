"""Systems without /proc (macOS, the BSDs), through psutil: the same figures, as far as these systems have them.

They have no control groups and no pressure, nobody may look into other users' processes, and the CPU time of children
that came and went between two readings is not the parent's.
"""

from __future__ import annotations

import time

import psutil

from unjam.reporter.system import Cpus, Process


class Elsewhere:
    """Works on Linux as well, only dearer."""

    def process(self, pid: int) -> Process | None:
        try:
            found = psutil.Process(pid)
            with found.oneshot():
                times = found.cpu_times()
                return Process(
                    start=found.create_time(),
                    parent=found.ppid(),
                    dead=found.status() == psutil.STATUS_ZOMBIE,
                    own=times.user + times.system,
                    reaped=getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0),
                    space=found.memory_info().vms,
                )
        except (psutil.Error, OSError, ValueError):
            return None

    def pids(self) -> set[int]:
        return set(psutil.pids())

    def now(self) -> float:
        return time.time()

    def memory(self, pid: int) -> int | None:
        try:
            found = psutil.Process(pid).memory_info()
        except (psutil.Error, OSError):
            return None
        return max(0, found.rss - getattr(found, "shared", 0))

    def open_files(self, pid: int) -> int | None:
        try:
            return psutil.Process(pid).num_fds()
        except (psutil.Error, OSError):
            return None

    def listens(self, pid: int, port: int) -> bool:
        try:
            # Of each process, not of all at once: that takes a superuser here, and names one holder of several.
            sockets = psutil.Process(pid).net_connections("tcp")
        except (psutil.Error, OSError):
            return False
        return any(socket.status == psutil.CONN_LISTEN and socket.laddr.port == port for socket in sockets)

    def listener(self, port: int) -> int | None:
        holders: dict[int, Process] = {}
        for pid in psutil.pids():
            if self.listens(pid, port):
                found = self.process(pid)
                if found is not None and not found.dead:
                    holders[pid] = found
        first = [pid for pid, found in holders.items() if found.parent not in holders]
        return min(first, key=lambda pid: (holders[pid].start, pid), default=None)

    def cpus(self) -> Cpus:
        times = {}
        for number, cpu in enumerate(psutil.cpu_times(percpu=True)):
            guests = getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)  # in `user` already
            times[number] = (cpu.idle + getattr(cpu, "iowait", 0.0), sum(cpu) - guests)
        return Cpus(times, None)

    def machine_memory(self) -> tuple[int | None, int | None]:
        found = psutil.virtual_memory()
        return found.total, found.available
