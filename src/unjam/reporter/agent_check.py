"""Answers HAProxy's agent-check: each connection gets one line at once, whatever it says itself, and is closed.

- `ready up 63%`: the weight is the share of the CPU that others than the agent leave, at least 1 %. Memory counts
  where little is left: below a tenth of the limit the weight falls in step with it. Not `drain` for that: a server
  short of memory still answers small requests, and its last ones must be able to end.
- `drain`: the reporter was told to stop. `down`: the agent is gone. `stopped`: it is being stopped.

`ready` undoes a drain, also one that an operator has ordered in HAProxy. So it is only said where it may be needed: to
every HAProxy the first time, and in the first half minute of the reporter's life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from unjam.reporter.change import others
from unjam.wire.agentcheck import AgentState, render

#: HAProxy takes a server with 0 % out; ours is never so busy that nothing may be tried.
LEAST: Final = 0.01
#: Share of the memory below which the weight falls.
SHORT: Final = 0.10
#: Seconds from the start in which every answer says `ready`.
FIRST: Final = 30.0
#: Seconds that a peer may take to hang up, and peers at a time.
PATIENCE: Final = 1.0
MOST_PEERS: Final = 64
MOST_KNOWN: Final = 256


def share(load: dict[str, Any]) -> float:
    """Share of the machine that is left for the agent, `LEAST` .. 1; 1 where nothing is known."""
    left = 1.0 - (others(load) or 0.0)
    memory, free = load.get("memory"), load.get("memory_free")
    if memory and free is not None:
        left = min(left, free / memory / SHORT)
    return min(1.0, max(LEAST, left))


class AgentCheck:
    """`verdict`: what is so now, without `ready`. `told`: called with each verdict that was sent."""

    def __init__(self, verdict: Callable[[], AgentState], told: Callable[[AgentState], None] = lambda state: None):
        self._verdict = verdict
        self._told = told
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self._known: dict[str, None] = {}
        self._began = 0.0

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, where 0 asked for any. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._server = await loop.create_server(lambda: _Peer(self), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.abort()

    def line_for(self, host: str) -> bytes:
        state = self._verdict()
        if state.health == "up" and state.admin is None:
            early = asyncio.get_running_loop().time() - self._began < FIRST
            if early or host not in self._known:
                state = AgentState(state.weight, state.maxconn, "ready", state.health, state.why)
            self._remember(host)
        line = render(state)
        self._told(state)
        return line

    def _remember(self, host: str) -> None:
        self._known.pop(host, None)
        self._known[host] = None
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]


class _Peer(asyncio.Protocol):
    """Writes, says that this is all, and waits for the other side to hang up: closing with something unread would reset
    the connection, and the line could be lost."""

    def __init__(self, owner: AgentCheck) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        peers = self._owner._peers
        if len(peers) >= MOST_PEERS:
            transport.abort()
            return
        peers.add(self)
        name = transport.get_extra_info("peername")
        transport.write(self._owner.line_for(str(name[0]) if name else ""))
        transport.write_eof()
        self._patience = asyncio.get_running_loop().call_later(PATIENCE, transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner._peers.discard(self)
        if self._patience is not None:
            self._patience.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
