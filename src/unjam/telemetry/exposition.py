"""Families of samples as Prometheus wants them: built in pieces, and written as text.

A fleet of 10,000 endpoints has some 70,000 samples. They are produced in pieces, so that the event loop can have a turn
between two of them, and written out here: prometheus_client's own writer takes ten times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS

from unjam.telemetry.metrics import Histogram

#: Samples rendered in one go: about a millisecond.
PIECE = 200

#: Label values, in the order of the family's label names, and the value.
Row = tuple[tuple[str, ...], float]
Rows = Iterable[Row]


class Piece:
    """Some samples of one family. `labels`: names; `rows`: (suffix, (label values, value)), the suffix `_total`,
    `_bucket`, `_sum`, `_count` or empty. A bucket has one value more than there are names: its `le`."""

    __slots__ = ("documentation", "kind", "labels", "name", "rows")

    def __init__(
        self, name: str, documentation: str, kind: str, labels: tuple[str, ...], rows: list[tuple[str, Row]]
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.kind = kind
        self.labels = labels
        self.rows = rows


def _pieces(
    name: str, documentation: str, kind: str, labels: tuple[str, ...], rows: Iterator[tuple[str, Row]]
) -> Iterator[Piece]:
    part = list(islice(rows, PIECE))
    yield Piece(name, documentation, kind, labels, part)
    while part := list(islice(rows, PIECE)):
        yield Piece(name, documentation, kind, labels, part)


def _unique(suffix: str, rows: Rows) -> Iterator[tuple[str, Row]]:
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        # One series twice and Prometheus refuses the whole page.
        if row[0] not in seen:
            seen.add(row[0])
            yield suffix, row


def by_label(counts: Mapping[str, float]) -> Rows:
    """Rows of a family with one label, from its values."""
    return [((value,), n) for value, n in sorted(counts.items())]


def gauge(name: str, documentation: str, labels: tuple[str, ...], rows: Rows) -> Iterator[Piece]:
    return _pieces(name, documentation, "gauge", labels, _unique("", rows))


def counter(name: str, documentation: str, labels: tuple[str, ...], rows: Rows) -> Iterator[Piece]:
    return _pieces(name, documentation, "counter", labels, _unique("_total", rows))


def histogram(
    name: str, documentation: str, labels: tuple[str, ...], series: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Iterator[Piece]:
    """`series`: label values, and what was observed under them."""
    rows = (row for values, observed in series for row in _histogram_rows(values, observed))
    return _pieces(name, documentation, "histogram", labels, rows)


def _histogram_rows(labels: tuple[str, ...], histogram: Histogram) -> Iterator[tuple[str, Row]]:
    # Copied, so that the buckets agree with each other although requests end between two pieces.
    counts = list(histogram.counts)
    total = histogram.sum
    seen = 0
    for bound, n in zip(histogram.bounds, counts, strict=False):
        seen += n
        yield "_bucket", ((*labels, repr(bound)), seen)
    seen += counts[-1]
    yield "_bucket", ((*labels, "+Inf"), seen)
    yield "_count", (labels, seen)
    yield "_sum", (labels, total)


class Page:
    """Writes pieces one after the other in the text format, or OpenMetrics 1.0, which differs in the names of counters
    and an end mark."""

    def __init__(self, accept: str) -> None:
        self._openmetrics = "application/openmetrics-text" in accept
        self._last = ""
        self._parts: list[str] = []
        self._escaped: dict[str, str] = {}

    @property
    def content_type(self) -> str:
        return OPENMETRICS if self._openmetrics else CONTENT_TYPE_PLAIN_0_0_4

    def add(self, piece: Piece) -> None:
        name = piece.name
        if name != self._last:
            self._last = name
            shown = name + "_total" if piece.kind == "counter" and not self._openmetrics else name
            self._parts.append(f"# HELP {shown} {piece.documentation}\n# TYPE {shown} {piece.kind}\n")
        escaped = self._escaped
        lines = []
        for suffix, (values, value) in piece.rows:
            names = (*piece.labels, "le") if suffix == "_bucket" else piece.labels
            words = []
            for label, text in zip(names, values, strict=True):
                quoted = escaped.get(text)
                if quoted is None:
                    quoted = escaped[text] = _quote(text)
                words.append(label + quoted)
            number = str(int(value)) if isinstance(value, int) else _float(value)
            lines.append(f"{name}{suffix}{{{','.join(words)}}} {number}\n" if words else f"{name}{suffix} {number}\n")
        self._parts.append("".join(lines))

    def body(self) -> bytes:
        return ("".join(self._parts) + ("# EOF\n" if self._openmetrics else "")).encode("utf-8", "replace")


def _quote(text: str) -> str:
    return '="' + text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') + '"'


def _float(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
