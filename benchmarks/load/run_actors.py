"""Actors that each make a run, claim one, add three events and finish it, again and again, on one store.

    python -m benchmarks.load.run_actors URL --actors 32 --seconds 10

All in one process, as in a gateway: event loop (uvloop) and, for SQLite, the threads of the store. Prints a line of
JSON: runs, seconds, and CPU seconds by thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

from unjam.runs.model import NewEvent, NewRun
from unjam.runs.store import make
from unjam.runs.store.base import Store

INPUT = b'{"pdf":"' + b"x" * 180 + b'"}'
EVENT = NewEvent("progress", b'{"page":17,"of":120,"note":"' + b"y" * 60 + b'"}')
RESULT = b'{"findings":12,"note":"' + b"z" * 120 + b'"}'


def cpu_by_thread() -> dict[str, float]:
    """Seconds so far, by the names of the threads; `others`: started outside Python."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        try:
            stat = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
        except OSError:
            continue
        found[thread.name] = int(stat.split()[0]) / 1e9
    found["others"] = max(0.0, time.process_time() - sum(found.values()))
    return found


async def actor(store: Store, name: str, batched: bool, counted: list[int]) -> None:
    while True:
        await store.create(NewRun(service="bench", input=INPUT, digest=b"d", pull=True))
        claim = await store.claim(("bench",), name, pull=True)
        assert claim is not None, "there are as many runs as claims"
        run, fence = claim.run.id, claim.run.fence
        if batched:
            await store.append(run, fence, 1, (EVENT, EVENT, EVENT))
        else:
            for batch in (1, 2, 3):
                await store.append(run, fence, batch, (EVENT,))
        await store.finish(run, fence, "completed", result=RESULT)
        counted[0] += 1


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    store = make(given.url)
    await store.open()
    counted = [0]
    actors = [asyncio.create_task(actor(store, f"w{n}", given.batched, counted)) for n in range(given.actors)]
    try:
        await _hold(actors, given.warm)
        runs, begin, cpu = counted[0], time.monotonic(), cpu_by_thread()
        print(json.dumps({"begun": True}), flush=True)
        await _hold(actors, given.seconds)
        runs, seconds, after = counted[0] - runs, time.monotonic() - begin, cpu_by_thread()
        print(json.dumps({"ended": True}), flush=True)
    finally:
        for task in actors:
            task.cancel()
        await asyncio.gather(*actors, return_exceptions=True)
        await store.close()
    return {
        "runs": runs,
        "seconds": seconds,
        "cpu": {name: after[name] - cpu.get(name, 0.0) for name in after},
    }


async def _hold(actors: list[asyncio.Task[None]], seconds: float) -> None:
    done, _ = await asyncio.wait(actors, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--actors", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm", type=float, default=1.0)
    parser.add_argument("--batched", action="store_true", help="the three events in one append")
    given = parser.parse_args()
    print(json.dumps(uvloop.run(measure(given))), flush=True)


if __name__ == "__main__":
    main()
