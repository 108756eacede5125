"""What must be true of a story that was told: pure functions over what its readers saw and what the store kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .proxy import Held
from .readers import ENDS, Entry


@dataclass
class Told:
    """`log`: as the store has it. `readings`: what each reader got. `results`: the result as each was given it.
    `straight`: that of the same audit in one go. `took`: seconds from the run's creation to its end; `least`: what its
    pages take at least. `resumed`: agent → gateways where it must have gone on with a Last-Event-ID. `view`: what the
    page showed in the end, {"page", "of", "findings"}; None without a browser. `left`: runs queued or running, and
    processes of the killed worker, by name. `trouble`: what was seen to be wrong on the way."""

    log: list[Entry]
    readings: Mapping[str, Sequence[Entry]]
    results: Mapping[str, Any]
    straight: dict[str, Any]
    took: float
    least: float
    held: Sequence[Held]
    resumed: Mapping[str, Sequence[str]]
    view: dict[str, Any] | None
    left: Mapping[str, int]
    trouble: list[str] = field(default_factory=list)


def breaches(told: Told) -> list[str]:
    """In words; nothing when all is well."""
    found = list(told.trouble)
    found += _log(told.log)
    for name, entries in told.readings.items():
        found += _reading(name, entries, told.log)
    for name, result in told.results.items():
        if result != told.straight:
            found.append(f"{name}: the result is not that of the same audit in one go")
    found += _pages(told)
    found += _resumed(told)
    if told.view is not None:
        found += _view(told.view, told.straight)
    if told.took < told.least:
        found.append(f"it took {told.took:.1f} s, and its pages take {told.least:.1f} s")
    found += [f"{count} {name} left" for name, count in told.left.items() if count]
    return found


def _log(log: Sequence[Entry]) -> list[str]:
    found = []
    if [entry.seq for entry in log] != list(range(len(log))):
        found.append("the stored log has a gap")
    if not log or log[0].type != "run.created":
        found.append("the stored log doesn't begin with run.created")
    ends = [entry.type for entry in log if entry.type in ENDS]
    if ends != ["run.completed"] or log[-1].type != "run.completed":
        found.append(f"terminal events: {ends}, and not one run.completed as the last")
    reasons = [entry.data["reason"] for entry in log if entry.type == "run.attempt"]
    if reasons != ["first", "lost"]:
        found.append(f"attempts: {reasons}, and not a first one and one after the loss of its worker")
    return found


def _reading(name: str, entries: Sequence[Entry], log: Sequence[Entry]) -> list[str]:
    found = []
    for expected, entry in enumerate(entries):
        if entry.seq != expected:
            found.append(f"{name}: {entry.seq} ({entry.type}) stands where {expected} should")
            break
    if list(entries) != list(log):
        found.append(f"{name}: its {len(entries)} events are not the {len(log)} of the store")
    return found


def _pages(told: Told) -> list[str]:
    """Who went on began behind the checkpoint: no page before it again, and after it the one that was under way."""
    found = []
    wanted = list(range(1, told.straight["pages"] + 1))
    kept = settled(told.log)
    if [entry.data["page"] for entry in kept if entry.type == "progress"] != wanted:
        found.append("not every page was audited once and in order, apart from what was taken back")
    if [entry.data for entry in kept if entry.type == "finding"] != told.straight["findings"]:
        found.append("the findings in the log are not those of the same audit in one go")
    again = repeated(told.log)
    if len(again) > 1:
        found.append(f"{len(again)} pages were audited again: {again}")
    return found


def settled(log: Sequence[Entry]) -> list[Entry]:
    """Without what came after the checkpoint that a later attempt went on from."""
    kept: list[Entry] = []
    for entry in log:
        if entry.type == "run.attempt":
            kept = [each for each in kept if each.seq < entry.data["from_seq"]]
        kept.append(entry)
    return kept


def repeated(log: Sequence[Entry]) -> list[int]:
    """Pages that the log shows more than once."""
    pages = [entry.data["page"] for entry in log if entry.type == "progress"]
    return sorted({page for page in pages if pages.count(page) > 1})


def _resumed(told: Told) -> list[str]:
    found = []
    for agent, gateways in told.resumed.items():
        for gateway in gateways:
            if not any(
                agent in each.agent and each.gateway == gateway and each.after is not None for each in told.held
            ):
                found.append(f"{agent} did not go on at {gateway} with a Last-Event-ID")
    return found


def _view(view: dict[str, Any], straight: dict[str, Any]) -> list[str]:
    found = []
    if view["page"] != straight["pages"] or view["of"] != straight["pages"]:
        found.append(f"the page's bar stands at {view['page']} of {view['of']}")
    if view["findings"] != [[each["page"], each["kind"].replace("_", " ")] for each in straight["findings"]]:
        found.append("the page's table doesn't show the findings")
    return found


def longest(held: Sequence[Held], agent: str) -> float:
    """Seconds that one request of this agent was held."""
    return max((each.seconds for each in held if agent in each.agent), default=0.0)
