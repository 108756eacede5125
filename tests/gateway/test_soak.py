"""The soak benchmark in small: what a million requests must not leave behind, 20,000 must not either."""

from __future__ import annotations

from benchmarks.soak import Soak, faults

from .harness import in_loop


@in_loop
async def test_nothing_stays_behind() -> None:
    result = await Soak(20_000, 16, seed=7).run()
    assert faults(result) == []
    # What the endpoint saw is what was asked, but for those whose client left before they were sent on.
    for kind in ("ok", "error", "stream", "dies"):
        assert result["at_endpoint"][kind] == result["done"][kind]
