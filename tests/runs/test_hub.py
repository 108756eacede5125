"""Followers of runs: everything once and in order, whatever becomes of hints; and what one costs the others."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from unjam.runs.hub import AT_ONCE, LIMIT, RECONCILE, SIZE, SLICE, Delivery, Follower, Hub
from unjam.runs.model import Batch, Claim, Event, NewEvent, NewRun, Run
from unjam.runs.store.base import LogExpired, StoreAway, StoreError
from unjam.runs.store.memory import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store(MemoryStore):
    """Counts reads, may be away, may keep its hints to itself, may hold a read up."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int]] = []
        self.away = False
        self.deaf = False
        self.lost_to: dict[str, int] = {}
        self.expired: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.watching: set[str] = set()

    def watch(self, run: str) -> None:
        self.watching.add(run)
        if not self.deaf:
            super().watch(run)

    def unwatch(self, run: str) -> None:
        self.watching.discard(run)
        super().unwatch(run)

    async def read(self, run: str, after: int = -1, limit: int = 256, size: int = 1 << 20) -> Batch:
        self.reads.append((run, after))
        if self.away:
            raise StoreAway("gone for lunch")
        if run in self.expired:
            raise LogExpired(run)
        if run in self.lost_to and after + 1 >= self.lost_to[run]:
            return Batch([], self.lost_to[run], False)
        batch = await super().read(run, after, limit, size)
        if self.gate is not None:
            await self.gate.wait()
        return batch


class Told(Follower):
    """Writes down what it is told. `room`: how many deliveries it takes before it has none."""

    def __init__(self, run: str, after: int = -1, room: int = 1 << 30) -> None:
        super().__init__(run, after)
        self.seqs: list[int] = []
        self.gaps: list[int] = []
        self.ended = 0
        self.errors: list[str] = []
        self.room = room
        self.deliveries: list[Delivery] = []

    def on_events(self, delivery: Delivery) -> bool:
        self.seqs += [event.seq for event in delivery.since(self.cursor)]
        self.deliveries.append(delivery)
        self.room -= 1
        return self.room > 0

    def on_gap(self, following: int) -> None:
        self.gaps.append(following)

    def on_end(self) -> None:
        self.ended += 1

    def on_error(self, error: StoreError) -> None:
        self.errors.append(error.code)


class World:
    def __init__(self) -> None:
        self.store = Store()
        self.clock = Clock()
        self.faults = 0
        self.hub = Hub(self.store, clock=self.clock, on_fault=self.fault)
        self.batch: dict[str, int] = {}

    def fault(self) -> None:
        self.faults += 1

    async def run(self) -> Claim:
        await self.store.create(NewRun(service="auditor", input=b"{}", digest=b"", pull=True))
        claim = await self.store.claim(["auditor"], "w", pull=True)
        assert claim is not None
        return claim

    async def emit(self, claim: Claim, n: int = 1) -> None:
        batch = self.batch[claim.run.id] = self.batch.get(claim.run.id, 0) + 1
        events = [NewEvent("progress", msgspec.json.encode({"n": i})) for i in range(n)]
        await self.store.append(claim.run.id, claim.run.fence, batch, events)

    async def finish(self, claim: Claim) -> Run:
        return (await self.store.finish(claim.run.id, claim.run.fence, "completed")).run

    async def quiet(self) -> None:
        """Until nothing is under way any more: the stores of these tests wait for nobody."""
        for _ in range(50):
            await asyncio.sleep(0)


def hub_test(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test, assigned=("__name__", "__doc__", "__module__"), updated=())
    def run() -> None:
        async def main() -> None:
            async with asyncio.timeout(20):
                await test(World())

        asyncio.run(main())

    del run.__wrapped__  # type: ignore[attr-defined]  # or pytest asks for a `world`
    return run


@hub_test
async def test_a_follower_gets_what_was_and_what_comes(world: World) -> None:
    claim = await world.run()
    await world.emit(claim, 3)
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    assert follower.seqs == [0, 1, 2, 3, 4]  # created, attempt, three of its own
    await world.emit(claim, 2)
    await world.quiet()
    assert follower.seqs == [0, 1, 2, 3, 4, 5, 6]
    await world.finish(claim)
    await world.quiet()
    assert follower.seqs == list(range(8))
    assert follower.ended == 1
    assert world.hub.followers == 0
    assert not world.store.watching, "a run that nobody follows is still watched"


