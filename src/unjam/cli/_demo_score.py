"""What the demo has measured of one side so far. Pure: times come from the sender, in seconds since its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unjam.cli._demo_traffic import KINDS, Shot

#: Rows of the tables: a chat is judged by its first word too, since that is what a reader waits for.
ROWS = ("hello", "chat", "first word", "script", "audit")


def quantile(values: Sequence[float], q: float) -> float | None:
    """Nearest rank: a value that was measured, never one between two. None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]


@dataclass(slots=True)
class Score:
    shots: Sequence[Shot]
    #: Seconds from sending to the last byte, by row; `first word`: to a chat's first byte of body.
    took: dict[str, list[float]] = field(default_factory=lambda: {row: [] for row in ROWS})
    #: Requests sent and not ended: number → when sent.
    open: dict[int, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    #: (kind, why) of every request that was not answered whole and right.
    failed: list[tuple[str, str]] = field(default_factory=list)
    #: Every hello: number → (when sent, seconds it took).
    hellos: dict[int, tuple[float, float]] = field(default_factory=dict)

    def begin(self, number: int, at: float) -> None:
        self.open[number] = at
        self.sent[self.shots[number].kind] += 1

    def end(self, number: int, seconds: float, first: float, why: str) -> None:
        at, kind = self.open.pop(number), self.shots[number].kind
        if kind == "hello":
            self.hellos[number] = at, seconds
        if why:
            self.failed.append((kind, why))
            return
        self.took[kind].append(seconds)
        if kind == "chat":
            self.took["first word"].append(first)

    @property
    def answered(self) -> int:
        return sum(len(self.took[kind]) for kind in KINDS)

    def quantiles(self, row: str, now: float) -> tuple[float | None, float | None]:
        """Median and 99th percentile. A request still open at `now` that is slower than the median already counts with
        the time it has had, lest a jam look fast for as long as nobody gets out of it."""
        took = self.took[row]
        middle = quantile(took, 0.5)
        if row in KINDS:
            waited = [now - at for number, at in self.open.items() if self.shots[number].kind == row]
            took = took + [seconds for seconds in waited if middle is not None and seconds > middle]
        return middle, quantile(took, 0.99)

    def slowest_hellos(self, now: float, width: int, until: float) -> list[float | None]:
        """The slowest hello sent in each `until / width` seconds, and how long an unanswered one has waited by `now`;
        None where none was sent, or the time has not come."""
        slowest: list[float | None] = [None] * width
        waiting = ((at, now - at) for number, at in self.open.items() if self.shots[number].kind == "hello")
        for at, seconds in (*self.hellos.values(), *waiting):
            place = min(width - 1, max(0, int(at / until * width)))
            slowest[place] = max(slowest[place] or 0.0, seconds)
        return slowest
