"""The gateway's state as tables: what `unjam status` prints. Reads `GET /api/state`; passes over what it does not know,
so that it also works with a gateway that is a version older or newer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unjam.core.spec import UNSIZED_SLOTS
from unjam.telemetry import endpoints as read
from unjam.telemetry.escape import printable

#: Columns when nobody watches: a pipe has no width.
PIPED_WIDTH = 160
#: Below this many columns a table of endpoints leaves out what `unjam status --why` and `--json` tell too.
NARROW = 148
#: Columns that a long name may claim for itself.
MOST_NAME = 40
#: Endpoints shown per version; the busiest and those in trouble come first.
MOST_ENDPOINTS = 50
#: Long-running requests shown per service.
MOST_OLDEST = 5


def show(state: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the whole state."""
    out = console or Console(highlight=False)
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    ready = state.get("ready", True)
    line = Text("ready" if ready else f"not ready: {_text(state.get('why'))}", "green" if ready else "bold red")
    leases = state.get("leases")
    line.append(f", {_number(leases)} request{'' if leases == 1 else 's'} running", "default")
    out.print(line)
    if state.get("store_away"):
        out.print(Text(f"runs can't be reached: {_text(state['store_away'])}", "bold red"), soft_wrap=True)
    for name, service in _items(state.get("services")):
        out.print()
        _service(out, name, service)
    if state.get("regions"):
        out.print()
        out.print(_regions(state["regions"]))


def _service(out: Console, name: str, service: Mapping[str, Any]) -> None:
    out.print(Text(_text(name), "bold").append(f"  {_summary(service)}", "not bold"), soft_wrap=True)
    if service.get("rollout"):
        out.print(Text("  ").append(_rollout(service["rollout"])), soft_wrap=True)
    for version_name, version in _items(service.get("versions")):
        out.print(Text("  ").append(_version_line(version_name, version)), soft_wrap=True)
        if not version.get("endpoints") and not version.get("workers"):
            out.print(Text("    no endpoints, and no worker has asked for runs", "dim"))
        elif version.get("endpoints"):
            out.print(Padding(_endpoints(version, out.width < NARROW), (0, 0, 0, 4), expand=False))
        if version.get("workers"):
            out.print(Padding(_workers(version["workers"], out.width < NARROW), (0, 0, 0, 4), expand=False))
    oldest = service.get("oldest") or []
    if oldest:
        out.print(Padding(_oldest(oldest[:MOST_OLDEST]), (0, 0, 0, 2), expand=False))


def _summary(service: Mapping[str, Any]) -> str:
    running, queue = service.get("running") or {}, service.get("queue") or {}
    parts = [
        _text(service.get("policy")),
        f"running {_number(running.get('fast'))} fast, {_number(running.get('heavy'))} heavy",
        f"waiting {_number(queue.get('fast'))} fast, {_number(queue.get('heavy'))} heavy, "
        f"{_number(queue.get('max'))} at most",
    ]
    for label in ("ended", "refused"):
        counts = [f"{_number(count)} {_text(kind)}" for kind, count in _items(service.get(label))]
        if counts:
            parts.append(f"{label} {', '.join(counts)}")
    return "; ".join(parts)


def _version_line(name: str, version: Mapping[str, Any]) -> Text:
    breaker = version.get("breaker") or {}
    state = _text(breaker.get("state", "closed"))
    line = Text(_text(name), "bold")
    # Where there are no endpoints there is no traffic to have a share of, only workers that ask.
    share = "" if version.get("endpoints") == [] else f"{_percent(version.get('share'))} of the traffic, "
    line.append(f"  weight {_number(version.get('weight'))}, {share}", "not bold")
    line.append(f"breaker {state}", "not bold" if state == "closed" else "bold red")
    if state != "closed":
        why = f" ({_text(breaker['why'])})" if breaker.get("why") else ""
        left = f" for {seconds_of(breaker['opens_for'])} more" if breaker.get("opens_for") else ""
        line.append(f"{left}{why}", "red")
    line.append(_evidence(breaker), "dim")
    if spilt := read.number(version.get("overflowed")):
        line.append(f", {_number(spilt)} overflowed", "not bold")
    if read.number(version.get("good")) or read.number(version.get("bad")):
        line.append(f", verdicts {_number(version.get('good'))} good, {_number(version.get('bad'))} bad", "not bold")
    if version.get("panic"):
        line.append(", too few are healthy: all are used", "bold red")
    return line


