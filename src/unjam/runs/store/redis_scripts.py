"""What the operations on runs in Redis stand on: scripts, what owners know, a cluster's queues, and hints."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from unjam.runs.model import partition_of
from unjam.runs.store.base import LEASE, Fenced, Hints, StoreAway, StoreError, UnknownRun
from unjam.runs.store.redis_codec import checked, news_of
from unjam.runs.store.redis_feed import Channels, Feed
from unjam.runs.store.redis_link import Link
from unjam.runs.store.redis_ready import Heads, Kind, Places
from unjam.runs.store.redis_url import parse

#: Owned runs whose next seq is remembered, for logs that lose their tail.
_REMEMBERED: Final = 1 << 16
#: Seconds that a count of a cluster's queues may be old, unless it is near the limit.
_COUNTED: Final = 0.2
#: Counts that are remembered.
_FIELDS: Final = 10_000
#: Kinds of claims for which a cluster's queues are remembered; services that have room, and versions, come and go. Each
#: hint is shown to all.
_KINDS: Final = 32


class Scripts(Hints):
    """See `RedisStore`, whose state this is."""

    def __init__(
        self,
        url: str,
        *,
        on_warning: Callable[[str], None] = lambda warning: None,
        clock: Callable[[], float] | None = None,
        lease: float = LEASE,
    ) -> None:
        super().__init__()
        self._place = parse(url)
        self._prefix = self._place.prefix
        self._clock = clock
        self._lease = lease
        self._link = Link(self._place, on_warning)
        self._feed = Feed(self._link, self._heard, self._subscribed)
        self._link.on_map = self._feed.replan
        self._services: set[str] = set()
        self._ready: set[str] = set()
        self._heads: dict[Kind, Heads] = {}
        self._counted: dict[tuple[str, str], tuple[float, int]] = {}
        self._known: dict[str, tuple[int, int]] = {}
        self._later: set[asyncio.Task[None]] = set()

    # -- scripts ----------------------------------------------------------------------------------------------------

    def _now(self) -> str:
        return "" if self._clock is None else f"{self._clock():.6f}"

    async def _script(self, name: str, run: str, *argv: Any, durable: bool = True, bulk: bool = False) -> Sequence[Any]:
        """Run a script on one run."""
        try:
            part = partition_of(run)
        except ValueError:
            raise UnknownRun(f"no run {run[:40]}") from None
        key = f"{self._prefix}{{p{part:02x}}}:run:{run}"
        return await self._link.script(name, part, key, run, *argv, now=self._now(), durable=durable, bulk=bulk)

    async def _indexed(self, name: str, part: int, *argv: Any, durable: bool = True) -> Sequence[Any]:
        """Run a script on the indexes of a partition, or of all partitions where there is only one server."""
        tag = self._link.tags[part]
        key = f"{self._prefix}{{{tag}}}:order"
        return checked(await self._link.script(name, part, key, tag, *argv, now=self._now(), durable=durable))

    async def _owned(self, run: str, name: str, fence: int, *argv: Any, bulk: bool = False) -> Sequence[Any]:
        """Run a script that only the owner of the run may run. Raises Fenced, UnknownRun."""
        try:
            return checked(await self._script(name, run, fence, *argv, bulk=bulk), run)
        except (Fenced, UnknownRun):
            if (known := self._known.get(run)) is not None and known[0] == fence:
                del self._known[run]
            raise

    def _do_later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    # -- what an owner knows ----------------------------------------------------------------------------------------

    def _remember(self, run: str, fence: int, following: int) -> None:
        self._known[run] = (fence, following)
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    def _next(self, run: str, fence: int) -> int | str:
        known = self._known.get(run)
        return known[1] if known is not None and known[0] == fence else ""

    # -- a cluster's queues -----------------------------------------------------------------------------------------

    def _heads_of(self, kind: Kind) -> Heads:
        heads = self._heads.pop(kind, None)
        if heads is None:
            if len(self._heads) >= _KINDS:
                # That which was asked for longest ago, and isn't in the middle of a look, which somebody waits for.
                for old in [old for old, unused in self._heads.items() if not unused.looking][:1]:
                    del self._heads[old]
            every = range(len(self._link.tags))
            heads = Heads(kind, lambda: self._look(every, kind))
        self._heads[kind] = heads
        return heads

    async def _look(self, parts: Sequence[int], kind: Kind) -> Places:
        argv = ("1" if kind.pull else "0", *kind.argv())
        replies = await asyncio.gather(*(self._indexed("heads", part, *argv, durable=False) for part in parts))
        return [
            (part, [float(place) if place else None for place in reply[1]])
            for part, reply in zip(parts, replies, strict=True)
        ]

    async def _limit(self, most: int | None, what: str, field: str) -> int | str:
        """The limit that the script `create` is to hold; empty: none. In a cluster it is checked here, and is 0 when it
        is reached. `what` and `field`: where those that wait are counted."""
        if most is None or not self._link.clustered:
            return "" if most is None else most
        # Not known to one server: counted over all, which creates at the same time may exceed by their number.
        now = asyncio.get_running_loop().time()
        at, count = self._counted.get((what, field), (float("-inf"), 0))
        if now - at > _COUNTED or count >= most * 0.9:
            names = [f"{self._prefix}{{{tag}}}:{what}" for tag in self._link.tags]
            counts = await asyncio.gather(
                *(self._link.command(part, "HGET", name, field) for part, name in enumerate(names))
            )
            at, count = now, sum(int(count or 0) for count in counts)
            if len(self._counted) >= _FIELDS:
                self._counted.clear()
        self._counted[what, field] = (at, count + 1)
        return "" if count < most else 0

    # -- hints --------------------------------------------------------------------------------------------------------

    def _heard(self, channel: str, payload: bytes) -> None:
        if not channel.endswith("}:ready"):
            run = channel[-31:]
            if run in self._watched:
                following, events = news_of(payload)
                if events:
                    self._hint(self.on_events, run, events)
                else:
                    self._hint(self.on_growth, run, following)
            return
        pull, lane, place, service = payload.decode().split("\n", 3)
        if self._link.clustered:
            part = int(channel[-9:-7], 16)
            for heads in self._heads.values():
                heads.hint(pull == "1", lane, service, part, float(place))
        self._tell_ready({service})

    def _tell_ready(self, services: set[str]) -> None:
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._told)
        self._ready |= services

    def _told(self) -> None:
        services, self._ready = self._ready, set()
        for service in services:
            self._hint(self.on_ready, service)

    def _hint(self, call: Callable[..., None], *arguments: Any) -> None:
        """Tell somebody. An error there must not keep the next ones from being told."""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001
            self._link.tell(f"a hint from Redis met a fault: {error!r}")

    def _subscribed(self, channels: Channels) -> None:
        """From now on Redis tells us; what happened before has to be looked up."""
        runs = [channel[-31:] for channel in channels if not channel.endswith("}:ready")]
        if len(runs) < len(channels) and self._services:
            self._tell_ready(set(self._services))
        if runs:
            self._do_later(self._catch_up(runs))

    async def _catch_up(self, runs: Channels) -> None:
        while runs:
            some, runs = runs[:500], runs[500:]
            try:
                found = await asyncio.gather(*map(self._seq, some))
            except StoreAway:
                runs = some + runs
                await asyncio.sleep(0.5)
                continue
            except StoreError as error:
                self._link.tell(f"what grew while Redis was away can't be looked up: {error}")
                continue
            for run, seq in zip(some, found, strict=True):
                if seq is not None and run in self._watched:
                    self._hint(self.on_growth, run, int(seq))

    async def _seq(self, run: str) -> bytes | None:
        part = partition_of(run)
        key = f"{self._prefix}{{p{part:02x}}}:run:{run}"
        seq: bytes | None = await self._link.command(part, "HGET", key, "seq")
        return seq


def ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def new_token() -> str:
    return secrets.token_hex(8)


def optional(payload: bytes | None) -> tuple[str, bytes]:
    return ("0", b"") if payload is None else ("1", payload)
