"""Quota: never more admitted than the provider allows, nothing lost, nothing given back twice."""

import random
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unjam.core.quota import BLOCK_MOST, Region, Reservation
from unjam.core.spec import RegionSpec

TPM = 600.0  # ten tokens a second: with a burst of 60 s, 600 tokens at once
BURST = 60.0
INTERVAL = 60.0 / TPM


def region(tokens: float | None = TPM, requests: float | None = None, burst: float = BURST) -> Region:
    return Region(RegionSpec("r", tokens_per_minute=tokens, requests_per_minute=requests, burst=burst))


def reserved(answer: Reservation | float) -> Reservation:
    assert isinstance(answer, Reservation), f"refused for {answer} s"
    return answer


def debt(history: list[list[float]], now: float) -> float:
    """Seconds owed at `now` after [time, units] in order of time, worked out from the beginning every time."""
    owed, last = 0.0, 0.0
    for time, units in history:
        owed = max(0.0, owed - (time - last)) + units * INTERVAL
        last = time
    return max(0.0, owed - (now - last))


def test_the_burst_at_once_then_the_rate() -> None:
    quota = region()
    reserved(quota.reserve(600.0, 0.0))
    assert quota.reserve(50.0, 0.0) == pytest.approx(5.0)
    assert quota.headroom(0.0) == 0.0
    assert quota.headroom(30.0) == pytest.approx(0.5)
    reserved(quota.reserve(50.0, 5.0))


def test_requests_are_counted_too_and_a_refusal_takes_nothing() -> None:
    quota = region(requests=2.0)
    reserved(quota.reserve(10.0, 0.0))
    reserved(quota.reserve(10.0, 0.0))
    before = quota.left(0.0)
    assert quota.reserve(10.0, 0.0) == pytest.approx(30.0)
    assert quota.left(0.0) == before
    reserved(quota.reserve(10.0, 30.0))


def test_unlimited_is_unlimited() -> None:
    quota = region(tokens=None)
    for _ in range(1000):
        reserved(quota.reserve(1e9, 0.0))
    assert quota.headroom(0.0) == 1.0
    assert quota.left(0.0) == (None, None)


def test_more_than_the_burst_never_fits() -> None:
    assert region().reserve(601.0, 0.0) == inf
    reserved(region().reserve(600.0, 0.0))


def test_what_was_not_used_comes_back_once() -> None:
    quota = region()
    claim = reserved(quota.reserve(500.0, 0.0))
    quota.settle(claim, 100.0, 0.0)
    quota.settle(claim, 0.0, 0.0)
    assert quota.left(0.0)[0] == pytest.approx(500.0)


def test_what_was_used_beyond_the_estimate_is_charged() -> None:
    quota = region()
    claim = reserved(quota.reserve(500.0, 0.0))
    quota.settle(claim, 900.0, 0.0)
    assert quota.headroom(0.0) == 0.0
    # 300 more than the burst are owed: nothing for 30 s, one token then.
    assert quota.reserve(1.0, 0.0) == pytest.approx(30.1)


def test_unknown_use_keeps_the_reservation() -> None:
    quota = region()
    quota.settle(reserved(quota.reserve(500.0, 0.0)), None, 0.0)
    assert quota.left(0.0)[0] == pytest.approx(100.0)


def test_what_time_has_refilled_is_not_refunded_again() -> None:
    quota = region()
    old = reserved(quota.reserve(600.0, 0.0))
    # At 60 s all is refilled, and spent anew by somebody else. The old refund must not pay for that.
    reserved(quota.reserve(600.0, 60.0))
    quota.settle(old, 0.0, 60.0)
    assert quota.left(60.0)[0] == pytest.approx(0.0)


def test_the_same_seconds_are_not_refunded_to_two() -> None:
    quota = region()
    one, two = reserved(quota.reserve(300.0, 0.0)), reserved(quota.reserve(300.0, 0.0))
    reserved(quota.reserve(400.0, 55.0))  # on top of the 50 tokens that time has not refilled yet
    quota.settle(one, 0.0, 55.0)
    quota.settle(two, 0.0, 55.0)
    assert quota.left(55.0)[0] == pytest.approx(200.0)


def test_marks_that_are_merged_keep_the_lower_debt() -> None:
    quota = region()
    old = reserved(quota.reserve(300.0, 0.0))
    reserved(quota.reserve(0.6, 29.95))
    reserved(quota.reserve(400.0, 29.96))
    before = quota.left(29.96)[0]
    quota.settle(old, 0.0, 29.96)
    after = quota.left(29.96)[0]
    assert before is not None
    assert after is not None
    assert 0.0 <= after - before <= 0.5 + 1e-6  # 0.05 s of the old one were still owed at 29.95


