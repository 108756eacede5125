"""What an operator sees: everything the balancer knows, as JSON values, with a word on why each endpoint gets work or
not."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from unjam.core.endpoint import UNIT

if TYPE_CHECKING:
    from unjam.core.balancer import Balancer
    from unjam.core.endpoint import Endpoint
    from unjam.core.estimator import Bucket
    from unjam.core.service import Service, Version

#: Buckets shown per service: those with the most observations.
BUCKETS: Final = 20
#: Leases shown per service: those that have run the longest.
OLDEST: Final = 10


def snapshot(balancer: Balancer, now: float) -> dict[str, Any]:
    return {
        "leases": balancer.leases,
        "services": {name: _service(service, now) for name, service in balancer.services.items()},
        "regions": {
            name: {
                "headroom": region.headroom(now),
                "tokens_left": region.left(now)[0],
                "requests_left": region.left(now)[1],
                "blocked_for": max(0.0, region.blocked - now),
            }
            for name, region in balancer.regions.items()
        },
    }


def why(endpoint: Endpoint, now: float) -> list[str]:
    """In words: the reasons for which it gets nothing, or less than others, or that it is open."""
    version = endpoint.pool.version
    words = []
    if endpoint.removed:
        words.append("removed")
    elif endpoint.draining:
        words.append("draining")
    if not endpoint.healthy:
        words.append("unhealthy")
    if endpoint.ejected_until:
        words.append(f"ejected for {max(0.0, endpoint.ejected_until - now):.0f} s more")
    if endpoint.avail <= 0.0:
        words.append("weight 0" if endpoint.spec.weight <= 0.0 else "memory short")
    if version.weight <= 0.0:
        words.append("version has no weight")
    elif version.share <= 0.0:
        words.append("breaker open")
    elif version.share < 1.0:
        words.append(f"breaker ramping at {version.share:.0%}")
    if endpoint.inflight >= endpoint.slots:
        words.append("full")
    elif not endpoint.takes_heavy() or (
        version.heavy_most is not None
        and (version.burden + UNIT > version.heavy_most or version.heavy >= version.heavy_crowd)
    ):
        words.append("no more heavy work")
    if endpoint.region is not None and endpoint.region.headroom(now) <= 0.0:
        words.append("region out of quota")
    if endpoint.warm_from is not None:
        words.append("warming up")
    if endpoint.handicap:
        words.append("failed lately")
    if endpoint.usable and not endpoint.well:
        words.append("used all the same: too few are healthy")
    return words or ["open"]


def _service(service: Service, now: float) -> dict[str, Any]:
    buckets = sorted(service.estimator, key=lambda bucket: (-bucket.weight, bucket.features))
    return {
        "policy": service.spec.policy,
        "offered": service.offered,
        "dispatched": service.dispatched,
        "withdrawn": service.withdrawn,
        "promoted": service.promoted,
        "refused": {reason.value: count for reason, count in service.refused.items() if count},
        "ended": {outcome.value: count for outcome, count in service.ended.items() if count},
        "running": _running(service),
        "queue": {
            "fast": sum(_fast_waiting(version) for version in service.versions),
            "heavy": sum(_heavy_waiting(version) for version in service.versions),
            "max": service.spec.queue.max,
            "tenants": len(service.waiting.tenants),
        },
        "sessions": None if service.sessions is None else len(service.sessions),
        "fallback": [other.name for other in service.chain],
        "versions": {version.name: _version(version, now) for version in service.versions},
        "buckets": [_bucket(bucket) for bucket in buckets[:BUCKETS]],
        "oldest": [
            {
                "endpoint": lease.endpoint.name,
                "version": lease.version.name,
                "lane": lease.lane,
                "tenant": lease.request.tenant,
                "bucket": lease.bucket.features,
                "age": now - lease.started,
                "expected": lease.expected,
            }
            for lease in sorted(
                [*islice(service.young, OLDEST), *islice(service.overdue, OLDEST)], key=lambda lease: lease.started
            )[:OLDEST]
        ],
    }


def _version(version: Version, now: float) -> dict[str, Any]:
    breaker = version.breaker
    return {
        "weight": version.weight,
        "share": version.service.picker.shares().get(version.name, 0.0),
        "breaker": {
            "state": breaker.state,
            "share": version.share,
            "evidence": breaker.evidence,
            "why": breaker.why,
            "opens_for": max(0.0, breaker.until - now) if breaker.state == "open" else 0.0,
            "trips": breaker.trips,
        },
        "panic": version.panic,
        "heavy": version.heavy,
        "heavy_cap": version.heavy_cap,
        "slots": version.slots,
        "queue": {"fast": _fast_waiting(version), "heavy": _heavy_waiting(version)},
        "endpoints": [_endpoint(endpoint, now) for endpoint in version.endpoints.values()],
    }


def _endpoint(endpoint: Endpoint, now: float) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "url": endpoint.url,
        "region": endpoint.region.spec.name if endpoint.region is not None else None,
        "slots": endpoint.slots,
        "inflight": endpoint.inflight,
        "heavy": endpoint.heavy,
        "avail": endpoint.avail,
        "stretch": endpoint.stretch(),
        "healthy": endpoint.healthy,
        "ejected": bool(endpoint.ejected_until),
        "draining": endpoint.draining,
        "served": endpoint.served,
        "failed": endpoint.failed,
        "why": why(endpoint, now),
    }


def _running(service: Service) -> dict[str, int]:
    heavy = sum(version.heavy for version in service.versions)
    return {"fast": service.live - heavy, "heavy": heavy}


def _bucket(bucket: Bucket) -> dict[str, Any]:
    return {
        "features": bucket.features,
        "lane": "heavy" if bucket.heavy else "fast",
        "weight": bucket.weight,
        "p50": bucket.p50,
        "p90": bucket.p90,
        "mean": bucket.mean,
        "tokens_p90": bucket.tokens_p90,
    }


def _fast_waiting(version: Version) -> int:
    return version.queue.fast.waiting + sum(not ticket.heavy for ticket in version.queue.picky)


def _heavy_waiting(version: Version) -> int:
    return version.queue.heavy.waiting + sum(ticket.heavy for ticket in version.queue.picky)
