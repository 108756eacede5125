"""Durable runs on one gateway: the store, who follows and who waits, sweeps and housekeeping.

The proxy never waits for any of this. While the store is away it is asked again and again; what needs it raises
`StoreAway`, and who follows a run just hears nothing for that time.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Final

from unjam.config import Config
from unjam.config.runs import Runs, ServiceRuns
from unjam.gateway.body_cache import BodyCache
from unjam.gateway.counted import CountedStore
from unjam.gateway.dispatcher import Dispatcher, PushOptions
from unjam.gateway.local import Refused
from unjam.gateway.runs_errors import missing
from unjam.gateway.workers import Workers
from unjam.runs.hub import Hub
from unjam.runs.machine import FAILED
from unjam.runs.model import Run
from unjam.runs.ready import Ready, Waiting
from unjam.runs.store import make
from unjam.runs.store.base import Store, StoreAway, StoreError
from unjam.telemetry.runs import RunsStats

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway
    from unjam.gateway.local import LocalExchange
    from unjam.gateway.run_socket import RunSockets

#: Seconds between sweeps, between looks at the queues' depth, at who is there elsewhere, between two rounds of
#: housekeeping.
SWEEP: Final = 1.0
DEPTH: Final = 5.0
PRESENCE: Final = 2.0
HOUSEKEEP: Final = 60.0
#: Seconds until a store that could not be opened is tried again: doubled from the first to the second.
AGAIN: Final = (0.5, 15.0)
#: Runs swept, and deleted, in one call.
SWEPT: Final = 100
DELETED: Final = 1000
#: Held clients that are sent away in one second of a drain.
ROTATED: Final = 1000
#: Seconds that closing the store may take.
CLOSING: Final = 5.0


class Durable:
    """`limits`: of the configuration in force. `services`: those that take runs. `held`: exchanges that wait for a run
    to go on or end. `poke`: called with the id of a run that is to be stopped or was sent something; who runs it here
    looks at once rather than at its next sign of life. `given`: who waits for a run to be sent something; `workers`:
    who asks for runs here. `bodies`: of answers that are large."""

    def __init__(self, gateway: Gateway, config: Config, store: Store | None = None) -> None:
        assert config.runs is not None
        self.gateway = gateway
        self.stats = RunsStats()
        self.kind = config.state.kind
        self.limits: Runs = config.runs
        self.services: dict[str, ServiceRuns] = {}
        log = gateway.log
        inner = (
            store
            if store is not None
            else make(
                config.state.url,
                lambda why: log.warning("store_warning", store=self.kind, why=why),
                config.runs.lease,
            )
        )
        self.store = CountedStore(inner, self.stats, self._went_away, self._came_back)
        self.hub = Hub(self.store, on_fault=lambda: log.exception("fault", what="following a run"))
        self.ready = Ready(self.store)
        self.held: set[LocalExchange] = set()
        self.sockets: RunSockets | None = None
        self.dispatcher = Dispatcher(gateway, self.store, worker=f"gateway:{socket.gethostname()}:{os.getpid()}")
        self.ready.listen(self.dispatcher.ready)
        self.workers = Workers(self)
        self.store.on_swept = self._swept
        self.given = Waiting()
        self.bodies = BodyCache()
        self._rng = Random()
        self._tasks: list[asyncio.Task[None]] = []
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take the limits of a configuration; the store stays."""
        if config.runs is not None:
            self.limits = config.runs
        if self.sockets is not None:
            self.sockets.configure()
        self.services = {name: service.runs for name, service in config.services.items() if service.runs.enabled}
        for exchange in list(self.held):
            try:
                self.check(exchange)
            except Refused as refused:
                exchange.refuse(refused)
        limits = self.limits
        self.dispatcher.configure(
            # All: a run may be pushed although those of its service usually are not.
            {name: service.path for name, service in self.services.items()},
            PushOptions(limits.dispatch, limits.lease, limits.max_event, limits.max_result),
        )

    def renew(self, exchange: LocalExchange) -> None:
        """The caller of a request that has waited, by the keys in force. Raises `Refused`."""
        try:
            exchange.caller = self.gateway.settings.keyring.renewed(exchange.caller)
        except KeyError:
            asks = b'www-authenticate: Bearer realm="unjam"\r\n'
            raise Refused(401, "unauthorized", "The API key is not valid any more.", lines=asks) from None

    def check(self, exchange: LocalExchange) -> None:
        """Whether who has waited for a run of `exchange.service` may still hear of it. Raises `Refused`."""
        self.renew(exchange)
        caller, service = exchange.caller, exchange.service
        if caller is not None and service is not None and not caller.may_call(service):
            raise missing()

    def poke(self, run: str) -> None:
        self.dispatcher.poke(run)
        self.given.wake(run)

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store, or go on trying while the gateway serves. Raises StoreError for a store that isn't ours."""
        try:
            await self._open()
        except StoreAway:
            self._tasks.append(asyncio.create_task(self._open_later()))
        else:
            self._work()

    async def _open(self) -> None:
        await self.store.open()
        self.gateway.log.info("store_opened", store=self.kind)

    async def _open_later(self) -> None:
        pause, longest = AGAIN
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
            try:
                await self._open()
            except StoreAway:
                continue
            except Exception as error:  # noqa: BLE001 - the proxy goes on; the operator has to see why runs don't
                self.gateway.log.error("store_refused", store=self.kind, why=str(error))
                continue
            self._work()
            return

    def _work(self) -> None:
        self.dispatcher.start()
        self._tasks += [
            asyncio.create_task(self._every(SWEEP, self._sweep)),
            asyncio.create_task(self._every(DEPTH, self._depth)),
            asyncio.create_task(self._every(SWEEP, self.workers.look)),
            asyncio.create_task(self._every(PRESENCE, self.workers.exchange)),
            asyncio.create_task(self._every(HOUSEKEEP, self._housekeep)),
        ]

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except StoreAway:
                pass  # counted and told; the next turn may find it
            except Exception:
                self.gateway.log.exception("fault", what="care of the store")
            # Not in step with other gateways on the same store.
            await asyncio.sleep(seconds * self._rng.uniform(0.9, 1.1))

    async def _sweep(self) -> None:
        while True:
            if len(await self.store.sweep(SWEPT)) < SWEPT:
                return

    def _swept(self, run: Run) -> None:
        self.workers.ended(run)
        tell = self.gateway.log.warning if run.status == FAILED else self.gateway.log.info
        tell("run_swept", run=run.id, service=run.service, status=run.status, worker=run.worker or "")

    async def _depth(self) -> None:
        self.stats.depth = await self.store.depth()

    async def _housekeep(self) -> None:
        while await self.store.housekeep(self.limits.keep, DELETED) == DELETED:
            await asyncio.sleep(0)

    def tick(self) -> None:
        """What is to be done once a second."""
        self.hub.tick()
        self.ready.tick()

    def figures(self) -> RunsStats:
        """The counters, and the gauges as of now."""
        stats = self.stats
        stats.followers = self.hub.followers
        stats.followed = self.hub.runs
        stats.waiting = len(self.ready)
        if self.sockets is not None:
            stats.sockets = self.clients
            stats.sockets_closed = self.sockets.sockets.closed_for
        return stats

    @property
    def clients(self) -> int:
        """WebSocket clients that are held; those of HTTP are the gateway's."""
        return 0 if self.sockets is None else len(self.sockets.sockets.held)

    def drain(self) -> None:
        """Tell held clients to go on elsewhere: not all at once, as they come back all at once."""
        self.ready.wake_all()
        self.given.wake_all()
        held = list(self.held)
        now = monotonic()
        spread = min((len(held) + self.clients) / ROTATED, self.gateway.settings.drain_timeout / 2)
        for exchange in held:
            exchange.at(now + self._rng.uniform(0, spread), exchange.drain)
        if self.sockets is not None:
            self.sockets.sockets.drain(spread)

    async def stop(self) -> None:
        if self.sockets is not None:
            self.sockets.sockets.abort()
        await self.dispatcher.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hub.close()
        try:
            async with asyncio.timeout(CLOSING):
                await self.store.close()
        except (StoreError, TimeoutError, OSError) as error:
            self.gateway.log.warning("store_not_closed", store=self.kind, why=str(error))

    # -- telling ---------------------------------------------------------------------------------------------------

    def _went_away(self, why: str) -> None:
        self.gateway.log.warning("store_away", store=self.kind, why=why)

    def _came_back(self) -> None:
        self.gateway.log.info("store_back", store=self.kind)
