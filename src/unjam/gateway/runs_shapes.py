"""Bodies of the runs API, both ways: what is read is checked here, what is written is made here.

`openapi` describes these very types. Payloads (input, result, data, checkpoint, metadata, error) are JSON that is
passed on as it came: checked to be JSON in UTF-8, never taken apart.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from unjam.gateway.local import Answer, LocalExchange, Refused
from unjam.runs.machine import Status
from unjam.runs.model import Event, Run
from unjam.telemetry.escape import printable

T = TypeVar("T")

#: Most events in one append.
MOST_EVENTS: Final = 1000
#: Bytes of a run's metadata, and of its error: both are shown with the run wherever it is.
MOST_METADATA: Final = 16384
MOST_ERROR: Final = 65536
#: Bytes of a payload that is not taken apart to see whether it says the same: as objects it would take many times that.
LARGE: Final = 1 << 20
#: Seconds: the furthest deadline.
FURTHEST: Final = 30 * 86400.0

NULL: Final = Raw(b"null")

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Lane = Literal["fast", "heavy"]
#: Types of a run's own events; those of the gateway begin with `run.`, which is theirs alone.
EventType = Annotated[str, Meta(pattern=r"^(?!run\.)[A-Za-z0-9_.:/-]{1,64}$")]
Fence = Annotated[int, Meta(ge=1, le=2**53)]
Number = Annotated[int, Meta(ge=1, le=2**53)]


class Create(Struct, forbid_unknown_fields=True):
    """`lane`, `retry`, `max_attempts`, `pull`: the service's own when not given. `deadline_s`: from now."""

    service: Name
    input: Raw | UnsetType = UNSET
    retry: Literal["fail", "restart"] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    lane: Lane | None = None
    version: Name | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=FURTHEST)] | None = None
    metadata: Raw | UnsetType = UNSET
    pull: bool | None = None


class Input(Struct, forbid_unknown_fields=True):
    """For the run, while it waits or runs."""

    data: Raw


class GiveVerdict(Struct, forbid_unknown_fields=True):
    """On an answer or a result. `reason`: one line for the operator, of which 200 characters are kept."""

    verdict: Literal["good", "bad"]
    reason: str = ""


class Load(Struct, forbid_unknown_fields=True):
    """What a worker says of its machine, each figure if it knows it; as in the reports of endpoints."""

    # The figures of `LoadReport`, spelled out: what the API takes must not change because the core learns another.

    cores: float | None = None
    memory: int | None = None
    cpu: float | None = None
    agent_cpu: float | None = None
    memory_free: int | None = None
    agent_memory: int | None = None
    in_flight: int | None = None
    waiting: int | None = None
    cache: float | None = None
    pressure: float | None = None
    memory_pressure: float | None = None
    run_queue: float | None = None
    open_files: int | None = None
    weight: float | None = None
    slots: int | None = None
    state: Literal["ready", "draining", "down"] | None = None


class ClaimRun(Struct, forbid_unknown_fields=True):
    """`wait`: seconds that the gateway may hold the claim until there is a run. `slots`: runs the worker does at once;
    `running`: those it does now. `version`: of the service, that the worker is; runs it begins keep to it."""

    services: Annotated[list[Name], Meta(min_length=1, max_length=100)]
    worker: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
    lanes: Annotated[list[Lane], Meta(min_length=1, max_length=2)] = msgspec.field(
        default_factory=lambda: ["fast", "heavy"]
    )
    wait: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    slots: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    running: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    version: Name | None = None
    load: Load | None = None


class EventIn(Struct, forbid_unknown_fields=True):
    type: EventType
    data: Raw | UnsetType = UNSET


class Append(Struct, forbid_unknown_fields=True):
    """`batch` counts the appends of one fence from 1; sent again, it changes nothing."""

    fence: Fence
    batch: Number
    events: Annotated[list[EventIn], Meta(min_length=1, max_length=MOST_EVENTS)]


class Heartbeat(Struct, forbid_unknown_fields=True):
    """`number` counts the checkpoints of one fence: an older one that comes late takes no later one's place."""

    fence: Fence
    checkpoint: Raw | UnsetType = UNSET
    number: Number | None = None


class Finish(Struct, forbid_unknown_fields=True):
    """`events` are appended before the run ends, `batch` counting as in `Append`."""

    fence: Fence
    status: Literal["completed", "failed", "cancelled"]
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    batch: Number | None = None
    events: Annotated[list[EventIn], Meta(max_length=MOST_EVENTS)] = []


class Release(Struct, forbid_unknown_fields=True):
    fence: Fence
    checkpoint: Raw | UnsetType = UNSET


class Links(Struct):
    self: str
    events: str
    cancel: str


class RunView(Struct, kw_only=True):
    """A run. `attempt`: executions begun. `result` only of one that is completed."""

    id: str
    service: str
    status: Status
    lane: str
    version: str | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested: bool
    metadata: Raw
    error: Raw
    result: Raw | UnsetType = UNSET
    links: Links


class EventView(Struct):
    seq: int
    type: str
    data: Raw
    at: datetime


class EventBatch(Struct):
    """`next`: seq of the next event that may come; `after` for the next call is one less. `ended`: there will be no
    more. `gap`: the log has lost what was there before `next`."""

    events: list[EventView]
    next: int
    ended: bool
    gap: bool | UnsetType = UNSET


