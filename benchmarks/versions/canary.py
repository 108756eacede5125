"""Progressive rollouts under load: how many calls of its own a bad version gets, what is told of it, and whether a good
one arrives."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from .stage import Caller, Stage, request

SECRET = secrets.token_hex(16)
GOOD_RATE = 0.01
#: What the bad version does, how often, and whether that has to be found within a hundred calls.
BAD = (
    ("half of its calls fail", "error", 0.5, True),
    ("a quarter of its calls fail", "error", 0.25, True),
    ("all HTTP 200, half of its answers are bad by its own verdict", "verdict", 0.5, True),
    ("all HTTP 200, a quarter of its answers are bad", "verdict", 0.25, True),
    ("a tenth of its calls fail", "error", 0.1, False),
)
MOST_CALLS = 100
CALLERS = 8
SERVICES = """\
  bad:
    match: {path: /bad}
    versions: {v7: {weight: 1, endpoints: ["{old}"]}, v8: {weight: 0, endpoints: ["{new}"]}}
    rollout: {version: v8, steps: [10%, 50%, 100%], hold: 1h}
  good:
    match: {path: /good}
    versions: {v7: {weight: 1, endpoints: ["{old}"]}, v8: {weight: 0, endpoints: ["{new}"]}}
    rollout: {version: v8, steps: [1%, 10%, 50%, 100%], hold: 1s, min_requests: 50}
"""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class Receiver(asyncio.Protocol):
    """Webhooks, as they come over a socket."""

    def __init__(self, told: list[dict[str, Any]]) -> None:
        self.told = told
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if not end or length is None or len(body) < int(length[1]):
            return
        self.data = b""
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        signed = f"x-unjam-signature: sha256={signature}".encode() in head.lower()
        self.told.append({**json.loads(body), "signed": signed})
        self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


class Load:
    """Callers in a closed loop until `stopped`."""

    def __init__(self, stage: Stage, path: str) -> None:
        self.stage = stage
        self.request = request(path)
        self.stopped = False
        self.calls = 0

    async def __aenter__(self) -> Load:
        self.task = asyncio.create_task(self.stage.crowd(CALLERS, self.work))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopped = True
        await self.task

    async def work(self, caller: Caller, _: int) -> None:
        while not self.stopped:
            await caller.ask(self.request)
            self.calls += 1


def measure(seeds: int, good: int) -> dict[str, Any]:
    return asyncio.run(_measure(seeds, good))


async def _measure(seeds: int, good: int) -> dict[str, Any]:
    told: list[dict[str, Any]] = []
    receiver = await asyncio.get_running_loop().create_server(lambda: Receiver(told), "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        top = (
            f"state: sqlite:{scratch}/unjam.db\n"
            f"webhooks: [{{url: 'http://127.0.0.1:{port}/', events: [rollout], secret: {SECRET}}}]\n"
        )
        stage = Stage(Path(scratch), ("old", "new"), SERVICES, top)
        try:
            await asyncio.to_thread(stage.ready)
            rows = []
            for words, how, rate, held in BAD:
                runs = [await bad(stage, told, rate, seed, how) for seed in range(1, seeds + 1)]
                rows.append({"what": words, "how": how, "rate": rate, "held_to_it": held, "runs": runs})
            return {"bad": rows, "good": [await well(stage, seed) for seed in range(1, good + 1)]}
        finally:
            receiver.close()
            await asyncio.to_thread(stage.stop)


async def bad(stage: Stage, told: list[dict[str, Any]], rate: float, seed: int, how: str) -> dict[str, Any]:
    """One canary at 10 %, from its start to its end."""
    await begin(stage, "bad", {"new": (rate, how), "old": (GOOD_RATE, "error")}, seed)
    told.clear()
    async with Load(stage, "/bad"):
        began = time.monotonic()
        row = await until(stage, "bad", "rolled_back")
        found = time.monotonic() - began
        while (await asyncio.to_thread(stage.version, "bad", "v8"))["weight"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # still under load
        calls = await asyncio.to_thread(stage.calls, "new")
        changes = (await asyncio.to_thread(stage.get, "/api/audit?key=rollout/bad&limit=1"))["changes"]
    async with asyncio.timeout(10):
        while not any(event["after"]["state"] == "rolled_back" for event in told):
            await asyncio.sleep(0.01)
    return {
        "seed": seed,
        "calls": calls,
        "seconds": found,
        "why": row["why"],
        "audited": changes[0]["after"]["state"] == "rolled_back" and changes[0]["after"]["share"] == 0.0,
        "webhook": all(event["signed"] for event in told),
    }


async def well(stage: Stage, seed: int) -> dict[str, Any]:
    """A version no worse than the old one, from its start to everyone, or to wherever it got."""
    await begin(stage, "good", {"new": (GOOD_RATE, "error"), "old": (GOOD_RATE, "error")}, seed)
    async with Load(stage, "/good") as load:
        began = time.monotonic()
        row = await until(stage, "good", "promoted", "rolled_back")
        seconds = time.monotonic() - began
        versions = (await asyncio.to_thread(stage.get, "/api/state"))["services"]["good"]["versions"]
    return {
        "seed": seed,
        "state": row["state"],
        "why": row["why"],
        "seconds": seconds,
        "calls": load.calls,
        "weights": {name: version["weight"] for name, version in versions.items()},
    }


async def begin(stage: Stage, service: str, plans: dict[str, tuple[float, str]], seed: int) -> None:
    """As before any canary: breakers closed, everything on v7, and the rollout at its first step."""

    def prepare() -> None:
        stage.post("/api/weight", service=service, weights={"v7": 100, "v8": 0})
        for version in ("v7", "v8"):
            stage.post("/api/breaker", service=service, version=version, action="reset")
        for name, (rate, how) in plans.items():
            stage.plant(name, rate, seed + (1000 if name == "old" else 0), how)
        stage.post("/api/rollout", service=service, action="start")

    await asyncio.to_thread(prepare)


async def until(stage: Stage, service: str, *states: str) -> dict[str, Any]:
    """The rollout, once it is in one of these."""
    async with asyncio.timeout(120):
        while True:
            row: dict[str, Any] = await asyncio.to_thread(stage.get, f"/api/rollout?service={service}")
            if row["state"] in states:
                return row
            await asyncio.sleep(0.02)
