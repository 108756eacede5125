"""The pages of durable runs: the list, the dead letters, and one run with the last of its log. What a run was given,
what it said and what it returned are its tenant's, and not here. Rendered as the status page is: no scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any, Final
from urllib.parse import quote, urlencode

from unjam.admin import frame
from unjam.admin.markup import clock, dim, moment, pill, seconds
from unjam.telemetry import endpoints as read

#: Seconds between refreshes: each of them is a question to the store.
DEFAULT_REFRESH: Final = 5
#: Runs of one page, events of one run.
ROWS: Final = 50
EVENTS: Final = 100
#: Dead letters shown.
DEAD: Final = 200

_TONES: Final = {"running": "busy", "completed": "ok", "failed": "bad", "expired": "bad"}
_ENDED: Final = ("completed", "failed", "cancelled", "expired")
#: In the order in which they are of interest.
_FILTERS: Final = ("running", "queued", "failed", "expired", "cancelled", "completed")

_TENANT: Final = '<th class="a">tenant</th>'

Row = Mapping[str, Any]


def render_list(rows: Sequence[Row], asked: Mapping[str, str], older: str | None, refresh: int, now: float) -> str:
    """`asked`: of `status`, `service`, `tenant` and `before` what the query said; `older`: the run to go on from, None
    on the last page; `refresh`: seconds, 0 for never; `now`: wall time."""
    kept = {key: asked[key] for key in ("service", "tenant") if key in asked}
    tabs = _tab("all", kept, "status" not in asked)
    tabs += "".join(_tab(each, {**kept, "status": each}, asked.get("status") == each) for each in _FILTERS)
    narrowed = "".join(
        f'<span class="dim">{key} <b>{escape(value)}</b> <a href="{_list(_without(asked, key))}">any</a></span>'
        for key, value in kept.items()
    )
    pages = []
    if "before" in asked:
        pages.append(f'<a href="{_list(_without(asked))}">newest</a>')
    if older is not None:
        pages.append(f'<a href="{_list({**asked, "before": older})}">older</a>')
    body = _table(rows, now, "There is no such run." if asked else "There is no run yet.", asked)
    return (
        frame.begin("unjam: runs", refresh, (), True, "/runs")
        + f'<section class="card"><div class="head"><h2>Runs</h2><span class="tabs">{tabs}</span>{narrowed}</div>'
        f'<div class="version">{body}<p class="tabs">{"".join(pages)}</p></div></section>'
        + frame.end(refresh, _address({**asked, "refresh": "0"}), _address(asked))
    )


def render_dead(rows: Sequence[Row], refresh: int, now: float) -> str:
    """Runs that were given up."""
    said = (
        '<p class="dim">Each lost its worker as often as it may be tried. Find out what ends the workers, then '
        "<code>unjam runs requeue RUN</code>: it goes on from its checkpoint.</p>"
        if rows
        else ""
    )
    body = _table(rows, now, "None: no run was given up.", {})
    return (
        frame.begin("unjam: dead letters", refresh, (), True, "/runs/dead")
        + '<section class="card"><div class="head"><h2>Dead letters</h2></div>'
        f'<div class="version">{said}{body}</div></section>' + frame.end(refresh, "/runs/dead?refresh=0", "/runs/dead")
    )


def render_run(run: Row, events: Sequence[Row], refresh: int, now: float) -> str:
    """One run. `events`: the last of its log, in order."""
    name, status = str(run.get("id", "")), str(run.get("status", "?"))
    facts = (
        ("service", escape(_said(run.get("service")))),
        ("version", escape(_said(run.get("version")))),
        ("tenant", escape(_said(run.get("tenant")))),
        ("lane", escape(_said(run.get("lane")))),
        ("executed by", "workers that claim it" if run.get("pull") else "the gateway, which pushes it to an endpoint"),
        ("worker", escape(_said(run.get("worker")))),
        ("attempt", _attempt(run)),
        ("created", moment(run.get("created_at"))),
        ("began", moment(run.get("started_at"))),
        ("ended", moment(run.get("ended_at"))),
        ("expires", "" if status in _ENDED else moment(run.get("deadline"))),
        ("checkpoint", "saved" if run.get("has_checkpoint") else ""),
        ("error", _error(run.get("error"))),
        ("steer", _commands(name, status)),
    )
    rows = "".join(f"<tr><th>{label}</th><td>{value}</td></tr>" for label, value in facts if value)
    wished = run.get("cancel_requested") and status not in _ENDED
    log = "".join(
        f'<tr><td class="n num">{escape(_said(event.get("seq")))}</td><td class="num">{moment(event.get("at"))}</td>'
        f'<td class="url">{escape(_said(event.get("type")))}</td>'
        f'<td class="n num">{read.size(read.number(event.get("size")) or 0)}</td></tr>'
        for event in reversed(events)
    )
    total = int(read.number(run.get("seq")) or 0)
    shown = f"the last {len(events):,} of {total:,}" if total > len(events) else f"{total:,}"
    here = f"/runs/{quote(name, safe='')}"
    return (
        frame.begin(f"unjam: {name}", refresh, (), True)
        + f'<section class="card"><div class="head"><h2 class="id">{escape(name)}</h2>'
        f"{pill(_TONES.get(status, 'note'), status)}{pill('warn', 'is to be cancelled') if wished else ''}"
        f'{dim(_time(run, now))}</div><div class="version"><table class="f"><tbody>{rows}</tbody></table></div>'
        "</section>"
        f'<section class="card"><div class="head"><h2>Events</h2>{dim(f"{shown}, the newest first")}</div>'
        '<div class="version"><table class="v"><thead><tr><th class="n">seq</th><th class="t">at (UTC)</th>'
        f'<th>type</th><th class="n">size</th></tr></thead><tbody>{log}</tbody></table></div></section>'
        + frame.end(refresh, f"{here}?refresh=0", here)
    )


def render_trouble(message: str, path: str, refresh: int = 0) -> str:
    """In place of the page at `path`, which can't be shown now; it refreshes as that would."""
    return (
        frame.begin("unjam: runs", refresh, (), True, path)
        + f'<section class="card"><div class="version"><p>{escape(message)}</p></div></section>'
        + frame.end(refresh, f"{path}?refresh=0", path)
    )


