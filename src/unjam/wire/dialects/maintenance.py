"""The last word of a fallback chain, in the form that the caller's library reads.

With a status of failure it is an error like any other: JSON, OpenAI's shape of it, or an event for those who asked for
events. With 200 it is an answer: who asked OpenAI's API for words reads it as what the assistant says. What else that
API has (embeddings, lists, files) can't say it, and a 200 that holds none of what its SDK looks for breaks the caller
in odd places: there it stays an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, Literal

from unjam.wire.dialects.errors import error_body
from unjam.wire.sse import error_event, event

#: What the caller speaks; OpenAI's API, and of that chat completions, completions, and responses.
Form = Literal["json", "openai", "chat", "completion", "response"]
#: Those in which the message can be an answer.
WORDS: Final = frozenset({"chat", "completion", "response"})
#: Of an error, where 200 was wanted and can't be.
UNAVAILABLE: Final = 503

CODE: Final = "maintenance"
_EVENTS: Final = b"text/event-stream"
_JSON: Final = b"application/json"
_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


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
    if form in WORDS and status == 200:
        whole, events = _ANSWERS[form]
        return (events if stream else whole)(message, request_id, model, int(created))
    if form != "json":
        # OpenAI's SDKs read an error from a JSON body, whatever they asked for.
        return error_body("openai", CODE, message, request_id, status_of(form, status))
    if stream:
        # EventSource takes `retry` from a stream with status 200 only; others read Retry-After.
        wait = b"retry: %d\n" % round(retry_after * 1000.0)
        if status == 200:
            return _EVENTS, wait + event(CODE, _dumps(_told(message, request_id)))
        return _EVENTS, wait + error_event(CODE, message, request_id)
    if status == 200:
        return _JSON, _dumps(_told(message, request_id)).encode("ascii")
    return error_body("json", CODE, message, request_id, status)


def status_of(form: Form, status: int) -> int:
    """`status`, where the message can be said with that."""
    return UNAVAILABLE if status == 200 and form == "openai" else status


def _told(message: str, request_id: str) -> dict[str, Any]:
    return {CODE: {"message": message, **({"request_id": request_id} if request_id else {})}}


def _chat(message: str, request_id: str, model: str, created: int) -> tuple[bytes, bytes]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": message, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    head = _head("chat.completion", "chatcmpl", request_id, model, created)
    return _JSON, _dumps({**head, "choices": [choice], "usage": _USAGE}).encode("ascii")


def _chat_events(message: str, request_id: str, model: str, created: int) -> tuple[bytes, bytes]:
    head = _head("chat.completion.chunk", "chatcmpl", request_id, model, created)
    said = {"index": 0, "delta": {"role": "assistant", "content": message}, "logprobs": None, "finish_reason": None}
    over = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    return _chunks({**head, "choices": [choice]} for choice in (said, over))


def _completion(message: str, request_id: str, model: str, created: int) -> tuple[bytes, bytes]:
    choice = {"index": 0, "text": message, "logprobs": None, "finish_reason": "stop"}
    head = _head("text_completion", "cmpl", request_id, model, created)
    return _JSON, _dumps({**head, "choices": [choice], "usage": _USAGE}).encode("ascii")


def _completion_events(message: str, request_id: str, model: str, created: int) -> tuple[bytes, bytes]:
    head = _head("text_completion", "cmpl", request_id, model, created)
    said = {"index": 0, "text": message, "logprobs": None, "finish_reason": None}
    over = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    return _chunks({**head, "choices": [choice]} for choice in (said, over))


def _response(message: str, request_id: str, model: str, created: int) -> tuple[bytes, bytes]:
    output = [_item(request_id, "completed", [_part(message)])]
    return _JSON, _dumps(_made(request_id, model, created, "completed", output)).encode("ascii")


def _response_events(message: str, request_id: str, model: str, created: int) -> tuple[bytes, bytes]:
    item, part = _item(request_id, "completed", [_part(message)]), _part(message)
    begun = _made(request_id, model, created, "in_progress", [])
    there: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    story: tuple[tuple[str, dict[str, Any]], ...] = (
        ("created", {"response": begun}),
        ("in_progress", {"response": begun}),
        ("output_item.added", {"output_index": 0, "item": _item(request_id, "in_progress", [])}),
        ("content_part.added", {**there, "part": _part("")}),
        ("output_text.delta", {**there, "delta": message, "logprobs": []}),
        ("output_text.done", {**there, "text": message, "logprobs": []}),
        ("content_part.done", {**there, "part": part}),
        ("output_item.done", {"output_index": 0, "item": item}),
        ("completed", {"response": _made(request_id, model, created, "completed", [item])}),
    )
    events = (
        event(f"response.{kind}", _dumps({"type": f"response.{kind}", "sequence_number": n, **rest}))
        for n, (kind, rest) in enumerate(story)
    )
    return _EVENTS, b"".join(events)


def _made(request_id: str, model: str, created: int, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"resp_{request_id or CODE}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model or CODE,
        "output": output,
        "parallel_tool_calls": False,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def _item(request_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    named = f"msg_{request_id or CODE}"
    return {"id": named, "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _head(kind: str, prefix: str, request_id: str, model: str, created: int) -> dict[str, Any]:
    return {"id": f"{prefix}-{request_id or CODE}", "object": kind, "created": created, "model": model or CODE}


def _chunks(chunks: Iterable[dict[str, Any]]) -> tuple[bytes, bytes]:
    return _EVENTS, "".join(f"data: {data}\n\n" for data in (*map(_dumps, chunks), "[DONE]")).encode("ascii")


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


#: How it is said in whole, and as a stream.
_ANSWERS: Final = {
    "chat": (_chat, _chat_events),
    "completion": (_completion, _completion_events),
    "response": (_response, _response_events),
}
