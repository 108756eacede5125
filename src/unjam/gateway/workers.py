"""Workers in the balancer's view: who asks for runs here, what each may have, and a lease for each run that it has.

A run that is claimed through this gateway holds a lease until it ends, however that is heard of: by the worker's own
word, by a sweep, or, where neither came this way, by asking the store once its time is over. Other gateways' workers
and those that speak to the store themselves are known from it, to be shown.

| how the run ended | outcome of the lease |
|---|---|
| completed | `ok` |
| failed with `bad_input`, `bad_request` or `invalid_*` | `client_error` |
| failed otherwise | `server_error` |
| cancelled, handed back | `cancelled` |
| its lease ran out, its deadline passed | `timeout` |
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Hashable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from unjam.core.load import LoadReport
from unjam.core.model import Lease, Outcome
from unjam.core.workers import HAD, Worker
from unjam.gateway.features import size_class
from unjam.gateway.local import Refused
from unjam.runs.machine import ATTEMPTS_EXHAUSTED, CANCELLED, COMPLETED, FAILED, RUNNING, TERMINAL, WORKER_LOST
from unjam.runs.model import Claim, Run, WorkerInfo
from unjam.runs.ready import Waiting
from unjam.runs.store.base import UnknownRun

if TYPE_CHECKING:
    from unjam.core.turns import Turns
    from unjam.gateway.durable import Durable
    from unjam.gateway.runs_shapes import ClaimRun

#: Seconds beyond a lease after which the store is asked what became of the run: its sweep comes first.
LATE: Final = 3.0
#: Seconds for which a worker that was announced is known without another word, and after which it is told again.
KNOWN: Final = 15.0
TOLD: Final = 5.0
#: Seconds that a worker has, after a run, to ask for the next before its version may be taken to be gone.
SOON: Final = 1.0
#: Errors by which a worker says that the run's input is what was wrong.
CLIENT_FAULTS: Final = frozenset({"bad_input", "bad_request"})
CLIENT_FAULT: Final = "invalid_"
#: Beginnings of a refusal in words, and the label under which it is counted.
REASONS: Final = (
    ("full", "slots"),
    ("draining", "draining"),
    ("says it is draining", "draining"),
    ("version has no weight", "weight"),
    (HAD, "share"),
    ("breaker", "breaker"),
    ("no heavy work", "heavy_share"),
    ("no more heavy work", "heavy_share"),
)


class _Error(msgspec.Struct):
    code: str = ""


class Share(NamedTuple):
    """What a claim may ask the store for: runs of these services, of these lanes, that suit the version. `pinned`: only
    those that are its own already."""

    services: tuple[str, ...]
    lanes: tuple[str, ...]
    known: tuple[str, ...]
    pinned: bool = False


class Ask:
    """What a claim may have now. `shares`: to ask the store for, in this order. `refused`: there is nothing to be had,
    or not all; then workers have their `refusal`. `kind`: alike for those who would get the same."""

    __slots__ = ("_turns", "_version", "kind", "refused", "shares")

    def __init__(self, shares: list[Share], kind: Hashable, version: str, turns: dict[tuple[str, str], Turns]) -> None:
        self.shares = shares
        self.kind = kind
        self.refused = not shares or any(share.pinned for share in shares)
        self._version = version
        self._turns = turns

    def begin(self) -> None:
        """The store is being asked: at once, as what it may have is known as of now only. `end` must follow."""
        for turns in self._turns.values():
            turns.begin(self._version)

    def end(self, claim: Claim | None) -> tuple[set[str], set[str]]:
        """What it came to: services of which others can be told now what they may have, and of which those who waited
        for this version to take its turn need not any more."""
        taken = None if claim is None or claim.pinned else (claim.run.service, claim.run.lane)
        freed = set()
        for queue, turns in self._turns.items():
            if turns.end(self._version, began=queue == taken, otherwise=claim is not None):
                freed.add(queue[0])
        return {service for service, _ in self._turns}, freed


class _Grant:
    """`until`: monotonic seconds, when the store is asked what became of it."""

    __slots__ = ("attempt", "fence", "lease", "until")

    def __init__(self, run: Run, lease: Lease, until: float) -> None:
        self.fence = run.fence
        self.attempt = run.attempt
        self.lease = lease
        self.until = until


class Workers:
    """Of one gateway. `name`: who announces them."""

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._core = durable.gateway.balancer.workers
        self._grants: dict[str, _Grant] = {}
        #: What was said of each worker, and when: by name.
        self._told: dict[str, tuple[WorkerInfo, float]] = {}
        self._asked: dict[str, tuple[tuple[str, ...], str | None, float]] = {}
        #: Told of each worker that comes into view here, and of each that leaves it.
        self.on_joined: Callable[[Worker], None] = lambda worker: None
        self.on_left: Callable[[Worker], None] = lambda worker: None
        #: Claims that wait for what another comes to, by service.
        self.crossed = Waiting()
        self.name = f"gateway:{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"

    # -- claims ------------------------------------------------------------------------------------------------------

    def hear(self, asked: ClaimRun) -> list[Worker]:
        """A claim came in: the worker as each service has it. Raises `Refused` for a version that a service doesn't
        have."""
        now = monotonic()
        services = self._durable.gateway.balancer.services
        found = []
        for name in asked.services:
            before = self._core.seen.get((name, asked.worker))
            try:
                worker = self._core.hear(
                    services[name], asked.version, asked.worker, asked.slots, now, asked.running, tuple(asked.lanes)
                )
            except KeyError:
                raise Refused(404, "unknown_version", "The service has no version of this name.") from None
            found.append(worker)
            if worker is not before:
                self.on_joined(worker)
            if asked.load is not None:
                self._core.report(worker, LoadReport(**msgspec.structs.asdict(asked.load), source="worker"), now)
        known = self._asked.get(asked.worker)
        self._asked[asked.worker] = tuple(asked.services), asked.version, known[2] if known is not None else time()
        return found

    @property
    def silence(self) -> float:
        """Seconds without a word after which no version waits for a worker: owners give a sign of life in less."""
        return self._durable.limits.lease / 2

    def ask(self, asked: ClaimRun, workers: Sequence[Worker]) -> Ask | None:
        """What it may have now; what is alike is asked for at once. None: that depends on what another's claim comes
        to, which is on its way: ask again when `crossed` tells."""
        now = monotonic()
        found: dict[tuple[bool, tuple[str, ...], tuple[str, ...]], list[str]] = {}
        kind = []
        turns = {}
        for worker in workers:
            service = worker.pool.version.service
            lanes = self._core.lanes(worker, asked.lanes, now)
            if not lanes:
                continue
            free, held, known = lanes, tuple[str, ...](), tuple[str, ...]()
            if asked.version is not None:
                # Those of a version that gets no work at all would wait for ever.
                known = tuple(version.name for version in service.versions if version.weight > 0.0)
                if len(known) > 1:
                    division = self._core.divide(worker, lanes, now, self.silence)
                    if division is None:
                        return None
                    free, held = division.free, division.held
                    for lane, of in division.turns.items():
                        turns[service.name, lane] = of
            kind.append((service.name, lanes, known))
            if held:
                found.setdefault((True, held, known), []).append(service.name)
            if free:
                found.setdefault((False, free, known), []).append(service.name)
        # What is the version's own first: it has begun.
        ordered = sorted(found.items(), key=lambda each: not each[0][0])
        shares = [Share(tuple(names), lanes, known, pinned) for (pinned, lanes, known), names in ordered]
        return Ask(shares, (asked.version, tuple(kind)), asked.version or "", turns)

    def turned_away(self, workers: Sequence[Worker]) -> None:
        """A claim was given nothing for what the workers' `refusal` says. Once for each claim."""
        refused = self._durable.stats.claims_refused
        for worker in workers:
            if not worker.refusal:
                continue
            worker.turned_away += 1
            reason = next((label for words, label in REASONS if worker.refusal.startswith(words)), "unusable")
            key = worker.pool.version.service.name, reason
            refused[key] = refused.get(key, 0) + 1

    def holding(self, workers: Sequence[Worker], step: int) -> None:
        """A claim of these workers is held open (1), or is no more (-1)."""
        now = monotonic()
        for worker in workers:
            worker.claiming += step
            worker.seen = worker.asked = now

    def begin(self, claim: Claim, workers: Sequence[Worker]) -> None:
        """A run was claimed: it holds a slot of its worker from now on."""
        run = claim.run
        now = monotonic()
        worker = next(each for each in workers if each.pool.version.service.name == run.service)
        self._end(run.id, Outcome.TIMEOUT, now)  # of an owner before, if it was here
        worker.running = min(worker.running + 1, max(worker.slots, worker.running))
        worker.refusal = ""
        lease = self._core.start(worker, f"RUN s{size_class(len(claim.input))}", run.lane, run.tenant, now)
        self._grants[run.id] = _Grant(run, lease, now + self._durable.limits.lease + LATE)

    # -- signs of life -----------------------------------------------------------------------------------------------

    def sign(self, run: str, fence: int) -> bool:
        """The worker of a run was heard of. False: that it has this run isn't known here."""
        grant = self._grants.get(run)
        if grant is None or grant.fence != fence:
            return False
        now = monotonic()
        grant.until = now + self._durable.limits.lease + LATE
        worker = grant.lease.endpoint
        assert isinstance(worker, Worker)
        worker.seen = now
        return True

    async def adopt(self, run_id: str, fence: int) -> None:
        """A sign of life for a run that was claimed elsewhere, or before this gateway was started: its worker is here.
        What it tells with its next claim counts from then on. Raises StoreError."""
        run = await self._durable.store.get(run_id)
        service = self._durable.gateway.balancer.services.get(run.service)
        if service is None or run.status != RUNNING or run.fence != fence or not run.worker or run_id in self._grants:
            return
        now = monotonic()
        known = self._core.seen.get((run.service, run.worker))
        version = run.version if any(each.name == run.version for each in service.versions) else None
        if known is None:
            known = self._core.hear(service, version, run.worker, 1, now)
            self.on_joined(known)
            self._asked.setdefault(run.worker, ((run.service,), version, time()))
        elif known.inflight >= known.slots:
            self._core.hear(service, known.pool.version.name, run.worker, known.inflight + 1, now)
        lease = self._core.start(known, f"RUN s{size_class(None)}", run.lane, run.tenant, now)
        self._grants[run_id] = _Grant(run, lease, now + self._durable.limits.lease + LATE)

    def ended(self, run: Run, finished: bool = False) -> None:
        """The run has ended: by its worker's word (`finished`), a hand-back or a sweep."""
        grant = self._grants.get(run.id)
        if grant is not None:
            now = monotonic()
            if finished:
                # However long it ran, its version is there: it would lose its turn, or get one too many, in between.
                worker = grant.lease.endpoint
                assert isinstance(worker, Worker)
                worker.asked = max(worker.asked, now - self.silence + min(SOON, self.silence))
            self._end(run.id, outcome_of(run, grant.attempt, grant.fence), now)

    def lost(self, run: str, fence: int) -> None:
        """A call about it was refused: ask soon what became of it."""
        grant = self._grants.get(run)
        if grant is not None and grant.fence == fence:
            grant.until = 0.0

    async def look(self) -> None:
        """Every second: leases of which nothing was heard in their time, workers of which nothing was, and who waited
        for them. Raises StoreAway."""
        now = monotonic()
        for service in self._core.stirred(self._durable.gateway.balancer.services, now, self.silence):
            self._durable.ready.pass_on(service)
        for run_id, grant in [each for each in self._grants.items() if each[1].until <= now]:
            try:
                run = await self._durable.store.get(run_id)
            except UnknownRun:
                outcome = Outcome.CANCELLED
            else:
                if run.status == RUNNING and run.fence == grant.fence:  # its signs of life come by another gateway
                    grant.until = monotonic() + self._durable.limits.lease
                    continue
                outcome = outcome_of(run, grant.attempt, grant.fence)
            if self._grants.get(run_id) is grant:
                self._end(run_id, outcome, monotonic())
        for worker in self._core.forget(now - self._durable.limits.lease, now):
            self.on_left(worker)
            if not self._core.named(worker.name):
                self._asked.pop(worker.name, None)

    def _end(self, run: str, outcome: Outcome, now: float) -> None:
        """End a lease; call it once for each."""
        grant = self._grants.pop(run, None)
        if grant is None:
            return
        lease = grant.lease
        worker = lease.endpoint
        assert isinstance(worker, Worker)
        worker.running = max(0, worker.running - 1)
        gateway = self._durable.gateway
        gateway.stats.service(lease.service.name).finished(lease.heavy, outcome, now - lease.started, 0.0, -1.0)
        gateway.finish(lease, outcome, now)

    # -- other gateways ----------------------------------------------------------------------------------------------

    async def exchange(self) -> None:
        """Every two seconds: tell the store who is here, and hear who is elsewhere. Raises StoreError."""
        store = self._durable.store
        now = monotonic()
        for name, (services, version, since) in list(self._asked.items()):
            info = self._info(name, services, version, since)
            told, at = self._told.get(name, (None, 0.0))
            if told is None or now - at >= TOLD or (told.running, told.slots) != (info.running, info.slots):
                self._told[name] = info, now
                await store.announce(info, KNOWN)
        for name in [name for name in self._told if name not in self._asked]:
            info, _ = self._told.pop(name)
            await store.announce(info, 0)
        entries = [
            (service, info.version, _entry(info))
            for info in await store.workers()
            if info.via != self.name
            for service in info.services
        ]
        self._core.show_elsewhere(self._durable.gateway.balancer.services, entries)

    def _info(self, name: str, services: tuple[str, ...], version: str | None, since: float) -> WorkerInfo:
        here = self._core.named(name)
        load: dict[str, float] = {}
        if here and here[0].heard is not None:
            for word in here[0].heard.sources.values():
                load.update({k: v for k, v in word.report.known().items() if isinstance(v, int | float)})
        return WorkerInfo(
            id=name,
            services=services,
            version=version,
            slots=max((worker.slots for worker in here), default=1),
            running=max((worker.taken for worker in here), default=0),
            load=load or None,
            via=self.name,
            started=since,
            at=time(),
        )


