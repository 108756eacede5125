"""What an operator sees: everything the balancer knows, as JSON values, with a word on why each endpoint gets work or
not."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from unjam.core.endpoint import CACHE_FULL, UNIT
from unjam.core.load import FRESH, READY, REPORT_LIFE
from unjam.core.sizing import GIB, MEMORY_SHORT, MIB

if TYPE_CHECKING:
    from unjam.core.balancer import Balancer
    from unjam.core.endpoint import Endpoint
    from unjam.core.estimator import Bucket
    from unjam.core.service import Service, Version
    from unjam.core.workers import Crew, Worker

#: Buckets shown per service: those with the most observations.
BUCKETS: Final = 20
#: A smaller share of the processor used by others is not worth a word.
WORTH_SAYING: Final = 0.1
#: Leases shown per service: those that have run the longest.
OLDEST: Final = 10
#: `Endpoint.kind` of what claims runs.
WORKER: Final = "worker"


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
    version = endpoint.pool.version.original
    words = []
    if endpoint.removed:
        words.append("removed")
    elif endpoint.drained:
        words.append("draining")
    if endpoint.load_state != READY:
        words.append(f"says it is {endpoint.load_state}")
    if endpoint.silent:
        words.append("its reporter is silent")
    if not endpoint.healthy:
        words.append("unhealthy")
    if endpoint.ejected_until:
        left = f"ejected for {max(0.0, endpoint.ejected_until - now):.0f} s more"
        words.append(f"{left}: {endpoint.ejected_for}" if endpoint.ejected_for else left)
    if endpoint.avail <= 0.0:
        words.append(_nothing_available(endpoint, now))
    if version.weight <= 0.0:
        words.append("version has no weight")
    elif version.down and endpoint.kind == WORKER:
        pass  # nothing can be sent to its version, but it is sent nothing
    elif version.share <= 0.0:
        words.append("breaker open")
    elif version.share < 1.0:
        words.append(f"breaker ramping at {version.share:.0%}")
    words += _heavy_words(endpoint, now)
    if endpoint.region is not None and endpoint.region.headroom(now) <= 0.0:
        words.append("region out of quota")
    if endpoint.warm_from is not None:
        words.append("warming up")
    if endpoint.handicap:
        words.append("failed lately")
    if endpoint.usable and not endpoint.well:
        words.append("used all the same: too few are healthy")
    heard = endpoint.heard
    if heard is not None:
        if heard.problem:
            words.append(f"reports refused: {heard.problem}")
        elif now - heard.too_late_at < REPORT_LIFE:
            words.append("reports come too late to count")
        elif not heard.sources and heard.accepted:
            words.append(f"no report for {now - heard.last_at:.0f} s")
        elif heard.sources and (age := now - heard.at) > FRESH:
            words.append(f"report {age:.0f} s old")
    return words or ["open"]


def _nothing_available(endpoint: Endpoint, now: float) -> str:
    if endpoint.given.weight <= 0.0:
        return "weight 0"
    heard = endpoint.heard
    free = heard.latest("memory_free", now) if heard is not None else None
    if free is not None and endpoint.spec.memory and free < MEMORY_SHORT * endpoint.spec.memory:
        return f"memory short: {_size(free)} free"
    return "asks for no work"


def _heavy_words(endpoint: Endpoint, now: float) -> list[str]:
    """What keeps heavy work, or some of the work, away."""
    version = endpoint.pool.version
    heard = endpoint.heard
    other = heard.others_now(now) if heard is not None else 0.0
    if endpoint.inflight >= endpoint.slots:
        return ["full", *_beside(other)]
    if endpoint.barred:
        return [f"no heavy work: others use {other * 100:.0f} % of its CPU"]
    if heard is not None and endpoint.heavy >= endpoint.room:
        cache = heard.latest("cache", now)
        if cache is not None and cache >= CACHE_FULL:
            return [f"no heavy work: its cache is {cache * 100:.0f} % full", *_beside(other)]
        free = heard.latest("memory_free", now) or 0
        need = version.heavy_need.of(endpoint.spec.memory or 0, now)
        return [f"no heavy work: {_size(free)} free, one needs {_size(need)}", *_beside(other)]
    if not endpoint.takes_heavy() or (
        version.heavy_most is not None
        and (version.burden + UNIT > version.heavy_most or version.heavy >= version.heavy_crowd)
    ):
        return ["no more heavy work", *_beside(other)]
    return _beside(other)


def _beside(other: float) -> list[str]:
    return [f"others use {other * 100:.0f} % of its CPU"] if other >= WORTH_SAYING else []


def _size(count: float) -> str:
    """A number of bytes for people to read."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


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
        "overflowed": version.overflowed,
        "share": version.service.picker.shares().get(version.name, 0.0),
        "breaker": {
            "state": breaker.state,
            "share": version.share,
            "rule": breaker.spec.rule if breaker.spec.enabled else "off",
            "evidence": breaker.evidence,
            "trips_at": breaker.limit,
            "quality_evidence": breaker.quality_evidence,
            "quality_trips_at": breaker.quality_limit,
            "baseline": breaker.baseline,
            "learnt": breaker.learnt,
            "why": breaker.why,
            "opens_for": max(0.0, breaker.until - now) if breaker.state == "open" else 0.0,
            "trips": breaker.trips,
        },
        **version.counts._asdict(),
        "panic": version.panic,
        "heavy": version.heavy,
        "heavy_cap": version.heavy_cap,
        "slots": version.slots,
        "queue": {"fast": _fast_waiting(version), "heavy": _heavy_waiting(version)},
        "endpoints": [_endpoint(endpoint, now) for endpoint in version.endpoints.values()],
        "workers": [] if version.crew is None else _workers(version.crew, now),
    }


