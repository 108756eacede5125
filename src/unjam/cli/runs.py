"""`unjam runs`: durable runs as operators see them, over the admin API."""

from __future__ import annotations

import json
from datetime import datetime
from time import time
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from unjam.cli.options import LOCAL_ADMIN, AdminToken, AdminUrl, admin_client
from unjam.cli.trouble import in_sentences, say
from unjam.telemetry.escape import printable

app = typer.Typer(help="List, show, cancel and re-queue durable runs.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="Id of the run, as `unjam runs list` shows it.", metavar="RUN")]
Service = Annotated[str | None, typer.Option("--service", help="Only the runs of this service.", metavar="NAME")]
Limit = Annotated[int, typer.Option("--limit", help="At most so many.", min=1, max=1000)]
AsJson = Annotated[bool, typer.Option("--json", help="As the gateway tells it.")]


@app.command("list")
@in_sentences
def list_runs(
    service: Service = None,
    status: Annotated[
        str | None,
        typer.Option("--status", help="queued, running, completed, failed, cancelled or expired.", metavar="STATUS"),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only the runs of this tenant.", metavar="NAME")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", help="Only those older than this run.", metavar="RUN")
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """The newest runs, of all tenants."""
    asked = {"service": service, "status": status, "tenant": tenant, "before": before, "limit": str(limit)}
    query = urlencode({key: value for key, value in asked.items() if value is not None})
    _show(admin_client(admin, token).get(f"/api/runs?{query}"), as_json)


@app.command()
@in_sentences
def dead(
    service: Service = None,
    limit: Limit = 100,
    as_json: AsJson = False,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Runs that were given up: their workers were lost too often."""
    query = urlencode({"limit": str(limit), **({"service": service} if service is not None else {})})
    _show(admin_client(admin, token).get(f"/api/runs/dead?{query}"), as_json)


@app.command()
@in_sentences
def show(
    run: RunId,
    events: Annotated[int, typer.Option("--events", help="So many of its last events.", min=1, max=1000)] = 20,
    as_json: AsJson = False,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """One run, and the last of what happened to it."""
    found = admin_client(admin, token).get(f"/api/runs/{quote(run, safe='')}?events={events}")
    if as_json:
        _json(found)
        return
    for label, value in _facts(found["run"]):
        if value:
            typer.echo(f"{label:<13}{value}")
    typer.echo("")
    for event in found["events"]:
        typer.echo(f"{event['seq']:>6}  {_when(event['at'])}  {_text(event['type'])}  ({event['size']:,} B)")


@app.command()
@in_sentences
def cancel(run: RunId, admin: AdminUrl = LOCAL_ADMIN, token: AdminToken = None) -> None:
    """Stop a run: at once while it waits, else by telling its worker."""
    answer = admin_client(admin, token).post(f"/api/runs/{quote(run, safe='')}/cancel", {})
    status = answer["run"]["status"]
    if status == "running":
        typer.echo(f"{_text(run)} is running; its worker is told to stop.")
    elif answer["changed"]:
        typer.echo(f"{_text(run)} is cancelled.")
    elif status == "cancelled":
        typer.echo(f"{_text(run)} was cancelled already.")
    else:
        typer.echo(f"{_text(run)} has ended already: {_text(status)}.")


@app.command()
@in_sentences
def requeue(run: RunId, admin: AdminUrl = LOCAL_ADMIN, token: AdminToken = None) -> None:
    """Queue a failed or expired run again; it goes on from its checkpoint."""
    admin_client(admin, token).post(f"/api/runs/{quote(run, safe='')}/requeue", {})
    typer.echo(f"{_text(run)} waits again.")


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _json(answer)
        return
    runs = answer["runs"]
    if not runs:
        typer.echo("none")
        return
    from unjam.cli.status import seconds_of

    now = time()
    rows = [("run", "status", "service", "created", "attempt", "")]
    for run in runs:
        error = run.get("error")
        remark = _text(error.get("code", "")) if isinstance(error, dict) else ""
        if run.get("cancel_requested") and run.get("ended_at") is None:
            remark = "to be cancelled"
        age = f"{seconds_of(max(0.0, now - datetime.fromisoformat(run['created_at']).timestamp()))} ago"
        attempt = f"{run['attempt']} of {run['max_attempts']}"
        rows.append((_text(run["id"]), _text(run["status"]), _text(run["service"]), age, attempt, remark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if answer.get("next"):
        say(f"these are the newest {len(runs)}; older ones: --before {_text(answer['next'])}")


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, words), as one reads them."""
    from unjam.cli.status import seconds_of

    error = run.get("error")
    said, detail = "", ""
    if isinstance(error, dict):
        said = ": ".join(_text(error[key]) for key in ("code", "message") if error.get(key))
        rest = {key: value for key, value in error.items() if key not in ("code", "message")}
        detail = _text(json.dumps(rest.get("detail", rest), ensure_ascii=False)) if rest else ""
    began, ended = run.get("started_at"), run.get("ended_at")
    took = ""
    if began and ended:
        lasted = datetime.fromisoformat(ended) - datetime.fromisoformat(began)
        took = f", {seconds_of(max(0.0, lasted.total_seconds()))} after it began"
    wished = ", to be cancelled" if run.get("cancel_requested") and not ended else ""
    return [
        ("run", _text(run["id"])),
        ("service", _text(run["service"])),
        ("version", _text(run.get("version") or "")),
        ("tenant", _text(run.get("tenant") or "")),
        ("status", f"{_text(run['status'])}{wished}"),
        ("lane", _text(run.get("lane") or "")),
        (
            "executed by",
            "workers, which claim it" if run.get("pull") else "the gateway, which pushes it to an endpoint",
        ),
        ("worker", _text(run.get("worker") or "")),
        ("attempt", f"{run['attempt']} of {run['max_attempts']}"),
        ("if lost", "begun again" if run.get("retry") == "restart" and not ended else ""),
        ("checkpoint", "saved" if run.get("has_checkpoint") else ""),
        ("created", _when(run["created_at"])),
        ("began", _when(began) if began else ""),
        ("ended", f"{_when(ended)}{took}" if ended else ""),
        ("expires", _when(run["deadline"]) if run.get("deadline") and not ended else ""),
        ("error", said),
        ("detail", detail),
    ]


def _when(at: str) -> str:
    """UTC, to the millisecond."""
    return f"{_text(at)[:23].removesuffix('Z')}Z"


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _text(value: object) -> str:
    """Escaped: a worker's name, or an event's type, is not ours."""
    return printable(value if isinstance(value, str) else str(value), 500)
