"""Error bodies of the gateway's own answers, in the shape the client's library can read."""

from __future__ import annotations

import json
from typing import Literal

from unjam.wire.sse import error_event

Dialect = Literal["json", "openai", "sse", "text"]

#: OpenAI's `type` for the codes where it has one (platform.openai.com, error codes); anything else is a server error.
_OPENAI_TYPES = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "quota": "rate_limit_error",
    "tenant_share": "rate_limit_error",
    "rate_limited": "rate_limit_error",
    "no_service": "not_found_error",
    "not_found": "not_found_error",
}


def error_body(dialect: Dialect, code: str, message: str, request_id: str = "", status: int = 0) -> tuple[bytes, bytes]:
    """(content type, body) for an error. `code` is the reason code; `message` says what to do; `status` only refines
    the `type` of the openai dialect. Whatever is in the message, the body is well formed."""
    if dialect == "text":
        lines = f"{code}: {message}\n"
        if request_id:
            lines += f"request id: {request_id}\n"
        return b"text/plain; charset=utf-8", lines.encode("utf-8", "replace")
    if dialect == "sse":
        return b"text/event-stream", error_event(code, message, request_id)
    error: dict[str, str | None] = {"code": code, "message": message}
    if dialect == "openai":
        kind = _OPENAI_TYPES.get(code)
        if kind is None:
            kind = (
                "rate_limit_error"
                if status == 429
                else "invalid_request_error"
                if 400 <= status < 500
                else "server_error"
            )
        error = {"message": message, "type": kind, "param": None, "code": code}
    if request_id:
        error["request_id"] = request_id
    body = json.dumps({"error": error}, ensure_ascii=True, separators=(",", ":"))
    return b"application/json", body.encode("ascii")
