"""Runs on the admin API: list, show, dead letters, cancel, queue again; and pages of them. Of all tenants, without what
they said."""

from __future__ import annotations

from time import time
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unjam.admin import frame, runs_page
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
            Route("/runs", self.page, methods=["GET"]),
            Route("/runs/dead", self.dead_page, methods=["GET"]),
            Route("/runs/{run}", self.run_page, methods=["GET"]),
            Route("/api/runs", self.index, methods=["GET"]),
            Route("/api/runs/dead", self.dead, methods=["GET"]),
            Route("/api/runs/{run}", self.show, methods=["GET"]),
            Route("/api/runs/{run}/cancel", self.cancel, methods=["POST"]),
            Route("/api/runs/{run}/requeue", self.requeue, methods=["POST"]),
        ]

    def _json(self, value: object) -> Response:
        return Response(self._encoder.encode(value) + b"\n", media_type="application/json")

    def _plain(self, value: object) -> Any:
        """As the API tells it, times and errors written out."""
        return msgspec.json.decode(self._encoder.encode(value))

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

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        query, refresh = request.query_params, _refresh(request)
        asked = {key: query[key] for key in ("status", "service", "tenant", "before") if query.get(key)}
        if asked.get("status", STATUSES[0]) not in STATUSES:
            return frame.answer(runs_page.render_trouble(f"No run has the status {asked['status']}.", "/runs"), 400)
        try:
            rows = await self._control.runs().list(
                asked.get("tenant"), asked.get("service"), asked.get("status"), asked.get("before"), runs_page.ROWS
            )
        except ControlRefused as refused:
            return frame.answer(runs_page.render_trouble(refused.message, "/runs", refresh), refused.status)
        older = rows[-1]["id"] if len(rows) == runs_page.ROWS else None
        return frame.answer(runs_page.render_list(self._plain(rows), asked, older, refresh, time()))

    async def dead_page(self, request: Request) -> Response:
        refresh = _refresh(request)
        try:
            rows = await self._control.runs().dead(None, runs_page.DEAD)
        except ControlRefused as refused:
            return frame.answer(runs_page.render_trouble(refused.message, "/runs/dead", refresh), refused.status)
        return frame.answer(runs_page.render_dead(self._plain(rows), refresh, time()))

    async def run_page(self, request: Request) -> Response:
        run, refresh = request.path_params["run"], _refresh(request)
        try:
            found = self._plain(await self._control.runs().show(run, runs_page.EVENTS))
        except ControlRefused as refused:
            return frame.answer(
                runs_page.render_trouble(refused.message, f"/runs/{quote(run, safe='')}"), refused.status
            )
        return frame.answer(runs_page.render_run(found["run"], found["events"], refresh, time()))

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


def _refresh(request: Request) -> int:
    return frame.parse_refresh(request.query_params.get("refresh"), runs_page.DEFAULT_REFRESH)


def _limit(request: Request, default: int, name: str = "limit") -> int:
    """Raises `ControlRefused`."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MOST):
        raise ControlRefused("bad_limit", f"{name} must be a number from 1 to {MOST}.", 400)
    return int(text)
