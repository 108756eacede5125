"""What the admin listener may do to a gateway: look, drain, shift weights, trip and reset, reload."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from unjam.admin.control import ControlRefused, Rollouts, Rows
from unjam.gateway.exchange import Exchange
from unjam.gateway.runs_control import RunsControl
from unjam.kept.base import KeptError
from unjam.telemetry.collector import Collector

if TYPE_CHECKING:
    from unjam.gateway.server import Server

#: Of so many services or versions all names are told to who asked for another.
FEW = 10


class Control:
    """The admin's view of one `Server`; see `unjam.admin` for the routes it answers."""

    __slots__ = ("_server",)

    def __init__(self, server: Server) -> None:
        self._server = server

    def snapshot(self) -> dict[str, Any]:
        found = self._server.gateway.balancer.snapshot(monotonic())
        for name, rollout in self._server.rollouts.status().items():
            found["services"][name]["rollout"] = rollout
        durable = self._server.durable
        if durable is not None and durable.stats.away:
            found["store_away"] = durable.store.why_away
        return found

    def metrics(self) -> Collector:
        durable = self._server.durable
        runs = None if durable is None else durable.figures()
        return Collector(self._server.gateway.stats, self.snapshot(), runs)

    def runs(self) -> RunsControl:
        durable = self._server.durable
        if durable is None:
            raise ControlRefused("runs_off", "This gateway has no durable runs: its configuration needs runs: on.")
        return RunsControl(durable)

    def ready(self) -> tuple[bool, str]:
        return self._server.gateway.ready()

    async def drain(self, endpoint_url: str, draining: bool, who: str) -> dict[str, Any]:
        try:
            before, trouble = await self._server.changes.drain(endpoint_url, draining, who)
        except KeyError:
            message = "No endpoint has this URL, and no worker that asks here has this name: `unjam status` lists them."
            raise ControlRefused("unknown_endpoint", message, 404) from None
        return {"endpoint": endpoint_url, "draining": draining, "before": before, **self._held(trouble)}

    async def set_weights(self, service: str, weights: Mapping[str, float], who: str) -> dict[str, Any]:
        try:
            before, trouble = await self._server.changes.set_weights(service, weights, who)
        except KeyError:
            raise self._unknown(service, *weights) from None
        return {"service": service, "weights": dict(weights), "before": before, **self._held(trouble)}

    async def breaker(self, service: str, version: str, action: str, who: str) -> dict[str, Any]:
        try:
            before, after, trouble = await self._server.changes.breaker(service, version, action, who)
        except KeyError:
            raise self._unknown(service, version) from None
        return {"service": service, "version": version, "breaker": after, "before": before, **self._held(trouble)}

    async def audit(self, limit: int, before: int | None, key: str | None) -> Rows:
        try:
            changes = await self._server.changes.history(limit, before, key)
        except (KeptError, TimeoutError) as error:
            why = str(error) or "it doesn't answer"
            raise ControlRefused("store_away", f"The audit log can't be read now: {_ended(why)}", 503) from None
        return [{**msgspec.to_builtins(change), "at": _time(change.at)} for change in changes]

    def rollouts(self) -> Rollouts:
        return self._server.rollouts

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

    def _unknown(self, service: str, *asked: str) -> ControlRefused:
        """Of a service or version that the balancer doesn't know: which of them, and what there is."""
        services = self._server.gateway.balancer.services
        found = services.get(service)
        if found is None:
            message, there = f"There is no service {service}", list(services)
        else:
            there = [version.name for version in found.versions]
            missing = next((name for name in asked if name not in there), "")
            message = f"{service} has no version {missing}"
        few = f". There are: {', '.join(there)}." if len(there) <= FEW else ": `unjam status` lists them."
        return ControlRefused("unknown_version", f"{message}{few}", 404)

    def _held(self, trouble: str) -> dict[str, Any]:
        """For how long a change holds."""
        if not self._server.changes.lasting:
            return {"kept": False, "holds": "until the next restart"}
        if trouble:
            return {"kept": False, "holds": "here, until the next restart", "warning": f"it is not kept: {trouble}"}
        return {"kept": True, "holds": "over restarts"}


def _ended(words: str) -> str:
    """As the end of a sentence."""
    return words if words.endswith((".", "?", "!")) else f"{words}."


def _time(at: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
