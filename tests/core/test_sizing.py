"""Slots and memory: what is derived, what is learnt, and the bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.sizing import (
    GIB,
    MIB,
    MOST_TIMES,
    Crowd,
    Need,
    Use,
    adapt,
    engine_slots,
    first_guess,
    heavy_room,
)
from unjam.core.spec import UNSIZED_SLOTS, EndpointSpec


@pytest.mark.parametrize(
    ("size", "slots"),
    [
        ({"cores": 8}, 16),
        ({"cores": 64, "memory": 128 * GIB}, 128),
        ({"cores": 64, "memory": GIB}, 16),
        ({"cores": 0.25}, 1),
        ({"cores": 8, "memory": 10 * MIB}, 1),
        ({"cores": 8, "slots": 3}, 3),
        ({}, UNSIZED_SLOTS),
    ],
)
def test_slots_follow_from_the_size(size: dict[str, float], slots: int) -> None:
    assert EndpointSpec("http://e", **size).hard_slots == slots  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("memory", "guess"), [(128 * GIB, 8 * GIB), (16 * GIB, GIB), (GIB, GIB // 2), (256 * MIB, 128 * MIB)]
)
def test_what_a_heavy_request_is_taken_to_need_at_first(memory: int, guess: int) -> None:
    assert first_guess(memory) == guess


def test_a_need_is_believed_after_some_have_ended_and_fades() -> None:
    need = Need()
    assert need.of(16 * GIB, 0.0) == GIB
    need.see(100 * MIB, 0, 0.0)
    assert need.of(16 * GIB, 0.0) == GIB  # it may have only begun
    need.see(2 * GIB, 0, 1.0)
    assert need.of(16 * GIB, 1.0) == 2 * GIB  # seen already to need more than guessed
    need.see(0.0, 3, 601.0)
    assert need.of(16 * GIB, 601.0) == pytest.approx(GIB)  # believed now, and half faded
    assert need.of(16 * GIB, 1201.0) == pytest.approx(GIB / 2)  # also while nobody sees anything


def test_the_most_at_once_is_remembered_for_a_minute() -> None:
    crowd = Crowd()
    assert [crowd.see(n, t) for n, t in ((4, 0.0), (1, 30.0), (1, 61.0), (3, 62.0))] == [4, 4, 1, 3]


def test_room_for_heavy_work() -> None:
    assert heavy_room(free=10 * GIB, limit=20 * GIB, used_by_ours=0, need=3 * GIB) == 3
    # What those that run use already is theirs, what they have still to claim isn't free.
    assert heavy_room(free=5 * GIB, limit=20 * GIB, used_by_ours=5 * GIB, need=3 * GIB) == 3
    assert heavy_room(free=GIB, limit=20 * GIB, used_by_ours=0, need=3 * GIB) == 0
    assert heavy_room(free=0, limit=20 * GIB, used_by_ours=0, need=3 * GIB) == 0


def test_idle_processors_get_more_slots_and_busy_ones_fewer() -> None:
    waiting_for_a_model = Use(cpu=0.05, pressure=0.0, running=16)
    assert adapt(16, 16, waiting_for_a_model) == 24
    assert adapt(16, 16, Use(0.6, 0.0, 16)) == 18
    assert adapt(16, 16, Use(0.8, 0.0, 16)) == 16
    assert adapt(16, 16, Use(0.05, 0.5, 16)) == 16  # its processor is waited for all the same
    assert adapt(16, 16, Use(0.05, 0.0, 10)) == 16  # not all are taken: no need
    assert adapt(64, 16, Use(0.95, 0.0, 64)) == 56
    assert adapt(17, 16, Use(0.95, 0.0, 17)) == 16
    assert adapt(16, 16, Use(1.0, 0.9, 16)) == 16  # never below what it has cores for
    assert adapt(16, 16, Use(None, None, 16)) == 16


@given(st.integers(1, 64), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=60))
def test_adapted_slots_stay_within_bounds(base: int, reports: list[tuple[float, float, bool]]) -> None:
    slots = base
    for cpu, pressure, full in reports:
        slots = adapt(slots, base, Use(cpu, pressure, slots if full else 0))
        assert base <= slots <= MOST_TIMES * base


def test_steady_load_settles() -> None:
    """Each request uses 5 % of a processor of 1: the slots grow to what it can do and stay there."""
    slots = 2
    seen = []
    for _ in range(40):
        slots = adapt(slots, 2, Use(min(1.0, 0.05 * slots), 0.0, slots))
        seen.append(slots)
    assert len(set(seen[20:])) == 1
    assert 14 <= slots <= 16


def test_an_engine_that_queues_gets_what_it_runs() -> None:
    assert engine_slots(UNSIZED_SLOTS, False, ours=40, in_flight=40, waiting=8) == 36
    assert engine_slots(UNSIZED_SLOTS, False, ours=20, in_flight=40, waiting=8) == 18  # half of them are others'
    assert engine_slots(36, True, ours=36, in_flight=36, waiting=0) == 40
    assert engine_slots(36, True, ours=10, in_flight=10, waiting=0) == 36
    assert engine_slots(UNSIZED_SLOTS, False, ours=40, in_flight=40, waiting=0) == UNSIZED_SLOTS
