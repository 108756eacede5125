"""Shares of versions: exact in small windows, sticky by key, and only those callers move that must."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.rollout import Candidate, VersionPicker

weights_strategy = st.lists(st.floats(min_value=0.0, max_value=1000.0), min_size=1, max_size=6)


def picker(*parts: tuple[str, float] | tuple[str, float, float], spill: bool = False) -> VersionPicker[str]:
    made: VersionPicker[str] = VersionPicker("service")
    made.set([Candidate(part[0], *part) for part in parts], spill)
    return made


def test_ninety_ten_holds_in_every_window_of_a_hundred() -> None:
    split = picker(("v7", 90.0), ("v8", 10.0))
    picks = [split.pick() == "v8" for _ in range(100_000)]
    inside = sum(picks[:100])
    for i in range(100, len(picks)):
        assert 9 <= inside <= 11, i
        inside += picks[i] - picks[i - 100]
    assert sum(picks) == 10_000


@given(weights_strategy, st.integers(min_value=1, max_value=400))
def test_nobody_is_ever_far_from_its_due(weights: list[float], picks: int) -> None:
    split = picker(*((f"v{i}", weight) for i, weight in enumerate(weights)))
    total = sum(weights)
    got = Counter(split.pick() for _ in range(picks))
    if total == 0.0:
        assert got == {None: picks}
        return
    for i, weight in enumerate(weights):
        # Smooth weighted round robin: within one of the due for two versions, within the number of versions for more.
        assert abs(got[f"v{i}"] - picks * weight / total) <= max(1.0, len(weights) - 1.0) + 1e-6
        if weight == 0.0:
            assert got[f"v{i}"] == 0


@given(weights_strategy, st.text(max_size=20))
def test_a_caller_keeps_its_version_and_weight_nothing_never_wins(weights: list[float], caller: str) -> None:
    split = picker(*((f"v{i}", weight) for i, weight in enumerate(weights)))
    first = split.pick(caller)
    assert split.pick(caller) == first
    if first is None:
        assert sum(weights) == 0.0
    else:
        assert weights[int(first[1:])] > 0.0


def test_ten_thousand_callers_are_split_within_a_point() -> None:
    split = picker(("v7", 90.0), ("v8", 10.0))
    got = Counter(split.pick(f"caller-{i}") for i in range(10_000))
    assert got["v8"] == pytest.approx(1000, abs=100)


@given(weights_strategy.filter(lambda w: len(w) > 1), st.data())
def test_after_a_change_only_callers_move_that_must(weights: list[float], data: st.DataObject) -> None:
    grown = data.draw(st.integers(min_value=0, max_value=len(weights) - 1))
    factor = data.draw(st.floats(min_value=1.0, max_value=10.0))
    after = [weight * factor if i == grown else weight for i, weight in enumerate(weights)]
    callers = [f"caller-{i}" for i in range(60)]
    split = picker(*((f"v{i}", weight) for i, weight in enumerate(weights)))
    before = {caller: split.pick(caller) for caller in callers}
    split.set([Candidate(f"v{i}", f"v{i}", weight) for i, weight in enumerate(after)])
    for caller in callers:
        now = split.pick(caller)
        assert now in (before[caller], f"v{grown}")


def test_more_callers_than_are_remembered_keep_their_versions() -> None:
    split = picker(("v7", 90.0), ("v8", 10.0))
    callers = [f"caller-{i}" for i in range(10_000)]
    first = [split.pick(caller) for caller in callers]
    assert [split.pick(caller) for caller in callers] == first
    assert len(split._known) <= 4096
    split.pick("k" * 8000)
    assert "k" * 8000 not in split._known


def test_weights_next_to_nothing_are_weights() -> None:
    split = picker(("a", 5e-324), ("b", 5e-324))
    assert {split.pick(f"caller-{i}") for i in range(20)} <= {"a", "b"}


def test_two_services_do_not_share_one_split() -> None:
    parts = [Candidate("v1", "v1", 50.0), Candidate("v2", "v2", 50.0)]
    one: VersionPicker[str] = VersionPicker("one")
    two: VersionPicker[str] = VersionPicker("two")
    one.set(parts)
    two.set(parts)
    same = sum(one.pick(f"caller-{i}") == two.pick(f"caller-{i}") for i in range(1000))
    assert 400 < same < 600


def test_an_open_version_gets_nothing_and_the_others_its_part() -> None:
    for spill in (False, True):
        split = picker(("v7", 90.0, 0.0), ("v8", 10.0, 1.0), spill=spill)
        assert {split.pick() for _ in range(50)} == {"v8"}
        assert {split.pick(f"caller-{i}") for i in range(50)} == {"v8"}


def test_a_version_ramping_back_gets_a_share_of_its_own_due_only() -> None:
    # 1 % of 90 % whoever else is there: weighing 0.9 against 10 would hand it 8 %.
    split = picker(("v7", 90.0, 0.01), ("v8", 10.0, 1.0))
    got = Counter(split.pick() for _ in range(10_000))
    assert got["v7"] == pytest.approx(90, abs=1)
    assert split.shares() == pytest.approx({"v7": 0.009, "v8": 0.991})


def test_callers_of_healthy_versions_stay_when_another_is_ramped() -> None:
    parts = [("a", 30.0), ("b", 30.0), ("c", 40.0)]
    split = picker(*parts)
    before = {f"caller-{i}": split.pick(f"caller-{i}") for i in range(500)}
    split.set([Candidate("a", "a", 30.0, 0.1), Candidate("b", "b", 30.0), Candidate("c", "c", 40.0)])
    moved = [caller for caller, version in before.items() if split.pick(caller) != version]
    assert moved
    assert {before[caller] for caller in moved} == {"a"}


def test_with_nobody_healthy_the_rest_spills_to_the_fallback_chain() -> None:
    split = picker(("v1", 1.0, 0.1), spill=True)
    got = Counter(split.pick() for _ in range(1000))
    assert got == {"v1": 100, None: 900}
    keyed = Counter(split.pick(f"caller-{i}") for i in range(4000))
    assert keyed["v1"] == pytest.approx(400, abs=80)
    assert picker(("v1", 1.0, 0.0), spill=True).pick() is None


def test_without_a_fallback_chain_a_ramping_version_is_better_than_none() -> None:
    split = picker(("v1", 1.0, 0.1))
    assert {split.pick() for _ in range(100)} == {"v1"}
    assert picker(("v1", 1.0, 0.0)).pick() is None


def test_without_leaves_out_and_does_not_bend_the_turns() -> None:
    split = picker(("v7", 90.0), ("v8", 10.0))
    picks = []
    for _ in range(1000):
        assert split.pick(without={"v7"}) == "v8"
        picks.append(split.pick())
    assert picks.count("v8") == 100
    assert split.pick(without={"v7", "v8"}) is None
    assert split.pick("caller", without={"v7"}) == "v8"
    assert picker(("v1", 1.0)).pick(without=("v1",)) is None


@given(st.lists(st.integers(min_value=0, max_value=100), min_size=20, max_size=60))
def test_changing_weights_all_the_time_does_not_bend_the_shares(changes: list[int]) -> None:
    split = picker(("a", 50.0), ("b", 50.0))
    due = 0.0
    got = 0
    for weight in changes:
        split.set([Candidate("a", "a", float(weight)), Candidate("b", "b", float(100 - weight))])
        for _ in range(7):
            due += weight / 100.0
            got += split.pick() == "a"
    # A version set to weight 0 loses or is forgiven what it was owed: at most one request each time.
    forgiven = sum(1 for weight in changes if weight in (0, 100))
    assert abs(got - due) <= 1.0 + forgiven + 1e-6


@pytest.mark.parametrize(
    "parts",
    [
        [("a", -1.0, 1.0)],
        [("a", float("nan"), 1.0)],
        [("a", float("inf"), 1.0)],
        [("a", 1.0, 1.5)],
        [("a", 1.0, 1.0), ("a", 1.0, 1.0)],
        [("", 1.0, 1.0)],
    ],
)
def test_nonsense_is_refused_and_changes_nothing(parts: list[tuple[str, float, float]]) -> None:
    split = picker(("v1", 1.0))
    with pytest.raises(ValueError, match="version"):
        split.set([Candidate(part[0], *part) for part in parts])
    assert split.pick() == "v1"
