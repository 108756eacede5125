"""The status page: services, versions and endpoints as they are now. Rendered here, without scripts or outside assets,
so that it works through a tunnel at 3 a.m. and under a content security policy that allows nothing but its own style.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from unjam import __version__

#: Endpoint rows of one version; the busiest and the troubled come first.
MAX_ROWS = 100
DEFAULT_REFRESH = 2
MAX_REFRESH = 3600

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2330;--dim:#667085;--line:#e3e7ee;--fast:#2f7de1;
--heavy:#7a4fd0;--free:#e6eaf1;--ok:#177a4b;--okbg:#dff5e8;--warn:#8a5a00;--warnbg:#fdf0d0;--bad:#b3261e;--badbg:#fde3e1}
@media(prefers-color-scheme:dark){:root{--bg:#11151c;--card:#1a202a;--ink:#e6eaf2;--dim:#93a0b4;--line:#2a3240;
--fast:#5a9cf2;--heavy:#a583ee;--free:#2a3240;--ok:#6fd6a0;--okbg:#153425;--warn:#f0c060;--warnbg:#3a2e10;--bad:#ff8f86;
--badbg:#44201d}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{display:flex;flex-wrap:wrap;align-items:center;gap:10px 18px;padding-top:22px;padding-bottom:6px}
h1{font-size:20px;margin:0;letter-spacing:-.01em}h2{font-size:16px;margin:0}h3{font-size:13px;margin:0;font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:16px 0;overflow:hidden}
.head{display:flex;flex-wrap:wrap;align-items:center;gap:6px 14px;padding:12px 16px;border-bottom:1px solid var(--line)}
.version{padding:10px 16px 14px}.version+.version{border-top:1px solid var(--line)}
.row{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;margin-bottom:6px}
.dim{color:var(--dim)}.push{margin-left:auto}.num{font-variant-numeric:tabular-nums}
.pill{border-radius:99px;padding:1px 9px;font-size:12px;font-weight:600;white-space:nowrap}
.ok{color:var(--ok);background:var(--okbg)}.warn{color:var(--warn);background:var(--warnbg)}
.bad{color:var(--bad);background:var(--badbg)}
table{width:100%;border-collapse:collapse}th{font-weight:500;color:var(--dim);text-align:left;font-size:12px}
th,td{padding:4px 10px 4px 0;vertical-align:middle}td.url{font-family:ui-monospace,monospace;font-size:12.5px;
overflow-wrap:anywhere}.bar{width:34%}td.n,th.n{text-align:right;white-space:nowrap}
svg{display:block;width:100%;height:10px;border-radius:5px}.free{fill:var(--free)}.fast{fill:var(--fast)}
.heavy{fill:var(--heavy)}.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.kf{background:var(--fast)}.kh{background:var(--heavy)}.ke{background:var(--free)}
.e{table-layout:fixed}.e .n{width:11%}.e .s{width:22%}td.n{padding-right:18px}th.n{padding-right:18px}
@media(max-width:720px){.e .a,.e .bar{display:none}.e .n{width:22%}.e .s{width:34%}}
a{color:var(--fast);text-decoration:none}a:hover{text-decoration:underline}
footer{padding-top:4px;padding-bottom:30px;color:var(--dim);font-size:12.5px}
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CSP = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def parse_refresh(text: str | None) -> int:
    """Seconds between refreshes from the query; 0: never. What is no number gives the default."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 4):
        return DEFAULT_REFRESH
    return min(int(text), MAX_REFRESH)


