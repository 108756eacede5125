"""Does a history keep the promises of durable runs? Pure: records in, violations out, in any order of the records.

Rules, by name:

- `lost`: a run that was acknowledged is there in the end, and has ended.
- `key`: one idempotency key, one run.
- `reader`: each reader was given the numbers from its beginning on, one by one, to the last event, none twice.
- `gap`: nobody was told that a log has lost something.
- `differs`: an event is the same for all who read it.
- `terminal`: a log has one terminal event, its last, and it is the state that the run is in.
- `stale`: no claim is given a fence twice or out of order; what an owner says once another has the run changes nothing:
  it isn't accepted, and the log has no event of it.
- `events`: what was acknowledged is in the log, where it was said to be; of an execution all events up to its last
  one, once, in order; nothing that nobody sent.
- `checkpoint`: who goes on is given the last checkpoint that was acknowledged, or a later one.
- `work`: the log of a completed run shows each step of it.
- `left`: nothing waits, runs or holds a lease in the end.
- `quota`: what is taken and given back is never below zero, and zero in the end.

Where an answer is missing the question may have had its effect or not; both are allowed for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from .records import Claimed, Created, Gauge, Got, Left, Looked, Mark, Opened, Record, Said

TERMINAL: Final = {
    "run.completed": "completed",
    "run.failed": "failed",
    "run.cancelled": "cancelled",
    "run.expired": "expired",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule`: see above. `run`: its id; empty when it isn't about one."""

    rule: str
    run: str
    words: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.run + ': ' if self.run else ''}{self.words}"


@dataclass(slots=True)
class _Run:
    """All that is known of one run, sorted by whom."""

    acknowledged: list[Created] = field(default_factory=list)
    steps: int = 0
    claims: list[Claimed] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    #: By reader, in the order of their times.
    readers: dict[str, list[Opened | Got]] = field(default_factory=lambda: defaultdict(list))
    looked: Looked | None = None
    #: The log, by what all readers were given.
    log: dict[int, Got] = field(default_factory=dict)


def check(history: Iterable[Record]) -> list[Violation]:
    """Every violation of the rules above; empty for a history that keeps the promises."""
    found: list[Violation] = []
    runs: dict[str, _Run] = defaultdict(_Run)
    keys: dict[str, set[str]] = defaultdict(set)
    gauges: dict[str, list[Gauge]] = defaultdict(list)
    for record in history:
        match record:
            case Created(run=str(run)):
                runs[run].acknowledged.append(record)
                runs[run].steps = record.steps
                keys[record.key].add(run)
            case Claimed():
                runs[record.run].claims.append(record)
            case Said():
                runs[record.run].said.append(record)
            case Opened() | Got():
                runs[record.run].readers[record.reader].append(record)
            case Looked():
                runs[record.run].looked = record
            case Left():
                found += _left(record)
            case Gauge():
                gauges[record.name].append(record)
            case _:
                pass
    for key, same in keys.items():
        if len(same) > 1:
            found.append(Violation("key", "", f"{key} made {len(same)} runs: {', '.join(sorted(same))}"))
    for name, values in gauges.items():
        found += _gauge(name, values)
    for run, known in runs.items():
        found += _Check(run, known).all()
    return found


def _left(left: Left) -> Iterable[Violation]:
    for name in ("queued", "running", "leases"):
        if count := getattr(left, name):
            yield Violation("left", "", f"{left.where} has {name}: {count}")


def _gauge(name: str, values: list[Gauge]) -> Iterable[Violation]:
    for each in values:
        if each.value < 0 or (each.last and each.value):
            yield Violation("quota", "", f"{name} is {each.value:g}{' in the end' if each.last else ''}")


