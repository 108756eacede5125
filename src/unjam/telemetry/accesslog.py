"""The access log: one line per request, JSON for machines or a readable line for a person at a terminal.

`write` only keeps the entry; encoding happens in `flush`, which the gateway calls every 100 ms (and `write` itself at
`BATCH` records). Together about 2 µs per request. A line is lost only when its reader stalls or the disk is full, and
then it is counted (`sink.Sink`). Every value that a client can choose is escaped in both styles, and the query is not
logged.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec.structs import asdict, replace

from unjam.telemetry.escape import MAX_CHARS, printable
from unjam.telemetry.metrics import GatewayStats
from unjam.telemetry.sink import Sink, _ignore, is_tty

#: Records encoded at once: about a millisecond of work.
BATCH = 512

#: Characters kept of a request or trace id.
MAX_ID = 128

Style = Literal["auto", "json", "console"]

_STANDARD = {"stdout": 1, "stderr": 2}

#: Outcome of a request that never held a lease.
REFUSED = "refused"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One line. Every field is always there; null where it does not apply. The order is the order on the line."""

    time: str
    request_id: str
    client: str
    tenant: str | None
    method: str
    path: str
    service: str | None
    version: str | None
    endpoint: str | None
    lane: str | None
    status: int
    outcome: str
    reason: str | None
    bytes_in: int
    bytes_out: int
    queued_ms: float
    estimate_s: float | None
    first_byte_ms: float | None
    duration_ms: float
    retries: int
    trace_id: str | None


class Entry(msgspec.Struct, gc=False):
    """What is logged of one request at its end.

    `path`: without the query. `outcome`: a `core.model.Outcome`, or `REFUSED`. `status` 499: the client left.
    `first_byte`, `duration`: seconds from arrival, None when there was none; `estimate`, `queued`: seconds. `at`: wall
    time, set by `AccessLog.write`.
    """

    request_id: str
    client: str
    tenant: str | None
    method: str
    path: str
    status: int
    outcome: str
    reason: str | None = None
    service: str | None = None
    trace_id: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    first_byte: float | None = None
    duration: float = 0.0
    # Of those that were offered to the balancer.
    version: str | None = None
    endpoint: str | None = None
    lane: str | None = None
    estimate: float | None = None
    queued: float = 0.0
    retries: int = 0
    at: float = 0.0