def _workers(crew: Crew, now: float) -> list[dict[str, Any]]:
    """Workers that are heard of here, and those that other gateways know of."""
    return [*(_worker(worker, now) for worker in crew.workers()), *crew.elsewhere.values()]


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    """As an endpoint, and: `taken`, slots that are by its own account too; `claiming`, claims of it that are held;
    `seen`, seconds since it was heard of; `turned_away`, claims that got nothing for the reason `refusal`; `via`, who
    knows of it, empty for this gateway."""
    entry = _endpoint(worker, now)
    if worker.refusal and worker.refusal not in entry["why"]:
        entry["why"] = [word for word in entry["why"] if word != "open"] + [worker.refusal]
    elif worker.taken >= worker.slots and "full" not in entry["why"]:
        entry["why"] = [word for word in entry["why"] if word != "open"] + ["full"]
    return {
        **entry,
        "taken": worker.taken,
        "claiming": worker.claiming,
        "seen": max(0.0, now - worker.seen),
        "turned_away": worker.turned_away,
        "refusal": worker.refusal,
        "via": "",
    }


def _endpoint(endpoint: Endpoint, now: float) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "kind": endpoint.kind,
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
        "discovered": endpoint.discovered,
        "cores": endpoint.spec.cores,
        "memory": endpoint.spec.memory,
        "slots_from": _slots_from(endpoint),
        "other_cpu": endpoint.heard.others_now(now) if endpoint.heard is not None else 0.0,
        "load": _load(endpoint, now),
        "served": endpoint.served,
        "failed": endpoint.failed,
        "why": why(endpoint, now),
    }


def _slots_from(endpoint: Endpoint) -> str:
    spec = endpoint.spec
    base = spec.hard_slots
    if endpoint.slots != base:
        return "adapted"
    if endpoint.given.slots is not None:
        return "configured"
    if not spec.cores:
        return "unknown"
    return "memory" if base < round(2 * spec.cores) else "cores"


def _load(endpoint: Endpoint, now: float) -> dict[str, Any] | None:
    heard = endpoint.heard
    if heard is None:
        return None
    need = endpoint.pool.version.heavy_need
    return {
        "sources": {
            source: {"age": max(0.0, now - at), **report.known()} for source, (report, at) in heard.sources.items()
        },
        "accepted": heard.accepted,
        "refused": heard.refused,
        "late": heard.late,
        "problem": heard.problem,
        "trust": heard.trust(now),
        "heavy_memory": round(need.now(now)) if need.bytes else None,
    }


def _running(service: Service) -> dict[str, int]:
    heavy = sum(version.heavy + (version.crew.heavy if version.crew is not None else 0) for version in service.versions)
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
