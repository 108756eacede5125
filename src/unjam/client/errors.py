"""What a client raises. Everything is a `ClientError`."""

from __future__ import annotations

from typing import Any

from unjam.client.model import Run


class ClientError(Exception):
    """`code`: snake_case, as the gateway gives it, or ours."""

    code = "client_error"


class Unavailable(ClientError):
    """No gateway has answered in time, or each said to come again later. `uncertain`: the last attempt may have been
    acted on all the same; only for calls that are not repeated, such as `send`."""

    code = "unavailable"

    def __init__(self, message: str, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class NotAccepted(ClientError):
    """The gateway refuses this request, and would again. `status`: of its answer; 404 `unknown_run`, 410
    `log_expired`, 413, 422 `idempotency_key_reused`, 401, 403…"""

    def __init__(self, status: int, code: str, message: str, request_id: str | None = None) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status = status
        self.code = code
        self.request_id = request_id


class RunNotCompleted(ClientError):
    """The run has ended without a result. `run`: how it ended."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class RunFailed(RunNotCompleted):
    """`error`: what the worker or the gateway says of it; `code` is its code."""

    def __init__(self, run: Run) -> None:
        self.error: dict[str, Any] = run.error if isinstance(run.error, dict) else {}
        self.code = str(self.error.get("code", "failed"))
        super().__init__(f"{run.id} failed: {self.error.get('message', 'no reason given')} ({self.code})", run)


class RunCancelled(RunNotCompleted):
    code = "cancelled"

    def __init__(self, run: Run) -> None:
        super().__init__(f"{run.id} was cancelled", run)


class RunExpired(RunNotCompleted):
    code = "expired"

    def __init__(self, run: Run) -> None:
        super().__init__(f"{run.id} was not done by its deadline", run)
