"""Predictions: near the true quantiles, following change, not fooled by one stray request nor by a caller's hint."""

import random
from collections.abc import Callable
from math import inf, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.estimator import LEAST, MEMORY, MOST, PRIOR_GONE, Bucket, Estimator

Draw = Callable[[random.Random], float]


def chat(rng: random.Random) -> float:
    return rng.lognormvariate(-0.5, 1.0)  # mean 1 s


def audit(rng: random.Random) -> float:
    return rng.lognormvariate(3.594, 1.0)  # mean 60 s


def either(often: Draw, seldom: Draw, part: float) -> Draw:
    return lambda rng: seldom(rng) if rng.random() < part else often(rng)


def feed(bucket: Bucket, draw: Draw, n: int, rng: random.Random) -> float:
    """Observe `n` times; returns the part of the time (after the first 50) that the bucket was heavy."""
    heavy = 0
    for i in range(n):
        bucket.observe(draw(rng))
        heavy += bucket.heavy and i >= 50
    return heavy / max(1, n - 50)


def test_nothing_known_is_fast_and_short() -> None:
    bucket = Estimator(5.0).bucket("POST /new")
    assert (bucket.predicted, bucket.heavy, bucket.known, bucket.weight) == (0.0, False, False, 0.0)


@given(st.floats(min_value=LEAST, max_value=MOST))
def test_one_value_is_found_again_within_five_percent(seconds: float) -> None:
    bucket = Estimator(5.0).bucket("x")
    for _ in range(20):
        bucket.observe(seconds)
    assert bucket.p50 == pytest.approx(seconds, rel=0.05)
    assert bucket.p90 == pytest.approx(seconds, rel=0.05)
    assert bucket.mean == pytest.approx(seconds)


@given(st.lists(st.floats(min_value=LEAST, max_value=MOST), min_size=MEMORY // 32, max_size=40))
def test_figures_keep_their_order_and_stay_in_range(values: list[float]) -> None:
    bucket = Estimator(5.0).bucket("x")
    for value in values:
        bucket.observe(value)
    low, high = min(values), max(values)
    assert low * 0.95 <= bucket.p50 <= bucket.p90 <= high * 1.05
    assert low * 0.999 <= bucket.mean <= high * 1.001
    assert low * 0.95 <= bucket.predicted <= high * 1.05


def test_quantiles_of_a_stream_are_near_the_true_ones() -> None:
    rng = random.Random(7)
    bucket = Estimator(5.0).bucket("x")
    p50s, p90s, means = [], [], []
    for i in range(20_000):
        bucket.observe(audit(rng))
        if i > 1000 and i % 100 == 0:
            p50s.append(bucket.p50)
            p90s.append(bucket.p90)
            means.append(bucket.mean)
    # Of the lognormal: exp(mu), exp(mu + 1.2816), 60. Averages over the stream, since a memory of 256 is noisy.
    assert sum(p50s) / len(p50s) == pytest.approx(36.4, rel=0.05)
    assert sum(p90s) / len(p90s) == pytest.approx(131.1, rel=0.05)
    assert sum(means) / len(means) == pytest.approx(60.0, rel=0.08)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, MOST, MOST * 10, inf])
def test_beyond_the_range_counts_as_its_end(seconds: float) -> None:
    bucket = Estimator(5.0).bucket("x")
    bucket.observe(seconds)
    assert LEAST * 0.9 <= bucket.p50 <= MOST * 1.05
    assert bucket.mean <= MOST


@pytest.mark.parametrize("seconds", [-1.0, -0.001, float("nan"), -inf])
def test_what_is_no_duration_is_refused_and_leaves_no_trace(seconds: float) -> None:
    estimator = Estimator(5.0)
    bucket = estimator.bucket("x")
    with pytest.raises(ValueError, match="duration"):
        bucket.observe(seconds)
    assert not bucket.known
    assert estimator.overall.count == 0


def test_change_is_followed() -> None:
    rng = random.Random(7)
    bucket = Estimator(5.0).bucket("x")
    feed(bucket, chat, 1000, rng)
    assert not bucket.heavy
    feed(bucket, audit, 150, rng)
    assert bucket.heavy
    feed(bucket, chat, 1000, rng)
    assert not bucket.heavy
    assert bucket.p90 < 5.0


def test_weights_do_not_run_away() -> None:
    bucket = Estimator(5.0).bucket("x")
    for _ in range(150_000):  # forward weights of 1.004 ** 150,000 would be 10 ** 254
        bucket.observe(1.0)
    overall = bucket._estimator._overall
    assert bucket._newest < 1e110
    assert overall._newest < 1e110
    assert isfinite(bucket.mean)
    assert bucket.mean == pytest.approx(1.0)
    assert bucket.weight == pytest.approx(MEMORY, rel=0.15)
    assert bucket._estimator.overall.p50 == pytest.approx(1.0, rel=0.05)


# Lanes


