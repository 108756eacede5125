"""Jobs of arq that do what a run of `run_actors` does: three events into a stream in Redis, and a result.

    PYTHON -m benchmarks.load.jobs_arq enqueue PORT COUNT      32 at once; prints its CPU seconds
    PYTHON -m benchmarks.load.jobs_arq work PORT [TIMEOUT]     32 at once, until it is killed
    PYTHON -m benchmarks.load.jobs_arq begin PORT              one job that takes its time

Runs in arq's own environment. TIMEOUT: seconds after which a job counts as failed (arq's own: 300).
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

INPUT = "x" * 180
EVENT = {"page": 17, "of": 120, "note": "y" * 60}
RESULT = {"findings": 12, "note": "z" * 120}


async def job(ctx: dict[str, Any], given: str) -> dict[str, Any]:
    redis, log = ctx["redis"], f"log:{ctx['job_id']}"
    await redis.xadd(log, EVENT)
    await redis.xadd(log, EVENT)
    async with redis.pipeline(transaction=False) as both:
        both.xadd(log, EVENT)
        both.incr("done")
        await both.execute()
    return RESULT


async def slow(ctx: dict[str, Any]) -> None:
    await ctx["redis"].rpush("begun", time.monotonic())
    await asyncio.sleep(2.0)
    await ctx["redis"].incr("slow")


async def enqueue(port: int, number: int) -> None:
    pool = await create_pool(RedisSettings(port=port))
    left = iter(range(number))

    async def some() -> None:
        for _ in left:
            await pool.enqueue_job("job", INPUT)

    await asyncio.gather(*(some() for _ in range(32)))
    await pool.aclose()
    print(time.process_time(), flush=True)


async def begin(port: int) -> None:
    pool = await create_pool(RedisSettings(port=port))
    await pool.enqueue_job("slow")
    await pool.aclose()


def main() -> None:
    what, port, *more = sys.argv[1:]
    if what == "enqueue":
        asyncio.run(enqueue(int(port), int(more[0])))
    elif what == "begin":
        asyncio.run(begin(int(port)))
    else:
        settings = RedisSettings(port=int(port))
        # Its default of 0.5 s between two looks would be the bound: 160 jobs each.
        options = {"job_timeout": float(more[0])} if more else {}
        asyncio.set_event_loop(asyncio.new_event_loop())
        Worker([job, slow], redis_settings=settings, max_jobs=32, poll_delay=0.005, **options).run()


if __name__ == "__main__":
    main()