def test_a_long_stream_is_charged_in_the_minute_it_spends() -> None:
    quota = region()
    claim = reserved(quota.reserve(100.0, 0.0))
    quota.charge(claim, 80.0, 600.0)
    assert quota.headroom(600.0) == 1.0
    quota.charge(claim, 400.0, 600.0)
    assert quota.left(600.0)[0] == pytest.approx(300.0)
    quota.charge(claim, 400.0, 600.0)
    assert quota.left(600.0)[0] == pytest.approx(300.0)
    quota.settle(claim, 450.0, 600.0)
    assert quota.left(600.0)[0] == pytest.approx(250.0)
    quota.charge(claim, 9999.0, 600.0)
    assert quota.left(600.0)[0] == pytest.approx(250.0)


def test_a_call_never_made_gives_back_its_request_too() -> None:
    quota = region(requests=1.0)
    claim = reserved(quota.reserve(600.0, 0.0))
    assert quota.reserve(1.0, 0.0) == pytest.approx(60.0)
    quota.release(claim, 0.0)
    quota.release(claim, 0.0)
    reserved(quota.reserve(600.0, 0.0))
    assert quota.reserve(0.0, 0.0) == pytest.approx(60.0)


def test_the_provider_lowers_the_view_at_once_and_never_raises_it() -> None:
    quota = region(requests=60.0)
    quota.heed(remaining_tokens=50.0, now=0.0)
    assert quota.left(0.0)[0] == pytest.approx(50.0)
    quota.heed(remaining_tokens=500.0, remaining_requests=1e9, now=0.0)
    assert quota.left(0.0)[0] == pytest.approx(50.0)
    quota.heed(remaining_requests=3.0, now=0.0)
    assert quota.left(0.0)[1] == pytest.approx(3.0)


def test_a_refund_does_not_undo_what_the_provider_said() -> None:
    quota = region()
    claim = reserved(quota.reserve(300.0, 0.0))
    quota.heed(remaining_tokens=0.0, now=1.0)
    quota.settle(claim, 0.0, 1.0)
    assert quota.left(1.0)[0] == pytest.approx(0.0)
    # What is reserved later comes back as ever.
    later = reserved(quota.reserve(300.0, 31.0))
    quota.settle(later, 0.0, 31.0)
    assert quota.left(31.0)[0] == pytest.approx(300.0)


def test_nothing_left_until_a_late_reset() -> None:
    quota = region()
    quota.heed(remaining_tokens=0.0, reset=600.0, now=0.0)
    assert quota.reserve(1.0, 0.0) == pytest.approx(540.1)


def test_an_unlimited_dimension_waits_for_the_reset() -> None:
    quota = region(tokens=None)
    quota.heed(remaining_tokens=0.0, reset=7.0, now=0.0)
    assert quota.reserve(1.0, 0.0) == pytest.approx(7.0)
    quota = region(tokens=None)
    quota.heed(remaining_requests=0.0, now=0.0)
    assert quota.reserve(1.0, 0.0) == pytest.approx(1.0)
    quota = region(tokens=None)
    quota.heed(remaining_requests=10.0, reset=60.0, now=0.0)
    reserved(quota.reserve(1.0, 0.0))


def test_retry_after_blocks_until_then() -> None:
    quota = region()
    quota.heed(retry_after=20.0, now=100.0)
    quota.heed(retry_after=5.0, now=100.0)
    assert quota.headroom(119.0) == 0.0
    assert quota.reserve(1.0, 110.0) == pytest.approx(10.0)
    reserved(quota.reserve(1.0, 120.0))


@pytest.mark.parametrize("nonsense", [float("nan"), inf, -1.0, 1e300])
def test_nonsense_from_a_provider_neither_raises_nor_blocks_for_ever(nonsense: float) -> None:
    quota = region(requests=60.0)
    quota.heed(remaining_tokens=nonsense, remaining_requests=nonsense, reset=nonsense, retry_after=nonsense, now=0.0)
    assert 0.0 <= quota.headroom(0.0) <= 1.0
    reserved(quota.reserve(1.0, 2 * BLOCK_MOST))


def test_new_limits_keep_what_was_spent() -> None:
    quota = region()
    reserved(quota.reserve(300.0, 0.0))
    quota.configure(RegionSpec("r", tokens_per_minute=1200.0, requests_per_minute=10.0, burst=60.0), 0.0)
    assert quota.left(0.0) == pytest.approx((900.0, 10.0))
    quota.configure(RegionSpec("r"), 0.0)
    assert quota.left(0.0) == (None, None)


@pytest.mark.parametrize(("tokens", "burst"), [(0.0, 60.0), (-1.0, 60.0), (100.0, 0.0), (inf, 60.0)])
def test_impossible_limits_are_refused(tokens: float, burst: float) -> None:
    with pytest.raises(ValueError, match="quota"):
        region(tokens=tokens, burst=burst)


