"""The runs API described in OpenAPI 3.1, made from the very types that bodies are read into and written from.

Served at `/v1/openapi.json`. A test holds the gateway's real answers against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from unjam import __version__
from unjam.gateway import run_socket, socket_shapes
from unjam.gateway import runs_shapes as shapes
from unjam.gateway.local import Answer, LocalExchange
from unjam.gateway.paths import Paths

_REF: Final = "#/components/schemas/{name}"

_WAIT = ("wait", "number", "Seconds that the answer may be held; at most `runs.wait` of the configuration.")
_AFTER = ("after", "integer", "Events with a higher seq than this. Not given: all.")
_KEY = ("Idempotency-Key", "The same key with the same body gives the same run, for 24 hours.")
_LAST = ("Last-Event-ID", "As `after`, and goes before it: what an EventSource sends when it comes back.")

_CALLS: Final[tuple[dict[str, Any], ...]] = (
    {
        "call": ("post", "/v1/runs", "createRun", "Record a run and queue it"),
        "headers": [_KEY],
        "body": shapes.Create,
        "answers": {201: shapes.RunView, 200: shapes.RunView},
        "errors": (400, 403, 404, 413, 415, 422, 429, 503),
    },
    {
        "call": ("get", "/v1/runs", "listRuns", "The tenant's runs, the newest first"),
        "query": [
            ("status", "string", "Only those."),
            ("service", "string", "Only its runs."),
            ("before", "string", "Only those older than this run: `next` of the page before."),
            ("limit", "integer", "At most so many, 1 to 500; 50 when not given."),
        ],
        "answers": {200: shapes.RunList},
        "errors": (400, 403, 503),
    },
    {
        "call": ("get", "/v1/runs/{id}", "getRun", "A run, with its result when it is completed"),
        "query": [_WAIT, ("result", "string", "0: without the result.")],
        "answers": {200: shapes.RunView},
        "errors": (400, 404, 410, 503),
    },
    {
        "call": ("delete", "/v1/runs/{id}", "deleteRun", "Forget a run that has ended, with its events and its result"),
        "answers": {204: None},
        "errors": (404, 409, 503),
    },
    {
        "call": ("get", "/v1/runs/{id}/events", "followRun", "Its events: a stream with Accept: text/event-stream"),
        "query": [_AFTER, _WAIT, ("limit", "integer", "At most so many, 1 to 256.")],
        "headers": [_LAST],
        "answers": {200: shapes.EventBatch, 204: None},
        "stream": True,
        "errors": (400, 404, 410, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/cancel", "cancelRun", "Stop it: at once while it waits, else by its worker"),
        "answers": {200: shapes.RunView},
        "errors": (404, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/input", "sendInput", "Give a run that waits or runs something more"),
        "body": shapes.Input,
        "answers": {200: shapes.Sent},
        "errors": (400, 404, 409, 413, 415, 429, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/verdict", "judgeRun", "Say whether its result is good; 200: as before"),
        "body": shapes.GiveVerdict,
        "answers": {202: shapes.Taken, 200: shapes.Taken},
        "errors": (400, 404, 409, 413, 415, 503),
    },
    {
        "call": ("post", "/v1/requests/{id}/verdict", "judgeRequest", "Say whether an answer was good; 200: as before"),
        "body": shapes.GiveVerdict,
        "answers": {202: shapes.Taken, 200: shapes.Taken},
        "errors": (400, 404, 413, 415, 503),
    },
    {
        "call": ("post", "/v1/workers/claim", "claimRun", "Take the oldest run of some services; 204: none waits"),
        "body": shapes.ClaimRun,
        "answers": {200: shapes.Claimed, 204: None},
        "errors": (400, 403, 404, 415, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/append", "appendEvents", "Add events to its log"),
        "body": shapes.Append,
        "answers": {200: shapes.AppendedView},
        "errors": (400, 403, 404, 409, 413, 415, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/heartbeat", "heartbeat", "A sign of life, and how far it has come"),
        "body": shapes.Heartbeat,
        "answers": {200: shapes.BeatView},
        "errors": (400, 403, 404, 409, 413, 415, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/finish", "finishRun", "End it"),
        "body": shapes.Finish,
        "answers": {200: shapes.SettledView},
        "errors": (400, 403, 404, 409, 413, 415, 503),
    },
    {
        "call": ("post", "/v1/runs/{id}/release", "releaseRun", "Hand it back, to the front of its queue"),
        "body": shapes.Release,
        "answers": {200: shapes.SettledView},
        "errors": (400, 403, 404, 409, 413, 415, 503),
    },
    {
        "call": ("get", "/v1/runs/{id}/inputs", "readInputs", "What clients have sent to it"),
        "query": [("after", "integer", "Only those with a higher number."), _WAIT],
        "answers": {200: shapes.Inputs},
        "errors": (400, 403, 404, 503),
    },
)

_RETRY: Final = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
_MEANING: Final = {
    200: "Done.",
    201: "A new run.",
    202: "Taken.",
    204: "Nothing, for now.",
    400: "The request does not fit.",
    403: "Not with this API key.",
    404: "There is no such run, request or service, or it is another tenant's.",
    409: "The run has another owner, has ended, or has not ended yet.",
    410: "Not kept any more.",
    413: "Too large.",
    415: "Not JSON.",
    422: "The idempotency key was used for another request.",
    429: "The queue is full, or the run was sent as much as it takes.",
    503: "The store is away, the gateway is stopping, or not all gateways have answered.",
}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    used = [shape for call in _CALLS for shape in (call.get("body"), *call["answers"].values()) if shape is not None]
    used = list(dict.fromkeys([*used, shapes.ErrorView, shapes.EventView]))
    references, components = msgspec.json.schema_components(used, ref_template=_REF)
    schema = dict(zip(used, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for call in _CALLS:
        method, path, name, summary = call["call"]
        operation: dict[str, Any] = {"operationId": name, "summary": summary, "parameters": list(_parameters(call))}
        if "body" in call:
            content = {"application/json": {"schema": schema[call["body"]]}}
            operation["requestBody"] = {"required": True, "content": content}
        answers: dict[str, Any] = {}
        operation["responses"] = answers
        for status, shape in call["answers"].items():
            answer: dict[str, Any] = {"description": _MEANING[status]}
            answers[str(status)] = answer
            if shape is not None:
                answer["content"] = {"application/json": {"schema": schema[shape]}}
                if call.get("stream"):
                    answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        for status in call["errors"]:
            answer = {
                "description": _MEANING[status],
                "content": {"application/json": {"schema": schema[shapes.ErrorView]}},
            }
            if status in (429, 503):
                answer["headers"] = _RETRY
            answers[str(status)] = answer
        answers["default"] = _refusal(schema)
        paths.setdefault(path, {})[method] = operation
    said, told = _messages(components)
    paths[run_socket.PATH] = {
        "get": {
            "operationId": "openSocket",
            "summary": "A WebSocket of the subprotocol unjam.v1; x-messages: what is said on it",
            "parameters": [],
            "responses": {"101": {"description": "The WebSocket is open."}, "default": _refusal(schema)},
            "x-messages": {"client": said, "server": told},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "unjam runs", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _refusal(schema: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema[shapes.ErrorView]}}
    return {"description": "Any other error.", "content": content}


def _messages(components: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What clients and gateway say on a socket; its parts go into `components`, under names of their own."""
    (said, told), parts = msgspec.json.schema_components(
        [socket_shapes.Said, socket_shapes.Told], ref_template=_REF.replace("{name}", "Socket{name}")
    )
    components.update({f"Socket{name}": part for name, part in parts.items()})
    return said, told


def _parameters(call: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if "{id}" in call["call"][1]:
        yield {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    for name, kind, text in call.get("query", ()):
        yield {"name": name, "in": "query", "schema": {"type": kind}, "description": text}
    for name, text in call.get("headers", ()):
        yield {"name": name, "in": "header", "schema": {"type": "string"}, "description": text}


@lru_cache(maxsize=1)
def _page() -> bytes:
    return msgspec.json.encode(document()) + b"\n"


async def _serve(exchange: LocalExchange) -> Answer:
    return Answer(200, _page())


def add_to(paths: Paths) -> None:
    paths.add("GET", "/v1/openapi.json", _serve)