def _evidence(breaker: Mapping[str, Any]) -> str:
    """How near it is to tripping; nothing where nothing speaks against the version."""
    words = ""
    for key, limit, told in (
        ("evidence", "trips_at", "evidence"),
        ("quality_evidence", "quality_trips_at", "evidence from samples"),
    ):
        found, most = read.number(breaker.get(key)), read.number(breaker.get(limit))
        if found and most:
            words += f", {told} {found:.3g} of {most:.3g}"
    return words


#: States of a rollout that somebody should look at.
_STOPPED = {"paused": "yellow", "rolled_back": "bold red"}


def _rollout(found: Mapping[str, Any]) -> Text:
    """How far it is, through which steps, what it waits for, and why it is there."""
    state = _text(found.get("state"))
    line = Text("rollout of ").append(_text(found.get("version")), "bold").append(" ")
    line.append(state.replace("_", " "), _STOPPED.get(state, ""))
    line.append(f" at {share_of(found.get('share'))}{steps_of(found)}")
    if found.get("waits_for"):
        line.append(f", waits: {_text(found['waits_for'])}")
    if found.get("why"):
        line.append(f"; {_text(found['why'])}", "dim")
    return line


def steps_of(rollout: Mapping[str, Any]) -> str:
    """The steps of a rollout that is under way, in brackets."""
    steps = rollout.get("steps")
    if not isinstance(steps, list) or rollout.get("state") not in ("running", "paused"):
        return ""
    return f" (steps {', '.join(map(share_of, steps))})"


def share_of(value: Any) -> str:
    """A share of the traffic, which may be small."""
    found = read.number(value)
    return "–" if found is None else f"{100 * found:.3g}%"


@dataclass(frozen=True, slots=True)
class _Column:
    """`>` in front of `title` aligns it to the right. `wide`: only where there is room (True), or only where there is
    not (False). `known`: shown only when this is true of some endpoint of the table, so that a fleet without sizes and
    reports has a short one; None: always."""

    title: str
    cell: Callable[[Mapping[str, Any]], str | Text]
    wide: bool | None = None
    known: Callable[[Mapping[str, Any]], bool] | None = None


#: Where the number of slots comes from.
_FROM = {"configured": "config", "cores": "cores", "memory": "memory", "adapted": "adapted"}
_COLUMNS = (
    _Column("endpoint", lambda e: Text(_text(e.get("name")))),
    _Column(">running", lambda e: _number(e.get("inflight")), wide=True),
    _Column(">running", lambda e: f"{_number(e.get('inflight'))} of {_slots(e)}", wide=False),
    _Column(">heavy", lambda e: _number(e.get("heavy"))),
    _Column(">slots", lambda e: _slots(e), wide=True),
    _Column(
        "from",
        lambda e: _FROM.get(_text(e.get("slots_from")), "–"),
        known=lambda e: _from(e) not in ("unknown", "configured"),
    ),
    _Column(">cores", lambda e: _number(e.get("cores")), known=lambda e: e.get("cores") is not None),
    _Column(">others", lambda e: _percent(e.get("other_cpu")) if read.has_load(e) else "–", known=read.has_load),
    _Column(
        ">mem free",
        lambda e: _size(read.figure(e, "memory_free")),
        known=lambda e: read.figure(e, "memory_free") is not None,
    ),
    _Column(">avail", lambda e: _number(e.get("avail")), wide=True),
    _Column(">served", lambda e: _number(e.get("served")), wide=True),
    _Column(">failed", lambda e: _number(e.get("failed")), wide=True),
    _Column("reports", lambda e: _reports(e), wide=True, known=lambda e: e.get("load") is not None),
    _Column("why", lambda e: _why(e)),
)
_STYLES = {read.FINE: "green", read.NOTE: "dim", read.PARTLY: "yellow", read.BAD: "bold red"}


def _endpoints(version: Mapping[str, Any], narrow: bool) -> Table:
    endpoints = list(version.get("endpoints") or [])
    endpoints.sort(key=lambda one: (read.untroubled(one), -(one.get("inflight") or 0)))
    shown = endpoints[:MOST_ENDPOINTS]
    columns = [
        column
        for column in _COLUMNS
        if column.wide is not narrow and (column.known is None or any(map(column.known, shown)))
    ]
    table = _table(*(column.title for column in columns))
    # Whole, so that they can be copied; what is said of them folds.
    table.columns[0].min_width = min(MOST_NAME, max((len(_text(one.get("name"))) for one in shown), default=0))
    for endpoint in shown:
        table.add_row(*(column.cell(endpoint) for column in columns))
    if len(endpoints) > len(shown):
        table.add_row(f"… {len(endpoints) - len(shown)} more", *[""] * (len(columns) - 1))
    return table


