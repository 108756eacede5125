"""An agent near its memory limit, with a real reporter beside it: it gets no heavy work, and nothing is killed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common.reported import UnjamReported
from benchmarks.heavy_tail.arrivals import AUDIT, Job
from benchmarks.memory_limit import __main__ as memory_limit

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory limits as Linux has them")


def test_no_heavy_work_for_an_endpoint_without_memory_for_it(tmp_path: Path) -> None:
    """Six audits at once, of which one fits into the first agent's limit and five into the second's: all go to the
    second, and some wait for it. The limit is a control group where one can be made, else one on address space."""
    learning = [Job(1.0 * n, AUDIT, "/audit", 0.5) for n in range(3)]
    jobs = [*learning, *(Job(3.5, AUDIT, "/audit", 0.5) for _ in range(6))]
    made = memory_limit.one_turn(UnjamReported(), jobs, 1, tmp_path, groups=True, learning=len(learning))
    assert made["kills"] == 0, made
    assert made["failed"] == 0, made["error_samples"]
    assert (made["audits_on_first"], made["audits_on_second"]) == (0, 6), made["why_at_the_end"]
