"""Which endpoints may be used: active checks, passive ejection, load reports, panic, warm-up, the handicap of failures.

An endpoint is *well* when its checks pass, it is not ejected or draining, has memory and its reporter is not silent.
It is *usable* when it is well, or when so few of its version are well that using all of them is better than overloading
the rest (panic). The last one that is well isn't ejected for its answers: the version's breaker judges those. With none
well at all the version is down: its breaker trips and callers fall back, unless there is nothing to fall back on; then
endpoints that were only ejected are used, since refusing what may succeed helps nobody.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Final

from unjam.core.endpoint import CLEARLY, ejection_seconds
from unjam.core.heard import Heard
from unjam.core.lanes import add_slots, resize, set_cap, set_caps
from unjam.core.load import DOWN, DRAINING, FRESH, LoadReport

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.service import Version

#: Connects that fail in a row before an endpoint is ejected: nothing listens there.
CONNECT_FAILURES: Final = 2
#: One ejection is forgiven after so many times the base without another.
FORGIVEN_AFTER: Final = 6.0
#: Endpoints whose capacity changes with time that are worked out anew per tick, in turn: so many, or a tenth of them.
REFRESHED: Final = 64
#: Larger versions look over who gets heavy work every so many seconds, not with each report.
LARGE: Final = 64
LOOK_EVERY: Final = 1.0
#: Ejections kept until somebody asks.
REMEMBERED: Final = 1000


class Health:
    """The books of one balancer. What changes is recorded in the endpoints, their versions and pools."""

    __slots__ = ("_ends", "_fresh", "_look_again", "_restless", "_serial", "_unbarred", "ejections")

    def __init__(self) -> None:
        #: Endpoints that warm up, carry a handicap, or have a report that ages.
        self._restless: dict[Endpoint, None] = {}
        #: Endpoints with a report that counts in full, the one that was heard of longest ago first.
        self._fresh: dict[Endpoint, None] = {}
        #: Versions that have to look over who gets heavy work.
        self._unbarred: dict[Version, None] = {}
        self._look_again = 0.0
        self._ends: list[tuple[float, int, Endpoint]] = []
        self._serial = 0
        #: Endpoints ejected lately and for how many seconds, for whoever tells the operator.
        self.ejections: deque[tuple[Endpoint, float]] = deque(maxlen=REMEMBERED)

    def joined(self, endpoint: Endpoint, now: float, warm_up: bool) -> None:
        """Take in a new endpoint, which is in its pool already."""
        version = endpoint.pool.version
        if not endpoint.draining and endpoint.spec.weight > 0.0:
            version.members += 1
        if warm_up:
            self._warm_up(endpoint, now)
        self.settle(endpoint, now)

    def back(self, endpoint: Endpoint, now: float) -> None:
        """It was here before, and what it said then still counts for what it is worth."""
        self._fresh[endpoint] = None
        self.changed(endpoint, now)

    def left(self, endpoint: Endpoint, now: float) -> None:
        """It was removed from the configuration; what runs on it may end."""
        endpoint.removed = True
        self._drain(endpoint, True, now)
        self._restless.pop(endpoint, None)
        self._fresh.pop(endpoint, None)

    def drain(self, endpoint: Endpoint, draining: bool, now: float) -> None:
        """An operator drains it, or takes that back."""
        endpoint.drained = draining
        self._drain(endpoint, draining or endpoint.load_state == DRAINING, now)

    def silence(self, endpoint: Endpoint, silent: bool, now: float) -> None:
        """Its reporter has fallen silent, or is heard again."""
        if endpoint.silent is not silent:
            endpoint.silent = silent
            self.settle(endpoint, now)

    def _drain(self, endpoint: Endpoint, draining: bool, now: float) -> None:
        if endpoint.draining is draining:
            return
        endpoint.draining = draining
        if endpoint.spec.weight > 0.0:
            endpoint.pool.version.members += -1 if draining else 1
        self.settle(endpoint, now)

    def checked(self, endpoint: Endpoint, healthy: bool, now: float) -> None:
        """The active checks came to a new conclusion."""
        if endpoint.healthy is healthy:
            return
        endpoint.healthy = healthy
        if healthy:
            # It has shown that it is back: what it did before is another process's doing.
            endpoint.failures = endpoint.connect_failures = 0
            endpoint.ejected_until = 0.0
            self._warm_up(endpoint, now)
        self.settle(endpoint, now)

    def failed(self, endpoint: Endpoint, connect_failed: bool, now: float) -> None:
        """A request on it failed by its fault."""
        endpoint.failed += 1
        endpoint.failures += 1
        endpoint.connect_failures = endpoint.connect_failures + 1 if connect_failed else 0
        endpoint.blame(now)
        spec = endpoint.pool.version.service.spec.ejection
        if not endpoint.ejected_until:
            answers = endpoint.failures >= spec.failures and not self._last(endpoint)
            if answers or endpoint.connect_failures >= CONNECT_FAILURES:
                self._eject(endpoint, now)
        self.changed(endpoint, now)

    def blame(self, endpoint: Endpoint, why: str, now: float) -> None:
        """It is the cause of its version's failures: those of calls that run on it are its own from now on."""
        endpoint.blamed_at = now
        if not endpoint.ejected_until:
            self._eject(endpoint, now)
        endpoint.ejected_for = why
        self.changed(endpoint, now)

    def _last(self, endpoint: Endpoint) -> bool:
        """Nobody else of its version is well. Then what it answers is the version's doing: the breaker judges that, by
        evidence, and tries it again step by step."""
        version = endpoint.pool.version
        return endpoint.well and version.healthy <= 1 and version.breaker.spec.enabled

    def _eject(self, endpoint: Endpoint, now: float) -> None:
        spec = endpoint.pool.version.service.spec.ejection
        quiet = now - endpoint.ejection_ended
        forgiven = int(quiet / (FORGIVEN_AFTER * spec.base)) if spec.base > 0.0 else endpoint.ejections
        endpoint.ejections = max(0, endpoint.ejections - forgiven) + 1
        seconds = ejection_seconds(spec, endpoint.ejections)
        endpoint.ejected_until = now + seconds
        endpoint.ejected_for = ""
        self.ejections.append((endpoint, seconds))
        self._serial += 1
        heappush(self._ends, (endpoint.ejected_until, self._serial, endpoint))

    def reported(self, endpoint: Endpoint, report: LoadReport, now: float) -> bool:
        """A report came in. False: it was refused, or too late."""
        heard = endpoint.heard
        if heard is None:
            heard = endpoint.heard = Heard()
        believed = bool(heard.sources)
        if not heard.take(report, endpoint, now):
            if heard.problem and believed:
                self.changed(endpoint, now)
            return False
        self._fresh.pop(endpoint, None)
        self._fresh[endpoint] = None
        if endpoint.sized():
            endpoint.target = 0
        endpoint.adapt(report)
        self.changed(endpoint, now)
        return True

    def changed(self, endpoint: Endpoint, now: float) -> None:
        """Its capacity has to be worked out anew."""
        avail, room, choked, floor = endpoint.avail, endpoint.room, endpoint.choked, endpoint.floor
        if endpoint.refresh(endpoint.pool.version.service.spec.warm_up, now):
            self._restless[endpoint] = None
        else:
            self._restless.pop(endpoint, None)
        heard = endpoint.heard
        if heard is not None:
            self._heed(endpoint, heard, choked, room, now)
            well = endpoint.well is self._well(endpoint)
            if well and avail == endpoint.avail and floor == endpoint.floor and not endpoint.handicap:
                return
        self.settle(endpoint, now)

    def _heed(self, endpoint: Endpoint, heard: Heard, choked: bool, room: int, now: float) -> None:
        """What reports say beside how much there is: slots, heavy work, whether it wants any work at all."""
        version = endpoint.pool.version
        sole = heard.sole(now)
        slots = endpoint.fitting_slots(heard.latest("slots", now) if sole is None else sole.slots)
        if slots != endpoint.slots:
            resize(version, endpoint, slots)
        if choked is not endpoint.choked or (room <= 0) is not (endpoint.room <= 0):
            set_cap(version, endpoint)
            self._look_over(version)
        elif room != endpoint.room:
            set_cap(version, endpoint)
        draining = endpoint.drained or endpoint.removed or endpoint.load_state == DRAINING
        if draining is not endpoint.draining:
            self._drain(endpoint, draining, now)

    def _look_over(self, version: Version) -> None:
        if len(version.endpoints) <= LARGE:
            self._bar(version)
        else:
            self._unbarred[version] = None

    def _bar(self, version: Version) -> None:
        """Choose which endpoints get no heavy work: those that are choked, while the others are clearly better and at
        least half of what there is. Where none has memory for a heavy request and what one needs is only a guess, the
        one with the most may try."""
        endpoints = version.endpoints.values()
        choked = [endpoint for endpoint in endpoints if endpoint.well and endpoint.choked]
        free = [endpoint for endpoint in endpoints if endpoint.well and not endpoint.choked and endpoint.room > 0]
        enough = sum(endpoint.avail for endpoint in free) >= sum(endpoint.avail for endpoint in choked)
        best = max((endpoint.avail / endpoint.nominal for endpoint in free), default=0.0)
        for endpoint in endpoints:
            endpoint.barred = endpoint.choked and enough and best * endpoint.nominal >= CLEARLY * endpoint.avail
        if not version.heavy_need.sure and not any(each.room > 0 and each.well for each in endpoints):
            roomiest = max((e for e in endpoints if e.well), key=_free_memory, default=None)
            if roomiest is not None:
                roomiest.room = 1
        set_caps(version)

    def tick(self, now: float) -> list[Version]:
        """Ejections that end, and capacities that change with time. Returns the versions that may take more work."""
        touched: dict[Version, None] = {}
        ends = self._ends
        while ends and ends[0][0] <= now:
            until, _, endpoint = heappop(ends)
            if endpoint.ejected_until != until:
                continue
            spec = endpoint.pool.version.service.spec.ejection
            endpoint.ejected_until = 0.0
            endpoint.ejection_ended = now
            # On probation: it goes at the first failure until something has succeeded.
            endpoint.failures = spec.failures - 1
            endpoint.connect_failures = min(endpoint.connect_failures, CONNECT_FAILURES - 1)
            self.settle(endpoint, now)
            touched[endpoint.pool.version] = None
        fresh = self._fresh
        while fresh:
            endpoint = next(iter(fresh))
            heard = endpoint.heard
            if heard is not None and now - heard.at <= FRESH:
                break
            del fresh[endpoint]
            self._restless[endpoint] = None
        if self._unbarred and now >= self._look_again:
            self._look_again = now + LOOK_EVERY
            for version in self._unbarred:
                self._bar(version)
                touched[version] = None
            self._unbarred.clear()
        restless = self._restless
        for endpoint in list(islice(restless, max(REFRESHED, len(restless) // 10))):
            del restless[endpoint]
            self.changed(endpoint, now)
            touched[endpoint.pool.version] = None
        return list(touched)

    def settle(self, endpoint: Endpoint, now: float) -> None:
        """Bring `well` and `usable` up to date, of all the version where its panic starts or ends."""
        version = endpoint.pool.version
        well = self._well(endpoint)
        turned = well is not endpoint.well
        if turned:
            endpoint.well = well
            version.healthy += 1 if well else -1
        panic = self._panics(version)
        before = version.usable
        if panic is not version.panic:
            version.panic = panic
            for each in version.endpoints.values():
                self._use(version, each)
        self._use(version, endpoint)
        if turned and (version.barred or any(each.room <= 0 for each in version.endpoints.values())):
            self._look_over(version)
        if bool(before) is not bool(version.usable) or version.down is bool(version.usable):
            self._turn(version, now)

    def _well(self, endpoint: Endpoint) -> bool:
        return (
            endpoint.healthy
            and not endpoint.ejected_until
            and not endpoint.draining
            and not endpoint.silent
            and endpoint.load_state != DOWN
            and endpoint.avail > 0.0
        )

    def settle_all(self, version: Version, now: float) -> None:
        """The specification changed, or whether there is anything to fall back on."""
        version.panic = self._panics(version)
        for endpoint in version.endpoints.values():
            self._use(version, endpoint)
        self._turn(version, now)

    def _panics(self, version: Version) -> bool:
        if version.healthy:
            return version.healthy < version.service.spec.ejection.panic * version.members
        return version.members > 0 and not self._elsewhere(version)

    def _elsewhere(self, version: Version) -> bool:
        service = version.service
        if version.original is not version:
            return False  # what would be claimed is sent to nobody else
        return service.alternatives or any(
            other is not version and other.weight > 0.0 and other.healthy for other in service.versions
        )

    def _use(self, version: Version, endpoint: Endpoint) -> None:
        usable = endpoint.well
        if version.panic and not usable:
            sound = endpoint.healthy and endpoint.load_state != DOWN
            usable = not endpoint.draining and endpoint.avail > 0.0 and (sound or version.healthy > 0)
        if usable is endpoint.usable:
            if usable:
                endpoint.pool.touch(endpoint)
            return
        endpoint.usable = usable
        version.usable += 1 if usable else -1
        add_slots(version, endpoint.slots if usable else -endpoint.slots)
        if usable:
            endpoint.pool.open(endpoint)
        else:
            endpoint.pool.close(endpoint)

    def _turn(self, version: Version, now: float) -> None:
        """The version has lost its last usable endpoint, or has one again."""
        if version.original is not version:
            return  # no request goes there, and its breaker is its endpoints' too
        breaker = version.breaker
        if version.usable:
            if version.down:
                version.down = False
                breaker.reset(now, "endpoints are back")
        elif version.members and not version.down and breaker.closed and breaker.spec.enabled:
            version.down = True
            version.outages += 1
            breaker.trip(now, "no endpoint is healthy")
        if not version.usable:
            version.evict = True
        version.service.reweigh(now)

    def _warm_up(self, endpoint: Endpoint, now: float) -> None:
        """Let it warm up, if somebody warm is there to take its share meanwhile."""
        version = endpoint.pool.version
        if version.service.spec.warm_up.window <= 0.0:
            return
        if any(e.well and e.warm_from is None and e is not endpoint for e in version.endpoints.values()):
            endpoint.warm_from = now
            if endpoint.refresh(version.service.spec.warm_up, now):
                self._restless[endpoint] = None


def _free_memory(endpoint: Endpoint) -> int:
    """Bytes, as far as is known."""
    if endpoint.heard is None:
        return 0
    free: int | None = endpoint.heard.latest("memory_free", endpoint.heard.last_at)
    return free or 0
