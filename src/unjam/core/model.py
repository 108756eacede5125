"""The words of the pipeline: what is asked (`Request`), what is decided (`Lease`, `Ticket`, `Refusal`), how it ended
(`Outcome`). Mutable on purpose and slotted: one of each is made per request.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.estimator import Bucket
    from unjam.core.quota import Reservation
    from unjam.core.service import Service, Version
    from unjam.core.split import Split


class Outcome(StrEnum):
    """How a lease ended; the value is the log field and the metric label."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    CANCELLED = "cancelled"
    REJECTED_QUALITY = "rejected_quality"


#: Outcomes that count against an endpoint and its version's breaker. The client's own fault never does.
FAILURES = frozenset({Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.TRUNCATED, Outcome.REJECTED_QUALITY})


class Reason(StrEnum):
    """Why a request was refused; the value is the log field, the metric label and the `code` of the answer."""

    QUEUE_FULL = "queue_full"
    TENANT_SHARE = "tenant_share"
    QUEUE_TIMEOUT = "queue_timeout"
    DEADLINE = "deadline"
    NO_ENDPOINT = "no_endpoint"
    QUOTA = "quota"
    MAINTENANCE = "maintenance"


class Request:
    """What the core needs to know of one request.

    `arrived`: monotonic seconds, kept over retries. `bucket`: features below the service, e.g. `"POST /page"`, joined
    by the caller; bounded by the estimator. `seconds_hint`, `lane_hint`: what the caller declared. `tokens`: tokens it
    may use (input + max_tokens), None when unknown. `deadline`: monotonic seconds after which nobody waits for the
    answer. `tried`: endpoints not to use again. `splits`: the rules of the service's split that hold for it. `pin`: the
    version that it must go to, while there is one of that name. `context`: the shell's own object, carried and never
    looked at.
    """

    __slots__ = (
        "arrived",
        "bucket",
        "context",
        "deadline",
        "lane_hint",
        "pin",
        "seconds_hint",
        "service",
        "session",
        "splits",
        "sticky",
        "tenant",
        "tokens",
        "tried",
    )

    def __init__(
        self,
        service: Service,
        bucket: str,
        arrived: float,
        tenant: str = "",
        session: str | None = None,
        sticky: str | None = None,
        lane_hint: str | None = None,
        seconds_hint: float | None = None,
        tokens: int | None = None,
        deadline: float | None = None,
        context: Any = None,
    ) -> None:
        self.service = service
        self.bucket = bucket
        self.arrived = arrived
        self.tenant = tenant
        self.session = session
        self.sticky = sticky
        self.lane_hint = lane_hint
        self.seconds_hint = seconds_hint
        self.tokens = tokens
        self.deadline = deadline
        self.context = context
        self.tried: tuple[Endpoint, ...] = ()
        self.splits: tuple[Split, ...] = ()
        self.pin: str | None = None


class Lease:
    """The claim on one slot of `endpoint`. Ends exactly once, by `Balancer.finish`.

    `started`: monotonic seconds of the dispatch. `expected`: predicted seconds. `promoted`: it outlived the fast
    lane's boundary and counts as heavy since. `fallback`: the service asked for was down and this is another one.
    `burden`: what it counts for against the heavy share, in 1/64 of a heavy request. `overdue`: it has outlived the
    boundary, whatever its lane.
    """

    __slots__ = (
        "bucket",
        "burden",
        "endpoint",
        "expected",
        "fallback",
        "heavy",
        "outcome",
        "overdue",
        "promoted",
        "request",
        "reservation",
        "service",
        "started",
        "version",
    )

    def __init__(
        self,
        request: Request,
        service: Service,
        version: Version,
        endpoint: Endpoint,
        bucket: Bucket,
        heavy: bool,
        expected: float,
        started: float,
    ) -> None:
        self.request = request
        self.service = service
        self.version = version
        self.endpoint = endpoint
        self.bucket = bucket
        self.heavy = heavy
        self.expected = expected
        self.started = started
        self.burden = 0
        self.overdue = False
        self.promoted = False
        self.fallback = False
        self.outcome: Outcome | None = None
        self.reservation: Reservation | None = None

    @property
    def lane(self) -> str:
        return "heavy" if self.heavy else "fast"


class Ticket:
    """A place in a version's queue; becomes a `Lease` (through `finish` or `tick`), expires, or is cancelled."""

    __slots__ = ("bucket", "expected", "expires", "fallback", "heavy", "key", "live", "request", "service", "version")

    def __init__(
        self,
        request: Request,
        service: Service,
        version: Version,
        bucket: Bucket,
        heavy: bool,
        expected: float,
        expires: float,
    ) -> None:
        self.request = request
        self.service = service
        self.version = version
        self.bucket = bucket
        self.heavy = heavy
        self.expected = expected
        self.expires = expires
        self.key = 0.0
        self.live = True
        self.fallback = False


class Refusal:
    """Not served: `status` is 429, 503 or 504; `retry_after` in seconds, None when waiting would not help."""

    __slots__ = ("message", "reason", "request", "retry_after", "status")

    def __init__(
        self, request: Request, reason: Reason, status: int, message: str, retry_after: float | None = None
    ) -> None:
        self.request = request
        self.reason = reason
        self.status = status
        self.message = message
        self.retry_after = retry_after