class RunList(Struct):
    """The newest first. `next`: give it as `before` for older ones; null: there are none."""

    runs: list[RunView]
    next: str | None


class Sent(Struct):
    """`n`: the input's number, from 1."""

    n: int


class Taken(Struct):
    """Which version the verdict counts for."""

    service: str
    version: str
    verdict: str


class Claimed(Struct):
    """`fence` goes into every later call about the run. `checkpoint`: null for a run that begins. `lease_s`: without a
    sign of life for so long, the run goes to somebody else."""

    run: RunView
    fence: int
    input: Raw
    checkpoint: Raw
    lease_s: float


class AppendedView(Struct):
    first: int
    next: int
    cancel: bool


class BeatView(Struct):
    """`cancel`: stop working on it. `inputs`: how many were sent to it."""

    cancel: bool
    inputs: int


class SettledView(Struct):
    """`changed`: it was this call that did it."""

    run: RunView
    changed: bool


class InputView(Struct):
    n: int
    data: Raw


class Inputs(Struct):
    inputs: list[InputView]


class Error(Struct):
    code: str
    message: str
    request_id: str | UnsetType = UNSET


class ErrorView(Struct):
    error: Error


_encode = msgspec.json.Encoder().encode
_in_order = msgspec.json.Encoder(order="sorted").encode


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def raw(payload: bytes | Raw | None) -> Raw:
    return NULL if payload is None else payload if isinstance(payload, Raw) else Raw(payload)


def view(run: Run, result: bytes | UnsetType | None = UNSET) -> RunView:
    """A run as everybody sees it."""
    here = f"/v1/runs/{run.id}"
    return RunView(
        id=run.id,
        service=run.service,
        status=run.status,
        lane=run.lane,
        version=run.version,
        attempt=run.attempt,
        created_at=when(run.created),
        started_at=None if run.started is None else when(run.started),
        ended_at=None if run.ended is None else when(run.ended),
        cancel_requested=run.cancel_requested,
        metadata=raw(run.metadata),
        error=raw(run.error),
        result=UNSET if isinstance(result, UnsetType) else raw(result),
        links=Links(here, f"{here}/events", f"{here}/cancel"),
    )


def event_view(event: Event) -> EventView:
    return EventView(event.seq, event.type, Raw(event.data), when(event.at))


def json(value: object, status: int = 200, lines: bytes = b"") -> Answer:
    return Answer(status, _encode(value) + b"\n", lines)


def location(run: Run) -> bytes:
    """The head's line that says where the run is."""
    return b"location: /v1/runs/%b\r\n" % run.id.encode("ascii")


def read(exchange: LocalExchange, decoder: msgspec.json.Decoder[T], optional: bool = False) -> T:
    """The request's body. `optional`: none stands for an empty object. Raises `Refused`."""
    content = exchange.content
    if not content and optional:
        content = b"{}"
    else:
        check_media_type(exchange)
    try:
        if not content.isascii():
            content.decode()
        return decoder.decode(content)
    except msgspec.ValidationError as problem:
        raise Refused(400, "bad_body", f"The body does not fit: {printable(str(problem), 300)}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "bad_json", "The body is not JSON in UTF-8.") from None
    except RecursionError:
        raise Refused(400, "bad_json", "The JSON of the body is nested too deeply.") from None


def check_media_type(exchange: LocalExchange) -> None:
    """Also keeps out what pages of other sites can send without asking. Raises `Refused`."""
    value = exchange.head.get(b"content-type") or b""
    if value.partition(b";")[0].strip().lower() != b"application/json":
        raise Refused(415, "not_json", "Send the body as JSON, with Content-Type: application/json.")


def payload(given: Raw | UnsetType, most: int, what: str) -> bytes:
    """A payload by itself, within its limit; null for none. Raises `Refused`."""
    data = b"null" if isinstance(given, UnsetType) else bytes(given)
    if len(data) > most:
        raise Refused(413, "payload_too_large", f"The {what} has {len(data)} bytes; it may have {most}.")
    return data


def optional_payload(given: Raw | UnsetType, most: int, what: str) -> bytes | None:
    return None if isinstance(given, UnsetType) else payload(given, most, what)


def seconds(query: dict[str, str], name: str, most: float) -> float:
    """A time to wait: 0 when it isn't given, `most` when it is more. Raises `Refused`."""
    text = query.get(name, "0")
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise Refused(400, "bad_query", f"{name} must be a number of seconds, 0 or more.")
    return min(number, most)


def whole(text: str, name: str, least: int, most: int) -> int:
    """A number in a query or a field. Raises `Refused`."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 16 and least <= int(text) <= most):
        raise Refused(400, "bad_query", f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def digest(asked: Create) -> bytes:
    """The same for all requests that ask for the same, however they are written and by whichever way they come."""
    given = {name: _said(getattr(asked, name)) for name in Create.__struct_fields__}
    return sha256(_in_order(given)).digest()


def _said(given: object) -> object:
    if isinstance(given, UnsetType):
        return None
    if isinstance(given, Raw):
        if len(bytes(given)) > LARGE:
            return {"as it came": sha256(given).hexdigest()}
        try:
            return msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError):  # a number beyond all measure, say
            return {"as it came": bytes(given).decode()}
    return given


def decoder(shape: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(shape)


def is_object(given: Raw) -> bool:
    return bytes(given).lstrip()[:1] == b"{"
