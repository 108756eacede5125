"""From an append to a client's eyes: events of live runs through a gateway's SSE, and the same through bare Redis.

    python -m benchmarks.load.run_latency --gateway PORT [--redis PORT] --runs 20 --rate 100 --seconds 10

Both ends are in this one process, for all ways alike; ways take turns, event by event. Ways: `direct`, a worker that
speaks to Redis itself; `http`, one that speaks to the gateway; `redis`, PUBLISH and SUBSCRIBE over two plain sockets;
`redis-py`, the same with that library.
Prints a line of JSON: the latencies of each way, in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import count
from time import monotonic
from typing import Any

import uvloop
from redis.asyncio import Redis

from unjam.client.sse import Reader
from unjam.http.gateways import Gateways
from unjam.runs.model import NewEvent
from unjam.runs.store.redis import RedisStore
from unjam.worker import HttpLink, Job, Link, StoreLink

PADDING = "x" * 60


class Way:
    """`send(number)`: one event that carries its time."""

    def __init__(self, name: str, send: Callable[[int], Awaitable[object]]) -> None:
        self.name = name
        self.send = send
        self.latencies: list[float] = []
        self.sent = 0

    def arrived(self, at: float) -> None:
        self.latencies.append(monotonic() - at)


def data() -> bytes:
    return json.dumps({"at": monotonic(), "pad": PADDING}).encode()


async def follow(gateways: Gateways, run: str, way: Way) -> None:
    _, stream = await gateways.stream(f"/v1/runs/{run}/events", (("accept", "text/event-stream"),))
    try:
        assert stream.status == 200, stream.status
        reader = Reader()
        while piece := await stream.read():
            for message in reader.feed(piece):
                if message.event == "tick":
                    way.arrived(json.loads(message.data)["at"])
    finally:
        stream.close()


async def through_gateway(name: str, link: Link, gateways: Gateways, runs: int) -> tuple[Way, list[asyncio.Task[None]]]:
    """Runs that are claimed over `link`, each followed by one client."""
    jobs: list[Job] = []
    for _ in range(runs):
        body = json.dumps({"service": "bench", "input": {}}).encode()
        answer = await gateways.request("POST", "/v1/runs", body, (("content-type", "application/json"),), again=False)
        assert answer.status == 201, answer.body
        job = await link.claim(5.0)
        assert job is not None
        jobs.append(job)
    batches = [count(1) for _ in jobs]

    async def send(number: int) -> None:
        which = number % len(jobs)
        job = jobs[which]
        await link.append(job.run, job.fence, next(batches[which]), (NewEvent("tick", data()),))

    way = Way(name, send)
    return way, [asyncio.create_task(follow(gateways, job.run, way)) for job in jobs]


async def through_redis(port: int) -> tuple[Way, list[asyncio.Task[None]]]:
    hearing, saying = await asyncio.open_connection("127.0.0.1", port), await asyncio.open_connection("127.0.0.1", port)
    hearing[1].write(b"SUBSCRIBE bench\r\n")
    for _ in range(6):
        await hearing[0].readline()

    async def send(number: int) -> None:
        payload = data()
        saying[1].write(b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$%d\r\n%b\r\n" % (len(payload), payload))
        await saying[0].readline()

    way = Way("redis", send)

    async def hear() -> None:
        try:
            while True:
                for _ in range(5):
                    await hearing[0].readline()
                size = int((await hearing[0].readline())[1:])
                payload = (await hearing[0].readexactly(size + 2))[:-2]
                way.arrived(json.loads(payload)["at"])
        finally:
            hearing[1].transport.abort()
            saying[1].transport.abort()

    return way, [asyncio.create_task(hear())]


async def through_redis_py(port: int) -> tuple[Way, list[asyncio.Task[None]]]:
    redis: Redis[Any] = Redis(port=port)
    hearing = redis.pubsub()
    await hearing.subscribe("library")
    await hearing.get_message(timeout=5.0)

    async def send(number: int) -> None:
        await redis.publish("library", data())

    way = Way("redis-py", send)

    async def hear() -> None:
        try:
            async for message in hearing.listen():
                way.arrived(json.loads(message["data"])["at"])
        finally:
            await hearing.aclose()
            await redis.aclose()

    return way, [asyncio.create_task(hear())]


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    gateways = Gateways(f"http://127.0.0.1:{given.gateway}", agent="bench")
    links: list[Link] = []
    ways: list[Way] = []
    tasks: list[asyncio.Task[None]] = []
    kinds: dict[str, Link] = {"http": HttpLink(f"http://127.0.0.1:{given.gateway}", ("bench",), "http")}
    if given.redis:
        kinds["direct"] = StoreLink(
            RedisStore(f"redis://127.0.0.1:{given.redis}"), ("bench",), "direct", lease=3600.0, own=True
        )
    for name, link in kinds.items():
        await link.open()
        links.append(link)
        way, more = await through_gateway(name, link, gateways, given.runs)
        ways.append(way)
        tasks += more
    if given.redis:
        for through in (through_redis, through_redis_py):
            way, more = await through(given.redis)
            ways.append(way)
            tasks += more
    await asyncio.sleep(1.0)
    begin, number = monotonic(), 0
    sending: set[asyncio.Task[Any]] = set()
    while monotonic() - begin < given.seconds:
        for way in ways:
            way.sent += 1
            task = asyncio.ensure_future(way.send(number))
            sending.add(task)
            task.add_done_callback(sending.discard)
            await asyncio.sleep(1 / given.rate / len(ways))
        number += 1
    await asyncio.gather(*sending)
    await asyncio.sleep(1.0)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for link in links:
        await link.close()
    gateways.close()
    return {way.name: {"sent": way.sent, "latencies": way.latencies} for way in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", type=int, required=True)
    parser.add_argument("--redis", type=int, default=0)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100.0, help="events per second, by each way")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    print(json.dumps(uvloop.run(measure(given))), flush=True)


if __name__ == "__main__":
    main()
