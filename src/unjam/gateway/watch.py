"""What is done to one endpoint now and then, for as long as it is in the topology: checks, and questions for its load.

A `Watch` repeats one step; a `Pull` is one whose step asks for a `LoadReport` and hands it to the core. Intervals vary
by a tenth, and the first step comes after a random wait, so that a fleet is not asked in one instant.
"""

from __future__ import annotations

import asyncio
import ssl
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from unjam.core.load import LoadReport
from unjam.gateway.loads import ACCEPTED, hand_over, problem_of
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway
    from unjam.gateway.upstream import Upstream

#: Longest wait before the first step, seconds.
FIRST = 1.0


class Regular(Protocol):
    """What a watch is made from. `interval`: seconds between two steps."""

    @property
    def interval(self) -> float: ...


S = TypeVar("S", bound=Regular)


class Watch(Generic[S]):
    """Runs from its making to `stop`, on the gateway's loop."""

    __slots__ = ("_task", "gateway", "rng", "spec", "upstream")

    def __init__(self, gateway: Gateway, upstream: Upstream, spec: S, rng: Random) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.spec = spec
        self.rng = rng
        self._task: asyncio.Task[Any] = gateway.loop.create_task(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def step(self) -> None:
        """Do it once."""
        raise NotImplementedError

    async def _run(self) -> None:
        interval = self.spec.interval
        await asyncio.sleep(self.rng.random() * min(FIRST, interval))
        while True:
            try:
                await self.step()
            except Exception:  # a fault in one step must not be the end of all checks of this endpoint
                self.gateway.log.exception("fault", endpoint=self.upstream.endpoint.name)
            await asyncio.sleep(interval * (0.9 + 0.2 * self.rng.random()))


class Pull(Watch[S]):
    """Asks the endpoint for its load. What fails is counted, and told when it begins and when it ends."""

    __slots__ = ("_failing",)

    #: `LoadReport.source`.
    source: ClassVar[str]

    def __init__(self, gateway: Gateway, upstream: Upstream, spec: S, rng: Random) -> None:
        self._failing = False
        super().__init__(gateway, upstream, spec, rng)

    async def ask(self) -> LoadReport | None:
        """One answer, None when it says nothing of the load. It is cut off when it takes as long as the interval.
        Raises OSError, ssl.SSLError, Malformed, or ValueError with what is wrong in words."""
        raise NotImplementedError

    async def step(self) -> None:
        problem, result = "", "ok"
        interval = self.spec.interval
        endpoint = self.upstream.endpoint
        try:
            async with asyncio.timeout(interval):
                report = await self.ask()
        except TimeoutError:
            problem, result = f"no answer within {interval:g} s", "failed"
        except ValueError as error:
            problem, result = str(error), "failed"
        except (OSError, ssl.SSLError, Malformed) as error:
            problem, result = f"{type(error).__name__}: {error}", "failed"
        else:
            if report is not None and hand_over(self.gateway, endpoint, report, monotonic()) != ACCEPTED:
                problem, result = problem_of(endpoint) or "older than what is known", "refused"
        self.gateway.stats.load_pull(self.source, result)
        if self._failing is not bool(problem):
            self._failing = bool(problem)
            told = {"endpoint": endpoint.name, "source": self.source}
            if problem:
                self.gateway.log.warning("load_pull", **told, ok=False, why=problem)
            else:
                self.gateway.log.info("load_pull", **told, ok=True)