def _workers(workers: list[Mapping[str, Any]], narrow: bool) -> Table:
    """What claims runs: those that ask this gateway, and others that are known to it. `narrow`: what `--why` tells too
    is left out, or there would be no room for why it gets work."""
    found = sorted(workers, key=lambda one: (read.untroubled(one), -(one.get("taken") or 0), _text(one.get("name"))))
    columns = ("worker", ">running", *(() if narrow else (">heavy", ">turned away")), ">heard", "why")
    table = _table(*columns)
    table.columns[0].min_width = min(MOST_NAME, max(len(_text(one.get("name"))) for one in found[:MOST_ENDPOINTS]))
    for worker in found[:MOST_ENDPOINTS]:
        taken = worker.get("taken")
        running = f"{_number(worker.get('inflight') if taken is None else taken)} of {_number(worker.get('slots'))}"
        more = () if narrow else (_number(worker.get("heavy")), _number(worker.get("turned_away")))
        heard = f"{seconds_of(worker.get('seen'))} ago"
        table.add_row(Text(_text(worker.get("name"))), running, *more, heard, _why(worker))
    if len(found) > MOST_ENDPOINTS:
        table.add_row(f"… {len(found) - MOST_ENDPOINTS} more", *[""] * (len(columns) - 1))
    return table


def _slots(endpoint: Mapping[str, Any]) -> str:
    slots = endpoint.get("slots")
    return "any" if slots == UNSIZED_SLOTS and _from(endpoint) == "unknown" else _number(slots)


def _from(endpoint: Mapping[str, Any]) -> str:
    return str(endpoint.get("slots_from") or "unknown")


def _reports(endpoint: Mapping[str, Any]) -> Text:
    """Who reports, with the age of the last one: `reporter 1.2 s`."""
    if endpoint.get("load") is None:
        return Text("–")
    told = [f"{_text(source.name)} {seconds_of(source.age)}" for source in read.sources(endpoint)]
    return Text(", ".join(told) or "none now")


def _why(endpoint: Mapping[str, Any]) -> Text:
    """The balancer's words, those of trouble in colour, and after them how many reports were not used."""
    parts = [(_text(word), _STYLES[read.look(word)]) for word in read.words(endpoint)] or [("–", "dim")]
    parts += [(words, "dim") for words in read.unused(endpoint)]
    text = Text()
    for number, (word, style) in enumerate(parts):
        text.append(", " if number else "", "dim").append(word, style)
    return text


def _oldest(leases: list[Mapping[str, Any]]) -> Table:
    table = _table("running longest", ">for", ">expected", "lane", "version", "endpoint", "tenant")
    for lease in leases:
        table.add_row(
            Text(_text(lease.get("bucket"))),
            seconds_of(lease.get("age")),
            seconds_of(lease.get("expected")),
            *(Text(_text(lease.get(key))) for key in ("lane", "version", "endpoint", "tenant")),
        )
    return table


def _regions(regions: Mapping[str, Any]) -> Table:
    table = _table("region", ">quota left", ">tokens", ">requests", "")
    for name, region in _items(regions):
        blocked = region.get("blocked_for") or 0
        table.add_row(
            Text(_text(name)),
            _percent(region.get("headroom")),
            _number(region.get("tokens_left")),
            _number(region.get("requests_left")),
            Text(f"blocked for {seconds_of(blocked)}" if blocked else "", "red"),
        )
    return table


def _table(*columns: str) -> Table:
    """`>` in front aligns a column to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _items(mapping: Any) -> list[tuple[str, Any]]:
    return list(mapping.items()) if isinstance(mapping, Mapping) else []


def _text(value: Any) -> str:
    """Names may come from clients (tenants, paths): never let them steer the terminal."""
    return "–" if value is None or value == "" else printable(str(value), 200)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _size(value: Any) -> str:
    found = read.number(value)
    return "–" if found is None else read.size(found)


def _percent(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) else "–"


def seconds_of(value: Any) -> str:
    """A duration as short as may be: `1.2 s`, `14 s`, `3 min`, `2.5 h`."""
    if not isinstance(value, int | float):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.1f} days"
