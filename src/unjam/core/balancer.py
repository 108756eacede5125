"""The pipeline: match → lane → session → version → region → endpoint → admission → lease → outcome.

Pure: `now` (monotonic seconds) and chance are arguments; nothing here waits, sends or reads a clock. Decisions are
returned and the shell carries them out. Every request offered becomes exactly one lease, ticket or refusal; every
ticket becomes one lease or refusal, or is cancelled; every lease ends once. A slot that is free and fits is never left
beside one that waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from unjam.core import blame, lanes, overflow, refusals
from unjam.core.endpoint import Endpoint, LeaseEnded
from unjam.core.health import Health
from unjam.core.load import LoadReport
from unjam.core.match import Matcher
from unjam.core.model import FAILURES, Lease, Outcome, Reason, Refusal, Request, Ticket
from unjam.core.operations import NOTHING, Operations
from unjam.core.quota import Region, Reservation
from unjam.core.snapshot import snapshot
from unjam.core.target import alive, elsewhere, moves, target
from unjam.core.topology import Applied
from unjam.core.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unjam.core.estimator import Bucket
    from unjam.core.service import Service, Version
    from unjam.core.spec import Topology

__all__ = ["Applied", "Balancer", "LeaseEnded", "LoadReport", "Rng"]

#: How much of the predicted wait must lie before the deadline for a request to be refused at once on its account.
SURE: Final = 0.5
#: Seconds of a request that count for how busy an endpoint was between two reports; longer ones are seen running.
SHORT: Final = 2.0


class Rng(Protocol):
    """Where chance comes from: a `random.Random` with a seed of the caller's."""

    def random(self) -> float: ...


