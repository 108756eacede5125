"""A run's log told as OpenAI's Responses: which stream events it is, and which response object they add up to.

Pure, and a function of the log alone: whoever tells a log from its start gives every event the same `sequence_number`,
so that a client can go on from any of them, on any gateway. What the agent says as `response.*` events is passed on
under our numbers; all else it streams is text. docs/openai-responses.md has the tables.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from unjam.runs.machine import CANCELLED, COMPLETED, EXPIRED, FAILED, QUEUED, RUNNING
from unjam.runs.model import Event

Json = dict[str, Any]

#: Of a run → of a response.
STATUS: Final = {
    QUEUED: "queued",
    RUNNING: "in_progress",
    COMPLETED: "completed",
    FAILED: "failed",
    CANCELLED: "cancelled",
    EXPIRED: "failed",
}

#: What the agent's own first and last words are; ours are said in their place.
_FIRST: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})

#: An agent's types are its own words.
_LINE_ENDS: Final = str.maketrans("", "", "\r\n\0")

_DEFAULTS: Final[Json] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
#: Characters of one text that a response has in the end; its stream has all of them.
MOST_TEXT: Final = 16 << 20
TOO_LONG: Final[Json] = {"reason": "text_too_long"}
#: Bytes of a result that is looked at before it is taken apart.
LARGE: Final = 1 << 20
#: Pieces of a text that are put together.
CHUNK: Final = 256
#: Keys of a request that its response shows again.
ECHOED: Final = frozenset(
    {*_DEFAULTS, "model", "max_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "top_logprobs"}
)


def response(response_id: str, created: float, echo: Json, status: str, **more: Any) -> Json:
    """A response object. `echo`: of the request; `more`: output, error, usage, incomplete_details."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(created),
        "status": status,
        "background": True,
        "store": True,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **_DEFAULTS,
        **echo,
        **more,
    }


