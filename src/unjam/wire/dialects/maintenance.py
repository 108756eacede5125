"""The last word of a fallback chain, in the form that the caller's library reads.

With a status of failure it is an error like any other: JSON, OpenAI's shape of it, or an event for those who asked for
events. With 200 it is an answer: who talks to a chat completion reads it as what the assistant says.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from unjam.wire.dialects.errors import error_body
from unjam.wire.sse import error_event, event

#: What the caller speaks; `chat`: OpenAI's chat completions.
Form = Literal["json", "openai", "chat"]

CODE: Final = "maintenance"
_EVENTS: Final = b"text/event-stream"


def maintenance_body(
    form: Form,
    message: str,
    *,
    status: int,
    retry_after: float,
    request_id: str = "",
    stream: bool = False,
    model: str = "",
    created: float = 0.0,
) -> tuple[bytes, bytes]:
    """(content type, body). `stream`: the caller asked for events. `model`: named in its request. `created`: seconds
    since 1970, for the forms that tell."""
    if form == "chat" and status == 200:
        return (
            _chat_events(message, request_id, model, created) if stream else _chat(message, request_id, model, created)
        )
    if form != "json":
        # OpenAI's SDKs read an error from a JSON body, whatever they asked for.
        return error_body("openai", CODE, message, request_id, status)
    if stream:
        # EventSource takes `retry` from a stream with status 200 only; others read Retry-After.
        wait = b"retry: %d\n" % round(retry_after * 1000.0)
        if status == 200:
            return _EVENTS, wait + event(CODE, _dumps(_told(message, request_id)))
        return _EVENTS, wait + error_event(CODE, message, request_id)
    if status == 200:
        return b"application/json", _dumps(_told(message, request_id)).encode("ascii")
    return error_body("json", CODE, message, request_id, status)


def _told(message: str, request_id: str) -> dict[str, Any]:
    return {CODE: {"message": message, **({"request_id": request_id} if request_id else {})}}


def _chat(message: str, request_id: str, model: str, created: float) -> tuple[bytes, bytes]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": message, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    body = {**_head("chat.completion", request_id, model, created), "choices": [choice], "usage": usage}
    return b"application/json", _dumps(body).encode("ascii")


def _chat_events(message: str, request_id: str, model: str, created: float) -> tuple[bytes, bytes]:
    head = _head("chat.completion.chunk", request_id, model, created)
    said = {"index": 0, "delta": {"role": "assistant", "content": message}, "logprobs": None, "finish_reason": None}
    over = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    chunks = [_dumps({**head, "choices": [choice]}) for choice in (said, over)]
    return _EVENTS, "".join(f"data: {data}\n\n" for data in (*chunks, "[DONE]")).encode("ascii")


def _head(kind: str, request_id: str, model: str, created: float) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request_id or CODE}", "object": kind, "created": int(created), "model": model or CODE}


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
