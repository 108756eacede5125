"""Followers of runs on one gateway: each sees the whole log from where it left off, once and in order.

One read of the store serves all followers of a run that stand at the same place, and what is read is handed to them by
plain calls: no task, no timer and no await for each. A follower costs a cursor; one that has no room is passed over
until it says `go_on`, and nothing is kept for it meanwhile: the log is the store's.

Where the store tells what was appended, and all is known up to there, it isn't read at all.

Notifications are hints. A run is watched before it is read, so nothing falls between; and whatever was lost, doubled or
late, each run is looked at again every `RECONCILE` seconds (with very many runs less often: `AT_ONCE` a second).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from unjam.runs.model import Batch, Event
from unjam.runs.store.base import Store, StoreAway, StoreError

#: Seconds after which a run is looked at although nothing was heard of it.
RECONCILE: Final = 5.0
#: Runs that are looked at so in one tick at most; there is one tick a second.
AT_ONCE: Final = 200
#: Seconds until a store that was away is asked again.
AGAIN: Final = 1.0
#: Reads under way at once.
READS: Final = 64
#: Most events, and about as many bytes of them, that are read and handed out in one go.
LIMIT: Final = 256
SIZE: Final = 65536
#: Followers that are called before the loop gets its turn.
SLICE: Final = 256


class Delivery:
    """Events of one run, in order and without a hole, for all who stand within them. `first`: seq of the first; `next`:
    of the one to come. `ended`: the last of them is the log's last. `cache`: for who encodes them once for many."""

    __slots__ = ("cache", "ended", "events", "first", "next")

    def __init__(self, events: Sequence[Event], first: int, following: int, ended: bool) -> None:
        self.events = events
        self.first = first
        self.next = following
        self.ended = ended
        self.cache: dict[Any, Any] = {}

    def since(self, seq: int) -> Sequence[Event]:
        """The events from `seq` on."""
        return self.events if seq <= self.first else self.events[seq - self.first :]

    def encoded(self, seq: int, encode: Callable[[Sequence[Event]], bytes]) -> bytes:
        """`encode` of the events from `seq` on; made once for each place and encoding."""
        key = (encode, seq)
        found = self.cache.get(key)
        if found is None:
            found = self.cache[key] = encode(self.since(seq))
        return found


class Follower:
    """Who follows one run. `cursor`: seq of the next event it wants. All calls come on the loop's thread, and none
    after `unfollow`, `on_end` or `on_error`."""

    __slots__ = ("cursor", "full", "run", "topic")

    def __init__(self, run: str, after: int = -1) -> None:
        self.run = run
        self.cursor = max(after, -1) + 1
        self.full = False
        self.topic: _Topic | None = None

    def on_events(self, delivery: Delivery) -> bool:
        """`delivery.since(self.cursor)` is for it. False: they were taken, but no more until `Hub.go_on`."""
        raise NotImplementedError

    def take(self, delivery: Delivery) -> bool:
        """What the hub calls: `on_events`, and the cursor is behind what was taken. For who may take a part only."""
        room = self.on_events(delivery)
        self.cursor = delivery.next
        return room

    def on_gap(self, following: int) -> None:
        """The log has lost what was, or would have been, at `cursor`; it goes on at `following`, which may be less."""

    def on_nothing(self) -> None:
        """It was asked to go on, by `Hub.go_on`, and there was nothing new for it."""

    def on_end(self) -> None:
        """It has been given the last event of the log."""

    def on_error(self, error: StoreError) -> None:
        """The log can't be read (any more), or one of the calls here failed. Not called when the store is away for a
        while."""


class _Topic:
    """One run that is followed. `at`: followers with room by cursor; `full`: those without. `known`: the log's next seq
    as far as it has been read or told, one more where a read was cut short; `hint`: as told since the last read began.
    `look`: read, whatever is known. `news`: events that the store told of, without a hole, not handed out yet."""

    __slots__ = ("at", "full", "hint", "known", "look", "news", "run", "task")

    def __init__(self, run: str) -> None:
        self.run = run
        self.at: dict[int, set[Follower]] = {}
        self.full: set[Follower] = set()
        self.known = 0
        self.hint = 0
        self.look = True
        self.news: list[Event] = []
        self.task: asyncio.Task[None] | None = None

    def enter(self, follower: Follower) -> None:
        members = self.at.get(follower.cursor)
        if members is None:
            self.at[follower.cursor] = {follower}
        else:
            members.add(follower)

    def leave(self, follower: Follower) -> None:
        members = self.at.get(follower.cursor)
        if members is not None:
            members.discard(follower)
            if not members:
                del self.at[follower.cursor]
        self.full.discard(follower)


