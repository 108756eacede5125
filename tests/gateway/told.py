"""What the tests of load sources share: a log that is looked at, and waiting for what is known of an endpoint."""

from __future__ import annotations

from typing import Any

from .harness import Agent, Running, until


class Log:
    """In place of the gateway's log; keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append(("warning", event, fields))

    def exception(self, event: str, **fields: Any) -> None:
        self.events.append(("exception", event, fields))

    def of(self, event: str) -> list[tuple[str, Any, str]]:
        """Level, `ok` and `why` of each line of one event."""
        return [(level, told.get("ok"), told.get("why", "")) for level, name, told in self.events if name == event]


def listen(running: Running) -> Log:
    log = Log()
    running.gateway.log = log  # type: ignore[assignment]
    return log


def told(running: Running, agent: Agent) -> Any:
    """The tally of its reports; None before the first."""
    return running.endpoint(agent.url).tally


def source(running: Running, agent: Agent, name: str) -> Any:
    """The figures of one source in the state that operators see; None when it has said nothing that was believed."""
    for service in running.gateway.balancer.snapshot(running.gateway.loop.time())["services"].values():
        for version in service["versions"].values():
            for endpoint in version["endpoints"]:
                if endpoint["name"] == agent.url:
                    return (endpoint["load"] or {"sources": {}})["sources"].get(name)
    raise KeyError(agent.url)


async def until_pulled(running: Running, name: str, result: str, more: int = 1) -> None:
    """Until `more` further questions have had that result."""
    pulls = running.gateway.stats.load_pulls
    wanted = pulls.get((name, result), 0) + more
    await until(lambda: pulls.get((name, result), 0) >= wanted)


async def until_ticked(running: Running, times: int) -> None:
    """Until the gateway has ticked so often: every 100 ms."""
    for _ in range(times):
        before = running.gateway.now
        await until(lambda before=before: running.gateway.now != before)
