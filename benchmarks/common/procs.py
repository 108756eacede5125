"""Processes under measurement: start, stop by id, and read their own accounting from /proc (Linux).

CPU is what the kernel charged to the processes themselves (all threads, and every descendant alive), so other load on
the machine disturbs it far less than it disturbs latency. It includes the network work done in their system calls.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(root: int) -> list[int]:
    """`root` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue.extend(children.get(pid, ()))
    return found


def _ticks(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds used so far: from schedstat (ns) where the kernel keeps it, else utime + stime (10 ms steps)."""
    total = 0.0
    for pid in pids:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
            total += sum(int(Path(f"/proc/{pid}/task/{t}/schedstat").read_text().split()[0]) for t in tasks) / 1e9
        except (OSError, IndexError):
            try:
                total += _ticks(pid)
            except OSError:
                continue
    return total


def kernel_seconds(pids: Sequence[int]) -> float:
    """That part of their CPU spent in the kernel (stime, 10 ms steps): system calls and the network below them."""
    total = 0.0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[12]) / TICK
        except OSError:
            continue
    return total


def rss_bytes(pids: Sequence[int]) -> int:
    """Resident memory; pages shared between the processes are counted for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total


def pss_bytes(pids: Sequence[int]) -> int:
    """Resident memory with shared pages divided among those who share them (user space only: no socket buffers)."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """A port nobody holds, and that the system gives to nobody else for the next minute. `port`: this one, which was a
    server's. Raises OSError when it still is.

    It is left in TIME_WAIT: the system picks no such port for a socket that asks for any, but a server that asks for it
    by number with SO_REUSEADDR, as servers do, gets it. Who connects to it meanwhile is refused.
    """
    with socket.create_server((host, port)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((host, port)):
            listener.accept()[0].close()  # the end that closes first is the one that waits
        return port


class Process:
    """One started program, in a process group of its own so that all of it can be stopped by id."""

    __slots__ = ("_log", "_popen", "log", "name")

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._log = log.open("ab")
        self._popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def pids(self) -> list[int]:
        return tree(self._popen.pid)

    @property
    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._popen.poll()

    def check(self) -> None:
        """Raises RuntimeError, with the end of its log, when the program has died."""
        code = self._popen.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with status {code}:\n{tail}")

    def stop(self, grace: float = 3.0) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._popen.wait()
        self._log.close()


def http_get(port: int, path: str, host: str = "127.0.0.1", timeout: float = 2.0) -> int:
    """Status of one GET on a connection of its own; 0 when there is no answer."""
    try:
        with socket.create_connection((host, port), timeout) as s:
            s.settimeout(timeout)
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            head = s.recv(256)
    except OSError:
        return 0
    parts = head.split(b" ", 2)
    return int(parts[1]) if head.startswith(b"HTTP/1.") and len(parts) > 1 and parts[1].isdigit() else 0


def wait_until_ready(process: Process, port: int, path: str = "/health", within: float = 60.0) -> None:
    """Polls until `path` answers 200 twice in a row. Raises RuntimeError when the program dies or time is up."""
    deadline = time.monotonic() + within
    good = 0
    while good < 2:
        process.check()
        if time.monotonic() > deadline:
            tail = process.log.read_text(errors="replace")[-1000:]
            raise RuntimeError(f"{process.name} not ready on port {port} after {within:.0f} s; its log ends:\n{tail}")
        if http_get(port, path) == 200:
            good += 1
        else:
            good = 0
            time.sleep(0.1)
