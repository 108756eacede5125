"""What `unjam status` says of versions and rollouts."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from unjam.cli.status import show

ROLLOUT: dict[str, Any] = {
    "version": "v8",
    "state": "running",
    "share": 0.01,
    "step": 0,
    "steps": [0.01, 0.1, 1.0],
    "waits_for": "6 of 20 requests",
    "why": "configured",
}


def told(version: dict[str, Any] | None = None, **service: Any) -> list[str]:
    console = Console(width=200, highlight=False, file=io.StringIO())
    versions = {} if version is None else {"v8": {"weight": 10, "share": 0.1, **version}}
    show({"leases": 0, "services": {"agent": {"versions": versions, **service}}}, console)
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_a_rollout_has_a_line() -> None:
    (line,) = [line for line in told(rollout=ROLLOUT) if line.startswith("rollout")]
    assert line == "rollout of v8 running at 1% (steps 1%, 10%, 100%), waits: 6 of 20 requests; configured"
    over = {**ROLLOUT, "state": "rolled_back", "share": 0.0, "waits_for": "", "why": "its breaker \x1b[31mtripped"}
    (line,) = [line for line in told(rollout=over) if line.startswith("rollout")]
    assert line == r"rollout of v8 rolled back at 0%; its breaker \x1b[31mtripped"
    assert not [line for line in told() if "rollout" in line]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ({"breaker": {"state": "closed", "evidence": 0.0, "trips_at": 7.0}}, "breaker closed"),
        (
            {"breaker": {"state": "closed", "evidence": 3.218, "trips_at": 7.0, "quality_evidence": 0.5}},
            "breaker closed, evidence 3.22 of 7",
        ),
        (
            {
                "breaker": {
                    "state": "ramping",
                    "why": "ramping back",
                    "quality_evidence": 1.5,
                    "quality_trips_at": 4.5,
                },
                "overflowed": 12,
                "good": 3,
                "bad": 1,
            },
            "breaker ramping (ramping back), evidence from samples 1.5 of 4.5, 12 overflowed, verdicts 3 good, 1 bad",
        ),
    ],
)
def test_a_version_says_how_near_its_breaker_is_to_tripping(version: dict[str, Any], words: str) -> None:
    (line,) = [line for line in told(version) if line.startswith("v8")]
    assert line == f"v8  weight 10, 10% of the traffic, {words}"
