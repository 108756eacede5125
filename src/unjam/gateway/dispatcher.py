"""The push dispatcher: runs out of the store, to endpoints that know nothing of runs. One per gateway.

It claims only what has a chance to be served: of a service that has an endpoint in service, and of which only few of
its runs wait in the balancer's queue already. There they stand in line like anybody's requests, so that a slot that
becomes free is the wake-up; all others wait in the store, for any gateway. It asks the store when a run has come, when
a slot was had and when a push has ended, and every `REGULAR` seconds because hints may be lost; never in a loop.

The places at this gateway (`PushOptions.most`) are shared: where several services take runs, each may hold as many as
are free. So one that is slow leaves half of them to the others, whoever came first; n busy ones have the same share and
leave one for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from unjam.gateway.envelope import unwrap
from unjam.gateway.journal import AGAIN_MOST, Journal
from unjam.gateway.push import Push
from unjam.gateway.timers import NEVER, TICK
from unjam.runs.model import Claim, Settled, error_body
from unjam.runs.store.base import LEASE, Store, StoreAway, StoreError

if TYPE_CHECKING:
    from unjam.core.service import Service
    from unjam.gateway.gateway import Gateway

#: Runs of one service and lane that this gateway has claimed and that wait for a slot: enough that one is there when a
#: slot becomes free. And of one service altogether, where their lane is not what the balancer takes them for.
AHEAD: Final = 4
CROWD: Final = 32

#: Claims under way at once.
CLAIMERS: Final = 8

#: Seconds between two looks at a service that may have runs and can't take any, and between two that nothing prompts.
BLOCKED: Final = 0.5
REGULAR: Final = 5.0

#: The longest time, seconds, for which a service whose runs come back is left alone.
LONGEST: Final = 10.0

LANES: Final = ("fast", "heavy")


@dataclass(frozen=True, slots=True)
class PushOptions:
    """`most`: runs pushed at once. `lease`: seconds. `max_event`, `max_result`: bytes."""

    most: int = 256
    lease: float = LEASE
    max_event: int = 256 << 10
    max_result: int = 16 << 20


class _Queue:
    """What is known of one service's runs. `hints`: how often it was said that there is one; `empty_at`: by lane, that
    number when the store had none. `ahead`: by lane, those that wait for a slot. `held`: those that are here. `until`:
    left alone before that, and one at a time after, as long as `backoff` isn't 0."""

    __slots__ = ("ahead", "backoff", "empty_at", "held", "hints", "path", "until")

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.hints = 1
        self.empty_at = dict.fromkeys(LANES, 0)
        self.ahead = dict.fromkeys(LANES, 0)
        self.held = 0
        self.backoff = 0.0
        self.until = 0.0

    def lanes(self) -> tuple[str, ...]:
        """Those that may hold a run, and of which one more may be claimed."""
        if sum(self.ahead.values()) >= CROWD:
            return ()
        return tuple(lane for lane in LANES if self.empty_at[lane] != self.hints and self.ahead[lane] < AHEAD)


class _Unbegun:
    """A run that was claimed and isn't to be pushed: what becomes of it is only to be written."""

    def __init__(self, dispatcher: Dispatcher, journal: Callable[[_Unbegun], Journal]) -> None:
        self._dispatcher = dispatcher
        self.journal = journal(self)

    def on_cancel(self) -> None:
        """Nothing to do: its end is on the way already."""

    def on_room(self) -> None:
        """Nothing to do: there are no events."""

    def on_fenced(self) -> None:
        self._dispatcher.parted(self, None)

    def on_settled(self, settled: Settled | None) -> None:
        self._dispatcher.parted(self, settled)


