"""A gateway that is not there: what the admin tests control and look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unjam.admin.control import ControlRefused, Rollouts, Runs
from unjam.telemetry.collector import Collector
from unjam.telemetry.metrics import GatewayStats

URL = "http://10.0.0.1:9000"
KEPT = {"kept": True, "holds": "over restarts"}


class Rolled:
    """Implements `admin.control.Rollouts`: `did` is what it was told to do."""

    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []

    def status(self) -> dict[str, dict[str, Any]]:
        return {"auditor": {"version": "v8", "share": 0.1}}

    async def start(self, service: str, version: str | None, who: str) -> dict[str, Any]:
        return self._do("start", service, version, who)

    async def pause(self, service: str, who: str) -> dict[str, Any]:
        return self._do("pause", service, None, who)

    async def resume(self, service: str, who: str) -> dict[str, Any]:
        return self._do("resume", service, None, who)

    async def promote(self, service: str, who: str) -> dict[str, Any]:
        return self._do("promote", service, None, who)

    async def abort(self, service: str, who: str) -> dict[str, Any]:
        return self._do("abort", service, None, who)

    def _do(self, *what: Any) -> dict[str, Any]:
        self.did.append(what)
        return {"share": 0.5}


class Fleet:
    """Implements `admin.control.Control`."""

    def __init__(self) -> None:
        self.stats = GatewayStats()
        self.stats.service("auditor")
        self.why = ""
        self.problems: list[str] = []
        self.reloads = 0
        self.changes: list[tuple[str, str, dict[str, float]]] = []
        self.rolled: Rolled | None = None
        self.refuse: ControlRefused | None = None
        self.break_with: Exception | None = None
        self.state: dict[str, Any] = {
            "leases": 4,
            "services": {
                "auditor": {
                    "policy": "least_loaded",
                    "queue": {"fast": 0, "heavy": 3, "max": 1000, "tenants": 1},
                    "versions": {
                        "v7": {
                            "weight": 90.0,
                            "breaker": {"state": "closed", "share": 1.0},
                            "endpoints": [
                                endpoint(URL),
                                endpoint("http://10.0.0.2:9000", healthy=False, why=["unhealthy"]),
                            ],
                        },
                        "v8": {
                            "weight": 10.0,
                            "breaker": {"state": "open", "share": 0.0, "why": "error rate 31 %"},
                            "endpoints": [
                                endpoint("http://10.0.0.3:9000", inflight=8, heavy=2, why=["breaker open", "full"])
                            ],
                        },
                    },
                }
            },
            "regions": {"us-east-1": {"headroom": 0.4}},
        }

    def snapshot(self) -> dict[str, Any]:
        if self.break_with is not None:
            raise self.break_with
        return self.state

    def metrics(self) -> Collector:
        return Collector(self.stats, self.state)

    def runs(self) -> Runs:
        raise ControlRefused("runs_off", "This gateway has no durable runs.")

    def ready(self) -> tuple[bool, str]:
        return not self.why, self.why

    def active(self, limit: int) -> list[dict[str, Any]]:
        running = {"request_id": "r1", "service": "auditor", "version": "v7", "endpoint": URL, "lane": "heavy"}
        return [{**running, "tenant": "acme", "age_s": 61.5, "state": "running"}] * min(limit, 3)

    async def drain(self, endpoint_url: str, draining: bool, who: str) -> dict[str, Any]:
        self._maybe_refuse()
        found = [e for v in self._versions() for e in v["endpoints"] if e["name"] == endpoint_url]
        if not found:
            raise ControlRefused("unknown_endpoint", "No endpoint has this URL. GET /api/state lists them.", 404)
        before = found[0]["draining"]
        for one in found:
            one["draining"] = draining
        return {"endpoint": endpoint_url, "draining": draining, "before": before, **KEPT}

    async def set_weights(self, service: str, weights: Mapping[str, float], who: str) -> dict[str, Any]:
        self._maybe_refuse()
        found = {version: self._version(service, version) for version in weights}
        before = {version: one["weight"] for version, one in found.items()}
        for version, one in found.items():
            one["weight"] = weights[version]
        self.changes.append((who, service, dict(weights)))
        return {"service": service, "weights": dict(weights), "before": before, **KEPT}

    async def breaker(self, service: str, version: str, action: str, who: str) -> dict[str, Any]:
        self._maybe_refuse()
        found = self._version(service, version)
        before = found["breaker"]["state"]
        after = {"trip": {"state": "open", "share": 0.0}, "reset": {"state": "closed", "share": 1.0}}[action]
        found["breaker"] = after
        return {"service": service, "version": version, "breaker": after["state"], "before": before, **KEPT}

    async def audit(self, limit: int, before: int | None, key: str | None) -> list[dict[str, Any]]:
        return [{"n": n, "key": key, "before": before} for n in range(20, 20 - min(limit, 3), -1)]

    def rollouts(self) -> Rollouts:
        if self.rolled is None:
            raise ControlRefused("rollouts_off", "No service has a rollout.")
        return self.rolled

    async def reload(self) -> list[str]:
        self.reloads += 1
        return self.problems

    def _versions(self) -> list[dict[str, Any]]:
        return [v for s in self.state["services"].values() for v in s["versions"].values()]

    def _version(self, service: str, version: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self.state["services"].get(service, {}).get("versions", {}).get(version)
        if found is None:
            raise ControlRefused("unknown_version", "There is no such service or version: GET /api/state.", 404)
        return found

    def _maybe_refuse(self) -> None:
        if self.refuse is not None:
            raise self.refuse


def endpoint(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "url": name,
        "region": None,
        "slots": 8,
        "inflight": 2,
        "heavy": 1,
        "avail": 8.0,
        "healthy": True,
        "ejected": False,
        "draining": False,
        "why": ["open"],
        **changes,
    }
