"""Who waits for a run that can be claimed: the dispatcher, and workers that hold a claim open.

The store's `on_ready` is only a hint, and doesn't say for whom the run is. Of the workers that wait for a service each
hint wakes the one that waits longest; who has got a run passes it on, as there may be more. Who got none passes it on
to one of another kind, so that each kind of them asks the store once: workers are of one kind that would ask the same.
`tick` wakes one of each service now and then, so that a lost hint costs seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import Final

from unjam.runs.store.base import OnReady, Store

#: Seconds after which somebody looks although nothing was heard.
RECONCILE: Final = 5.0


class Hint:
    """That a run of `service` may be claimable. `tried`: kinds of waiters that it has woken in vain."""

    __slots__ = ("service", "tried")

    def __init__(self, service: str) -> None:
        self.service = service
        self.tried: set[Hashable] = set()


class Waiter:
    """One who waits for runs of `services`. `kind`: what it asks for. `hint`: by which it was woken."""

    __slots__ = ("_future", "hint", "kind", "services")

    def __init__(self, services: Iterable[str], kind: Hashable = None) -> None:
        self.services = tuple(services)
        self.kind = kind
        self.hint: Hint | None = None
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> bool:
        """False when it was awake already."""
        if self._future.done():
            return False
        self._future.set_result(None)
        return True

    def stop(self) -> None:
        """Wait no longer."""
        self.wake()

    async def wait(self, seconds: float) -> None:
        """Until it is woken, but no longer than `seconds`."""
        await asyncio.wait((self._future,), timeout=max(seconds, 0.0))


class Waiting:
    """Waiters by the name of what they wait for, such as a run. When something happens to it, all of them are woken."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Waiter, None]] = {}

    def enter(self, names: Iterable[str], kind: Hashable = None) -> Waiter:
        """Register first, then look, then wait. `leave` must follow."""
        waiter = Waiter(names, kind)
        for name in waiter.services:
            self._waiting.setdefault(name, {})[waiter] = None
        return waiter

    def leave(self, waiter: Waiter) -> None:
        for name in waiter.services:
            waiting = self._waiting.get(name)
            if waiting is not None:
                waiting.pop(waiter, None)
                if not waiting:
                    del self._waiting[name]

    def wake(self, name: str) -> None:
        for waiter in self._waiting.get(name, ()):
            waiter.wake()

    def wake_all(self) -> None:
        """Wake everybody, whatever they wait for."""
        for waiting in self._waiting.values():
            for waiter in waiting:
                waiter.wake()

    def __len__(self) -> int:
        return len({waiter for waiting in self._waiting.values() for waiter in waiting})


class Ready(Waiting):
    """`clock`: monotonic seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._listeners: list[OnReady] = []
        self._next = clock() + RECONCILE
        store.on_ready = self.told

    def listen(self, listener: OnReady) -> None:
        """Have `listener` called at every hint."""
        self._listeners.append(listener)

    def told(self, service: str) -> None:
        """The store hints that a run of the service may be claimable: wake a waiter, tell the listeners."""
        self.pass_on(service)
        for listener in self._listeners:
            listener(service)

    def pass_on(self, service: str) -> None:
        """The waiter that was woken has got a run. There may be more: wake another."""
        self.hand_on(Hint(service))

    def in_vain(self, hint: Hint, kind: Hashable) -> None:
        """The waiter that `hint` woke found nothing. The run may be for another kind of waiter: wake one of those."""
        hint.tried.add(kind)
        self.hand_on(hint)

    def hand_on(self, hint: Hint) -> None:
        """The waiter that `hint` woke has left, or found something else: wake another in its place."""
        for waiter in self._waiting.get(hint.service, ()):
            if waiter.kind not in hint.tried and waiter.wake():
                waiter.hint = hint
                break

    def tick(self) -> None:
        """Call this about once a second: it wakes one waiter of each service every `RECONCILE` seconds."""
        now = self._clock()
        if now >= self._next:
            self._next = now + RECONCILE
            for service in list(self._waiting):
                self.pass_on(service)
