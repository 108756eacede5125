"""The commands that steer versions: `weight`, `breaker`, `rollout`, and `audit`, which says who did."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from unjam.cli.options import LOCAL_ADMIN, AdminToken, AdminUrl, admin_client
from unjam.cli.trouble import USAGE, CliError, in_sentences, say
from unjam.telemetry import endpoints as read
from unjam.telemetry.escape import printable

ServiceName = Annotated[str, typer.Argument(help="Name of the service.", metavar="SERVICE")]
AsJson = Annotated[bool, typer.Option("--json", help="As the gateway tells it.")]
BREAKER = ("trip", "reset")
ROLLOUT = ("start", "pause", "resume", "promote", "abort")
#: So many names are told; of more, where they are listed.
FEW = 10
#: What the keys of the audit log begin with.
AUDITED = ("breaker", "drain", "rollout", "weight")


@in_sentences
def weight(
    service: ServiceName,
    weights: Annotated[
        list[str], typer.Argument(help="Weights by version, or one version and its.", metavar="VERSION=WEIGHT")
    ],
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
    version: Annotated[str | None, typer.Argument(help="Name of the version.", metavar="VERSION")] = None,
    action: Annotated[
        str | None,
        typer.Argument(help="trip: out of traffic now. reset: back now. None: look.", metavar="trip|reset"),
    ] = None,
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Look at the breakers of a service's versions, or trip or reset one."""
    if action is None and version in BREAKER:
        raise CliError(f"say which version: unjam breaker {_text(service)} VERSION {version}.", USAGE)
    if action is not None and action not in BREAKER:
        raise CliError(f"there is no action {action!r}: give trip or reset.", USAGE)
    client = admin_client(admin, token)
    if action is not None:
        answer = client.post("/api/breaker", {"service": service, "version": version, "action": action})
        typer.echo(f"{service} {version} is {'out of traffic' if action == 'trip' else 'back in traffic'}.")
        warn(answer)
        return
    services = client.get("/api/state").get("services", {})
    if service not in services:
        raise CliError(f"there is no service {_text(service)}.{_there_are(services)}")
    found = services[service].get("versions", {})
    if version is not None and version not in found:
        raise CliError(f"{_text(service)} has no version {_text(version)}.{_there_are(found)}")
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
    for line in _rollout(service, answer):
        typer.echo(line)
    warn(answer)


@in_sentences
def audit(
    key: Annotated[
        str | None, typer.Argument(help="Only this and what is below it, such as weight/agent.", metavar="KEY")
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
        if key is not None and key.partition("/")[0] not in AUDITED:
            say(f"keys begin with {', '.join(AUDITED)}, such as weight/agent.")
    for change in changes:
        kind = _text(change["key"]).partition("/")[0]
        why = f"  {_text(change['why'])}" if change.get("why") else ""
        values = f"{_value(kind, change['before'])} → {_value(kind, change['after'])}"
        at = f"{_text(change['at'])[:19]}Z"
        typer.echo(f"{change['n']:>5}  {at}  {_text(change['key'])}  {values}  {_text(change['who'])}{why}")


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
    from unjam.cli.status import seconds_of

    state = version.get("breaker", {})
    line = f"{_text(name)}: {_text(state.get('state', '?'))}"
    if state.get("opens_for"):
        line += f" for {seconds_of(state['opens_for'])} more"
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
        # While it is open nothing more is needed to open it.
        if state.get("state") != "open" and isinstance(found, int | float) and isinstance(most, int | float):
            line += f"; {words} {found:.3g} of {most:.3g}"
    typer.echo(line)


def _holds(answer: dict[str, Any], beside: str = "") -> str:
    holds = answer.get("holds")
    return f", {_text(holds)}{beside if answer.get('kept') else ''}" if isinstance(holds, str) else ""


def warn(answer: dict[str, Any]) -> None:
    """Of what the gateway could not do beside what was asked."""
    warning = answer.get("warning")
    if isinstance(warning, str):
        end = "" if warning.endswith((".", "?", "!")) else "."
        say(f"warning: {_text(warning)}{end}")


def _rollout(service: str, found: dict[str, Any]) -> list[str]:
    """Where a rollout stands, what it waits for, why, and what is compared in this step."""
    from unjam.cli.status import share_of, steps_of

    state = _text(found.get("state", "?"))
    lines = [
        f"{_text(service)}: rollout of {_text(found.get('version', '?'))}, {state.replace('_', ' ')} at "
        f"{share_of(found.get('share'))}{steps_of(found)}"
    ]
    facts = [("waits", found.get("waits_for")), ("why", found.get("why"))]
    if state in ("running", "paused"):
        facts += [("new", _side(found.get("new"))), ("others", _side(found.get("old")))]
    return lines + [f"  {label:<8}{_text(value)}" for label, value in facts if value]


def _side(seen: Any) -> str:
    """What the calls of one side of the comparison came to in this step."""
    if not isinstance(seen, dict) or read.number(seen.get("calls")) is None:
        return ""
    judged = read.number(seen.get("judged"))
    verdicts = f", {seen.get('bad', 0):,} of {judged:,} verdicts bad" if judged else ""
    return f"{seen['calls']:,} calls, {seen.get('failures', 0):,} failed{verdicts} in this step"


def _there_are(names: Any) -> str:
    """The few there are, or where to look."""
    known = [_text(name) for name in names]
    if not known:
        return ""
    return f" There are: {', '.join(known)}." if len(known) <= FEW else " `unjam status` lists them."


def _value(kind: str, value: Any) -> str:
    """A change's value in one line. `kind`: what its key begins with."""
    import json

    from unjam.cli.status import share_of

    if value is None:
        return "-"
    if kind == "rollout" and isinstance(value, dict) and isinstance(value.get("state"), str):
        return f"{_text(value['state']).replace('_', ' ')} at {share_of(value.get('share'))}"
    if kind == "drain" and isinstance(value, bool):
        return "draining" if value else "in use"
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
