"""The words of an answer: of chat completions, of OpenAI's responses and Anthropic's messages, whole or as streams."""

from __future__ import annotations

import json
from typing import Any

from unjam.wire.eventstream import EventStream, EventTooLarge


def said(answer: bytes, content_type: str) -> tuple[str, bool]:
    """The words, and whether they were taken out of a shape or a stream."""
    media = content_type.partition(";")[0].strip().lower()
    if media == "text/event-stream":
        return _stream(answer), True
    if media == "application/json" or media.endswith("+json") or answer[:1] == b"{":
        value = _json(answer)
        if isinstance(value, dict):
            words = _whole(value)
            if words is not None:
                return words, True
        if isinstance(value, str):
            return value, False
    return answer.decode("utf-8", "replace"), False


def refused(answer: bytes, content_type: str) -> bool:
    """Whether a provider's own field says that the model refused."""
    if b"refusal" not in answer and b"content_filter" not in answer:
        return False
    if content_type.partition(";")[0].strip().lower() == "text/event-stream":
        return any(_says_no(value) for value in map(_json, _data(answer)))
    return _says_no(_json(answer))


def _says_no(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    for choice in _dicts(value.get("choices")):
        message = choice.get("message") or choice.get("delta")
        if choice.get("finish_reason") == "content_filter" or (isinstance(message, dict) and message.get("refusal")):
            return True
    parts = [part for item in _dicts(value.get("output")) for part in _dicts(item.get("content"))]
    return str(value.get("type")).startswith("response.refusal") or any(p.get("type") == "refusal" for p in parts)


def _json(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _whole(value: dict[str, Any]) -> str | None:
    """The words of a whole answer; None when it has none of the shapes."""
    choices = _dicts(value.get("choices"))
    if choices:
        first = choices[0]
        message = first.get("message")
        if isinstance(message, dict):
            return _content(message.get("content"))
        return first["text"] if isinstance(first.get("text"), str) else None
    if value.get("object") == "response":
        return "".join(
            _content(item.get("content")) for item in _dicts(value.get("output")) if item.get("type") == "message"
        )
    if value.get("type") == "message" and isinstance(value.get("content"), list):
        return _content(value["content"])
    return None


def _content(content: Any) -> str:
    """Text, or the texts of its parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in _dicts(content) if isinstance(part.get("text"), str))


def _data(answer: bytes) -> list[bytes]:
    try:
        events = EventStream(len(answer) + 1).feed(answer)
    except EventTooLarge:
        return []
    return [data for kind, data in events if kind not in ("error", "unjam.verdict") and data != b"[DONE]"]


def _stream(answer: bytes) -> str:
    words: list[str] = []
    loose: list[str] = []
    for data in _data(answer):
        value = _json(data)
        if isinstance(value, dict):
            piece = _piece(value)
            if piece is not None:
                words.append(piece)
                continue
        loose.append(value if isinstance(value, str) else data.decode("utf-8", "replace"))
    return "".join(words) if words else "\n".join(loose)


def _piece(value: dict[str, Any]) -> str | None:
    """What one event adds; None when it belongs to none of the known streams."""
    if isinstance(value.get("choices"), list):
        for choice in _dicts(value["choices"])[:1]:
            if choice.get("index", 0):
                break
            delta = choice.get("delta")
            return _content(delta.get("content")) if isinstance(delta, dict) else str(choice.get("text") or "")
        return ""
    kind = value.get("type")
    if not isinstance(kind, str):
        return None
    delta = value.get("delta")
    if kind == "response.output_text.delta":
        return delta if isinstance(delta, str) else ""
    if kind == "content_block_delta":
        return _content([delta])
    # What else these streams have repeats it, or tells of their progress.
    begins = ("response.", "message_", "content_block_", "ping")
    return "" if kind.startswith(begins) else None