gaps = st.one_of(st.just(0.0), st.floats(min_value=0.0, max_value=100.0))
units = st.floats(min_value=0.0, max_value=700.0)


@given(st.lists(st.tuples(gaps, units), max_size=60))
def test_in_no_window_more_than_burst_and_rate(steps: list[tuple[float, float]]) -> None:
    quota = region()
    now = 0.0
    admitted: list[tuple[float, float]] = []
    for gap, tokens in steps:
        now += gap
        answer = quota.reserve(tokens, now)
        if isinstance(answer, Reservation):
            admitted.append((now, tokens))
    for i, (start, _) in enumerate(admitted):
        total = 0.0
        for end, tokens in admitted[i:]:
            total += tokens
            assert total <= (BURST + end - start) / INTERVAL + 1e-4


@given(st.lists(st.tuples(gaps, units), max_size=40))
def test_a_refusal_is_needed_and_its_wait_is_enough_and_not_too_long(steps: list[tuple[float, float]]) -> None:
    quota = region()
    now = 0.0
    history: list[list[float]] = []
    for gap, tokens in steps:
        now += gap
        answer = quota.reserve(tokens, now)
        late = debt(history, now) + tokens * INTERVAL - BURST
        if isinstance(answer, Reservation):
            assert late <= 1e-5
            history.append([now, tokens])
        elif answer == inf:
            assert tokens * INTERVAL > BURST
        else:
            assert answer == pytest.approx(late, abs=1e-6)
            now += answer
            reserved(quota.reserve(tokens, now))
            history.append([now, tokens])


actions = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "settle", "charge"]),
        gaps,
        units,
        st.integers(min_value=0, max_value=10**6),
    ),
    max_size=120,
)


class Replay:
    """A region beside the truth: as if every reservation had been made for what it was settled at, and every charge
    when it was made, worked out from the beginning each time."""

    def __init__(self) -> None:
        self.quota = region()
        self.now = 0.0
        self.history: list[list[float]] = []
        self.claims: list[tuple[Reservation, list[float]]] = []
        self.refunds = 0

    def step(self, what: str, gap: float, amount: float, which: int) -> None:
        self.now += gap
        if what == "reserve":
            answer = self.quota.reserve(amount, self.now)
            if isinstance(answer, Reservation):
                entry = [self.now, amount]
                self.history.append(entry)
                self.claims.append((answer, entry))
        elif self.claims:
            claim, entry = self.claims[which % len(self.claims)]
            if what == "charge":
                self._beyond(claim, amount)
                self.quota.charge(claim, amount, self.now)
            else:
                if not self._beyond(claim, amount) and claim.open:
                    if claim.tokens == entry[1]:
                        entry[1] = amount
                        self.refunds += 1
                    else:
                        amount = claim.tokens  # charged on the way: the provider's count cannot fall below that
                self.quota.settle(claim, amount, self.now)
                assert not claim.open
        self.check()

    def _beyond(self, claim: Reservation, amount: float) -> bool:
        if claim.open and amount > claim.tokens:
            self.history.append([self.now, amount - claim.tokens])
            return True
        return False

    def check(self) -> None:
        left = self.quota.left(self.now)[0]
        assert left is not None
        assert 0.0 <= left <= TPM * BURST / 60.0 + 1e-6
        assert 0.0 <= self.quota.headroom(self.now) <= 1.0
        limit = self.quota._tokens
        assert limit is not None
        owed, truth = limit.debt(self.now), debt(self.history, self.now)
        assert owed >= truth - 1e-6
        # Merged marks make refunds a little smaller: by a 256th of the burst each, at most.
        assert owed <= truth + self.refunds * BURST / 256.0 + 1e-6


@settings(max_examples=200)
@given(actions)
def test_with_refunds_and_charges_the_view_is_never_rosier_than_the_truth(
    steps: list[tuple[str, float, float, int]],
) -> None:
    replay = Replay()
    for step in steps:
        replay.step(*step)


def test_the_same_under_traffic_near_the_limit() -> None:
    for seed in range(100):
        rng = random.Random(seed)
        replay = Replay()
        scale = rng.choice([3.0, 30.0, 300.0])
        for _ in range(100):
            what = rng.choices(["reserve", "settle", "charge"], [5, 4, 1])[0]
            amount = rng.uniform(0.0, scale)
            replay.step(what, rng.expovariate(1.0) * scale / 15.0, amount, rng.randrange(10**6))


def test_marks_stay_few_under_rising_load() -> None:
    quota = region(tokens=6e6)
    for i in range(100_000):
        quota.reserve(101.0, i * 1e-3)
    assert len(quota._tokens._marks) <= 257
