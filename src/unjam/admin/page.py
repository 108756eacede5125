"""The status page: services, versions and endpoints as they are now. Rendered here, without scripts or outside assets,
so that it works through a tunnel at 3 a.m. and under a content security policy that allows nothing but its own style.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from unjam.admin import frame, versions
from unjam.admin.markup import STAY, clip, meter, number, pill, seconds
from unjam.core.spec import UNSIZED_SLOTS
from unjam.telemetry import endpoints as read

#: Endpoint rows of one version; the busiest and the troubled come first.
MAX_ROWS = 100


def endpoints_of(snapshot: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for service in snapshot.get("services", {}).values():
        for version in service.get("versions", {}).values():
            yield from version.get("endpoints", ())


def render(
    snapshot: Mapping[str, Any],
    ready: bool,
    why: str,
    refresh: int = frame.DEFAULT_REFRESH,
    changes: Sequence[Mapping[str, Any]] = (),
    trouble: str = "",
    runs: bool = False,
) -> str:
    """The whole page. `refresh`: seconds, 0 for never; `changes`: the latest of the audit log, or `trouble`: why they
    can't be read; `runs`: there are pages of runs. Every text is escaped."""
    services = snapshot.get("services", {})
    endpoints = list(endpoints_of(snapshot))
    running = sum(one.get("inflight", 0) for _, _, _, one in read.all_endpoints(snapshot))
    waiting = sum(sum(_queue(service).values()) for service in services.values())
    usable = sum(read.usable(endpoint) for endpoint in endpoints)
    reports = any(read.has_load(endpoint) for endpoint in endpoints)
    facts = [
        pill("ok", "ready") if ready else pill("bad", f"not ready: {why}"),
        pill("bad", f"runs can't be reached: {snapshot['store_away']}") if snapshot.get("store_away") else "",
        f'<span class="num"><b>{running}</b> <span class="dim">running</span></span>',
        f'<span class="num"><b>{waiting}</b> <span class="dim">waiting</span></span>',
        f'<span class="num"><b>{usable}</b><span class="dim"> of {len(endpoints)} endpoints usable</span></span>',
        '<span class="push dim"><span class="key kf"></span>fast &nbsp;<span class="key kh"></span>heavy &nbsp;'
        '<span class="key ke"></span>free slots',
        ' &nbsp;<span class="key ko"></span>CPU ours &nbsp;<span class="key kx"></span>others' if reports else "",
        "</span>",
    ]
    parts = [frame.begin("unjam", refresh, facts, runs, "/")]
    if not services:
        parts.append('<section class="card"><div class="head">No service is configured.</div></section>')
    parts += [_service(name, service) for name, service in services.items()]
    parts += _regions(snapshot.get("regions", {}))
    parts.append(versions.changes(changes, trouble))
    parts.append(frame.end(refresh, "/?refresh=0", "/"))
    return "".join(parts)


def _service(name: str, service: Mapping[str, Any]) -> str:
    queue = _queue(service)
    waiting = sum(queue.values())
    lanes = ", ".join(f"{escape(str(lane))} {n}" for lane, n in queue.items() if n)
    queued = pill("warn", f"{waiting} waiting") if waiting else '<span class="dim">nothing waits</span>'
    policy = f'<span class="dim">{escape(str(service["policy"]))}</span>' if "policy" in service else ""
    head = f'<div class="head"><h2>{escape(name)}</h2>{policy}{queued}<span class="dim">{lanes}</span></div>'
    found = service.get("versions", {})
    total = sum(version.get("weight", 0) for version in found.values())
    body = versions.rollout(service["rollout"]) if service.get("rollout") else ""
    body += "".join(_version(label, version, total) for label, version in found.items())
    return f'<section class="card">{head}{body}{_oldest(service.get("oldest", ()))}</section>'


