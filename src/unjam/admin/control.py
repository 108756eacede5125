"""What the admin API needs from a gateway. The gateway implements it; tests and the simulator can too."""

from __future__ import annotations

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


class Control(Protocol):
    """Called on the gateway's own event loop; nothing here may block. Every action may raise `ControlRefused`."""

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

    def drain(self, endpoint_url: str, draining: bool) -> bool:
        """Stop (or resume) giving new requests to every endpoint of this URL. False: there is none."""
        ...

    def set_weight(self, service: str, version: str, weight: float) -> bool:
        """False: no such service or version. Holds until the next reload says otherwise."""
        ...

    def breaker(self, service: str, version: str, action: str) -> bool:
        """Open a version's breaker by hand (`trip`), or close it (`reset`). False: no such service or version."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration again. What is wrong with it, in words with the fix; empty when it is in use now."""
        ...

    def runs(self) -> Runs:
        """Raises `ControlRefused` when this gateway has none."""
        ...
