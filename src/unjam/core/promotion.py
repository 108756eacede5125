"""A progressive rollout: a new version gets a larger share step by step while it is no worse than the old ones, and
none at all once it is.

At the end of each step (`hold` seconds, and `min_requests` calls of the new version since it began) the two are
compared on what happened during the step, each time by Fisher's exact test on a two-by-two table, one-sided ("The logic
of inductive inference", 1935): failed calls, bad verdicts, and, lane by lane, calls slower than the old versions' 95th
percentile by more than `SLACK` and `LEAST_SLOWER`. Below `ALPHA` the new one is worse and goes back to 0; a trip of its
breaker sends it there at once. One look per step: a test that is repeated at every call finds a difference in the end,
whether there is one or not.
"""

from __future__ import annotations

from collections import deque
from math import exp, lgamma
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from unjam.core.spec import FAST, HEAVY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unjam.core.spec import RolloutSpec

State = Literal["running", "paused", "promoted", "rolled_back"]
STATES: Final[tuple[State, ...]] = get_args(State)

#: Chance of calling a version worse that isn't, per comparison.
ALPHA: Final = 0.01
#: How much slower than the old versions' 95th percentile a call may be and still count as no slower.
SLACK: Final = 1.1
#: And by how many seconds at least: a version with hardly any traffic finds caches and connections cold.
LEAST_SLOWER: Final = 0.01
#: The latest durations of each lane that are kept, on either side.
KEPT: Final = 2000
#: Fewer than this many on either side tell nothing of a 95th percentile.
TIMED: Final = 40
#: Failures or bad verdicts that are needed to call a version worse, whatever the odds.
LEAST: Final = 3


class Seen(NamedTuple):
    """What one side has done so far. `calls` and `failures` as the breaker counts them; `bad` of `judged` verdicts."""

    calls: int
    failures: int
    judged: int
    bad: int

    def since(self, before: Seen) -> Seen:
        return Seen(*(max(0, now - then) for now, then in zip(self, before, strict=True)))


class Times:
    """Durations of calls that ended well, seconds: the latest `KEPT` of each lane and side. `version`: the new one."""

    __slots__ = ("_kept", "version")

    def __init__(self, version: str) -> None:
        self.version = version
        self._kept: dict[tuple[bool, bool], deque[float]] = {
            (new, heavy): deque(maxlen=KEPT) for new in (False, True) for heavy in (False, True)
        }

    def note(self, version: str, heavy: bool, seconds: float) -> None:
        self._kept[version == self.version, heavy].append(seconds)

    def of(self, new: bool, heavy: bool) -> Sequence[float]:
        return self._kept[new, heavy]


def worse(hits: int, calls: int, other_hits: int, other_calls: int) -> float:
    """The chance of seeing at least this many hits among these calls if both sides had the same rate: the upper tail
    of the hypergeometric distribution. 1.0 where either side is empty."""
    if not calls or not other_calls:
        return 1.0
    total = hits + other_hits
    least, most = max(0, total - other_calls), min(total, calls)
    if hits <= least:
        return 1.0
    # Away from the mean, where the terms fall off, and no further than they count: the gateway waits meanwhile.
    if hits > total * calls / (calls + other_calls):
        return min(1.0, _sum(calls, other_calls, total, hits, most))
    return max(0.0, 1.0 - _sum(calls, other_calls, total, hits - 1, least))


def _sum(calls: int, others: int, total: int, start: int, end: int) -> float:
    """Of the chances of `start` to `end` hits among `calls`, of `total` among both sides."""
    term = exp(_log_choose(calls, start) + _log_choose(others, total - start) - _log_choose(calls + others, total))
    found, k = term, start
    while k != end and term > found * 1e-17:
        if end > start:
            term *= (calls - k) * (total - k) / ((k + 1) * (others - total + k + 1))
            k += 1
        else:
            term *= k * (others - total + k) / ((calls - k + 1) * (total - k + 1))
            k -= 1
        found += term
    return found


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


