"""The circuit breaker of one version: trips on evidence that its error rate is too high, not on a bad handful.

CUSUM (Page, "Continuous inspection schemes", Biometrika 1954): every call adds the log-likelihood ratio of "fails at
p1" against "fails at p0", held at 0 from below; at `TRIP` it trips. With p0 = 0.4 × and p1 = 2 × the configured rate,
5 % gives +1.609 per failure and −0.0852 per success: five straight failures trip it, half a false trip per million
calls at a true 1 %, 79 calls on average at a true 10 %.

After `open` seconds the version's share is ramped back in `RAMP` steps. Ten probes cannot clear a server, so each
step is a sequential test (Wald, "Sequential tests of statistical hypotheses", 1945) on its own calls: `RAMP_TRIP` of
evidence against it opens the breaker again at once, and for twice as long; `PASS` for it (36 clean calls at 5 %)
takes the next step.
"""

from __future__ import annotations

from math import log
from typing import Final, Literal

from unjam.core.spec import BreakerSpec

State = Literal["closed", "open", "ramping"]
Event = Literal["trip", "elapsed", "passed", "reset"]

#: Every change of state there is; (state, event) pairs that are missing cannot happen.
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    ("closed", "trip"): "open",
    ("open", "trip"): "open",
    ("open", "elapsed"): "ramping",
    ("ramping", "trip"): "open",
    ("ramping", "passed"): "closed",
    ("closed", "reset"): "closed",
    ("open", "reset"): "closed",
    ("ramping", "reset"): "closed",
}

#: Evidence (a log-likelihood ratio) at which a closed breaker trips.
TRIP: Final = 7.0
#: The same in a step of the ramp that is not cleared yet: the version has just been found bad, so less is needed to
#: doubt it again. Three straight failures are.
RAMP_TRIP: Final = 4.5
#: Evidence for the version that clears a step of the ramp: one bad version in e³ = 20 gets by, per step.
PASS: Final = 3.0
#: Shares of its weight that a recovering version gets, step by step.
RAMP: Final = (0.01, 0.1, 0.25, 0.5, 1.0)
#: No step is shorter than this part of `open`: a server that comes back cold must meet each load for a moment.
STEP_LEAST: Final = 1 / 12
#: Seconds; the longest that repeated trips make the breaker stay open (unless `open` itself is longer).
OPEN_MOST: Final = 600.0


def increments(error_rate: float, baseline: float = 0.0) -> tuple[float, float]:
    """What a failure adds to the evidence and what a success takes from it.

    `error_rate`: the rate to trip above, in (0, 1). `baseline`: the version's normal rate where it is known; p0 is
    never below it. Raises ValueError for rates out of range.
    """
    if not 0.0 < error_rate < 1.0 or not 0.0 <= baseline < 1.0:
        raise ValueError(f"error rate {error_rate} or baseline {baseline} is not between 0 and 1")
    p0 = max(0.4 * error_rate, baseline)
    # 2 × the rate, but short of certainty for rates near one half and above.
    p1 = min(max(2.0 * error_rate, 2.0 * p0), (1.0 + max(error_rate, p0)) / 2.0)
    return log(p1 / p0), log((1.0 - p0) / (1.0 - p1))


