"""A hand-made reporter, and gateways that listen to it, for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from .harness import Agent, Answer, Running, Wire, gateway

TOKEN = "a-report-token-of-some-length"
BEARER = f"Authorization: Bearer {TOKEN}\r\n"

#: An idle machine.
IDLE = {"cores": 8, "memory": 16 << 30, "cpu": 0.1, "agent_cpu": 0.0, "memory_free": 12e9, "agent_memory": 1e8}


class Clock:
    """Monotonic seconds that go on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Reporter:
    """One connection to the reports listener."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def send(self, report: dict[str, Any] | bytes, headers: str = BEARER, path: str = "/v1/report") -> Answer:
        body = report if isinstance(report, bytes) else json.dumps(report).encode()
        return await self.wire.post(path, body, headers)

    async def report(self, url: str, load: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """An accepted report of service `s`; the answer's content."""
        answer = await self.send({"service": "s", "url": url, "load": IDLE if load is None else load, **more})
        assert answer.status == 200, answer.body
        found: dict[str, Any] = json.loads(answer.body)
        return found

    async def refused(self, report: dict[str, Any] | bytes, **how: Any) -> tuple[int, str]:
        """Status and code of an answer that is no."""
        answer = await self.send(report, **how)
        error = json.loads(answer.body)["error"]
        assert set(error) >= {"code", "message"}
        assert answer.header("content-type") == "application/json"
        return answer.status, error["code"]


class Reported:
    """A gateway with a reports listener."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.server = running.server
        self.gateway = running.gateway

    @property
    def port(self) -> int:
        return next(each.port for each in self.server.listeners.values() if each.reporters)

    async def connect(self, ssl: Any = None) -> Reporter:
        wire = await Wire.connect(self.port, ssl)
        self.running.wires.append(wire)
        return Reporter(wire)

    @property
    def results(self) -> dict[str, int]:
        return self.gateway.stats.reports

    def urls(self, service: str = "s") -> list[str]:
        return [url for version in self.gateway.balancer.services[service].versions for url in version.endpoints]

    def shown(self, url: str) -> dict[str, Any]:
        """The endpoint as the state API has it."""
        state = self.server._control.snapshot()
        for service in state["services"].values():
            for version in service["versions"].values():
                for endpoint in version["endpoints"]:
                    if endpoint["url"] == url:
                        found: dict[str, Any] = endpoint
                        return found
        raise KeyError(url)

    def set_clock(self) -> Clock:
        """Reports and silence go by this clock from now on."""
        clock = Clock()
        self.server.members.clock = self.server.reports.clock = clock
        self.server.reports._epoch = clock.now
        return clock


def text(services: str, reporters: str = "") -> str:
    """A configuration with a reports listener. `services`: what is below that key, in flow style."""
    return (
        "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n"
        f"reporters: {{listen: '127.0.0.1:0', token: {TOKEN}{reporters}}}\n"
        f"services: {services}\n"
    )


DISCOVERS = "{s: {versions: {v: {discover: true}}}}"


@asynccontextmanager
async def reported(
    services: str = DISCOVERS, *agents: Agent, reporters: str = "", reload: Any = None, limits: str = ""
) -> AsyncIterator[Reported]:
    """A gateway that listens to reports; `agents` are stopped with it."""
    async with gateway(*agents, config=text(services, reporters) + limits, reload=reload) as running:
        yield Reported(running)