def endpoints_of(snapshot: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for service in snapshot.get("services", {}).values():
        for version in service.get("versions", {}).values():
            yield from version.get("endpoints", ())


def render(snapshot: Mapping[str, Any], ready: bool, why: str, refresh: int = DEFAULT_REFRESH) -> str:
    """The whole page. `refresh`: seconds, 0 for never. Every text from the snapshot is escaped."""
    services = snapshot.get("services", {})
    endpoints = list(endpoints_of(snapshot))
    running = sum(endpoint.get("inflight", 0) for endpoint in endpoints)
    waiting = sum(sum(_queue(service).values()) for service in services.values())
    usable = sum(_usable(endpoint) for endpoint in endpoints)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>unjam</title>',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">',
        f'<meta http-equiv="refresh" content="{refresh}">' if refresh else "",
        f"<style>{_STYLE}</style></head><body><header><h1>unjam</h1>",
        _pill("ok", "ready") if ready else _pill("bad", f"not ready: {why}"),
        f'<span class="num"><b>{running}</b> <span class="dim">running</span></span>',
        f'<span class="num"><b>{waiting}</b> <span class="dim">waiting</span></span>',
        f'<span class="num"><b>{usable}</b><span class="dim"> of {len(endpoints)} endpoints usable</span></span>',
        '<span class="push dim"><span class="key kf"></span>fast &nbsp;<span class="key kh"></span>heavy &nbsp;'
        '<span class="key ke"></span>free slots</span></header><main>',
    ]
    if not services:
        parts.append('<section class="card"><div class="head">No service is configured.</div></section>')
    parts += [_service(name, service) for name, service in services.items()]
    parts += _regions(snapshot.get("regions", {}))
    again = f"refreshes every {refresh} s · <a href='/?refresh=0'>pause</a>" if refresh else "<a href='/'>refresh</a>"
    parts.append(
        f"</main><footer>unjam {escape(__version__)} · {again} · <a href='/api/state'>state</a> · "
        "<a href='/api/active'>running requests</a> · <a href='/metrics'>metrics</a></footer></body></html>"
    )
    return "".join(parts)


def _service(name: str, service: Mapping[str, Any]) -> str:
    queue = _queue(service)
    waiting = sum(queue.values())
    lanes = ", ".join(f"{escape(str(lane))} {n}" for lane, n in queue.items() if n)
    pill = _pill("warn", f"{waiting} waiting") if waiting else '<span class="dim">nothing waits</span>'
    policy = f'<span class="dim">{escape(str(service["policy"]))}</span>' if "policy" in service else ""
    head = f'<div class="head"><h2>{escape(name)}</h2>{policy}{pill}<span class="dim">{lanes}</span></div>'
    versions = service.get("versions", {})
    total = sum(version.get("weight", 0) for version in versions.values())
    body = "".join(_version(label, version, total) for label, version in versions.items())
    return f'<section class="card">{head}{body}{_oldest(service.get("oldest", ()))}</section>'


