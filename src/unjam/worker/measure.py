"""How busy this machine is, as a worker tells with its claims: the figures of a reporter, of its own processes.

Loaded when it is first asked, as most of what reads the kernel's files is of no use to a worker that doesn't report.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Final

#: Seconds for which a measurement is given again.
FRESH: Final = 2.0

log = logging.getLogger("unjam.worker")


def supported() -> bool:
    """Whether this system says how busy it is."""
    return sys.platform == "linux"


class Meter:
    """`read` is what to call; it costs a millisecond every `FRESH` seconds and nothing between."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._measure: Callable[[], dict[str, float]] | None = None
        self._broken = False
        self._latest: dict[str, float] | None = None
        self._at = float("-inf")

    def read(self) -> dict[str, float] | None:
        """Figures by the names of a load report; None where they can't be had."""
        now = self._clock()
        if self._broken or now - self._at < FRESH:
            return self._latest
        self._at = now
        try:
            if self._measure is None:
                self._measure = _machine()
            self._latest = self._measure() or None
        except Exception as error:  # noqa: BLE001 - nothing of a worker's depends on it
            self._broken, self._latest = True, None
            log.warning(f"the load of this machine can't be read, so it isn't reported: {error!r}")
        return self._latest


def _machine() -> Callable[[], dict[str, float]]:
    from unjam.reporter.machine import Machine
    from unjam.reporter.tree import Agent

    machine = Machine(Agent.of_pid(os.getpid()))
    return lambda: machine.read().to_load()
