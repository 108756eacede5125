"""Tasks of taskiq that do what a run of `run_actors` does: three events into a stream in Redis, and a result.

    PYTHON -m benchmarks.load.jobs_taskiq enqueue COUNT     32 at once; prints its CPU seconds
    PYTHON -m benchmarks.load.jobs_taskiq begin             one task that takes its time
    taskiq worker benchmarks.load.jobs_taskiq:broker        the worker

Runs in taskiq's own environment. Of the environment: `JOBS_REDIS`, the port; `JOBS_BROKER`, list or stream;
`JOBS_IDLE`, seconds after which the stream's broker gives a task to another worker (its own: 600).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from redis.asyncio import Redis
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

URL = f"redis://127.0.0.1:{os.environ['JOBS_REDIS']}"
INPUT = "x" * 180
EVENT: dict[Any, Any] = {"page": 17, "of": 120, "note": "y" * 60}
RESULT = {"findings": 12, "note": "z" * 120}

# redis-py's own time-out would end a worker that has nothing to do.
_PATIENT: dict[str, Any] = {"socket_timeout": None}
_results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(URL)
if os.environ["JOBS_BROKER"] == "list":
    broker = ListQueueBroker(URL, **_PATIENT).with_result_backend(_results)
else:
    _idle = {"idle_timeout": int(float(os.environ["JOBS_IDLE"]) * 1000)} if "JOBS_IDLE" in os.environ else {}
    broker = RedisStreamBroker(URL, **_PATIENT, **_idle).with_result_backend(_results)
redis = Redis.from_url(URL)


@broker.task(task_name="job")
async def job(name: str, given: str) -> dict[str, Any]:
    log = f"log:{name}"
    await redis.xadd(log, EVENT)
    await redis.xadd(log, EVENT)
    async with redis.pipeline(transaction=False) as both:
        both.xadd(log, EVENT)
        both.incr("done")
        await both.execute()
    return RESULT


@broker.task(task_name="slow")
async def slow() -> None:
    await redis.rpush("begun", time.monotonic())
    await asyncio.sleep(2.0)
    await redis.incr("slow")


async def enqueue(number: int) -> None:
    await broker.startup()
    left = iter(range(number))

    async def some() -> None:
        for each in left:
            await job.kiq(str(each), INPUT)

    await asyncio.gather(*(some() for _ in range(32)))
    await broker.shutdown()
    await redis.aclose()
    print(time.process_time(), flush=True)


async def begin() -> None:
    await broker.startup()
    await slow.kiq()
    await broker.shutdown()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[2])) if sys.argv[1] == "enqueue" else begin())
