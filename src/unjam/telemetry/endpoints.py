"""What a snapshot says of one endpoint, read in one way for all who show it: status page, `unjam status`, metrics.

Every key may be missing: the snapshot may come from a gateway that is a version older. What is missing is None, never a
guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: What the balancer's word on an endpoint means for its work. NOTE: it explains a number and is no trouble. PARTLY: it
#: gets less, or no heavy work, or nothing for a moment. BAD: it gets nothing.
FINE: Final = "fine"
NOTE: Final = "note"
PARTLY: Final = "partly"
BAD: Final = "bad"

_NOTES: Final = ("others use", "no report for", "asks another gateway", "asks the store itself")
_PARTLY: Final = (
    "full",
    "draining",
    "no more heavy work",
    "no heavy work",
    "warming up",
    "failed lately",
    "breaker ramping",
    "used all the same",
    "reports refused",
    "reports come too late",
    "says it is draining",
    "version has had its share",
)
#: Of those, the ones with which nothing new is sent even to a free slot.
_CLOSED: Final = ("draining", "says it is draining", "version has had its share")
#: Nothing is sent, as the weights say.
_WANTED: Final = ("version has no weight", "weight 0")


def tone(word: str) -> str:
    """Of one word of `why`: `FINE`, `NOTE`, `PARTLY` or `BAD`. A word that is not known here is bad."""
    if word == "open":
        return FINE
    if word.startswith(_NOTES) or _is_age(word):
        return NOTE
    return PARTLY if word.startswith(_PARTLY) else BAD


def look(word: str) -> str:
    """How a word is drawn: as its tone, but no alarm where somebody gave it no traffic on purpose."""
    return NOTE if word in _WANTED else tone(word)


def _is_age(word: str) -> bool:
    return word.startswith("report ") and word.endswith(" old")


def words(endpoint: Mapping[str, Any]) -> list[str]:
    """`why`, with `open` in front where there are only notes. A worker reports when it asks for work: when it was heard
    of is told beside this."""
    found = [str(word) for word in endpoint.get("why") or ()]
    notes = bool(found) and all(tone(word) == NOTE for word in found)
    if endpoint.get("kind") == "worker":
        found = [word for word in found if not _is_age(word)]
    return ["open", *found] if notes else found


def untroubled(endpoint: Mapping[str, Any]) -> bool:
    """It is open; there may be notes."""
    return all(tone(word) in (FINE, NOTE) for word in words(endpoint))


def usable(endpoint: Mapping[str, Any]) -> bool:
    """Whether something may be sent there, now or when a slot is free."""
    return all(tone(word) != BAD and word not in _CLOSED for word in words(endpoint))


@dataclass(frozen=True, slots=True)
class Source:
    """One source of reports: `name`, seconds since it measured, and its figures by the names of `LoadReport`."""

    name: str
    age: float
    figures: Mapping[str, Any]


def sources(endpoint: Mapping[str, Any]) -> list[Source]:
    """The freshest first; empty without reports."""
    load = endpoint.get("load")
    told = load.get("sources") if isinstance(load, Mapping) else None
    if not isinstance(told, Mapping):
        return []
    found = []
    for name, report in told.items():
        if isinstance(report, Mapping):
            age = number(report.get("age"))
            figures = {key: value for key, value in report.items() if key != "age"}
            found.append(Source(str(name), 0.0 if age is None else age, figures))
    return sorted(found, key=lambda source: source.age)


def figure(endpoint: Mapping[str, Any], name: str) -> Any:
    """What the freshest source that knows `name` says; None when none does."""
    for source in sources(endpoint):
        if source.figures.get(name) is not None:
            return source.figures[name]
    return None


def tally(endpoint: Mapping[str, Any]) -> dict[str, int]:
    """Reports by what was made of them: `accepted`, `refused`, `late`. Empty where none ever came."""
    load = endpoint.get("load")
    if not isinstance(load, Mapping):
        return {}
    return {result: load[result] for result in ("accepted", "refused", "late") if number(load.get(result)) is not None}


def unused(endpoint: Mapping[str, Any]) -> list[str]:
    """How many reports were not used, in words: `41 reports refused`."""
    counts = tally(endpoint)
    return [
        f"{counts[result]:,} report{'' if counts[result] == 1 else 's'} {result}"
        for result in ("refused", "late")
        if counts.get(result)
    ]


def our_cpu(endpoint: Mapping[str, Any]) -> float | None:
    """Share 0 .. 1 of its CPU that is put down to this gateway's requests: what is in use and not others', and no more
    than its agent uses. None when no report says."""
    used, agent = number(figure(endpoint, "cpu")), number(figure(endpoint, "agent_cpu"))
    if used is None:
        return agent
    ours = max(0.0, used - (number(endpoint.get("other_cpu")) or 0.0))
    return ours if agent is None else min(ours, agent)


def has_load(endpoint: Mapping[str, Any]) -> bool:
    return next(iter(sources(endpoint)), None) is not None


def all_endpoints(state: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """(service, version, the version's entry, the endpoint's entry) of everything in a snapshot, workers after the
    endpoints of their version."""
    for service, entry in _items(state.get("services")):
        for version, released in _items(entry.get("versions")):
            for endpoint in (*(released.get("endpoints") or ()), *(released.get("workers") or ())):
                if isinstance(endpoint, Mapping):
                    yield service, version, released, endpoint


def number(value: Any) -> float | None:
    """`value` when it is a number and not a truth value."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def size(count: float) -> str:
    """Bytes as `120 MiB` or `1.2 GiB`: as the balancer's words have them."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            value = count / scale
            return f"{value:.1f} {unit}" if unit == "GiB" and value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def _items(mapping: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(mapping, Mapping):
        return []
    return [(str(key), value) for key, value in mapping.items() if isinstance(value, Mapping)]
