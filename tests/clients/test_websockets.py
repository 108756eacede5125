"""The `websockets` library: many runs on one socket, cut and resumed, with a real gateway and a real worker."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.common.procs import free_port
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from ..gateway.harness import PATIENCE, in_loop
from .common import unjam, working

PROTOCOL = [Subprotocol("unjam.v1")]
#: run.created, run.attempt, the steps, run.completed
STEPS = 12


def at(port: int) -> connect:
    return connect(f"ws://127.0.0.1:{port}/v1/ws", subprotocols=PROTOCOL, proxy=None)


async def say(socket: ClientConnection, op: str, **more: Any) -> None:
    await socket.send(json.dumps({"op": op, **more}))


async def hear(socket: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))


async def create(socket: ClientConnection, steps: int = STEPS, **more: Any) -> str:
    await say(socket, "create", service="auditor", input={"steps": steps}, ref=1, **more)
    while "ref" not in (answer := await hear(socket)):
        pass
    assert answer["op"] == "created", answer
    return str(answer["run"])


class Logs:
    """What one reader has seen of its runs: every seq once and in order, or it fails at once."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.ended: dict[str, str] = {}

    def take(self, message: Any) -> None:
        if message["op"] == "event":
            assert message["seq"] == self.last.get(message["run"], -1) + 1, message
            self.last[message["run"]] = message["seq"]
        elif message["op"] == "done":
            self.ended[message["run"]] = message["status"]
        else:
            assert message["op"] in ("created", "welcome"), message

    async def until_ended(self, socket: ClientConnection, runs: int) -> None:
        while len(self.ended) < runs:
            self.take(await hear(socket))

    def resume(self) -> list[dict[str, Any]]:
        return [{"run": run, "after": last} for run, last in self.last.items() if run not in self.ended]


@in_loop
async def test_create_and_follow_many_runs_to_their_ends_on_one_socket(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port), at(port) as socket:
        assert socket.subprotocol == "unjam.v1"
        logs = Logs()
        for n in range(8):
            await say(socket, "create", service="auditor", input={"steps": STEPS}, idem=f"audit-{n}")
        await logs.until_ended(socket, 8)
        assert set(logs.ended.values()) == {"completed"}
        assert set(logs.last.values()) == {STEPS + 2}


@in_loop
async def test_cut_in_the_middle_all_are_resumed_by_one_hello(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port):
        logs = Logs()
        async with at(port) as socket:
            for _ in range(6):
                await say(socket, "create", service="auditor", input={"steps": 3 * STEPS})
            while sum(logs.last.values()) < 40:
                logs.take(await hear(socket))
            socket.transport.abort()  # as a phone in a tunnel: nobody says goodbye
        assert len(logs.last) == 6
        assert not logs.ended
        async with at(port) as socket:
            await say(socket, "hello", resume=logs.resume())
            assert (await hear(socket))["op"] == "welcome"
            await logs.until_ended(socket, 6)
        assert set(logs.last.values()) == {3 * STEPS + 2}
        assert set(logs.ended.values()) == {"completed"}


@in_loop
async def test_the_gateway_is_killed_and_its_successor_goes_on(tmp_path: Path) -> None:
    listen = free_port()
    logs = Logs()
    async with AsyncExitStack() as stack:
        async with unjam(tmp_path, listen) as (first, port):
            await stack.enter_async_context(working(tmp_path, port))
            async with at(port) as socket:
                runs = [await create(socket, 4 * STEPS, follow=False, idem=f"audit-{n}") for n in range(3)]
                await say(socket, "hello", resume=[{"run": run, "after": -1} for run in runs])
                while sum(logs.last.values()) < 20:
                    logs.take(await hear(socket))
                first.send(signal.SIGKILL)
                await first.exit_code()
        async with unjam(tmp_path, listen), at(listen) as socket:
            # One that heard nothing may ask again: the key is the same run.
            assert await create(socket, 4 * STEPS, follow=False, idem="audit-0") == runs[0]
            await say(socket, "hello", resume=logs.resume())
            await logs.until_ended(socket, 3)
        assert logs.last == dict.fromkeys(runs, 4 * STEPS + 2)


@in_loop
async def test_cancel_of_one_reaches_its_worker_and_no_other(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port) as worker, at(port) as socket:
        logs = Logs()
        long = await create(socket, 100_000, follow=False)
        short = await create(socket, 3 * STEPS, follow=False)
        await say(socket, "hello", resume=[{"run": run, "after": -1} for run in (long, short)])
        while logs.last.get(long, 0) < 4:
            logs.take(await hear(socket))
        await say(socket, "cancel", run=long)
        await logs.until_ended(socket, 2)
        assert logs.ended == {long: "cancelled", short: "completed"}
        await worker.says(f"stopped {long} True")
        assert f"stopped {short}" not in worker.said
