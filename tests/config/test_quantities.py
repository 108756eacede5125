"""Quantities: what people write, what they get, what they are told."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.config import quantities as q


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60.0),
        ("1h", 3600.0),
        ("250ms", 0.25),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        ("2m500ms", 120.5),
        ("0", 0.0),
        ("0s", 0.0),
        (" 5s ", 5.0),
        (2.5, 2.5),
        (7, 7.0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert q.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5 s", "1m1h", "5s5s", "-1s", "+1s", "1e3s", "infs", "nan", "5sec", "１s", "1,5s"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(q.BadValue) as refused:
        q.duration(text)
    assert refused.value.fix


def test_a_duration_without_unit_is_refused_with_both_readings() -> None:
    with pytest.raises(q.BadValue) as refused:
        q.duration("60")
    assert refused.value.message == "'60' has no unit"
    assert "60s" in refused.value.fix
    assert "60ms" in refused.value.fix


def test_a_duration_is_at_most_a_year() -> None:
    with pytest.raises(q.BadValue, match="longer than a year"):
        q.duration("400d")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16GiB", 16 * 2**30),
        ("64MB", 64_000_000),
        ("64 MB", 64_000_000),
        ("512", 512),
        ("1.5KiB", 1536),
        ("16Gi", 16 * 2**30),
        ("10b", 10),
        ("1TB", 10**12),
        (4096, 4096),
    ],
)
def test_sizes(text: object, count: int) -> None:
    assert q.size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.5", "0.3KiB", "1PiB", "ten", "1e6", "999999999TiB", 1.5, True])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(q.BadValue):
        q.size(text)


def test_a_size_that_means_two_is_refused() -> None:
    with pytest.raises(q.BadValue, match="two sizes") as refused:
        q.size("16G")
    assert refused.value.fix == "Write 16GiB (1024s) or 16GB (1000s)."


@pytest.mark.parametrize(
    ("text", "fraction"), [("5%", 0.05), ("0.05", 0.05), ("100%", 1.0), ("0.5 %", 0.005), (0.75, 0.75)]
)
def test_shares(text: object, fraction: float) -> None:
    assert q.share(text) == fraction


@pytest.mark.parametrize("text", ["", "%", "101%", "1.01", "-5%", "5%%", "half", 2, float("nan")])
def test_what_is_no_share(text: object) -> None:
    with pytest.raises(q.BadValue):
        q.share(text)


def test_a_share_above_one_is_probably_meant_as_per_cent() -> None:
    with pytest.raises(q.BadValue) as refused:
        q.share("75")
    assert refused.value.fix == "Write 75%."


@pytest.mark.parametrize(
    ("text", "number"), [("1000", 1000), ("10k", 10_000), ("2M", 2_000_000), ("1.5M", 1_500_000), (3, 3)]
)
def test_counts(text: object, number: int) -> None:
    assert q.count(text) == number


@pytest.mark.parametrize(
    ("text", "fix"), [("10K", "Write 10k."), ("2m", "Write 2M."), ("1.5", ""), ("-1", ""), ("many", "")]
)
def test_what_is_no_count(text: str, fix: str) -> None:
    with pytest.raises(q.BadValue) as refused:
        q.count(text)
    assert fix in refused.value.fix


@pytest.mark.parametrize("text", ["1e3", "-1", "nan", "inf", "0x10", "1_000", "٣", True, None, [], float("inf")])
def test_what_is_no_number(text: object) -> None:
    with pytest.raises(q.BadValue):
        q.number(text)


@pytest.mark.parametrize(
    ("text", "on"), [("true", True), ("on", True), ("Yes", True), ("false", False), ("off", False), (True, True)]
)
def test_switches(text: object, on: bool) -> None:
    assert q.switch(text) is on


def test_what_is_no_switch() -> None:
    with pytest.raises(q.BadValue, match="neither true nor false"):
        q.switch("1")


@given(st.integers(0, 31_000_000_000))
def test_a_duration_survives_being_written(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert q.duration(q.format_duration(seconds)) == pytest.approx(seconds, rel=1e-12)


@given(st.integers(0, q.LARGEST))
def test_a_size_survives_being_written(count: int) -> None:
    assert q.size(q.format_size(count)) == count


@given(st.integers(0, 10**14))
def test_a_count_survives_being_written(count: int) -> None:
    assert q.count(q.format_count(count)) == count


@given(st.integers(0, 10**6))
def test_a_share_survives_being_written(millionths: int) -> None:
    fraction = millionths / 10**6
    assert q.share(q.format_share(fraction)) == pytest.approx(fraction, rel=1e-12)


@given(st.integers(0, 10**9), st.integers(0, 6))
def test_a_number_survives_being_written(digits: int, places: int) -> None:
    value = digits / 10**places
    assert q.number(q.format_number(value)) == value


@given(st.one_of(st.text(), st.none(), st.booleans(), st.integers(), st.floats(), st.lists(st.text())))
def test_anything_else_is_refused_in_words(value: object) -> None:
    for parse in (q.duration, q.size, q.share, q.count, q.number, q.switch):
        with contextlib.suppress(q.BadValue):
            assert parse(value) >= 0
