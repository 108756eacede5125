"""What ideal dispatchers would have made of the same arrivals: simulated, without any overhead.

`central_priority` is one queue that knows every slot: hello before chat before audit, first come first served within a
class, nothing interrupted, audits on at most `share` of the slots. It sorts either by the true classes, which nobody
can know on arrival, or by path, which is what a gateway is told. `clairvoyant_srpt` knows every remaining second and
interrupts at will: no real balancer can, and its mean is the floor.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from .arrivals import AUDIT, CLASSES, Job


def central_priority(jobs: Sequence[Job], slots: int = 24, share: float = 0.75, by_path: bool = False) -> list[float]:
    """Response time of each job, seconds, in the order of `jobs`."""
    kinds = [job.path.removeprefix("/") if by_path else job.kind for job in jobs]
    most_heavy = int(slots * share)
    queues: dict[str, deque[int]] = {kind: deque() for kind in CLASSES}
    ends: list[tuple[float, int]] = []
    response = [0.0] * len(jobs)
    free, heavy = slots, 0

    def dispatch(now: float) -> None:
        nonlocal free, heavy
        for kind in CLASSES:
            queue = queues[kind]
            while queue and free and (kind != AUDIT or heavy < most_heavy):
                i = queue.popleft()
                free -= 1
                heavy += kinds[i] == AUDIT
                heapq.heappush(ends, (now + jobs[i].seconds, i))

    def release(end: float, i: int) -> None:
        nonlocal free, heavy
        free += 1
        heavy -= kinds[i] == AUDIT
        response[i] = end - jobs[i].at
        dispatch(end)

    for i, job in enumerate(jobs):
        while ends and ends[0][0] <= job.at:
            release(*heapq.heappop(ends))
        queues[kinds[i]].append(i)
        dispatch(job.at)
    while ends:
        release(*heapq.heappop(ends))
    return response


def clairvoyant_srpt(jobs: Sequence[Job], slots: int = 24) -> list[float]:
    """Response times when at every moment the `slots` jobs with the least work left run (preemptive, no cost)."""
    response = [0.0] * len(jobs)
    running: list[tuple[float, int]] = []  # (when it would end, job), at most `slots`
    waiting: list[tuple[float, int]] = []  # heap of (seconds left, job)

    def advance(until: float) -> None:
        """Ends what ends before `until`, and starts the shortest that waits in its place."""
        while running:
            end, i = min(running)
            if end > until:
                return
            running.remove((end, i))
            response[i] = end - jobs[i].at
            if waiting:
                left, j = heapq.heappop(waiting)
                running.append((end + left, j))

    for i, job in enumerate(jobs):
        advance(job.at)
        if len(running) < slots:
            running.append((job.at + job.seconds, i))
            continue
        end, longest = max(running)
        if end - job.at > job.seconds:
            running.remove((end, longest))
            heapq.heappush(waiting, (end - job.at, longest))
            running.append((job.at + job.seconds, i))
        else:
            heapq.heappush(waiting, (job.seconds, i))
    advance(float("inf"))
    return response