class _Check:
    """One run against all rules that are about one."""

    def __init__(self, run: str, known: _Run) -> None:
        self.run = run
        self.known = known
        self.found: list[Violation] = []

    def no(self, rule: str, words: str) -> None:
        self.found.append(Violation(rule, self.run, words))

    def all(self) -> list[Violation]:
        for reader, records in self.known.readers.items():
            # Of one moment: in the order they were written down.
            self._reader(reader, sorted(records, key=lambda record: record.at))
        self._lost()
        self._claims()
        self._accepted()
        self._checkpoints()
        if self.known.log:
            log = [self.known.log[seq] for seq in sorted(self.known.log)]
            self._terminal(log)
            self._executions(log)
            self._acknowledged_events()
            self._work(log)
        return self.found

    @property
    def _requeued(self) -> bool:
        """It was begun again after an end, so it may have had several."""
        return any(event.type == "run.requeued" for event in self.known.log.values())

    # -- readers ---------------------------------------------------------------------------------------------

    def _reader(self, reader: str, records: list[Opened | Got]) -> None:
        first = records[0]
        last = first.after if isinstance(first, Opened) else -1
        ended = False
        for record in records:
            if isinstance(record, Opened):
                if record.after != last:
                    self.no("reader", f"{reader} came back after {record.after}, having had {last}")
                continue
            if record.seq < 0:
                self.no("gap", f"{reader} was told of a gap after {last}")
                continue
            if record.seq <= last:
                self.no("reader", f"{reader} was given {record.seq} again, having had {last}")
            elif record.seq != last + 1:
                self.no("reader", f"{reader} was given {record.seq} after {last}")
            last = max(last, record.seq)
            ended = record.type in TERMINAL
            known = self.known.log.setdefault(record.seq, record)
            if (known.type, known.mark, known.data) != (record.type, record.mark, record.data):
                self.no(
                    "differs", f"event {record.seq} is {_shown(known)} to {known.reader}, {_shown(record)} to {reader}"
                )
        if not ended:
            self.no("reader", f"{reader} was not given the end: the last it had was {last}")

    # -- the run's life --------------------------------------------------------------------------------------

    def _lost(self) -> None:
        looked = self.known.looked
        if not self.known.acknowledged:
            return
        if looked is None or not looked.status:
            self.no("lost", "it was acknowledged, and isn't there in the end")
        elif looked.status not in TERMINAL.values():
            self.no("lost", f"it was acknowledged, and is {looked.status} in the end")

    def _claims(self) -> None:
        by_fence: dict[int, Claimed] = {}
        for claim in self.known.claims:
            other = by_fence.setdefault(claim.fence, claim)
            if other is not claim:
                self.no("stale", f"fence {claim.fence} was given to {other.who} and to {claim.who}")
        latest: Claimed | None = None
        for claim in sorted(self.known.claims, key=lambda claim: claim.end):
            # Those that had ended before this one began; a later end can't be before it either.
            if latest is not None and latest.end < claim.begin and latest.fence > claim.fence:
                self.no("stale", f"{claim.who} was given fence {claim.fence} after {latest.who} had {latest.fence}")
            if latest is None or claim.fence > latest.fence:
                latest = claim

    def _accepted(self) -> None:
        """By the clock: nothing of an owner was accepted that it only asked once another had the run."""
        finished: dict[int, Said] = {}
        for said in self.known.said:
            if said.outcome != "ok":
                continue
            if said.verb == "finish":
                finished[said.fence] = said
            for claim in self.known.claims:
                if claim.fence > said.fence and claim.end < said.begin:
                    words = f"{said.verb} of {said.who} with fence {said.fence} was accepted"
                    self.no("stale", f"{words} although {claim.who} had the run with {claim.fence}")
                    break
        if len(finished) > 1 and not self._requeued:
            self.no("stale", f"it was finished by fences {', '.join(map(str, sorted(finished)))}")

    def _checkpoints(self) -> None:
        saved = [said for said in self.known.said if said.checkpoint is not None]
        for claim in self.known.claims:
            sure = [
                said.checkpoint
                for said in saved
                if said.outcome == "ok"
                and said.fence < claim.fence
                # Otherwise it is the fence that was not obeyed.
                and said.begin < claim.end
                and said.checkpoint is not None
            ]
            if sure and (claim.checkpoint is None or claim.checkpoint < max(sure)):
                given = (
                    "none"
                    if claim.checkpoint is None
                    else f"that of fence {claim.checkpoint[0]}, step {claim.checkpoint[1]}"
                )
                fence, step = max(sure)
                self.no("checkpoint", f"{claim.who} was given {given}; fence {fence} had saved step {step}")
            if claim.checkpoint is not None and all(said.checkpoint != claim.checkpoint for said in saved):
                self.no("checkpoint", f"{claim.who} was given one that nobody saved: {claim.checkpoint}")

    # -- the log ---------------------------------------------------------------------------------------------

    def _terminal(self, log: list[Got]) -> None:
        ends = [event for event in log if event.type in TERMINAL]
        requeued = sum(event.type == "run.requeued" for event in log)
        if len(ends) - requeued != 1:
            shown = ", ".join(f"{event.seq} {event.type}" for event in ends) or "none"
            self.no("terminal", f"its terminal events: {shown}")
        if log[-1].type not in TERMINAL:
            self.no("terminal", f"its last event is {_shown(log[-1])}")
        elif self.known.looked is not None and self.known.looked.status != TERMINAL[log[-1].type]:
            self.no("terminal", f"it is {self.known.looked.status or 'gone'}, its log says {log[-1].type}")
        if log[0].seq == 0 and log[0].type != "run.created":
            self.no("terminal", f"its first event is {_shown(log[0])}")

    def _executions(self, log: list[Got]) -> None:
        """By the log itself: between two `run.attempt` there are events of the one execution that was begun there. Each
        claim writes one, so their count is the fence."""
        fence, attempt = 0, 0
        by: str | None = None
        counted: dict[str, int] = {}
        for event in log:
            if event.type == "run.attempt":
                fence, by = fence + 1, None
                attempt = _number(event.data)
            mark = event.mark
            if mark is None:
                continue
            if mark.fence is not None and mark.fence != fence:
                self.no("stale", f"event {event.seq} is of fence {mark.fence}, when {fence} had the run")
            if mark.attempt is not None and mark.attempt != attempt:
                self.no("stale", f"event {event.seq} is of attempt {mark.attempt}, in attempt {attempt}")
            if by is not None and mark.by != by:
                self.no("stale", f"event {event.seq} is of {mark.by}, between those of {by}")
            by = mark.by
            expected = counted.get(mark.by, 0) + 1
            if mark.n != expected:
                self.no("events", f"event {event.seq} is number {mark.n} of {mark.by}, when {expected} was due")
            counted[mark.by] = mark.n
        looked = self.known.looked
        if looked is not None and looked.result is not None and looked.result != fence:
            self.no("stale", f"its result is of fence {looked.result}, when {fence} had the run")
        for said in self.known.said:
            if said.verb == "finish" and said.outcome == "ok" and said.fence != fence and not self._requeued:
                self.no("stale", f"fence {said.fence} finished it, when {fence} had the run")

    def _acknowledged_events(self) -> None:
        sent: set[Mark] = set()
        in_log = {event.mark for event in self.known.log.values() if event.mark is not None}
        for said in self.known.said:
            sent.update(said.events)
            if said.outcome != "ok":
                continue
            for place, mark in enumerate(said.events):
                event = self.known.log.get(said.first + place)
                if said.verb == "append" and (event is None or event.mark != mark):
                    there = "nothing" if event is None else _shown(event)
                    self.no("events", f"{_name(mark)} was acknowledged as {said.first + place}; there is {there}")
                elif mark not in in_log:
                    self.no("events", f"{_name(mark)} was acknowledged, and is nowhere in the log")
        for mark in in_log:
            # Events of agents that know of no fence reach the log by a gateway, which writes no records.
            if mark.fence is not None and mark not in sent:
                self.no("events", f"{_name(mark)} is in the log; nobody sent it")

    def _work(self, log: list[Got]) -> None:
        if log[-1].type != "run.completed":
            return
        shown = {event.mark.step for event in log if event.mark is not None}
        if missing := set(range(self.known.steps)) - shown:
            self.no("work", f"it completed, and its log doesn't show step {', '.join(map(str, sorted(missing)))}")


def _number(data: str) -> int:
    """`n` of a `run.attempt`."""
    try:
        return int(json.loads(data)["n"])
    except (ValueError, KeyError, TypeError):
        return -1


def _name(mark: Mark) -> str:
    return f"event {mark.n} of {mark.by}"


def _shown(event: Got) -> str:
    return f"{event.type} ({_name(event.mark)})" if event.mark is not None else f"{event.type} {event.data}".strip()
