"""The circuit breaker of one version: trips on evidence that its error rate is too high, not on a bad handful.

While closed a rule of `evidence` judges its calls; with p0 = 0.4 × and p1 = 2 × the configured rate, the default trips
after five straight failures, by chance half a time per million calls at a true 1 %, and after 79 calls on average at a
true 10 %. Verdicts on the quality of a sample of its answers are evidence of their own, so that a sample isn't diluted
by all the calls that nobody looked at.

After `open` seconds the version's share is ramped back in `RAMP` steps. Ten probes cannot clear a server, so each step
is a trial on its own calls: little against it opens the breaker again at once, and for twice as long; enough for it (36
clean calls at 5 %) takes the next step. No ramp lasts for ever with traffic: where quality tripped it and nobody judges
enough answers any more, its calls decide after `SILENCE`; switched off, it is judged by nothing and time takes every
step.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from unjam.core.evidence import TRIAL_TRIP as RAMP_TRIP
from unjam.core.evidence import TRIP, Cusum, Learnt, Trial, expected, increments, made_rule
from unjam.core.spec import BreakerSpec, QualitySpec

__all__ = ["RAMP", "RAMP_TRIP", "STATES", "TRANSITIONS", "TRIP", "Breaker", "increments"]

State = Literal["closed", "open", "ramping"]
STATES: Final[tuple[State, ...]] = get_args(State)
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

#: Shares of its weight that a recovering version gets, step by step.
RAMP: Final = (0.01, 0.1, 0.25, 0.5, 1.0)
#: No step is shorter than this part of `open`: a server that comes back cold must meet each load for a moment.
STEP_LEAST: Final = 1 / 12
#: For so many times `open` a step waits for verdicts on quality; then they are taken not to come.
SILENCE: Final = 5.0
#: Seconds; the longest that repeated trips make the breaker stay open (unless `open` itself is longer).
OPEN_MOST: Final = 600.0


class Breaker:
    """`closed` is `state == "closed"`, for hot paths; `watching`: False while a success would change nothing, so that
    it need not be recorded. `since`: monotonic seconds of the last change of state; `why`: its cause in words; `until`:
    when an open breaker starts to ramp. `learnt`: the version's normal rate of failures by its own calls, None unless
    `spec.learn` and until enough were seen."""

    __slots__ = (
        "_by_quality",
        "_errors",
        "_failed",
        "_given",
        "_in_a_row",
        "_judged_at",
        "_learner",
        "_noted",
        "_opened_for",
        "_quality",
        "_quality_rate",
        "_quality_trial",
        "_step_since",
        "_trial",
        "closed",
        "since",
        "spec",
        "state",
        "step",
        "trips",
        "until",
        "watching",
        "why",
    )

    def __init__(self, spec: BreakerSpec, baseline: float | None = None, quality: QualitySpec | None = None) -> None:
        self.spec = spec
        #: A normal rate that somebody else has measured.
        self._given = baseline
        self._learner = Learnt()
        #: Good calls at the last `note`; None: it has to begin.
        self._noted: int | None = 0
        self._failed = 0
        self._errors = made_rule(spec, self.baseline)
        self._quality: Cusum | None = None
        self._quality_rate = 0.0
        self.state: State = "closed"
        self.closed = True
        self.since = 0.0
        self.why = ""
        self.until = 0.0
        self.trips = 0
        #: Of the ramp.
        self.step = 0
        self._trial = Trial(spec.error_rate, self.baseline)
        self._quality_trial: Trial | None = None
        self._step_since = 0.0
        #: The last sampled verdict of the step, or its begin.
        self._judged_at = 0.0
        #: It was quality that tripped it: quality has to clear it.
        self._by_quality = False
        self._in_a_row = 0
        self._opened_for = 0.0
        self.watching = False
        self.judge_quality(quality)
        self._watch()

    # What was seen

    def record(self, failed: bool, now: float, started: float | None = None) -> bool:
        """One call ended. True when this trips the breaker.

        `started`: when the call began. Calls from before the last trip or reset say nothing about what has happened
        since, and work may take an hour: give it, and they are left out.
        """
        if self.closed and not failed:
            if self.watching and (started is None or started >= self.since):
                errors = self._errors
                errors.good()
                self.watching = errors.restless
            return False
        if started is not None and started < self.since:
            return False
        if self.closed:
            if not self.spec.enabled:
                return False
            self._failed += 1
            self.watching = True
            if not self._errors.bad():
                return False
            self._trip(self._errors.words(), now)
            return True
        self._advance(now)
        if self.state != "ramping" or not self.spec.enabled:
            return False
        if failed:
            return self._tried(self._trial.bad(), self._trial, now)
        self._trial.good()
        self._advance(now)
        return False

    def verdict(self, bad: bool, now: float, started: float | None, counted: bool, reason: str = "") -> bool:
        """Somebody judged the answer of a call that began at `started`. True when this trips the breaker.

        `counted`: the call counts as a success, now or at its end; a bad verdict makes that a failure, a good one
        changes nothing. Right after the end of the call it weighs as much as the failure would have, or up to one
        success less where hardly anything else was there; later it counts as a failure of now. Not `counted`: one of a
        sample of answers, good and bad; they are evidence of their own. `reason`: of a bad one, in words.
        """
        if not self.spec.enabled or (started is not None and started < self.since) or (counted and not bad):
            return False
        if not self.closed:
            self._advance(now)
        if self.state == "open":
            return False
        tail = f": {reason}" if reason else ""
        if counted:
            if self.state == "ramping":
                return self._tried(self._trial.worse(), self._trial, now, f", the last by a bad verdict{tail}")
            self._failed += 1
            if self._noted is not None:
                self._noted += 1
            self.watching = True
            if not self._errors.worse():
                return False
            self._trip(f"{self._errors.words()}, the last by a bad verdict{tail}", now)
            return True
        if self.state == "ramping":
            trial = self._quality_trial
            if trial is None:
                return False
            self._judged_at = now
            if bad:
                return self._tried(trial.bad(), trial, now, f" by their quality{tail}", by_quality=True)
            trial.good()
            self._advance(now)
            return False
        if self._quality is None:
            return False
        if not bad:
            self._quality.good()
            return False
        if not self._quality.bad():
            return False
        why = f"more than {100 * self._quality_rate:.3g} % of the answers looked at are bad{tail}"
        self._trip(why, now, by_quality=True)
        return True

    def ripe(self, now: float, started: float | None = None) -> bool:
        """Whether a call that failed now would trip it."""
        if not self.spec.enabled or (started is not None and started < self.since):
            return False
        if self.closed:
            return self._errors.ripe()
        self._advance(now)
        return self.state == "ramping" and self._trial.ripe()

    def start_anew(self, now: float) -> None:
        """What speaks against the version had another cause: forget it. The state stays, and what was said about
        quality."""
        if self.closed:
            self._errors.clear()
            self._watch()
        elif self.state == "ramping":
            self._trial = Trial(self.spec.error_rate, self.baseline)
            self._step_since = now

    def note(self, succeeded: int) -> None:
        """Learn what is normal, where `spec.learn`. `succeeded`: good calls ever; successes that changed nothing were
        not recorded. Called now and then."""
        before, self._noted = self._noted, succeeded
        failed, self._failed = self._failed, 0
        if not self.closed or not self.spec.learn or before is None or succeeded < before:
            return
        known = self.baseline
        if self._learner.add(succeeded - before, failed) and self.baseline != known:
            self._errors = made_rule(self.spec, self.baseline, self._errors)

    @property
    def evidence(self) -> float:
        """Against the version; it trips at `limit`. Of the present step while it ramps."""
        if self.closed:
            return self._errors.level
        return self._trial.evidence if self.state == "ramping" else 0.0

    @property
    def limit(self) -> float:
        return self._errors.limit if self.closed else self._trial.limit

    @property
    def quality_evidence(self) -> float | None:
        """Of the sampled verdicts; it trips at `quality_limit`. None: there are none for this version."""
        if self._quality is None:
            return None
        if self.closed:
            return self._quality.level
        return self._quality_trial.evidence if self._quality_trial is not None and self.state == "ramping" else 0.0

    @property
    def quality_limit(self) -> float | None:
        if self._quality is None:
            return None
        return TRIP if self.closed or self._quality_trial is None else self._quality_trial.limit

    @property
    def learnt(self) -> float | None:
        return self._learner.rate if self.spec.learn else None

    @property
    def baseline(self) -> float:
        """The rate of failures that it doesn't hold against the version: p0."""
        spec = self.spec
        known = self.learnt
        if known is None:
            known = self._given
        if known is None:
            return expected(spec.error_rate, spec.baseline or 0.0)
        # What is too much by the configuration never becomes normal.
        return expected(spec.error_rate, known if self.learnt is None else min(known, spec.error_rate))

    # Time, and by hand

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

    def configure(self, spec: BreakerSpec, baseline: float | None = None) -> None:
        """Take a new specification without losing the state. `baseline`: the version's normal rate of failures as
        measured elsewhere, say by the version that it replaces; None leaves what was given before."""
        if spec.learn and not self.spec.learn:
            self._learner = Learnt()
            self._noted = None
        self.spec = spec
        if baseline is not None:
            self._given = baseline
        self._errors = made_rule(spec, self.baseline, self._errors)
        self._watch()

    def judge_quality(self, spec: QualitySpec | None) -> None:
        """What to make of sampled verdicts; None: nothing."""
        if spec is None:
            self._quality = self._quality_trial = None
            return
        self._quality_rate = spec.error_rate
        if self._quality is None:
            self._quality = Cusum(spec.error_rate)
            if self.state == "ramping":
                self._quality_trial = Trial(spec.error_rate)
        else:
            self._quality.configure(spec.error_rate, 0.0)

    # Inside

    def _watch(self) -> None:
        self.watching = not self.closed or (self.spec.enabled and self._errors.restless)

    def _tried(self, against: bool, trial: Trial, now: float, how: str = "", by_quality: bool = False) -> bool:
        if against:
            self._trip(f"{trial.words()} at {RAMP[self.step]:.0%} of its weight{how}", now, by_quality)
        return against

    def _advance(self, now: float) -> None:
        """What is due by `now`: open → ramping, the next step, ramping → closed."""
        if self.state == "open":
            if now < self.until:
                return
            self._enter("elapsed", "ramping back", now)
            return
        lasted = now - self._step_since
        if not self.spec.enabled:
            # It judges nothing, so that only time can end what was begun by hand or by another gateway.
            if lasted >= self.spec.open:
                self._passed("back by time: the breaker is off", now)
            return
        if lasted < STEP_LEAST * self.spec.open:
            return
        trial = self._trial
        quality = self._quality_trial
        doubt = quality is not None and quality.ratio > 0.0
        awaited = quality is not None and self._by_quality and not quality.cleared
        unheard = ""
        if (doubt or awaited) and now - (self._judged_at if doubt else self._step_since) >= SILENCE * self.spec.open:
            # A shield that nobody can lift any more hides errors from everybody.
            doubt = awaited = False
            unheard = f"; too few of their answers were judged for {SILENCE * self.spec.open:.3g} s"
        cleared = trial.cleared and not doubt and not awaited
        # Too little traffic to be judged on: more of it is the only way to learn, but not for the last step.
        patient = lasted >= self.spec.open and trial.ratio <= 0.0 and not doubt and self.step < len(RAMP) - 1
        if cleared or patient:
            self._passed(f"{trial.calls - trial.failures} of {trial.calls} calls were good{unheard}", now)

    def _passed(self, why: str, now: float) -> None:
        """The next step; after the last one it closes, and `why` says for what reason."""
        if self.step == len(RAMP) - 1:
            self._enter("passed", why, now)
        else:
            self._begin(self.step + 1, now)

    def _trip(self, why: str, now: float, by_quality: bool = False) -> None:
        # Tripping again before it has been closed for as long as it was open is the same trouble, not a new one.
        again = self.state == "ramping" or (self._opened_for > 0.0 and now - self.since < self._opened_for)
        self._in_a_row = self._in_a_row + 1 if again else 1
        most = max(self.spec.open, OPEN_MOST)
        self._opened_for = min(most, self.spec.open * 2.0 ** min(self._in_a_row - 1, 32))
        self.until = now + self._opened_for
        self.trips += 1
        self._by_quality = by_quality or (again and self._by_quality)
        self._enter("trip", why, now)

    def _enter(self, event: Event, why: str, now: float) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.closed = self.state == "closed"
        self.since = now
        self.why = why
        self._errors.clear()
        self._failed = 0
        if self._quality is not None:
            self._quality.clear()
        if event == "reset":
            self._by_quality = False
        self._begin(0, now)
        self._watch()

    def _begin(self, step: int, now: float) -> None:
        self.step = step
        self._trial = Trial(self.spec.error_rate, self.baseline)
        self._quality_trial = Trial(self._quality_rate) if self._quality is not None else None
        self._step_since = self._judged_at = now
