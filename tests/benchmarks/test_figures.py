"""Quantiles, spreads, and the verdicts on the targets."""

from __future__ import annotations

import math

import pytest
from benchmarks.common.figures import mean, median, quantile, significant, spread
from benchmarks.heavy_tail import report
from benchmarks.heavy_tail.arrivals import AUDIT, CHAT, HELLO, Job
from benchmarks.held_streams import processes_needed


def test_quantile_is_a_value_that_happened() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50
    assert quantile(values, 0.99) == 99
    assert quantile(values, 1.0) == 100
    assert quantile([7.0], 0.01) == 7
    assert math.isnan(quantile([], 0.5))


def test_median_mean_and_spread() -> None:
    assert median([3.0, 1.0, 2.0]) == 2
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert mean([1.0, 2.0]) == 1.5
    assert spread([2.0, 1.0, 9.0]) == {"median": 2.0, "min": 1.0, "max": 9.0, "rounds": [2.0, 1.0, 9.0]}
    assert math.isnan(median([]))
    assert math.isnan(spread([])["median"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (1.0, "1.00"), (12345.6, "12,300"), (999.6, "1,000"), (math.nan, "-"), (-2.345, "-2.35")],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def jobs_and_response(hello_ms: float) -> tuple[list[Job], list[float]]:
    jobs = [Job(float(i), (HELLO, CHAT, AUDIT)[i % 3], "/x", 0.001) for i in range(300)]
    response = [hello_ms / 1e3 if j.kind == HELLO else 0.1 if j.kind == CHAT else 3.0 for j in jobs]
    return jobs, response


def test_warm_up_and_failed_requests_are_left_out() -> None:
    jobs, response = jobs_and_response(5.0)
    response[0] = 99.0  # within the warm-up
    response[-3] = math.nan  # failed
    figures = report.figures(jobs, response, warm=0.1)
    assert figures[HELLO]["p99"] == 0.005
    assert figures[HELLO]["count"] == 89
    assert figures["all"]["count"] == 269


def test_targets_say_pass_or_by_how_much() -> None:
    jobs, ours = jobs_and_response(20.0)
    _, theirs = jobs_and_response(180.0)
    by_name = {
        "unjam": report.figures(jobs, ours, 0.0),
        "haproxy": report.figures(jobs, theirs, 0.0),
        report.PRIORITY: report.figures(jobs, ours, 0.0),
        report.BY_PATH: report.figures(jobs, ours, 0.0),
    }
    checks = {c["target"]: c for c in report.targets(0.85, False, by_name, [by_name])}
    factor = checks["hello p99: times below HAProxy's"]
    assert factor["value"] == pytest.approx(9.0)
    assert factor["pass"]
    assert not {c["target"]: c for c in report.targets(0.95, False, by_name, [by_name])}[factor["target"]]["pass"]
    assert checks["mean over all ÷ central priority queue's (true classes)"]["value"] == pytest.approx(1.0)
    assert [c["pass"] for c in report.targets(0.85, True, by_name, []) if "bursts" in c["target"]] == [True]


def test_no_targets_without_unjam() -> None:
    assert report.targets(0.85, False, {}, []) == []


def test_processes_needed_for_two_descriptors_a_stream() -> None:
    assert processes_needed(10_000, 20_000) == 2
    assert processes_needed(9_800, 20_000) == 1
    assert processes_needed(100, 1 << 20) == 1
