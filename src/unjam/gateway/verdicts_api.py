"""`POST /v1/requests/{id}/verdict` and `POST /v1/runs/{id}/verdict`: what users and reviewers say of an answer.

Of its own tenant's requests only; any other is answered like one that doesn't exist. The first is there as soon as a
service has `quality`, at any gateway of one `state`; the second where there are runs too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.elsewhere import Unanswered, Vote
from unjam.gateway.local import Answer, LocalExchange, Refused
from unjam.gateway.runs_api import RunsApi, guarded
from unjam.runs.machine import TERMINAL
from unjam.wire.verdict import verdict

if TYPE_CHECKING:
    from unjam.gateway.paths import Paths
    from unjam.gateway.quality import Quality

#: Seconds until a verdict that nobody has answered is worth another try.
AGAIN: Final = 2.0

UNKNOWN: Final = (
    "No request of this id is remembered: it was not one of yours, or too long ago, or has not ended, or the gateway "
    "that served it is gone."
)

_asked = shapes.decoder(shapes.GiveVerdict)


class VerdictsApi:
    """`runs`: None where there are none."""

    def __init__(self, quality: Quality, runs: RunsApi | None = None) -> None:
        self._quality = quality
        self._runs = runs

    def add_to(self, paths: Paths) -> None:
        paths.add("POST", "/v1/requests/*/verdict", self.on_request, alone=True)
        if self._runs is not None:
            paths.add("POST", "/v1/runs/*/verdict", self.on_run)

    async def on_request(self, exchange: LocalExchange) -> Answer:
        bad, reason = _read(exchange)
        request_id = unquote_to_bytes(exchange.head.path.split("/")[3])
        quality = self._quality
        vote = quality.vote(exchange.tenant, request_id, bad, reason)
        if vote is None:
            try:
                vote = await quality.elsewhere.vote(exchange.tenant, request_id, bad, reason)
            except Unanswered as error:
                raise Refused(503, "verdict_unanswered", str(error), AGAIN) from None
        if vote is None:
            raise Refused(404, "unknown_request", UNKNOWN)
        return _voted(exchange, vote, bad)

    @guarded
    async def on_run(self, exchange: LocalExchange) -> Answer:
        assert self._runs is not None
        bad, reason = _read(exchange)
        run = await self._runs.own(exchange)
        quality = self._quality
        if quality.watch(run.service) is None:
            raise Refused(404, "not_judged", "The service takes no verdicts: it has no quality in the configuration.")
        if run.status not in TERMINAL:
            raise Refused(409, "run_not_ended", "The run has not ended: judge its result when it is there.")
        found = quality.version_of(run)
        if found is None:
            raise Refused(404, "not_judged", "It isn't known which version had the run, or that one is gone.")
        return _voted(exchange, quality.vote_run(run, *found, bad, reason), bad)


def _read(exchange: LocalExchange) -> tuple[bool, str]:
    """Raises `Refused`."""
    asked = shapes.read(exchange, _asked)
    said = verdict(asked.verdict, asked.reason)
    words = "".join(letter if letter.isprintable() else "?" for letter in said.reason)
    return said.bad, f"a user says: {words}" if words else "a user's"


def _voted(exchange: LocalExchange, vote: Vote, bad: bool) -> Answer:
    exchange.service = vote.service
    taken = shapes.Taken(vote.service, vote.version, "bad" if bad else "good")
    return shapes.json(taken, 202 if vote.changed else 200)
