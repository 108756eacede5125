"""What a store should do, a second time and as simply as it can be said: one list of runs, searched from end to end.

Nothing of `unjam` is used here, not even the table of states, so that an error there is not repeated. Calls return what
the store should return (`Said`), or the name of the error it should raise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE = 30.0
ENDS = ("completed", "failed", "cancelled", "expired")


@dataclass
class Known:
    """A run. `id` is the store's. `log`: types only."""

    number: int
    service: str
    tenant: str
    lane: str
    retry: str
    attempts: int
    deadline: float | None
    place: float
    version: str | None
    id: str = ""
    status: str = "queued"
    attempt: int = 0
    fence: int = 0
    log: list[str] = field(default_factory=lambda: ["run.created"])
    why: str = "first"
    stop: bool = False
    checkpoint: bytes | None = None
    checkpoint_seq: int = 1
    shown: bool = False
    batch: int = 0
    answer: tuple[int, int] = (0, 0)
    lease: float = 0.0
    inputs: list[bytes] = field(default_factory=list)
    result: bytes | None = None
    code: str | None = None
    dead: bool = False
    ended: float = 0.0
    finisher: int | None = None
    returner: int | None = None

    def end(self, status: str, now: float, code: str | None = None) -> None:
        self.status, self.ended, self.code = status, now, code
        self.log.append(f"run.{status}")


