"""What an operating system says of itself and its processes; `Linux` from /proc, others through psutil.

psutil answers everywhere, but on Linux it is several times as dear as the two or three files that are needed, and it
names one process where several hold a socket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from unjam.reporter import files

_TICK: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

#: Seconds. The kernel doesn't say more exactly when a process began.
LEAST_AGE: Final = _TICK

_LISTEN: Final = b"0A"
_MANAGERS: Final = frozenset({b"systemd\n", b"init\n"})

# Columns of a CPU's line in /proc/stat: proc_stat(5). Guests' time is in `user` already.
_IDLE: Final = 3
_COUNTED: Final = 8


@dataclass(frozen=True, slots=True)
class Process:
    """`start`: when it began, on the clock of `System.now`; with the pid it is what makes a process itself. `own`:
    seconds of CPU it used; `reaped`: seconds that children used which ended and were waited for. `space`: bytes of
    address space."""

    start: float
    parent: int
    dead: bool
    own: float
    reaped: float
    space: int


@dataclass(frozen=True, slots=True)
class Cpus:
    """`times`: (idle, all) time by CPU, in whatever unit, since boot. `running`: tasks that run or could."""

    times: dict[int, tuple[float, float]]
    running: int | None


class System(Protocol):
    """None: not known, or the process has ended. Nothing raises for either."""

    def process(self, pid: int) -> Process | None: ...

    def pids(self) -> set[int]: ...

    def now(self) -> float:
        """Seconds, on the clock of `Process.start`."""

    def memory(self, pid: int) -> int | None:
        """Bytes of memory that are its own."""

    def open_files(self, pid: int) -> int | None:
        """Descriptors it holds."""

    def listens(self, pid: int, port: int) -> bool:
        """Whether this process listens on this local TCP port."""

    def listener(self, port: int) -> int | None:
        """The process that listens on this local TCP port.

        When several hold the socket it is the one whose parent doesn't: a server's first process, not its workers. A
        service manager that keeps the socket for the server isn't the server.
        """

    def cpus(self) -> Cpus: ...

    def machine_memory(self) -> tuple[int | None, int | None]:
        """(all there is, what could still be used), bytes."""


def system(proc: str = "/proc") -> System:
    """The system we run on; Linux where `proc` is a folder."""
    if proc != "/proc" or os.path.isdir("/proc/self"):
        return Linux(proc)
    from unjam.reporter.elsewhere import Elsewhere

    return Elsewhere()


class Linux:
    """`proc`: where the kernel's files are."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._counts_at_once = _counts_at_once(proc)

    def process(self, pid: int) -> Process | None:
        text = files.read(f"{self._proc}/{pid}/stat")
        if not text:
            return None
        # The name is the program's own choice, brackets and blanks included: what follows the last bracket isn't.
        words = text[text.rfind(b")") + 1 :].split(None, 21)
        try:
            return Process(
                start=int(words[19]) * _TICK,
                parent=int(words[1]),
                dead=words[0] in (b"Z", b"X"),
                own=(int(words[11]) + int(words[12])) * _TICK,
                reaped=(int(words[13]) + int(words[14])) * _TICK,
                space=int(words[20]),
            )
        except (IndexError, ValueError):
            return None

    def pids(self) -> set[int]:
        return {int(name) for name in files.names(self._proc) or () if name.isdigit()}

    def now(self) -> float:
        words = (files.read(f"{self._proc}/uptime") or b"").split()
        try:
            return float(words[0])
        except (IndexError, ValueError):
            return float("inf")  # of no process can it be said that it began in the interval

    def memory(self, pid: int) -> int | None:
        """Resident without shared pages.

        The exact figure (PSS: shared pages divided among those who share them) costs a walk through the page tables,
        milliseconds per GiB. This one leaves shared libraries out and counts pages that a fork still shares with its
        parent for both.
        """
        words = (files.read(f"{self._proc}/{pid}/statm") or b"").split()
        try:
            return max(0, int(words[1]) - int(words[2])) * _PAGE
        except (IndexError, ValueError):
            return None

    def open_files(self, pid: int) -> int | None:
        folder = f"{self._proc}/{pid}/fd"
        if self._counts_at_once:
            try:
                return os.stat(folder).st_size
            except OSError:
                return None
        found = files.names(folder)
        return None if found is None else len(found)

    def listens(self, pid: int, port: int) -> bool:
        return _holds(f"{self._proc}/{pid}/fd", self._listening(port))

    def listener(self, port: int) -> int | None:
        sockets = self._listening(port)
        if not sockets:
            return None
        holders: dict[int, Process] = {}
        for pid in self.pids():
            if _holds(f"{self._proc}/{pid}/fd", sockets):
                found = self.process(pid)
                if found is not None and not found.dead:
                    holders[pid] = found
        managers = {pid for pid in holders if files.read(f"{self._proc}/{pid}/comm") in _MANAGERS}
        if len(managers) < len(holders):
            for pid in managers:
                del holders[pid]
        first = [pid for pid, found in holders.items() if found.parent not in holders]
        return min(first, key=lambda pid: (holders[pid].start, pid), default=None)

    def _listening(self, port: int) -> set[str]:
        wanted = b":%04X" % port
        sockets = set()
        for name in ("tcp", "tcp6"):
            for words in _listening(f"{self._proc}/net/{name}"):
                if words[1].endswith(wanted):
                    sockets.add(f"socket:[{words[9].decode('ascii', 'replace')}]")
        return sockets

    def cpus(self) -> Cpus:
        text = files.read(f"{self._proc}/stat") or b""
        times: dict[int, tuple[float, float]] = {}
        running = None
        for line in text.splitlines():
            words = line.split(None, _COUNTED + 1)
            if not words:
                continue
            try:
                if words[0] == b"procs_running":
                    running = int(words[1])
                elif words[0].startswith(b"cpu") and words[0] != b"cpu":
                    ticks = [int(word) for word in words[1 : 1 + _COUNTED]]
                    if len(ticks) > _IDLE:
                        # Waiting for a disk leaves the CPU to whoever can use it; stolen time is somebody's use.
                        times[int(words[0][3:])] = (sum(ticks[_IDLE : _IDLE + 2]), sum(ticks))
            except (IndexError, ValueError):
                continue
        return Cpus(times, running)

    def machine_memory(self) -> tuple[int | None, int | None]:
        table = files.table(files.read(f"{self._proc}/meminfo"))
        total, available = table.get(b"MemTotal"), table.get(b"MemAvailable")
        return (None if total is None else total * 1024), (None if available is None else available * 1024)


def _listening(path: str) -> Iterator[list[bytes]]:
    """The rows of listening sockets in a table of TCP sockets: proc_pid_net(5).

    The kernel has them first. What follows, every connection there is, may take a tenth of a second to read.
    """
    try:
        with open(path, "rb") as table:
            next(table, None)  # the heading
            for line in table:
                words = line.split()
                if len(words) < 10 or words[3] != _LISTEN:
                    return
                yield words
    except OSError:
        return


def _holds(folder: str, sockets: set[str]) -> bool:
    for name in files.names(folder) or ():
        try:
            if os.readlink(f"{folder}/{name}") in sockets:
                return True
        except OSError:
            continue  # closed meanwhile
    return False


def _counts_at_once(proc: str) -> bool:
    """Whether this kernel (Linux 6.2 and later) says how many descriptors a process has without listing them."""
    folder = f"{proc}/self/fd"
    try:
        return 0 < os.stat(folder).st_size == len(os.listdir(folder)) - 1  # the listing itself takes one
    except OSError:
        return False
