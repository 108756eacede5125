"""What is measured over a second, and what counts as news."""

from __future__ import annotations

import pytest

from unjam.reporter.change import Window, news, others

GIB = 1 << 30


def test_shares_are_measured_over_a_second() -> None:
    window = Window()
    window.add({"cores": 8}, 0.0)
    assert window.mean() == {"cores": 8}
    window.add({"cores": 8, "cpu": 1.0}, 0.5)
    assert window.mean() == {"cores": 8}, "half a second says little"
    window.add({"cores": 8, "cpu": 0.0}, 1.0)
    assert window.mean() == {"cores": 8, "cpu": 0.5}
    window.add({"cores": 8, "cpu": 0.0}, 1.5)
    assert window.mean() == {"cores": 8, "cpu": 0.0}


def test_readings_count_by_the_time_they_cover() -> None:
    window = Window()
    for now, cpu in ((0.0, None), (2.0, 0.2), (2.25, 1.0)):
        window.add({} if cpu is None else {"cpu": cpu}, now)
    assert window.mean()["cpu"] == pytest.approx(0.75 * 0.2 + 0.25)


def test_sizes_are_those_of_now() -> None:
    window = Window()
    for second, free in enumerate((9 * GIB, 8 * GIB, GIB)):
        window.add({"memory": 16 * GIB, "memory_free": free}, float(second))
    assert window.mean()["memory_free"] == GIB


def test_what_is_not_a_number_is_left_out() -> None:
    window = Window()
    window.add({"cores": float("nan"), "cpu": float("inf"), "open_files": 3}, 0.0)
    assert window.mean() == {"open_files": 3}


def test_the_agents_own_use_is_no_news() -> None:
    assert others({"cpu": 0.9, "agent_cpu": 0.8}) == pytest.approx(0.1)
    assert not news({"cpu": 0.1, "agent_cpu": 0.0}, {"cpu": 0.9, "agent_cpu": 0.8})
    assert news({"cpu": 0.1, "agent_cpu": 0.0}, {"cpu": 0.26, "agent_cpu": 0.0})
    assert news({"cpu": 0.9, "agent_cpu": 0.0}, {"cpu": 0.1, "agent_cpu": 0.0})
    assert not news({"cpu": 0.1}, {"cpu": 0.2})


def test_a_blip_of_a_tenth_of_a_second_is_no_news() -> None:
    window = Window()
    said = {"cpu": 0.0}
    for step, cpu in enumerate((0.0, 0.0, 0.2, 0.0, 0.0)):  # 100 ms of all cores in a reading of 500 ms
        window.add({"cpu": cpu}, step / 2)
        assert not news(said, window.mean())


def test_the_first_figure_is_news() -> None:
    assert news({}, {"cpu": 0.0})
    assert not news({}, {"memory": GIB})


@pytest.mark.parametrize(
    ("had", "free", "told"),
    [
        (8.0, 7.0, False),
        (8.0, 6.4, True),  # a tenth of the limit
        (6.4, 8.0, True),
        (1.0, 0.5, True),  # half
        (0.5, 1.0, False),
        (0.02, 0.01, False),  # half of nearly nothing
    ],
)
def test_memory_is_news_when_a_tenth_or_half_of_it_goes(had: float, free: float, told: bool) -> None:
    before = {"memory": 16 * GIB, "memory_free": int(had * GIB)}
    assert bool(news(before, {"memory": 16 * GIB, "memory_free": int(free * GIB)})) is told