def _oldest(running: Sequence[Mapping[str, Any]]) -> str:
    """Who is stuck: the requests that have run the longest."""
    rows = "".join(
        f"<tr><td>{escape(str(lease['bucket']))}</td><td>{escape(str(lease['tenant'] or ''))}</td>"
        f'<td class="url">{escape(str(lease["endpoint"]))}</td><td>{escape(str(lease["lane"]))}</td>'
        f'<td class="n num">{seconds(lease["age"])}</td><td class="n num">{seconds(lease["expected"])}</td></tr>'
        for lease in running
    )
    if not rows:
        return ""
    return (
        '<div class="version"><table><thead><tr><th>longest running</th><th>tenant</th><th>endpoint</th><th>lane</th>'
        f'<th class="n">for</th><th class="n">expected</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _version(name: str, version: Mapping[str, Any], total: float) -> str:
    endpoints = sorted(
        version.get("endpoints", ()),
        key=lambda e: (read.usable(e), -e.get("inflight", 0) / max(1, e.get("slots") or 1), e.get("name", "")),
    )
    loaded = any(read.has_load(endpoint) for endpoint in endpoints[:MAX_ROWS])
    rows = "".join(_endpoint(endpoint, loaded) for endpoint in endpoints[:MAX_ROWS])
    more = (
        f'<p class="dim">and {len(endpoints) - MAX_ROWS} more, see <a href="/api/state">the state</a></p>'
        if len(endpoints) > MAX_ROWS
        else ""
    )
    table = (
        f'<table class="e{" l" if loaded else ""}"><thead><tr><th>endpoint</th><th class="bar">slots</th>'
        f'<th class="n">running</th>{_LOAD_HEADS if loaded else ""}'
        f'<th class="n a">available</th><th class="s">state</th></tr></thead><tbody>{rows}</tbody></table>'
        if rows
        else '<p class="dim">no endpoints, and no worker has asked for runs</p>'
    )
    workers = version.get("workers") or ()
    if workers and not rows:
        table = ""
    return f'<div class="version">{versions.head(name, version, total)}{table}{more}{_workers(workers)}</div>'


def _workers(workers: Sequence[Mapping[str, Any]]) -> str:
    """Those that claim runs of the version; the troubled and the busiest come first."""
    found = sorted(workers, key=lambda w: (read.usable(w), -w.get("inflight", 0), str(w.get("name", ""))))
    rows = "".join(_worker(worker) for worker in found[:MAX_ROWS])
    if not rows:
        return ""
    more = f'<p class="dim">and {len(found) - MAX_ROWS} more</p>' if len(found) > MAX_ROWS else ""
    return (
        '<table class="e"><thead><tr><th>worker</th><th class="bar">slots</th><th class="n">running</th>'
        f'<th class="n a">heard of</th><th class="s">state</th></tr></thead><tbody>{rows}</tbody></table>{more}'
    )


def _worker(worker: Mapping[str, Any]) -> str:
    slots, running, heavy = worker.get("slots") or 0, worker.get("inflight", 0), worker.get("heavy", 0)
    others = max(0, (worker.get("taken") or 0) - running)
    words = ([f"{others} by others"] if others else []) + (["waits for work"] if worker.get("claiming") else [])
    words += [f"known to {worker['via']}"] if worker.get("via") else []
    note = f"<small>{escape(' · '.join(words))}</small>" if words else ""
    seen = read.number(worker.get("seen"))
    return (
        f'<tr><td class="url">{escape(str(worker.get("name", "?")))}{note}</td>'
        f'<td class="bar">{_bar(running - heavy, heavy, slots)}</td><td class="n num">{running} / {slots}</td>'
        f'<td class="n a num">{"" if seen is None else f"{seconds(seen)} ago"}</td><td>{_state(worker)}</td></tr>'
    )


_LOAD_HEADS = '<th class="bar">CPU</th><th class="n f">memory free</th>'


def _endpoint(endpoint: Mapping[str, Any], loaded: bool) -> str:
    """`loaded`: the table has columns for what reports say."""
    slots, running, heavy = endpoint.get("slots") or 0, endpoint.get("inflight", 0), endpoint.get("heavy", 0)
    region = f' <span class="dim">{escape(str(endpoint["region"]))}</span>' if endpoint.get("region") else ""
    available = endpoint.get("avail")
    unsized = slots == UNSIZED_SLOTS and endpoint.get("slots_from") == "unknown"
    load = f'<td class="bar">{_cpu(endpoint)}</td><td class="n f num">{_memory(endpoint)}</td>' if loaded else ""
    return (
        f'<tr><td class="url">{escape(str(endpoint.get("name", "?")))}{region}{_note(endpoint)}</td>'
        f'<td class="bar">{_bar(running - heavy, heavy, slots)}</td>'
        f'<td class="n num">{running}{"" if unsized else f" / {slots}"}</td>{load}'
        f'<td class="n a num">{"" if available is None else number(available)}</td><td>{_state(endpoint)}</td></tr>'
    )


def _note(endpoint: Mapping[str, Any]) -> str:
    """Below the URL: its size, where the slots come from, who reports and how long ago."""
    cores, memory = read.number(endpoint.get("cores")), read.number(endpoint.get("memory"))
    parts = [] if cores is None else [f"{number(cores)} cores"]
    parts += [] if memory is None else [read.size(memory)]
    origin = _SLOTS_FROM.get(endpoint.get("slots_from", ""))
    parts += [origin] if origin else []
    parts += ["added by its reporter"] if endpoint.get("discovered") else []
    parts += [f"{source.name} {seconds(source.age)} ago" for source in read.sources(endpoint)]
    return f"<small>{escape(' · '.join(part.replace(' ', STAY) for part in parts))}</small>" if parts else ""


_SLOTS_FROM = {
    "configured": "slots as configured",
    "cores": "slots by cores",
    "memory": "slots by memory",
    "adapted": "slots adapted",
}


def _cpu(endpoint: Mapping[str, Any]) -> str:
    """What our requests use of its CPU, and what others do."""
    ours, others = read.our_cpu(endpoint), read.number(endpoint.get("other_cpu"))
    if not read.has_load(endpoint) or (ours is None and others is None):
        return '<span class="dim">not reported</span>'
    ours, others = clip(ours or 0.0), clip(others or 0.0)
    ours = min(ours, 1.0 - others)
    said = f"{100 * ours:.0f} % ours, {100 * others:.0f} % others"
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="CPU: {said}">'
        '<rect class="free" width="100" height="10"/>'
        f'<rect class="ours" width="{100 * ours:.2f}" height="10"/>'
        f'<rect class="others" x="{100 * ours:.2f}" width="{100 * others:.2f}" height="10"/></svg><small>{said}</small>'
    )