class Dispatcher:
    """`worker`: names this gateway in the store. Whoever owns the store lets `ready` hear of `on_ready`."""

    def __init__(self, gateway: Gateway, store: Store, options: PushOptions | None = None, worker: str = "gateway"):
        self.gateway = gateway
        self._store = store
        self._worker = worker
        self._queues: dict[str, _Queue] = {}
        self._active: dict[str, Push] = {}
        self._unbegun: set[_Unbegun] = set()
        self._claiming = 0
        self._turn = 0
        self._stopping = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._away_until = 0.0
        self._regular_at = NEVER
        self.due = NEVER
        self.options = options or PushOptions()
        self._parked = 0
        #: Runs claimed; of those: ended by an answer of whatever kind, handed back, and gone to another owner.
        self.claimed = self.settled = self.handed_back = self.fenced = 0

    # -- for the gateway --------------------------------------------------------------------------------------------

    def configure(self, services: Mapping[str, str | None], options: PushOptions | None = None) -> None:
        """Which services' runs are pushed, and the path to which inputs are POSTed (None: the one it matches)."""
        if options is not None:
            self.options = options
        for name in [name for name in self._queues if name not in services]:
            del self._queues[name]
        for name, path in services.items():
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = _Queue(path)
                queue.held = sum(push.run.service == name for push in self._active.values())
            else:
                queue.path = path
                queue.until = queue.backoff = 0.0  # it may have endpoints now
        self._wake()

    def start(self) -> None:
        self._stopping = False
        self._regular_at = monotonic() + REGULAR
        self._look(self._regular_at)
        self._wake()

    def ready(self, service: str) -> None:
        """The store hints that a run of that service may be claimable."""
        queue = self._queues.get(service)
        if queue is not None:
            queue.hints += 1
            self._wake()

    def poke(self, run: str) -> None:
        """Something was asked of that run: if it is here, look now."""
        push = self._active.get(run)
        if push is not None:
            push.journal.beat()

    @property
    def active(self) -> int:
        """Runs that are claimed and not settled."""
        return len(self._active)

    async def drain(self, seconds: float) -> None:
        """Claim nothing more, hand back what waits, let what runs finish. What doesn't within `seconds` is handed back,
        or lost, where its readers have seen output that another attempt would repeat."""
        self._stopping = True
        for push in list(self._active.values()):
            if push.lease is None and not push.journal.ending:
                self._hand_back(push)
        if not await self._empty(seconds):
            for push in list(self._active.values()):
                if not push.journal.ending:
                    self._hand_back(push)
            await self._empty(AGAIN_MOST)

    async def close(self) -> None:
        """At once: what is under way is lost, and goes the way of a gateway that died."""
        self._stopping = True
        for push in list(self._active.values()):
            push.abort()
        for unbegun in self._unbegun:
            unbegun.journal.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hand_back(self, push: Push) -> None:
        push.stop("draining")
        if push.journal.shown and push.run.retry != "restart":
            push.journal.give_up()
        else:
            push.journal.release()

    async def _empty(self, seconds: float) -> bool:
        self._idle.clear()
        if self._nothing_left:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # -- claiming ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Ask the store, if there is hope and room, and not all askers are busy."""
        if not self._stopping and self._claiming < CLAIMERS and self._candidates(1) is not None:
            self._claiming += 1
            self.spawn(self._claim())

    def _candidates(self, more: int) -> tuple[list[str], tuple[str, ...]] | None:
        """Services to claim for, and lanes that all of them have room in, in the order to ask for; None: nothing can
        be claimed now. `more`: claims beside those under way."""
        now = monotonic()
        free = self.options.most - len(self._active) - self._claiming - more
        if free < 0 or now < self._away_until:
            return None
        alone = len(self._queues) == 1
        by_lanes: dict[tuple[str, ...], list[str]] = {}
        blocked = False
        for name, queue in self._queues.items():
            lanes = queue.lanes()
            if not lanes or not (alone or queue.held == 0 or queue.held <= free):
                continue
            service = self.gateway.balancer.services.get(name)
            if service is None or now < queue.until or not _takes(service):
                blocked = True  # nobody tells when that is over
            else:
                by_lanes.setdefault(lanes, []).append(name)
        if blocked:
            self._look(now + BLOCKED)
        if not by_lanes:
            return None
        # Each in its turn.
        groups = list(by_lanes.items())
        turn, group = divmod(self._turn, len(groups))
        lanes, services = groups[group]
        first = turn // 2 % len(services)
        return services[first:] + services[:first], lanes[::-1] if turn % 2 else lanes

    async def _claim(self) -> None:
        """Claim until there is nothing to claim, or no room."""
        try:
            while not self._stopping and (candidates := self._candidates(0)) is not None:
                services, lanes = candidates
                self._turn += 1
                queues = [self._queues[name] for name in services]
                seen = [queue.hints for queue in queues]
                for queue in queues:
                    if queue.backoff:  # one run finds out whether it is any better; the others wait for it
                        queue.until = monotonic() + queue.backoff
                claim = await self._store.claim(
                    services,
                    self._worker,
                    pull=False,
                    lanes=lanes,
                    lease=self.options.lease,
                )
                if claim is not None:
                    self.claimed += 1
                    self._begin(claim)
                    self._wake()
                    continue
                for queue, hints in zip(queues, seen, strict=True):
                    queue.empty_at.update(dict.fromkeys(lanes, hints))
        except StoreAway as error:
            self._away_until = monotonic() + min(error.retry_after, AGAIN_MOST)
            self._look(self._away_until + TICK)
        except StoreError as error:
            self.gateway.log.warning("run_claim_failed", why=str(error), code=error.code)
            self._away_until = monotonic() + REGULAR
        finally:
            self._claiming -= 1
            self._told_idle()

    def _begin(self, claim: Claim) -> None:
        """A run is ours: send it on its way."""
        run = claim.run
        queue = self._queues.get(run.service)
        service = self.gateway.balancer.services.get(run.service)
        now = monotonic()
        if service is None or queue is None or self._stopping:  # a reload, or the end, came between
            self._unbegin(claim).release()
            return
        try:
            envelope = unwrap(claim.input, _path(service, queue.path))
        except ValueError as error:
            self._unbegin(claim).finish("failed", error=error_body("bad_input", str(error)))
            return
        push = Push(self, service, envelope, run, now)
        push.journal = Journal(self._store, claim, push, self.spawn, self.options.lease)
        self._active[run.id] = push
        queue.held += 1
        push.look(push.journal.beat_at)
        push.look(push.expires)
        try:
            push.offer(now)
        except Exception:  # noqa: BLE001 - a fault with one run must not end the claiming of others
            self.gateway.fault(push)  # type: ignore[arg-type]

    def _unbegin(self, claim: Claim) -> Journal:
        """What is written of it is written until it is; `drain` waits for that."""
        unbegun = _Unbegun(self, lambda owner: Journal(self._store, claim, owner, self.spawn, self.options.lease))
        self._unbegun.add(unbegun)
        return unbegun.journal

    def parted(self, unbegun: _Unbegun, settled: Settled | None) -> None:
        """All is written, or the run is another's."""
        self._unbegun.discard(unbegun)
        self._count(settled)
        self._told_idle()

    # -- what pushes tell -------------------------------------------------------------------------------------------

    @property
    def max_event(self) -> int:
        return self.options.max_event

    @property
    def max_result(self) -> int:
        return self.options.max_result

    def waiting(self, push: Push, step: int) -> None:
        queue = self._queues.get(push.service.name)
        if queue is None:
            return
        if step > 0:
            assert push.ticket is not None
            push.waits_in = LANES[push.ticket.heavy]
        queue.ahead[push.waits_in] = max(0, queue.ahead[push.waits_in] + step)
        if step < 0:
            self._wake()

    def parked(self, push: Push, step: int) -> bool:
        """Half of the places are for runs that need not wait for their version."""
        if step > 0 and 2 * self._parked >= self.options.most:
            return False
        self._parked += step
        return True

    def reached(self, push: Push) -> None:
        queue = self._queues.get(push.service.name)
        if queue is not None and queue.backoff:
            queue.backoff = queue.until = 0.0
            self._wake()

    def turned_away(self, push: Push, retry_after: float | None) -> None:
        queue = self._queues.get(push.service.name)
        if queue is not None:
            queue.backoff = min(max(BLOCKED, 2 * queue.backoff), LONGEST)
            queue.until = monotonic() + min(max(queue.backoff, retry_after or 0.0), LONGEST)
            queue.hints += 1  # it goes back to its queue, so there is one

    def ended(self, push: Push, settled: Settled | None) -> None:
        if self._active.get(push.run.id) is not push:
            return
        del self._active[push.run.id]
        queue = self._queues.get(push.run.service)
        if queue is not None:
            queue.held = max(0, queue.held - 1)
        self._count(settled)
        self._wake()
        self._told_idle()

    def _count(self, settled: Settled | None) -> None:
        if settled is None:
            self.fenced += 1
        elif settled.run.status == "queued":
            self.handed_back += 1
        else:
            self.settled += 1

    def _told_idle(self) -> None:
        if self._nothing_left:
            self._idle.set()

    @property
    def _nothing_left(self) -> bool:
        return not self._active and not self._unbegun and not self._claiming

    # -- time -------------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        return "runs"

    @property
    def transport(self) -> Dispatcher:
        return self

    def abort(self) -> None:
        """Called after a fault in `on_timer`: look again."""
        self._look(monotonic() + REGULAR)

    def _look(self, when: float) -> None:
        if when < self.due:
            self.gateway.wheel.at(self, when)

    def on_timer(self, now: float) -> float:
        """Once in a while hope for all services anew: a hint may have been lost, a slot may be free."""
        if self._stopping:
            return NEVER
        if now >= self._regular_at:
            self._regular_at = now + REGULAR
            for queue in self._queues.values():
                queue.hints += 1
        self._wake()
        return self._regular_at

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it, and tell of its faults."""
        task = self.gateway.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.gateway.log.error("fault", client="runs", exc_info=error)


def _takes(service: Service) -> bool:
    """Whether a request of the service may be served or wait, as far as one can see."""
    spec = service.spec.queue
    full = service.waiting.count >= spec.max
    for candidate in (service, *service.chain):
        for version in candidate.versions:
            if version.usable and version.weight > 0.0 and version.share > 0.0:
                if not full:
                    return True
                if any(each.usable and each.inflight < each.slots for each in version.endpoints.values()):
                    return True
    return False


def _path(service: Service, path: str | None) -> str:
    """Where an ordinary run's input goes: where the service says, or its own path."""
    return path or next((match.path for match in service.spec.match if match.path), "/")
