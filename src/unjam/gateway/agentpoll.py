"""Load from programs beside the endpoints that speak HAProxy's agent-check: one connection, one line.

As in HAProxy's manual, what a line does not mention stays as it was, and only the agent reverts what it said: `up` does
not end a drain, `ready` does not bring back what is down.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, ClassVar, Final

from unjam.core.load import DOWN, DRAINING, READY, LoadReport
from unjam.core.spec import AgentCheckSpec
from unjam.gateway.watch import Pull
from unjam.wire import agentcheck

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway
    from unjam.gateway.upstream import Upstream

#: Bytes of an answer.
MOST: Final = 1024


class AgentPoll(Pull[AgentCheckSpec]):
    """Asks the agent of one endpoint."""

    __slots__ = ("_admin", "_health", "_slots", "_weight")

    source: ClassVar[str] = "agent_check"

    def __init__(self, gateway: Gateway, upstream: Upstream, spec: AgentCheckSpec, rng: Random) -> None:
        #: As last said; None: never.
        self._admin: str | None = None
        self._health: str | None = None
        self._weight: float | None = None
        self._slots: int | None = None
        super().__init__(gateway, upstream, spec, rng)

    async def ask(self) -> LoadReport | None:
        line = await ask(self.upstream.host, self.spec.port, self.spec.send)
        said = agentcheck.parse(line)
        if said.admin is not None:
            self._admin = said.admin
        if said.health is not None:
            self._health = said.health
        if said.weight is not None:
            self._weight = said.weight
        if said.maxconn is not None:
            self._slots = said.maxconn or None  # 0: no bound
        report = LoadReport(weight=self._weight, slots=self._slots, state=self._state(), source=self.source)
        return report if report.known() else None

    def _state(self) -> str | None:
        if self._health not in (None, "up"):
            return DOWN
        if self._admin not in (None, "ready"):
            return DRAINING
        return None if self._admin is None and self._health is None else READY


async def ask(host: str, port: int, send: str = "") -> bytes:
    """The line that an agent answers. Raises OSError, ValueError; whoever calls it bounds the time."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if send:
            writer.write(send.encode() + b"\n")
        line = b""
        while b"\n" not in line and b"\r" not in line:
            more = await reader.read(MOST + 1 - len(line))
            line += more
            if len(line) > MOST:
                raise ValueError(f"the agent's answer is longer than {MOST} bytes")
            if not more:
                break
    finally:
        writer.transport.abort()
    if not line:
        raise ValueError("the agent hung up without an answer")
    return line
