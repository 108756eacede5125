"""What the admin API needs from a gateway. The gateway implements it; tests and the simulator can too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from unjam.telemetry.collector import Collector

#: `Runs.list` would hide `list` within the class.
Rows = list[dict[str, Any]]


class ControlRefused(Exception):
    """A control action that cannot be done now. `code`: snake_case; `message` says what to do; `status`: 4xx or 5xx."""

    def __init__(self, code: str, message: str, status: int = 409) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Runs(Protocol):
    """Durable runs, of all tenants. Rows are JSON-able and without payloads. All may raise `ControlRefused`."""

    async def list(
        self, tenant: str | None, service: str | None, status: str | None, before: str | None, limit: int
    ) -> Rows:
        """The newest first. `before`: the id of the run to go on from."""
        ...

    async def dead(self, service: str | None, limit: int) -> Rows:
        """Those whose attempts are exhausted."""
        ...

    async def show(self, run: str, events: int) -> dict[str, Any]:
        """`run` and the last `events` of its log."""
        ...

    async def cancel(self, run: str) -> dict[str, Any]:
        """`run` as it is then, and whether this `changed` anything."""
        ...

    async def requeue(self, run: str) -> dict[str, Any]:
        """As `cancel`, for a run that failed or expired."""
        ...


class Rollouts(Protocol):
    """Progressive rollouts. `who`: steers, for the audit log. Answers are JSON-able: of one service its state, as in
    `status`. All may raise `ControlRefused`."""

    def status(self) -> dict[str, dict[str, Any]]:
        """By service; those without a rollout are left out."""
        ...

    async def start(self, service: str, version: str | None, who: str) -> dict[str, Any]:
        """From its first step. `version` None: the configured one."""
        ...

    async def pause(self, service: str, who: str) -> dict[str, Any]:
        """Stay at the present share."""
        ...

    async def resume(self, service: str, who: str) -> dict[str, Any]:
        """Go on from there."""
        ...

    async def promote(self, service: str, who: str) -> dict[str, Any]:
        """Take the next step now."""
        ...

    async def abort(self, service: str, who: str) -> dict[str, Any]:
        """Back to 0 at once."""
        ...


class Control(Protocol):
    """Called on the gateway's own event loop; nothing here may block. Every action may raise `ControlRefused`.

    `who`: steers, for the audit log. What an action returns is JSON-able and says, beside what changed, for how long:
    `kept` (over restarts, and told to the other gateways of the same state), `holds` in words, and `warning` where it
    should have been kept and could not be.
    """

    def snapshot(self) -> dict[str, Any]:
        """`Balancer.snapshot`: JSON-able, a copy, without secrets."""
        ...

    def metrics(self) -> Collector:
        """The metrics as they are now, to be rendered over the next milliseconds."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether new requests are welcome, and why not."""
        ...

    def active(self, limit: int) -> list[dict[str, Any]]:
        """Requests running or waiting, oldest first, at most `limit`: request_id, service, version, endpoint (None
        while it waits), lane, tenant, age_s, state."""
        ...

    async def drain(self, endpoint_url: str, draining: bool, who: str) -> dict[str, Any]:
        """Stop (or resume) giving new requests to every endpoint of this URL."""
        ...

    async def set_weights(self, service: str, weights: Mapping[str, float], who: str) -> dict[str, Any]:
        """All of them between two requests, or none. The answer has the weights `before`, by version."""
        ...

    async def breaker(self, service: str, version: str, action: str, who: str) -> dict[str, Any]:
        """Open a version's breaker by hand (`trip`), or close it (`reset`). The answer has its state as `breaker`, and
        the one `before`."""
        ...

    async def audit(self, limit: int, before: int | None, key: str | None) -> Rows:
        """What was changed, the newest first. `before`: the number of the change to go on from; `key`: of that only,
        or of all below it."""
        ...

    def rollouts(self) -> Rollouts:
        """Raises `ControlRefused` when this gateway has none."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration again. What is wrong with it, in words with the fix; empty when it is in use now."""
        ...

    def runs(self) -> Runs:
        """Raises `ControlRefused` when this gateway has none."""
        ...
