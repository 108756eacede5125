"""The demo's clients: one seeded plan of mixed requests, sent to two gateways at the same instants.

Runs as a process of its own, so that drawing the screen never delays a clock: `python -m unjam.cli._demo_traffic
SECONDS SEED PORT PORT` prints one JSON line per request sent and per request ended, and ends when all have ended. Times
are seconds since the start.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from dataclasses import asdict, dataclass

KINDS = ("hello", "chat", "script", "audit")

#: Shorter runs get shorter jobs, and more of them a second, so that the agents are as busy.
FULL_LENGTH = 45.0

#: A client gives up after this long, seconds.
PATIENCE = 300.0

#: What a whole answer of each kind ends with or contains: an answer without it was cut short.
PROOF = {"hello": b"Hello, ", "chat": b"data: [DONE]", "script": b"primes below", "audit": b"event: report"}

MODEL = "harbour-1"


@dataclass(frozen=True, slots=True)
class Shot:
    """One request to send. `at`: seconds after the start. `body` empty: a GET."""

    at: float
    kind: str
    path: str
    body: str = ""
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """One request's end. `first`: seconds to the body's first event or byte. `why`: empty for a whole, right answer."""

    side: int
    number: int
    seconds: float
    first: float
    why: str


def scale(seconds: float) -> float:
    return min(1.0, seconds / FULL_LENGTH)


def plan(seconds: float, seed: int) -> list[Shot]:
    """The same arguments give the same requests. Poisson arrivals; a burst of audits at two fifths of the time; audits
    come in the first three quarters, so that the end need not be waited for too long."""
    rng = random.Random(seed)
    short = scale(seconds)
    shots: list[Shot] = []

    def arrivals(per_second: float, until: float) -> list[float]:
        times, at = [], rng.expovariate(per_second)
        while at < until:
            times.append(at)
            at += rng.expovariate(per_second)
        return times

    def audit(at: float, pages: int) -> Shot:
        return Shot(at, "audit", "/audit", json.dumps({"pages": max(1, round(pages * short))}), stream=True)

    for at in arrivals(8.0, seconds):
        shots.append(Shot(at, "hello", f"/hello?name=guest-{rng.randrange(1000)}"))
    for at in arrivals(1.5 / short, seconds):
        ask = {"role": "user", "content": f"Tell me of ship {rng.randrange(1000)}"}
        body = {"model": MODEL, "stream": True, "max_tokens": max(1, round(60 * short)), "messages": [ask]}
        shots.append(Shot(at, "chat", "/v1/chat/completions", json.dumps(body), stream=True))
    for at in arrivals(0.25 / short, seconds):
        body = {"name": "primes", "args": [round(rng.uniform(100_000, 300_000) * short)]}
        shots.append(Shot(at, "script", "/run", json.dumps(body)))
    shots.append(audit(0.02 * seconds, 500))  # the whole document
    for at in arrivals(0.42 / short, 0.75 * seconds):
        shots.append(audit(at, rng.choice((75, 100, 150, 200, 300))))
    for n in range(6):
        shots.append(audit(0.4 * seconds + 0.2 * n, rng.choice((100, 150, 200))))
    return sorted(shots, key=lambda shot: shot.at)


async def send(port: int, shot: Shot) -> tuple[float, float, str]:
    """Seconds to the end and to the body's first byte, and what was wrong with the answer ("" for nothing)."""
    began = time.perf_counter()
    first = 0.0
    body = shot.body.encode()
    head = [f"{'POST' if body else 'GET'} {shot.path} HTTP/1.1", f"host: 127.0.0.1:{port}", "connection: close"]
    head += ["accept: text/event-stream"] * shot.stream
    head += ["content-type: application/json", f"content-length: {len(body)}"] * bool(body)
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write("\r\n".join([*head, "", ""]).encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                split = len(answer)
                tail = b""
                while piece := await reader.read(65536):
                    tail = (tail + piece)[-262_144:]
                    if not first and (not shot.stream or b"data: " in tail):  # a heartbeat is not a word
                        first = time.perf_counter() - began
            finally:
                writer.close()
        why = _wrong(shot.kind, answer[:split].lower(), tail)
    except TimeoutError:
        why = f"gave up after {PATIENCE:.0f} s"
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        why = f"{type(error).__name__}: {error}"
    return time.perf_counter() - began, first, why


def _wrong(kind: str, head: bytes, tail: bytes) -> str:
    status = head.split(b" ", 2)[1].decode()
    if status != "200":
        return f"status {status}: {tail[:200].decode(errors='replace')}"
    if b"transfer-encoding: chunked" in head and not tail.endswith(b"0\r\n\r\n"):
        return "cut short"
    if PROOF[kind] not in tail:
        return f"not an answer to {kind}: {tail[-200:].decode(errors='replace')}"
    return ""


async def fire(seconds: float, seed: int, ports: list[int]) -> None:
    shots = plan(seconds, seed)
    began = time.perf_counter() + 0.2

    async def one(side: int, number: int, shot: Shot) -> None:
        print(json.dumps({"sent": number, "side": side, "at": round(time.perf_counter() - began, 4)}), flush=True)
        took, first, why = await send(ports[side], shot)
        print(json.dumps(asdict(Ended(side, number, round(took, 5), round(first, 5), why))), flush=True)

    gc.disable()  # a few thousand objects; a pause would be charged to the gateways
    async with asyncio.TaskGroup() as running:
        for number, shot in enumerate(shots):
            await asyncio.sleep(max(0.0, shot.at - (time.perf_counter() - began)))
            # The side that goes first alternates: neither always finds the machine as the other left it.
            for side in range(len(ports)) if number % 2 else reversed(range(len(ports))):
                running.create_task(one(side, number, shot))


if __name__ == "__main__":
    asyncio.run(fire(float(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
