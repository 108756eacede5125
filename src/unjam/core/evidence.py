"""What is made of calls that succeed and fail: rules that say when it is too much (`Rule`), a test of a few calls
(`Trial`), and what is normal for a version (`Learnt`).

Two rules. `Cusum` (Page, "Continuous inspection schemes", Biometrika 1954): every call adds the log-likelihood ratio of
"fails at p1" against "fails at p0", held at 0 from below. `Window`: so many of the last so many calls failed.
"""

from __future__ import annotations

from math import floor, log, sqrt
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from unjam.core.spec import BreakerSpec

#: Evidence (a log-likelihood ratio) at which `Cusum` trips.
TRIP: Final = 7.0
#: The same in a trial that is not cleared yet: what is on trial has just been found bad, so less is needed to doubt it
#: again. Three straight failures are.
TRIAL_TRIP: Final = 4.5
#: Evidence in favour that clears a trial: one bad version in e³ = 20 gets by.
PASS: Final = 3.0
#: Calls from which a normal rate is learnt, and after which it is worked out anew.
LEARN_CALLS: Final = 1000
#: From so many calls on, the older ones are forgotten by half.
LEARN_MOST: Final = 10_000
#: Normal quantile of a one-sided bound of 95 %.
_Z: Final = 1.6449


def increments(error_rate: float, baseline: float = 0.0) -> tuple[float, float]:
    """What a failure adds to the evidence and what a success takes from it.

    `error_rate`: the rate to trip above, in (0, 1). `baseline`: the version's normal rate where it is known; p0 is
    never below it. Raises ValueError for rates out of range.
    """
    p0 = expected(error_rate, baseline)
    # 2 × the rate, but short of certainty for rates near one half and above.
    p1 = min(max(2.0 * error_rate, 2.0 * p0), (1.0 + max(error_rate, p0)) / 2.0)
    return log(p1 / p0), log((1.0 - p0) / (1.0 - p1))


def expected(error_rate: float, baseline: float = 0.0) -> float:
    """p0: the rate at which a good version fails. Raises ValueError for rates out of range."""
    if not 0.0 < error_rate < 1.0 or not 0.0 <= baseline < 1.0:
        raise ValueError(f"error rate {error_rate} or baseline {baseline} is not between 0 and 1")
    return max(0.4 * error_rate, baseline)


class Rule(Protocol):
    """When a closed breaker trips. `level`: what speaks against the version, 0 for nothing; `restless`: one more
    success would change something."""

    @property
    def level(self) -> float: ...

    @property
    def limit(self) -> float:
        """The level of evidence at which it trips."""

    @property
    def restless(self) -> bool: ...

    def good(self) -> None:
        """A call succeeded."""

    def bad(self) -> bool:
        """A call failed. True: it trips, here and below."""

    def worse(self) -> bool:
        """A call that was counted as a success, or is about to be, was a failure."""

    def ripe(self) -> bool:
        """One more failure would trip."""

    def clear(self) -> None:
        """Forget what was seen."""

    def words(self) -> str:
        """Why it trips."""


class Cusum:
    """At 5 % a failure adds 1.609 and a success takes 0.0852: five straight failures trip it."""

    __slots__ = ("_down", "_rate", "_up", "level")

    limit: Final = TRIP

    def __init__(self, error_rate: float, baseline: float = 0.0) -> None:
        self.level = 0.0
        self.configure(error_rate, baseline)

    def configure(self, error_rate: float, baseline: float) -> None:
        """New rates; the level stays."""
        self._up, self._down = increments(error_rate, baseline)
        self._rate = error_rate

    @property
    def restless(self) -> bool:
        return self.level > 0.0

    def good(self) -> None:
        level = self.level - self._down
        self.level = level if level > 0.0 else 0.0

    def bad(self) -> bool:
        self.level += self._up
        return self.level >= TRIP

    def worse(self) -> bool:
        # At 0 the success took nothing, or less than it could: it is not given back, so that a verdict right after the
        # end of its call never weighs more than the failure would have, and at most one `_down` less.
        if self.level > 0.0:
            self.level += self._down
        return self.bad()

    def ripe(self) -> bool:
        return self.level + self._up >= TRIP

    def clear(self) -> None:
        self.level = 0.0

    def words(self) -> str:
        return f"error rate above {100 * self._rate:.3g} %"


