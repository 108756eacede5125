"""The gateway's state as tables: what `unjam status` prints. Reads `GET /api/state`; passes over what it does not know,
so that it also works with a gateway that is a version older or newer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unjam.telemetry.escape import printable

#: Columns when nobody watches: a pipe has no width.
PIPED_WIDTH = 160
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
    line.append(f", {_number(state.get('leases'))} requests running", "default")
    out.print(line)
    for name, service in _items(state.get("services")):
        out.print()
        _service(out, name, service)
    if state.get("regions"):
        out.print()
        out.print(_regions(state["regions"]))


def _service(out: Console, name: str, service: Mapping[str, Any]) -> None:
    out.print(Text(_text(name), "bold").append(f"  {_summary(service)}", "not bold"), soft_wrap=True)
    for version_name, version in _items(service.get("versions")):
        out.print(Text("  ").append(_version_line(version_name, version)), soft_wrap=True)
        out.print(Padding(_endpoints(version), (0, 0, 0, 4)))
    oldest = service.get("oldest") or []
    if oldest:
        out.print(Padding(_oldest(oldest[:MOST_OLDEST]), (0, 0, 0, 2)))


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
    line.append(
        f"  weight {_number(version.get('weight'))}, {_percent(version.get('share'))} of the traffic, ", "not bold"
    )
    line.append(f"breaker {state}", "not bold" if state == "closed" else "bold red")
    if state != "closed":
        why = f" ({_text(breaker['why'])})" if breaker.get("why") else ""
        left = f" for {_seconds(breaker['opens_for'])} more" if breaker.get("opens_for") else ""
        line.append(f"{left}{why}", "red")
    if version.get("panic"):
        line.append(", too few are healthy: all are used", "bold red")
    return line


def _endpoints(version: Mapping[str, Any]) -> Table:
    table = _table("endpoint", ">running", ">heavy", ">slots", ">avail", ">served", ">failed", "why")
    endpoints = list(version.get("endpoints") or [])
    endpoints.sort(key=lambda one: (one.get("why") == ["open"], -(one.get("inflight") or 0)))
    for endpoint in endpoints[:MOST_ENDPOINTS]:
        why = ", ".join(_text(word) for word in endpoint.get("why") or [])
        table.add_row(
            Text(_text(endpoint.get("name"))),
            *(_number(endpoint.get(key)) for key in ("inflight", "heavy", "slots", "avail", "served", "failed")),
            Text(why, "green" if why == "open" else "yellow"),
        )
    if len(endpoints) > MOST_ENDPOINTS:
        table.add_row(f"… {len(endpoints) - MOST_ENDPOINTS} more", *[""] * 7)
    return table


def _oldest(leases: list[Mapping[str, Any]]) -> Table:
    table = _table("running longest", ">for", ">expected", "lane", "version", "endpoint", "tenant")
    for lease in leases:
        table.add_row(
            Text(_text(lease.get("bucket"))),
            _seconds(lease.get("age")),
            _seconds(lease.get("expected")),
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
            Text(f"blocked for {_seconds(blocked)}" if blocked else "", "red"),
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


def _percent(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) else "–"


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