def frame(event: Json) -> bytes:
    """One event as SSE."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].translate(_LINE_ENDS).encode(), msgspec.json.encode(event))


class Text:
    """A text as far as any story has come with it. As all tell the same, those that are behind need nothing of their
    own: it is theirs up to the length that they have told."""

    __slots__ = ("__weakref__", "_chunks", "_length", "_pieces", "_whole")

    def __init__(self) -> None:
        self._length = 0
        #: What was put together already, and what came since: of late, and before that in chunks.
        self._whole = ""
        self._chunks: list[str] = []
        self._pieces: list[str] = []

    def add(self, at: int, piece: str) -> None:
        """Add what follows after `at` characters; that may be known already."""
        if at != self._length:
            return
        self._length += len(piece)
        self._pieces.append(piece)
        if len(self._pieces) >= CHUNK:
            self._chunks.append("".join(self._pieces))
            self._pieces = []

    def upto(self, length: int) -> str:
        if len(self._whole) < length:
            self._whole = "".join([self._whole, *self._chunks, *self._pieces])
            self._chunks, self._pieces = [], []
        return self._whole[:length]


#: The texts of a run by the number that their first event has; they are there as long as some story tells them.
Texts = WeakValueDictionary[int, Text]


class Story:
    """Told from the log's first event, in order. `number`: of the next event it will tell. `texts`: what stories of the
    same run have in common."""

    def __init__(self, response_id: str, created: float, echo: Json, texts: Texts | None = None) -> None:
        self.texts: Texts = WeakValueDictionary() if texts is None else texts
        self._id = response_id
        self._created = created
        self._echo = echo
        self.number = 0
        self._begun = False
        #: Output items of earlier attempts, which have their place in the stream and none in the response.
        self._before = 0
        self._items: dict[int, Json] = {}
        #: Those that the agent has begun and not finished.
        self._open: set[int] = set()
        #: The text that is being told, and those of this attempt, as far as they are kept.
        self._text = Text()
        self._kept: list[Text] = []
        self._length = 0
        self._cut = False
        self._text_at: int | None = None
        self._final: Json = {}
        self._usage: Json | None = None

    def fork(self) -> Story:
        """Another one that goes on from here, independently."""
        other = copy.copy(self)
        other._items, other._open, other._kept = dict(self._items), set(self._open), list(self._kept)
        return other

    # -- the stream ---------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> list[Json]:
        """What this event of the log is for the stream: nothing, one event or several. `run.completed`: see `end`."""
        kind = event.type
        if not kind.startswith("run."):
            return self._said(kind, decoded(event.data))
        if kind == "run.created":
            queued = self._response("queued")
            return [self._event("response.created", response=queued), self._event("response.queued", response=queued)]
        if kind == "run.attempt":
            return self._attempt()
        if kind == "run.failed":
            return self._over("failed", error_of(_object(event.data).get("error")))
        if kind == "run.expired":
            return self._over("failed", {"code": "expired", "message": "The run did not end before its deadline."})
        if kind == "run.cancelled":
            return self._over("cancelled", None)
        return []

    def end(self, result: bytes | None) -> list[Json]:
        """The run has completed, with this result."""
        said = self._result(result)
        status = "incomplete" if self._cut or self._final.get("status") == "incomplete" else "completed"
        said += self._close("completed")
        return [*said, self._event(f"response.{status}", response=self.summary(status))]

    def summary(self, status: str, error: Json | None = None) -> Json:
        """The response as far as it has been told."""
        final = self._final
        return self._response(
            status,
            error=error,
            output=final.get("output") or [self._items[index] for index in sorted(self._items)],
            usage=final.get("usage") or self._usage,
            incomplete_details=final.get("incomplete_details") or (TOO_LONG if self._cut else None),
        )

    def _event(self, kind: str, **fields: Any) -> Json:
        event = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return event

    def _response(self, status: str, **more: Any) -> Json:
        return response(self._id, self._created, self._echo, status, **more)

    def _attempt(self) -> list[Json]:
        if not self._begun:
            self._begun = True
            return [self._event("response.in_progress", response=self._response("in_progress"))]
        # Another attempt begins with nothing: what was shown stays in the stream, as an item that was not finished.
        said = self._close("incomplete")
        for index in sorted(self._open):
            item = {**self._items[index], "status": "incomplete"}
            said.append(self._event("response.output_item.done", item=item, output_index=self._before + index))
        self._before += max(self._items, default=-1) + 1
        self._items = {}
        self._open = set()
        self._kept = []
        self._final = {}
        self._usage = None
        self._cut = False
        return said

    def _over(self, status: str, error: Json | None) -> list[Json]:
        said = self._close("incomplete")
        # Clients know of no event for a response that was cancelled; its status says it.
        kind = "response.failed" if status == "failed" else "response.incomplete"
        return [*said, self._event(kind, response=self.summary(status, error))]

    # -- what the agent says ------------------------------------------------------------------------------------------

    def _said(self, kind: str, data: Any) -> list[Json]:
        if isinstance(data, dict) and not kind.startswith("response."):
            kind = data["type"] if isinstance(data.get("type"), str) else kind
        if kind.startswith("response.") and isinstance(data, dict):
            return self._relayed(kind, data)
        if isinstance(data, dict) and data.get("object") == "chat.completion.chunk":
            if isinstance(data.get("usage"), dict):
                self._usage = usage(data["usage"])
            return self._delta("".join(_chunk_texts(data)))
        return self._delta("" if data == "[DONE]" else as_text(data))

    def _relayed(self, kind: str, data: Json) -> list[Json]:
        if kind in _FIRST:
            return []
        if kind in _LAST:
            if isinstance(data.get("response"), dict):
                self._final = data["response"]
            return []
        said = self._close("completed")
        index = data.get("output_index")
        if isinstance(index, int):
            if isinstance(data.get("item"), dict):
                self._items[index] = data["item"]
                if kind == "response.output_item.added":
                    self._open.add(index)
                else:
                    self._open.discard(index)
            data = {**data, "output_index": index + self._before}
        return [*said, {**data, "type": kind, "sequence_number": self._event(kind)["sequence_number"]}]

    def _delta(self, text: str) -> list[Json]:
        if not text:
            return []
        said = []
        if self._text_at is None:
            self._text_at = max(self._items, default=-1) + 1
            self._text, self._length = self.texts.setdefault(self.number, Text()), 0
            self._kept.append(self._text)
            self._items[self._text_at] = self._message("in_progress", "")
            place = {"output_index": self._before + self._text_at}
            opened = {**self._message("in_progress", ""), "content": []}
            said = [
                self._event("response.output_item.added", item=opened, **place),
                self._event(
                    "response.content_part.added", item_id=opened["id"], content_index=0, part=_part(""), **place
                ),
            ]
        self._keep(text)
        return [*said, self._event("response.output_text.delta", delta=text, logprobs=[], **self._place())]

    def _keep(self, text: str) -> None:
        room = MOST_TEXT - self._length
        if len(text) > room:
            text = text[:room]
            self._cut = True
        self._text.add(self._length, text)
        self._length += len(text)

    def _place(self) -> Json:
        assert self._text_at is not None
        return {"item_id": self._message_id(), "output_index": self._before + self._text_at, "content_index": 0}

    def _message_id(self) -> str:
        assert self._text_at is not None
        return f"msg_{self._id.removeprefix('resp_')}_{self._before + self._text_at}"

    def _message(self, status: str, text: str) -> Json:
        return {
            "id": self._message_id(),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(text)],
        }

    def _close(self, status: str) -> list[Json]:
        """End the text that is being told, if there is one."""
        if self._text_at is None:
            return []
        text = self._text.upto(self._length)
        item = self._items[self._text_at] = self._message(status, text)
        place = self._place()
        said = []
        if status == "completed":
            said = [
                self._event("response.output_text.done", text=text, logprobs=[], **place),
                self._event("response.content_part.done", part=_part(text), **place),
            ]
        said.append(self._event("response.output_item.done", item=item, output_index=place["output_index"]))
        self._text_at = None
        return said

    def _result(self, result: bytes | None) -> list[Json]:
        """What a whole answer adds to what was streamed: all, or nothing where text was."""
        found = None if result is None else answer_of(result)
        if isinstance(found, dict) and found.get("object") == "response":
            self._final = found
            if self._items:
                return []
            said: list[Json] = []
            for index, item in enumerate(_list(found.get("output"))):
                if isinstance(item, dict):
                    self._items[index] = item
                    said += self._whole_item(index, item)
            return said
        if found is None or self._items or self._final:
            return []
        if isinstance(found, dict) and found.get("object") == "chat.completion":
            self._usage = usage(found.get("usage"))
            return self._delta("".join(_choice_texts(found)))
        return self._delta(as_text(found))

    def _whole_item(self, index: int, item: Json) -> list[Json]:
        """An item that came at once, in the steps in which clients put one together."""
        place = {"output_index": self._before + index}
        parts = item.get("content") if item.get("type") == "message" else None
        if not isinstance(parts, list):
            return [
                self._event("response.output_item.added", item=item, **place),
                self._event("response.output_item.done", item=item, **place),
            ]
        said = [self._event("response.output_item.added", item={**item, "content": []}, **place)]
        for number, part in enumerate(parts):
            where = {**place, "item_id": item.get("id"), "content_index": number}
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "output_text" else None
            begun = part if text is None else {**part, "text": ""}
            said.append(self._event("response.content_part.added", part=begun, **where))
            if text is not None:
                said.append(self._event("response.output_text.delta", delta=text, logprobs=[], **where))
                said.append(self._event("response.output_text.done", text=text, logprobs=[], **where))
            said.append(self._event("response.content_part.done", part=part, **where))
        return [*said, self._event("response.output_item.done", item=item, **place)]


def decoded(data: bytes) -> Any:
    """What it says; or its text: JSON may have numbers, for one, that are none here."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data.decode("utf-8", "replace")


