"""What a caller gets when nothing of a service's fallback chain is left: its maintenance message, in its own dialect.

Rare, so nothing is kept for it: what the caller speaks is read from the request only now.
"""

from __future__ import annotations

import re
from time import monotonic, time
from typing import TYPE_CHECKING, Final

import msgspec

from unjam.gateway import respond
from unjam.gateway.states import REFUSING
from unjam.wire import frames, websocket
from unjam.wire.dialects.maintenance import WORDS, Form, maintenance_body, status_of

if TYPE_CHECKING:
    from unjam.core.model import Refusal
    from unjam.gateway.exchange import Exchange
    from unjam.wire.http1 import RequestHead

#: Close code of RFC 6455's registry: "Try Again Later".
TRY_AGAIN_LATER: Final = 1013

#: Ends of the paths that are asked for words.
_PATHS: Final[tuple[tuple[str, Form], ...]] = (
    ("/chat/completions", "chat"),
    ("/completions", "completion"),
    ("/responses", "response"),
)

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_WEIGHT = re.compile(r"[01](?:\.[0-9]{0,3})?")


class _Asked(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(_Asked, strict=False).decode


def hold(exchange: Exchange, refusal: Refusal) -> bool:
    """Whether the refusal has to wait for the rest of the body: that of a request for words says whether they are to be
    streamed. Not for one that is too long to be looked at."""
    head = exchange.head
    if exchange.body_done or refusal.status != 200 or _form(exchange) not in WORDS or not exchange.replayable:
        return False
    most = exchange.client.gateway.settings.inspect_bytes
    if max(exchange.bytes_in, head.length or 0) > most:
        return False
    if exchange.state != REFUSING:
        exchange.state = REFUSING
        exchange.held = refusal
        exchange.encourage()
        client = exchange.client
        if client.read_paused:
            client.last_read = monotonic()
            client.look(client.last_read + client.gateway.settings.body_timeout)
            client.resume_reading()
    return True


def answer(exchange: Exchange, refusal: Refusal) -> tuple[int, bytes]:
    """The status, and the whole answer, a closed WebSocket's too; `exchange.client.keep_alive` is settled before."""
    head = exchange.head
    if head.upgrade is not None:
        return refusal.status, _closed_socket(head, refusal.message)
    asked = _asked(exchange)
    form = _form(exchange)
    status = status_of(form, refusal.status)
    accept = head.get(b"accept") or b""
    retry_after = refusal.retry_after or 0.0
    request_id = exchange.request_id.decode("ascii")
    content_type, body = maintenance_body(
        form,
        refusal.message,
        status=status,
        retry_after=retry_after,
        request_id=request_id,
        stream=bool(asked.stream) or _wants_events(accept),
        model=(asked.model or "")[:64],
        created=time(),
    )
    return status, respond.whole(
        status,
        content_type,
        body,
        request_id=request_id,
        retry_after=refusal.retry_after,
        close=not exchange.client.keep_alive,
        head_only=head.method == "HEAD",
    )


def _form(exchange: Exchange) -> Form:
    if exchange.service.spec.dialect != "openai":
        return "json"
    if exchange.head.method == "POST":
        for path, form in _PATHS:
            if exchange.head.path.endswith(path):
                return form
    return "openai"


def _asked(exchange: Exchange) -> _Asked:
    """What an OpenAI-shaped body says of the form it wants its answer in, as far as the body is here."""
    if exchange.service.spec.dialect != "openai" or not exchange.body:
        return _Asked()
    try:
        return _decode(b"".join(exchange.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Asked()  # not JSON, or not whole: the caller's own business


def _wants_events(accept: bytes) -> bool:
    """By its Accept field, RFC 9110 §12.5.1: events are accepted, and JSON isn't preferred, by its weight or by being
    named first. Clients of MCP name both, and read both."""
    found: dict[str, tuple[float, int]] = {}
    for n, part in enumerate(accept.decode("latin-1").lower().split(",")):
        name, *parameters = (each.strip() for each in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        found.setdefault(name, (weight, -n))
    events = found.get("text/event-stream", (0.0, 0))
    return events[0] > 0.0 and events > found.get("application/json", (0.0, 0))


def _weight(value: str) -> float:
    """One that can't be read is as good as none given."""
    return min(float(value), 1.0) if _WEIGHT.fullmatch(value) else 1.0


def _closed_socket(head: RequestHead, message: str) -> bytes:
    """Browsers show nothing of a refused handshake; a close's code and reason they do. Nor of one that takes none of
    the subprotocols they offer: the first is as good as any, as nothing is said in it."""
    offered = head.known.get(b"sec-websocket-protocol", b"").partition(b",")[0].strip()
    return (
        respond.status_line(101)
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n"
        % websocket.accept_for(head.known.get(b"sec-websocket-key", b""))
        + (b"Sec-WebSocket-Protocol: %b\r\n" % offered if _TOKEN(offered) else b"")
        + b"\r\n"
        + frames.close(TRY_AGAIN_LATER, message)
    )
