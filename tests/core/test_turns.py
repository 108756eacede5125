"""Turns: what versions get of the runs that their workers ask for, in whatever order they ask."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.turns import May, Turns

NAMES = ["v1", "v2", "v3", "v4", "v5"]
weights = st.one_of(st.integers(1, 50).map(float), st.floats(1.0, 50.0))
tables = st.integers(2, 5).flatmap(lambda n: st.fixed_dictionaries(dict.fromkeys(NAMES[:n], weights)))
#: What happens to a version, in `test_somebody_may_always_go_on`.
KINDS = ["come or go", "come or go", "weight", "claim", "claim", "claim", "in vain", "elsewhere", "excused"]
#: Who asks, in which order: everybody who waits asks in this order until one may.
orders = st.lists(st.permutations(NAMES), min_size=1, max_size=40)


def shared(weights: dict[str, float]) -> Turns:
    turns = Turns()
    turns.set(weights)
    return turns


def one(turns: Turns, name: str) -> None:
    turns.begin(name)
    turns.end(name, began=True)


def first(turns: Turns, order: list[str]) -> str:
    """The first of those in this order that may begin one has begun it."""
    chosen = next(name for name in order if name in turns.weights and turns.may(name) is May.YES)
    one(turns, chosen)
    return chosen


@given(tables, orders)
def test_of_any_number_of_runs_each_has_its_share_in_whatever_order_they_ask(
    table: dict[str, float], orders: list[list[str]]
) -> None:
    turns, had, total = shared(table), Counter[str](), sum(table.values())
    for n in range(1, 301):
        had[first(turns, orders[n % len(orders)])] += 1
        for name, weight in table.items():
            due = n * weight / total
            assert had[name] < due + 1 + 1e-6
            assert had[name] > due - (1 if len(table) == 2 else 2) - 1e-6


@given(st.integers(1, 99), orders)
def test_of_two_versions_each_window_of_a_hundred_is_within_one(percent: int, orders: list[list[str]]) -> None:
    turns = shared({"v1": float(percent), "v2": 100.0 - percent})
    chosen = [first(turns, orders[n % len(orders)]) == "v1" for n in range(500)]
    total = [0, *accumulate(chosen)]
    assert all(abs(total[n + 100] - total[n] - percent) <= 1 for n in range(401))


def test_ninety_and_ten_with_one_that_is_always_first() -> None:
    turns = shared({"v7": 90.0, "v8": 10.0})
    assert [first(turns, ["v8", "v7"]) for _ in range(20)] == (["v8"] + ["v7"] * 9) * 2
    turns = shared({"v7": 90.0, "v8": 10.0})
    assert [first(turns, ["v7", "v8"]) for _ in range(20)] == (["v7"] * 9 + ["v8"]) * 2


def test_who_has_no_time_holds_the_others_back_when_its_turn_has_come() -> None:
    turns = shared({"v7": 90.0, "v8": 10.0})
    for _ in range(9):
        one(turns, "v7")
    assert turns.may("v7") is May.NO
    assert turns.held
    one(turns, "v8")
    assert turns.may("v7") is May.YES
    assert not turns.held


class Crowd:
    """Versions whose workers come and go."""

    def __init__(self, table: dict[str, float]) -> None:
        self.turns = Turns()
        self.table = table
        self.there: dict[str, float] = {}

    def come_or_go(self, name: str) -> None:
        self.there = {each: weight for each, weight in self.table.items() if (each in self.there) != (each == name)}
        self.turns.set(self.there)


@given(
    tables,
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(NAMES)),
        max_size=200,
    ),
)
def test_somebody_may_always_go_on_and_everybody_gets_one_in_the_end(
    table: dict[str, float], steps: list[tuple[str, str]]
) -> None:
    crowd = Crowd(dict(table))
    turns = crowd.turns
    for what, name in steps:
        if name not in table:
            continue
        if what == "come or go":
            crowd.come_or_go(name)
        elif what == "weight":
            crowd.table[name] = table[name] * (1 + len(crowd.there))
            crowd.there = {each: crowd.table[each] for each in crowd.there}
            turns.set(crowd.there)
        elif name in crowd.there:
            if what == "excused":
                turns.excuse(name)
            elif turns.may(name) is May.YES:
                turns.begin(name)
                turns.end(name, began=what == "claim", otherwise=what == "elsewhere")
        if crowd.there:
            assert any(turns.may(each) is May.YES for each in crowd.there)
    total = sum(crowd.there.values())
    for name, weight in crowd.there.items():
        # Nothing is left of hours past: at most a few rounds.
        most = (len(crowd.there) + 2) * (total / weight + 1)
        began = 0
        while turns.may(name) is not May.YES:
            first(turns, [each for each in crowd.there if each != name])
            began += 1
            assert began <= most
        one(turns, name)


def test_who_comes_has_neither_debt_nor_credit() -> None:
    turns = shared({"v7": 90.0})
    for _ in range(1000):
        one(turns, "v7")
    turns.set({"v7": 90.0, "v8": 10.0})
    assert [first(turns, ["v8", "v7"]) for _ in range(11)].count("v8") == 2
    turns.set({"v8": 10.0})
    for _ in range(1000):
        one(turns, "v8")
    turns.set({"v7": 90.0, "v8": 10.0})
    assert [first(turns, ["v7", "v8"]) for _ in range(10)] == ["v7"] * 9 + ["v8"]


def test_weights_that_change_often_bend_nothing() -> None:
    turns, had = Turns(), Counter[str]()
    for n in range(1000):
        turns.set({"v7": 90.0, "v8": 10.0 + (n % 2) * 1e-3})
        had[first(turns, ["v8", "v7"])] += 1
    assert had["v8"] in (100, 101)


def test_until_claims_have_come_to_something_others_may_what_they_might_in_any_case() -> None:
    turns = shared({"v7": 50.0, "v8": 50.0})
    turns.begin("v7")
    assert turns.may("v8") is May.YES
    turns.begin("v8")
    assert turns.may("v7") is May.LATER
    turns.end("v7", began=True)
    assert turns.may("v7") is May.LATER
    assert turns.may("v8") is May.LATER
    turns.end("v8", began=False)
    assert turns.may("v7") is May.NO
    assert turns.may("v8") is May.YES


def test_claims_of_one_version_go_together_as_far_as_all_may_come_to_something() -> None:
    turns = shared({"v7": 90.0, "v8": 10.0})
    one(turns, "v8")
    for _ in range(9):
        assert turns.may("v7") is May.YES
        assert turns.may("v8") is May.NO  # whatever those come to
        turns.begin("v7")
    for _ in range(9):
        turns.end("v7", began=True)
    assert turns.may("v8") is May.YES


def test_once_somebody_waits_for_answers_nobody_goes_on_before_they_are_there() -> None:
    turns = shared({"v7": 90.0, "v8": 10.0})
    one(turns, "v8")
    for _ in range(12):
        turns.begin("v7")
    assert turns.may("v8") is May.LATER
    assert turns.may("v7") is May.LATER
    for _ in range(12):
        turns.end("v7", began=False)
    assert turns.may("v7") is May.YES


@given(
    tables, st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["asks", "begins", "in vain"])), max_size=300)
)
def test_claims_that_cross_bend_nothing(table: dict[str, float], steps: list[tuple[str, str]]) -> None:
    turns, flying, had, total, n = shared(table), Counter[str](), Counter[str](), sum(table.values()), 0
    for name, what in steps:
        if name not in table:
            continue
        if what == "asks":
            if turns.may(name) is May.YES:
                turns.begin(name)
                flying[name] += 1
            elif not flying.total():
                assert any(turns.may(each) is May.YES for each in table)
        elif flying[name]:
            flying[name] -= 1
            turns.end(name, began=what == "begins")
            if what == "begins":
                n += 1
                had[name] += 1
                for each, weight in table.items():
                    assert had[each] < n * weight / total + 1 + 1e-6
                    assert had[each] > n * weight / total - (1 if len(table) == 2 else 2) - 1e-6


@pytest.mark.parametrize("how", ["took another", "its breaker"])
def test_who_was_there_and_did_not_take_its_turn_holds_nobody_back(how: str) -> None:
    turns, let_by = shared({"v7": 90.0, "v8": 10.0}), 0
    for _ in range(100):
        if turns.may("v7") is May.NO:
            let_by += 1
            if how == "its breaker":
                turns.excuse("v8")
            else:
                turns.begin("v8")
                assert turns.end("v8", began=False, otherwise=True)
        assert turns.may("v7") is May.YES
        one(turns, "v7")
    assert let_by == 100 - 9
    # And it has no claim to those later: only to the one that it was owed before.
    assert [first(turns, ["v8", "v7"]) for _ in range(12)] == ["v8", "v8", *["v7"] * 9, "v8"]


def test_who_takes_another_run_while_nobody_waits_loses_nothing() -> None:
    turns = shared({"v7": 50.0, "v8": 50.0})
    one(turns, "v7")
    turns.begin("v8")
    assert not turns.end("v8", began=False, otherwise=True)
    assert turns.may("v7") is May.NO


@given(tables, orders, st.sets(st.sampled_from(NAMES)))
def test_whoever_is_excused_the_others_go_on_and_share(
    table: dict[str, float], orders: list[list[str]], excused: set[str]
) -> None:
    turns = shared(table)
    for order in orders:
        first(turns, order)
    rest = {name: weight for name, weight in table.items() if name not in excused}
    had, total = Counter[str](), sum(rest.values())
    for n in range(1, 101 if rest else 1):
        for name in excused:
            turns.excuse(name)
        had[first(turns, [name for name in orders[n % len(orders)] if name in rest])] += 1
        for name, weight in rest.items():
            assert abs(had[name] - n * weight / total) < 4


def test_a_version_that_left_before_its_claim_came_to_something() -> None:
    turns = shared({"v7": 50.0, "v8": 50.0})
    turns.begin("v7")
    turns.set({"v8": 50.0, "v9": 50.0})
    turns.end("v7", began=True)
    for name in ("v8", "v9"):
        assert turns.may(name) is May.YES
