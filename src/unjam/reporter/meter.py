"""The sidecar's view of its machine: a `Machine` and the `Agent` it looks for, as the options name it."""

from __future__ import annotations

from typing import Any

from unjam.reporter.machine import Machine
from unjam.reporter.tree import Agent, listener


class HostMeter:
    """`child`, `pid`, `port`: which process is the agent; the first that is not None counts. A child with a port is not
    there before somebody listens on it: it could not take a request. Raises ProcessLookupError for a pid of nobody."""

    def __init__(self, child: int | None, pid: int | None, port: int | None) -> None:
        first = pid if child is None else child
        if first is not None:
            self._agent = Agent.of_pid(first)
        elif port is not None:
            self._agent = Agent.of_port(port)
        else:
            raise ValueError("which process is the agent?")
        self._awaited = port if child is not None else None
        self._machine = Machine(self._agent)

    def load(self) -> dict[str, Any]:
        load: dict[str, Any] = self._machine.read().to_load()
        if self._awaited is not None and listener(self._awaited) is not None:
            self._awaited = None
        return load

    def pid(self) -> int | None:
        return self._agent.pid if self._awaited is None else None
