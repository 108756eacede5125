"""The head of the last message on a connection, cut at the lines that change: the next one is compared, not parsed.

Keep-alive peers repeat themselves: of two successive heads usually only Content-Length, an id or a date differ. A
`Shape` holds the bytes between those lines. A head that has the same bytes there has the same fields, so only the
lines in between go through the grammar (`LineTable`, as ever), and the head object is brought up to date in place.
Anything else, a line more, another order, a line that is malformed, is not of this shape and is parsed from scratch:
a shape can save work, it can't accept what the parser would not.

Measured for a head of ten fields of which two change: see docs/wire.md.
"""

from __future__ import annotations

from typing import Any, Protocol

from unjam.wire.errors import Malformed
from unjam.wire.lines import BOTH, EXPECT, KNOWN, LENGTH, PLAIN, LineTable

#: Lines that may differ between two heads of one shape, and how many bytes of head are worth comparing.
MOST_VARYING = 6
MOST_BYTES = 4096

#: What a shell derived from a head (`memo`) does not depend on these.
_FREE = frozenset((b"x-request-id", b"content-length"))


class Head(Protocol):
    """What request and response heads have in common. `memo`: what a shell derived from all of the head but its length
    and x-request-id; None when it has to be derived anew."""

    _lines: list[bytes]
    forward: list[bytes]
    known: dict[bytes, bytes]
    length: int | None
    memo: Any


class Shape:
    """See the module. `used`: it has served at least once."""

    __slots__ = ("_first", "_size", "_table", "_varying", "head", "indices", "used")

    def __init__(self, table: LineTable, start: bytes, head: Any, indices: list[int], places: list[int]) -> None:
        lines = head._lines
        self._table = table
        self.head = head
        self.indices = indices
        self.used = False
        cuts = [0, *(index + 1 for index in indices)]
        ends = [*indices, len(lines)]
        pieces = [b"".join(b"%b\r\n" % line for line in lines[a:b]) for a, b in zip(cuts, ends, strict=True)]
        self._first = start + b"\r\n" + pieces[0]
        #: Of each varying line: its index, kind, name, `Name: ` as spelt, place in `forward`, and the bytes between it
        #: and the next.
        self._varying: list[tuple[int, int, bytes, bytes, int, bytes]] = []
        for index, place, piece in zip(indices, places, pieces[1:], strict=True):
            line = lines[index]
            kind, _, name, _ = table.entry(line)
            self._varying.append((index, kind, name, line[: len(name)] + b": ", place, b"\r\n" + piece))
        if self._varying:
            index, kind, name, spelt, place, piece = self._varying[-1]
            self._varying[-1] = index, kind, name, spelt, place, piece + b"\r\n"
        else:
            self._first += b"\r\n"
        self._size = len(self._first)

    def read(self, data: bytes) -> int:
        """The length of the head that `data` begins with, with `head` brought up to date; -1: not of this shape."""
        if not data.startswith(self._first):
            return -1
        at = self._size
        head = self.head
        lines = head._lines
        entry = self._table.entry
        try:
            for index, kind, name, spelt, place, after in self._varying:
                end = data.find(b"\r\n", at)
                if end < 0 or not data.startswith(after, end):
                    return -1
                line = data[at:end]
                at = end + len(after)
                if line != lines[index]:
                    value: Any = line[len(spelt) :]
                    # Letters, digits and dashes behind the same name need no grammar: ids and trace contexts.
                    if kind <= KNOWN and line.startswith(spelt) and value.replace(b"-", b"0").isalnum():
                        wire = line + b"\r\n"
                    else:
                        found, wire, its_name, value = entry(line)
                        if found != kind or its_name != name:
                            return -1
                    lines[index] = line
                    if kind == LENGTH:
                        head.length = value
                        continue
                    if kind != PLAIN:
                        head.known[name] = value
                    if kind != KNOWN:
                        head.forward[place] = wire
                    if name not in _FREE:
                        head.memo = None
        except Malformed:
            return -1  # the parser names the first offence
        if at > MOST_BYTES:
            return -1
        self.used = True
        return at


def learn(table: LineTable, start: bytes, before: Head, head: Head, old: Shape | None) -> Shape | None:
    """The shape of two successive heads with the same start line; None when they differ in more than values."""
    lines, former = head._lines, before._lines
    if len(lines) != len(former) or sum(map(len, lines)) > MOST_BYTES // 2:
        return None
    changed = {index for index, line in enumerate(lines) if line != former[index]}
    if old is not None and len(old.head._lines) == len(lines):
        changed.update(old.indices)  # what has varied once may again
    if len(changed) > MOST_VARYING:
        return None
    entries = [table.entry(line) for line in lines]
    if any(entry[0] == EXPECT for entry in entries):
        return None  # what it asks for depends on the length
    names = [entry[2] for entry in entries]
    indices = sorted(changed)
    places = []
    for index in indices:
        kind, wire, name, _ = entries[index]
        if names.count(name) != 1 or table.entry(former[index])[2] != name:
            return None
        if kind in (LENGTH, KNOWN):
            places.append(-1)
        elif kind in (PLAIN, BOTH) and head.forward.count(wire) == 1:
            places.append(head.forward.index(wire))
        else:
            return None
    return Shape(table, start, head, indices, places)


class Memory:
    """What a reader remembers of the heads it has read: the last one and its shape. Learning is given up on peers whose
    heads don't repeat: it is tried after the 2nd, 4th, 8th … miss in a row."""

    __slots__ = ("_head", "_misses", "_start", "_table", "shape")

    def __init__(self, table: LineTable) -> None:
        self._table = table
        self.shape: Shape | None = None
        self._head: Any = None
        self._start = b""
        self._misses = 0

    def parsed(self, start: bytes, head: Any) -> None:
        """A head was parsed because it was not of `shape`. Nobody may change `head._lines` or `head.forward` later."""
        shape = self.shape
        if shape is not None and shape.used:
            shape.used = False
            self._misses = 1
        self._misses += 1
        misses = self._misses
        if misses & (misses - 1) == 0 and self._head is not None and self._start == start:
            self.shape = learn(self._table, start, self._head, head, shape)
        self._start = start
        self._head = head
