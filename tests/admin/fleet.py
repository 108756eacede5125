"""A gateway that is not there: what the admin tests control and look at."""

from __future__ import annotations

from typing import Any

from unjam.admin.control import ControlRefused, Runs
from unjam.telemetry.collector import Collector
from unjam.telemetry.metrics import GatewayStats

URL = "http://10.0.0.1:9000"


class Fleet:
    """Implements `admin.control.Control`."""

    def __init__(self) -> None:
        self.stats = GatewayStats()
        self.stats.service("auditor")
        self.why = ""
        self.problems: list[str] = []
        self.reloads = 0
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

    def drain(self, endpoint_url: str, draining: bool) -> bool:
        self._maybe_refuse()
        found = [e for v in self._versions() for e in v["endpoints"] if e["name"] == endpoint_url]
        for one in found:
            one["draining"] = draining
        return bool(found)

    def set_weight(self, service: str, version: str, weight: float) -> bool:
        self._maybe_refuse()
        found = self._version(service, version)
        if found is not None:
            found["weight"] = weight
        return found is not None

    def breaker(self, service: str, version: str, action: str) -> bool:
        self._maybe_refuse()
        found = self._version(service, version)
        if found is not None:
            found["breaker"] = {"trip": {"state": "open", "share": 0.0}, "reset": {"state": "closed", "share": 1.0}}[
                action
            ]
        return found is not None

    async def reload(self) -> list[str]:
        self.reloads += 1
        return self.problems

    def _versions(self) -> list[dict[str, Any]]:
        return [v for s in self.state["services"].values() for v in s["versions"].values()]

    def _version(self, service: str, version: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.state["services"].get(service, {}).get("versions", {}).get(version)
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
