"""Verdicts on answers: which version gave which answer is remembered for users to judge, and a sample is shown to
evaluators.

A request id is the caller's word, so it is remembered with its tenant: nobody votes on another tenant's request, and of
several with one id the latest counts. Nothing of what was asked or answered is kept for that.
"""

from __future__ import annotations

from collections import deque
from random import Random
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from unjam.config.quality import Quality as Keys
from unjam.core.model import FAILURES, Outcome
from unjam.evaluate.child import Spec
from unjam.evaluate.frames import BAD, GOOD, Said
from unjam.evaluate.panel import Job, Judges, Panel
from unjam.evaluate.record import Record
from unjam.gateway.elsewhere import Elsewhere, Vote
from unjam.gateway.taps import Ends
from unjam.runs.machine import COMPLETED

if TYPE_CHECKING:
    from unjam.config import Config
    from unjam.core.model import Lease
    from unjam.core.service import Version
    from unjam.gateway.exchange import Exchange
    from unjam.gateway.gateway import Gateway
    from unjam.gateway.taps import Tap
    from unjam.kept.others import Others
    from unjam.runs.model import Run
    from unjam.telemetry.metrics import ServiceStats

#: The latest requests that are remembered, at least, and for how many seconds at most.
REMEMBERED: Final = 100_000
KEPT: Final = 86400.0
#: They are forgotten by parts.
PART: Final = 1000
#: Versions that are kept in mind without looking whether anything is remembered of them.
VERSIONS: Final = 100

#: Seconds between two lines of the log that tell of one evaluator's trouble.
TOLD: Final = 60.0

#: How exchanges end that a bad verdict adds nothing to: they count against the version already, or were not its fault.
SETTLED: Final = FAILURES | {Outcome.CLIENT_ERROR}

Key = tuple[str, bytes]
#: The number of a version and when the request was dispatched, monotonic seconds; negative: a bad verdict adds nothing.
#: Once somebody has judged, whether it was bad, and whether a bad one has been counted. Numbers only, so that garbage
#: collection passes them over.
Entry = tuple[int, float] | tuple[int, float, bool, bool]


