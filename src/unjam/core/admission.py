"""Waiting in the gateway: who may wait, who is next, and for how long.

One `Queue` per version with a `Line` per lane. Inside a line each tenant has its own order, by `arrived + PATIENCE ×
predicted seconds`: the shortest first, but every second of waiting counts, so that nobody is overtaken for ever.
Between tenants it is fair: each has a virtual time that its dispatched work moves on (weighted fair queueing: Demers,
Keshav and Shenker, 1989), and the least virtual time plus predicted seconds goes first, so that a burst of one tenant
delays another's request by about one of its own and not by the whole burst. Everything is O(log n); what is cancelled
stays in the heaps, uncounted, until it surfaces or too much of it has gathered.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from unjam.core.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unjam.core.model import Ticket
    from unjam.core.spec import QueueSpec

#: Seconds of waiting that make up for one second of predicted work. Tuned by benchmarks/heavy_tail.
PATIENCE: Final = 10.0
#: Seconds; the least that any request counts for between tenants.
COST_LEAST: Final = 1e-3
#: A heavy request that has waited for this part of the queue's timeout may go before fast ones, every other time.
AGED: Final = 0.5
#: The part of the places that a tenant alone in the queue leaves to others.
LEFT_FOR_OTHERS: Final = 0.1
#: Dead entries that are let be in a heap, beyond as many as there are live ones.
SLACK: Final = 16
#: Dispatches from a queue before its pace is believed.
PACE_KNOWN: Final = 16


class _Tenant:
    """One tenant's part of a line. `time`: its virtual time, seconds of work. `tag`: the entry in the line's order."""

    __slots__ = ("heap", "live", "name", "tag", "time")

    def __init__(self, name: str, time: float) -> None:
        self.name = name
        self.time = time
        self.heap: list[tuple[float, int, Ticket]] = []
        self.live = 0
        self.tag: tuple[float, int, _Tenant] | None = None


class Line:
    """What waits in one lane. `waiting`: live tickets."""

    __slots__ = ("_debts", "_order", "_serial", "_tenants", "time", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.time = 0.0
        self._serial = 0
        self._tenants: dict[str, _Tenant] = {}
        self._order: list[tuple[float, int, _Tenant]] = []
        # Virtual times ahead of the line's, of tenants that have nothing waiting: leaving doesn't wipe them out.
        self._debts: dict[str, float] = {}

    def push(self, ticket: Ticket) -> None:
        name = ticket.request.tenant
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant(name, max(self.time, self._debts.pop(name, 0.0)))
        ticket.key = ticket.request.arrived + PATIENCE * ticket.expected
        self._serial += 1
        tenant.live += 1
        self.waiting += 1
        heap = tenant.heap
        heappush(heap, (ticket.key, self._serial, ticket))
        if len(heap) > 2 * tenant.live + SLACK:
            heap[:] = [entry for entry in heap if entry[2].live]
            heapify(heap)
        if heap[0][2] is ticket:
            self._tag(tenant)

    def head(self) -> Ticket | None:
        """The next one; it stays."""
        order = self._order
        while order:
            entry = order[0]
            tenant = entry[2]
            if tenant.tag is entry:
                return tenant.heap[0][2]
            heappop(order)
        return None

    def take(self, ticket: Ticket) -> None:
        """It was dispatched: its tenant's time moves on."""
        tenant = self._tenants[ticket.request.tenant]
        cost = max(ticket.expected, COST_LEAST)
        tenant.time = max(tenant.time, self.time) + cost
        self.time += cost / len(self._tenants)
        self._gone(tenant, ticket, True)

    def drop(self, ticket: Ticket) -> None:
        """It was cancelled or it expired."""
        self._gone(self._tenants[ticket.request.tenant], ticket, False)

    def tickets(self) -> Iterator[Ticket]:
        """All live ones, in no order."""
        for tenant in self._tenants.values():
            for _, _, ticket in tenant.heap:
                if ticket.live:
                    yield ticket

    def _gone(self, tenant: _Tenant, ticket: Ticket, dispatched: bool) -> None:
        ticket.live = False
        self.waiting -= 1
        tenant.live -= 1
        if not tenant.live:
            del self._tenants[tenant.name]
            tenant.tag = None
            if tenant.time > self.time:
                self._debts[tenant.name] = tenant.time
                if len(self._debts) > 2 * len(self._tenants) + SLACK:
                    self._debts = {name: time for name, time in self._debts.items() if time > self.time}
            return
        heap = tenant.heap
        if dispatched or not heap[0][2].live:
            # The first of a heap is always live.
            while not heap[0][2].live:
                heappop(heap)
            self._tag(tenant)

    def _tag(self, tenant: _Tenant) -> None:
        """Its first ticket or its time changed."""
        self._serial += 1
        tenant.tag = entry = (tenant.time + max(tenant.heap[0][2].expected, COST_LEAST), self._serial, tenant)
        order = self._order
        heappush(order, entry)
        if len(order) > 2 * len(self._tenants) + SLACK:
            order[:] = [entry for entry in order if entry[2].tag is entry]
            heapify(order)