class AccessLog:
    """`to`: `off`, `stdout`, `stderr` or a file's path. Off: `enabled` is False and the gateway skips the call.

    `style` auto: console when that is a terminal, JSON otherwise. `clock`: wall-clock seconds since the epoch.
    Raises OSError when the file cannot be opened.
    """

    __slots__ = (
        "_batch",
        "_clock",
        "_colours",
        "_encode",
        "_encoder",
        "_second",
        "_sink",
        "_stamp",
        "_stats",
        "enabled",
    )

    def __init__(
        self,
        to: str,
        *,
        stats: GatewayStats | None = None,
        style: Style = "auto",
        clock: Callable[[], float] = time.time,
        on_trouble: Callable[..., None] = _ignore,
    ) -> None:
        self.enabled = to != "off"
        self._stats = stats
        self._clock = clock
        self._batch: list[Entry] = []
        self._encoder = msgspec.json.Encoder()
        self._second = -1
        self._stamp = ""
        self._sink: Sink | None = None
        self._colours = False
        self._encode: Callable[[list[Entry]], bytes] = self._as_json
        if not self.enabled:
            return
        fd = _STANDARD.get(to)
        self._sink = Sink(to if fd is None else None, fd=1 if fd is None else fd, on_trouble=on_trouble)
        tty = is_tty(self._sink.fd)
        if style == "console" or (style == "auto" and tty):
            self._encode = self._as_console
            # https://no-color.org
            self._colours = tty and not os.environ.get("NO_COLOR")

    def write(self, entry: Entry) -> None:
        """Log one request."""
        entry.at = self._clock()
        batch = self._batch
        batch.append(entry)
        if len(batch) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Encode and write what was logged since; never raises, never waits."""
        sink = self._sink
        if sink is None:
            self._batch.clear()
            return
        batch = self._batch
        before = sink.dropped
        if batch:
            self._batch = []
            sink.write(self._encode(batch))
        elif sink.buffered:
            sink.flush()
        if self._stats is not None and sink.dropped != before:
            self._stats.log_dropped += sink.dropped - before

    def reopen(self) -> str | None:
        """After rotation (SIGHUP): go on in a new file of the same path. Returns what went wrong, or None."""
        if self._sink is None:
            return None
        self.flush()
        return self._sink.reopen()

    def close(self) -> None:
        self.flush()
        if self._sink is not None:
            before = self._sink.dropped
            self._sink.close()
            if self._stats is not None:
                self._stats.log_dropped += self._sink.dropped - before
            self._sink = None
        self.enabled = False

    def _time(self, at: float) -> str:
        """RFC 3339, UTC, milliseconds. The part down to the second is kept: most lines share it."""
        second = int(at)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return self._stamp + _MILLIS[int((at - second) * 1000)]

    def _as_json(self, batch: list[Entry]) -> bytes:
        try:
            data = self._encoder.encode_lines([self._record(entry) for entry in batch])
        except UnicodeEncodeError:
            # A lone surrogate somewhere: not text, but still a request that has to be seen.
            data = self._encoder.encode_lines([self._record(_clean(entry)) for entry in batch])
        # msgspec escapes what JSON requires: quotes and C0 controls. DEL, C1 controls and bidirectional marks would
        # pass. Looking at the whole batch once is cheaper than at four strings of each record.
        if not data.isascii() or b"\x7f" in data:
            data = _NOT_PLAIN.sub(_json_escape, data.decode()).encode("ascii")
        return data

    def _record(self, entry: Entry) -> Record:
        at, request_id, path = entry.at, entry.request_id, entry.path
        queued, estimate, first_byte = entry.queued, entry.estimate, entry.first_byte
        second = int(at)
        return Record(
            (self._stamp + _MILLIS[int((at - second) * 1000)]) if second == self._second else self._time(at),
            request_id if len(request_id) <= MAX_ID else request_id[:MAX_ID] + "…",
            entry.client,
            entry.tenant,
            entry.method,
            path if len(path) <= MAX_CHARS else path[:MAX_CHARS] + "…",
            entry.service,
            entry.version,
            entry.endpoint,
            entry.lane,
            entry.status,
            entry.outcome,
            entry.reason,
            entry.bytes_in,
            entry.bytes_out,
            int(queued * 1e4) / 10 if queued else 0.0,
            None if estimate is None else int(estimate * 1e3) / 1000,
            None if first_byte is None else int(first_byte * 1e4) / 10,
            int(entry.duration * 1e4) / 10,
            entry.retries,
            entry.trace_id,
        )

    def _as_console(self, batch: list[Entry]) -> bytes:
        return "".join([self._line(entry) for entry in batch]).encode("utf-8", "replace")

    def _line(self, entry: Entry) -> str:
        """`10:31:07.123 200 ok POST /agents/auditor auditor/v7 http://10.0.0.1:9000 heavy 1.2 s (queued 340 ms) …`"""
        paint = _paint if self._colours else _plain
        status = entry.status
        colour = _GREEN if status < 400 else _YELLOW if status < 500 else _RED
        words = [
            paint(_DIM, self._time(entry.at)[11:-1]),
            paint(colour, f"{status} {entry.reason or entry.outcome}"),
            f"{printable(entry.method)} {printable(entry.path, 200)}",
        ]
        if entry.service is not None:
            words.append(paint(_CYAN, f"{entry.service}/{entry.version}" if entry.version else entry.service))
        if entry.endpoint is not None:
            words.append(entry.endpoint)
        if entry.lane is not None:
            words.append(entry.lane)
        words.append(_human(entry.duration))
        notes = []
        if entry.estimate is not None:
            notes.append(f"expected {_human(entry.estimate)}")
        if entry.queued >= 0.001:
            notes.append(f"queued {_human(entry.queued)}")
        if entry.retries:
            notes.append(f"{entry.retries} {'retry' if entry.retries == 1 else 'retries'}")
        if entry.tenant:
            notes.append(printable(entry.tenant, 64))
        notes.append(f"{entry.bytes_out} B")
        notes.append(printable(entry.client, 64))
        notes.append(printable(entry.request_id, 64))
        words.append(paint(_DIM, ", ".join(notes)))
        return "  ".join(words) + "\n"


_MILLIS = tuple(f"{millisecond:03d}Z" for millisecond in range(1000))

#: Anything but printable ASCII and the newlines that end the lines.
_NOT_PLAIN = re.compile(r"[^\n -~]")


def _json_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _clean(entry: Entry) -> Entry:
    return replace(entry, **{name: printable(v) for name, v in asdict(entry).items() if isinstance(v, str)})


_DIM, _RED, _GREEN, _YELLOW, _CYAN = "2", "31", "32", "33", "36"


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def _plain(code: str, text: str) -> str:
    return text


def _human(seconds: float) -> str:
    """`0.8 ms`, `340 ms`, `1.2 s`, `12 min`."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"
