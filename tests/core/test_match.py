"""The most specific rule wins, whole segments only, and remembering changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.match import REMEMBERED
from unjam.core.spec import MatchSpec

from .made import balancer, service


def nothing(name: str) -> str | None:
    return None


def header(**given: str) -> Callable[[str], str | None]:
    return lambda name: given.get(name.replace("-", "_"))


RULES = {
    "any": MatchSpec(),
    "agents": MatchSpec(path="/agents"),
    "auditor": MatchSpec(path="/agents/auditor"),
    "beta": MatchSpec(path="/agents/auditor", headers={"X-Beta": "yes"}),
    "betas": MatchSpec(path="/agents/auditor", headers={"X-Beta": "*", "x-team": "*"}),
    "gpt": MatchSpec(path="/agents/auditor", model="gpt"),
    "host": MatchSpec(host="api.example.com"),
    "wild": MatchSpec(host="*.example.com", path="/deep"),
    "wilder": MatchSpec(host="*.eu.example.com"),
}
SPECS = [service(name, match=(rule,)) for name, rule in RULES.items()]


@pytest.mark.parametrize(
    ("host", "path", "headers", "model", "expected"),
    [
        ("h", "/", nothing, None, "any"),
        ("h", "/agents", nothing, None, "agents"),
        ("h", "/agents/", nothing, None, "agents"),
        ("h", "/agentsx", nothing, None, "any"),
        ("h", "/agents/auditor", nothing, None, "auditor"),
        ("h", "/agents/auditor/x/y/z", nothing, None, "auditor"),
        ("h", "/agents/auditors", nothing, None, "agents"),
        ("h", "/agents/auditor", header(x_beta="yes"), None, "beta"),
        ("h", "/agents/auditor", header(x_beta="no"), None, "auditor"),
        ("h", "/agents/auditor", header(x_beta="yes", x_team="a"), None, "betas"),
        ("h", "/agents/auditor", nothing, "gpt", "gpt"),
        ("h", "/agents/auditor", header(x_beta="yes"), "gpt", "beta"),
        ("api.example.com", "/agents/auditor", nothing, None, "host"),
        ("x.example.com", "/deep/er", nothing, None, "wild"),
        ("x.example.com", "/agents", nothing, None, "agents"),
        ("x.eu.example.com", "/deep", nothing, None, "wilder"),
        ("example.com", "/deep", nothing, None, "any"),
    ],
)
def test_the_most_specific_rule_wins(
    host: str, path: str, headers: Callable[[str], str | None], model: str | None, expected: str
) -> None:
    made = balancer(*SPECS)
    for _ in range(3):
        found = made.match(host, path, headers, model)
        assert found is not None
        assert found.name == expected


def test_nothing_matches_nothing() -> None:
    made = balancer(service("s", match=(MatchSpec(path="/only"),)))
    assert made.match("h", "/other", nothing) is None
    assert made.match("h", "/other", nothing) is None


def test_a_service_may_have_several_rules_and_the_first_of_equals_wins() -> None:
    made = balancer(
        service("a", match=(MatchSpec(path="/x"), MatchSpec(path="/y"))), service("b", match=(MatchSpec(path="/y"),))
    )
    for path in ("/x", "/y"):
        found = made.match("h", path, nothing)
        assert found is not None
        assert found.name == "a"


@given(st.lists(st.sampled_from(["agents", "auditor", "x", "", "deep"]), max_size=6))
def test_remembered_or_not_it_is_the_same(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    fresh = balancer(*SPECS).match("x.example.com", path, nothing)
    again = SHARED.match("x.example.com", path, nothing)
    assert fresh is not None
    assert again is not None
    assert fresh.name == again.name


SHARED = balancer(*SPECS)


def test_what_is_remembered_is_bounded() -> None:
    made = balancer(*SPECS)
    for i in range(3 * REMEMBERED):
        made.match("h", f"/agents/{i}", nothing)
    made.match("h", "/agents/" + "x" * 10_000, nothing)
    matcher = made._matcher
    assert len(matcher._recent) + len(matcher._older) <= 2 * REMEMBERED