def _oldest(running: Sequence[Mapping[str, Any]]) -> str:
    """Who is stuck: the requests that have run the longest."""
    rows = "".join(
        f"<tr><td>{escape(str(lease['bucket']))}</td><td>{escape(str(lease['tenant'] or ''))}</td>"
        f'<td class="url">{escape(str(lease["endpoint"]))}</td><td>{escape(str(lease["lane"]))}</td>'
        f'<td class="n num">{_seconds(lease["age"])}</td><td class="n num">{_seconds(lease["expected"])}</td></tr>'
        for lease in running
    )
    if not rows:
        return ""
    return (
        '<div class="version"><table><thead><tr><th>longest running</th><th>tenant</th><th>endpoint</th><th>lane</th>'
        f'<th class="n">for</th><th class="n">expected</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _version(name: str, version: Mapping[str, Any], total: float) -> str:
    weight = version.get("weight", 0)
    share = f" ({100 * weight / total:.0f} %)" if total else ""
    breaker = version.get("breaker", {})
    state = breaker.get("state", "closed")
    tone = {"closed": "ok", "open": "bad"}.get(state, "warn")
    notes = [f"weight {_number(weight)}{share}"]
    if state != "closed" and "share" in breaker:
        notes.append(f"gets {100 * breaker['share']:.0f} % of it")
    if breaker.get("why"):
        notes.append(str(breaker["why"]))
    endpoints = sorted(
        version.get("endpoints", ()),
        key=lambda e: (_usable(e), -e.get("inflight", 0) / max(1, e.get("slots") or 1), e.get("name", "")),
    )
    rows = "".join(_endpoint(endpoint) for endpoint in endpoints[:MAX_ROWS])
    more = (
        f'<p class="dim">and {len(endpoints) - MAX_ROWS} more, see <a href="/api/state">the state</a></p>'
        if len(endpoints) > MAX_ROWS
        else ""
    )
    table = (
        '<table class="e"><thead><tr><th>endpoint</th><th class="bar">slots</th><th class="n">running</th>'
        f'<th class="n a">available</th><th class="s">state</th></tr></thead><tbody>{rows}</tbody></table>'
        if rows
        else '<p class="dim">no endpoints</p>'
    )
    return (
        f'<div class="version"><div class="row"><h3>{escape(name)}</h3>{_pill(tone, f"breaker {state}")}'
        f'<span class="dim">{escape(" · ".join(notes))}</span></div>{table}{more}</div>'
    )


def _endpoint(endpoint: Mapping[str, Any]) -> str:
    slots, running, heavy = endpoint.get("slots") or 0, endpoint.get("inflight", 0), endpoint.get("heavy", 0)
    region = f' <span class="dim">{escape(str(endpoint["region"]))}</span>' if endpoint.get("region") else ""
    available = endpoint.get("avail")
    return (
        f'<tr><td class="url">{escape(str(endpoint.get("name", "?")))}{region}</td>'
        f'<td class="bar">{_bar(running - heavy, heavy, slots)}</td>'
        f'<td class="n num">{running} / {slots}</td>'
        f'<td class="n a num">{"" if available is None else _number(available)}</td><td>{_state(endpoint)}</td></tr>'
    )


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
        f'<tr><td>{escape(name)}</td><td class="bar">{_share_bar(region.get("headroom", 1.0))}</td>'
        f'<td class="n num">{100 * region.get("headroom", 1.0):.0f} % left{_blocked(region)}</td></tr>'
        for name, region in regions.items()
    )
    return [
        '<section class="card"><div class="head"><h2>Regions</h2></div><div class="version"><table><tbody>'
        f"{rows}</tbody></table></div></section>"
    ]


def _blocked(region: Mapping[str, Any]) -> str:
    seconds = region.get("blocked_for", 0.0)
    return f", blocked for {_seconds(seconds)}" if seconds else ""


def _share_bar(share: float) -> str:
    width = 100 * min(1.0, max(0.0, share))
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="free" width="100" '
        f'height="10"/><rect class="fast" width="{width:.2f}" height="10"/></svg>'
    )


def _queue(service: Mapping[str, Any]) -> dict[str, int]:
    queue = service.get("queue", {})
    return {lane: queue[lane] for lane in ("fast", "heavy") if lane in queue}


#: The balancer's words on an endpoint that are not, or not quite, trouble. All others are.
_FINE = ("open",)
_PARTLY = (
    "full",
    "draining",
    "no more heavy work",
    "warming up",
    "failed lately",
    "breaker ramping",
    "used all the same",
)


def _state(endpoint: Mapping[str, Any]) -> str:
    """Why it gets work or not, in the balancer's own words."""
    return " ".join(
        _pill("ok" if word in _FINE else "warn" if word.startswith(_PARTLY) else "bad", str(word))
        for word in endpoint.get("why", ())
    )


def _usable(endpoint: Mapping[str, Any]) -> bool:
    """Something may still be sent there, if not now then when a slot is free."""
    return all(word != "draining" and word.startswith((*_FINE, *_PARTLY)) for word in endpoint.get("why", ()))


def _pill(tone: str, text: str) -> str:
    return f'<span class="pill {tone}">{escape(text)}</span>'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min"