class Window:
    """Trips at a failure when more than `error_rate` × `window` of the last `window` calls failed, and at least `least`
    were seen; calls that are not there yet count as good. Raises ValueError unless 1 ≤ least ≤ window."""

    __slots__ = ("_allowed", "_at", "_failed", "_least", "_ring", "_seen")

    def __init__(self, error_rate: float, window: int, least: int) -> None:
        if not 1 <= least <= window:
            raise ValueError(f"a window of {window} calls of which {least} have to be seen")
        self._ring = bytearray(window)
        self._at = 0
        self._seen = 0
        self._failed = 0
        self._least = least
        self._allowed = allowed(error_rate, window)

    def configure(self, error_rate: float, window: int, least: int) -> None:
        """New numbers; the latest calls stay."""
        kept = self.calls()[-window:]
        self.__init__(error_rate, window, least)  # type: ignore[misc]
        for failed in kept:
            self._push(failed)

    def calls(self) -> bytes:
        """Those in the window, the oldest first; 1 for a failure."""
        ring = bytes(self._ring)
        return ring[: self._seen] if self._seen < len(ring) else ring[self._at :] + ring[: self._at]

    @property
    def level(self) -> float:
        return float(self._failed)

    @property
    def limit(self) -> float:
        return self._allowed + 1.0

    @property
    def restless(self) -> bool:
        return self._failed > 0 or self._seen < len(self._ring)

    def good(self) -> None:
        self._push(0)

    def bad(self) -> bool:
        self._push(1)
        return self._tripped()

    def worse(self) -> bool:
        # The latest success stands for the one meant: how many failed is exact, their order isn't.
        found = self.calls().rfind(0)
        if found < 0:
            return self.bad()
        self._ring[(self._at - self._seen + found) % len(self._ring)] = 1
        self._failed += 1
        return self._tripped()

    def ripe(self) -> bool:
        ring = self._ring
        leaving = ring[self._at] if self._seen == len(ring) else 0
        return self._failed + 1 - leaving > self._allowed and self._seen + 1 >= self._least

    def clear(self) -> None:
        self._ring[:] = bytes(len(self._ring))
        self._at = self._seen = self._failed = 0

    def words(self) -> str:
        return f"{self._failed} of the last {self._seen} calls failed"

    def _tripped(self) -> bool:
        return self._failed > self._allowed and self._seen >= self._least

    def _push(self, failed: int) -> None:
        ring = self._ring
        at = self._at
        if self._seen < len(ring):
            self._seen += 1
        else:
            self._failed -= ring[at]
        ring[at] = failed
        self._failed += failed
        self._at = at + 1 if at + 1 < len(ring) else 0


def allowed(error_rate: float, window: int) -> int:
    """Failures among `window` calls that are not more than `error_rate` of them."""
    # 0.29 × 100 is 28.999…
    return floor(error_rate * window + 1e-9)


def made_rule(spec: BreakerSpec, baseline: float, before: Rule | None = None) -> Rule:
    """The rule of a specification; what `before` has seen goes on counting where it is of the same kind. Raises
    ValueError for an unknown rule and for rates out of range."""
    if spec.rule == "cusum":
        if isinstance(before, Cusum):
            before.configure(spec.error_rate, baseline)
            return before
        return Cusum(spec.error_rate, baseline)
    if spec.rule != "window":
        raise ValueError(f"unknown rule {spec.rule!r}; there are cusum and window")
    if isinstance(before, Window):
        before.configure(spec.error_rate, spec.window, spec.least)
        return before
    return Window(spec.error_rate, spec.window, spec.least)


class Trial:
    """A sequential test (Wald, "Sequential tests of statistical hypotheses", 1945): `ratio` is the evidence against the
    version, all calls counted; at −`PASS` it is `cleared`. `evidence` is the same held at 0 from below, and trips."""

    __slots__ = ("_down", "_up", "calls", "cleared", "evidence", "failures", "ratio")

    def __init__(self, error_rate: float, baseline: float = 0.0) -> None:
        self._up, self._down = increments(error_rate, baseline)
        self.calls = 0
        self.failures = 0
        self.ratio = 0.0
        self.evidence = 0.0
        self.cleared = False

    @property
    def limit(self) -> float:
        # A busy version has thousands of calls between the verdict and the end of the step: judged as if closed, or
        # about one good version in two would trip by chance.
        return TRIP if self.cleared else TRIAL_TRIP

    def good(self) -> None:
        self.calls += 1
        self.ratio -= self._down
        self.evidence = max(0.0, self.evidence - self._down)
        if self.ratio <= -PASS:
            self.cleared = True

    def bad(self) -> bool:
        self.calls += 1
        return self._against(self._up, self._up)

    def worse(self) -> bool:
        """A call that was counted as a success, or is about to be, was a failure."""
        return self._against(self._up + self._down, self._up + (self._down if self.evidence > 0.0 else 0.0))

    def ripe(self) -> bool:
        return self.evidence + self._up >= self.limit

    def words(self) -> str:
        return f"{self.failures} of {max(self.calls, self.failures)} calls failed"

    def _against(self, ratio: float, evidence: float) -> bool:
        self.failures += 1
        self.ratio += ratio
        self.evidence += evidence
        return self.evidence >= self.limit


class Learnt:
    """A version's normal rate of failures. `rate`: what to expect of it, None until `LEARN_CALLS` calls were seen."""

    __slots__ = ("_calls", "_due", "_failures", "rate")

    def __init__(self) -> None:
        self._calls = 0
        self._failures = 0
        self._due = LEARN_CALLS
        self.rate: float | None = None

    def add(self, good: int, failed: int) -> bool:
        """Count so many more calls. True when the rate was worked out anew."""
        self._calls += good + failed
        self._failures += failed
        self._due -= good + failed
        if self._due > 0:
            return False
        self._due = LEARN_CALLS
        self.rate = normal_rate(self._failures, self._calls)
        if self._calls >= LEARN_MOST:
            self._calls //= 2
            self._failures //= 2
        return True


def normal_rate(failures: int, calls: int) -> float | None:
    """The rate that a version which failed so often may be expected to have; None for fewer than `LEARN_CALLS` calls.

    The upper end of Wilson's interval (1927), one-sided 95 %, as of `LEARN_CALLS` calls however many there were: a p0
    at the very rate of a version would trip it about 20 times in a million calls by chance; this far above, at most
    twice.
    """
    if calls < LEARN_CALLS:
        return None
    rate = failures / calls
    spread = _Z * _Z / LEARN_CALLS
    return (rate + spread / 2.0 + sqrt(spread * (rate * (1.0 - rate) + spread / 4.0))) / (1.0 + spread)
