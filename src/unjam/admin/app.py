"""The admin API: state, metrics, running requests and the few actions an operator needs at 3 a.m.

Every action is written to the log with who did it, what, from and to. Bodies are JSON, bounded and checked; every
refusal is `{"error": {"code", "message"}}` and says what to do. docs/observability.md lists the routes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Literal

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from unjam.admin import frame, page
from unjam.admin.auth import Guard, Hosts, Token, error
from unjam.admin.body import BadBody, Name, Nothing, read_body
from unjam.admin.control import Control, ControlRefused, Rows
from unjam.admin.runs import RunsRoutes
from unjam.telemetry import logs
from unjam.telemetry.collector import render_slowly

MAX_ACTIVE = 1000
MAX_CHANGES = 1000
#: Share of the loop's time that one open status page may take: with a very large fleet it refreshes less often.
PAGE_SHARE = 0.005
#: Changes that the status page shows, and seconds it waits for them.
PAGE_CHANGES = 10
PAGE_PATIENCE = 1.0


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    """`endpoint`: its URL as /api/state shows it. `draining` False takes it back."""

    endpoint: Name
    draining: bool = True


Share = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Weight(msgspec.Struct, forbid_unknown_fields=True):
    """Of one `version`, or `weights` of several by their names, set together. 0 takes a version out of the draw."""

    service: Name
    version: Name | None = None
    weight: Share | None = None
    weights: Annotated[dict[Name, Share], msgspec.Meta(min_length=1, max_length=100)] | None = None


class Breaker(msgspec.Struct, forbid_unknown_fields=True):
    service: Name
    version: Name
    action: Literal["trip", "reset"]


class Rollout(msgspec.Struct, forbid_unknown_fields=True):
    """`version`: with `start` only; the configured one when it is not given."""

    service: Name
    action: Literal["start", "pause", "resume", "promote", "abort"]
    version: Name | None = None


def create_app(
    control: Control,
    token: str | None,
    hosts: Hosts,
    on_reject: Callable[[str, str], None] | None = None,
) -> Guard:
    """The guarded ASGI application. `token`: None only for a listener that no other machine can reach (see
    `auth.check_exposure`). `on_reject`: usually `logs.Rejections.reject`."""
    api = _Api(control)
    app = Starlette(
        routes=[
            Route("/", api.page, methods=["GET"]),
            Route("/healthz", api.healthz, methods=["GET"]),
            Route("/readyz", api.readyz, methods=["GET"]),
            Route("/metrics", api.metrics, methods=["GET"]),
            Route("/api/state", api.state, methods=["GET"]),
            Route("/api/active", api.active, methods=["GET"]),
            Route("/api/drain", api.drain, methods=["POST"]),
            Route("/api/weight", api.weight, methods=["POST"]),
            Route("/api/breaker", api.breaker, methods=["POST"]),
            Route("/api/audit", api.audit, methods=["GET"]),
            Route("/api/rollout", api.rollouts, methods=["GET"]),
            Route("/api/rollout", api.rollout, methods=["POST"]),
            Route("/api/reload", api.reload, methods=["POST"]),
            *RunsRoutes(control).routes(),
        ],
        exception_handlers={
            HTTPException: _http_error,
            ControlRefused: _refused,
            BadBody: _bad_body,
            Exception: _broken,
        },
    )
    app.router.redirect_slashes = False
    # Kept apart from any exception that could print it: the guard holds a digest.
    secret = None
    if token:
        logs.conceal(token)
        secret = Token(token)
    return Guard(app, secret, hosts, on_reject or _ignore)


class _Api:
    def __init__(self, control: Control) -> None:
        self._control = control
        self._log = logs.get("admin")
        self._encoder = msgspec.json.Encoder()
        self._page_cost = 0.0
        self._reading: asyncio.Task[tuple[Rows, str]] | None = None

    def _json(self, value: object, status: int = 200) -> Response:
        return Response(self._encoder.encode(value) + b"\n", status, media_type="application/json")

    def _told(self, request: Request, action: str, target: str, old: object, new: object) -> None:
        self._log.info("control", who=_who(request), action=action, target=target, **{"from": old, "to": new})

    async def page(self, request: Request) -> Response:
        refresh = frame.parse_refresh(request.query_params.get("refresh"))
        ready, why = self._control.ready()
        if refresh:
            refresh = max(refresh, math.ceil(self._page_cost / PAGE_SHARE))
        changes, trouble = await self._latest()
        start = perf_counter()
        html = page.render(self._control.snapshot(), ready, why, refresh, changes, trouble, self._has_runs())
        self._page_cost = perf_counter() - start
        return frame.answer(html)

    def _has_runs(self) -> bool:
        try:
            self._control.runs()
        except ControlRefused:
            return False
        return True

    async def _latest(self) -> tuple[Rows, str]:
        """The latest changes, or why they can't be read: the page is for nights on which the store is away, too. Those
        who look at once share one reading, and who gives up waiting leaves it to go on."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_changes())
        done, _ = await asyncio.wait([self._reading], timeout=PAGE_PATIENCE)
        return self._reading.result() if done else ([], f"The audit log doesn't answer within {PAGE_PATIENCE:g} s.")

    async def _read_changes(self) -> tuple[Rows, str]:
        try:
            return await self._control.audit(PAGE_CHANGES, None, None), ""
        except ControlRefused as refused:
            return [], refused.message

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        ready, why = self._control.ready()
        if ready:
            return PlainTextResponse("ready\n")
        # Why it is not is for operators; anybody may ask whether.
        known = request.scope["state"]["authorised"]
        return PlainTextResponse(f"not ready: {why}\n" if known else "not ready\n", 503)

    async def metrics(self, request: Request) -> Response:
        body, content_type = await render_slowly(self._control.metrics(), request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def state(self, request: Request) -> Response:
        ready, why = self._control.ready()
        return self._json({"ready": ready, "why": why, **self._control.snapshot()})

    async def active(self, request: Request) -> Response:
        limit = number(request.query_params.get("limit"), "limit", 100, MAX_ACTIVE)
        return self._json({"active": self._control.active(limit)})

    async def drain(self, request: Request) -> Response:
        body = await read_body(request, Drain)
        answer = await self._control.drain(body.endpoint, body.draining, _who(request))
        self._told(request, "drain" if body.draining else "undrain", body.endpoint, answer["before"], body.draining)
        return self._json(answer)

    async def weight(self, request: Request) -> Response:
        body = await read_body(request, Weight)
        weights = body.weights
        if weights is None and body.version is not None and body.weight is not None:
            weights = {body.version: body.weight}
        elif body.version is not None or body.weight is not None:
            weights = None
        if weights is None:
            return error(400, "bad_body", "Give version and weight, or weights by version.")
        answer = await self._control.set_weights(body.service, weights, _who(request))
        for version, weight in weights.items():
            self._told(request, "weight", f"{body.service}/{version}", answer["before"][version], weight)
        if body.weights is None:
            # As it was asked.
            answer |= {"version": body.version, "weight": body.weight, "before": answer["before"][body.version]}
            del answer["weights"]
        return self._json(answer)

    async def breaker(self, request: Request) -> Response:
        body = await read_body(request, Breaker)
        answer = await self._control.breaker(body.service, body.version, body.action, _who(request))
        target = f"{body.service}/{body.version}"
        self._told(request, f"breaker {body.action}", target, answer["before"], answer["breaker"])
        return self._json(answer)

    async def audit(self, request: Request) -> Response:
        query = request.query_params
        limit = number(query.get("limit"), "limit", 100, MAX_CHANGES)
        before = query.get("before")
        changes = await self._control.audit(
            limit, None if before is None else number(before, "before", 0, 10**15), query.get("key")
        )
        return self._json({"changes": changes, "next": changes[-1]["n"] if len(changes) == limit else None})

    async def rollouts(self, request: Request) -> Response:
        found = self._control.rollouts().status()
        service = request.query_params.get("service")
        if service is None:
            return self._json({"rollouts": found})
        if service not in found:
            others = f" There is one of: {', '.join(found)}." if found else ""
            return error(404, "no_rollout", f"No service {service} has a rollout.{others}")
        return self._json({"service": service, **found[service]})

    async def rollout(self, request: Request) -> Response:
        body = await read_body(request, Rollout)
        rollouts, who, service = self._control.rollouts(), _who(request), body.service
        if body.version is not None and body.action != "start":
            return error(400, "bad_body", "version goes with start only.")
        match body.action:
            case "start":
                answer = await rollouts.start(service, body.version, who)
            case "pause":
                answer = await rollouts.pause(service, who)
            case "resume":
                answer = await rollouts.resume(service, who)
            case "promote":
                answer = await rollouts.promote(service, who)
            case "abort":
                answer = await rollouts.abort(service, who)
        self._told(request, f"rollout {body.action}", service, None, body.version)
        return self._json({"service": service, **answer})

    async def reload(self, request: Request) -> Response:
        await read_body(request, Nothing)
        problems = await self._control.reload()
        self._told(request, "reload", "configuration", "running", "refused" if problems else "reloaded")
        if problems:
            return self._json(
                {
                    "error": {
                        "code": "bad_configuration",
                        "message": "The configuration was not accepted; the old one stays. Fix what `problems` says.",
                    },
                    "problems": problems,
                },
                422,
            )
        return self._json({"reloaded": True})


def _who(request: Request) -> str:
    who: str = request.scope["state"]["who"]
    return who


def number(text: str | None, name: str, default: int, most: int) -> int:
    """Raises `ControlRefused`."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and 1 <= int(text) <= most):
        raise ControlRefused(f"bad_{name}", f"{name} must be a number from 1 to {most}.", 400)
    return int(text)


async def _bad_body(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, BadBody)
    return error(problem.status, problem.code, problem.message)


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ControlRefused)
    return error(problem.status, problem.code, problem.message)


async def _http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    if problem.status_code == 404:
        return error(404, "not_found", "There is nothing here. docs/observability.md lists the admin routes.")
    if problem.status_code == 405:
        allow = (problem.headers or {}).get("Allow", "")
        return error(405, "method_not_allowed", f"Use {allow}.", {"allow": allow})
    return error(problem.status_code, "refused", "The request was refused.")


async def _broken(request: Request, problem: Exception) -> Response:
    # The traceback goes to the log, redacted; the caller learns only that it is not their fault.
    return error(500, "internal", "The gateway failed at this; its log says why. Please report it.")


def _ignore(reason: str, peer: str) -> None:
    return None
