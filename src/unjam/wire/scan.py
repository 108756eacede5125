"""Cutting a byte stream into CRLF lines so that the verdict depends on the stream alone, not on how it was split.

The scanner sees every line in order and stops at the first offence. Whatever ends a line wrongly or makes it too long
is refused at the byte that shows it, whether or not the rest has arrived: a bare LF is never waited on.
"""

from __future__ import annotations

from collections.abc import Callable

from unjam.wire.errors import Malformed


class Scanner:
    """Collects lines up to and including the first empty one.

    `line`, `field` and `total` are bounds in bytes for the first line, the others, and all with their line ends;
    `reasons` are the codes for exceeding each. `check(line, index)` is called for each line as it is completed.
    """

    __slots__ = ("_buffer", "_check", "_field", "_line", "_reasons", "_seek", "_start", "_total", "lines")

    def __init__(
        self,
        line: int,
        field: int,
        total: int,
        reasons: tuple[str, str, str],
        check: Callable[[bytes, int], None],
    ) -> None:
        self._line = line
        self._field = field
        self._total = total
        self._reasons = reasons
        self._check = check
        self._buffer = bytearray()
        self._start = 0  # where the current line began
        self._seek = 0  # everything before was searched for line ends
        self.lines: list[bytes] = []

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished section are held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> bytes | None:
        """The bytes after the empty line once it is reached, else None. Raises `Malformed`."""
        buffer = self._buffer
        buffer += data
        while True:
            start = self._start
            end = buffer.find(b"\r\n", self._seek)
            if self.lines:
                budget, reason = self._field, self._reasons[1]
            else:
                budget, reason = self._line, self._reasons[0]
            left = self._total - start - 2
            if left < budget:
                budget, reason = left, self._reasons[2]
            # A CR at the very end may still become a CRLF.
            last = end if end >= 0 else len(buffer) - buffer.endswith(b"\r")
            bare = buffer.find(b"\n", self._seek, last)
            cr = buffer.find(b"\r", self._seek, last if bare < 0 else bare)
            if cr >= 0:
                bare = cr
            if 0 <= bare <= start + budget:
                raise Malformed("bare_cr_or_lf")
            if last - start > budget:
                raise Malformed(reason)
            if end < 0:
                self._seek = max(start, last)
                return None
            line = bytes(buffer[start:end])
            self._start = self._seek = end + 2
            if not line:
                return bytes(buffer[end + 2 :])
            self._check(line, len(self.lines))
            self.lines.append(line)
