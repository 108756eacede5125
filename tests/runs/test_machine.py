"""The table of states: nothing happens that isn't in it, and what has ended stays so."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from unjam.runs.machine import (
    FINISH,
    TABLE,
    TERMINAL,
    Change,
    Illegal,
    Status,
    Trigger,
    after_loss,
    after_release,
    change,
    picture,
)

STATES: tuple[Status, ...] = get_args(Status)
TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)

#: Written down a second time, in the order of TRIGGERS; "" where it can't happen.
ALLOWED: dict[Status, dict[Trigger, Status]] = {
    "queued": {"claim": "running", "cancel": "cancelled", "expire": "expired"},
    "running": {
        "complete": "completed",
        "fail": "failed",
        "stopped": "cancelled",
        "cancel": "running",
        "release": "queued",
        "lost_resumable": "queued",
        "lost_unresumable": "failed",
        "exhausted": "failed",
        "expire": "expired",
    },
    "completed": {},
    "failed": {"requeue": "queued"},
    "cancelled": {},
    "expired": {"requeue": "queued"},
}


@pytest.mark.parametrize(("status", "trigger"), list(itertools.product(STATES, TRIGGERS)))
def test_only_what_is_allowed_happens(status: Status, trigger: Trigger) -> None:
    if trigger in ALLOWED[status]:
        assert change(status, trigger).to == ALLOWED[status][trigger]
    else:
        with pytest.raises(Illegal, match=status):
            change(status, trigger)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_end_is_final_but_for_somebody_who_wants_it_again(status: Status) -> None:
    assert {trigger for state, trigger in TABLE if state == status} <= {"requeue"}


@pytest.mark.parametrize("where", list(TABLE))
def test_every_end_is_told_by_its_event(where: tuple[Status, Trigger]) -> None:
    to = TABLE[where]
    if to.to in TERMINAL:
        assert to.event == f"run.{to.to}"
    else:
        assert to.event in (None, "run.attempt", "run.requeued")


def test_only_a_claim_is_charged() -> None:
    assert [where for where, to in TABLE.items() if to.charged] == [("queued", "claim")]


def test_every_state_can_be_reached_and_left() -> None:
    assert {to.to for to in TABLE.values()} == set(STATES)
    reached: set[Status] = {"queued"}
    while more := {to.to for (status, _), to in TABLE.items() if status in reached} - reached:
        reached |= more
    assert reached == set(STATES)


def test_every_trigger_is_of_use() -> None:
    assert {trigger for _, trigger in TABLE} == set(TRIGGERS)


def test_a_worker_can_say_three_ends() -> None:
    ends = {status: change("running", trigger).to for status, trigger in FINISH.items()}
    assert ends == {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}


@dataclass
class Executed:
    retry: str = "fail"
    max_attempts: int = 3
    attempt: int = 1
    cancel_requested: bool = False
    has_checkpoint: bool = False


@pytest.mark.parametrize(
    ("run", "shown", "then"),
    [
        (Executed(), False, "lost_resumable"),
        (Executed(), True, "lost_unresumable"),
        (Executed(has_checkpoint=True), True, "lost_resumable"),
        (Executed(retry="restart"), True, "lost_resumable"),
        (Executed(attempt=2), False, "lost_resumable"),
        (Executed(attempt=3), False, "exhausted"),
        (Executed(attempt=4), False, "exhausted"),
        (Executed(max_attempts=1), False, "exhausted"),
        (Executed(attempt=3, has_checkpoint=True), True, "exhausted"),
        (Executed(attempt=3, retry="restart"), True, "exhausted"),
        (Executed(attempt=3), True, "lost_unresumable"),
        (Executed(cancel_requested=True), False, "stopped"),
        (Executed(cancel_requested=True, attempt=3), True, "stopped"),
    ],
)
def test_what_becomes_of_a_run_whose_worker_is_lost(run: Executed, shown: bool, then: Trigger) -> None:
    assert after_loss(run, shown) == then


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("retry", ["fail", "restart"])
@pytest.mark.parametrize("attempt", [1, 2, 3])
@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_whatever_is_decided_can_happen(shown: bool, retry: str, attempt: int, cancel: bool, checkpoint: bool) -> None:
    run = Executed(retry, 3, attempt, cancel, checkpoint)
    assert isinstance(change("running", after_loss(run, shown)), Change)
    assert isinstance(change("running", after_release(run)), Change)


def test_what_is_handed_back_waits_unless_it_was_to_stop() -> None:
    assert after_release(Executed()) == "release"
    assert after_release(Executed(cancel_requested=True)) == "stopped"


def test_the_picture_in_the_docs_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{picture()}```" in page
    # And the picture has every line of the table: it is read back here.
    drawn = {
        (status, trigger, to)
        for status, to, triggers in re.findall(r"^    (\w+) --> (\w+): (.+)$", picture(), re.MULTILINE)
        for trigger in triggers.split(", ")
    }
    assert drawn == {(status, trigger, to.to) for (status, trigger), to in TABLE.items()}


def test_every_trigger_is_explained_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    for trigger in TRIGGERS:
        assert f"`{trigger}`" in page, trigger
