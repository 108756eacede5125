"""The commands that steer versions, as an operator types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

Unjam = Callable[..., Result]

KEPT = {"kept": True, "holds": "over restarts"}
HERE = {"kept": False, "holds": "here, until the next restart", "warning": "it is not kept: Redis is away"}


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (["v7=90", "v8=10"], {"v7": 90, "v8": 10}),
        (["v8=0"], {"v8": 0}),
        (["v8", "0.5"], {"v8": 0.5}),
        (["v=1=2", "v8=1"], None),
        (["v8"], None),
        (["v8", "much"], None),
        (["v8=-1"], None),
        (["v8=nan"], None),
        (["v8=1e9"], None),
        (["v8=1", "v8=2"], None),
        (["v7", "1", "v8", "2"], None),
        (["=1"], None),
        ([], None),
    ],
)
def test_weights_are_sent_together_or_not_at_all(
    unjam: Unjam, admin: Any, given: list[str], weights: dict[str, float] | None
) -> None:
    admin.answer = {"service": "agent", "weights": weights, "before": {"v7": 50, "v8": 50}, **KEPT}
    result = unjam("weight", "agent", *given, "--admin", admin.url)
    if weights is None:
        assert (result.exit_code, admin.asked) == (2, [])
        return
    assert result.exit_code == 0, result.output
    assert [each[:3] for each in admin.asked] == [("POST", "/api/weight", {"service": "agent", "weights": weights})]
    for version, weight in weights.items():
        told = f"agent {version} has weight {weight:g} (was 50), over restarts while the file stays as it is.\n"
        assert told in result.stdout


def test_it_says_how_long_a_change_holds(unjam: Unjam, admin: Any) -> None:
    admin.answer = {"before": {"v8": 10}, "kept": False, "holds": "until the next restart"}
    result = unjam("weight", "agent", "v8=20", "--admin", admin.url)
    assert result.stdout == "agent v8 has weight 20 (was 10), until the next restart.\n"
    assert result.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        ["weight", "agent", "v8=20"],
        ["breaker", "agent", "v8", "trip"],
        ["drain", "http://10.0.0.1:9000"],
        ["rollout", "agent", "pause"],
    ],
)
def test_what_could_not_be_kept_is_warned_of(unjam: Unjam, admin: Any, command: list[str]) -> None:
    admin.answer = {"before": {"v8": 10}, **HERE}
    result = unjam(*command, "--admin", admin.url)
    assert result.exit_code == 0
    assert result.stderr == "unjam: warning: it is not kept: Redis is away.\n"


VERSIONS = {
    "v7": {"breaker": {"state": "closed", "why": "", "evidence": 1.609, "trips_at": 7.0, "share": 1.0}},
    "v8": {
        "breaker": {
            "state": "ramping",
            "why": "ramping back",
            "share": 0.1,
            "quality_evidence": 0.5,
            "quality_trips_at": 7,
        }
    },
    "v9": {"breaker": {"state": "open", "why": "by \x1b[31mhand", "opens_for": 41.5, "evidence": 0.0, "trips_at": 7}},
}


def test_breakers_are_looked_at(unjam: Unjam, admin: Any) -> None:
    admin.answer = {"services": {"agent": {"versions": VERSIONS}}}
    result = unjam("breaker", "agent", "--admin", admin.url)
    assert admin.asked[0][:2] == ("GET", "/api/state")
    assert result.stdout.splitlines() == [
        "v7: closed; evidence 1.61 of 7",
        "v8: ramping at 10% of its weight (ramping back); of quality 0.5 of 7",
        "v9: open for 42 s more (by \\x1b[31mhand)",
    ]
    assert unjam("breaker", "agent", "v9", "--admin", admin.url).stdout.startswith("v9: open")
    for wrong, code, said in (
        (["nobody"], 1, "there is no service nobody. There are: agent."),
        (["agent", "v1"], 1, "agent has no version v1. There are: v7, v8, v9."),
        (["agent", "trip"], 2, "say which version: unjam breaker agent VERSION trip."),
    ):
        result = unjam("breaker", *wrong, "--admin", admin.url)
        assert (result.exit_code, result.stdout) == (code, "")
        assert said in result.stderr


def test_rollouts_are_looked_at_and_steered(unjam: Unjam, admin: Any) -> None:
    running = {"state": "running", "steps": [0.1, 0.5, 1.0], "waits_for": "12 s of its hold are left", "held": 3.25}
    sides = {
        "new": {"calls": 1200, "failures": 1, "judged": 10, "bad": 2},
        "old": {"calls": 10800, "failures": 0, "judged": 0},
    }
    admin.answer = {
        "service": "agent",
        "version": "v8",
        "step": 0,
        "share": 0.1,
        "why": "configured",
        **running,
        **sides,
    }
    result = unjam("rollout", "agent", "--admin", admin.url)
    assert admin.asked[0][:2] == ("GET", "/api/rollout?service=agent")
    assert result.stdout.splitlines() == [
        "agent: rollout of v8, running at 10% (steps 10%, 50%, 100%)",
        "  waits   12 s of its hold are left",
        "  why     configured",
        "  new     1,200 calls, 1 failed, 2 of 10 verdicts bad in this step",
        "  others  10,800 calls, 0 failed in this step",
    ]
    assert json.loads(unjam("rollout", "agent", "--json", "--admin", admin.url).stdout) == admin.answer
    unjam("rollout", "agent", "abort", "--admin", admin.url)
    assert admin.asked[-1][:3] == ("POST", "/api/rollout", {"service": "agent", "action": "abort"})
    unjam("rollout", "agent", "start", "--version", "v9", "--admin", admin.url)
    assert admin.asked[-1][2] == {"service": "agent", "action": "start", "version": "v9"}
    admin.answer |= {"state": "rolled_back", "share": 0.0, "waits_for": "", "why": "its breaker tripped", **KEPT}
    assert unjam("rollout", "agent", "--admin", admin.url).stdout.splitlines() == [
        "agent: rollout of v8, rolled back at 0%",
        "  why     its breaker tripped",
    ]
    for wrong in (["finish"], ["abort", "--version", "v9"]):
        assert unjam("rollout", "agent", *wrong, "--admin", admin.url).exit_code == 2


def test_the_audit_log_is_read(unjam: Unjam, admin: Any) -> None:
    common = {"at": "2026-05-01T12:00:00.123Z", "where": "gw:1"}
    admin.answer = {
        "changes": [
            {**common, "n": 12, "key": "weight/agent/v8", "before": 10.0, "after": {"weight": 20.0, "base": 10.0},
             "who": "token:1a2b3c4d@10.0.0.9", "why": ""},
            {**common, "n": 11, "key": "breaker/agent/v8", "before": "closed", "after": "open",
             "who": "gw:1", "why": "5 of\x1b 9 calls failed"},
            {**common, "n": 10, "key": "drain/http://h", "before": False, "after": True, "who": "loopback", "why": ""},
            {**common, "n": 9, "key": "rollout/agent", "before": None,
             "after": {"step": 1, "state": "rolled_back", "share": 0.015}, "who": "gw:1", "why": ""},
            {**common, "n": 8, "key": "rollout/agent", "before": None, "after": {"step": 1}, "who": "gw:1", "why": ""},
        ],
        "next": None,
    }  # fmt: skip
    result = unjam("audit", "weight/agent v&x", "--limit", "4", "--before", "13", "--admin", admin.url)
    assert admin.asked[0][:2] == ("GET", "/api/audit?limit=4&key=weight%2Fagent+v%26x&before=13")
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "12 2026-05-01T12:00:00Z weight/agent/v8 10 → 20 token:1a2b3c4d@10.0.0.9",
        "11 2026-05-01T12:00:00Z breaker/agent/v8 closed → open gw:1 5 of\\x1b 9 calls failed",
        "10 2026-05-01T12:00:00Z drain/http://h in use → draining loopback",
        "9 2026-05-01T12:00:00Z rollout/agent - → rolled back at 1.5% gw:1",
        '8 2026-05-01T12:00:00Z rollout/agent - → {"step": 1} gw:1',
    ]
    assert json.loads(unjam("audit", "--json", "--admin", admin.url).stdout) == admin.answer
    admin.answer = {"changes": [], "next": None}
    assert unjam("audit", "weight/agent", "--admin", admin.url).output == "none\n"
    assert "keys begin with breaker, drain, rollout, weight" in unjam("audit", "wieght/a", "--admin", admin.url).stderr
    assert unjam("audit", "--limit", "0").exit_code == 2
