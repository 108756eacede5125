"""Any sequence of calls gives what the oracle says, and leaves what the oracle has.

`UNJAM_ORACLE_TIMES=50` in the environment tries so many times as many sequences; set `--timeout` then.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from unjam.runs.model import Event, Run, age
from unjam.runs.store.base import StoreError

from . import oracle
from .harness import Factory, Harness, data, error, ids, new_run, progress
from .oracle import ENDS, Known, Oracle

T = TypeVar("T")

TIMES = int(os.environ.get("UNJAM_ORACLE_TIMES", "1"))

services = st.sampled_from(["auditor", "painter"])
checkpoints = st.sampled_from([None, None, b"", b"1"])
#: Which run, of those that are: the latest first, so that examples shrink to few.
which = st.integers(0, 9)
#: Which run for what an owner does: mostly a running one, if there is any. And the owner's fence, or one beside it.
owners: dict[str, st.SearchStrategy[Any]] = {
    "number": which,
    "alive": st.sampled_from([True, True, True, True, False]),
    "off": st.sampled_from([0, 0, 0, 0, 0, 0, 0, -1, 1]),
}
#: The next batch, the last one again, or one that is out of turn.
batches = st.sampled_from([1, 1, 1, 1, 1, 0, 0, 2, -1])
counts = st.integers(0, 3)

#: Method of `Sequences`, how often, its arguments.
CALLS: list[tuple[str, int, dict[str, st.SearchStrategy[Any]]]] = [
    (
        "create",
        3,
        {
            "service": services,
            "tenant": st.sampled_from(["", "acme"]),
            "lane": st.sampled_from(["fast", "fast", "heavy"]),
            "version": st.sampled_from([None, None, "v1"]),
            "key": st.sampled_from([None, None, "k"]),
            "digest": st.sampled_from([b"a", b"a", b"b"]),
            "retry": st.sampled_from(["fail", "restart"]),
            "attempts": st.integers(1, 3),
            "lives": st.sampled_from([None, None, 100.0]),
            "most": st.sampled_from([None, None, 3]),
            "own": st.sampled_from([None, 1, 2]),
        },
    ),
    (
        "claim",
        5,
        {
            "asked": st.sampled_from([["auditor", "painter"], ["auditor", "painter"], ["painter"], ["auditor"], []]),
            "lanes": st.sampled_from([["fast", "heavy"], ["heavy"], ["heavy", "fast"]]),
            "version": st.sampled_from([None, "v1", "v2"]),
            "known": st.sampled_from([["v1", "v2"], ["v1", "v2"], ["v2"], []]),
            "pinned": st.sampled_from([False, False, False, True]),
        },
    ),
    ("append", 4, owners | {"turn": batches, "count": counts}),
    ("heartbeat", 2, owners | {"checkpoint": checkpoints, "version": st.sampled_from([None, None, "v1", "v2"])}),
    (
        "finish",
        2,
        owners | {"status": st.sampled_from(["completed", "failed", "cancelled"]), "turn": batches, "count": counts},
    ),
    ("release", 2, owners | {"checkpoint": checkpoints}),
    ("cancel", 1, {"number": which}),
    ("send", 1, {"number": which, "sent": st.binary(max_size=3)}),
    ("requeue", 2, {"number": which}),
    ("delete", 1, {"number": which, "alive": st.sampled_from([False, False, True])}),
    ("time_passes", 3, {"step": st.sampled_from([0.0, 7.0, 11.0, 40.0, 40.0]), "swept": st.booleans()}),
    ("the_wall_clock_goes", 1, {"step": st.sampled_from([30.0, 30.0, 4000.0, 90000.0]), "kept": st.booleans()}),
    ("reopen", 1, {}),
]
#: One rule for all: hypothesis leaves out rules at random, and a run takes many kinds of call to get far.
calls = st.sampled_from([each for each in CALLS for _ in range(each[1])]).flatmap(
    lambda each: st.tuples(st.just(each[0]), st.fixed_dictionaries(each[2]))
)


class Sequences(RuleBasedStateMachine):
    """Each rule makes one call of both, and compares. Lease time goes in steps that never add up to a lease."""

    def __init__(self, factory: Factory) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.place = tempfile.TemporaryDirectory()
        self.open = factory(Path(self.place.name))
        self.h: Harness = self.run(self.open.__aenter__())
        self.oracle = Oracle()
        self.touched: Known | None = None

    def teardown(self) -> None:
        try:
            self.everything_is_the_same()
        finally:
            self.run(self.open.__aexit__(None, None, None))
            self.runner.close()
            self.place.cleanup()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.get_loop().run_until_complete(call)

    def ask(self, call: Coroutine[Any, Any, T]) -> T | str:
        """What it returns, or the name of what it raises."""
        try:
            return self.run(call)
        except (StoreError, ValueError) as raised:
            return type(raised).__name__

    def pick(self, number: int, *states: str) -> Known:
        """One in these states, if there is any."""
        runs = [run for run in self.oracle.runs if run.status in states] or self.oracle.runs
        self.touched = runs[-1 - number % len(runs)]
        return self.touched

    def has(self, capability: str) -> bool:
        return capability in self.h.capabilities

    @initialize(retry=st.sampled_from(["fail", "restart"]), attempts=st.integers(1, 3))
    def there_are_some(self, retry: str, attempts: int) -> None:
        for lane, tenant in (("fast", "acme"), ("heavy", ""), ("fast", "")):
            self.make("auditor", tenant, lane, None, None, b"a", retry, attempts, None, None, None)

    @rule(several=st.lists(calls, min_size=4, max_size=8))
    def somebody_calls(self, several: list[tuple[str, dict[str, Any]]]) -> None:
        for name, arguments in several:
            if "number" not in arguments or self.oracle.runs:
                getattr(self, name)(**arguments)
            self.what_was_touched_is_the_same()

    # -- calls ------------------------------------------------------------------------------------------------------

    def create(self, lives: float | None, **new: Any) -> None:
        self.make(**new, lives=lives if self.has("wall") else None)

    def make(
        self,
        service: str,
        tenant: str,
        lane: str,
        version: str | None,
        key: str | None,
        digest: bytes,
        retry: str,
        attempts: int,
        lives: float | None,
        most: int | None,
        own: int | None,
    ) -> None:
        expected = self.oracle.create(service, tenant, lane, version, key, digest, retry, attempts, lives, most, own)
        new = new_run(
            service,
            tenant=tenant,
            lane=lane,
            version=version,
            key=key,
            digest=digest,
            retry=retry,
            max_attempts=attempts,
            deadline=None if lives is None else self.h.now() + lives,
            max_queued=most,
            max_queued_tenant=own,
        )
        made = self.ask(self.h.store.create(new))
        if isinstance(expected, str) or isinstance(made, str):
            assert made == expected
            return
        (known, is_new), (run, was_made) = expected, made
        assert was_made == is_new
        if is_new:
            known.id = run.id
        assert run.id == known.id
        self.touched = known

    def claim(self, asked: list[str], lanes: list[str], version: str | None, known: list[str], pinned: bool) -> None:
        may = self.oracle.claimable(asked, lanes, version, known, pinned)
        claim = self.ask(
            self.h.store.claim(
                asked,
                "w",
                pull=True,
                lanes=lanes,
                lease=self.h.lease,
                version=version,
                known=known,
                pinned=pinned,
            )
        )
        assert not isinstance(claim, str)
        if claim is None:
            assert not may
            return
        if self.has("fifo"):
            may = may[:1]
        assert claim.run.id in [known.id for known in may]
        [self.touched] = [known for known in may if known.id == claim.run.id]
        assert claim.pinned == (version is not None and self.touched.version == version)
        attempt = self.oracle.claim(self.touched, version)
        assert claim.checkpoint == self.touched.checkpoint
        assert data(self.run(self.h.log(claim.run.id))[-1]) == attempt

    def append(self, number: int, alive: bool, off: int, turn: int, count: int) -> None:
        run = self.pick(number, *(["running"] if alive else []))
        fence, batch = run.fence + off, run.batch + turn
        expected = self.oracle.append(run, fence, batch, count)
        said = self.ask(self.h.store.append(run.id, fence, batch, [progress(n) for n in range(count)]))
        assert (said if isinstance(said, str) else (said.first, said.next, said.cancel)) == expected

    def heartbeat(self, number: int, alive: bool, off: int, checkpoint: bytes | None, version: str | None) -> None:
        run = self.pick(number, *(["running"] if alive else []))
        expected = self.oracle.heartbeat(run, run.fence + off, checkpoint, version)
        said = self.ask(self.h.store.heartbeat(run.id, run.fence + off, checkpoint, self.h.lease, version))
        assert (said if isinstance(said, str) else (said.cancel, said.inputs)) == expected

    def finish(self, number: int, alive: bool, off: int, status: str, turn: int, count: int) -> None:
        run = self.pick(number, *(["running"] if alive else []))
        fence, batch, result = run.fence + off, run.batch + turn, b"%d" % len(run.log)
        expected = self.oracle.finish(run, fence, status, result, batch, count)
        more: dict[str, Any] = {"error": b'{"code":"own"}'} if status == "failed" else {}
        if count:
            more |= {"batch": batch, "events": [progress(n) for n in range(count)]}
        said = self.ask(self.h.store.finish(run.id, fence, status, result=result, **more))
        assert (said if isinstance(said, str) else said.changed) == expected

    def release(self, number: int, alive: bool, off: int, checkpoint: bytes | None) -> None:
        run = self.pick(number, *(["running"] if alive else []))
        expected = self.oracle.release(run, run.fence + off, checkpoint)
        said = self.ask(self.h.store.release(run.id, run.fence + off, checkpoint))
        assert (said if isinstance(said, str) else said.changed) == expected

    def cancel(self, number: int) -> None:
        run = self.pick(number, "queued", "running")
        expected = self.oracle.cancel(run)
        said = self.ask(self.h.store.cancel(run.id))
        assert not isinstance(said, str)
        assert said.changed == expected

    def send(self, number: int, sent: bytes) -> None:
        run = self.pick(number)
        expected = self.oracle.send(run, sent)
        assert self.ask(self.h.store.send(run.id, sent)) == expected

    def requeue(self, number: int) -> None:
        run = self.pick(number, "failed", "expired")
        expected = self.oracle.requeue(run)
        said = self.ask(self.h.store.requeue(run.id))
        assert not isinstance(said, str)
        assert said.changed == expected

    def delete(self, number: int, alive: bool) -> None:
        run = self.pick(number, *(["queued", "running"] if alive else ENDS))
        expected = self.oracle.delete(run)
        assert self.ask(self.h.store.delete(run.id)) == expected
        if expected is None:
            self.touched = None
            assert self.ask(self.h.store.get(run.id)) == "UnknownRun"

    def time_passes(self, step: float, swept: bool) -> None:
        self.oracle.time += step
        self.run(self.h.advance(step / oracle.LEASE * self.h.lease))
        if swept:
            self.sweep()

    def the_wall_clock_goes(self, step: float, kept: bool) -> None:
        """Where it can. And somebody sweeps: which of those past their deadline a claim would find is not laid down."""
        if not self.has("wall"):
            return
        self.oracle.wall += step
        self.h.wall(step)
        self.sweep()
        if kept:
            return
        expected = self.oracle.housekeep()
        assert self.ask(self.h.store.housekeep(3600)) == expected
        if self.touched not in self.oracle.runs:
            self.touched = None

    def sweep(self) -> None:
        expected = self.oracle.sweep()
        swept = self.run(self.h.store.sweep())
        assert {settled.run.id: settled.run.status for settled in swept} == expected
        assert all(settled.changed for settled in swept)
        assert len(swept) == len(expected)

    def reopen(self) -> None:
        """Where it can. What is left of a lease then is the store's affair: so each owner gives a sign of life."""
        if not self.has("persistent"):
            return
        self.run(self.h.reopen())
        for run in self.oracle.runs:
            if run.status == "running":
                expected = self.oracle.heartbeat(run, run.fence, None, None)
                said = self.ask(self.h.store.heartbeat(run.id, run.fence, lease=self.h.lease))
                assert not isinstance(said, str)
                assert (said.cancel, said.inputs) == expected

    # -- what is left -----------------------------------------------------------------------------------------------

    def what_was_touched_is_the_same(self) -> None:
        if self.touched is not None:
            self.compare(self.touched)
        depth = self.run(self.h.store.depth())
        assert {service: counts for service, counts in depth.items() if counts != (0, 0)} == self.oracle.depth()

    def everything_is_the_same(self) -> None:
        for known in self.oracle.runs:
            self.compare(known)
        for status in (None, "queued", "running", *ENDS):
            listed = ids(self.run(self.h.store.list(None, status=status, limit=1000)))
            assert listed == sorted(listed, key=age, reverse=True)
            assert set(listed) == {known.id for known in self.oracle.runs if status in (None, known.status)}
        dead = ids(self.run(self.h.store.dead()))
        assert sorted(dead) == sorted(known.id for known in self.oracle.runs if known.dead)

    def compare(self, known: Known) -> None:
        run, log, ended, inputs, result = self.run(self.look(known.id))
        assert (run.service, run.tenant, run.lane) == (known.service, known.tenant, known.lane)
        assert run.version == known.version
        assert (run.status, run.attempt, run.fence) == (known.status, known.attempt, known.fence)
        assert (run.cancel_requested, run.has_checkpoint) == (known.stop, known.checkpoint is not None)
        assert (run.ended is not None) == ended == (known.status in ENDS)
        assert (run.deadline is None) == (known.deadline is None)
        if known.status in ("queued", "running"):
            assert run.worker == (None if known.status == "queued" else "w")
        assert (None if run.error is None else error(run)["code"]) == known.code
        assert [event.type for event in log] == known.log
        assert [event.seq for event in log] == list(range(run.seq))
        assert inputs == list(enumerate(known.inputs, 1))
        assert result == known.result

    async def look(self, run: str) -> tuple[Run, list[Event], bool, list[tuple[int, bytes]], bytes | None]:
        found = await self.h.store.get(run)
        log = await self.h.log(run)
        ended = (await self.h.store.read(run, found.seq - 2)).ended
        return found, log, ended, await self.h.store.inputs(run, 0), await self.h.store.result(run)


def test_any_sequence_of_calls_gives_what_the_oracle_says(factory: Factory, tmp_path: Path) -> None:
    async def examples() -> int:
        async with factory(tmp_path) as harness:
            return harness.examples * TIMES

    run_state_machine_as_test(
        lambda: Sequences(factory),
        settings=settings(
            max_examples=asyncio.run(examples()),
            stateful_step_count=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_oracle_is_not_the_store() -> None:
    source = Path(oracle.__file__).read_text(encoding="utf-8")
    assert "unjam" not in source.split('"""', 2)[2]