class _Glance(msgspec.Struct):
    object: str | None = None


_glance: Final = msgspec.json.Decoder(_Glance).decode


def answer_of(result: bytes) -> Any:
    """What a result says. A large one that can only be text is not taken apart: as objects it would take many times its
    bytes, and the gateway's time."""
    if len(result) > LARGE and result.lstrip()[:1] != b'"':
        try:
            kind = _glance(result).object
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            kind = None
        if kind not in ("response", "chat.completion"):
            return result.decode("utf-8", "replace")
    return decoded(result)


def as_text(data: Any) -> str:
    """Strings as they are, anything else as JSON."""
    return data if isinstance(data, str) else msgspec.json.encode(data).decode()


def error_of(error: Any) -> Json:
    """A run's error as a response's: `code` and `message`, and what else there is."""
    found = error if isinstance(error, dict) else {}
    return {**found, "code": str(found.get("code", "server_error")), "message": str(found.get("message", "It failed."))}


def usage(figures: Any) -> Json | None:
    """Tokens, by the names that Responses has for them."""
    if not isinstance(figures, dict):
        return None
    taken = _count(figures.get("input_tokens", figures.get("prompt_tokens")))
    made = _count(figures.get("output_tokens", figures.get("completion_tokens")))
    return {
        "input_tokens": taken,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": figures.get("total_tokens", taken + made),
    }


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _object(data: bytes) -> Json:
    found = decoded(data)
    return found if isinstance(found, dict) else {}


# An agent may say what it likes: what isn't as it should be isn't there.


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _count(found: Any) -> int:
    return found if isinstance(found, int) else 0


def _content(choice: Any, part: str) -> Iterable[str]:
    said = choice.get(part) if isinstance(choice, dict) else None
    content = said.get("content") if isinstance(said, dict) else None
    if isinstance(content, str):
        yield content


def _chunk_texts(data: Json) -> Iterable[str]:
    for choice in _list(data.get("choices")):
        yield from _content(choice, "delta")


def _choice_texts(data: Json) -> Iterable[str]:
    for choice in _list(data.get("choices"))[:1]:
        yield from _content(choice, "message")
