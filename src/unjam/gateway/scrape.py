"""Load from an endpoint's Prometheus page, over the connections that its requests use.

Only the lines that are asked for are parsed, and no more than `MOST_WANTED` bytes of them: a page has thousands of
others, and the parser takes longer for a line than the gateway for a request. Values that cannot be true go to the core
as they are, which refuses and names them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Final

from prometheus_client.parser import text_string_to_metric_families

from unjam.core.load import LoadReport
from unjam.core.spec import MetricsSpec
from unjam.gateway.probes import fetch
from unjam.gateway.watch import Pull

#: Bytes of a page, of the lines wanted in it, and of one of these.
MOST: Final = 4 << 20
MOST_WANTED: Final = 32 << 10
MOST_LINE: Final = 4 << 10

#: The classic text format: the others differ in what they may hold.
_ACCEPT: Final = b"Accept: text/plain;version=0.0.4;q=1, */*;q=0.1\r\n"


class Scrape(Pull[MetricsSpec]):
    """Reads the page of one endpoint."""

    __slots__ = ()

    source: ClassVar[str] = "metrics"

    async def ask(self) -> LoadReport:
        spec = self.spec
        status, page = await fetch(self.upstream, spec.path, spec.interval, MOST, _ACCEPT)
        if status != 200:
            raise ValueError(f"status {status}")
        return load_of(page, spec)


def load_of(page: bytes, spec: MetricsSpec) -> LoadReport:
    """What the page says of the figures of `spec`: counts are summed over their label sets, of shares the largest
    counts. Raises ValueError when it has none of them, or a line of one that can't be read."""
    names = (*spec.running, *spec.waiting, *spec.cache, *spec.slots)
    found = samples(page, names)
    running, waiting = _first(found, spec.running), _first(found, spec.waiting)
    cache, slots = _first(found, spec.cache), _first(found, spec.slots)
    if running is waiting is cache is slots is None:
        raise ValueError(f"the page has none of {', '.join(names)}")
    return LoadReport(
        in_flight=None if running is None else _count(running) + _count(waiting or ()),
        waiting=None if waiting is None else _count(waiting),
        cache=None if cache is None else _largest(cache),
        slots=None if slots is None else _count(slots),
        source=Scrape.source,
    )


def samples(page: bytes, names: Iterable[str]) -> dict[str, list[float]]:
    """The values of each of the metrics `names` that is on the page, one for each label set. Raises ValueError."""
    page = b"\n%b\n" % page
    lines: list[bytes] = []
    size = 0
    for name in dict.fromkeys(names):
        start = b"\n" + name.encode("ascii")
        at = page.find(start)
        while at >= 0:
            after = at + len(start)
            if page[after] in b" \t{":  # and not a name that only begins so
                line = page[at + 1 : page.index(b"\n", after)]
                size += len(line)
                if len(line) > MOST_LINE or size > MOST_WANTED:
                    raise ValueError(f"the lines of {name} are too many or too long")
                lines.append(line)
            at = page.find(start, after)
    return _parsed(b"\n".join(lines))


def _parsed(lines: bytes) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    try:
        for family in text_string_to_metric_families(lines.decode("utf-8") + "\n"):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(float(sample.value))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError("a line that is wanted is not in the Prometheus text format") from error
    return found


def _first(found: dict[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((found[name] for name in names if name in found), None)


def _count(values: Iterable[float]) -> int:
    """Their sum; not a whole number only when it is none at all, which the core says."""
    try:
        total = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
    except OverflowError:  # each a number, their sum none
        total = math.nan
    return round(total) if math.isfinite(total) else total  # type: ignore[return-value]


def _largest(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)
