"""What the status page says of versions: whose share it is and why, how near a breaker is to tripping, where a rollout
stands, and who changed what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from unjam.admin.markup import clip, clock, dim, meter, number, percent, pill, seconds
from unjam.telemetry import endpoints as read

_BREAKER: Final = {"closed": "ok", "open": "bad"}
_ROLLOUT: Final = {"running": "note", "paused": "warn", "promoted": "ok", "rolled_back": "bad"}
#: Of the way to a trip: from here on it is shown as a warning.
NEAR: Final = 0.5
#: Characters of a value or reason in the table of changes.
_LONGEST: Final = 160
_EVIDENCE: Final = "what speaks against the version just now, of what trips its breaker"


def head(name: str, version: Mapping[str, Any], total: float) -> str:
    """One version, without its endpoints. `total`: the weights of its service."""
    weight = version.get("weight", 0)
    meant = weight / total if total else 0.0
    breaker = version.get("breaker", {})
    state = str(breaker.get("state", "closed"))
    notes = [f"weight {number(weight)}" + (f" ({percent(meant)})" if total else "")]
    got = read.number(version.get("share"))
    if got is not None and abs(got - meant) >= 0.005 and version.get("endpoints") != []:
        notes.append(f"gets {percent(got)} of the traffic")
    elif got is None and state != "closed" and "share" in breaker:
        notes.append(f"gets {percent(breaker['share'])} of it")
    if state == "ramping" and "share" in breaker:
        notes.append(f"at {percent(breaker['share'])} of its weight")
    if breaker.get("opens_for"):
        notes.append(f"tries again in {seconds(breaker['opens_for'])}")
    if breaker.get("why"):
        notes.append(str(breaker["why"]))
    if version.get("panic"):
        notes.append("too few are healthy: all are used")
    rows = (
        f'<div class="row"><h3>{escape(name)}</h3>{pill(_BREAKER.get(state, "warn"), f"breaker {state}")}'
        f"{dim(' · '.join(notes))}</div>"
    )
    facts = _evidence(breaker) + _counts(version)
    return rows + (f'<div class="row facts">{facts}</div>' if facts else "")


def _evidence(breaker: Mapping[str, Any]) -> str:
    """How much there is against it, of what it trips at; nothing while it is open, and where nobody counts."""
    if breaker.get("state") == "open" or breaker.get("rule") == "off":
        return ""
    out = ""
    for key, limit, words in (
        ("evidence", "trips_at", "evidence"),
        ("quality_evidence", "quality_trips_at", "from samples"),
    ):
        found, most = read.number(breaker.get(key)), read.number(breaker.get(limit))
        if found is None or not most:
            continue
        share = clip(found / most)
        said = f"{words} {number(found)} of {number(most)}"
        drawn = meter(share, "near" if share >= NEAR else "fast")
        out += f'<span class="gauge" title="{_EVIDENCE}">{drawn}{escape(said)}</span>'
    return out


def _counts(version: Mapping[str, Any]) -> str:
    """Calls, verdicts and spill-over so far; what never happened is left out."""
    words = []
    if calls := read.number(version.get("calls")):
        words.append(f"{calls:,} calls")
        if failures := read.number(version.get("failures")):
            words.append(f"{failures:,} failed ({percent(failures / calls)})")
    good, bad = read.number(version.get("good")) or 0, read.number(version.get("bad")) or 0
    if good or bad:
        words.append(f"verdicts: {good:,} good, {bad:,} bad")
    if spilt := read.number(version.get("overflowed")):
        words.append(f"{spilt:,} overflowed")
    return dim(" · ".join(words))


def rollout(found: Mapping[str, Any]) -> str:
    """Of one service: what is rolled out, how far it is, what it waits for and why it is there."""
    state = str(found.get("state", "?"))
    share = read.number(found.get("share")) or 0.0
    waits, why = str(found.get("waits_for") or ""), str(found.get("why") or "")
    new, old = _side(found.get("new")), _side(found.get("old"))
    compared = f"this step: {new}; others: {old}" if new and old and state in ("running", "paused") else ""
    return (
        '<div class="version"><div class="row">'
        f"<h3>rollout of {escape(str(found.get('version', '?')))}</h3>"
        f"{pill(_ROLLOUT.get(state, 'warn'), state.replace('_', ' '))}"
        f'<b class="num">{percent(share)}</b>{_steps(found, state)}'
        f"{dim(f'waits: {waits}' if waits else '')}{dim(why)}</div>"
        + (f'<div class="row facts">{dim(compared)}</div>' if compared else "")
        + "</div>"
    )


def _steps(found: Mapping[str, Any], state: str) -> str:
    """A line of dots: done, the present one, those to come."""
    steps = found.get("steps")
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        return ""
    at = found.get("step") if state in ("running", "paused") else -1
    done = len(steps) if state == "promoted" else at
    items = ""
    for index, step in enumerate(steps):
        kind = "here" if index == at else "done" if isinstance(done, int) and index < done else "next"
        now = ' aria-current="step"' if kind == "here" else ""
        items += f'<li class="{kind}"{now}>{percent(read.number(step) or 0.0)}</li>'
    return f'<ol class="steps" aria-label="steps">{items}</ol>'


def _side(seen: Any) -> str:
    """One side of the comparison."""
    if not isinstance(seen, Mapping):
        return ""
    calls, failures = read.number(seen.get("calls")), read.number(seen.get("failures"))
    if calls is None or failures is None:
        return ""
    text = f"{calls:,} calls, {failures:,} failed"
    judged = read.number(seen.get("judged"))
    return text + (f", {seen.get('bad', 0):,} of {judged:,} verdicts bad" if judged else "")


def changes(rows: Sequence[Mapping[str, Any]], trouble: str = "") -> str:
    """The audit log, newest first. `trouble`: why it can't be read."""
    if trouble:
        body = f'<p class="dim">{escape(trouble)}</p>'
    elif not rows:
        return ""
    else:
        body = (
            '<table class="c"><thead><tr><th class="w">when (UTC)</th><th class="o a">who</th><th>what</th>'
            '<th class="x">from</th><th class="x">to</th><th class="y a">why</th></tr></thead><tbody>'
            + "".join(_change(each) for each in rows)
            + "</tbody></table>"
        )
    return f'<section class="card"><div class="head"><h2>Changes</h2></div><div class="version">{body}</div></section>'


def _change(row: Mapping[str, Any]) -> str:
    kind, _, of = str(row.get("key", "")).partition("/")
    return (
        f'<tr><td class="num">{clock(row.get("at"))}</td>'
        f'<td class="a">{_short(row.get("who"))}</td><td>{_short(kind)} <b>{_short(of)}</b></td>'
        f"<td>{_value(kind, row.get('before'))}</td><td>{_value(kind, row.get('after'))}</td>"
        f'<td class="a">{_short(row.get("why"))}</td></tr>'
    )


def _value(kind: str, value: Any) -> str:
    if value is None:
        return '<span class="dim">–</span>'
    if isinstance(value, Mapping):
        if kind == "rollout":
            share = read.number(value.get("share"))
            state = str(value.get("state", "?")).replace("_", " ")
            return _short(state if share is None else f"{state}, {percent(share)}")
        value = value.get("weight")
    if kind == "drain" and isinstance(value, bool):
        return "draining" if value else "in use"
    found = read.number(value)
    return _short(value if found is None else number(found))


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
