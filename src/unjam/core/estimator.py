"""How long a request will take, from what requests like it took: streaming quantiles per bucket of features.

Each bucket is a histogram of logarithmic bins (Masson, Rim, Lee: "DDSketch", VLDB 2019): quantiles within 5 % of the
value, from 1 ms to 4 h, at a fixed size. Old observations fade by *forward* decay (Cormode and others, "Forward decay",
ICDE 2009): each new one weighs a little more than the last, so that nothing has to be multiplied down, and `observe`
is O(1). Quantiles are worked out every few observations and cached in plain attributes, which is what requests read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from math import ceil, frexp, inf, log
from typing import Final, TypeAlias

from unjam.core.spec import FAST, HEAVY

_GROWTH: Final = 1.1
_PER_LOG: Final = 1.0 / log(_GROWTH)
#: Seconds; shorter and longer work counts as this.
LEAST: Final = 1e-3
MOST: Final = 4 * 3600.0
_SQRT_HALF: Final = 0.5**0.5
_SHIFT: Final = -log(LEAST) * _PER_LOG
_BINS: Final = ceil(log(MOST / LEAST) * _PER_LOG) + 1
#: The value of a bin is the one with the least relative error, 4.8 % at its edges (DDSketch, equation 3).
_VALUES: Final = tuple(min(MOST, LEAST * _GROWTH**i * 2.0 * _GROWTH / (1.0 + _GROWTH)) for i in range(_BINS))

#: The memory of a bucket: an observation weighs 1/e of a new one after this many more.
MEMORY: Final = 256
_FADE: Final = MEMORY / (MEMORY - 1.0)
#: Weights start anew from 1 when the newest reaches this, far from where floats end.
_OVERFLOW: Final = 1e100
#: Observations between two refreshes: a quarter of those seen, at most this many.
_REFRESH_MOST: Final = 64

#: Characters of features that tell buckets apart: callers choose paths, and we keep them.
FEATURES_MOST: Final = 256

#: A prior (a hint, or the service's overall figures) is gone after this many observations of the bucket's own.
PRIOR_GONE: Final = 8
#: What a caller's hint weighs against observations, and what the service's overall figures do.
HINT_WEIGHT: Final = 3.0
BORROWED_WEIGHT: Final = 1.0
#: A hint of the lane alone stands for this many times the boundary.
_LANE_SECONDS: Final = {FAST: 0.25, HEAVY: 4.0}

#: A bucket turns heavy when its mean is at or above the boundary and at least this part of its requests are too …
HEAVY_FROM: Final = 0.10
#: … being more than one stray request, unless they are most of what has been seen …
HEAVY_COUNT: Final = 1.5
#: … and fast again when so few are left, or the mean is below this part of the boundary.
FAST_FROM: Final = 0.06
FAST_MEAN: Final = 0.7

#: Seconds that a request which has outlived the boundary is taken to need, as a multiple of the boundary.
OVERDUE_SECONDS: Final = _LANE_SECONDS[HEAVY]
#: `Bucket.risk` is counted in parts of this.
RISK_UNIT: Final = 64

_Key: TypeAlias = str | tuple[str, int | None, str | None]


def _bin(seconds: float) -> int:
    """The bin of a value; of `MOST` for a longer one, of `LEAST` for anything else, nonsense included."""
    if LEAST < seconds < MOST:
        return int(log(seconds) * _PER_LOG + _SHIFT)
    return _BINS - 1 if seconds >= MOST else 0


class Histogram:
    """Faded counts by bin, and what follows from them: `p50`, `p90` and `mean`, worked out anew every few observations.

    Observations between two refreshes weigh the same; each block weighs more than the one before. `seen`: observations
    ever; `weight`: the same, faded, about `MEMORY` at most; both as of the last refresh.
    """

    __slots__ = ("_bins", "_block", "_due", "_newest", "_sum", "mean", "p50", "p90", "seen", "weight")

    def __init__(self) -> None:
        self.p50 = self.p90 = self.mean = self.weight = 0.0
        self.seen = 0
        # Made at the first observation: buckets that are asked about and never observed stay small.
        self._bins: list[float] = []
        self._sum = 0.0
        self._newest = 1.0
        self._block = 1
        self._due = 1

    def add(self, i: int, value: float) -> None:
        """Count `value`, which falls into bin `i`."""
        if not self._bins:
            self._begin()
        weight = self._newest
        self._bins[i] += weight
        self._sum += weight * value
        self._due -= 1
        if not self._due:
            self.refresh()

    def refresh(self) -> None:
        """Bring the figures up to date and begin a new block. About 5 µs, hence not for every observation."""
        self._roll()
        self._figure(list(accumulate(self._bins)), self._sum)

    @property
    def count(self) -> int:
        """Observations ever, those of the present block included."""
        return self.seen + self._block - self._due

    def _begin(self) -> None:
        self._bins = [0.0] * _BINS

    def _roll(self) -> None:
        seen = self._block - self._due
        self.seen += seen
        self._block = self._due = min(_REFRESH_MOST, self.seen // 4 + 1)
        self._newest *= _FADE**seen
        if self._newest > _OVERFLOW:
            self._sum /= self._newest
            self._bins = [weight / self._newest for weight in self._bins]
            self._newest = 1.0

    def _figure(self, cumulative: list[float], value_sum: float) -> None:
        total = cumulative[-1]
        self.weight = total / self._newest
        self.mean = value_sum / total
        self.p50 = _VALUES[bisect_left(cumulative, 0.5 * total)]
        self.p90 = _VALUES[bisect_left(cumulative, 0.9 * total)]


class Bucket(Histogram):
    """What is known of requests with the same features. Read the attributes; only observations change them.

    `p50`, `p90`, `mean`, `predicted`: seconds. `heavy`: the lane by prediction. `tokens_p90`: what nine of ten use at
    most, 0.0 when none were observed. `known`: there is something to go by; without it 0 s and fast is all that can
    be said. `risk`: chance of a request of a heavy bucket to be heavy itself, in 1/64, at least one; 0 for fast ones.
    `overdue`: requests that run and have outlived the boundary.
    """

    __slots__ = (
        "_estimator",
        "_overall",
        "_prior",
        "_prior_mean",
        "_prior_weight",
        "_tokens",
        "features",
        "heavy",
        "known",
        "overdue",
        "predicted",
        "risk",
        "tokens_p90",
    )

    def __init__(self, features: str, estimator: Estimator, overall: Bucket | None) -> None:
        super().__init__()
        self.features = features
        self.predicted = 0.0
        self.tokens_p90 = 0.0
        self.heavy = False
        self.risk = 0
        self.known = False
        self.overdue = 0
        self._estimator = estimator
        self._overall = overall
        self._prior: list[float] = []
        self._prior_mean = 0.0
        self._prior_weight = 0.0
        self._tokens: Histogram | None = None

    def observe(self, seconds: float) -> None:
        """A request took this long. Raises ValueError when that is negative or not a number."""
        if LEAST < seconds < MOST:
            i = int(log(seconds) * _PER_LOG + _SHIFT)
        elif seconds >= MOST:
            i, seconds = _BINS - 1, MOST
        elif seconds >= 0.0:
            i = 0
        else:
            raise ValueError(f"a duration of {seconds} s")
        # `add`, twice, written out: this runs for every request.
        if not self._bins:
            self._begin()
        weight = self._newest
        self._bins[i] += weight
        self._sum += weight * seconds
        self._due -= 1
        if not self._due:
            self.refresh()
        overall = self._overall
        if overall is not None:
            weight = overall._newest
            overall._bins[i] += weight
            overall._sum += weight * seconds
            overall._due -= 1
            if not overall._due:
                # Its figures wait until they are asked for: only unseen buckets need them.
                overall._roll()

    def lower_bound(self, seconds: float) -> None:
        """A request was cut off after this long and would have taken longer: a censored observation. It counts as the
        mean of those that took at least as long (one step of Efron's redistribution to the right, 1967), or as
        `seconds` where none did. Raises ValueError as `observe` does."""
        weight = total = 0.0
        for i in range(_bin(seconds), len(self._bins)):
            weight += self._bins[i]
            total += self._bins[i] * _VALUES[i]
        self.observe(max(seconds, total / weight) if weight > 0.0 else seconds)

    def outlived(self, more: int = 1) -> None:
        """So many more (-1: fewer) requests run that have outlived the boundary and are not observed yet."""
        self.overdue += more
        if self.known and more > 0:
            self.refresh()

    def observe_tokens(self, tokens: int) -> None:
        """A request used this many tokens. Raises ValueError when negative."""
        if tokens < 0:
            raise ValueError(f"{tokens} tokens used")
        if self._tokens is None:
            self._tokens = Histogram()
        # The same bins, with a thousand tokens for a second: 1 to 14.4 million.
        thousands = min(tokens / 1000.0, MOST)
        self._tokens.add(_bin(thousands), thousands)
        self.tokens_p90 = 1000.0 * self._tokens.p90

    def hint(self, seconds: float) -> None:
        """What the caller declared, as a prior of `HINT_WEIGHT` observations that is gone after `PRIOR_GONE` real
        ones."""
        self._prior = [0.0] * _BINS
        self._prior[_bin(seconds)] = 1.0
        self._prior_mean = seconds
        self._prior_weight = HINT_WEIGHT
        self._bins = [0.0] * _BINS
        self.refresh()

    def borrow(self, other: Bucket) -> None:
        """Show another bucket's figures until there is something of one's own."""
        self.p50, self.p90, self.mean, self.predicted = other.p50, other.p90, other.mean, other.predicted
        self.heavy, self.risk = other.heavy, other.risk
        self.tokens_p90 = other.tokens_p90

    def _begin(self) -> None:
        super()._begin()
        if self._overall is None:
            return
        overall = self._estimator.overall
        if overall.known:
            self._prior = self._estimator.shape
            self._prior_mean = overall.mean
            self._prior_weight = BORROWED_WEIGHT

    def _figure(self, cumulative: list[float], value_sum: float) -> None:
        if self._prior:
            weight = self._prior_weight * (1.0 - self.seen / PRIOR_GONE) * self._newest
            if weight > 0.0:
                cumulative = [c + weight * p for c, p in zip(cumulative, accumulate(self._prior), strict=True)]
                value_sum += weight * self._prior_mean
            else:
                self._prior = []
        super()._figure(cumulative, value_sum)
        self.known = True
        first = self._estimator.boundary_bin
        long = cumulative[-1] - cumulative[first - 1] if first else cumulative[-1]
        boundary = self._estimator.boundary
        mean = self.mean
        total = cumulative[-1]
        if self.overdue:
            # What still runs and is over the boundary has not been observed: without it long work would look rare until
            # the first of it has ended, and be let in all that time.
            unseen = self.overdue * self._newest
            typical = max(OVERDUE_SECONDS * boundary, self.p90)
            mean = (mean * total + typical * unseen) / (total + unseen)
            long += unseen
            total += unseen
        part = long / total
        if self.heavy:
            self.heavy = mean >= FAST_MEAN * boundary and part >= FAST_FROM
        else:
            self.heavy = mean >= boundary and part >= HEAVY_FROM and (long >= HEAVY_COUNT * self._newest or part >= 0.5)
        # What the queue orders by. Among classes of work that is not preempted, the shortest mean first is the best
        # order for the mean wait (the cμ rule: Cox and Smith, "Queues", 1961), and where sizes are mixed the median
        # would hide the long ones. A fast bucket's mean may be one stray hour, so that it counts up to the p90 only.
        self.risk = max(1, round(RISK_UNIT * part)) if self.heavy else 0
        self.predicted = mean if self.heavy else min(mean, self.p90)


class Estimator:
    """The buckets of one service. `boundary`: seconds from which work is heavy. At most `max_buckets` are kept; those
    that were not asked for lately go first."""

    __slots__ = ("_figured", "_older", "_overall", "_recent", "boundary", "boundary_bin", "max_buckets", "shape")

    def __init__(self, boundary: float, max_buckets: int = 1024) -> None:
        if not boundary > 0.0 or max_buckets < 2:
            raise ValueError("an estimator needs a boundary above 0 s and room for two buckets")
        self.boundary = boundary
        self.boundary_bin = _bin(boundary)
        self.max_buckets = max_buckets
        self._recent: dict[_Key, Bucket] = {}
        self._older: dict[_Key, Bucket] = {}
        self._overall = Bucket("", self, None)
        self._overall._begin()
        self._figured = 0
        #: Of all requests, the part in each bin, as of when `overall` was last brought up to date.
        self.shape: list[float] = []

    @property
    def overall(self) -> Bucket:
        """All requests of the service as one bucket, about up to date."""
        overall = self._overall
        count = overall.count
        if count - self._figured > min(_REFRESH_MOST, self._figured // 4):
            self._figured = count
            overall.refresh()
            total = sum(overall._bins)
            self.shape = [weight / total for weight in overall._bins]
        return overall

    def bucket(self, features: str, seconds_hint: float | None = None, lane_hint: str | None = None) -> Bucket:
        """The bucket of `features` and, as part of its identity, of what the caller declared: `seconds_hint` to the
        nearest power of two, `lane_hint` fast or heavy. A hint that is no lane of ours, or no number of seconds above
        0, is as good as none. The lane wins where the two disagree."""
        if seconds_hint is None and lane_hint is None:
            bucket = self._recent.get(features)
            if bucket is not None and bucket.known:
                return bucket
            return self._slow(features, features, None, None)
        if lane_hint != FAST and lane_hint != HEAVY:
            lane_hint = None
        power = None
        if seconds_hint is not None and 0.0 < seconds_hint < inf:
            part, power = frexp(LEAST if seconds_hint < LEAST else MOST if seconds_hint > MOST else seconds_hint)
            if part < _SQRT_HALF:
                power -= 1
        elif lane_hint is None:
            return self.bucket(features)
        key = (features, power, lane_hint)
        bucket = self._recent.get(key)
        return bucket if bucket is not None else self._slow(key, features, power, lane_hint)

    def set_boundary(self, boundary: float) -> None:
        """Another boundary between the lanes, for all buckets at once. What was observed stays. Raises ValueError."""
        if not boundary > 0.0:
            raise ValueError("a boundary above 0 s is needed")
        self.boundary = boundary
        self.boundary_bin = _bin(boundary)
        for bucket in (self._overall, *self):
            if bucket.known:
                bucket.refresh()

    def __iter__(self) -> Iterator[Bucket]:
        yield from self._recent.values()
        yield from self._older.values()

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def _slow(self, key: _Key, features: str, power: int | None, lane: str | None) -> Bucket:
        if len(features) > FEATURES_MOST:
            features = features[:FEATURES_MOST]
            key = features if power is None and lane is None else (features, power, lane)
        bucket = self._recent.get(key)
        if bucket is None:
            bucket = self._older.pop(key, None)
            if bucket is None:
                bucket = Bucket(features, self, self._overall)
                if power is not None or lane is not None:
                    bucket.features = _hinted(features, power, lane)
                    bucket.hint(self._hint_seconds(power, lane))
            if len(self._recent) >= self.max_buckets // 2:
                self._older = self._recent
                self._recent = {}
            self._recent[key] = bucket
        if not bucket.known:
            bucket.borrow(self.overall)
        return bucket

    def _hint_seconds(self, power: int | None, lane: str | None) -> float:
        if power is None:
            return _LANE_SECONDS[lane or FAST] * self.boundary
        seconds = 2.0**power
        if lane == FAST:
            return min(seconds, _LANE_SECONDS[FAST] * self.boundary)
        return max(seconds, _LANE_SECONDS[HEAVY] * self.boundary) if lane == HEAVY else seconds


def _hinted(features: str, power: int | None, lane: str | None) -> str:
    words = [features]
    if lane is not None:
        words.append(lane)
    if power is not None:
        words.append(f"~{2.0**power:g}s")
    return " ".join(words)