@hub_test
async def test_a_log_longer_than_one_read_is_read_to_its_end_at_once(world: World) -> None:
    claim = await world.run()
    for _ in range(4):
        await world.emit(claim, LIMIT // 2)
    whole = 2 + 2 * LIMIT
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    assert follower.seqs == list(range(whole))
    # By bytes as well as by number; and one that ends where a read does is not read for ever.
    big = NewEvent("progress", msgspec.json.encode("x" * (SIZE // 2)))
    await world.store.append(claim.run.id, claim.run.fence, 5, [big] * 8)
    late = Told(claim.run.id, whole - 1)
    world.hub.unfollow(follower)
    world.hub.follow(late)
    await world.quiet()
    assert late.seqs == list(range(whole, whole + 8))
    reads = len(world.store.reads)
    await world.quiet()
    assert len(world.store.reads) == reads


class Part(Told):
    """Takes one event of each delivery, and says then that it has no room."""

    nothing = 0

    def take(self, delivery: Delivery) -> bool:
        self.seqs.append(self.cursor)
        self.cursor += 1
        return False

    def on_nothing(self) -> None:
        self.nothing += 1


@hub_test
async def test_one_may_take_a_part_and_go_on_from_there(world: World) -> None:
    claim = await world.run()
    await world.emit(claim, LIMIT - 2)
    part = Part(claim.run.id)
    world.hub.follow(part)
    await world.quiet()
    for seq in range(1, LIMIT):
        assert part.seqs == list(range(seq))
        assert world.hub.go_on(part)
        await world.quiet()
    assert part.ended == part.nothing == 0
    # The read was as long as was asked for, so more was likely: who was told so is told that there is nothing.
    assert world.hub.go_on(part)
    await world.quiet()
    assert part.nothing == 1
    assert not world.hub.go_on(part)
    await world.finish(claim)
    await world.quiet()
    assert part.seqs == list(range(LIMIT + 1))
    assert part.ended == 1


@hub_test
async def test_one_that_resumes_gets_only_what_it_has_not_had(world: World) -> None:
    claim = await world.run()
    await world.emit(claim, 5)
    follower = Told(claim.run.id, after=3)
    world.hub.follow(follower)
    await world.quiet()
    assert follower.seqs == [4, 5, 6]


@hub_test
async def test_many_at_the_same_place_cost_one_read(world: World) -> None:
    claim = await world.run()
    followers = [Told(claim.run.id) for _ in range(SLICE * 3)]
    for follower in followers:
        world.hub.follow(follower)
    await world.quiet()
    before = len(world.store.reads)
    await world.emit(claim, 4)
    await world.quiet()
    assert len(world.store.reads) - before == 1
    assert all(follower.seqs == list(range(6)) for follower in followers)
    assert len({id(follower.deliveries[-1]) for follower in followers}) == 1, "each was given a copy"


@hub_test
async def test_what_is_sent_is_made_once_for_all(world: World) -> None:
    claim = await world.run()
    made = []

    class Encoding(Told):
        def on_events(self, delivery: Delivery) -> bool:
            made.append(delivery.encoded(self.cursor, encode))
            return super().on_events(delivery)

    encoded = []

    def encode(events: Any) -> bytes:
        encoded.append(len(events))
        return b"x" * len(events)

    for _ in range(10):
        world.hub.follow(Encoding(claim.run.id, after=1))
    await world.quiet()
    await world.emit(claim, 3)
    await world.quiet()
    assert made == [b"xxx"] * 10
    assert encoded == [3]


@hub_test
async def test_followers_at_different_places_each_get_their_own(world: World) -> None:
    claim = await world.run()
    await world.emit(claim, 600)
    followers = [Told(claim.run.id, after=after) for after in (-1, 5, 300, 600, 601)]
    for follower in followers:
        world.hub.follow(follower)
    await world.quiet()
    for follower, after in zip(followers, (-1, 5, 300, 600, 601), strict=True):
        assert follower.seqs == list(range(after + 1, 602))
    assert max(len(d.events) for f in followers for d in f.deliveries) <= LIMIT


@hub_test
async def test_a_lost_hint_costs_seconds_and_no_event(world: World) -> None:
    world.store.deaf = True
    claim = await world.run()
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    await world.emit(claim, 2)
    world.hub.tick()
    await world.quiet()
    assert follower.seqs == [0, 1]
    world.clock.now += RECONCILE
    world.hub.tick()
    await world.quiet()
    assert follower.seqs == [0, 1, 2, 3]


@hub_test
async def test_doubled_and_late_hints_double_nothing(world: World) -> None:
    claim = await world.run()
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.emit(claim, 2)
    for hint in (1, 4, 4, 2, 9):  # 9: a hint of what is not there (yet)
        world.hub.grown(claim.run.id, hint)
        await world.quiet()
    assert follower.seqs == [0, 1, 2, 3]
    assert len(world.store.reads) < 8, "a hint that promised too much made it read over and over"
    world.hub.grown("run_of_nobody", 3)


@hub_test
async def test_what_is_appended_while_it_reads_is_not_forgotten(world: World) -> None:
    claim = await world.run()
    gate = world.store.gate = asyncio.Event()
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    await world.emit(claim, 1)  # the read is under way, and has seen the log without it
    gate.set()
    await world.quiet()
    assert follower.seqs == [0, 1, 2]


@hub_test
async def test_who_has_no_room_holds_up_nobody_and_gets_the_rest_later(world: World) -> None:
    claim = await world.run()
    slow, quick = Told(claim.run.id, room=1), Told(claim.run.id)
    world.hub.follow(slow)
    world.hub.follow(quick)
    await world.quiet()
    for _ in range(5):
        await world.emit(claim, 10)
        await world.quiet()
    assert quick.seqs == list(range(52))
    assert slow.seqs == [0, 1]
    slow.room = 1 << 30
    world.hub.go_on(slow)
    await world.quiet()
    assert slow.seqs == list(range(52))


@hub_test
async def test_who_leaves_hears_no_more(world: World) -> None:
    claim = await world.run()
    follower, other = Told(claim.run.id), Told(claim.run.id)
    world.hub.follow(follower)
    world.hub.follow(other)
    await world.quiet()
    world.hub.unfollow(follower)
    world.hub.unfollow(follower)
    await world.emit(claim)
    await world.quiet()
    assert follower.seqs == [0, 1]
    assert other.seqs == [0, 1, 2]
    world.hub.unfollow(other)
    assert world.hub.followers == 0
    assert world.hub.runs == 0
    assert not world.store.watching


@hub_test
async def test_one_may_leave_while_it_is_told(world: World) -> None:
    claim = await world.run()

    class Leaving(Told):
        def on_events(self, delivery: Delivery) -> bool:
            world.hub.unfollow(self)
            world.hub.unfollow(other)
            return super().on_events(delivery)

    leaving, other = Leaving(claim.run.id), Told(claim.run.id, after=0)
    world.hub.follow(leaving)
    world.hub.follow(other)
    await world.quiet()
    await world.emit(claim)
    await world.quiet()
    assert leaving.seqs == [0, 1]
    assert world.hub.followers == 0
    assert not world.store.watching


@hub_test
async def test_a_log_that_lost_its_tail_says_so(world: World) -> None:
    """After a failover the log may end before what a reader has seen: an explicit gap, then what comes."""
    claim = await world.run()
    await world.emit(claim, 3)
    far = Told(claim.run.id, after=90)
    near = Told(claim.run.id, after=4)
    world.hub.follow(near)
    world.hub.follow(far)
    await world.quiet()
    assert near.gaps == []
    assert far.gaps == [5]
    await world.emit(claim, 1)
    await world.quiet()
    assert far.seqs == near.seqs == [5]


@hub_test
async def test_all_who_saw_a_tail_that_is_lost_are_told(world: World) -> None:
    claim = await world.run()
    await world.emit(claim, 3)
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    world.store.lost_to[claim.run.id] = 3
    world.clock.now += RECONCILE
    world.hub.tick()
    await world.quiet()
    assert follower.gaps == [3]


@hub_test
async def test_a_store_that_is_away_is_waited_for(world: World) -> None:
    claim = await world.run()
    follower = Told(claim.run.id)
    world.store.away = True
    world.hub.follow(follower)
    await world.quiet()
    reads = len(world.store.reads)
    world.hub.tick()
    await world.quiet()
    assert len(world.store.reads) == reads, "it was asked again at once"
    assert not follower.errors
    world.store.away = False
    world.clock.now += 1.0
    world.hub.tick()
    await world.quiet()
    assert follower.seqs == [0, 1]


@hub_test
async def test_what_can_never_be_read_is_told(world: World) -> None:
    claim = await world.run()
    world.store.expired.add(claim.run.id)
    expired, unknown = Told(claim.run.id), Told("run_000000000000000000000000000")
    world.hub.follow(expired)
    world.hub.follow(unknown)
    await world.quiet()
    assert expired.errors == ["log_expired"]
    assert unknown.errors == ["unknown_run"]
    assert world.hub.followers == 0
    assert world.hub.runs == 0


@hub_test
async def test_a_fault_over_one_follower_reaches_no_other(world: World) -> None:
    claim = await world.run()

    class Broken(Told):
        def on_events(self, delivery: Delivery) -> bool:
            raise RuntimeError("planted")

    others = [Told(claim.run.id) for _ in range(3)]
    world.hub.follow(others[0])
    broken = Broken(claim.run.id)
    world.hub.follow(broken)
    world.hub.follow(others[1])
    world.hub.follow(others[2])
    await world.quiet()
    assert world.faults == 1
    assert broken.errors == ["store_error"], "it would wait for ever"
    assert [other.seqs for other in others] == [[0, 1]] * 3
    assert world.hub.followers == 3


@hub_test
async def test_one_who_comes_after_the_end_gets_the_end(world: World) -> None:
    claim = await world.run()
    await world.finish(claim)
    whole, last = Told(claim.run.id), Told(claim.run.id, after=2)
    world.hub.follow(whole)
    world.hub.follow(last)
    await world.quiet()
    assert (whole.seqs, whole.ended) == ([0, 1, 2], 1)
    assert (last.seqs, last.ended, last.gaps) == ([], 1, [])


@hub_test
async def test_very_many_runs_are_looked_at_in_turn(world: World) -> None:
    runs = [(await world.run()).run.id for _ in range(AT_ONCE * 2)]
    for run in runs:
        world.hub.follow(Told(run, after=1))
    for _ in range(20):
        await world.quiet()
    before = len(world.store.reads)
    world.clock.now += RECONCILE
    world.hub.tick()
    for _ in range(20):
        await world.quiet()
    assert len(world.store.reads) - before == AT_ONCE
    world.hub.tick()
    for _ in range(20):
        await world.quiet()
    assert len(world.store.reads) - before == AT_ONCE * 2
    assert len({run for run, _ in world.store.reads[before:]}) == AT_ONCE * 2


@hub_test
async def test_closing_leaves_nothing(world: World) -> None:
    claim = await world.run()
    world.store.gate = asyncio.Event()
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await asyncio.sleep(0)
    await world.hub.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not world.store.watching
    assert follower.seqs == []


def news(first: int, count: int = 1, size: int = 1) -> list[Event]:
    return [Event(seq, "progress", b'"' + b"x" * size + b'"', 0.0) for seq in range(first, first + count)]


async def told_only(world: World) -> tuple[str, Told]:
    """A run of two events whose follower has both; what comes later is told by hand."""
    claim = await world.run()
    follower = Told(claim.run.id)
    world.store.deaf = True
    world.hub.follow(follower)
    await world.quiet()
    assert follower.seqs == [0, 1]
    world.store.reads.clear()
    return claim.run.id, follower


@hub_test
async def test_what_the_store_tells_is_not_read(world: World) -> None:
    run, follower = await told_only(world)
    world.hub.told(run, news(2))
    world.hub.told(run, news(3, 2))
    await world.quiet()
    world.hub.told(run, news(5))
    await world.quiet()
    assert follower.seqs == [0, 1, 2, 3, 4, 5]
    assert [event.data for event in follower.deliveries[-1].events] == [b'"x"']
    assert not world.store.reads
    world.hub.told("run_00nobody", news(2))
    assert world.faults == 0


@hub_test
async def test_what_was_told_twice_is_handed_out_once(world: World) -> None:
    run, follower = await told_only(world)
    for _ in range(2):
        world.hub.told(run, news(2, 2))
        await world.quiet()
        world.hub.told(run, news(3))
        await world.quiet()
    assert follower.seqs == [0, 1, 2, 3]


@hub_test
async def test_what_was_not_told_is_read(world: World) -> None:
    claim = await world.run()
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    world.store.deaf = True
    world.store.unwatch(claim.run.id)
    await world.emit(claim, 3)
    events = (await world.store.read(claim.run.id, 2)).events
    world.hub.told(claim.run.id, events[:1])  # 2 was missed
    await world.quiet()
    assert follower.seqs == [0, 1, 2, 3, 4]
    # Of two pieces with a hole between, the second isn't taken for the first.
    await world.emit(claim, 3)
    events = (await world.store.read(claim.run.id, 4)).events
    world.hub.told(claim.run.id, events[:1])
    world.hub.told(claim.run.id, events[2:])
    await world.quiet()
    assert follower.seqs == list(range(8))
    assert world.faults == 0


@hub_test
async def test_one_that_stands_further_back_has_all_of_it_read(world: World) -> None:
    claim = await world.run()
    ahead, behind = Told(claim.run.id), Told(claim.run.id, room=1)
    world.hub.follow(ahead)
    world.hub.follow(behind)
    await world.quiet()
    await world.emit(claim)
    await world.quiet()
    assert (ahead.seqs, behind.seqs) == ([0, 1, 2], [0, 1])
    world.store.unwatch(claim.run.id)
    await world.emit(claim)
    events = (await world.store.read(claim.run.id, 2)).events
    behind.room = 100
    assert world.hub.go_on(behind)
    world.hub.told(claim.run.id, events)
    await world.quiet()
    assert ahead.seqs == behind.seqs == [0, 1, 2, 3]


@hub_test
async def test_no_more_of_what_was_told_is_kept_than_is_handed_out_at_once(world: World) -> None:
    claim = await world.run()
    follower = Told(claim.run.id)
    world.hub.follow(follower)
    await world.quiet()
    world.store.unwatch(claim.run.id)
    payload = NewEvent("progress", b'"' + b"x" * 8000 + b'"')
    await world.store.append(claim.run.id, claim.run.fence, 1, [payload] * 20)
    events = (await world.store.read(claim.run.id, 1)).events
    world.store.reads.clear()
    world.hub.grown(claim.run.id, 3)  # it is being read when the rest is told
    for event in events[1:]:
        world.hub.told(claim.run.id, [event])
    await world.quiet()
    assert follower.seqs == list(range(22))
    for delivery in follower.deliveries:
        assert sum(len(event.data) for event in delivery.events) <= SIZE + 8192
    # The same of one piece.
    await world.store.append(claim.run.id, claim.run.fence, 2, [payload] * 20)
    world.hub.told(claim.run.id, (await world.store.read(claim.run.id, 21)).events)
    await world.quiet()
    assert follower.seqs == list(range(42))
    for delivery in follower.deliveries:
        assert sum(len(event.data) for event in delivery.events) <= SIZE + 8192


@hub_test
async def test_what_is_told_to_very_many_is_told_in_turns(world: World) -> None:
    claim = await world.run()
    followers = [Told(claim.run.id) for _ in range(3 * SLICE)]
    for follower in followers:
        world.hub.follow(follower)
    await world.quiet()
    world.store.unwatch(claim.run.id)
    reads = len(world.store.reads)
    await world.emit(claim)
    world.hub.told(claim.run.id, news(2))
    assert not any(follower.seqs[2:] for follower in followers)
    await world.quiet()
    assert all(follower.seqs == [0, 1, 2] for follower in followers)
    assert len(world.store.reads) == reads


@hub_test
async def test_who_leaves_when_it_is_told_leaves_nothing_behind(world: World) -> None:
    claim = await world.run()

    class Leaver(Told):
        def on_events(self, delivery: Delivery) -> bool:
            if delivery.next > 2:
                world.hub.unfollow(self)
                world.hub.unfollow(other)
            return super().on_events(delivery)

    leaver, other = Leaver(claim.run.id), Told(claim.run.id)
    world.hub.follow(leaver)
    world.hub.follow(other)
    await world.quiet()
    world.hub.told(claim.run.id, news(2))
    await world.quiet()
    assert not world.store.watching
    assert world.hub.runs == world.hub.followers == 0
    assert world.faults == 0


@hub_test
async def test_what_nobody_has_room_for_is_not_kept(world: World) -> None:
    claim = await world.run()
    full = Told(claim.run.id, room=1)
    world.hub.follow(full)
    await world.quiet()
    await world.emit(claim)
    event = (await world.store.read(claim.run.id, 1)).events
    world.hub.told(claim.run.id, event)
    world.store.reads.clear()
    full.room = 100
    assert world.hub.go_on(full)
    await world.quiet()
    assert full.seqs == [0, 1, 2]
    assert world.store.reads == [(claim.run.id, 1)]
