"""The admin pages as a browser draws them: with the style that their own policy has to allow, and within its width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.admin.fleet import endpoint
from tests.admin.served import served
from tests.admin.test_runs_page import FAILED, ID, Kept, row
from unjam.admin.control import Rows

from ..gateway.harness import in_loop
from .devtools import chromium

LONG = "a-name-that-somebody-made-of-a-whole-sentence-and-a-half"


class Long(Kept):
    """With names as long as they may be."""

    def __init__(self) -> None:
        super().__init__()
        services = self.state["services"]
        version = services["auditor"]["versions"].pop("v7")
        version["endpoints"].append(
            endpoint(f"http://{LONG}.namespace.svc.cluster.local:9000", why=["unhealthy", "full"])
        )
        version["workers"] = [{"name": LONG, "slots": 4, "inflight": 1, "seen": 1.0, "why": ["open"]}]
        services[LONG] = {**services["auditor"], "versions": {LONG: version}}

    async def audit(self, limit: int, before: int | None, key: str | None) -> Rows:
        return [
            {"n": 1, "at": "2026-11-22T19:07:00.000Z", "who": f"token:1a2b3c4d@{LONG}", "key": f"weight/{LONG}/{LONG}",
             "before": 10.0, "after": 20.0, "why": LONG}
        ]  # fmt: skip

    async def list(self, *asked: Any) -> Rows:
        long = {"service": LONG, "version": LONG, "tenant": LONG, "worker": LONG}
        return [row(), row(**FAILED), row(**long, cancel_requested=True)]


@pytest.mark.parametrize("width", [390, 820, 1280])
@in_loop
async def test_they_are_drawn_within_the_width_of_the_window(width: int, tmp_path: Path) -> None:
    async with served(Long()) as admin, chromium(tmp_path) as browser:
        await browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        for path, said in (("/", LONG), ("/runs", "no_pages"), ("/runs/dead", "given up"), (f"/runs/{ID}", ID)):
            await browser.open(f"{admin.client.base_url}{path}?refresh=0")
            assert said in await browser.evaluate("document.body.innerText")
            assert await browser.evaluate("getComputedStyle(document.querySelector('.card')).borderRadius") == "10px"
            # Cards cut off what is too wide: then their content is wider than they are.
            wide = await browser.evaluate(
                "[...document.querySelectorAll('body, .card, .version')].filter(e => e.scrollWidth > e.clientWidth + 1)"
                ".map(e => e.className + ': ' + e.innerText.slice(0, 80))"
            )
            assert wide == [], (path, wide)
        await browser.open(f"{admin.client.base_url}/runs?refresh=0")
        # Its long neighbours leave a run of common names its room.
        assert await browser.evaluate("document.querySelector('tbody tr').offsetHeight") < 120
