"""What a snapshot's words and figures mean, to all who show them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from unjam.core.balancer import Balancer
from unjam.core.load import LoadReport
from unjam.core.spec import EndpointSpec, ServiceSpec, Topology, VersionSpec
from unjam.telemetry import endpoints as read


def with_load(**changes: Any) -> dict[str, Any]:
    sources = {
        "header": {"age": 9.0, "cpu": 0.9, "in_flight": 3},
        "reporter": {"age": 1.5, "cpu": 0.5, "agent_cpu": 0.2, "memory_free": 1 << 30},
    }
    return {
        "name": "x",
        "other_cpu": 0.3,
        "load": {"sources": sources, "accepted": 7, "refused": 2, "late": 1, "problem": ""},
        "why": ["open"],
        **changes,
    }


@pytest.mark.parametrize(
    ("word", "tone"),
    [
        ("open", read.FINE),
        ("others use 40 % of its CPU", read.NOTE),
        ("report 14 s old", read.NOTE),
        ("reports refused: cores is 1e+09: it must be from 0 to 4096", read.PARTLY),
        ("no heavy work: others use 93 % of its CPU", read.PARTLY),
        ("no heavy work: 1.2 GiB free, one needs 2.0 GiB", read.PARTLY),
        ("no more heavy work", read.PARTLY),
        ("full", read.PARTLY),
        ("warming up", read.PARTLY),
        ("says it is draining", read.PARTLY),
        ("memory short: 120 MiB free", read.BAD),
        ("says it is down", read.BAD),
        ("its reporter is silent", read.BAD),
        ("ejected for 9 s more", read.BAD),
        ("a word of a newer gateway", read.BAD),
    ],
)
def test_words_have_a_tone(word: str, tone: str) -> None:
    assert read.tone(word) == tone
    assert read.usable({"why": [word]}) == (tone != read.BAD and "draining" not in word)


def test_notes_do_not_hide_that_it_is_open() -> None:
    assert read.words({"why": ["others use 40 % of its CPU"]}) == ["open", "others use 40 % of its CPU"]
    assert read.words({"why": ["full", "report 14 s old"]}) == ["full", "report 14 s old"]
    assert read.untroubled({"why": ["report 14 s old"]})
    assert not read.untroubled({"why": ["full"]})


def test_the_freshest_source_that_knows_a_figure_gives_it() -> None:
    endpoint = with_load()
    assert [source.name for source in read.sources(endpoint)] == ["reporter", "header"]
    assert read.figure(endpoint, "cpu") == 0.5
    assert read.figure(endpoint, "in_flight") == 3
    assert read.figure(endpoint, "waiting") is None
    assert read.tally(endpoint) == {"accepted": 7, "refused": 2, "late": 1}


def test_our_share_is_what_others_leave_and_no_more_than_the_agents() -> None:
    assert read.our_cpu(with_load()) == pytest.approx(0.2)
    assert read.our_cpu(with_load(other_cpu=0.5)) == 0.0, "what the agent does for others is not ours"
    assert read.our_cpu(with_load(other_cpu=0.0)) == 0.2, "others' share ages, the agent's use does not become ours"
    only_total = {"sources": {"metrics": {"age": 1.0, "cpu": 0.5}}}
    assert read.our_cpu(with_load(load=only_total)) == pytest.approx(0.2)
    assert read.our_cpu(with_load(load={"sources": {"reporter": {"age": 1.0, "agent_cpu": 0.1}}})) == 0.1
    assert read.our_cpu(with_load(load=None)) is None


@pytest.mark.parametrize("load", [None, [], {}, {"sources": None}, {"sources": {"reporter": 3}}, {"accepted": "x"}])
def test_what_is_missing_or_odd_is_unknown(load: Any) -> None:
    endpoint = with_load(load=load, why=None)
    assert read.sources(endpoint) == []
    assert not read.has_load(endpoint)
    assert read.figure(endpoint, "cpu") is None
    assert read.tally(endpoint) == {}
    assert read.words(endpoint) == []


def test_all_endpoints_of_a_real_snapshot() -> None:
    balancer = Balancer(random.Random(1))
    specs = (EndpointSpec("http://10.0.0.1:9000"), EndpointSpec("http://10.0.0.2:9000"))
    balancer.apply(Topology({"a": ServiceSpec("a", (VersionSpec("v1", specs),))}), 0.0)
    found = [(one[0], one[1], one[3]["name"]) for one in read.all_endpoints(balancer.snapshot(0.0))]
    assert found == [("a", "v1", "http://10.0.0.1:9000"), ("a", "v1", "http://10.0.0.2:9000")]
    assert list(read.all_endpoints({"services": {"a": None, "b": {"versions": {"v": {"endpoints": [None]}}}}})) == []


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (120 << 20, "120 MiB"), (1 << 31, "2.0 GiB"), (90 << 30, "90 GiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert read.size(count) == shown


GIB = 1 << 30
IDLE = LoadReport(cpu=0.02, agent_cpu=0.0, memory_free=12 * GIB, agent_memory=GIB)


@pytest.mark.parametrize(
    ("report", "later", "words", "tone"),
    [
        (IDLE, 0.0, ["open"], read.FINE),
        (replace(IDLE, cpu=0.5), 0.0, ["open", "others use 50 % of its CPU"], read.NOTE),
        (IDLE, 14.0, ["open", "report 14 s old"], read.NOTE),
        (replace(IDLE, cpu=0.95), 0.0, ["no heavy work: others use 95 % of its CPU"], read.PARTLY),
        (replace(IDLE, memory_free=GIB), 0.0, ["no heavy work: 1.0 GiB free, one needs 1.0 GiB"], read.PARTLY),
        (replace(IDLE, cache=0.97), 0.0, ["no heavy work: its cache is 97 % full"], read.PARTLY),
        (replace(IDLE, cpu=7.0), 0.0, ["reports refused: cpu is 7: it must be from 0 to 1"], read.PARTLY),
        (replace(IDLE, state="draining"), 0.0, ["says it is draining"], read.PARTLY),
        (replace(IDLE, state="down"), 0.0, ["says it is down"], read.BAD),
        (replace(IDLE, memory_free=GIB // 8), 0.0, ["memory short: 128 MiB free"], read.BAD),
        (replace(IDLE, weight=0.0), 0.0, ["asks for no work"], read.BAD),
    ],
)
def test_a_real_balancers_words_on_reports(report: LoadReport, later: float, words: list[str], tone: str) -> None:
    """The words come from the core; what they mean is decided here, and the two must not drift apart."""
    balancer = Balancer(random.Random(1))
    specs = tuple(EndpointSpec(f"http://10.0.0.{n}:9000", cores=8, memory=16 * GIB) for n in (1, 2, 3))
    balancer.apply(Topology({"a": ServiceSpec("a", (VersionSpec("v1", specs),))}), 0.0)
    one = next(iter(balancer.services["a"].versions[0].endpoints.values()))
    balancer.report(one, report, 10.0)
    balancer.tick(10.0 + later)
    shown = balancer.snapshot(10.0 + later)["services"]["a"]["versions"]["v1"]["endpoints"][0]
    assert read.words(shown) == words
    assert read.tone(read.words(shown)[-1]) == tone
    assert read.usable(shown) is one.usable
