"""The admin API: state, metrics, running requests and the few actions an operator needs at 3 a.m.

Every action is written to the log with who did it, what, from and to. Bodies are JSON, bounded and checked; every
refusal is `{"error": {"code", "message"}}` and says what to do. docs/observability.md lists the routes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from unjam.admin import page
from unjam.admin.auth import Guard, Hosts, Token, error
from unjam.admin.body import BadBody, Name, Nothing, read_body
from unjam.admin.control import Control, ControlRefused
from unjam.admin.runs import RunsRoutes
from unjam.telemetry import logs
from unjam.telemetry.collector import render_slowly

MAX_ACTIVE = 1000
#: Share of the loop's time that one open status page may take: with a very large fleet it refreshes less often.
PAGE_SHARE = 0.005


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    """`endpoint`: its URL as /api/state shows it. `draining` False takes it back."""

    endpoint: Name
    draining: bool = True


class Weight(msgspec.Struct, forbid_unknown_fields=True):
    """`weight` 0 takes the version out of the draw."""

    service: Name
    version: Name
    weight: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Breaker(msgspec.Struct, forbid_unknown_fields=True):
    service: Name
    version: Name
    action: Literal["trip", "reset"]


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

    def _json(self, value: object, status: int = 200) -> Response:
        return Response(self._encoder.encode(value) + b"\n", status, media_type="application/json")

    def _audit(self, request: Request, action: str, target: str, old: object, new: object) -> None:
        who = request.scope["state"]["who"]
        self._log.info("control", who=who, action=action, target=target, **{"from": old, "to": new})

    async def page(self, request: Request) -> Response:
        refresh = page.parse_refresh(request.query_params.get("refresh"))
        ready, why = self._control.ready()
        if refresh:
            refresh = max(refresh, math.ceil(self._page_cost / PAGE_SHARE))
        start = perf_counter()
        html = page.render(self._control.snapshot(), ready, why, refresh)
        self._page_cost = perf_counter() - start
        return Response(html, media_type="text/html", headers={"content-security-policy": page.CSP})

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
        text = request.query_params.get("limit", "100")
        if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_ACTIVE):
            return error(400, "bad_limit", f"limit must be a number from 1 to {MAX_ACTIVE}.")
        return self._json({"active": self._control.active(int(text))})

    async def drain(self, request: Request) -> Response:
        body = await read_body(request, Drain)
        found = [e for e in page.endpoints_of(self._control.snapshot()) if e["name"] == body.endpoint]
        before = bool(found) and all(endpoint.get("draining") for endpoint in found)
        if not self._control.drain(body.endpoint, body.draining):
            return error(404, "unknown_endpoint", "No endpoint has this URL. GET /api/state lists them.")
        self._audit(request, "drain" if body.draining else "undrain", body.endpoint, before, body.draining)
        return self._json({"endpoint": body.endpoint, "draining": body.draining})

    async def weight(self, request: Request) -> Response:
        body = await read_body(request, Weight)
        before = self._version(body.service, body.version).get("weight")
        if not self._control.set_weight(body.service, body.version, body.weight):
            return _unknown_version()
        self._audit(request, "weight", f"{body.service}/{body.version}", before, body.weight)
        return self._json({"service": body.service, "version": body.version, "weight": body.weight, "before": before})

    async def breaker(self, request: Request) -> Response:
        body = await read_body(request, Breaker)
        before = _breaker_state(self._version(body.service, body.version))
        if not self._control.breaker(body.service, body.version, body.action):
            return _unknown_version()
        after = _breaker_state(self._version(body.service, body.version))
        self._audit(request, f"breaker {body.action}", f"{body.service}/{body.version}", before, after)
        return self._json({"service": body.service, "version": body.version, "breaker": after, "before": before})

    async def reload(self, request: Request) -> Response:
        await read_body(request, Nothing)
        problems = await self._control.reload()
        self._audit(request, "reload", "configuration", "running", "refused" if problems else "reloaded")
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

    def _version(self, service: str, version: str) -> dict[str, Any]:
        found: dict[str, Any] = (
            self._control.snapshot().get("services", {}).get(service, {}).get("versions", {}).get(version, {})
        )
        return found


def _breaker_state(version: dict[str, Any]) -> str | None:
    state: str | None = version.get("breaker", {}).get("state")
    return state


def _unknown_version() -> Response:
    return error(404, "unknown_version", "There is no such service or version. GET /api/state lists them.")


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
