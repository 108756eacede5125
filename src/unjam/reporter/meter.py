"""The sidecar's view of its machine: a `Machine` and the `Agent` it looks for, as the options name it."""

from __future__ import annotations

import time
from typing import Any, Final

from unjam.reporter.machine import Machine
from unjam.reporter.system import system
from unjam.reporter.tree import Agent, Allowance

#: Share of a core for looking whether a child that starts up is there: it may take minutes to load a model.
_AWAITING: Final = 0.01


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
        self._child = child
        self._awaited = port if child is not None else None
        self._looking = Allowance(_AWAITING, least=0.25)
        self._machine = Machine(self._agent)

    def load(self) -> dict[str, Any]:
        load: dict[str, Any] = self._machine.read().to_load()
        if self._awaited is not None and self._listens(self._awaited):
            self._awaited = None
        return load

    def pid(self) -> int | None:
        return self._agent.pid if self._awaited is None else None

    def _listens(self, port: int) -> bool:
        """Mostly it is the child itself, which is a cheap question; it may also be a child of its."""
        if self._child is not None and system().listens(self._child, port):
            return True
        now = time.monotonic()
        if not self._looking.due(now):
            return False
        began = time.thread_time()
        found = system().listener(port) is not None
        self._looking.spent(now, time.thread_time() - began)
        return found