@dataclass
class Oracle:
    runs: list[Known] = field(default_factory=list)
    keys: dict[tuple[str, str, str], tuple[bytes, Known, float]] = field(default_factory=dict)
    made: int = 0
    returned: int = 0
    wall: float = 0.0
    time: float = 0.0

    def create(
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
    ) -> tuple[Known, bool] | str:
        if key is not None and (tenant, service, key) in self.keys:
            used, known, at = self.keys[tenant, service, key]
            if self.wall - at <= 24 * 3600 and known in self.runs:
                return (known, False) if used == digest else "KeyReused"
        if most is not None and len([run for run in self.of(service) if run.status == "queued"]) >= most:
            return "QueueFull"
        if own is not None:
            waiting = [r for r in self.runs if (r.service, r.tenant, r.status) == (service, tenant, "queued")]
            if len(waiting) >= own:
                return "TenantQueueFull"
        self.made += 1
        deadline = None if lives is None else self.wall + lives
        run = Known(self.made, service, tenant, lane, retry, attempts, deadline, place=self.made, version=version)
        self.runs.append(run)
        if key is not None:
            self.keys[tenant, service, key] = (digest, run, self.wall)
        return run, True

    def of(self, service: str) -> list[Known]:
        return [run for run in self.runs if run.service == service]

    def claimable(
        self, services: list[str], lanes: list[str], version: str | None, known: list[str], pinned: bool
    ) -> list[Known]:
        """In their order; only of the first lane that has one."""
        for lane in lanes:
            waiting = [r for r in self.runs if r.status == "queued" and r.lane == lane and r.service in services]
            if pinned:
                waiting = [r for r in waiting if r.version is not None and r.version == version]
            elif version is not None:
                waiting = [r for r in waiting if r.version in (None, version) or r.version not in known]
            if waiting:
                return sorted(waiting, key=lambda run: run.place)
        return []

    def claim(self, run: Known, version: str | None) -> dict[str, object]:
        """The data of `run.attempt`."""
        if version is not None:
            run.version = version
        run.status, run.attempt, run.fence, run.batch = "running", run.attempt + 1, run.fence + 1, 0
        run.lease, run.returner = self.time + LEASE, None
        run.log.append("run.attempt")
        return {"n": run.attempt, "from_seq": run.checkpoint_seq, "reason": run.why}

    def owns(self, run: Known, fence: int) -> bool:
        return run.status == "running" and run.fence == fence

    def append(self, run: Known, fence: int, batch: int, count: int) -> tuple[int, int, bool] | str:
        if not self.owns(run, fence):
            return "Fenced"
        if not self.added(run, batch, count):
            return "ValueError"
        run.lease = self.time + LEASE
        return (*run.answer, run.stop)

    def added(self, run: Known, batch: int, count: int) -> bool:
        if batch == run.batch + 1:
            run.answer = (len(run.log), len(run.log) + count)
            run.log += ["progress"] * count
            run.batch = batch
            run.shown = run.shown or count > 0
            return True
        return batch == run.batch and batch > 0

    def heartbeat(
        self, run: Known, fence: int, checkpoint: bytes | None, version: str | None
    ) -> tuple[bool, int] | str:
        if not self.owns(run, fence):
            return "Fenced"
        if run.version is None:
            run.version = version
        run.lease = self.time + LEASE
        self.save(run, checkpoint)
        return run.stop, len(run.inputs)

    def save(self, run: Known, checkpoint: bytes | None) -> None:
        if checkpoint is not None:
            run.checkpoint, run.checkpoint_seq = checkpoint, len(run.log)

    def finish(self, run: Known, fence: int, status: str, result: bytes, batch: int, count: int) -> bool | str:
        if run.finisher == fence:
            return False
        if not self.owns(run, fence):
            return "Fenced"
        if count and not self.added(run, batch, count):
            return "ValueError"
        run.end(status, self.wall, "own" if status == "failed" else None)
        run.finisher, run.result = fence, result
        return True

    def release(self, run: Known, fence: int, checkpoint: bytes | None) -> bool | str:
        if run.status == "queued" and run.returner == fence:
            return False
        if not self.owns(run, fence):
            return "Fenced"
        self.save(run, checkpoint)
        if run.stop:
            run.end("cancelled", self.wall)
            return True
        self.returned += 1
        run.status, run.why, run.place, run.attempt = "queued", "handed_back", -self.returned, run.attempt - 1
        run.returner = fence
        return True

    def sweep(self) -> dict[str, str]:
        """Id → status of each run it changed."""
        changed = []
        for run in self.runs:
            if run.status in ENDS:
                continue
            if run.deadline is not None and run.deadline <= self.wall:
                run.end("expired", self.wall)
            elif run.status == "running" and run.lease <= self.time:
                self.lost(run)
            else:
                continue
            changed.append(run)
        return {run.id: run.status for run in changed}

    def lost(self, run: Known) -> None:
        if run.stop:
            run.end("cancelled", self.wall)
        elif run.checkpoint is None and run.retry == "fail" and run.shown:
            run.end("failed", self.wall, "worker_lost")
        elif run.attempt >= run.attempts:
            run.end("failed", self.wall, "attempts_exhausted")
            run.dead = True
        else:
            run.status, run.why, run.place = "queued", "lost", run.number

    def cancel(self, run: Known) -> bool:
        if run.status == "queued":
            run.end("cancelled", self.wall)
            return True
        if run.status == "running" and not run.stop:
            run.stop = True
            return True
        return False

    def send(self, run: Known, data: bytes) -> int | str:
        if run.status in ENDS:
            return "Fenced"
        run.inputs.append(data)
        return len(run.inputs)

    def requeue(self, run: Known) -> bool:
        if run.status not in ("failed", "expired"):
            return False
        run.log.append("run.requeued")
        run.status, run.why, run.attempt, run.place = "queued", "requeued", 0, run.number
        run.stop, run.dead, run.code, run.finisher, run.returner = False, False, None, None, None
        if run.deadline is not None and run.deadline <= self.wall:
            run.deadline = None
        run.result = None
        return True

    def delete(self, run: Known) -> str | None:
        if run.status not in ENDS:
            return "NotEnded"
        self.runs.remove(run)
        return None

    def housekeep(self) -> int:
        kept = [run for run in self.runs if run.status not in ENDS or self.wall - run.ended <= 3600]
        deleted = len(self.runs) - len(kept)
        self.runs = kept
        return deleted

    def depth(self) -> dict[str, tuple[int, int]]:
        return {
            service: depth
            for service in {run.service for run in self.runs}
            if (depth := (self.count(service, "queued"), self.count(service, "running"))) != (0, 0)
        }

    def count(self, service: str, status: str) -> int:
        return len([run for run in self.of(service) if run.status == status])