class Balancer(Operations):
    """One per gateway. `services`, `regions`: by name, as configured; read them, change them through the methods.
    `workers`: what claims runs."""

    __slots__ = (
        "_health",
        "_leaving",
        "_matcher",
        "_quota_wait",
        "_reservation",
        "_rng",
        "regions",
        "services",
        "workers",
    )

    def __init__(self, rng: Rng) -> None:
        self.services: dict[str, Service] = {}
        self.regions: dict[str, Region] = {}
        self._rng = rng
        self._health = Health()
        self.workers = Workers(self._health, rng)
        self._matcher = Matcher(())
        #: Removed services on which something still runs.
        self._leaving: list[Service] = []
        # What `_choose` found out beside the endpoint: its claim on a quota, or the seconds until one could be had.
        self._reservation: Reservation | None = None
        self._quota_wait: float | None = None

    # Configuration

    def apply(self, topology: Topology, now: float) -> Applied:
        """Take a new configuration. What waited for versions that are gone, and what fits new endpoints, is dispatched
        by the next tick. Raises ValueError, before anything is changed, for what would break an invariant: names given
        twice, an unknown policy, region or fallback, a fallback that loops."""
        self._leaving = [service for service in self._leaving if service.live]
        applied = self._reload(now).run(topology)
        self.workers.parted(self.services, now)
        self._matcher = Matcher(tuple(self.services.values()))
        return applied

    def match(
        self, host: str, path: str, headers: Callable[[str], str | None], model: str | None = None
    ) -> Service | None:
        """The service for a request, the most specific rule first. `headers` looks one up by lower-case name."""
        return self._matcher.match(host, path, headers, model)

    # Requests

    def offer(self, request: Request, now: float) -> Lease | Ticket | Refusal:
        """Decide on a request, or on another try of one (`request.tried`)."""
        service = request.service
        service.offered += 1
        bucket = service.estimator.bucket(request.bucket, request.seconds_hint, request.lane_hint)
        # The common case, without layers: one version that is up, one pool without quota, no session, nobody waiting.
        version = service.sole
        if version is not None and service.sessions is None and not request.tried:
            pool = version.sole
            if pool is not None and not version.queue.length and (request.deadline is None or request.deadline > now):
                heavy = bucket.heavy
                if not heavy or lanes.fits(version, bucket):
                    policy = pool.policy
                    endpoint = policy.pick(request, heavy, now)
                    if endpoint is not None:
                        lease = Lease(request, service, version, endpoint, bucket, heavy, bucket.predicted, now)
                        endpoint.inflight += 1
                        if heavy:
                            lanes.begin(lease)
                        service.young[lease] = None
                        service.dispatched += 1
                        policy.started(endpoint, heavy)
                        return lease
        return self._route(request, bucket, now)

    def offer_pinned(self, request: Request, now: float) -> Lease | Ticket | Refusal:
        """Decide on a request whose `pin` may name a version: it goes there, whatever its weight, for as long as the
        service has that version; where its breaker is open or no endpoint usable, it is refused."""
        service = request.service
        service.offered += 1
        bucket = service.estimator.bucket(request.bucket, request.seconds_hint, request.lane_hint)
        return self._route(request, bucket, now)

    def finish(
        self, lease: Lease, outcome: Outcome, now: float, *, tokens: int | None = None, connect_failed: bool = False
    ) -> Sequence[Lease]:
        """The lease ended: its slot is free again. Returns the leases of waiting requests that were dispatched by this.
        `tokens`: used, by the provider's own figure. Raises LeaseEnded for a lease that has ended before."""
        if lease.outcome is not None:
            raise LeaseEnded(f"a lease on {lease.endpoint.name} ended twice: {lease.outcome}, then {outcome}")
        lease.outcome = outcome
        service = lease.service
        version = lease.version
        endpoint = lease.endpoint
        endpoint.inflight -= 1
        if lease.heavy:
            lanes.end(lease)
        if lease.overdue:
            del service.overdue[lease]
            lease.bucket.outlived(-1)
        else:
            del service.young[lease]
        seconds = now - lease.started
        endpoint.busy += seconds if seconds < SHORT else SHORT
        if outcome is Outcome.OK:
            version.succeeded += 1
            endpoint.served += 1
            if endpoint.failures:
                endpoint.failures = endpoint.connect_failures = 0
            lease.bucket.observe(seconds)
            if service.times is not None:
                service.times.note(version.name, lease.heavy, seconds)
            breaker = version.breaker
            if breaker.watching:
                breaker.record(False, now, lease.started)
        else:
            self._ended_badly(lease, outcome, seconds, connect_failed, now)
        if lease.reservation is not None or tokens is not None:
            self._settle(lease, tokens, connect_failed, now)
        pool = endpoint.pool
        pool.policy.ended(endpoint, seconds, now)
        if pool.homes is not None:
            pool.homes.ended(endpoint, seconds, now)
        if version.queue.length:
            return self._dispatch(version, now)
        return NOTHING

    def cancel(self, ticket: Ticket, now: float) -> None:
        """The client of a waiting request went away. Does nothing for a ticket that waits no longer."""
        if ticket.live:
            self._unqueue(ticket)
            ticket.request.service.withdrawn += 1

    def may_retry(self, service: Service, now: float) -> bool:
        """Whether the retry budget allows one more try; True spends it."""
        service.note_requests(now)
        return service.retry.take(now)

    def spared(self, request: Request, version: Version, now: float) -> tuple[Endpoint, ...]:
        """`request.tried` for another try that shall not meet `version`; empty when nobody else would take it."""
        before = request.tried
        request.tried = spared = (*before, *version.endpoints.values())
        found = elsewhere(request)
        request.tried = before
        return spared if found or request.service.maintenance is not None else ()

    # Time

    def tick(self, now: float) -> Sequence[Lease | Refusal]:
        """Every 100 ms or so: what time alone brings about. Returns what became of waiting requests."""
        decided: list[Lease | Refusal] = []
        self._health.tick(now)
        for service in self.services.values():
            lanes.promote(service, now)
            service.note_requests(now)
            if service.sessions is not None:
                service.sessions.tick(now)
            for version in service.versions:
                if version.breaker.spec.learn:
                    version.breaker.note(version.good_calls)
                # The last step of a ramp has all of its share, and ends by time too.
                breaker = version.breaker
                if (version.share != 1.0 or not breaker.closed) and version.share != breaker.share(now):
                    service.reweigh(now)
            for version in (*service.parting, *service.versions):
                for ticket in version.queue.expired(now):
                    decided.append(self._expire(ticket, now))
        for service in self.services.values():
            for version in (*service.parting, *service.versions):
                # Nothing may ever stay with a version that is gone, however it got there.
                if version.evict or version.removed:
                    version.evict = False
                    self._evict(version, decided, now)
            service.parting = [version for version in service.parting if version.queue]
        for service in self.services.values():
            for version in service.versions:
                if version.queue:
                    decided.extend(self._dispatch(version, now))
                if version.overflow is not None and version.queue:
                    decided.extend(self._spill(version, now))
        return decided

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything an operator may ask about, as JSON values."""
        return snapshot(self, now)

    @property
    def leases(self) -> int:
        """Requests that run, on removed services too."""
        return sum(service.live for service in (*self.services.values(), *self._leaving))

    # Inside

    def _route(self, request: Request, bucket: Bucket, now: float) -> Lease | Ticket | Refusal:
        """The way of a request that the short cut of `offer` didn't take."""
        service = request.service
        if request.tried:
            service.retried += 1
        if request.deadline is not None and request.deadline <= now:
            return self._refuse(refusals.deadline(request, service))
        version = target(request, bucket.heavy, now)
        if version is None:
            return self._refuse(self._unserved(request, now))
        if version.service is not service:
            bucket = version.service.estimator.bucket(request.bucket, request.seconds_hint, request.lane_hint)
        heavy = bucket.heavy
        queue = version.queue
        self._quota_wait = None
        if request.tried or not ((heavy and queue.heavy.waiting) or queue.fast.waiting):
            endpoint = self._choose(version, request, heavy, bucket, now)
            if endpoint is not None:
                return self._start(version, endpoint, request, bucket, heavy, now)
        if version.overflow is not None and not version.overflow.after and request.pin != version.name:
            own_wait = self._quota_wait
            other = overflow.target(version, request, heavy)
            endpoint = None if other is None else self._choose(other, request, heavy, bucket, now)
            if other is not None and endpoint is not None:
                version.overflowed += 1
                return self._start(other, endpoint, request, bucket, heavy, now)
            # It waits for its own version: what the other's quota lacks doesn't matter.
            self._quota_wait = own_wait
        return self._wait(version, request, bucket, heavy, now)

    def _choose(self, version: Version, request: Request, heavy: bool, bucket: Bucket, now: float) -> Endpoint | None:
        """A free slot for it now, with a claim on the quota of its region. Otherwise `_quota_wait` says for how many
        seconds a quota is what is missing; None: slots are."""
        self._reservation = self._quota_wait = None
        if heavy and not lanes.fits(version, bucket):
            return None
        sessions = version.service.sessions
        home = False
        if sessions is not None and request.session is not None:
            bound = sessions.lookup(request.session, now)
            home = bound is None or not alive(bound, request)
            if (
                bound is not None
                and not home
                and bound.inflight < bound.slots
                and not (heavy and not bound.takes_heavy())
                and bound not in request.tried
                and bound.pool.version is version
                and self._claim(bound.region, request, bucket, now)
            ):
                return bound
        pool = version.sole
        if pool is not None:
            return pool.pick(request, heavy, now, home)
        pools = version.pools
        if len(pools) > 1:
            pools = sorted(pools, key=lambda pool: pool.region.headroom(now) if pool.region else 1.0, reverse=True)
        for pool in pools:
            endpoint = pool.pick(request, heavy, now, home)
            if endpoint is not None and self._claim(pool.region, request, bucket, now):
                return endpoint
        return None

    def _claim(self, region: Region | None, request: Request, bucket: Bucket, now: float) -> bool:
        if region is None:
            return True
        claim = region.reserve(bucket.tokens_p90 if request.tokens is None else request.tokens, now)
        if isinstance(claim, Reservation):
            self._reservation = claim
            self._quota_wait = None
            return True
        self._quota_wait = claim if self._quota_wait is None else min(claim, self._quota_wait)
        return False

    def _start(
        self, version: Version, endpoint: Endpoint, request: Request, bucket: Bucket, heavy: bool, now: float
    ) -> Lease:
        service = version.service
        lease = Lease(request, service, version, endpoint, bucket, heavy, bucket.predicted, now)
        lease.fallback = service is not request.service
        lease.reservation, self._reservation = self._reservation, None
        endpoint.inflight += 1
        if heavy:
            lanes.begin(lease)
        service.young[lease] = None
        request.service.dispatched += 1
        endpoint.pool.started(endpoint, heavy)
        sessions = service.sessions
        if sessions is not None and request.session is not None:
            bound = sessions.lookup(request.session, now)
            if bound is None or moves(bound, endpoint, request):
                sessions.bind(request.session, endpoint, now)
        return lease

    def _wait(self, version: Version, request: Request, bucket: Bucket, heavy: bool, now: float) -> Ticket | Refusal:
        service = version.service
        spec = service.spec.queue
        expires = now + spec.timeout
        if request.deadline is not None and request.deadline < expires:
            expires = request.deadline
            predicted = version.queue.wait(heavy)
            # Only work that is not short goes near the end of the line, which is what is predicted.
            if (
                predicted is not None
                and SURE * predicted > request.deadline - now
                and 2.0 * bucket.predicted >= service.estimator.overall.p50
            ):
                return self._refuse(refusals.deadline(request, service, predicted))
        if self._quota_wait is not None and now + self._quota_wait > expires:
            return self._refuse(refusals.quota(request, service, self._quota_wait))
        reason = service.waiting.refuses(spec, request.tenant)
        if reason is Reason.QUEUE_FULL:
            return self._refuse(refusals.queue_full(request, service, version))
        if reason is not None:
            return self._refuse(refusals.tenant_share(request, service, version))
        ticket = Ticket(request, service, version, bucket, heavy, bucket.predicted, expires)
        ticket.fallback = service is not request.service
        self._enqueue(ticket, now)
        return ticket

    def _enqueue(self, ticket: Ticket, now: float) -> None:
        ticket.version.queue.push(ticket, now)
        ticket.service.waiting.add(ticket.request.tenant)

    def _unqueue(self, ticket: Ticket) -> None:
        ticket.version.queue.drop(ticket)
        ticket.service.waiting.remove(ticket.request.tenant)

    def _dispatch(self, version: Version, now: float) -> Sequence[Lease]:
        """Give free slots to what waits, in order, as far as they go."""
        queue = version.queue
        if not queue or not version.usable or not version.share:
            return NOTHING
        started: list[Lease] = []
        if queue.picky:
            for ticket in list(queue.picky):
                lease = self._serve(ticket, now)
                if lease is not None:
                    started.append(lease)
        timeout = version.service.spec.queue.timeout
        while True:
            for ticket_or_none in queue.heads(now, timeout):
                if ticket_or_none is not None:
                    lease = self._serve(ticket_or_none, now)
                    if lease is not None:
                        started.append(lease)
                        break
            else:
                return started

    def _serve(self, ticket: Ticket, now: float) -> Lease | None:
        version = ticket.version
        endpoint = self._choose(version, ticket.request, ticket.heavy, ticket.bucket, now)
        if endpoint is None:
            return None
        version.queue.take(ticket, now)
        ticket.service.waiting.remove(ticket.request.tenant)
        return self._start(version, endpoint, ticket.request, ticket.bucket, ticket.heavy, now)

    def _spill(self, version: Version, now: float) -> list[Lease]:
        """What has waited too long here goes where there is room for it."""
        started: list[Lease] = []
        for ticket in overflow.overdue(version, now):
            other = overflow.target(version, ticket.request, ticket.heavy)
            if other is None:
                continue
            endpoint = self._choose(other, ticket.request, ticket.heavy, ticket.bucket, now)
            if endpoint is None:
                continue
            self._unqueue(ticket)
            version.overflowed += 1
            started.append(self._start(other, endpoint, ticket.request, ticket.bucket, ticket.heavy, now))
        return started

    def _expire(self, ticket: Ticket, now: float) -> Refusal:
        self._unqueue(ticket)
        request = ticket.request
        if request.deadline is not None and request.deadline <= now:
            return self._refuse(refusals.deadline(request, ticket.service))
        return self._refuse(refusals.queue_timeout(request, ticket.version, ticket.service.spec.queue.timeout))

    def _evict(self, version: Version, decided: list[Lease | Refusal], now: float) -> None:
        """What waits for a version that gets no more work goes elsewhere, if there is an elsewhere."""
        if version.usable and version.weight > 0.0 and version.share > 0.0:
            return
        tickets = version.queue.tickets()
        queue = version.queue = type(version.queue)()
        for ticket in tickets:
            request = ticket.request
            ticket.service.waiting.remove(request.tenant)
            other = target(request, ticket.heavy, now)
            if other is None and not version.removed and request.service.maintenance is None:
                # It may come back before the ticket expires, and there is nothing better.
                queue.push(ticket, now)
                ticket.service.waiting.add(request.tenant)
            elif other is None:
                ticket.live = False
                decided.append(self._refuse(self._unserved(request, now)))
            else:
                self._move(ticket, other, decided, now)

    def _move(self, ticket: Ticket, to: Version, decided: list[Lease | Refusal], now: float) -> None:
        request = ticket.request
        service = to.service
        reason = service.waiting.refuses(service.spec.queue, request.tenant)
        if reason is not None:
            ticket.live = False
            decided.append(self._refuse(refusals.queue_full(request, service, to)))
            return
        ticket.service = service
        ticket.version = to
        ticket.fallback = service is not request.service
        ticket.bucket = service.estimator.bucket(request.bucket, request.seconds_hint, request.lane_hint)
        ticket.heavy = ticket.bucket.heavy
        ticket.expected = ticket.bucket.predicted
        self._enqueue(ticket, now)

    def _unserved(self, request: Request, now: float) -> Refusal:
        service = request.service
        if service.maintenance is not None:
            return refusals.maintenance(request, service.maintenance)
        return refusals.no_endpoint(request, service, now)

    def _refuse(self, refusal: Refusal) -> Refusal:
        refusal.request.service.refused[refusal.reason] += 1
        return refusal

    def _ended_badly(self, lease: Lease, outcome: Outcome, seconds: float, connect_failed: bool, now: float) -> None:
        """Everything but OK. The client's own fault says nothing about the endpoint, but that it answers."""
        endpoint = lease.endpoint
        version = lease.version
        bucket = lease.bucket
        lease.service.unsuccessful[outcome] += 1
        if outcome is Outcome.CLIENT_ERROR:
            endpoint.failures = endpoint.connect_failures = 0
            return
        if outcome is not Outcome.SERVER_ERROR and outcome is not Outcome.REJECTED_QUALITY and seconds > bucket.p50:
            bucket.lower_bound(seconds)
        if outcome not in FAILURES:
            return
        if not endpoint.removed:
            self._health.failed(endpoint, connect_failed, now)
        # That nothing listens there says something about the endpoint; a version none of whose endpoints can be reached
        # is tripped for it.
        if not connect_failed:
            version.failed += 1
            if lease.started >= endpoint.blamed_at:
                blame.failed(self._health, version.original, endpoint, lease.started, now)

    def _settle(self, lease: Lease, tokens: int | None, connect_failed: bool, now: float) -> None:
        if tokens is not None:
            lease.bucket.observe_tokens(tokens)
        reservation = lease.reservation
        if reservation is None:
            return
        if connect_failed:
            reservation.region.release(reservation, now)
        else:
            reservation.region.settle(reservation, tokens, now)
