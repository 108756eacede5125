"""The commands that steer versions: `weight`, `breaker`, `rollout`, and `audit`, which says who did."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from unjam.cli.options import LOCAL_ADMIN, AdminToken, AdminUrl, admin_client
from unjam.cli.trouble import USAGE, CliError, in_sentences, say
from unjam.telemetry.escape import printable

ServiceName = Annotated[str, typer.Argument(help="Name of the service.")]
AsJson = Annotated[bool, typer.Option("--json", help="As the gateway tells it.")]
BREAKER = ("trip", "reset")
ROLLOUT = ("start", "pause", "resume", "promote", "abort")


@in_sentences
def weight(
    service: ServiceName,
    weights: Annotated[list[str], typer.Argument(help="Weights by version, or one version and its.", metavar="V=W...")],
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Shift traffic between versions: all weights that are given, at once.

    unjam weight SERVICE v7=90 v8=10, or unjam weight SERVICE VERSION WEIGHT. 0: none.
    """
    given = _weights(weights)
    answer = admin_client(admin, token).post("/api/weight", {"service": service, "weights": given})
    before = answer.get("before")
    for version, value in given.items():
        was = before.get(version) if isinstance(before, dict) else None
        told = f" (was {was:g})" if isinstance(was, int | float) else ""
        typer.echo(f"{service} {version} has weight {value:g}{told}{_holds(answer, ' while the file stays as it is')}.")
    warn(answer)


@in_sentences
def breaker(
    service: ServiceName,
    version: Annotated[str | None, typer.Argument(help="Name of the version.")] = None,
    action: Annotated[
        str | None,
        typer.Argument(help="trip: out of traffic now. reset: back now. None: look.", metavar="trip|reset"),
    ] = None,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Look at the breakers of a service's versions, or trip or reset one."""
    if action is not None and action not in BREAKER:
        raise CliError(f"there is no action {action!r}: give trip or reset.", USAGE)
    client = admin_client(admin, token)
    if action is not None:
        answer = client.post("/api/breaker", {"service": service, "version": version, "action": action})
        typer.echo(f"{service} {version} is {'out of traffic' if action == 'trip' else 'back in traffic'}.")
        warn(answer)
        return
    services = client.get("/api/state").get("services", {})
    found = services.get(service, {}).get("versions", {})
    if not found or (version is not None and version not in found):
        raise CliError("there is no such service or version: `unjam status` lists them.")
    for name, each in found.items():
        if version in (None, name):
            _show_breaker(name, each)


@in_sentences
def rollout(
    service: ServiceName,
    action: Annotated[
        str | None, typer.Argument(help="Without it: look.", metavar="start|pause|resume|promote|abort")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="With start: another than the configured one.")
    ] = None,
    as_json: AsJson = False,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Look at the rollout of a service, or steer it."""
    if action is not None and action not in ROLLOUT:
        raise CliError(f"there is no action {action!r}: give one of {', '.join(ROLLOUT)}.", USAGE)
    if version is not None and action != "start":
        raise CliError("--version goes with start.", USAGE)
    client = admin_client(admin, token)
    if action is None:
        answer = client.get(f"/api/rollout?{urlencode({'service': service})}")
    else:
        more = {} if version is None else {"version": version}
        answer = client.post("/api/rollout", {"service": service, "action": action, **more})
    if as_json:
        _json(answer)
        return
    typer.echo(service)
    for key, value in answer.items():
        if key not in ("service", "kept", "holds", "warning") and value is not None:
            typer.echo(f"  {_text(key)}: {_value(value)}")
    warn(answer)


@in_sentences
def audit(
    key: Annotated[
        str | None, typer.Argument(help="Only this and what is below it, such as weight/agent.", metavar="[KEY]")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="So many, the newest first.", min=1, max=1000)] = 50,
    before: Annotated[int | None, typer.Option("--before", help="Those before this number.", min=1)] = None,
    as_json: AsJson = False,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Who changed what, when, from what to what, and why."""
    query: dict[str, Any] = {"limit": limit}
    if key is not None:
        query["key"] = key
    if before is not None:
        query["before"] = before
    answer = admin_client(admin, token).get(f"/api/audit?{urlencode(query)}")
    if as_json:
        _json(answer)
        return
    changes = answer["changes"]
    if not changes:
        typer.echo("none")
    for change in changes:
        why = f"  {_text(change['why'])}" if change.get("why") else ""
        typer.echo(
            f"{change['n']:>5}  {_text(change['at'])[:19]}  {_text(change['key'])}  {_value(change['before'])} → "
            f"{_value(change['after'])}  {_text(change['who'])}{why}"
        )


def _weights(given: list[str]) -> dict[str, float]:
    """`v7=90 v8=10`, or `v7 90`. Raises `CliError`."""
    pairs = [tuple(each.split("=", 1)) for each in given]
    if len(given) == 2 and "=" not in "".join(given):
        pairs = [(given[0], given[1])]
    found: dict[str, float] = {}
    for pair in pairs:
        if len(pair) != 2 or not pair[0]:
            raise CliError("give weights as VERSION=WEIGHT, such as v7=90 v8=10.", USAGE)
        name, written = pair
        try:
            value = float(written)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1_000_000.0:
            raise CliError(f"the weight of {name} must be a number from 0 to 1000000.", USAGE)
        if name in found:
            raise CliError(f"{name} is given twice.", USAGE)
        found[name] = value
    return found


def _show_breaker(name: str, version: dict[str, Any]) -> None:
    state = version.get("breaker", {})
    line = f"{_text(name)}: {_text(state.get('state', '?'))}"
    share = state.get("share")
    if state.get("state") == "ramping" and isinstance(share, int | float):
        line += f" at {share:.0%} of its weight"
    if state.get("why"):
        line += f" ({_text(state['why'])})"
    for key, limit, words in (
        ("evidence", "trips_at", "evidence"),
        ("quality_evidence", "quality_trips_at", "of quality"),
    ):
        found, most = state.get(key), state.get(limit)
        if isinstance(found, int | float) and isinstance(most, int | float):
            line += f"; {words} {found:.3g} of {most:.3g}"
    typer.echo(line)


def _holds(answer: dict[str, Any], beside: str = "") -> str:
    holds = answer.get("holds")
    return f", {_text(holds)}{beside if answer.get('kept') else ''}" if isinstance(holds, str) else ""


def warn(answer: dict[str, Any]) -> None:
    """Of what the gateway could not do beside what was asked."""
    warning = answer.get("warning")
    if isinstance(warning, str):
        say(f"warning: {_text(warning)}.")


def _value(value: Any) -> str:
    """A change's value in one line."""
    import json

    if value is None:
        return "-"
    if isinstance(value, dict) and "weight" in value:
        value = value["weight"]
    if isinstance(value, float):
        return f"{value:g}"
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def _text(value: object) -> str:
    """Escaped: what the gateway passes on is not all its own."""
    return printable(value if isinstance(value, str) else str(value), 500)
