"""Runs on the admin API: list, show, dead letters, cancel, queue again. Of all tenants, without what they said."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unjam.admin.auth import error
from unjam.admin.body import Nothing, read_body
from unjam.admin.control import Control, ControlRefused
from unjam.telemetry import logs

#: Runs, or events of one, in one answer.
MOST = 1000
STATUSES = ("queued", "running", "completed", "failed", "cancelled", "expired")


class RunsRoutes:
    def __init__(self, control: Control) -> None:
        self._control = control
        self._log = logs.get("admin")
        self._encoder = msgspec.json.Encoder()

    def routes(self) -> list[Route]:
        return [
            Route("/api/runs", self.index, methods=["GET"]),
            Route("/api/runs/dead", self.dead, methods=["GET"]),
            Route("/api/runs/{run}", self.show, methods=["GET"]),
            Route("/api/runs/{run}/cancel", self.cancel, methods=["POST"]),
            Route("/api/runs/{run}/requeue", self.requeue, methods=["POST"]),
        ]

    def _json(self, value: object) -> Response:
        return Response(self._encoder.encode(value) + b"\n", media_type="application/json")

    async def index(self, request: Request) -> Response:
        query = request.query_params
        status = query.get("status")
        if status is not None and status not in STATUSES:
            return error(400, "bad_query", f"status must be one of {', '.join(STATUSES)}.")
        limit = _limit(request, 50)
        runs = await self._control.runs().list(
            query.get("tenant"), query.get("service"), status, query.get("before"), limit
        )
        return self._json({"runs": runs, "next": runs[-1]["id"] if len(runs) == limit else None})

    async def dead(self, request: Request) -> Response:
        runs = await self._control.runs().dead(request.query_params.get("service"), _limit(request, 100))
        return self._json({"runs": runs})

    async def show(self, request: Request) -> Response:
        return self._json(await self._control.runs().show(request.path_params["run"], _limit(request, 50, "events")))

    async def cancel(self, request: Request) -> Response:
        await read_body(request, Nothing)
        answer = await self._control.runs().cancel(request.path_params["run"])
        return self._told(request, "cancel run", answer)

    async def requeue(self, request: Request) -> Response:
        await read_body(request, Nothing)
        answer = await self._control.runs().requeue(request.path_params["run"])
        if not answer["changed"]:
            status = answer["run"]["status"]
            raise ControlRefused("not_failed", f"The run is {status}: only failed and expired ones are queued again.")
        return self._told(request, "requeue run", answer)

    def _told(self, request: Request, action: str, answer: dict[str, object]) -> Response:
        run = answer["run"]
        assert isinstance(run, dict)
        who = request.scope["state"]["who"]
        self._log.info("control", who=who, action=action, target=run["id"], **{"from": None, "to": run["status"]})
        return self._json(answer)


def _limit(request: Request, default: int, name: str = "limit") -> int:
    """Raises `ControlRefused`."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MOST):
        raise ControlRefused("bad_limit", f"{name} must be a number from 1 to {MOST}.", 400)
    return int(text)
