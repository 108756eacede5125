"""The gateway process: listeners, signals, drain and reload around one `Gateway`.

SIGTERM and SIGINT drain: nothing new is accepted, what runs is finished, within `drain_timeout`; a second one stops
at once.
SIGHUP reloads the configuration and the certificates; a configuration that is refused leaves the old one in force, and
every listener as it was.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import ssl
from collections.abc import Callable
from random import Random
from time import monotonic
from typing import Any

import uvloop

from unjam import __version__
from unjam.admin.app import create_app
from unjam.admin.auth import hosts_for
from unjam.admin.server import AdminServer
from unjam.config import Config, ConfigError
from unjam.core.endpoint import Endpoint
from unjam.core.spec import ServiceSpec
from unjam.gateway import descriptors, features, openapi
from unjam.gateway.changes import Changes
from unjam.gateway.control import Control
from unjam.gateway.durable import Durable
from unjam.gateway.gateway import Gateway
from unjam.gateway.listeners import Listeners, server_tls, unix_socket, why_not
from unjam.gateway.members import Members
from unjam.gateway.news import News
from unjam.gateway.quality import Quality
from unjam.gateway.reports import Reports
from unjam.gateway.respond_async import RespondAsync
from unjam.gateway.responses import Responses
from unjam.gateway.rollouts import Rollouts
from unjam.gateway.run_socket import RunSockets
from unjam.gateway.runs_api import RunsApi
from unjam.gateway.runs_worker import WorkerApi
from unjam.gateway.settings import Settings
from unjam.gateway.timers import TICK
from unjam.gateway.upstream import Upstream
from unjam.gateway.verdicts_api import VerdictsApi
from unjam.gateway.watch import Watch
from unjam.gateway.watches import renew
from unjam.gateway.webhooks import Webhooks
from unjam.kept import make as make_kept
from unjam.runs.store.base import Store, StoreError
from unjam.telemetry import logs
from unjam.telemetry.accesslog import AccessLog


class Server:
    """Owns everything that has to be started and stopped. Tests run it inside their own loop."""

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config] | None = None,
        seed: int | None = None,
        store: Store | None = None,
    ) -> None:
        """`store`: in place of the one that the configuration names."""
        self.loop = asyncio.get_running_loop()
        self._reload_config = reload
        self._store = store
        self._rng = Random(seed)
        self.gateway = Gateway(self.loop, Settings.of(config), Random(seed))
        self.config = config
        self.admin: AdminServer | None = None
        self._upstreams: dict[Any, Upstream] = {}
        self._watches: dict[Any, list[Watch[Any]]] = {}
        self._contexts: dict[tuple[bool, str | None], ssl.SSLContext] = {}
        self.members = Members(self.gateway, self._equip_joined, self._unequip)
        self.reports = Reports(self.gateway, self.members)
        self._listening = Listeners(self.gateway, self.reports)
        self.listeners = self._listening.open
        self.durable: Durable | None = None
        kept = make_kept(config.state.url)
        self.quality = Quality(self.gateway, kept.others())
        self.webhooks = Webhooks(self.gateway.stats, self.gateway.log)
        self.changes = Changes(self.gateway, config, kept, self.webhooks)
        self.rollouts = Rollouts(self.gateway, self.changes)
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._control = Control(self)
        self._news = News(self.gateway.balancer, self.gateway.log)
        self._reloading = asyncio.Lock()
        self.stopped = asyncio.Event()

    # -- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind and begin to serve. Raises OSError for an address, ssl.SSLError for a certificate."""
        gateway = self.gateway
        before, limit = descriptors.raise_limit()
        gateway.descriptor_cap = int(limit * descriptors.SHARE) - 32
        gateway.log.info("descriptors", soft_before=before, limit=limit, for_connections=gateway.descriptor_cap)
        gateway.access_log = self._open_access_log(self.config)
        self._apply(self.config, _endpoint_contexts(self.config))
        await self.changes.start()
        if self.config.runs is not None:
            await self._start_runs(self.config)
        self._listening.swap(self.config, await self._listening.prepare(self.config))
        if self.config.admin is not None:
            admin = self.config.admin
            app = create_app(
                self._control, admin.token, hosts_for(admin.host or "", admin.hosts), gateway.rejections.reject
            )
            tls = None if admin.tls is None else server_tls(admin.tls.cert, admin.tls.key)
            self.admin = AdminServer(app, token=admin.token, tls=tls)
            if admin.path is not None:
                await self.admin.start(sockets=[await unix_socket(admin.path)])
            else:
                await self.admin.start(admin.host, admin.port)
            gateway.log.info("admin", address=admin.path or f"{self.admin.host}:{self.admin.port}")
        self._tick()

    async def _start_runs(self, config: Config) -> None:
        """Raises StoreError for a store that isn't ours; one that is away is waited for while the gateway serves."""
        self.durable = durable = Durable(self.gateway, config, self._store)
        durable.workers.on_joined = self.changes.joined
        durable.workers.on_left = self.changes.left
        gateway = self.gateway
        api = RunsApi(durable)
        api.add_to(gateway.paths)
        WorkerApi(durable).add_to(gateway.paths)
        Responses(durable, api).add_to(gateway.paths)
        openapi.add_to(gateway.paths)
        VerdictsApi(self.quality, api).add_to(gateway.paths)
        durable.store.on_completed = self.quality.completed
        durable.sockets = RunSockets(durable, api)
        durable.sockets.add_to(gateway.paths)
        gateway.respond_async = RespondAsync(durable, api)
        gateway.hints = features.HINTS | {b"prefer"}
        await durable.start()

    def _open_access_log(self, config: Config) -> AccessLog:
        log = config.access_log
        return AccessLog(
            log.to,
            stats=self.gateway.stats,
            style=log.format,  # type: ignore[arg-type]
            on_trouble=logs.trouble("access_log"),
        )

    # -- configuration ---------------------------------------------------------------------------------------------

    def _apply(self, config: Config, contexts: dict[tuple[bool, str | None], ssl.SSLContext]) -> None:
        """Put a configuration in force: atomically, between two requests. Raises ValueError; then nothing changes."""
        gateway = self.gateway
        topology = self.members.merge(config)
        now = monotonic()
        applied = gateway.balancer.apply(topology, now)
        gateway.settings = Settings.of(config)
        gateway.router.changed()
        gateway.stats.retain(set(topology.services))
        for endpoint in applied.removed:
            self._unequip(endpoint)
        self._contexts = contexts
        self.quality.configure(config)
        if self.quality.on:
            VerdictsApi(self.quality).add_to(gateway.paths)
        unwatched = []
        for service in gateway.balancer.services.values():
            for version in service.versions:
                for pool in version.pools:
                    for endpoint in pool.endpoints:
                        self._equip(config, service.name, version.name, endpoint, service.spec, contexts)
                        if service.spec.health is None and not endpoint.healthy:
                            unwatched.append(endpoint)
        self.config = config
        self.members.configured(config)
        self.reports.configure(config.reporters)
        self.webhooks.configure(config.webhooks)
        self.changes.configured(config)
        self.rollouts.configured()
        if self.durable is not None:
            self.durable.configure(config)
        # Only now that all are equipped: what waits may be sent to any of them.
        gateway.carry_out(applied.refused_tickets, now)
        for endpoint in unwatched:  # nobody checks any more, so nobody would ever find it well again
            gateway.carry_out(gateway.balancer.set_health(endpoint, True, now), now)

    def _equip(
        self,
        config: Config,
        service: str,
        version: str,
        endpoint: Any,
        service_spec: ServiceSpec,
        contexts: dict[tuple[bool, str | None], ssl.SSLContext],
    ) -> None:
        """Give an endpoint its upstream and its watches. `self.config`: what was in force until now."""
        tls = server_name = spec = None
        if endpoint.url.startswith("https:"):
            spec = config.endpoint_tls(service, version, endpoint.url)
            server_name = spec.server_name
            tls = contexts[spec.verify, spec.ca]
        upstream = self._upstreams.get(endpoint)
        if upstream is None and tls is None and isinstance(endpoint.shell, Upstream):
            upstream = endpoint.shell  # removed, and back before its last request had ended
        elif (
            upstream is not None
            and tls is not None
            and spec != self.config.endpoint_tls(service, version, endpoint.url)
        ):
            upstream.close()  # its connections were made with what was trusted then; busy ones end with their requests
            upstream = None
        if upstream is None:
            upstream = endpoint.shell = Upstream(self.gateway, endpoint, tls, server_name)
        self._upstreams[endpoint] = upstream
        upstream.tls = tls
        self._watches[endpoint] = renew(self._watches.get(endpoint, ()), upstream, service_spec, self._rng)

    def _equip_joined(self, endpoint: Endpoint) -> None:
        """As `_equip`, for one that joined under the configuration in force."""
        version = endpoint.pool.version
        spec = version.service.spec
        self._equip(self.config, spec.name, version.name, endpoint, spec, self._contexts)
        self.changes.joined(endpoint)

    def _unequip(self, endpoint: Endpoint) -> None:
        """It left: no more checks, and its connections end with their requests."""
        for watch in self._watches.pop(endpoint, ()):
            watch.stop()
        upstream = self._upstreams.pop(endpoint, None)
        if upstream is not None:
            upstream.close()
        self.changes.left(endpoint)

    async def reload(self) -> list[str]:
        """Read the configuration again. Returns what was wrong; then the old one stays in force."""
        if self._reload_config is None:
            return ["there is no configuration file to reload: this gateway was started with --to"]
        async with self._reloading:  # one at a time: what was read last is what stays
            return await self._reload(self._reload_config)

    async def _reload(self, read: Callable[[], Config]) -> list[str]:
        gateway = self.gateway
        before = self.config
        access_log = None
        try:
            config = read()
            if config.access_log != before.access_log:
                access_log = self._open_access_log(config)
            contexts = _endpoint_contexts(config)  # what can't be put in force is refused before anything is changed
            ready = await self._listening.prepare(config)
            try:
                if gateway.draining:
                    raise ValueError("the gateway is stopping")
                self._apply(config, contexts)
            except BaseException:
                self._listening.discard(ready)
                raise
            self._listening.swap(config, ready)
        except ConfigError as error:
            problems = list(error.lines())
        except (OSError, ssl.SSLError, ValueError) as error:
            problems = [str(error)]
        else:
            if access_log is not None:
                gateway.access_log.close()
                gateway.access_log = access_log
            else:
                problem = gateway.access_log.reopen()
                if problem:
                    gateway.log.warning("access_log", problem=problem)
            if config.admin != before.admin:
                gateway.log.warning("restart_needed", what="a change of admin takes effect at the next start")
            if config.state != before.state or (config.runs is None) != (before.runs is None):
                gateway.log.warning("restart_needed", what="a change of state or runs takes effect at the next start")
            gateway.stats.reloads_ok += 1
            gateway.log.info("reloaded", services=len(gateway.balancer.services))
            return []
        if access_log is not None:
            access_log.close()
        gateway.stats.reloads_failed += 1
        gateway.log.error("reload_refused", problems=problems, in_force="the old configuration")
        return problems

    # -- run and stop ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        # First of all the next tick: one that fails must not be the last.
        self._ticker = self.loop.call_later(TICK, self._tick)
        self.gateway.tick()
        self.reports.tick()
        self._ticks += 1
        if self._ticks % 5 == 0:
            self._each(self.changes.tick, self.rollouts.tick)
        if self._ticks % 10 == 0:
            self._each(self._news.tell, self.members.tick, self.quality.tick, self._expire_idle)
            if self.durable is not None:
                self._each(self.durable.tick)

    def _each(self, *parts: Callable[[], None]) -> None:
        """Call them all, whichever of them fail."""
        for part in parts:
            try:
                part()
            except Exception:
                self.gateway.log.exception("fault", what=f"once in a while: {part.__qualname__}")

    def _expire_idle(self) -> None:
        for upstream in self._upstreams.values():
            if upstream.idle:
                upstream.expire(self.gateway.now)

    async def drain(self) -> None:
        """Accept nothing new, let what runs finish, within the configured time."""
        gateway = self.gateway
        if gateway.draining:
            return
        gateway.draining = True
        self._listening.close()
        deadline = monotonic() + gateway.settings.drain_timeout
        gateway.log.info("draining", connections=self._connected(), leases=gateway.balancer.leases)
        self.reports.close()
        for client in list(gateway.clients):
            client.drain()
        pushed = None
        if self.durable is not None:
            self.durable.drain()
            pushed = self.loop.create_task(self.durable.dispatcher.drain(gateway.settings.drain_timeout))
        while self._connected() and monotonic() < deadline:
            await asyncio.sleep(TICK)
        if pushed is not None:
            await pushed
        if self._connected():
            gateway.log.warning("drain_timeout", connections=self._connected(), leases=gateway.balancer.leases)

    def _connected(self) -> int:
        """Clients, held ones among them."""
        return len(self.gateway.clients) + (0 if self.durable is None else self.durable.clients)

    async def stop(self) -> None:
        """Close everything at once."""
        gateway = self.gateway
        gateway.draining = True
        self._listening.close()
        for client in list(gateway.clients):
            client.transport.abort()
        self.reports.abort()
        for watches in self._watches.values():
            for watch in watches:
                watch.stop()
        await asyncio.sleep(0)
        for upstream in self._upstreams.values():
            upstream.close()
        if self.durable is not None:
            await self.durable.stop()
        await self.quality.stop()
        if self.admin is not None:
            await self.admin.stop()
        await self.changes.stop()
        await self.webhooks.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        await asyncio.sleep(0)
        gateway.access_log.flush()
        gateway.access_log.close()
        logs.flush()
        self.stopped.set()

    async def run(self) -> None:
        """Serve until a signal says stop."""
        stopping = asyncio.Event()
        at_once = asyncio.Event()

        def stop() -> None:
            if stopping.is_set():
                at_once.set()
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, stop)
        self.loop.add_signal_handler(signal.SIGHUP, lambda: self.gateway.spawn(self._on_hangup()))
        try:
            await self.start()
            # What is there now stays: looking at it again in every full collection would hold all clients up for 80 ms.
            gc.collect()
            gc.freeze()
            await stopping.wait()
            drain = self.loop.create_task(self.drain())
            hurry = self.loop.create_task(at_once.wait())
            await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            hurry.cancel()
        finally:
            await self.stop()

    async def _on_hangup(self) -> None:
        await self.reload()


