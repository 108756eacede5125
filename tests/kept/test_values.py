"""What others wrote where gateways keep their decisions is told from what gateways write."""

from __future__ import annotations

from typing import Any

import pytest

from unjam.kept.base import Change
from unjam.kept.values import problem

ROLLOUT = {"version": "v8", "state": "running", "step": 0, "held": 1.5, "why": "", "before": {"v7": 90.0, "v8": 10}}


def change(key: str, after: Any) -> Change:
    return Change(key=key, after=after, who="somebody", where="elsewhere")


@pytest.mark.parametrize(
    ("key", "after"),
    [
        ("drain/http://h:1", True),
        ("breaker/agent/v8", "open"),
        ("weight/agent/v8", {"weight": 0, "base": 10.5}),
        ("rollout/agent", ROLLOUT),
        ("rollout/agent", {**ROLLOUT, "share": 0.1, "later": "more"}),
    ],
)
def test_ours(key: str, after: Any) -> None:
    assert problem(change(key, after)) == ""


@pytest.mark.parametrize(
    ("key", "after"),
    [
        ("drain/http://h:1", "yes"),
        ("drain/", True),
        ("breaker/agent/v8", "ajar"),
        ("breaker/agent/v8", None),
        ("weight/agent/v8", 5),
        ("weight/agent/v8", -5),
        ("weight/agent/v8", "much"),
        ("weight/agent/v8", {"base": 10}),
        ("weight/agent/v8", {"weight": -5, "base": 10}),
        ("weight/agent/v8", {"weight": float("inf"), "base": 10}),
        ("weight/agent/v8", {"weight": True, "base": 10}),
        ("rollout/agent", None),
        ("rollout/agent", {**ROLLOUT, "step": -9}),
        ("rollout/agent", {**ROLLOUT, "step": 1.5}),
        ("rollout/agent", {**ROLLOUT, "state": "odd"}),
        ("rollout/agent", {**ROLLOUT, "held": -1}),
        ("rollout/agent", {**ROLLOUT, "before": {"v7": -1}}),
        ("rollout/agent", {**ROLLOUT, "before": []}),
        ("something/new", [1]),
        ("odd", 1),
    ],
)
def test_not_ours(key: str, after: Any) -> None:
    assert problem(change(key, after))