class Queue:
    """What waits for one version. `picky`: those that must not go to some endpoint again; they are few (the retry
    budget) and come first, as they came earlier than all others."""

    __slots__ = (
        "_expiries",
        "_last",
        "_serial",
        "alternate",
        "fast",
        "heavy",
        "length",
        "pace",
        "paced",
        "picky",
    )

    def __init__(self) -> None:
        self.fast = Line()
        self.heavy = Line()
        self.picky: dict[Ticket, None] = {}
        self.alternate = False
        #: Live tickets: a plain number, because every request asks for it.
        self.length = 0
        #: Seconds between dispatches from a queue that was never empty meanwhile, averaged; `paced`: how many.
        self.pace = 0.0
        self.paced = 0
        self._last: float | None = None
        self._serial = 0
        self._expiries: list[tuple[float, int, Ticket]] = []

    def __len__(self) -> int:
        return self.length

    def push(self, ticket: Ticket, now: float) -> None:
        if not self.length:
            self._last = now
        self.length += 1
        if ticket.request.tried:
            self.picky[ticket] = None
        else:
            (self.heavy if ticket.heavy else self.fast).push(ticket)
        self._serial += 1
        expiries = self._expiries
        heappush(expiries, (ticket.expires, self._serial, ticket))
        if len(expiries) > 2 * len(self) + SLACK:
            expiries[:] = [entry for entry in expiries if entry[2].live]
            heapify(expiries)

    def heads(self, now: float, timeout: float) -> tuple[Ticket | None, Ticket | None]:
        """The first of each lane in the order to try them: fast before heavy, except that a heavy one that has waited
        long goes first every other time."""
        fast = self.fast.head() if self.fast.waiting else None
        heavy = self.heavy.head() if self.heavy.waiting else None
        if (
            fast is not None
            and heavy is not None
            and not self.alternate
            and now - heavy.request.arrived >= AGED * timeout
        ):
            return heavy, fast
        return fast, heavy

    def take(self, ticket: Ticket, now: float) -> None:
        """It was dispatched."""
        if self._last is not None:
            gap = now - self._last
            self.paced += 1
            self.pace += (gap - self.pace) / min(self.paced, 2 * PACE_KNOWN)
        self._last = now
        self.length -= 1
        if ticket in self.picky:
            del self.picky[ticket]
            ticket.live = False
            return
        if ticket.heavy:
            self.alternate = bool(self.fast.waiting)
            self.heavy.take(ticket)
        else:
            self.alternate = False
            self.fast.take(ticket)

    def drop(self, ticket: Ticket) -> None:
        """It was cancelled, it expired or it goes elsewhere."""
        self.length -= 1
        if ticket in self.picky:
            del self.picky[ticket]
            ticket.live = False
        else:
            (self.heavy if ticket.heavy else self.fast).drop(ticket)

    def expired(self, now: float) -> Iterator[Ticket]:
        """Those whose time is up; each must be dropped before the next is asked for."""
        expiries = self._expiries
        while expiries and (expiries[0][0] <= now or not expiries[0][2].live):
            _, _, ticket = heappop(expiries)
            if ticket.live and ticket.expires <= now:
                yield ticket

    def tickets(self) -> list[Ticket]:
        """All live ones, by arrival."""
        found = [*self.picky, *self.fast.tickets(), *self.heavy.tickets()]
        found.sort(key=lambda ticket: ticket.request.arrived)
        return found

    def wait(self, heavy: bool) -> float | None:
        """Seconds that one more of this lane would wait if it came last in it; None while that is anybody's guess."""
        if self.paced < PACE_KNOWN:
            return None
        ahead = self.fast.waiting + len(self.picky) + (self.heavy.waiting if heavy else 0)
        return (ahead + 1) * self.pace


class Waiting:
    """The places of one service's queues, and who holds them."""

    __slots__ = ("count", "tenants")

    def __init__(self) -> None:
        self.count = 0
        self.tenants: dict[str, int] = {}

    def refuses(self, spec: QueueSpec, tenant: str) -> Reason | None:
        """Why one more of this tenant's may not wait; None: it may."""
        if self.count >= spec.max:
            return Reason.QUEUE_FULL
        held = self.tenants.get(tenant, 0)
        if len(self.tenants) > (1 if held else 0):
            if held >= max(1.0, spec.tenant_share * spec.max):
                return Reason.TENANT_SHARE
        elif tenant and held >= max(1.0, (1.0 - LEFT_FOR_OTHERS) * spec.max):
            # Requests without a tenant come from everybody; nothing is kept back from those.
            return Reason.TENANT_SHARE
        return None

    def add(self, tenant: str) -> None:
        self.count += 1
        self.tenants[tenant] = self.tenants.get(tenant, 0) + 1

    def remove(self, tenant: str) -> None:
        self.count -= 1
        held = self.tenants[tenant] - 1
        if held:
            self.tenants[tenant] = held
        else:
            del self.tenants[tenant]
