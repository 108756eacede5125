"""The soak benchmark in small: what a million requests must not leave behind, 20,000 must not either."""

from __future__ import annotations

import json
from pathlib import Path

from .harness import in_loop
from .processes import process

ROOT = Path(__file__).resolve().parents[2]


@in_loop
async def test_nothing_stays_behind() -> None:
    async with process("-m", "benchmarks.soak", "--requests", "20000", "--seed", "7", cwd=ROOT) as soak:
        assert await soak.exit_code() == 0, soak.said
    result = json.loads(soak.said)
    assert result["leases_left"] == result["wrong_count"] == 0
    # What the endpoint saw is what was asked, but for those whose client left before they were sent on.
    for kind in ("ok", "error", "stream", "dies"):
        assert result["at_endpoint"][kind] == result["done"][kind]
