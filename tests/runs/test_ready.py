"""Workers that wait for a run: each hint wakes one, and none is left asleep beside a run it could have."""

from __future__ import annotations

import asyncio

from unjam.runs.ready import RECONCILE, Ready, Waiter
from unjam.runs.store.memory import MemoryStore


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.store = MemoryStore()
        self.ready = Ready(self.store, clock=lambda: self.now)


def awake(*waiters: Waiter) -> list[bool]:
    return [not waiter.wake() for waiter in waiters]


def run(test: object) -> None:
    assert callable(test)

    async def main() -> None:
        async with asyncio.timeout(20):
            await test(World())

    asyncio.run(main())


def test_a_hint_wakes_the_one_that_waits_longest() -> None:
    async def test(world: World) -> None:
        one, two, other = (world.ready.enter([name]) for name in ("a", "a", "b"))
        world.store.on_ready("a")
        await one.wait(60)
        world.ready.leave(one)
        assert awake(two, other) == [False, False]

    run(test)


def test_each_hint_wakes_another() -> None:
    async def test(world: World) -> None:
        waiters = [world.ready.enter(["a"]) for _ in range(3)]
        world.store.on_ready("a")
        world.store.on_ready("a")
        assert awake(*waiters) == [True, True, False]

    run(test)


def test_who_waits_for_several_services_is_woken_for_any_and_leaves_all() -> None:
    async def test(world: World) -> None:
        waiter = world.ready.enter(["a", "b"])
        assert len(world.ready) == 1
        world.store.on_ready("b")
        await waiter.wait(60)
        world.ready.leave(waiter)
        assert len(world.ready) == 0
        world.store.on_ready("a")

    run(test)


def test_who_got_a_run_passes_the_hint_on_to_workers_only() -> None:
    async def test(world: World) -> None:
        heard: list[str] = []
        world.ready.listen(heard.append)
        one, two = world.ready.enter(["a"]), world.ready.enter(["a"])
        world.store.on_ready("a")
        world.ready.leave(one)
        world.ready.pass_on("a")
        assert awake(two) == [True]
        assert heard == ["a"], "the dispatcher would ask the store for every run that a worker takes"

    run(test)


def test_a_lost_hint_costs_seconds() -> None:
    async def test(world: World) -> None:
        one, two, other = (world.ready.enter([name]) for name in ("a", "a", "b"))
        world.ready.tick()
        assert not any(waiter._future.done() for waiter in (one, two, other))
        world.now += RECONCILE
        world.ready.tick()
        assert awake(one, two, other) == [True, False, True]

    run(test)


def test_nobody_waits_at_a_gateway_that_stops_nor_longer_than_asked() -> None:
    async def test(world: World) -> None:
        waiters = [world.ready.enter([name]) for name in "abc"]
        await waiters[0].wait(0.01)
        assert not waiters[0]._future.done()
        world.ready.wake_all()
        for waiter in waiters:
            await waiter.wait(60)
            world.ready.leave(waiter)
        assert len(world.ready) == 0

    run(test)


def test_a_hint_that_was_in_vain_goes_to_one_of_each_other_kind_once() -> None:
    async def test(world: World) -> None:
        kinds = ("heavy", "heavy", "both", "fast", "both")
        waiters = [world.ready.enter(["a"], kind) for kind in kinds]
        world.store.on_ready("a")
        asked = []
        while hints := [waiter.hint for waiter in waiters if waiter.hint is not None]:
            (hint,) = hints
            (woken,) = [waiter for waiter in waiters if waiter.hint is hint]
            await woken.wait(60)
            world.ready.leave(woken)
            waiters.remove(woken)
            waiters.append(world.ready.enter(["a"], woken.kind))  # it waits on
            asked.append(woken.kind)
            world.ready.in_vain(hint, woken.kind)
        assert asked == ["heavy", "both", "fast"]

    run(test)


def test_who_leaves_hands_its_hint_to_the_next_of_its_kind_too() -> None:
    async def test(world: World) -> None:
        one, two = world.ready.enter(["a"], "fast"), world.ready.enter(["a"], "fast")
        world.store.on_ready("a")
        world.ready.leave(one)
        assert one.hint is not None
        world.ready.hand_on(one.hint)
        assert awake(two) == [True]

    run(test)