class Breaker:
    """`closed` is `state == "closed"`, for hot paths. `since`: monotonic seconds of the last change of state; `why`:
    its cause in words; `until`: when an open breaker starts to ramp; `evidence`: the CUSUM so far, 0 .. `TRIP`."""

    __slots__ = (
        "_cleared",
        "_down",
        "_in_a_row",
        "_opened_for",
        "_ratio",
        "_step_since",
        "_up",
        "calls",
        "closed",
        "evidence",
        "failures",
        "since",
        "spec",
        "state",
        "step",
        "trips",
        "until",
        "why",
    )

    def __init__(self, spec: BreakerSpec, baseline: float = 0.0) -> None:
        self.spec = spec
        self._up, self._down = increments(spec.error_rate, baseline)
        self.state: State = "closed"
        self.closed = True
        self.evidence = 0.0
        self.since = 0.0
        self.why = ""
        self.until = 0.0
        self.trips = 0
        #: Of the present step of the ramp.
        self.step = 0
        self.calls = 0
        self.failures = 0
        self._ratio = 0.0
        self._cleared = False
        self._step_since = 0.0
        self._in_a_row = 0
        self._opened_for = 0.0

    def record(self, failed: bool, now: float, started: float | None = None) -> bool:
        """One call ended. True when this trips the breaker.

        `started`: when the call began. Calls from before the last trip or reset say nothing about what has happened
        since, and work may take an hour: give it, and they are left out.
        """
        if self.closed and not failed:
            evidence = self.evidence
            if evidence > 0.0:
                evidence -= self._down
                self.evidence = evidence if evidence > 0.0 else 0.0
            return False
        if not self.spec.enabled or (started is not None and started < self.since):
            return False
        if self.closed:
            self.evidence += self._up
            if self.evidence < TRIP:
                return False
            self._trip(f"error rate above {self.spec.error_rate:.3g}", now)
            return True
        self._advance(now)
        if self.state != "ramping":
            return False
        return self._judge(failed, now)

    def share(self, now: float) -> float:
        """How much of its weight the version may get now, 0 .. 1. Takes the step from open to ramping when it is
        due."""
        if self.closed:
            return 1.0
        self._advance(now)
        return RAMP[self.step] if self.state == "ramping" else 0.0

    def tick(self, now: float) -> bool:
        """Let time do its part; True when `share` changed by it."""
        if self.closed:
            return False
        before = (self.state, self.step)
        self._advance(now)
        return before != (self.state, self.step)

    def trip(self, now: float, why: str) -> None:
        """Open at once: by hand, for a failed connect or for health checks. Already open: it stays open at least as
        long as a fresh trip would, without counting as another one."""
        if self.state == "open":
            self.until = max(self.until, now + self._opened_for)
            self.why = why
            return
        self._trip(why, now)

    def reset(self, now: float, why: str = "reset by hand") -> None:
        """Close at once and forget what has been seen."""
        self._in_a_row = 0
        self._opened_for = 0.0
        self._enter("reset", why, now)

    def configure(self, spec: BreakerSpec, baseline: float = 0.0) -> None:
        """Take a new specification without losing the state."""
        self._up, self._down = increments(spec.error_rate, baseline)
        self.spec = spec

    def _judge(self, failed: bool, now: float) -> bool:
        self.calls += 1
        if failed:
            self.failures += 1
            self._ratio += self._up
            self.evidence += self._up
            # A busy version has thousands of calls between the verdict and the end of the step: judged as if closed,
            # or about one good version in two would trip by chance.
            if self.evidence >= (TRIP if self._cleared else RAMP_TRIP):
                share = RAMP[self.step]
                self._trip(f"{self.failures} of {self.calls} calls failed at {share:.0%} of its weight", now)
                return True
        else:
            self._ratio -= self._down
            self.evidence = max(0.0, self.evidence - self._down)
            if self._ratio <= -PASS:
                self._cleared = True
            self._advance(now)
        return False

    def _advance(self, now: float) -> None:
        """What is due by `now`: open → ramping, the next step, ramping → closed."""
        if self.state == "open":
            if now < self.until:
                return
            self._enter("elapsed", "ramping back", now)
            return
        lasted = now - self._step_since
        if lasted < STEP_LEAST * self.spec.open:
            return
        # Too little traffic to be judged on: more of it is the only way to learn, but not for the last step.
        patient = lasted >= self.spec.open and self._ratio <= 0.0 and self.step < len(RAMP) - 1
        if not self._cleared and not patient:
            return
        if self.step == len(RAMP) - 1:
            self._enter("passed", f"{self.calls - self.failures} of {self.calls} calls were good", now)
        else:
            self._begin(self.step + 1, now)

    def _trip(self, why: str, now: float) -> None:
        # Tripping again before it has been closed for as long as it was open is the same trouble, not a new one.
        again = self.state == "ramping" or (self._opened_for > 0.0 and now - self.since < self._opened_for)
        self._in_a_row = self._in_a_row + 1 if again else 1
        most = max(self.spec.open, OPEN_MOST)
        self._opened_for = min(most, self.spec.open * 2.0 ** min(self._in_a_row - 1, 32))
        self.until = now + self._opened_for
        self.trips += 1
        self._enter("trip", why, now)

    def _enter(self, event: Event, why: str, now: float) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.closed = self.state == "closed"
        self.since = now
        self.why = why
        self._begin(0, now)

    def _begin(self, step: int, now: float) -> None:
        self.step = step
        self.calls = 0
        self.failures = 0
        self.evidence = 0.0
        self._ratio = 0.0
        self._cleared = False
        self._step_since = now
