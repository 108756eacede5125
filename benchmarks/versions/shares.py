"""Are shares exact, do callers keep their version, and who moves when the weights change?"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from .stage import Caller, Stage, request

WINDOW = 100
SERVICES = """\
  plain:
    match: {path: /plain}
    versions: {v7: {weight: 90, endpoints: ["{old}"]}, v8: {weight: 10, endpoints: ["{new}"]}}
  sticky:
    match: {path: /sticky}
    sticky: x-user-id
    versions:
      v7: {weight: 90, endpoints: ["{old}"]}
      v8: {weight: 10, endpoints: ["{new}"]}
      v9: {weight: 0, endpoints: ["{new}"]}
"""
CALLERS = 32


def measure(requests: int, callers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        stage = Stage(Path(scratch), ("old", "new"), SERVICES)
        try:
            stage.ready()
            return asyncio.run(_measure(stage, requests, callers))
        finally:
            stage.stop()


async def _measure(stage: Stage, requests: int, callers: int) -> dict[str, Any]:
    return {"windows": await windows(stage, requests), "keyed": await keyed(stage, callers)}


async def windows(stage: Stage, requests: int) -> dict[str, Any]:
    """One caller after the other, so that the order of answers is that of decisions."""
    sums = [0]
    began = time.monotonic()

    async def work(caller: Caller, _: int) -> None:
        head = request("/plain")
        for _ in range(requests):
            answer = await caller.ask(head)
            sums.append(sums[-1] + (answer.field("x-unjam-version") == "v8"))

    await stage.crowd(1, work)
    counts = [after - before for before, after in zip(sums, sums[WINDOW:], strict=False)]
    return {
        "requests": requests,
        "v8": sums[-1],
        "windows": len(counts),
        "least": min(counts),
        "most": max(counts),
        "per_second": requests / (time.monotonic() - began),
    }


async def keyed(stage: Stage, callers: int) -> dict[str, Any]:
    """Everybody asks in turn; weights change twice by the admin API while they do, and go back."""

    async def weigh(**weights: float) -> tuple[float, float]:
        began = time.monotonic()
        await asyncio.to_thread(stage.post, "/api/weight", service="sticky", weights=weights)
        return began, time.monotonic()

    async def everybody(weights: dict[str, float] | None = None) -> dict[int, str]:
        """By caller: the version. With `weights`: they are changed when half have asked."""
        found: dict[int, str] = {}
        order.clear()

        async def work(caller: Caller, number: int) -> None:
            for user in range(number, callers, CALLERS):
                sent = time.monotonic()
                answer = await caller.ask(request("/sticky", f"x-user-id: user-{user}\r\n"))
                found[user] = answer.field("x-unjam-version")
                order[user] = (sent, time.monotonic())

        crowd = asyncio.create_task(stage.crowd(CALLERS, work))
        if weights is not None:
            while len(found) < callers // 2:
                await asyncio.sleep(0.001)
            change[:] = await weigh(**weights)
        await crowd
        return found

    order: dict[int, tuple[float, float]] = {}
    change: list[float] = [0.0, 0.0]
    first = await everybody()
    again = await everybody()
    out: dict[str, Any] = {
        "callers": callers,
        "share": sum(version == "v8" for version in first.values()) / callers,
        "unsteady": _differ(first, again),
        "changes": [],
    }
    before = first
    for words, weights, gains in (
        ("90/10 to 80/20", {"v7": 80.0, "v8": 20.0}, "v8"),
        ("a third version gets 10 % of 80/20", {"v7": 72.0, "v8": 18.0, "v9": 10.0}, "v9"),
    ):
        during = await everybody(weights)
        sent = dict(order)
        began, ended = change
        after = await everybody()
        again = await everybody()
        # Answered before the change: the old version; asked after it was confirmed: the new one.
        late = sum(during[user] != before[user] for user, (_, done) in sent.items() if done < began)
        late += sum(during[user] != after[user] for user, (asked, _) in sent.items() if asked > ended)
        moved = [user for user in after if after[user] != before[user]]
        share = _share(after, gains)
        out["changes"].append(
            {
                "change": words,
                "share": share,
                "wanted": weights[gains] / 100,
                "moved": len(moved),
                "needed": round((share - _share(before, gains)) * callers),
                "moved_wrongly": sum(after[user] != gains for user in moved),
                "late": late,
                "asked_after": sum(asked > ended for asked, _ in sent.values()),
                "unsteady": _differ(after, again),
            }
        )
        before = after
    await weigh(v7=90.0, v8=10.0, v9=0.0)
    back = await everybody()
    out["elsewhere_after_going_back"] = _differ(first, back)
    return out


def _share(found: dict[int, str], version: str) -> float:
    return sum(each == version for each in found.values()) / len(found)


def _differ(one: dict[int, str], other: dict[int, str]) -> int:
    return sum(one[user] != other[user] for user in one)