def _cut(batch: Batch) -> bool:
    """Whether it is as long as was asked for, so that there may be more."""
    return len(batch.events) >= LIMIT or sum(len(event.data) for event in batch.events) >= SIZE


class Hub:
    """`on_fault`: called in the `except` block of what should not have failed. `clock`: monotonic seconds."""

    def __init__(
        self,
        store: Store,
        *,
        on_fault: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._on_fault = on_fault
        self._clock = clock
        self._topics: dict[str, _Topic] = {}
        self._due: deque[tuple[float, _Topic]] = deque()
        self._away: set[_Topic] = set()
        self._again = 0.0
        self._reads = asyncio.Semaphore(READS)
        #: How many follow.
        self.followers = 0
        store.on_growth = self.grown
        store.on_events = self.told

    @property
    def runs(self) -> int:
        """How many runs are followed."""
        return len(self._topics)

    # -- following -------------------------------------------------------------------------------------------------

    def follow(self, follower: Follower) -> None:
        """Give it everything from its cursor on, and what comes later."""
        topic = self._topics.get(follower.run)
        if topic is None:
            topic = self._topics[follower.run] = _Topic(follower.run)
            self._store.watch(follower.run)
            self._due.append((self._clock() + RECONCILE, topic))
        elif follower.cursor != topic.known:
            topic.look = True
        follower.topic = topic
        follower.full = False
        self.followers += 1
        topic.enter(follower)
        self._pump_soon(topic)

    def unfollow(self, follower: Follower) -> None:
        """Forget it. Nothing when it isn't followed (any more)."""
        topic = follower.topic
        if topic is None:
            return
        follower.topic = None
        self.followers -= 1
        topic.leave(follower)
        self._close_if_alone(topic)

    def go_on(self, follower: Follower) -> bool:
        """It has room again. True: it is called soon, whatever comes: `take`, `on_gap`, `on_nothing`, `on_error`."""
        topic = follower.topic
        if topic is None or not follower.full:
            return False
        follower.full = False
        topic.full.discard(follower)
        topic.enter(follower)
        self._pump_soon(topic)
        return follower.cursor < topic.known

    def grown(self, run: str, following: int) -> None:
        """The store says that a log has grown to `following`."""
        topic = self._topics.get(run)
        if topic is None:
            return
        topic.hint = max(topic.hint, following)
        topic.known = max(topic.known, following)
        self._pump_soon(topic)

    def told(self, run: str, events: Sequence[Event]) -> None:
        """The store says what was appended."""
        topic = self._topics.get(run)
        if topic is None:
            return
        if self._hand_straight(topic, events):
            return
        news = topic.news
        if not news or news[-1].seq + 1 == events[0].seq:
            news.extend(events)
            if len(news) >= LIMIT or sum(len(event.data) for event in news) >= SIZE:
                news.clear()  # there is a measure for how much is handed out at once: read it
        else:
            news.clear()
        self.grown(run, events[-1].seq + 1)
        if topic.task is None:
            topic.news = []

    def tick(self) -> None:
        """Once a second: look again at what nothing was heard of, and at what could not be read."""
        now = self._clock()
        if self._away and now >= self._again:
            away, self._away = self._away, set()
            for topic in away:
                topic.look = True
                self._pump_soon(topic)
        due = self._due
        for _ in range(AT_ONCE):
            if not due or due[0][0] > now:
                break
            _, topic = due.popleft()
            if self._topics.get(topic.run) is topic:
                due.append((now + RECONCILE, topic))
                topic.look = True
                self._pump_soon(topic)

    async def close(self) -> None:
        """From now on no follower is called."""
        topics, self._topics = list(self._topics.values()), {}
        tasks = [topic.task for topic in topics if topic.task is not None]
        for topic in topics:
            self._store.unwatch(topic.run)
            for follower in [*topic.full, *(one for members in topic.at.values() for one in members)]:
                follower.topic = None
            topic.at.clear()
            topic.full.clear()
        self.followers = 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _pump_soon(self, topic: _Topic) -> None:
        if topic.task is None and self._wanted(topic) is not None:
            topic.task = asyncio.get_running_loop().create_task(self._pump(topic))

    def _wanted(self, topic: _Topic) -> int | None:
        """Where to read next: for who has room and stands furthest back, else for who stands beyond what is known."""
        if not topic.at:
            return None
        first = min(topic.at)
        if topic.look or first < topic.known:
            return first
        last = max(topic.at)
        return last if last > topic.known else None

    async def _pump(self, topic: _Topic) -> None:
        """Read and hand out, until all who have room stand at the log's end."""
        try:
            while (first := self._wanted(topic)) is not None:
                news, topic.news = topic.news, []
                if news and news[0].seq == first and not topic.look:
                    await self._hand_out(topic, first, Batch(news, news[-1].seq + 1, False))
                    continue
                topic.look = False
                topic.hint = 0
                # What is read now says nothing of those who come meanwhile, and may have seen more elsewhere.
                beyond = list(topic.at[first]) if first > topic.known else []
                promised = first < topic.known
                async with self._reads:
                    batch = await self._store.read(topic.run, first - 1, LIMIT, SIZE)
                topic.known = max(topic.known, batch.next) if batch.events else max(batch.next, topic.hint)
                if not batch.ended and _cut(batch):
                    topic.known = max(topic.known, batch.next + 1)
                if promised and batch.next == first:
                    for follower in list(topic.at.get(first, ())):
                        follower.on_nothing()
                if batch.next < first:
                    await self._hand_to(topic, beyond, first, Delivery((), batch.next, batch.next, batch.ended))
                else:
                    await self._hand_out(topic, first, batch)
        except StoreAway:
            self._again = self._clock() + AGAIN
            self._away.add(topic)
        except StoreError as error:
            self._fail(topic, error)
        except Exception:  # noqa: BLE001 - one run that can't be read must not end the others' following
            self._on_fault()
            self._fail(topic, StoreError("the gateway failed to read the log"))
        finally:
            topic.task = None
            topic.news = []
        if topic not in self._away:
            self._pump_soon(topic)
        self._close_if_alone(topic)

    async def _hand_out(self, topic: _Topic, first: int, batch: Batch) -> None:
        start = batch.events[0].seq if batch.events else batch.next
        delivery = Delivery(batch.events, start, batch.next, batch.ended)
        for cursor in sorted(topic.at):
            if first <= cursor < batch.next or (cursor == batch.next and batch.ended):
                await self._hand_to(topic, list(topic.at.get(cursor, ())), cursor, delivery)

    def _hand_straight(self, topic: _Topic, events: Sequence[Event]) -> bool:
        """Hand out what was told at once, if all who have room wait for just that, and aren't many."""
        first, following = events[0].seq, events[-1].seq + 1
        if topic.task is not None or topic.look or topic.known != first or len(topic.at) != 1:
            return False
        followers = topic.at.get(first)
        if followers is None or len(followers) > SLICE or sum(len(event.data) for event in events) >= SIZE:
            return False
        topic.known = following
        delivery = Delivery(events, first, following, False)
        for follower in list(followers):
            if follower.topic is topic and not follower.full and follower.cursor == first:
                topic.leave(follower)
                self._give(topic, follower, delivery)
        self._close_if_alone(topic)
        return True

    async def _hand_to(self, topic: _Topic, followers: Sequence[Follower], cursor: int, delivery: Delivery) -> None:
        for place, follower in enumerate(followers):
            if follower.topic is topic and not follower.full and follower.cursor == cursor:
                topic.leave(follower)
                self._give(topic, follower, delivery)
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)

    def _give(self, topic: _Topic, follower: Follower, delivery: Delivery) -> None:
        try:
            if follower.cursor < delivery.first or follower.cursor > delivery.next:
                gap = delivery.first if follower.cursor < delivery.first else delivery.next
                follower.on_gap(gap)
                follower.cursor = gap
            if follower.topic is topic and follower.cursor < delivery.next:
                follower.full = not follower.take(delivery)
            if follower.topic is not topic:  # it has left meanwhile
                return
            if delivery.ended and follower.cursor == delivery.next:
                self._forget(follower)
                follower.on_end()
                return
        except Exception:  # noqa: BLE001 - a fault over one follower must not reach the others
            self._on_fault()
            self._forget(follower)
            self._tell(follower, StoreError("the gateway failed at what the log says"))
            return
        if follower.full:
            topic.full.add(follower)
        else:
            topic.enter(follower)

    def _forget(self, follower: Follower) -> None:
        if follower.topic is not None:
            follower.topic = None
            self.followers -= 1

    def _fail(self, topic: _Topic, error: StoreError) -> None:
        everybody = [*topic.full, *(one for members in topic.at.values() for one in members)]
        topic.at.clear()
        topic.full.clear()
        for follower in everybody:
            self._forget(follower)
            self._tell(follower, error)

    def _tell(self, follower: Follower, error: StoreError) -> None:
        try:
            follower.on_error(error)
        except Exception:  # noqa: BLE001 - see `_give`
            self._on_fault()

    def _close_if_alone(self, topic: _Topic) -> None:
        if topic.at or topic.full or topic.task is not None or self._topics.get(topic.run) is not topic:
            return
        del self._topics[topic.run]
        self._store.unwatch(topic.run)
