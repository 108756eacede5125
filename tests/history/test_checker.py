"""The checker of histories, on histories made by hand: one that is right, and each way of being wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmarks.history.checker import check
from benchmarks.history.records import (
    Book,
    Claimed,
    Created,
    Fault,
    Gauge,
    Got,
    Left,
    Looked,
    Mark,
    Opened,
    Record,
    Said,
    load,
    save,
)


@dataclass
class Story:
    """A history in the making: one run, whose worker was lost after two steps, and another one finished it."""

    records: list[Record] = field(default_factory=list)
    now: float = 0.0
    ids: int = 0

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def created(self, key: str = "k", run: str | None = "r") -> None:
        self.records.append(Created("c", key, run, self.tick(), self.tick(), steps=3))

    def claimed(self, who: str, fence: int, checkpoint: tuple[int, int] | None = None) -> None:
        self.records.append(Claimed(who, "r", fence, fence, self.tick(), self.tick(), checkpoint))

    def said(self, who: str, verb: str, fence: int, outcome: str = "ok", **more: object) -> None:
        self.ids += 1
        begin, end = self.tick(), self.tick()
        self.records.append(
            Said(who, self.ids, verb, "r", fence, begin, end if outcome else None, outcome, **more)  # type: ignore[arg-type]
        )

    def opened(self, reader: str, after: int) -> None:
        self.records.append(Opened(reader, "r", after, self.tick()))

    def got(self, reader: str, *events: Got) -> None:
        for event in events:
            self.records.append(Got(reader, "r", event.seq, event.type, self.tick(), event.mark, event.data))

    def find(self, kind: type[Record], **fields: object) -> list[Record]:
        return [
            record
            for record in self.records
            if isinstance(record, kind) and all(getattr(record, name) == value for name, value in fields.items())
        ]

    def drop(self, kind: type[Record], **fields: object) -> None:
        gone = self.find(kind, **fields)
        assert gone
        self.records = [record for record in self.records if record not in gone]


def mark(fence: int, n: int, step: int) -> Mark:
    return Mark(f"r:{fence}", n, step, fence=fence)


A1, A2 = mark(1, 1, 0), mark(1, 2, 1)
B1, B2 = mark(2, 1, 1), mark(2, 2, 2)


def event(seq: int, type_: str, mark_: Mark | None = None, data: str = "") -> Got:
    return Got("", "", seq, type_, 0.0, mark_, data)


LOG = [
    event(0, "run.created", data="{}"),
    event(1, "run.attempt", data='{"n": 1}'),
    event(2, "step", A1),
    event(3, "step", A2),
    event(4, "run.attempt", data='{"n": 2}'),
    event(5, "step", B1),
    event(6, "step", B2),
    event(7, "run.completed", data="{}"),
]


def story(log: list[Got] = LOG) -> Story:
    made = Story()
    made.created()
    made.created()  # asked twice: the same run
    made.claimed("a", 1)
    made.said("a", "append", 1, batch=1, events=(A1,), first=2, next=3)
    made.said("a", "heartbeat", 1, checkpoint=(1, 1))
    made.said("a", "append", 1, outcome="", batch=2, events=(A2,))
    made.claimed("b", 2, checkpoint=(1, 1))
    made.said("b", "append", 2, batch=1, events=(B1,), first=5, next=6)
    made.said("a", "append", 1, outcome="fenced", batch=3, events=(mark(1, 3, 2),))
    made.said("b", "finish", 2, status="completed", batch=2, events=(B2,))
    made.opened("x", -1)
    made.got("x", *log[:4])
    made.opened("x", 3)
    made.got("x", *log[4:])
    made.opened("y", -1)
    made.got("y", *log)
    made.records.append(Looked("r", "completed", made.tick(), result=2))
    made.records += [Left("store", 0, 0), Gauge("g", 3, made.tick()), Gauge("g", 0, made.tick(), last=True)]
    made.records.append(Fault("worker", "a", made.tick()))
    return made


def replaced(seq: int, *instead: Got) -> list[Got]:
    return [each for old in LOG for each in (instead if old.seq == seq else (old,))]


def renumbered(log: list[Got]) -> list[Got]:
    return [event(seq, old.type, old.mark, old.data) for seq, old in enumerate(log)]


def rules(made: Story) -> set[str]:
    return {violation.rule for violation in check(made.records)}


def test_a_history_that_is_right() -> None:
    assert check(story().records) == []


def test_the_order_of_the_records_does_not_matter() -> None:
    assert check(list(reversed(story().records))) == []


def test_an_empty_history_breaks_nothing() -> None:
    assert check([]) == []


def acknowledged_and_gone(made: Story) -> None:
    made.drop(Looked)
    made.records.append(Looked("r", "", made.tick()))


def acknowledged_and_never_looked_at(made: Story) -> None:
    made.created("other", "r2")


def acknowledged_and_running_for_ever(made: Story) -> None:
    made.drop(Looked)
    made.records.append(Looked("r", "running", made.tick()))


@pytest.mark.parametrize(
    "plant", [acknowledged_and_gone, acknowledged_and_never_looked_at, acknowledged_and_running_for_ever]
)
def test_a_lost_run(plant: Callable[[Story], None]) -> None:
    made = story()
    plant(made)
    assert "lost" in rules(made)


def test_a_create_that_nobody_acknowledged_may_be_lost() -> None:
    made = story()
    made.created("unanswered", None)
    assert check(made.records) == []


def test_a_key_that_made_two_runs() -> None:
    made = story()
    made.created("k", "r2")
    made.records.append(Looked("r2", "completed", made.tick()))
    assert "key" in rules(made)


def test_an_event_that_a_reader_missed() -> None:
    made = story()
    made.drop(Got, reader="y", seq=5)
    assert rules(made) == {"reader"}


def test_an_event_that_a_reader_had_twice() -> None:
    made = story()
    last = made.find(Got, reader="y", seq=7)[0]
    made.records.append(last)
    assert rules(made) == {"reader"}


def test_an_event_that_came_again_after_a_resume() -> None:
    made = story()
    place = made.records.index(made.find(Opened, reader="x", after=3)[0])
    at = made.records[place].at + 0.5  # type: ignore[union-attr]
    made.records.insert(place + 1, Got("x", "r", 3, "step", at, A2))
    assert rules(made) == {"reader"}


def test_a_reader_that_was_not_given_the_end() -> None:
    made = story()
    made.drop(Got, reader="x", seq=7)
    assert rules(made) == {"reader"}


def test_a_reader_that_was_given_nothing() -> None:
    made = story()
    made.opened("z", -1)
    assert rules(made) == {"reader"}


def test_a_gap_that_a_reader_was_told_of() -> None:
    made = story()
    made.got("y", event(-1, "gap", data='{"next": 4}'))
    assert "gap" in rules(made)


def test_two_readers_that_were_told_different_things() -> None:
    made = story()
    made.opened("z", -1)
    made.got("z", *replaced(7, event(7, "run.failed", data="{}")))
    assert "differs" in rules(made)


@pytest.mark.parametrize(
    "log",
    [
        [*LOG, event(8, "run.failed", data="{}")],
        [*LOG, event(8, "step", mark(2, 3, 2))],
        replaced(7, event(7, "run.failed", data="{}")),
        replaced(0, event(0, "step", A1)),
        LOG[:7],
    ],
    ids=["two of them", "not the last", "not as it stands", "a log without its beginning", "none"],
)
def test_a_log_has_one_end(log: list[Got]) -> None:
    assert "terminal" in rules(story(log))


def test_a_run_that_was_queued_again_has_two_ends() -> None:
    log = renumbered([*LOG[:4], event(0, "run.failed", data="{}"), event(0, "run.requeued", data="{}"), *LOG[4:]])
    made = story(log)
    made.drop(Said, verb="append", fence=2)
    made.said("b", "append", 2, batch=1, events=(B1,), first=7, next=8)
    made.said("a", "append", 1, outcome="fenced", batch=3, events=(mark(1, 3, 2),))
    assert [violation for violation in check(made.records) if violation.rule == "terminal"] == []


def test_a_fence_that_was_given_twice() -> None:
    made = story()
    made.claimed("c", 2, checkpoint=(1, 1))
    assert "stale" in rules(made)


def test_a_fence_that_went_back() -> None:
    made = story()
    made.drop(Claimed, fence=1)
    made.claimed("a", 1)
    assert "stale" in rules(made)


@pytest.mark.parametrize("verb", ["append", "heartbeat", "release", "finish"])
def test_a_stale_owner_that_was_listened_to(verb: str) -> None:
    made = story()
    more = {"batch": 3, "events": (A2,), "first": 3, "next": 4} if verb == "append" else {}
    made.said("a", verb, 1, **more)
    assert "stale" in rules(made)


def test_a_stale_owner_whose_answer_was_late_only() -> None:
    made = story()
    begin = made.find(Claimed, fence=2)[0].begin - 0.5  # type: ignore[union-attr]
    made.records.append(Said("a", 99, "heartbeat", "r", 1, begin, made.tick(), "ok"))
    assert check(made.records) == [], "it was asked before another had the run, and may have been accepted then"


def test_a_stale_event_in_the_log_though_nobody_heard_so() -> None:
    made = story(renumbered([*LOG[:6], event(0, "step", mark(1, 3, 2)), *LOG[6:]]))
    assert "stale" in rules(made)


def test_an_execution_without_fences_among_anothers_events() -> None:
    pushed = [
        event(0, "run.created", data="{}"),
        event(0, "run.attempt", data='{"n": 1}'),
        event(0, "step", Mark("p", 1, 0, attempt=1)),
        event(0, "run.attempt", data='{"n": 2}'),
        event(0, "step", Mark("q", 1, 0, attempt=2)),
        event(0, "step", Mark("q", 2, 1, attempt=2)),
        event(0, "run.completed", data="{}"),
    ]

    def made(log: list[Got]) -> Story:
        made = Story()
        made.opened("x", -1)
        made.got("x", *renumbered(log))
        return made

    assert check(made(pushed).records) == []
    late = made([*pushed[:5], event(0, "step", Mark("p", 2, 1, attempt=1)), *pushed[5:]])
    assert rules(late) == {"stale"}
    between = made([*pushed[:5], event(0, "step", Mark("p", 2, 1, attempt=2)), *pushed[5:]])
    assert "stale" in rules(between)


def test_a_result_of_a_stale_owner() -> None:
    made = story()
    made.drop(Looked)
    made.records.append(Looked("r", "completed", made.tick(), result=1))
    assert rules(made) == {"stale"}


def test_a_run_finished_by_two_owners() -> None:
    made = story()
    made.records.append(Said("a", 99, "finish", "r", 1, 1.0, made.tick(), "ok", status="completed"))
    assert rules(made) == {"stale"}


@pytest.mark.parametrize(
    "log",
    [
        renumbered([*LOG[:2], *LOG[3:]]),
        renumbered([*LOG[:6], *LOG[7:]]),
        renumbered([*LOG[:6], LOG[6], LOG[6], *LOG[7:]]),
        renumbered([*LOG[:5], LOG[6], LOG[5], LOG[7]]),
        replaced(6, event(6, "step", Mark("r:2", 2, 1, fence=2))),
    ],
    ids=["lost", "lost at the end", "doubled", "out of order", "another one"],
)
def test_events_of_a_log_that_are_not_those_that_were_sent(log: list[Got]) -> None:
    assert "events" in rules(story(log))


def test_an_event_that_was_sent_without_an_answer_may_be_there_or_not() -> None:
    without = story(renumbered([*LOG[:3], *LOG[4:]]))
    without.drop(Said, verb="append", fence=2)
    without.said("b", "append", 2, batch=1, events=(B1,), first=4, next=5)
    without.drop(Opened, reader="x", after=3)
    assert check(without.records) == []


@pytest.mark.parametrize("given", [None, (1, 0), (1, 7)], ids=["none", "an older one", "one of nobody"])
def test_a_checkpoint_that_was_lost(given: tuple[int, int] | None) -> None:
    made = story()
    made.drop(Claimed, fence=2)
    begin = made.find(Said, batch=1, fence=2)[0].begin  # type: ignore[union-attr]
    made.records.append(Claimed("b", "r", 2, 2, begin - 0.5, begin - 0.4, given))
    assert rules(made) == {"checkpoint"}


def test_a_completed_run_that_does_not_show_all_its_work() -> None:
    made = story()
    made.records = [
        Created(record.who, record.key, record.run, record.begin, record.end, steps=5)
        if isinstance(record, Created)
        else record
        for record in made.records
    ]
    assert rules(made) == {"work"}


@pytest.mark.parametrize("left", [Left("s", 1, 0), Left("s", 0, 1), Left("s", 0, 0, 1)])
def test_what_is_left_behind(left: Left) -> None:
    made = story()
    made.records.append(left)
    assert rules(made) == {"left"}


@pytest.mark.parametrize("gauge", [Gauge("g", -1, 5.0), Gauge("h", 1, 5.0, last=True)])
def test_a_quota_below_zero_or_not_given_back(gauge: Gauge) -> None:
    made = story()
    made.records.append(gauge)
    assert rules(made) == {"quota"}


def test_a_violation_says_what_and_where() -> None:
    made = story()
    made.drop(Got, reader="y", seq=5)
    assert [str(violation) for violation in check(made.records)] == ["reader: r: y was given 6 after 4"]


# -- records -------------------------------------------------------------------------------------------------


def test_records_of_a_process_that_was_killed(tmp_path: Path) -> None:
    book = Book(tmp_path / "w")
    said = Said("w", book.next_id(), "append", "r", 1, 1.0, batch=1, events=(A1,))
    book.write(said)
    book.write(Claimed("w", "r2", 1, 1, 2.0, 3.0))
    answered = Said("w", said.id, "append", "r", 1, 1.0, 4.0, "ok", 1, (A1,), 2, 3)
    book.write(answered)
    asked = Said("w", book.next_id(), "heartbeat", "r", 1, 5.0)
    book.write(asked)
    book.close()
    with (tmp_path / "w").open("ab") as file:
        file.write(b'{"type":"Said","who":"w","id":')  # killed within a write
    assert load([tmp_path / "w"]) == [answered, Claimed("w", "r2", 1, 1, 2.0, 3.0), asked]


def test_a_history_that_was_kept_is_the_same(tmp_path: Path) -> None:
    made = story().records
    save(tmp_path / "h", made)
    assert load([tmp_path / "h"]) == made
