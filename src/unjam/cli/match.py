"""What a configuration does with one request, told by the code that does it: the reader of heads and the matcher."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from unjam.cli.explain import describe, format_percent, timeouts
from unjam.cli.trouble import USAGE, CliError
from unjam.config import Config
from unjam.core.balancer import Balancer
from unjam.core.spec import ServiceSpec
from unjam.gateway import features
from unjam.gateway.auth import Tenant
from unjam.gateway.settings import Settings
from unjam.wire.http1 import Malformed, RequestHead, RequestReader

_REQUEST = re.compile(r"(?:([A-Za-z]+) +)?(/\S*|\*|https?://\S+)(?: +HTTP/1\.[01])?\Z")


def explain_request(config: Config, request: str, headers: Sequence[str], model: str | None) -> tuple[list[str], bool]:
    """The explanation, and whether the request would reach a service. Raises `CliError` for a request that is none."""
    settings = Settings.of(config)
    raw = _raw(request, headers)
    try:
        head = RequestReader(settings.wire_limits).feed(raw)
    except Malformed as bad:
        return [f"{request}: refused with {bad.status}, {bad.reason}: {bad.detail}"], False
    if head is None:
        raise CliError("the request has an empty header line.", USAGE)
    lines = [f"{head.method} {head.path} on host {head.host or '(none)'}"]
    balancer = Balancer(random.Random(0))
    topology = config.topology()
    balancer.apply(topology, 0.0)

    def header(name: str) -> str | None:
        value = head.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    service = balancer.match(head.host, head.path, header, model)
    if service is None:
        lines.append(_line("service", "none takes it: answered 404"))
        needs_model = any(match.model for spec in topology.services.values() for match in spec.match)
        if needs_model and model is None:
            lines.append(_line("", "(some match by model: give --model)"))
        return lines, False
    spec = topology.services[service.name]
    lines.append(_line("service", f"{spec.name}, by {_why(spec, head, model)}"))
    refused = _access(settings, head, spec, lines)
    if refused:
        return lines, False
    prefix = _matched_prefix(spec, head.path) if spec.strip_prefix else ""
    if prefix:
        lines.append(_line("forwarded", head.path[len(prefix) :] or "/"))
    if not _lane(spec, head, lines):
        return lines, False
    weights = sum(version.weight for version in spec.versions)
    shares = [
        f"{version.name} {format_percent(version.weight / weights)}" for version in spec.versions if version.weight
    ]
    lines.append(_line("versions", ", ".join(shares)))
    lines.append(_line("endpoints", f"ordered by {spec.policy}{_session(spec, head)}"))
    return lines, True


def _raw(request: str, headers: Sequence[str]) -> bytes:
    found = _REQUEST.match(request.strip())
    if not found:
        raise CliError('--request takes a method and a path, such as "POST /agents/auditor/x".', USAGE)
    lines = [f"{(found[1] or 'GET').upper()} {found[2]} HTTP/1.1"]
    named = set()
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise CliError(f"--header takes Name: value, not {header!r}.", USAGE)
        named.add(name.strip().lower())
        lines.append(f"{name.strip()}: {value.strip()}")
    if "host" not in named:
        lines.append("Host: localhost")
    try:
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
    except UnicodeEncodeError:
        raise CliError("a request has characters that no header can carry: escape them, as %C3%BC.", USAGE) from None


def _why(spec: ServiceSpec, head: RequestHead, model: str | None) -> str:
    """The first match of the service that the request fits."""
    for match in spec.match:
        values = {name: head.get(name.encode()) for name in match.headers}
        if (
            (not match.path or head.path == match.path or head.path.startswith(match.path + "/"))
            and (not match.host or match.host == head.host or match.host.startswith("*."))
            and (not match.model or match.model == model)
            and all(
                value is not None and match.headers[name] in ("*", value.decode("latin-1"))
                for name, value in values.items()
            )
        ):
            return describe(match)
    return "its match"


def _matched_prefix(spec: ServiceSpec, path: str) -> str:
    prefixes = [match.path for match in spec.match if match.path]
    fitting = [prefix for prefix in prefixes if path == prefix or path.startswith(prefix + "/")]
    return max(fitting, key=len, default="")


def _access(settings: Settings, head: RequestHead, spec: ServiceSpec, lines: list[str]) -> bool:
    """Adds the line on API keys; True when the request would be refused."""
    if not settings.keyring:
        return False
    tenant: Tenant | None = settings.keyring.tenant(head.known.get(b"authorization"), head.known.get(b"x-api-key"))
    if tenant is None:
        lines.append(_line("API key", "missing or unknown: answered 401"))
        return True
    if not tenant.may_call(spec.name):
        lines.append(_line("API key", f"of tenant {tenant.name}, who may not call {spec.name}: answered 403"))
        return True
    lines.append(_line("API key", f"of tenant {tenant.name}"))
    return False


def _lane(spec: ServiceSpec, head: RequestHead, lines: list[str]) -> bool:
    """Adds the lines on lane and timeouts; False when a hint makes no sense, so that the request would be refused."""
    lane, why = "fast", "until its history says otherwise"
    try:
        if (expected := head.known.get(b"x-unjam-expected-seconds")) is not None:
            seconds = features.seconds("x-unjam-expected-seconds", expected)
            lane = "heavy" if seconds > spec.lanes.up_to else "fast"
            why = f"since it says it takes {seconds:g} s; history corrects that"
        if (hint := head.known.get(b"x-unjam-lane")) is not None:
            lane, why = features.lane(hint), "since it says so; history corrects that"
    except features.BadHint as bad:
        lines.append(_line("lane", f"refused with 400: {bad}"))
        return False
    lines.append(_line("lane", f"{lane}, {why}"))
    lines.append(_line("timeouts", timeouts(spec.lanes.heavy if lane == "heavy" else spec.lanes.fast)))
    return True


def _session(spec: ServiceSpec, head: RequestHead) -> str:
    if spec.session is None or spec.session.header is None:
        return ""
    given = head.get(spec.session.header.encode()) is not None
    return "; its session decides first" if given else f"; without {spec.session.header} it has no session"


def _line(label: str, text: str) -> str:
    return f"  {label:<11}{text}"
