"""Quantiles, medians and spreads. A quantile of n values is the nearest rank: the smallest value with at least q·n at
or below it, so that it is always a value that happened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict


class Spread(TypedDict):
    median: float
    min: float
    max: float
    rounds: list[float]


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest-rank quantile, `q` in 0..1; NaN of nothing. `values` need not be sorted."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def median(values: Sequence[float]) -> float:
    if not values:
        return math.nan
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Iterable[float]) -> Spread:
    """Median, least and most over rounds."""
    rounds = [float(v) for v in values]
    if not rounds:
        return Spread(median=math.nan, min=math.nan, max=math.nan, rounds=[])
    return Spread(median=median(rounds), min=min(rounds), max=max(rounds), rounds=rounds)


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent; a dash for NaN."""
    if math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return str(value)
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"