def _endpoint_contexts(config: Config) -> dict[tuple[bool, str | None], ssl.SSLContext]:
    """TLS towards the endpoints, by what it is made of. Made before a configuration is put in force, so that one with
    authorities that don't load changes nothing. Raises OSError, ssl.SSLError."""
    contexts: dict[tuple[bool, str | None], ssl.SSLContext] = {}
    for service, found in config.services.items():
        for version, each in found.versions.items():
            urls = [endpoint.url for endpoint in each.endpoints if endpoint.url.startswith("https:")]
            if each.discover is not None:
                urls.append("https://joins.later")
            for url in urls:
                spec = config.endpoint_tls(service, version, url)
                if (spec.verify, spec.ca) not in contexts:
                    context = ssl.create_default_context(cafile=spec.ca)
                    if not spec.verify:
                        context.check_hostname = False
                        context.verify_mode = ssl.CERT_NONE
                    contexts[spec.verify, spec.ca] = context
    return contexts


def run(config: Config, reload: Callable[[], Config] | None = None) -> int:
    """Run a gateway until it is told to stop. Returns the process's exit code: 0, or 1 when it could not start."""
    logs.setup()
    log = logs.get("gateway")

    async def main() -> None:
        server = Server(config, reload)
        log.info("starting", version=__version__, pid=os.getpid())
        await server.run()

    try:
        uvloop.run(main())
    except (OSError, ssl.SSLError, StoreError) as error:
        log.error("could_not_start", why=why_not(error))
        logs.flush()
        return 1
    log.info("stopped")
    logs.flush()
    return 0
