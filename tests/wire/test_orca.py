"""The header `endpoint-load-metrics`: what agents and engines send is read, what cannot be one is refused whole."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.load import LoadReport
from unjam.wire.orca import MOST_BYTES, MOST_FIGURES, BadLoad, figures, parse, report, to_json, to_text

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abcXYZ019_-./:", min_size=1, max_size=20)
reports = st.dictionaries(
    st.sampled_from(["cpu_utilization", "application_utilization", "rps_fractional", "eps", "rps"]),
    finite.map(abs),
) | st.dictionaries(names.map("named_metrics.".__add__) | names.map("request_cost.".__add__), finite, max_size=20)
loads = st.fixed_dictionaries(
    {},
    optional={
        "cpu": st.floats(0, 1),
        "agent_cpu": st.floats(0, 1),
        "cores": st.floats(0.01, 4096),
        "memory": st.integers(0, 1 << 47),
        "memory_free": st.integers(0, 1 << 47),
        "agent_memory": st.integers(0, 1 << 47),
        "in_flight": st.integers(0, 10_000_000),
        "waiting": st.integers(0, 10_000_000),
        "cache": st.floats(0, 1),
        "pressure": st.floats(0, 1),
        "memory_pressure": st.floats(0, 1),
        "run_queue": st.floats(0, 1000),
        "open_files": st.integers(0, 10_000_000),
        "slots": st.integers(0, 10_000_000),
    },
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"TEXT cpu_utilization=0.3", {"cpu_utilization": 0.3}),
        (b"TEXT cpu_utilization=0.3,mem_utilization=0.8", {"cpu_utilization": 0.3, "mem_utilization": 0.8}),
        (
            # as vLLM writes it
            b"TEXT named_metrics.kv_cache_usage_perc=0.98, named_metrics.num_requests_waiting=12.0",
            {"named_metrics.kv_cache_usage_perc": 0.98, "named_metrics.num_requests_waiting": 12},
        ),
        (b"TEXT cpu_utilization: 0.3, rps_fractional:1e3", {"cpu_utilization": 0.3, "rps_fractional": 1000}),
        (b"TEXT named_metrics.vllm:running=3", {"named_metrics.vllm:running": 3}),
        (b"TEXT named_metrics.a.b=-1.5", {"named_metrics.a.b": -1.5}),
        (b"TEXT  eps = 0 ", {"eps": 0}),
        (b'JSON {"cpu_utilization": 0.3, "named_metrics": {"q": 2}}', {"cpu_utilization": 0.3, "named_metrics.q": 2}),
        (b'{"cpu_utilization": 1.7}', {"cpu_utilization": 1.7}),
        (  # as protobuf's own JSON has it
            b'JSON {"cpuUtilization": 0.5, "rps": "12", "requestCost": {"tokens": 7}, "utilization": null}',
            {"cpu_utilization": 0.5, "rps": 12, "request_cost.tokens": 7},
        ),
        (b"TEXT", {}),
        (b"TEXT ", {}),
        (b"JSON {}", {}),
        (b'JSON {"named_metrics": {}}', {}),
    ],
)
def test_what_is_read(value: bytes, expected: dict[str, float]) -> None:
    assert parse(value) == expected


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "neither"),
        (b"cpu_utilization=0.3", "neither"),
        (b"text cpu_utilization=0.3", "neither"),
        (b"BIN CZqZmZmZmbk/", "binary"),
        (b"TEXT \xff", "ASCII"),
        (b"TEXT cpu_utilization", "name=value"),
        (b"TEXT =1", "name=value"),
        (b"TEXT cpu_utilization=", "not a number"),
        (b"TEXT cpu_utilization=0.3,", "name=value"),
        (b"TEXT cpu_utilization=nan", "not a number"),
        (b"TEXT cpu_utilization=inf", "not a number"),
        (b"TEXT cpu_utilization=1e999", "finite"),
        (b"TEXT cpu_utilization=0x1", "not a number"),
        (b"TEXT cpu_utilization=1_0", "not a number"),
        (b"TEXT cpu_utilization=0.3 0.4", "not a number"),
        (b"TEXT cpu_utilization=-0.1", "less than 0"),
        (b"TEXT mem_utilization=1.1", "more than 1"),
        (b"TEXT utilization.gpu=2", "more than 1"),
        (b"TEXT cpu_utilization=0.3, cpu_utilization=0.3", "twice"),
        (b"TEXT cpu=0.3", "no figure named cpu"),
        (b"TEXT named_metrics.=1", "empty"),
        (b"TEXT a b=1", "not allowed"),
        (b"TEXT cpu_utilization=0.3, TEXT eps=1", "not allowed"),  # the header sent twice
        (b"JSON", "not JSON"),
        (b"JSON [1]", "not an object"),
        (b'JSON {"cpu_utilization": NaN}', "not JSON"),
        (b'JSON {"cpu_utilization": "NaN"}', "not a number"),
        (b'JSON {"cpu_utilization": true}', "not a number"),
        (b'JSON {"cpu_utilization": [1]}', "not a number"),
        (b'JSON {"cpu_utilization": 1' + b"0" * 400 + b"}", "finite"),
        (b'JSON {"cpu_utilization": 1, "cpuUtilization": 2}', "twice"),
        (b'JSON {"named_metrics": {"a": 1, "a": 2}}', "twice"),
        (b'JSON {"named_metrics": {"a": 1}, "named_metrics": {"b": 2}}', "twice"),
        (b'JSON {"named_metrics": 3}', "not an object"),
        (b'JSON {"named_metrics": {"": 1}}', "empty"),
        (b'JSON {"named_metrics": {"a\\r\\nset-cookie: b": 1}}', "not allowed"),
        (b'JSON {"surprise": 1}', "no figure named surprise"),
        (b'JSON {"named_metrics.a": 1, "named_metrics": {"a": 2}}', "twice"),
        (b"JSON " + b"[" * 4000, "not JSON"),
        (b"JSON " + b'{"a":' * 800, "not JSON"),
        (b"TEXT " + b" " * MOST_BYTES, "bytes"),
        (b"TEXT " + b",".join(b"named_metrics.a%d=1" % i for i in range(MOST_FIGURES + 1)), "figures"),
    ],
)
def test_what_is_refused_whole_and_why(value: bytes, why: str) -> None:
    with pytest.raises(BadLoad, match=why):
        parse(value)


@given(reports)
def test_what_is_written_reads_back(report: dict[str, float]) -> None:
    assert parse(to_text(report).encode()) == report
    assert parse(to_json(report).encode()) == report
    assert json.loads(to_json(report).removeprefix("JSON ")) is not None


@pytest.mark.parametrize(
    "report",
    [
        {"cpu": 0.3},
        {"named_metrics.a\r\nb": 1.0},
        {"named_metrics.": 1.0},
        {"cpu_utilization": math.nan},
        {"mem_utilization": 1.5},
        {f"named_metrics.a{i}": 1.0 for i in range(MOST_FIGURES + 1)},
        {f"named_metrics.{i:0100}": 1.0 for i in range(MOST_FIGURES)},
    ],
)
def test_what_would_be_refused_is_not_written(report: dict[str, float]) -> None:
    for write in (to_text, to_json):
        with pytest.raises(BadLoad):
            write(report)


PIECES = [b"TEXT ", b"JSON ", b"{", b"}", b'"cpu_utilization"', b'"named_metrics"', b":", b"=", b",", b"1e9", b"NaN"]


@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=20).map(b"".join))
def test_any_bytes_are_a_report_or_refused(value: bytes) -> None:
    for prefix in (b"", b"TEXT ", b"JSON "):
        try:
            read = parse(prefix + value)
        except BadLoad:
            continue
        assert all(math.isfinite(figure) for figure in read.values())
        LoadReport(**report(read)).problem()


@given(loads)
def test_a_load_comes_back_through_both_formats(load: dict[str, float]) -> None:
    for write in (to_text, to_json):
        assert report(parse(write(figures(load)).encode())) == load


def test_counts_come_back_whole() -> None:
    back = report(parse(b"TEXT named_metrics.in_flight=3.0, named_metrics.memory=17179869184"))
    assert back == {"in_flight": 3, "memory": 17179869184}
    assert all(isinstance(value, int) for value in back.values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"TEXT cpu_utilization=1.4", {"cpu": 1.0}),
        (b"TEXT mem_utilization=0.75, named_metrics.memory=1000", {"memory": 1000, "memory_free": 250}),
        (
            b"TEXT mem_utilization=0.75, named_metrics.memory=1000, named_metrics.memory_free=100",
            {"memory": 1000, "memory_free": 100},
        ),
        (b"TEXT mem_utilization=0.75", {}),
        (
            b"TEXT named_metrics.kv_cache_usage_perc=0.98, named_metrics.num_requests_waiting=12.0",
            {"cache": 0.98, "waiting": 12},
        ),
        (b"TEXT request_cost.tokens=9, utilization.gpu=0.5, named_metrics.theirs=1, eps=3", {}),
    ],
)
def test_what_a_report_makes_of_it(value: bytes, expected: dict[str, float]) -> None:
    assert report(parse(value)) == expected


def test_envoy_is_told_the_memory_in_its_own_figure() -> None:
    said = figures({"memory": 1000, "memory_free": 250, "state": "ready"})
    assert said["mem_utilization"] == 0.75
    assert set(said) == {"mem_utilization", "named_metrics.memory", "named_metrics.memory_free"}
