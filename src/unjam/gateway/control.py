"""What the admin listener may do to a gateway: look, drain, shift weights, trip and reset, reload."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from unjam.admin.control import ControlRefused
from unjam.gateway.exchange import Exchange
from unjam.gateway.runs_control import RunsControl
from unjam.telemetry.collector import Collector

if TYPE_CHECKING:
    from unjam.gateway.server import Server


class Control:
    """The admin's view of one `Server`; see `unjam.admin` for the routes it answers."""

    __slots__ = ("_server",)

    def __init__(self, server: Server) -> None:
        self._server = server

    def snapshot(self) -> dict[str, Any]:
        return self._server.gateway.balancer.snapshot(monotonic())

    def metrics(self) -> Collector:
        balancer = self._server.gateway.balancer
        durable = self._server.durable
        runs = None if durable is None else durable.figures()
        return Collector(self._server.gateway.stats, balancer.snapshot(monotonic()), runs)

    def runs(self) -> RunsControl:
        durable = self._server.durable
        if durable is None:
            raise ControlRefused("runs_off", "This gateway has no durable runs: its configuration needs runs: on.")
        return RunsControl(durable)

    def ready(self) -> tuple[bool, str]:
        return self._server.gateway.ready()

    def drain(self, endpoint_url: str, draining: bool) -> bool:
        """Drain every endpoint of that URL. False: there is none."""
        gateway = self._server.gateway
        now = monotonic()
        found = False
        for service in gateway.balancer.services.values():
            for version in service.versions:
                for pool in version.pools:
                    for endpoint in pool.endpoints:
                        if endpoint.url == endpoint_url:
                            found = True
                            gateway.carry_out(gateway.balancer.drain(endpoint, draining, now), now)
        return found

    def set_weight(self, service: str, version: str, weight: float) -> bool:
        if not self._has(service, version):
            return False
        gateway = self._server.gateway
        now = monotonic()
        gateway.carry_out(gateway.balancer.set_weight(service, version, weight, now), now)
        return True

    def breaker(self, service: str, version: str, action: str) -> bool:
        if not self._has(service, version):
            return False
        balancer = self._server.gateway.balancer
        (balancer.trip if action == "trip" else balancer.reset)(service, version, monotonic())
        return True

    async def reload(self) -> list[str]:
        return await self._server.reload()

    def active(self, limit: int) -> list[dict[str, Any]]:
        """The longest-running requests first."""
        now = monotonic()
        # Clients that wait for a run of theirs are no work of an endpoint's, and may be many.
        running = [client.exchange for client in self._server.gateway.clients if isinstance(client.exchange, Exchange)]
        running.sort(key=lambda exchange: exchange.arrived)
        rows = []
        for exchange in running[:limit]:
            lease = exchange.lease
            rows.append(
                {
                    "request_id": exchange.request_id.decode("ascii"),
                    "age_s": round(now - exchange.arrived, 3),
                    "service": exchange.service.name,
                    "tenant": exchange.tenant,
                    "state": exchange.state_name,
                    "lane": lease.lane if lease else None,
                    "promoted": lease.promoted if lease else False,
                    "version": lease.version.name if lease else None,
                    "endpoint": lease.endpoint.name if lease else None,
                    "expected_s": round(lease.expected, 3) if lease else None,
                }
            )
        return rows

    def _has(self, service: str, version: str) -> bool:
        found = self._server.gateway.balancer.services.get(service)
        return found is not None and any(each.name == version for each in found.versions)
