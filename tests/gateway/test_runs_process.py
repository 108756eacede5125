"""Durable runs and the death of the gateway's process: what was acknowledged is there, and readers go on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from .durable import SERVICES, Api, Source
from .harness import Wire, in_loop
from .processes import Process, process, served


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Process, int]]:
    (folder / "unjam.yaml").write_text(
        "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\nstate: sqlite:runs.db\nruns: on\n" + SERVICES
    )
    async with served("--config", str(folder / "unjam.yaml")) as running:
        yield running


async def connect(port: int) -> Api:
    return Api(await Wire.connect(port))


@in_loop
async def test_a_gateway_is_killed_and_another_goes_on(tmp_path: Path) -> None:
    source = Source()
    async with serving(tmp_path) as (gateway, port):
        api = await connect(port)
        run = await api.create(given={"pages": 3}, headers="Idempotency-Key: once\r\n")
        claim = await api.claim()
        await api.emit(claim, 1, {"page": 1})
        await api.call("POST", f"/v1/runs/{run['id']}/heartbeat", {"fence": 1, "checkpoint": 1})
        following = asyncio.create_task(source.follow(port, run["links"]["events"]))
        await source.until(lambda: len(source.events) == 3)
        os.kill(gateway.child.pid, signal.SIGKILL)
        await gateway.exit_code()
        await asyncio.gather(following, return_exceptions=True)
        api.wire.close()
    assert (tmp_path / "runs.db").exists(), "the file is beside the configuration"
    async with serving(tmp_path) as (gateway, port):
        api = await connect(port)
        again = await api.create(given={"pages": 3}, headers="Idempotency-Key: once\r\n")
        assert again["id"] == run["id"], "a client that heard nothing asked again"
        following = asyncio.create_task(source.follow(port, run["links"]["events"]))
        await api.emit(claim, 2, {"page": 2})  # the worker was there all the time
        await api.finish(claim, "whole")
        await following
        assert source.ids == [0, 1, 2, 3, 4]
        assert (await api.call("GET", f"/v1/runs/{run['id']}"))[1]["result"] == "whole"
        api.wire.close()
        gateway.send(signal.SIGTERM)
        assert await gateway.exit_code() == 0


@in_loop
async def test_a_file_that_another_gateway_has_is_a_plain_refusal(tmp_path: Path) -> None:
    async with serving(tmp_path):
        async with process("-m", "unjam.cli.main", "serve", "--config", str(tmp_path / "unjam.yaml")) as second:
            await second.says(r'"event":"could_not_start"')
            assert await second.exit_code() == 1
        assert "Traceback" not in second.said