def _table(rows: Sequence[Row], now: float, none: str, asked: Mapping[str, str]) -> str:
    if not rows:
        return f'<p class="dim">{escape(none)}</p>'
    tenants = any(row.get("tenant") for row in rows)
    body = "".join(_row(row, now, tenants, asked) for row in rows)
    return (
        '<table class="r"><thead><tr><th>run</th><th class="w">status</th><th class="z">service</th>'
        f'{_TENANT if tenants else ""}<th class="n a">attempt</th><th class="a">worker</th>'
        f'<th class="a">created (UTC)</th><th class="n z">time</th></tr></thead><tbody>{body}</tbody></table>'
    )


def _row(run: Row, now: float, tenants: bool, asked: Mapping[str, str]) -> str:
    name, status = _said(run.get("id")), _said(run.get("status"))
    error = run.get("error")
    code = f"<small>{escape(_said(error.get('code')))}</small>" if isinstance(error, Mapping) else ""
    wished = "<small>to be cancelled</small>" if run.get("cancel_requested") and status not in _ENDED else ""
    version = f"<small>{escape(_said(run['version']))}</small>" if run.get("version") else ""
    kept = _without(asked)

    def only(key: str) -> str:
        value = _said(run.get(key))
        return f'<a href="{_list({**kept, key: value})}">{escape(value)}</a>' if value else ""

    tenant = f'<td class="a">{only("tenant")}</td>' if tenants else ""
    return (
        f'<tr><td class="url"><a href="/runs/{quote(name, safe="")}">{escape(name)}</a></td>'
        f"<td>{pill(_TONES.get(status, 'note'), status)}{code}{wished}</td><td>{only('service')}{version}</td>"
        f'{tenant}<td class="n a num">{_attempt(run)}</td>'
        f'<td class="a">{escape(_said(run.get("worker")))}</td><td class="a num">{clock(run.get("created_at"))}</td>'
        f'<td class="n num">{_time(run, now)}</td></tr>'
    )


def _attempt(run: Row) -> str:
    return escape(f"{_said(run.get('attempt'))} of {_said(run.get('max_attempts'))}")


def _time(run: Row, now: float) -> str:
    """How long it has waited, works, or took from its first attempt on."""
    created, began, ended = (_at(run.get(key)) for key in ("created_at", "started_at", "ended_at"))
    status = run.get("status")
    if status == "queued":
        return "" if created is None else f"waits {seconds(max(0.0, now - created))}"
    if ended is None:
        return "" if began is None else f"for {seconds(max(0.0, now - began))}"
    return "never began" if began is None else f"took {seconds(max(0.0, ended - began))}"


def _at(value: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def _error(error: Any) -> str:
    """Its code and message: what else is in it is the tenant's."""
    if not isinstance(error, Mapping):
        return ""
    message = f": {escape(_said(error.get('message')))}" if error.get("message") else ""
    return f"<code>{escape(_said(error.get('code')))}</code>{message}"


def _commands(name: str, status: str) -> str:
    """What an operator may do; the page itself changes nothing."""
    if status in ("failed", "expired"):
        return f"<code>unjam runs requeue {escape(name)}</code>"
    return f"<code>unjam runs cancel {escape(name)}</code>" if status in ("queued", "running") else ""


def _tab(label: str, query: Mapping[str, str], here: bool) -> str:
    return f'<a href="{_list(query)}"{" aria-current=page" if here else ""}>{label}</a>'


def _without(asked: Mapping[str, str], key: str = "") -> dict[str, str]:
    """The same question, but for `key`, from its newest run on."""
    return {other: value for other, value in asked.items() if other not in (key, "before")}


def _list(query: Mapping[str, str]) -> str:
    """Address of a list, for an attribute."""
    return escape(_address(query))


def _address(query: Mapping[str, str]) -> str:
    return f"/runs?{urlencode(query)}" if query else "/runs"


def _said(value: Any) -> str:
    return "" if value is None else str(value)