class Promotion:
    """The rollout of one version. `step`: index into the specification's steps; `since`: monotonic seconds at which it
    began, with a pause taken out; `why`: of the last change, in words; `times`: the step's, for `Service.times`."""

    __slots__ = ("_new", "_old", "_paused_at", "since", "spec", "state", "step", "times", "why")

    def __init__(self, spec: RolloutSpec) -> None:
        self.spec = spec
        self.state: State = "running"
        self.step = 0
        self.since = 0.0
        self.why = ""
        self.times = Times(spec.version)
        self._paused_at: float | None = None
        self._new = self._old = Seen(0, 0, 0, 0)

    @property
    def share(self) -> float:
        """Of the service's traffic that the new version is to have now, 0 .. 1."""
        if self.state == "rolled_back":
            return 0.0
        return 1.0 if self.state == "promoted" else self.spec.steps[self.step]

    def begin(self, step: int, new: Seen, old: Seen, now: float, why: str) -> None:
        """Enter a step, with all that is compared from here on. Raises IndexError for one that isn't there."""
        self.spec.steps[step]
        self.state = "running"
        self.step = step
        self.since = now
        self.why = why
        self.times = Times(self.spec.version)
        self._paused_at = None
        self._new, self._old = new, old

    def recount(self, new: Seen, old: Seen) -> None:
        """Who is compared has changed: what the step is judged on begins anew, its time goes on."""
        self._new, self._old = new, old
        self.times = Times(self.spec.version)

    def pause(self, now: float) -> None:
        """Stay at this share, and look at nothing but the breaker."""
        if self.state == "running":
            self.state = "paused"
            self.why = "paused by hand"
            self._paused_at = now

    def resume(self, now: float) -> None:
        if self.state == "paused":
            self.state = "running"
            self.why = "resumed by hand"
            if self._paused_at is not None:
                self.since += now - self._paused_at
            self._paused_at = None

    def abort(self, why: str) -> None:
        self.state = "rolled_back"
        self.why = why

    def promote(self, new: Seen, old: Seen, now: float, why: str) -> None:
        """The next step, or the end of them."""
        if self.step + 1 < len(self.spec.steps):
            self.begin(self.step + 1, new, old, now, why)
        else:
            self.state = "promoted"
            self.why = why

    def look(self, new: Seen, old: Seen, tripped: str, now: float) -> bool:
        """Take what is due; True when `share` or `state` changed. `tripped`: why the new version's breaker is open,
        empty when it isn't."""
        if self.state not in ("running", "paused"):
            return False
        if tripped:
            self.abort(f"its breaker tripped: {tripped}")
            return True
        if self.state == "paused" or self.waits(new, now):
            return False
        verdict = self._compare(*self.of_step(new, old))
        if verdict:
            self.abort(verdict)
        else:
            calls = new.calls - self._new.calls
            share = f"{100 * self.share:.3g} % of the traffic"
            self.promote(new, old, now, f"no worse than before in {calls} calls at {share}")
        return True

    def of_step(self, new: Seen, old: Seen) -> tuple[Seen, Seen]:
        """What was seen since the present step began."""
        return new.since(self._new), old.since(self._old)

    def waits(self, new: Seen, now: float) -> str:
        """What the present step waits for, in words; empty when it is to be judged."""
        calls = new.calls - self._new.calls
        left = self.since + self.spec.hold - now
        if left > 0.0:
            return f"{left:.0f} s of its hold are left"
        if calls < self.spec.min_requests:
            return f"{calls} of {self.spec.min_requests} requests"
        return ""

    def _compare(self, new: Seen, old: Seen) -> str:
        """Why the new version is worse; empty when nothing shows it."""
        if new.failures >= LEAST and worse(new.failures, new.calls, old.failures, old.calls) < ALPHA:
            return f"{new.failures} of its {new.calls} calls failed, {old.failures} of {old.calls} of the others"
        if new.bad >= LEAST and worse(new.bad, new.judged, old.bad, old.judged) < ALPHA:
            return f"{new.bad} of {new.judged} verdicts on it were bad, {old.bad} of {old.judged} on the others"
        for heavy in (False, True):
            said = self._slower(heavy)
            if said:
                return said
        return ""

    def _slower(self, heavy: bool) -> str:
        old = sorted(self.times.of(False, heavy))
        new = self.times.of(True, heavy)
        if len(old) < TIMED or len(new) < TIMED:
            return ""
        p95_old = old[int(0.95 * len(old))]
        limit = max(SLACK * p95_old, p95_old + LEAST_SLOWER)
        slow_new = sum(seconds > limit for seconds in new)
        slow_old = sum(seconds > limit for seconds in old)
        if worse(slow_new, len(new), slow_old, len(old)) >= ALPHA:
            return ""
        p95 = sorted(new)[int(0.95 * len(new))]
        lane = HEAVY if heavy else FAST
        return f"its p95 in the {lane} lane is {p95:.3g} s, that of the others {p95_old:.3g} s"

    # Over restarts

    def saved(self, now: float) -> dict[str, Any]:
        """What has to outlive the process, as JSON values. What was seen in the present step is seen anew."""
        held = (now if self._paused_at is None else self._paused_at) - self.since
        return {"version": self.spec.version, "state": self.state, "step": self.step, "held": held, "why": self.why}

    def restore(self, saved: Mapping[str, Any], new: Seen, old: Seen, now: float) -> None:
        """Go on from `saved`, of a rollout of the same version. Raises KeyError, TypeError, ValueError for what isn't
        one. Steps that were taken out since are taken for the last one."""
        state = saved["state"]
        if state not in STATES:
            raise ValueError(f"{state!r} is no state of a rollout")
        step = int(saved["step"])
        if step < 0:
            raise ValueError(f"there is no step {step}")
        self.begin(min(step, len(self.spec.steps) - 1), new, old, now, str(saved["why"]))
        self.since = now - max(0.0, float(saved["held"]))
        self.state = state
        if state == "paused":
            self._paused_at = now


def weights(before: Mapping[str, float], version: str, share: float) -> dict[str, float]:
    """Weights that give `version` this share and leave the others their proportions of the rest. `before`: of all
    versions, when the rollout began; where no other has weight, they share equally. In hundredths of the traffic."""
    others = {name: weight for name, weight in before.items() if name != version}
    total = sum(others.values())
    if others and not total:
        others = dict.fromkeys(others, 1.0)
        total = float(len(others))
    rest = 100.0 * (1.0 - share)
    return {version: 100.0 * share, **{name: rest * (weight / total) for name, weight in others.items()}}
