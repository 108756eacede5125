"""Runs in Redis 7.0 or newer: shared by gateways and workers on any number of machines.

Every change of a run is one Lua script on the server that has its partition: all of it happens, or nothing. A call
whose reply was lost is sent again and answered as the first time. What is acknowledged is as durable as the Redis is:
with an append-only file it survives the death of the process, with `replicas=1` in the URL a failover too. Without,
a failover loses what had not been replicated: the log of a live run then goes on after a `run.gap` event {from, to:
the numbers that were lost or left out}, and no seq or fence is given twice. Leases go by the server's TIME; wall times
too, unless a `clock` is given. After a time in which nobody swept, as nobody could reach the server, all leases hold
for another full length at least: the live owners come back first.

Order: on one server (or with Sentinel) strictly first in, first out; in a cluster nearly (`redis_ready`).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from unjam.runs.machine import change, finishing
from unjam.runs.model import (
    EXHAUSTED,
    LOST,
    PARTITIONS,
    Appended,
    Batch,
    Beat,
    Claim,
    NewEvent,
    NewRun,
    Run,
    Settled,
    WorkerInfo,
    age,
    created_data,
    failed_data,
    new_id,
    partition_of,
)
from unjam.runs.store import base
from unjam.runs.store.base import (
    KEPT_AT_LEAST,
    LEASE,
    MOST_WORKERS,
    Runs,
    StoreError,
    Workers,
    check_size,
)
from unjam.runs.store.presence import word
from unjam.runs.store.redis_codec import batch_of, checked, fields_of, flat, run_of, worker_of
from unjam.runs.store.redis_link import BULK
from unjam.runs.store.redis_ready import Kind
from unjam.runs.store.redis_scripts import Scripts, ms, new_token, optional


class RedisStore(Scripts):
    """`url`: see `redis_url`. `on_warning`: told in words what endangers runs (eviction, no append-only file, no TLS).
    `clock`: wall time in seconds; None: the server's. `lease`: seconds that the owners of running runs are given when
    nobody could reach the server, or nobody swept, for some time."""

    async def open(self) -> None:
        try:
            await self._link.open()
        except BaseException:
            await self._link.close()
            raise
        for part, tag in enumerate(self._link.tags):
            self._feed.add(f"{self._prefix}{{{tag}}}:ready", part)
        try:
            await self._feed.open(self._place.patience)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        # First who hears: every channel that is confirmed gives something to do later.
        await self._feed.close()
        later = list(self._later)
        for task in later:
            task.cancel()
        await asyncio.gather(*later, return_exceptions=True)
        for heads in self._heads.values():
            await heads.close()
        await self._link.close()

    # -- a run's life ---------------------------------------------------------------------------------------------

    async def create(self, new: NewRun) -> tuple[Run, bool]:
        check_size(new.input)
        part, key = None, ""
        if new.key is not None:
            named = hashlib.sha256(msgspec.json.encode((new.tenant, new.service, new.key)))
            part, key = named.digest()[0] % PARTITIONS, named.hexdigest()
        run = new_id(time.time() if self._clock is None else self._clock(), part)
        most = await self._limit(new.max_queued, "queued", new.service)
        own = await self._limit(new.max_queued_tenant, "queued_of", f"{new.service}\0{new.tenant}")
        reply = checked(
            await self._script(
                "create", run, key, new.digest, most, own, new.input, created_data(new.service, new.lane),
                "" if new.deadline is None else f"{new.deadline:.6f}", *fields_of(new), bulk=len(new.input) > BULK,
            )
        )  # fmt: skip
        if reply[1] == 2:
            return new.record(run, float(reply[2]), seq=1), True
        return run_of(reply[2]), reply[1] == 1

    async def claim(
        self,
        services: Sequence[str],
        worker: str,
        *,
        pull: bool,
        lanes: Sequence[str] = ("fast", "heavy"),
        lease: float = LEASE,
        version: str | None = None,
        known: Sequence[str] = (),
        pinned: bool = False,
    ) -> Claim | None:
        self._services.update(services)
        if not services or not lanes or (pinned and version is None):
            return None
        kind = Kind(frozenset(services), pull, tuple(lanes), version, frozenset(() if pinned else known), pinned)
        if not self._link.clustered:
            return await self._claim(0, worker, kind, lease)
        heads = self._heads_of(kind)
        asked = heads.asked()
        if heads.stale():
            await heads.look(asked)
        while True:
            found = heads.take()
            if found is None:
                if not await heads.look(asked):
                    return None
                asked = heads.asked()
                found = heads.take()
                if found is None:  # what was seen is being claimed by others; behind it there may be more
                    continue
            lane, part = found
            one = kind._replace(lanes=(lanes[lane],))
            claim, (places,) = await asyncio.gather(self._claim(part, worker, one, lease), self._look([part], one))
            heads.note(lane, part, places[1][0])
            if claim is not None:
                return claim

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        check_size(*(event.data for event in events))
        size = sum(len(event.data) for event in events)
        reply = await self._owned(run, "append", fence, batch, self._next(run, fence), *flat(events), bulk=size > BULK)
        first, following = int(reply[1]), int(reply[2])
        self._remember(run, fence, following)
        return Appended(first, following, reply[3] is not None)

    async def heartbeat(
        self,
        run: str,
        fence: int,
        checkpoint: bytes | None = None,
        lease: float = LEASE,
        version: str | None = None,
        number: int | None = None,
    ) -> Beat:
        check_size(checkpoint)
        reply = await self._owned(
            run, "heartbeat" if checkpoint is None else "save", fence, ms(lease), *optional(checkpoint),
            "" if number is None else number, *(() if version is None else (version,)),
            bulk=len(checkpoint or b"") > BULK,
        )  # fmt: skip
        return Beat(reply[1] is not None, reply[2])

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        *,
        result: bytes | None = None,
        error: bytes | None = None,
        batch: int | None = None,
        events: Sequence[NewEvent] = (),
    ) -> Settled:
        trigger = finishing(status)
        check_size(result, error, *(event.data for event in events))
        to = change("running", trigger).to
        reply = await self._owned(
            run, "finish", fence, new_token(), to, *optional(result), *optional(error),
            failed_data(error) if to == "failed" else b"{}", "" if batch is None else batch, self._next(run, fence),
            *flat(events), bulk=len(result or b"") > BULK,
        )  # fmt: skip
        self._known.pop(run, None)
        return Settled(run_of(reply[2]), reply[1] == 1)

    async def release(self, run: str, fence: int, checkpoint: bytes | None = None) -> Settled:
        check_size(checkpoint)
        reply = await self._owned(run, "release", fence, new_token(), *optional(checkpoint))
        self._known.pop(run, None)
        return Settled(run_of(reply[2]), reply[1] == 1)

    async def sweep(self, limit: int = 100) -> list[Settled]:
        due = range(len(self._link.tags))
        words = (LOST, EXHAUSTED, ms(self._lease))
        if self._link.clustered:
            counts = await asyncio.gather(*(self._indexed("sweep", part, 0, *words) for part in due))
            due = [part for part, reply in enumerate(counts) if reply[1]]  # type: ignore[assignment]
        settled: list[Settled] = []
        for part in due:
            if len(settled) < limit:
                reply = await self._indexed("sweep", part, limit - len(settled), *words)
                settled += [Settled(run_of(values), True) for values in reply[1]]
        return settled

    async def cancel(self, run: str) -> Settled:
        reply = checked(await self._script("cancel", run, new_token()), run)
        return Settled(run_of(reply[2]), reply[1] == 1)

    async def requeue(self, run: str) -> Settled:
        reply = checked(await self._script("requeue", run, new_token()), run)
        return Settled(run_of(reply[2]), reply[1] == 1)

    # -- to and from it -------------------------------------------------------------------------------------------

    async def send(self, run: str, data: bytes) -> int:
        check_size(data)
        reply = await self._script(
            "send", run, secrets.token_bytes(16), data, base.MOST_INPUTS, base.INPUT_BYTES, bulk=len(data) > BULK
        )
        return int(checked(reply, run)[1])

    async def inputs(self, run: str, after: int, limit: int = 256, size: int = 1 << 20) -> list[tuple[int, bytes]]:
        begin = max(after, 0)
        reply = checked(await self._script("inputs", run, begin, max(limit, 1), size, durable=False, bulk=True), run)
        return [(number, sent[16:]) for number, sent in enumerate(reply[1], start=begin + 1)]

    async def get(self, run: str) -> Run:
        return run_of(checked(await self._script("get", run, durable=False), run)[1])

    async def result(self, run: str) -> bytes | None:
        found: bytes | None = checked(await self._script("result", run, durable=False, bulk=True), run)[1]
        return found

    async def read(self, run: str, after: int = -1, limit: int = 256, size: int = 1 << 20) -> Batch:
        begin = max(after + 1, 0)
        reply = checked(await self._script("read", run, begin, max(limit, 1), size, durable=False), run)
        return batch_of(run, begin - 1, reply)

    async def list(
        self,
        tenant: str | None,
        *,
        service: str | None = None,
        status: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Runs:
        begin = "" if before is None else age(before) + before[4:6]
        which = ("0", "") if tenant is None else ("1", tenant)

        async def of(part: int) -> Runs:
            found: Runs = []
            at: Any = begin
            while len(found) < limit:
                reply = await self._indexed(
                    "list", part, *which, service or "", status or "", at, limit - len(found), durable=False
                )
                found += [run_of(values) for values in reply[1]]
                at = reply[2]
                if not at:
                    break
            return found

        found = [run for runs in await asyncio.gather(*map(of, range(len(self._link.tags)))) for run in runs]
        return sorted(found, key=lambda run: (age(run.id), run.id), reverse=True)[:limit]

    async def dead(self, service: str | None = None, limit: int = 100) -> Runs:
        replies = await asyncio.gather(
            *(self._indexed("dead", part, service or "", limit, durable=False) for part in range(len(self._link.tags)))
        )
        found = sorted(((float(at), run_of(run)) for reply in replies for at, run in reply[1]), key=lambda one: -one[0])
        return [run for _, run in found[:limit]]

    async def delete(self, run: str) -> None:
        checked(await self._script("delete", run), run)
        self._known.pop(run, None)

    async def housekeep(self, keep: float, limit: int = 1000) -> int:
        if keep < KEPT_AT_LEAST:
            raise ValueError(f"ended runs are kept {KEPT_AT_LEAST:g} s at least")
        deleted = 0
        for part in range(len(self._link.tags)):
            # In portions: a server does nothing else meanwhile.
            while (portion := min(limit - deleted, 100)) > 0:
                reply = await self._indexed("housekeep", part, f"{keep:.3f}", portion)
                deleted += reply[1]
                if reply[1] < portion:
                    break
        return deleted

    async def depth(self) -> dict[str, tuple[int, int]]:
        depths: dict[str, tuple[int, int]] = {}
        parts = range(len(self._link.tags))
        for reply in await asyncio.gather(*(self._indexed("depth", part, durable=False) for part in parts)):
            for at, counts in enumerate(reply[1:]):
                for name, count in zip(counts[::2], counts[1::2], strict=True):
                    queued, running = depths.get(name.decode(), (0, 0))
                    depths[name.decode()] = (queued + int(count) * (at == 0), running + int(count) * (at == 1))
        return depths

    async def announce(self, info: WorkerInfo, ttl: float) -> None:
        length = 0 if ttl <= 0 else ms(ttl)
        await self._indexed("announce", 0, info.id, length, word(info), MOST_WORKERS, durable=False)

    async def workers(self) -> Workers:
        reply = await self._indexed("workers", 0, durable=False)
        found = [info for info in map(worker_of, reply[1]) if info is not None]
        return sorted(found, key=lambda info: info.id)

    def watch(self, run: str) -> None:
        try:
            part = partition_of(run)
        except ValueError:
            return
        self._watched.add(run)
        self._feed.add(f"{self._prefix}{{p{part:02x}}}:log:{run}", part)

    def unwatch(self, run: str) -> None:
        if run in self._watched:
            self._watched.remove(run)
            self._feed.remove(f"{self._prefix}{{p{run[4:6]}}}:log:{run}")

    async def _claim(self, part: int, worker: str, kind: Kind, lease: float) -> Claim | None:
        token = new_token()
        try:
            while True:
                reply = await self._indexed(
                    "claim", part, token, worker, "1" if kind.pull else "0", ms(lease), *kind.argv()
                )
                if reply[0] != b"again":
                    break
        except asyncio.CancelledError:
            # It may have come to a run all the same, which nobody would work on until its lease is over.
            self._do_later(self._give_back(part, token))
            raise
        if reply[0] == b"none":
            return None
        run = run_of(reply[1])
        self._remember(run.id, run.fence, run.seq)
        return Claim(run, reply[2] or b"", reply[3], reply[4] == 1)

    async def _give_back(self, part: int, token: str) -> None:
        try:
            reply = await self._indexed("claimed", part, token)
            if reply[0] == b"ok":
                await self.release(reply[1].decode(), reply[2])
        except StoreError:
            pass  # its lease will end
