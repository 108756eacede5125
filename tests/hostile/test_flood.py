"""A flood of creates through a real process: what is beyond the queue is refused, what was acknowledged is there even
after the process was killed in the middle of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..gateway.durable import SERVICES, Api
from ..gateway.harness import Wire, in_loop
from ..gateway.processes import served

QUEUE = 60


@in_loop
async def test_a_flood_is_429_beyond_the_queue_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "unjam.yaml"
    path.write_text(
        "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\nstate: sqlite:runs.db\n"
        f"runs: {{max_queued: {QUEUE}}}\n{SERVICES}"
    )
    made: set[str] = set()
    refused = 0
    async with served("--config", str(path)) as (process, port):
        apis = [Api(await Wire.connect(port)) for _ in range(8)]

        async def flood(api: Api) -> None:
            nonlocal refused
            for n in range(40):
                status, body = await api.call("POST", "/v1/runs", {"service": "auditor", "input": n})
                if status == 201:
                    made.add(body["id"])
                    continue
                assert (status, body["error"]["code"]) == (429, "queue_full")
                assert api.answer is not None
                assert int(api.answer.header("retry-after") or 0) > 0
                refused += 1

        await asyncio.gather(*(flood(api) for api in apis))
        assert refused == 8 * 40 - len(made)
        # Those that are under way at once are not counted one by one.
        assert QUEUE <= len(made) <= QUEUE + 8
        # Another service's queue is its own.
        made_there = (await apis[0].create(service="other"))["id"]
        process.child.kill()
        await process.exit_code()
        for api in apis:
            api.wire.close()
    async with served("--config", str(path)) as (_, port):
        api = Api(await Wire.connect(port))
        claimed = [(await api.claim())["run"]["id"] for _ in made]
        assert sorted(claimed) == sorted(made)
        assert await api.claim() is None
        assert (await api.claim("other"))["run"]["id"] == made_there
        # There is room again.
        await api.create()
        api.wire.close()
