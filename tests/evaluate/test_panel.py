"""Who is judged next where several services wait for the one process."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.gateway.harness import in_loop, until
from unjam.evaluate import Record
from unjam.evaluate.child import Spec
from unjam.evaluate.frames import GOOD, Said
from unjam.evaluate.panel import Job, Judges, Panel


class Told:
    def evaluated(self, evaluator: str, said: Said) -> None:
        pass

    def judged(self, job: Job, bad: bool, reason: str) -> None:
        pass


class Process:
    """Takes its time for evaluators called slow."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    async def judge(self, record: Record, spec: Spec, timeout: float) -> Said:
        self.judged.append(spec.name)
        await asyncio.sleep(0.2 if spec.name == "slow" else 0)
        return Said(GOOD)

    async def close(self) -> None:
        pass


def job() -> Job:
    record = Record(
        service="s", version="v", request=b"", answer=b"", status=200, content_type="text/plain", seconds=0.0
    )
    return Job(record, None)


def panel(judges: Judges, name: str) -> Panel:
    return Panel(judges, [Spec(name, "length", {})], [], 1000, 10.0, Told())


@in_loop
async def test_a_service_whose_evaluators_are_slow_takes_no_more_time_than_the_others() -> None:
    judges, process = Judges(), Process()
    judges.child = process  # type: ignore[assignment]
    slow, quick = panel(judges, "slow"), panel(judges, "quick")
    for _ in range(3):
        slow.offer(job())
    for _ in range(100):
        quick.offer(job())
    await until(lambda: len(process.judged) == 103)
    assert process.judged == ["slow", *["quick"] * 100, "slow", "slow"]
    # Who had nothing to be judged for a while has no claim to the time that has passed.
    late = panel(judges, "late")
    kinds: list[Any] = [quick, late]
    for each in kinds * 20:
        each.offer(job())
    await until(lambda: len(process.judged) == 143)
    assert set(process.judged[103:113]) == {"quick", "late"}
    await judges.close()
