"""A retry budget keeps retries a small part of the traffic, and always grants a few."""

from hypothesis import given
from hypothesis import strategies as st

from unjam.core.retry import WINDOW, RetryBudget
from unjam.core.spec import RetrySpec


def drain(budget: RetryBudget, now: float) -> int:
    taken = 0
    while budget.take(now):
        taken += 1
        assert taken < 1_000_000
    return taken


def test_without_traffic_the_floor_is_granted() -> None:
    budget = RetryBudget(RetrySpec(budget=0.2, floor=3.0))
    assert drain(budget, 0.0) == 30
    assert budget.left(0.0) == 0.0


def test_a_share_of_the_requests_on_top() -> None:
    budget = RetryBudget(RetrySpec(budget=0.2, floor=0.0))
    for i in range(100):
        budget.note_request(i / 100.0)
    assert drain(budget, 1.0) == 20


def test_what_is_spent_comes_back_after_the_window() -> None:
    budget = RetryBudget(RetrySpec(budget=0.0, floor=1.0))
    assert drain(budget, 5.0) == WINDOW
    assert not budget.take(14.9)
    assert drain(budget, 15.0) == WINDOW


def test_old_requests_no_longer_count() -> None:
    budget = RetryBudget(RetrySpec(budget=0.5, floor=0.0))
    for _ in range(10):
        budget.note_request(100.5)
    assert budget.left(109.9) == 5.0
    assert not budget.take(110.0)


def test_none_at_all_can_be_asked_for() -> None:
    budget = RetryBudget(RetrySpec(budget=0.0, floor=0.0))
    budget.note_request(1.0)
    assert not budget.take(1.0)


@given(
    st.lists(st.tuples(st.floats(min_value=0.0, max_value=1.5), st.booleans()), min_size=1, max_size=300),
    st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_never_more_than_the_share_in_any_ten_calendar_seconds(
    steps: list[tuple[float, bool]], share: float, floor: float
) -> None:
    budget = RetryBudget(RetrySpec(budget=share, floor=floor))
    now = 1000.0
    requests: list[int] = []
    retries: list[int] = []
    for gap, retry in steps:
        now += gap
        if not retry:
            budget.note_request(now)
            requests.append(int(now))
            continue
        recent = sum(1 for second in requests if second > int(now) - WINDOW)
        spent = sum(1 for second in retries if second > int(now) - WINDOW)
        allowed = share * recent + floor * WINDOW - spent >= 1.0 - 1e-9
        assert budget.take(now) is allowed
        if allowed:
            retries.append(int(now))
