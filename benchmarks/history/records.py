"""What a history is made of: one record for each thing that a client or a worker asked, was told, or saw.

Times are seconds of the machine's monotonic clock, the same for all processes. `begin`: just before the question was
sent; `end`: when its answer was there, None when none ever was (its process was killed, its connection cut): then it
may have been acted on, or not. JSON, a record to a line; of two with the same `id` of one `who` the later one counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an execution writes into each of its events, so that they can be told apart. `by`: the execution, unique;
    `n`: its events are numbered from 1; `fence`, `attempt`: what it was told that it has; `step`: of the work."""

    by: str
    n: int
    step: int = -1
    fence: int | None = None
    attempt: int | None = None


class Created(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """A client asked for a run with this idempotency key. `steps`: of its work, all of which its log has to show if it
    completes. `run`: None when none was acknowledged."""

    who: str
    key: str
    run: str | None
    begin: float
    end: float | None = None
    steps: int = 0


class Claimed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """A worker was given a run. `checkpoint`: of which (fence, step), None without one."""

    who: str
    run: str
    fence: int
    attempt: int
    begin: float
    end: float
    checkpoint: tuple[int, int] | None = None


class Said(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """An owner's call: `verb` is append, heartbeat, finish or release. `outcome`: ok, fenced, refused, or empty when
    nobody knows. `first`, `next`: of the answer to an append."""

    who: str
    id: int
    verb: str
    run: str
    fence: int
    begin: float
    end: float | None = None
    outcome: str = ""
    batch: int | None = None
    events: tuple[Mark, ...] = ()
    first: int = -1
    next: int = -1
    status: str = ""
    checkpoint: tuple[int, int] | None = None


class Opened(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """A reader asked, over a new connection or question, for what comes after `after`."""

    reader: str
    run: str
    after: int
    at: float


class Got(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """A reader was given an event, as it came over the wire. `seq` -1: it was told that the log has a gap. `mark`: of
    an execution's event; `data`: of any other, as JSON."""

    reader: str
    run: str
    seq: int
    type: str
    at: float
    mark: Mark | None = None
    data: str = ""


class Looked(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """How a run stood when all was over. `status`: empty when there was no such run. `result`: the fence that the
    result tells of."""

    run: str
    status: str
    at: float
    error: str = ""
    result: int | None = None


class Left(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """What the store held when all was over."""

    where: str
    queued: int
    running: int
    leases: int = 0


class Gauge(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """Something that is taken and given back, such as an endpoint's slots. `last`: no more is under way."""

    name: str
    value: float
    at: float
    last: bool = False


class Fault(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="record", tag=str.lower):
    """What was done to the system. For people; no rule is about it."""

    kind: str
    target: str
    at: float


Record = Created | Claimed | Said | Opened | Got | Looked | Left | Gauge | Fault

_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


class Book:
    """Records of a process that may be killed at any time: each is in the file when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._ids = 0

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def write(self, record: Record) -> None:
        os.write(self._file, _encode(record) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def load(paths: Iterable[Path]) -> list[Record]:
    """What processes have written, each in a file of its own. The last line of a killed one may be torn. Raises
    msgspec.DecodeError for any other that is no record."""
    found: list[Record] = []
    for path in paths:
        place: dict[tuple[str, int], int] = {}
        lines = path.read_bytes().split(b"\n")
        torn = lines.pop()
        del torn
        for line in lines:
            record = _decode(line)
            if isinstance(record, Said):
                at = place.setdefault((record.who, record.id), len(found))
                if at < len(found):
                    found[at] = record
                    continue
            found.append(record)
    return found


def save(path: Path, history: Sequence[Record]) -> None:
    with path.open("wb") as file:
        for record in history:
            file.write(_encode(record) + b"\n")
