"""The ideal queues, against cases worked out by hand and against slow restatements of their rules."""

from __future__ import annotations

import math
import random

import pytest
from benchmarks.heavy_tail.arrivals import AUDIT, CHAT, HELLO, Job, script
from benchmarks.heavy_tail.references import central_priority, clairvoyant_srpt


def job(at: float, kind: str, seconds: float) -> Job:
    return Job(at, kind, "/" + kind, seconds)


def stepped_priority(jobs: list[Job], slots: int, share: float, step: float) -> list[float]:
    """The same rules in steps of time; exact where all times are multiples of `step`."""
    left = [round(j.seconds / step) for j in jobs]
    running: list[int] = []
    waiting: list[int] = []
    response = [math.nan] * len(jobs)
    tick, arrived = 0, 0

    def dispatch() -> None:
        for i in sorted(waiting, key=lambda i: ((HELLO, CHAT, AUDIT).index(jobs[i].kind), i)):
            heavy = sum(jobs[r].kind == AUDIT for r in running)
            if len(running) < slots and (jobs[i].kind != AUDIT or heavy < int(slots * share)):
                waiting.remove(i)
                running.append(i)

    while arrived < len(jobs) or waiting or running:
        for i in [i for i in running if left[i] == 0]:
            running.remove(i)
            response[i] = tick * step - jobs[i].at
        dispatch()
        while arrived < len(jobs) and round(jobs[arrived].at / step) <= tick:
            waiting.append(arrived)
            arrived += 1
        dispatch()
        for i in running:
            left[i] -= 1
        tick += 1
    return response


def test_hello_passes_chat_and_chat_passes_audit() -> None:
    jobs = [job(0, CHAT, 10), job(1, AUDIT, 5), job(2, CHAT, 5), job(3, HELLO, 1)]
    assert central_priority(jobs, slots=1, share=1.0) == [10, 20, 14, 8]


def test_audits_leave_slots_free_beyond_their_share() -> None:
    jobs = [job(0, AUDIT, 10) for _ in range(4)] + [job(1, HELLO, 1)]
    response = central_priority(jobs, slots=4, share=0.75)
    assert response == [10, 10, 10, 20, 1]


def test_by_path_a_chat_on_the_wrong_path_waits_with_the_audits() -> None:
    jobs = [job(0, CHAT, 10), Job(1, CHAT, "/audit", 5), job(2, CHAT, 5)]
    assert central_priority(jobs, slots=1, share=1.0) == [10, 14, 18]
    assert central_priority(jobs, slots=1, share=1.0, by_path=True) == [10, 19, 13]


@pytest.mark.parametrize("seed", range(20))
def test_priority_equals_its_restatement_in_steps(seed: int) -> None:
    rng = random.Random(seed)
    at, jobs = 0, []
    for _ in range(80):
        at += rng.randrange(1, 4)
        kind = rng.choice((HELLO, CHAT, CHAT, AUDIT))
        jobs.append(
            job(float(at), kind, float({HELLO: 1, CHAT: rng.randrange(1, 9), AUDIT: rng.randrange(9, 40)}[kind]))
        )
    assert central_priority(jobs, 4, 0.75) == stepped_priority(jobs, 4, 0.75, 1.0)


def test_shortest_remaining_interrupts_and_resumes() -> None:
    jobs = [job(0, AUDIT, 10), job(2, CHAT, 3), job(3, HELLO, 1)]
    assert clairvoyant_srpt(jobs, slots=1) == [14, 4, 1]


def test_shortest_remaining_is_the_floor_of_the_mean() -> None:
    for seed in range(5):
        jobs = script(0.9, 3000, seed)
        assert sum(clairvoyant_srpt(jobs)) <= sum(central_priority(jobs))


@pytest.mark.parametrize("reference", [central_priority, clairvoyant_srpt])
def test_nothing_waits_where_slots_are_free_and_all_are_served(reference: object) -> None:
    assert callable(reference)
    jobs = script(0.85, 400, 1, slots=24)
    alone = reference(jobs, 1000)
    assert alone == pytest.approx([j.seconds for j in jobs])
    crowded = reference(jobs, 6)
    assert all(r >= j.seconds - 1e-9 for r, j in zip(crowded, jobs, strict=True))