class Remembered:
    """What was done lately, by tenant and id. `young`: to be added to, with `turn` when it has `PART`. `numbers`: of
    the versions in it."""

    __slots__ = ("_parts", "_versions", "numbers", "young")

    def __init__(self, most: int = REMEMBERED) -> None:
        self.young: dict[Key, Entry] = {}
        self.numbers: dict[Version, int] = {}
        self._parts: deque[dict[Key, Entry]] = deque([self.young], maxlen=-(-most // PART) + 1)
        self._versions: dict[int, Version] = {}

    def add(self, key: Key, version: Version, started: float) -> None:
        self.young[key] = (self.number(version), started)
        if len(self.young) >= PART:
            self.turn()

    def turn(self) -> None:
        self.young = {}
        self._parts.append(self.young)

    def number(self, version: Version) -> int:
        found = self.numbers.get(version)
        if found is None:
            found = self.numbers[version] = max(self._versions, default=0) + 1
            self._versions[found] = version
        return found

    def version(self, number: int) -> Version:
        return self._versions[number]

    def find(self, key: Key, now: float) -> dict[Key, Entry] | None:
        """The part that has the latest of this key."""
        for part in reversed(self._parts):
            found = part.get(key)
            if found is not None:
                return part if now - abs(found[1]) < KEPT else None
        return None

    def expire(self, now: float) -> None:
        """Let go of parts that are too old as a whole, and of versions that nothing is remembered of."""
        parts = self._parts
        while len(parts) > 1 and (not parts[0] or now - abs(next(reversed(parts[0].values()))[1]) > KEPT):
            parts.popleft()
        if len(self.numbers) > VERSIONS:
            used = {entry[0] for part in parts for entry in part.values()}
            self._versions = {number: version for number, version in self._versions.items() if number in used}
            self.numbers = {version: number for number, version in self._versions.items()}

    def __len__(self) -> int:
        return sum(map(len, self._parts))


class ServiceWatch:
    """Of one service: a `taps.Watch`. `panel`: its evaluators, None when there are none."""

    __slots__ = ("_largest", "_random", "_requests", "_sample", "ends", "panel", "stats")

    def __init__(self, requests: Remembered, rng: Random, stats: ServiceStats) -> None:
        self._requests = requests
        # Not every tenth: what the weights make regular would always meet the same version.
        self._random = rng.random
        self._sample = 0.0
        self._largest = 0
        self.panel: Panel | None = None
        self.stats = stats
        self.ends = Ends(self)

    def configure(self, keys: Keys, panel: Panel | None) -> None:
        self.panel = panel
        self._sample = 0.0 if panel is None else keys.sample
        self._largest = keys.largest

    def retire(self) -> None:
        """From now on show no answer to anybody."""
        self.panel = None
        self._sample = 0.0

    def wants(self) -> int:
        return self._largest if self._sample and self._random() < self._sample else 0

    def ended(self, exchange: Exchange, lease: Lease, outcome: Outcome, now: float) -> None:
        requests = self._requests
        young = requests.young
        version = lease.version
        number = requests.numbers.get(version) or requests.number(version)
        started = lease.started if outcome is Outcome.OK or outcome not in SETTLED else -lease.started
        young[exchange.tenant, exchange.request_id] = (number, started)
        if len(young) >= PART:
            requests.turn()
        tap = exchange.tap
        if tap is not None and tap.wanted and tap.whole and outcome is Outcome.OK:
            self._offer(exchange, lease, tap, now)

    def _offer(self, exchange: Exchange, lease: Lease, tap: Tap, now: float) -> None:
        """Its answer was wanted, and is whole."""
        head = tap.head
        if self.panel is None or head is None or exchange.status >= 300 or exchange.head.method == "HEAD":
            return
        record = Record(
            service=lease.service.name,
            version=lease.version.name,
            request=b"".join(exchange.body),
            answer=b"".join(tap.pieces),
            status=exchange.status,
            content_type=head.known.get(b"content-type", b"").decode("latin-1"),
            seconds=now - lease.started,
            encoding=(head.get(b"content-encoding") or b"").decode("latin-1"),
        )
        self.panel.offer(Job(record, (lease.version, lease.started)))

    def completed(self, run: Run, version: Version, started: float, now: float, result: bytes) -> None:
        """A run has completed with this result."""
        if self.panel is None or len(result) > self._largest or self._random() >= self._sample:
            return
        record = Record(
            service=run.service,
            version=version.name,
            request=b"",
            answer=result,
            status=200,
            content_type="application/json",
            seconds=now - started,
        )
        self.panel.offer(Job(record, (version, started)))


class _Teller:
    """Counts what the evaluators of one service say, and passes it on to the balancer."""

    def __init__(self, gateway: Gateway, service: str, stats: ServiceStats) -> None:
        self._gateway = gateway
        self._service = service
        self._stats = stats
        self._told: dict[str, float] = {}

    def evaluated(self, evaluator: str, said: Said) -> None:
        self._stats.evaluation(evaluator, said.result)
        if said.result in (GOOD, BAD):
            return
        now = monotonic()
        if now - self._told.get(evaluator, -TOLD) >= TOLD:
            self._told[evaluator] = now
            why = said.reason or "too much waits to be looked at"
            self._gateway.log.warning(
                "evaluation_failed", service=self._service, evaluator=evaluator, result=said.result, why=why
            )

    def judged(self, job: Job, bad: bool, reason: str) -> None:
        version, started = job.context
        self._stats.verdict("evaluators", BAD if bad else GOOD)
        self._gateway.balancer.verdict(version, bad, monotonic(), started, sampled=True, reason=reason)


class Quality:
    """One per gateway. `on`: some service has `quality`, or had it. `others`: the gateways of the same state."""

    def __init__(self, gateway: Gateway, others: Others | None = None, rng: Random | None = None) -> None:
        self.on = False
        self.elsewhere = Elsewhere(others, self.vote, gateway)
        self.judges = Judges()
        self.requests = Remembered()
        #: Those that were judged.
        self._runs = Remembered()
        self._gateway = gateway
        self._rng = rng or Random()
        self._keys: dict[str, Keys] = {}
        self._watches: dict[str, ServiceWatch] = {}

    def configure(self, config: Config) -> None:
        """A configuration is in force: watch the services that want it. What waits for evaluators that are the same
        waits on; they are started anew."""
        self.judges.child.renew()
        keys = {name: service.quality for name, service in config.services.items() if service.quality is not None}
        self.on = self.on or bool(keys)
        if self.on:
            self.elsewhere.start()
        before, self._watches = self._watches, {}
        for name, service in self._gateway.balancer.services.items():
            wanted = keys.get(name)
            if wanted is None:
                service.shell = None
                continue
            watch = service.shell
            if watch is None or wanted != self._keys[name]:
                if watch is None:
                    watch = service.shell = ServiceWatch(self.requests, self._rng, self._gateway.stats.service(name))
                self._close(watch)
                watch.configure(wanted, self._panel(name, wanted, watch.stats))
            self._watches[name] = watch
        for watch in before.values():
            if watch not in self._watches.values():
                self._close(watch)
        self._keys = keys

    def tick(self) -> None:
        """Once in a while."""
        now = monotonic()
        self.requests.expire(now)
        self._runs.expire(now)

    async def stop(self) -> None:
        await self.elsewhere.stop()
        for watch in self._watches.values():
            if watch.panel is not None:
                await watch.panel.close()
        await self.judges.close()

    # -- users' verdicts ----------------------------------------------------------------------------------------------

    def vote(self, tenant: str, request_id: bytes, bad: bool, reason: str) -> Vote | None:
        """None: no such request of this tenant is remembered here; `elsewhere` may."""
        return self._vote(self.requests, (tenant, request_id), bad, reason)

    def vote_run(self, run: Run, version: Version, started: float, bad: bool, reason: str) -> Vote:
        """`started`: monotonic seconds, about."""
        key = (run.tenant, run.id.encode())
        if self._runs.find(key, monotonic()) is None:
            self._runs.add(key, version, started if run.status == COMPLETED else -started)
        vote = self._vote(self._runs, key, bad, reason)
        return vote or Vote(run.service, version.name, False)  # it began longer ago than anything is remembered

    def _vote(self, remembered: Remembered, key: Key, bad: bool, reason: str) -> Vote | None:
        now = monotonic()
        part = remembered.find(key, now)
        if part is None:
            return None
        number, started, *said = part[key]
        version = remembered.version(number)
        service = version.service.name
        if said and said[0] is bad:
            return Vote(service, version.name, False)
        # What has counted against the version is not taken back, and doesn't count twice.
        counted = bool(said) and said[1]
        if not counted and started > 0.0:
            self._gateway.balancer.verdict(version, bad, now, started, sampled=False, reason=reason)
            counted = bad
        self._gateway.stats.service(service).verdict("user", BAD if bad else GOOD)
        part[key] = (number, started, bad, counted)
        return Vote(service, version.name, True)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def watch(self, service: str) -> ServiceWatch | None:
        return self._watches.get(service)

    def completed(self, run: Run, result: bytes | None) -> None:
        """A run has ended well, here; it may be looked at."""
        watch = self.watch(run.service)
        if watch is None or watch.panel is None or result is None:
            return
        found = self.version_of(run)
        if found is not None:
            version, started = found
            watch.completed(run, version, started, monotonic(), result)

    def version_of(self, run: Run) -> tuple[Version, float] | None:
        """The version that had the run, as far as it is known and still there, and when, in monotonic seconds."""
        service = self._gateway.balancer.services.get(run.service)
        if service is None or run.started is None:
            return None
        started = monotonic() - max(0.0, time() - run.started)
        for version in service.versions:
            if version.name == run.version or (run.version is None and len(service.versions) == 1):
                return version, started
        return None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _panel(self, service: str, keys: Keys, stats: ServiceStats) -> Panel | None:
        if not keys.evaluators:
            return None
        specs = [Spec(each.label, each.kind, _options(each)) for each in keys.evaluators if each.http is None]
        hooks = [(each.label, each.http) for each in keys.evaluators if each.http is not None]
        teller = _Teller(self._gateway, service, stats)
        return Panel(self.judges, specs, hooks, keys.queue, keys.timeout, teller)

    def _close(self, watch: ServiceWatch) -> None:
        """Its evaluators have nothing more to do."""
        if watch.panel is not None:
            self._gateway.spawn(watch.panel.close())
            watch.retire()


def _options(evaluator: Any) -> dict[str, Any]:
    kind = evaluator.kind
    if kind == "schema":
        return {"file": evaluator.schema}
    if kind == "python":
        return {"function": evaluator.python}
    given = getattr(evaluator, kind)
    return given.model_dump() if kind in ("length", "pattern") else {}
