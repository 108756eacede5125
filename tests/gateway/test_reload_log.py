"""A reload moves the access log, and says what it could not change."""

from __future__ import annotations

from pathlib import Path

import msgspec

from unjam.config import parse

from .harness import Agent, gateway, in_loop


@in_loop
async def test_a_reload_opens_the_access_log_where_the_configuration_says(tmp_path: Path) -> None:
    agent = await Agent().start()
    text = f'listen: 127.0.0.1:0\nservices: {{s: {{versions: {{v: {{endpoints: ["{agent.url}"]}}}}}}}}\n'
    target = tmp_path / "access.log"
    changed = parse(text + f"admin: off\naccess_log: {{to: {target}, format: json}}\n", {})

    async with gateway(agent, reload=lambda: changed) as gw:
        wire = await gw.connect()
        await wire.get("/before")
        assert await gw.server.reload() == []
        wire = await gw.connect()
        await wire.get("/after")
        gw.gateway.access_log.flush()
        (line,) = target.read_bytes().splitlines()
        assert msgspec.json.decode(line)["path"] == "/after"


@in_loop
async def test_a_log_that_cannot_be_opened_refuses_the_reload(tmp_path: Path) -> None:
    agent = await Agent().start()
    text = f'listen: 127.0.0.1:0\nadmin: off\nservices: {{s: {{versions: {{v: {{endpoints: ["{agent.url}"]}}}}}}}}\n'
    changed = parse(text + f"access_log: {tmp_path / 'no' / 'such' / 'folder.log'}\n", {})
    async with gateway(agent, reload=lambda: changed) as gw:
        assert await gw.server.reload() != []
        assert (await (await gw.connect()).get()).status == 200
