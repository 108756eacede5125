"""How many requests are in flight: in this process, or in all processes that share a file.

`Shared` holds one slot of a mapped file per process. A slot belongs to the process that holds a lock on its byte, and
the kernel lets go of the lock when that process ends, however it ends: what a killed worker counted is gone with it.
Neither a process number used again nor a container's own numbering can be taken for it. (POSIX record locks are not
inherited by a fork, so that a forked worker takes a slot of its own; they hold within one kernel, not over NFS.)
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

logger = logging.getLogger("unjam.reporter")

#: Processes that can share a file.
MOST_PROCESSES: Final = 512
#: Seconds between two looks for slots whose process is gone.
SWEEP: Final = 0.5

#: The file, in unsigned numbers of 32 bits: two of magic, where the slots that were ever taken end, nothing, and two
#: for each slot, in flight and waiting. Its first byte is the lock under which slots are taken.
_MAGIC: Final = b"unjam1\n\0"
_END: Final = 2
_FIRST: Final = 4
_SIZE: Final = (_FIRST + MOST_PROCESSES * 2) * 4


class Counter(Protocol):
    """Counts requests from `begin` to `end`; each `begin` must have its one `end`. Safe from any thread."""

    def begin(self) -> None: ...
    def end(self) -> None: ...

    def totals(self, waiting: int = 0, *, sweep: bool = False) -> tuple[int, int]:
        """(in flight, waiting), where `waiting` of this process's are waiting; `sweep`: look now for processes that
        are gone, and not only once in a while."""
        ...


class Local:
    """Of this process."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self._count += 1

    def end(self) -> None:
        with self._lock:
            self._count -= 1

    def totals(self, waiting: int = 0, *, sweep: bool = False) -> tuple[int, int]:
        return self._count, min(waiting, self._count)


class Shared:
    """Of all processes that use the file `path`, which is made if it isn't there. Get one with `shared(path)`.

    How many wait in other processes is as they last said, never more than they have in flight. Raises OSError when the
    file can't be made or mapped, ValueError when it is something else's.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._map = self._opened(path)
        except BaseException:
            os.close(self._fd)
            raise
        self._numbers = memoryview(self._map).cast("I")
        self._forget()

    def _opened(self, path: str) -> mmap.mmap:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a file")
        if found.st_uid not in (0, os.geteuid()):
            raise ValueError(f"{path} belongs to somebody else")  # who could cut it short under us
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, 0)
        try:
            if os.fstat(self._fd).st_size == 0:
                os.truncate(self._fd, _SIZE)
                os.pwrite(self._fd, _MAGIC, 0)
            if os.fstat(self._fd).st_size != _SIZE or os.pread(self._fd, len(_MAGIC), 0) != _MAGIC:
                raise ValueError(f"{path} is not a counter of unjam's")
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)
        return mmap.mmap(self._fd, _SIZE)

    def _forget(self) -> None:
        self._owner = 0
        self._slot = -1
        self._count = 0
        self._swept = -1e9

    def begin(self) -> None:
        with self._lock:
            if self._owner != os.getpid():
                self._claim()
            self._count += 1
            self._write(self._count)

    def end(self) -> None:
        with self._lock:
            if self._owner != os.getpid():
                return  # begun before a fork: the parent's to end
            self._count -= 1
            self._write(self._count)
            if self._slot >= 0 and self._numbers[self._slot + 1] > self._count:
                self._numbers[self._slot + 1] = self._count

    def totals(self, waiting: int = 0, *, sweep: bool = False) -> tuple[int, int]:
        with self._lock:
            if self._owner != os.getpid():
                self._claim()
            waiting = min(waiting, self._count)
            if self._slot < 0:
                return self._count, waiting
            self._numbers[self._slot + 1] = waiting
            now = self._clock()
            if sweep or now - self._swept >= SWEEP:
                self._swept = now
                self._sweep()
            numbers = self._numbers[_FIRST : self._end()].tolist()
        return sum(numbers[::2]), sum(numbers[1::2])

    def _write(self, count: int) -> None:
        if self._slot >= 0:
            self._numbers[self._slot] = count

    def _claim(self) -> None:
        """Take a slot, once in a process's life."""
        self._forget()
        self._owner = os.getpid()
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, 0)
        try:
            for slot in range(_FIRST, _FIRST + MOST_PROCESSES * 2, 2):
                if self._try_lock(slot):
                    self._numbers[slot] = self._numbers[slot + 1] = 0
                    self._slot = slot
                    self._numbers[_END] = max(self._end(), slot + 2)
                    return
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)
        logger.warning("more than %d processes share a counter: this one counts alone", MOST_PROCESSES)

    def _end(self) -> int:
        return min(max(_FIRST, self._numbers[_END]), _FIRST + MOST_PROCESSES * 2)

    def _sweep(self) -> None:
        """Empty the slots whose process is gone."""
        numbers = self._numbers
        for slot in range(_FIRST, self._end(), 2):
            if (numbers[slot] or numbers[slot + 1]) and slot != self._slot and self._try_lock(slot):
                numbers[slot] = numbers[slot + 1] = 0
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, slot * 4)

    def _try_lock(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot * 4)
        except (BlockingIOError, PermissionError):  # which of the two is the system's choice
            return False
        return True


_opened: dict[str, Shared] = {}
_opening = threading.Lock()


def shared(path: str | os.PathLike[str]) -> Shared:
    """The counter in the file `path`: one object per file, because a process loses its locks with the first of its
    descriptors of a file that is closed, and so none of them ever is. A symbolic link is not followed: in a folder
    that others write to, it may be anybody's."""
    folder, file = os.path.split(os.path.abspath(path))
    name = os.path.join(os.path.realpath(folder), file)
    with _opening:
        if name not in _opened:
            _opened[name] = Shared(name)
        return _opened[name]