def outcome_of(run: Run, attempt: int, fence: int) -> Outcome:
    """How the lease of a run ended that was claimed with `attempt` and `fence`, by how the run stands."""
    if run.status == COMPLETED:
        return Outcome.OK
    if run.status == CANCELLED:
        return Outcome.CANCELLED
    if run.status == FAILED:
        try:
            code = msgspec.json.decode(run.error or b"{}", type=_Error).code
        except msgspec.DecodeError:
            code = ""
        if code in (WORKER_LOST, ATTEMPTS_EXHAUSTED):
            return Outcome.TIMEOUT
        client = code in CLIENT_FAULTS or code.startswith(CLIENT_FAULT)
        return Outcome.CLIENT_ERROR if client else Outcome.SERVER_ERROR
    if run.status not in TERMINAL and run.attempt - attempt < run.fence - fence:
        return Outcome.CANCELLED  # handed back: no attempt was charged for it
    return Outcome.TIMEOUT


def _entry(info: WorkerInfo) -> dict[str, Any]:
    """As a snapshot has one that isn't heard of here."""
    direct = info.via == "direct"
    load = None
    seen = max(0.0, time() - info.at)
    if info.load:
        load = {"sources": {"worker": {"age": seen, **info.load}}}
    return {
        "name": info.id,
        "kind": "worker",
        "url": info.id,
        "slots": info.slots,
        "slots_from": "configured",
        "inflight": info.running,
        "taken": info.running,
        "seen": seen,
        "load": load,
        "via": "the store" if direct else info.via,
        "why": ["asks the store itself" if direct else "asks another gateway"],
    }


__all__ = ["Share", "Workers", "outcome_of"]