def _memory(endpoint: Mapping[str, Any]) -> str:
    free = read.number(read.figure(endpoint, "memory_free"))
    return "" if free is None else f"{read.size(free)}"


def _bar(fast: int, heavy: int, slots: int) -> str:
    """Fixed to 100 units, by attributes: a style attribute would need a weaker policy."""
    unit = 100 / max(1, slots, fast + heavy)
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{fast} fast and {heavy} heavy of {slots} slots"><rect class="free" width="100" height="10"/>'
        f'<rect class="heavy" width="{heavy * unit:.2f}" height="10"/>'
        f'<rect class="fast" x="{heavy * unit:.2f}" width="{fast * unit:.2f}" height="10"/></svg>'
    )


def _regions(regions: Mapping[str, Any]) -> list[str]:
    if not regions:
        return []
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="bar">{meter(region.get("headroom", 1.0), "fast")}</td>'
        f'<td class="n num">{100 * region.get("headroom", 1.0):.0f} % left{_blocked(region)}</td></tr>'
        for name, region in regions.items()
    )
    return [
        '<section class="card"><div class="head"><h2>Regions</h2></div><div class="version"><table><tbody>'
        f"{rows}</tbody></table></div></section>"
    ]


def _blocked(region: Mapping[str, Any]) -> str:
    left = region.get("blocked_for", 0.0)
    return f", blocked for {seconds(left)}" if left else ""


def _queue(service: Mapping[str, Any]) -> dict[str, int]:
    queue = service.get("queue", {})
    return {lane: queue[lane] for lane in ("fast", "heavy") if lane in queue}


_PILLS = {read.FINE: "ok", read.NOTE: "note", read.PARTLY: "warn", read.BAD: "bad"}


def _state(endpoint: Mapping[str, Any]) -> str:
    """Why it gets work or not, in the balancer's own words, and how many reports were not used."""
    pills = [pill(_PILLS[read.look(word)], word) for word in read.words(endpoint)]
    pills += [pill("note", words) for words in read.unused(endpoint)]
    return " ".join(pills)
