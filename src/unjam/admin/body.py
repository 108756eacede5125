"""Bodies of requests to the admin API: JSON, small, in time, and of the shape that is asked for."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeVar

import msgspec
from starlette.requests import Request

from unjam.telemetry.escape import printable

#: Bytes of one request body.
MAX_BODY = 16 * 1024
#: Seconds in which it must arrive.
BODY_TIMEOUT = 10.0

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]

Body = TypeVar("Body")


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """`{}`: an action without parameters still needs a JSON body, which no form can send."""


class BadBody(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


async def read_body(request: Request, shape: type[Body]) -> Body:
    """Raises `BadBody`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps forms of foreign pages out: they cannot send this type without asking first.
        raise BadBody(415, "not_json", "Send the body as JSON, with Content-Type: application/json.")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BODY:
                    raise BadBody(413, "body_too_large", f"The body may have {MAX_BODY} bytes.")
    except TimeoutError:
        raise BadBody(408, "body_timeout", f"The body must arrive within {BODY_TIMEOUT:.0f} seconds.") from None
    try:
        return msgspec.json.decode(bytes(data), type=shape)
    except msgspec.ValidationError as problem:
        raise BadBody(400, "bad_body", f"The body does not fit: {printable(str(problem), 300)}.") from None
    except msgspec.DecodeError:
        raise BadBody(400, "bad_json", "The body is not JSON.") from None
