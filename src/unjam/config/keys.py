"""What may be written where: suggestions for unknown keys, examples for wrong shapes, and which keys name files."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from unjam.config.tree import Path
from unjam.config.types import nearest

#: Keys that people bring from elsewhere, and where what they mean is said here.
_ELSEWHERE = {
    "admin_token": 'Write admin: {listen: "host:port", token: "${UNJAM_ADMIN_TOKEN}"}.',
    "timeout": "Timeouts belong to a lane: lanes: {fast: {timeout: 5m}, heavy: {timeout: 1h}}.",
    "timeouts": "Timeouts belong to a lane: lanes: {fast: {timeout: 5m}, heavy: {timeout: 1h}}.",
    "endpoints": "Endpoints belong to a version: versions: {v1: {endpoints: [URL]}}.",
    "servers": "Endpoints belong to a version: versions: {v1: {endpoints: [URL]}}.",
    "tls": "Write listen: {address: 0.0.0.0:443, tls: {cert: FILE, key: FILE}}.",
    "up_to": "It belongs to the fast lane: lanes: {fast: {up_to: 5s}}.",
    "share": "It belongs to the heavy lane: lanes: {heavy: {share: 75%}}.",
    "workers": "One gateway is one process: start several on one port instead.",
}

_EXAMPLES = {
    "services": "Write services: {hello: {versions: {v1: {endpoints: [http://127.0.0.1:9001]}}}}.",
    "versions": "Write versions: {v1: {endpoints: [http://127.0.0.1:9001]}}.",
    "endpoints": "Write endpoints: [http://127.0.0.1:9001].",
    "discover": "Write discover: true, or discover: {networks: [10.0.0.0/8]}.",
    "reporters": 'Write reporters: {listen: "127.0.0.1:8082", token: "${UNJAM_REPORT_TOKEN}"}.',
    "match": "Write match: {path: /agents/auditor}.",
    "header": "Write header: {x-agent: auditor}.",
    "lanes": "Write lanes: {fast: {up_to: 5s}, heavy: {share: 75%}}.",
    "queue": "Write queue: {max: 1000, timeout: 60s}.",
    "session": "Write session: {header: x-session-id, ttl: 1h}.",
    "breaker": "Write breaker: {error_rate: 5%, open: 60s}, or off.",
    "rollout": "Write rollout: {steps: [1%, 10%, 50%, 100%], hold: 30m, min_requests: 200}.",
    "split": "Write split: [{header: {x-tier: premium}, weights: {v2: 1}}].",
    "quality": "Write quality: {sample: 10%, evaluators: [{refusal: on}]}, or on.",
    "evaluators": "Write evaluators: [{schema: answer.json}, {repetition: on}].",
    "length": "Write length: {least: 1, most: 20000}.",
    "pattern": "Write pattern: {must: REGEX}, or {never: REGEX}.",
    "overflow": "Write overflow: {to: v2, after: 2s}.",
    "keys": 'Write keys: [{hash: "sha256:...", tenant: acme}].',
    "regions": "Write regions: {us-east-1: {tokens_per_minute: 2M}}.",
    "tls": "Write tls: {cert: FILE, key: FILE}.",
    "load": "Write load: {metrics: vllm}, or off.",
    "metrics": "Write metrics: vllm, or metrics: {path: /metrics, running: NAME, waiting: NAME}.",
    "agent_check": "Write agent_check: 9100, or agent_check: {port: 9100, interval: 2s}.",
    "limits": "Write limits: {max_body: 64MiB}.",
    "runs": "Write runs: on; below a service, runs: {execute: pull}.",
}


def example(loc: Path) -> str:
    """How the mapping at the end of `loc` is written."""
    return _listed(loc) or "Write key: value pairs below it, indented."


def _listed(loc: Path) -> str:
    """The example for the last key of `loc`, or for the one above it."""
    for part in [part for part in reversed(loc) if isinstance(part, str)][:2]:
        if part in _EXAMPLES:
            return _EXAMPLES[part]
    return ""


def missing(loc: Path) -> str:
    """What to add where the required key at the end of `loc` is missing."""
    from unjam.config.schema import Config

    if shown := _listed(loc):
        return shown
    model = _model_at(Config, loc[:-1])
    info = model.model_fields.get(str(loc[-1])) if model is not None else None
    return f"Add {loc[-1]}: {info.description}" if info is not None else f"Add {loc[-1]}."


def suggestion(loc: Path) -> str:
    """What was probably meant by the unknown key at the end of `loc`."""
    from unjam.config.schema import Config

    unknown = str(loc[-1])
    if loc[0] == "keys" and unknown in ("key", "secret", "token", "value"):
        return 'Keys are given hashed: write hash: "sha256:...", as `unjam hash-key` prints it.'
    model = _model_at(Config, loc[:-1])
    known = list(model.model_fields) if model is not None else []
    if (near := nearest(unknown, known, 0.8)) is not None:
        return f"Did you mean {near}?"
    if unknown in _ELSEWHERE:
        return _ELSEWHERE[unknown]
    if (near := nearest(unknown, known)) is not None:
        return f"Did you mean {near}?"
    where = _owners(Config, unknown)
    if where:
        return f"It belongs below {where}."
    return f"Known here: {', '.join(known)}." if known else "Remove it."


def inner_types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of: through Annotated, unions, tuples and the values of dicts."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from inner_types(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from inner_types(part)
    elif origin is tuple:
        yield from inner_types(get_args(annotation)[0])
    elif origin is dict:
        yield from inner_types(get_args(annotation)[1])
    else:
        yield annotation


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation, if any."""
    for part in inner_types(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _model_at(model: type[BaseModel], loc: Path) -> type[BaseModel] | None:
    """The model that describes the mapping at `loc`; names and places on the way are passed over."""
    current: type[BaseModel] | None = model
    skip_name = False
    for part in loc:
        if isinstance(part, int):
            continue
        if skip_name:
            skip_name = False
            continue
        if current is None or part not in current.model_fields:
            return None
        annotation = current.model_fields[part].annotation
        current = model_of(annotation)
        skip_name = get_origin(annotation) is dict
    return current


def _owners(model: type[BaseModel], key: str, prefix: str = "") -> str:
    """The dotted path of the first model below `model` that has `key`."""
    for name, info in model.model_fields.items():
        inner = model_of(info.annotation)
        if inner is None:
            continue
        path = f"{prefix}{name}" + (".<name>" if get_origin(info.annotation) is dict else "")
        if key in inner.model_fields:
            return path
        if found := _owners(inner, key, f"{path}."):
            return found
    return ""


def files(data: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Each place in `data` that names a file, as (mapping, key)."""
    if not isinstance(data, dict):
        return
    listen = data.get("listen")
    for item in [*(listen if isinstance(listen, list) else [listen]), data.get("admin"), data.get("reporters")]:
        if isinstance(item, dict):
            yield from _named(item.get("tls"), "cert", "key")
    log = data.get("access_log")
    if isinstance(log, str) and log.lower() not in ("off", "false", "no", "stdout", "stderr"):
        yield data, "access_log"
    elif isinstance(log, dict) and log.get("to") not in ("off", "stdout", "stderr"):
        yield from _named(log, "to")
    for service in _values(data.get("services")):
        quality = service.get("quality")
        evaluators = quality.get("evaluators") if isinstance(quality, dict) else None
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            yield from _named(evaluator, "schema")
        for version in _values(service.get("versions")):
            yield from _named(version.get("endpoint_tls"), "ca")
            endpoints = version.get("endpoints")
            for endpoint in endpoints if isinstance(endpoints, list) else [endpoints]:
                if isinstance(endpoint, dict):
                    yield from _named(endpoint.get("endpoint_tls"), "ca")


def _named(holder: Any, *names: str) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(holder, dict):
        for name in names:
            if name in holder:
                yield holder, name


def _values(mapping: Any) -> Iterator[dict[str, Any]]:
    if isinstance(mapping, dict):
        yield from (value for value in mapping.values() if isinstance(value, dict))
