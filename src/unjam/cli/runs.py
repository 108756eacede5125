"""`unjam runs`: durable runs as operators see them, over the admin API."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from unjam.cli.options import LOCAL_ADMIN, AdminToken, AdminUrl, admin_client
from unjam.cli.trouble import in_sentences
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
    for key, value in found["run"].items():
        if value not in (None, "", False):
            typer.echo(f"{key:<17}{_text(value)}")
    typer.echo("")
    for event in found["events"]:
        typer.echo(f"{event['seq']:>6}  {event['at'][:19]}  {_text(event['type'])}  ({event['size']} B)")


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
    else:
        typer.echo(f"{_text(run)} was {status} already.")


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
    for run in runs:
        error = run.get("error")
        why = f"  {_text(error.get('code', ''))}" if isinstance(error, dict) else ""
        typer.echo(
            f"{_text(run['id'])}  {_text(run['status']):<9}  {_text(run['service'])}  "
            f"{run['created_at'][:19]}  attempt {run['attempt']}/{run['max_attempts']}{why}"
        )


def _json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def _text(value: object) -> str:
    """Escaped: a worker's name, or an event's type, is not ours."""
    return printable(value if isinstance(value, str) else str(value), 500)
