"""What only shows when the whole configuration is seen: names that do not exist, loops, twins, unreadable files.

Each check yields `(path, message, fix)`; `load` adds the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from unjam.config import services as s
from unjam.config.address import Address, is_loopback, parse_url
from unjam.config.schema import Config
from unjam.config.topology import fallback_names, matches
from unjam.config.tree import Path
from unjam.config.types import nearest
from unjam.config.webhooks import in_the_open
from unjam.core.spec import MatchSpec

Finding = tuple[Path, str, str]


def errors(config: Config) -> Iterator[Finding]:
    yield from _listeners(config)
    yield from _keys(config)
    yield from _fallbacks(config)
    yield from _matches(config)
    for name, service in config.services.items():
        yield from _versions(config, name, service)
        yield from _schemas(name, service)
        if service.sticky == "session" and service.session is None:
            fix = "Add session: {header: x-session-id}, or stick to a header's name."
            yield ("services", name, "sticky"), "sticks to the session, but the service has none", fix
        yield from _agents(name, service)
        if service.inspect == "none" and "inspect" in service.model_fields_set:
            for place, match in enumerate(service.match or ()):
                if match.model:
                    fix = "Remove inspect: none."
                    yield ("services", name, "match", place, "model"), "needs the body, and inspect says none", fix


def warnings(config: Config) -> Iterator[Finding]:
    state = config.state
    if state.kind == "redis" and not state.tls and not all(is_loopback(host) for host in state.hosts):
        yield ("state",), "Redis is spoken to without TLS beyond this machine", "Write rediss:// if the server has TLS."
    if config.runs is not None and state.kind == "memory":
        fix = "Write state: sqlite:unjam.db, or a Redis URL when there are several gateways."
        yield ("runs",), "runs are kept in memory and are lost when this gateway stops", fix
    admin = config.admin
    if admin is not None and not admin.listen.loopback and admin.tls is None:
        fix = "Give admin: {tls: {cert, key}}, or listen on 127.0.0.1 and use a tunnel."
        yield ("admin",), "the admin token crosses the network without TLS", fix
    reporters = config.reporters
    if reporters is not None and not reporters.listen.loopback and reporters.tls is None:
        fix = "Give reporters: {tls: {cert, key}}, or let only a network that you trust reach it."
        yield ("reporters",), "the reporters' token crosses the network without TLS", fix
    for place, hook in enumerate(config.webhooks):
        if hook.in_the_open:
            yield ("webhooks", place, "url"), "what it is told crosses the network without TLS", "Write https://."
    for place, network in enumerate(config.trusted_proxies):
        if network.prefixlen == 0:
            fix = "Name the networks of your proxies only."
            yield ("trusted_proxies", place), "every client may choose its own address", fix
    used = {
        endpoint.region
        for service in config.services.values()
        for version in service.versions.values()
        for endpoint in version.endpoints
    }
    discovers = any(
        version.discover is not None for service in config.services.values() for version in service.versions.values()
    )
    for region in config.regions:
        if region not in used and not discovers:
            yield ("regions", region), "no endpoint is in this region", "Add region: to its endpoints, or remove it."
    for name, service in config.services.items():
        yield from _service_warnings(name, service)


def _service_warnings(name: str, service: s.Service) -> Iterator[Finding]:
    for place, evaluator in enumerate(service.quality.evaluators if service.quality is not None else ()):
        if evaluator.http is not None and in_the_open(evaluator.http):
            key = ("services", name, "quality", "evaluators", place, "http")
            yield key, "what it is shown crosses the network without TLS", "Write https://."
    if service.strip_prefix and not any(match.path for match in service.match or ()):
        yield ("services", name, "strip_prefix"), "has no path to remove", "Match by path, or remove it."
    for version_name, version in service.versions.items():
        path = ("services", name, "versions", version_name)
        fix = "Trust the endpoint's authority instead: endpoint_tls: {ca: FILE}."
        if version.endpoint_tls and not version.endpoint_tls.verify:
            yield (*path, "endpoint_tls", "verify"), "endpoints are not verified: anyone on the path can be one", fix
        for place, endpoint in enumerate(version.endpoints):
            if endpoint.endpoint_tls and not endpoint.endpoint_tls.verify:
                where = (*path, "endpoints", place, "endpoint_tls", "verify")
                yield where, "the endpoint is not verified: anyone on the path can be it", fix


def _listeners(config: Config) -> Iterator[Finding]:
    seen: list[Address] = []
    places = [(("listen", place), listen.address, listen.tls) for place, listen in enumerate(config.listen)]
    if config.admin is not None:
        places.append((("admin",), config.admin.listen, config.admin.tls))  # type: ignore[arg-type]
    if config.reporters is not None:
        places.append((("reporters",), config.reporters.listen, config.reporters.tls))  # type: ignore[arg-type]
    for path, address, tls in places:
        if any(_overlap(address, other) for other in seen):
            yield path, f"{address} is listened on twice", "Give each listener its own address."
        seen.append(address)
        if tls is not None:
            yield from _readable((*path, "tls", "cert"), tls.cert)
            yield from _readable((*path, "tls", "key"), tls.key)


def _overlap(one: Address, other: Address) -> bool:
    """The system would refuse to listen on both."""
    if one.path is not None or other.path is not None:
        return one.path == other.path
    hosts = {one.host, other.host}
    everywhere = "::" if any(":" in host for host in hosts) else "0.0.0.0"
    same_family = len({":" in host for host in hosts}) == 1
    return one.port == other.port != 0 and (len(hosts) == 1 or (same_family and everywhere in hosts))


def _readable(path: Path, file: str) -> Iterator[Finding]:
    try:
        with open(file, "rb") as opened:
            start = opened.read(65536)
    except OSError as error:
        fix = "Check the path (relative to the configuration file) and its permissions."
        yield path, f"{file} cannot be read: {(error.strerror or 'error').lower()}", fix
        return
    if b"-----BEGIN " not in start:
        yield path, f"{file} is not a PEM file", "Give a file that begins with -----BEGIN."


def _keys(config: Config) -> Iterator[Finding]:
    seen: set[str] = set()
    for place, key in enumerate(config.keys):
        if key.hash in seen:
            yield ("keys", place, "hash"), "the same key is given twice", "Keep one: a key belongs to one tenant."
        seen.add(key.hash)
        for number, service in enumerate(key.services or ()):
            if service not in config.services:
                yield ("keys", place, "services", number), *_unknown("service", service, list(config.services))


def _fallbacks(config: Config) -> Iterator[Finding]:
    for name, service in config.services.items():
        for place, step in enumerate(service.fallback):
            path = ("services", name, "fallback", place)
            if step.maintenance is not None and place != len(service.fallback) - 1:
                yield path, "nothing comes after a maintenance message", "Move it to the end of the list."
            if step.service is not None and step.service not in config.services:
                yield path, *_unknown("service", step.service, list(config.services))
            elif step.service is not None and (loop := _loop(config, name, step.service)):
                yield path, f"the fallbacks go round in a circle: {' → '.join(loop)}", "Remove one of the steps."


def _loop(config: Config, start: str, first: str) -> list[str]:
    """The way from `start` by `first` back to `start`, empty when there is none."""
    stack = [[start, first]]
    seen: set[str] = set()
    while stack:
        way = stack.pop()
        if way[-1] == start:
            return way
        if way[-1] not in seen and way[-1] in config.services:
            seen.add(way[-1])
            stack.extend([*way, step.service] for step in config.services[way[-1]].fallback if step.service)
    return []


def _matches(config: Config) -> Iterator[Finding]:
    fallbacks = fallback_names(config.services)
    seen: dict[tuple[object, ...], str] = {}
    for name, service in config.services.items():
        for place, match in enumerate(matches(service, name in fallbacks)):
            same = _match_key(match)
            path = ("services", name) if service.match is None else ("services", name, "match", place)
            if same not in seen:
                seen[same] = name
                continue
            what = "every request" if same == _match_key(MatchSpec()) else "the same requests"
            other = f"{seen[same]} does already" if seen[same] != name else "an earlier match does already"
            yield path, f"takes {what}, as {other}", "Give each service its own match:, such as {path: /agents/NAME}."


def _match_key(match: MatchSpec) -> tuple[object, ...]:
    return match.path, match.host, match.model, frozenset(match.headers.items())


def _versions(config: Config, name: str, service: s.Service) -> Iterator[Finding]:
    here: Path = ("services", name, "versions")
    if not service.versions:
        yield here, "has no versions", "Describe at least one: versions: {v1: {endpoints: [URL]}}."
    elif not any(version.weight for version in service.versions.values()):
        yield here, "every version has weight 0, so nothing could be served", "Give one of them a weight above 0."
    if service.rollout is not None:
        new = service.rollout.version
        if new is not None and new not in service.versions:
            yield ("services", name, "rollout", "version"), *_unknown("version", new, list(service.versions))
        elif len(service.versions) < 2:
            yield ("services", name, "rollout"), "there is no other version to compare with", "Keep the old one listed."
    for place, rule in enumerate(service.split):
        for other in rule.weights:
            if other not in service.versions:
                yield (
                    ("services", name, "split", place, "weights", other),
                    *_unknown("version", other, list(service.versions)),
                )
    for version_name, version in service.versions.items():
        path = (*here, version_name)
        if version.overflow is not None:
            to = version.overflow.to
            if to == version_name:
                yield (*path, "overflow"), "overflows into itself", "Name another version."
            elif to not in service.versions:
                yield (*path, "overflow"), *_unknown("version", to, list(service.versions))
        seen: set[str] = set()
        tls = version.discover is not None
        claimed = config.runs is not None and service.runs.pulled
        if not version.endpoints and version.discover is None and not claimed:
            fix = "Write endpoints: [http://127.0.0.1:9001], or discover: true for reporters to add them."
            yield (*path, "endpoints"), "is required", fix
        if version.discover is not None and config.reporters is None:
            fix = 'Add at the top: reporters: {listen: "127.0.0.1:8082", token: "${UNJAM_REPORT_TOKEN}"}.'
            yield (*path, "discover"), "reporters may add endpoints, but nobody may report", fix
        for place, endpoint in enumerate(version.endpoints):
            where = (*path, "endpoints", place)
            if endpoint.url in seen:
                yield (
                    (*where, "url"),
                    f"{endpoint.url} is given twice in this version",
                    "Give slots: or weight: instead.",
                )
            seen.add(endpoint.url)
            if endpoint.region is not None and endpoint.region not in config.regions:
                yield (*where, "region"), *_unknown("region", endpoint.region, list(config.regions))
            secure = parse_url(endpoint.url).tls
            tls = tls or secure
            if endpoint.endpoint_tls is not None:
                if not secure:
                    yield (*where, "endpoint_tls"), "is only for https:// endpoints", "Write https:// in its url."
                yield from _tls_files((*where, "endpoint_tls"), endpoint.endpoint_tls)
        if version.endpoint_tls is not None:
            if not tls:
                yield (*path, "endpoint_tls"), "is only for https:// endpoints", "Write https:// in their urls."
            yield from _tls_files((*path, "endpoint_tls"), version.endpoint_tls)


def _schemas(name: str, service: s.Service) -> Iterator[Finding]:
    for place, evaluator in enumerate(service.quality.evaluators if service.quality is not None else ()):
        file = evaluator.schema
        if file is None:
            continue
        where: Path = ("services", name, "quality", "evaluators", place, "schema")
        try:
            with open(file, "rb") as opened:
                schema = json.load(opened)
        except OSError as error:
            fix = "Check the path (relative to the configuration file) and its permissions."
            yield where, f"{file} cannot be read: {(error.strerror or 'error').lower()}", fix
        except (ValueError, RecursionError):
            yield where, f"{file} is not JSON", "Give a JSON schema."
        else:
            if not _is_schema(schema):
                yield where, f"{file} is not a JSON schema", "Check it against the standard that its $schema names."


def _is_schema(schema: object) -> bool:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    if not isinstance(schema, dict):
        return False
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError:
        return False
    return True


def _agents(name: str, service: s.Service) -> Iterator[Finding]:
    """An agent-check is asked on the endpoint's host; a Unix socket has none."""
    if service.load.agent_check is None:
        return
    for version_name, version in service.versions.items():
        for place, endpoint in enumerate(version.endpoints):
            if endpoint.url.startswith("unix:"):
                where = ("services", name, "versions", version_name, "endpoints", place, "url")
                fix = "Give the endpoint a host and a port, or remove agent_check."
                yield where, "has no host for load.agent_check to ask", fix


def _tls_files(path: Path, tls: s.EndpointTls) -> Iterator[Finding]:
    if tls.ca is not None:
        yield from _readable((*path, "ca"), tls.ca)


def _unknown(what: str, name: str, known: list[str]) -> tuple[str, str]:
    near = nearest(name, known)
    fix = f"Did you mean {near}?" if near else f"Known: {', '.join(known)}." if known else f"Declare it in {what}s:."
    return f"there is no {what} {name}", fix
