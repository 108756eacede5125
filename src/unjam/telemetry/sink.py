"""Where log lines leave the process: a file, a pipe or a terminal, written without ever blocking or raising.

Lines that cannot be written yet (a pipe whose reader stalls, a full disk) wait in a bounded buffer; what does not fit
is dropped by whole lines and counted. A half-written line is finished before the next one, so a reader never sees two
lines torn into one. Appending to a regular file goes to the page cache and is taken as not blocking.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable

#: Bytes that may wait for a slow reader or a full disk.
MAX_BUFFERED = 1 << 20
#: POSIX: a pipe that polls writable takes this many bytes without blocking.
PIPE_CHUNK = select.PIPE_BUF


def is_tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _ignore(event: str, **fields: object) -> None:
    return None


class Sink:
    """`path`: a file, appended to (made with mode 0640), or None to write to the descriptor `fd`, which stays open.

    `on_trouble(event, **fields)` is told once when writing starts to fail (`stalled`, with why) and once when it works
    again (`resumed`, with the number of lines dropped). Raises OSError only when the file cannot be opened.
    """

    __slots__ = ("_buffer", "_fd", "_owned", "_poll", "_since", "dropped", "limit", "on_trouble", "path", "trouble")

    def __init__(
        self,
        path: str | None,
        *,
        fd: int = 1,
        limit: int = MAX_BUFFERED,
        on_trouble: Callable[..., None] = _ignore,
    ) -> None:
        self.path = path
        self.limit = limit
        self.on_trouble = on_trouble
        self.dropped = 0
        #: Why writing fails at present, or None.
        self.trouble: str | None = None
        self._since = 0
        self._buffer = bytearray()
        self._owned = path is not None
        self._fd = _open(path) if path is not None else fd
        self._poll = _poll_for(self._fd)

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def buffered(self) -> int:
        """Bytes that wait."""
        return len(self._buffer)

    def write(self, data: bytes) -> int:
        """Queue whole lines (each ends with a newline) and write what the other side takes. Returns lines dropped."""
        before = self.dropped
        if not self._buffer and self._poll is None:
            # The usual case, a healthy file: straight through.
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                pass  # met again, and dealt with, by flush()
        self._buffer += data
        if self._buffer or self.trouble is not None:
            self.flush()
            if len(self._buffer) > self.limit:
                self._trim()
        return self.dropped - before

    def _trim(self) -> None:
        """Drop the newest whole lines that do not fit. The first may be half written already: that one stays."""
        buffer = self._buffer
        keep = max(buffer.rfind(b"\n", 0, self.limit), buffer.find(b"\n")) + 1
        self.dropped += buffer.count(b"\n", keep)
        del buffer[keep:]

    def flush(self) -> None:
        """Write what waits, as far as the other side takes it."""
        buffer = self._buffer
        while buffer:
            try:
                if self._poll is None:
                    written = os.write(self._fd, buffer)
                elif self._poll.poll(0):
                    written = os.write(self._fd, buffer[:PIPE_CHUNK])
                else:
                    self._fail("the reader does not keep up")
                    return
            except BlockingIOError:
                self._fail("the reader does not keep up")
                return
            except OSError as error:
                self._fail(os.strerror(error.errno) if error.errno else "write failed")
                if error.errno in (errno.EPIPE, errno.EBADF, errno.ECONNRESET, errno.EIO):
                    # Nobody will ever read these; keeping them would only hide the loss.
                    self.dropped += buffer.count(b"\n")
                    buffer.clear()
                return
            del buffer[:written]
        if self.trouble is not None:
            self.trouble = None
            self.on_trouble("resumed", dropped=self.dropped - self._since)

    def reopen(self) -> str | None:
        """Open the path anew, after it was rotated away. What waits is written to the old file first. When the new one
        cannot be opened the old one stays in use; returns what went wrong, or None."""
        if self.path is None:
            return None
        self.flush()
        try:
            fd = _open(self.path)
        except OSError as error:
            return f"{self.path}: {os.strerror(error.errno) if error.errno else error}; still writing to the old file"
        os.close(self._fd)
        self._fd = fd
        self._poll = _poll_for(fd)
        return None

    def close(self) -> None:
        """Write what can be written; what remains is dropped and counted."""
        self.flush()
        self.dropped += self._buffer.count(b"\n")
        self._buffer.clear()
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._owned = False

    def _fail(self, why: str) -> None:
        if self.trouble is None:
            self.trouble = why
            self._since = self.dropped
            self.on_trouble("stalled", why=why)


def _open(path: str) -> int:
    # O_NONBLOCK: a named pipe without a reader is an error here, not a gateway that never starts.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return os.open(path, flags, 0o640)


def _poll_for(fd: int) -> select.poll | None:
    """A poller for descriptors that can block; None for regular files. The descriptor's own flags are left alone: those
    of stdout are shared with the process that started us."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return None
    except OSError:
        return None
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return poller