@pytest.mark.parametrize("boundary", [3.0, 5.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_path_with_a_quarter_audits_is_heavy_and_one_with_strays_is_fast(boundary: float, seed: int) -> None:
    rng = random.Random(seed)
    estimator = Estimator(boundary)
    assert feed(estimator.bucket("POST /audit"), either(chat, audit, 0.23), 4000, rng) > 0.99
    assert feed(estimator.bucket("POST /chat"), either(chat, audit, 0.009), 4000, rng) < 0.01
    assert feed(estimator.bucket("POST /hello"), lambda rng: 0.005, 4000, rng) == 0.0


def test_the_mixed_path_is_known_soon() -> None:
    rng = random.Random(7)
    estimator = Estimator(5.0)
    took = []
    for i in range(100):
        bucket = estimator.bucket(f"POST /audit{i}")
        took.append(next(n for n in range(1, 1000) if bucket.observe(either(chat, audit, 0.23)(rng)) or bucket.heavy))
    assert sum(took) / len(took) < 15


@pytest.mark.parametrize("before", [3, 8, 20, 300])
def test_one_stray_hour_does_not_make_a_known_bucket_heavy(before: int) -> None:
    bucket = Estimator(5.0).bucket("POST /chat")
    for _ in range(before):
        bucket.observe(1.0)
    bucket.observe(3600.0)
    for _ in range(300):
        assert not bucket.heavy
        # … nor does it put it behind everybody in the queue.
        assert bucket.predicted < 5.0 or before < 10
        bucket.observe(1.0)
    assert bucket.predicted < 2.0


def test_a_first_request_that_was_long_is_believed_until_short_ones_come() -> None:
    bucket = Estimator(5.0).bucket("x")
    bucket.observe(60.0)
    assert bucket.heavy
    for _ in range(30):
        bucket.observe(1.0)
    assert not bucket.heavy


def test_at_the_boundary_it_does_not_flap() -> None:
    rng = random.Random(7)
    bucket = Estimator(5.0).bucket("x")
    flips, last = 0, False
    for _ in range(20_000):
        bucket.observe(rng.lognormvariate(1.484, 0.5))  # mean 5.0 s
        flips += bucket.heavy != last
        last = bucket.heavy
    assert flips <= 3


def test_mixed_buckets_are_ordered_by_their_mean() -> None:
    rng = random.Random(7)
    estimator = Estimator(5.0)
    mixed = estimator.bucket("mixed")
    feed(mixed, either(chat, audit, 0.23), 1000, rng)
    assert mixed.predicted == mixed.mean
    assert mixed.p50 < 5.0 < mixed.predicted


def test_another_boundary_is_applied_to_what_is_known() -> None:
    estimator = Estimator(5.0)
    bucket = estimator.bucket("x")
    for _ in range(50):
        bucket.observe(2.0)
    assert not bucket.heavy
    estimator.set_boundary(1.0)
    assert bucket.heavy
    assert estimator.overall.heavy
    with pytest.raises(ValueError, match="boundary"):
        estimator.set_boundary(0.0)


# Cut off


def test_a_timeout_counts_as_at_least_that_long() -> None:
    estimator = Estimator(5.0)
    bucket = estimator.bucket("x")
    for _ in range(50):
        bucket.observe(1.0)
    for _ in range(50):
        bucket.lower_bound(60.0)
    assert bucket.p90 == pytest.approx(60.0, rel=0.05)
    assert bucket.heavy


def test_a_client_that_leaves_early_does_not_make_work_look_short() -> None:
    estimator = Estimator(5.0)
    bucket = estimator.bucket("x")
    for _ in range(20):
        bucket.observe(60.0)
    for _ in range(100):
        bucket.lower_bound(2.0)
    assert bucket.p50 == pytest.approx(60.0, rel=0.06)
    assert bucket.heavy


def test_the_first_of_all_may_be_cut_off() -> None:
    bucket = Estimator(5.0).bucket("x")
    bucket.lower_bound(30.0)
    assert bucket.p50 == pytest.approx(30.0, rel=0.05)


# Hints and borrowing


@pytest.mark.parametrize(
    ("seconds", "lane", "heavy"),
    [
        (600.0, None, True),
        (0.5, None, False),
        (None, "heavy", True),
        (None, "fast", False),
        (0.5, "heavy", True),
        (600.0, "fast", False),
    ],
)
def test_a_hint_decides_where_nothing_is_known(seconds: float | None, lane: str | None, heavy: bool) -> None:
    bucket = Estimator(5.0).bucket("x", seconds, lane)
    assert bucket.known
    assert bucket.heavy is heavy
    assert (bucket.predicted >= 5.0) is heavy
    if lane is None:
        assert bucket.predicted == pytest.approx(seconds, rel=0.5)


def test_a_lie_is_found_out() -> None:
    estimator = Estimator(5.0)
    modest = estimator.bucket("x", 0.1, None)
    loud = estimator.bucket("x", 3600.0, None)
    for _ in range(PRIOR_GONE):
        modest.observe(120.0)
        loud.observe(0.2)
    assert modest.heavy
    assert modest.predicted == pytest.approx(120.0, rel=0.05)
    assert not loud.heavy
    assert loud.predicted == pytest.approx(0.2, rel=0.05)


def test_hints_have_buckets_of_their_own_by_powers_of_two() -> None:
    estimator = Estimator(5.0)
    plain = estimator.bucket("x")
    assert estimator.bucket("x", 60.0) is estimator.bucket("x", 70.0)
    assert estimator.bucket("x", 60.0) is not estimator.bucket("x", 30.0)
    assert estimator.bucket("x", 60.0) is not plain
    assert estimator.bucket("x", None, "heavy") is not estimator.bucket("x", None, "fast")
    assert estimator.bucket("x", 60.0, "heavy").features == "x heavy ~64s"


@pytest.mark.parametrize("seconds", [0.0, -5.0, inf, float("nan"), None])
@pytest.mark.parametrize("lane", ["", "HEAVY", "turbo", None])
def test_a_hint_that_is_none_is_ignored(seconds: float | None, lane: str | None) -> None:
    estimator = Estimator(5.0)
    assert estimator.bucket("x", seconds, lane) is estimator.bucket("x")


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_positive_hint_is_bounded(seconds: float) -> None:
    bucket = Estimator(5.0).bucket("x", seconds)
    assert 0.0 < bucket.predicted <= 2.0 * MOST


def test_an_unseen_bucket_borrows_and_then_stands_on_its_own() -> None:
    estimator = Estimator(5.0)
    known = estimator.bucket("known")
    unseen = estimator.bucket("unseen")
    for _ in range(100):
        known.observe(30.0)
    assert unseen.predicted == 0.0
    assert estimator.bucket("unseen") is unseen
    assert unseen.predicted == pytest.approx(30.0, rel=0.05)
    assert unseen.heavy
    unseen.observe(0.1)
    assert unseen.predicted < 20.0
    for _ in range(PRIOR_GONE):
        unseen.observe(0.1)
    assert unseen.predicted == pytest.approx(0.1, rel=0.05)
    assert not unseen.heavy


def test_overall_sees_every_bucket() -> None:
    estimator = Estimator(5.0)
    for i in range(10):
        for _ in range(10):
            estimator.bucket(f"p{i}").observe(float(i + 1))
    assert estimator.overall.count == 100
    assert estimator.overall.mean == pytest.approx(5.5, rel=0.2)


def test_overall_follows_change_while_nobody_looks_at_it() -> None:
    estimator = Estimator(5.0)
    bucket = estimator.bucket("x")
    for seconds in (1.0, 60.0):
        for _ in range(2000):
            bucket.observe(seconds)
    assert estimator.overall.mean > 55.0


def test_tokens() -> None:
    bucket = Estimator(5.0).bucket("x")
    assert bucket.tokens_p90 == 0.0
    for tokens in range(1000, 2000):
        bucket.observe_tokens(tokens)
    assert bucket.tokens_p90 == pytest.approx(1960, rel=0.06)
    with pytest.raises(ValueError, match="tokens"):
        bucket.observe_tokens(-1)
    zero = Estimator(5.0).bucket("x")
    zero.observe_tokens(0)
    assert zero.tokens_p90 <= 1.1


# Bounds


def test_a_flood_of_new_paths_keeps_the_busy_ones() -> None:
    estimator = Estimator(5.0, max_buckets=100)
    busy = estimator.bucket("busy")
    busy.observe(30.0)
    for i in range(10_000):
        estimator.bucket(f"junk{i}")
        if i % 40 == 0:
            assert estimator.bucket("busy") is busy
        assert len(estimator) <= 100
    assert len(list(estimator)) == len(estimator)


def test_long_paths_are_cut() -> None:
    estimator = Estimator(5.0)
    path = "POST /" + "x" * 8000
    assert estimator.bucket(path) is estimator.bucket(path + "y")
    assert estimator.bucket(path, 60.0) is estimator.bucket(path + "y", 60.0)
    assert estimator.bucket(path, 60.0) is not estimator.bucket(path)
    assert all(len(bucket.features) < 300 for bucket in estimator)
    assert len(estimator) == 2


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from([None, 1.0, 60.0])), max_size=200))
def test_the_bound_holds_and_a_bucket_is_there_once(asked: list[tuple[str, float | None]]) -> None:
    estimator = Estimator(5.0, max_buckets=6)
    for features, hint in asked:
        bucket = estimator.bucket(features, hint)
        assert estimator.bucket(features, hint) is bucket
        assert len(estimator) <= 6
        assert len({id(bucket) for bucket in estimator}) == len(estimator)


@pytest.mark.parametrize(("boundary", "buckets"), [(0.0, 10), (-1.0, 10), (float("nan"), 10), (5.0, 1)])
def test_nonsense_is_refused(boundary: float, buckets: int) -> None:
    with pytest.raises(ValueError, match="estimator"):
        Estimator(boundary, buckets)
