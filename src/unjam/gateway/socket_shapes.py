"""Messages of the `unjam.v1` protocol, both ways: JSON objects, told apart by `op`. docs/websocket.md is their page.

What clients send is read strictly: an unknown `op` or key is an error, as is a payload that isn't JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.local import Refused
from unjam.runs.hub import Delivery
from unjam.runs.machine import Status
from unjam.runs.model import Event
from unjam.telemetry.escape import printable
from unjam.wire import frames

#: The version that is spoken, as a WebSocket subprotocol.
PROTOCOL: Final = b"unjam.v1"
#: Runs that one socket may follow at once.
MOST_RUNS: Final = 256
#: Characters of a `ref`.
REF: Final = 64

#: The client's own name for a message: what answers it has the same.
Ref = Annotated[str, Meta(max_length=REF)] | Annotated[int, Meta(ge=0, le=2**53)] | None
RunId = Annotated[str, Meta(max_length=64)]
#: The last seq that the client has; -1: none.
After = Annotated[int, Meta(ge=-1, le=2**53)]
Key = Annotated[str, Meta(pattern=r"^[!-~]{1,255}$")]


# -- what clients send -------------------------------------------------------------------------------------------------


class Place(Struct, forbid_unknown_fields=True):
    """Where a client has left a run."""

    run: RunId
    after: After = -1


class Hello(Struct, tag_field="op", tag="hello", forbid_unknown_fields=True):
    """The first message, where it says who calls. `token`: an API key, for clients that can't send headers."""

    token: Annotated[str, Meta(max_length=512)] | None = None
    resume: Annotated[list[Place], Meta(max_length=MOST_RUNS)] = []
    ref: Ref = None


class Create(shapes.Create, tag_field="op", tag="create", forbid_unknown_fields=True, kw_only=True):
    """As the body of `POST /v1/runs`. `idem`: the idempotency key. `follow`: also subscribe to it."""

    idem: Key | None = None
    follow: bool = True
    ref: Ref = None


class Subscribe(Struct, tag_field="op", tag="subscribe", forbid_unknown_fields=True):
    """Of a run that is subscribed to already: go on from `after` instead."""

    run: RunId
    after: After = -1
    ref: Ref = None


class Unsubscribe(Struct, tag_field="op", tag="unsubscribe", forbid_unknown_fields=True):
    run: RunId
    ref: Ref = None


class Cancel(Struct, tag_field="op", tag="cancel", forbid_unknown_fields=True):
    run: RunId
    ref: Ref = None


class Input(Struct, tag_field="op", tag="input", forbid_unknown_fields=True):
    """For the run, while it waits or runs."""

    run: RunId
    data: Raw
    ref: Ref = None


Said = Hello | Create | Subscribe | Unsubscribe | Cancel | Input


# -- what clients are told ---------------------------------------------------------------------------------------------


class _Told(Struct, tag_field="op", omit_defaults=True):
    pass


class Welcome(_Told, tag="welcome"):
    """The answer to `hello`. `max_runs`: followed at once. `max_message`: bytes. `ping_s`: seconds between pings."""

    protocol: str
    max_runs: int
    max_message: int
    ping_s: float
    ref: Ref = None


class Created(_Told, tag="created"):
    """`new`: false when the idempotency key had made it before."""

    run: str
    status: Status
    new: bool
    ref: Ref = None


class Ok(_Told, tag="ok"):
    """The answer to a message with a `ref`. `n`: the number of an input, from 1."""

    run: str
    n: int | UnsetType = UNSET
    ref: Ref = None


class EventMessage(_Told, tag="event"):
    run: str
    seq: int
    type: str
    data: Raw


class Gap(_Told, tag="gap"):
    """The log has lost what was there before `next`, which may be less than what was asked for."""

    run: str
    next: int


class Done(_Told, tag="done"):
    """The run has ended, its last event was sent, and it is not subscribed to any more."""

    run: str
    status: Status


class Drain(_Told, tag="drain"):
    """This gateway is stopping: the client will be closed with 1012 in `deadline` seconds."""

    deadline: float


class Error(_Told, tag="error"):
    """`ref`, `run`: of the message that it answers."""

    code: str
    message: str
    run: str | None = None
    retry_after_s: float | None = None
    ref: Ref = None


Told = Welcome | Created | Ok | EventMessage | Gap | Done | Drain | Error

encode = msgspec.json.Encoder().encode


class _Glance(Struct):
    """What is looked for in a message that can't be read."""

    op: str = ""
    ref: str | int | None = None
    run: str | None = None


class Bad(NamedTuple):
    """A message that can't be acted on, and what names it."""

    refused: Refused
    run: str | None = None
    ref: str | int | None = None


_decode: Callable[[str], Said] = msgspec.json.Decoder(Said).decode
_glance = msgspec.json.Decoder(_Glance).decode
_OPS: Final = frozenset({"hello", "create", "subscribe", "unsubscribe", "cancel", "input"})


def read(text: str) -> Said | Bad:
    """One message of a client's."""
    try:
        return _decode(text)
    except msgspec.ValidationError as problem:
        return _bad(text, printable(str(problem), 300))
    except msgspec.DecodeError:
        return Bad(Refused(400, "bad_json", "The message is not JSON."))
    except RecursionError:
        return Bad(Refused(400, "bad_json", "The JSON of the message is nested too deeply."))


def _bad(text: str, problem: str) -> Bad:
    try:
        seen = _glance(text)
    except (msgspec.DecodeError, RecursionError):
        return Bad(Refused(400, "bad_message", f"The message does not fit: {problem}."))
    refused = Refused(400, "bad_message", f"The message does not fit: {problem}.")
    if seen.op not in _OPS:
        refused = Refused(400, "unknown_op", f"op is one of {', '.join(sorted(_OPS))}.")
    run = seen.run if seen.run is not None and len(seen.run) <= REF else None
    ref = seen.ref
    if (isinstance(ref, str) and len(ref) > REF) or (isinstance(ref, int) and not 0 <= ref <= 2**53):
        ref = None
    return Bad(refused, run, ref)


def error(refused: Refused, run: str | None, ref: str | int | None) -> Error:
    return Error(refused.code, refused.message, run, refused.retry_after, ref)


# -- events ------------------------------------------------------------------------------------------------------------


def event_frame(run: str, event: Event) -> bytes:
    """One event as a WebSocket message."""
    data = event.data
    if not data.isascii():  # not every store is written to by gateways alone, and bad UTF-8 would end the connection
        data = data.decode("utf-8", "replace").encode()
    return frames.text(
        b'{"op":"event","run":"%b","seq":%d,"type":%b,"data":%b}'
        % (run.encode("ascii"), event.seq, encode(event.type), data)
    )


def piece(run: str, delivery: Delivery, seq: int) -> tuple[bytes, int]:
    """The events from `seq` on as messages: as many whole ones as `frames.FRAGMENT` bytes hold, or one that is larger;
    and the seq behind them. Made once for all who stand at the same place."""
    found = delivery.cache.get(seq)
    if found is None:
        parts: list[bytes] = []
        size = 0
        for event in delivery.since(seq):
            frame = event_frame(run, event)
            size += len(frame)
            if parts and size > frames.FRAGMENT:
                break
            parts.append(frame)
        found = delivery.cache[seq] = (b"".join(parts), seq + len(parts))
    return found
