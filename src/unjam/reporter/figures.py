"""What a server tells of its load from within: the value of its response header, and the JSON at its own path.

The counts are exact. The machine's figures are read at most once in `every` seconds, when somebody asks, by a thread of
their own: no request waits for them. Figures that nobody asked for in a while are old, and not told.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from unjam.reporter.inflight import Counter, Local, shared
from unjam.wire import orca

PATH: Final = "/.well-known/unjam/load"
#: Requests with one of these came through a gateway or another proxy: from somebody who may not be meant to know.
FORWARDED: Final = frozenset({b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"})

Format = Literal["text", "json"]

#: A reading older than this many times `every`, and than this many seconds, is not told.
_STALE: Final = 3.0
_LEAST_STALE: Final = 5.0
#: A share of the CPU since long ago says nothing of now: then it is measured over this many seconds.
_SHORT: Final = 0.25
_MOST_MEMO: Final = 1024


class HasRead(Protocol):
    """A `unjam.reporter.machine.Machine`, or anything whose `read()` has a `to_load()`."""

    def read(self) -> Any: ...


class Figures:
    """The figures of one server process, or of all that share a counter."""

    def __init__(
        self,
        *,
        every: float = 1.0,
        format: Format = "text",  # noqa: A002
        machine: HasRead | None = None,
        waiting: Callable[[], int] | None = None,
        shared_file: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ValueError for an `every` or `format` that cannot be; what `shared` raises for its file."""
        if not (math.isfinite(every) and every > 0):
            raise ValueError("every must be a number of seconds above 0")
        if format not in ("text", "json"):
            raise ValueError("format must be text or json")
        self.counter: Counter = Local() if shared_file is None else shared(shared_file)
        self._every = every
        self._stale = max(_LEAST_STALE, _STALE * every)
        self._write = orca.to_text if format == "text" else orca.to_json
        self._machine = machine
        self._waiting = waiting
        self._clock = clock
        self._load: dict[str, Any] = {}
        self._tried_at = self._read_at = -math.inf
        self._reading = threading.Lock()
        self._memo: dict[tuple[int, int], bytes] = {}

    def header(self) -> bytes:
        """The value of `endpoint-load-metrics` as of now."""
        counts = self.counter.totals(self._own_waiting())
        load = self._fresh()
        memo = self._memo
        value = memo.get(counts)
        if value is None:
            value = self._write(orca.figures({**load, **self._counts(counts)})).encode()
            if len(memo) >= _MOST_MEMO:
                memo.clear()
            memo[counts] = value
        return value

    def body(self) -> bytes:
        """The JSON object as of now: the names of a report's `load`."""
        counts = self.counter.totals(self._own_waiting(), sweep=True)
        return json.dumps({**self._fresh(), **self._counts(counts)}).encode() + b"\n"

    def _counts(self, counts: tuple[int, int]) -> dict[str, int]:
        in_flight, waiting = counts
        if self._waiting is None:
            return {"in_flight": in_flight}
        # Counted at different moments; of those in flight it can't be more.
        return {"in_flight": in_flight, "waiting": min(waiting, in_flight)}

    def _own_waiting(self) -> int:
        return 0 if self._waiting is None else max(0, int(self._waiting()))

    def _fresh(self) -> dict[str, Any]:
        """The machine's figures, unless they are old; has them read anew when it is time. A reading that fails is
        Python's `threading.excepthook`'s to show, and the next one is as far off as after one that went well."""
        if self._machine is None:
            return self._load
        now = self._clock()
        if now - self._tried_at >= self._every and self._reading.acquire(blocking=False):
            self._tried_at = now
            reader = threading.Thread(target=self._refresh, args=(now,), name="unjam-load", daemon=True)
            try:
                reader.start()
            except RuntimeError:  # the system gives no more threads, or the interpreter is shutting down
                self._reading.release()
        if self._load and now - self._read_at > self._stale:
            self._set({})
        return self._load

    def _refresh(self, now: float) -> None:
        assert self._machine is not None
        try:
            reading = self._machine.read()
            if now - self._read_at > self._stale:
                time.sleep(min(_SHORT, self._every))
                reading = self._machine.read()
            load = reading.to_load()
            self._write(orca.figures(load))  # what can't be told is found here, not under a response
            self._set(load)
            self._read_at = self._clock()
        finally:
            self._tried_at = self._clock()
            self._reading.release()

    def _set(self, load: dict[str, Any]) -> None:
        self._load = load
        self._memo = {}
