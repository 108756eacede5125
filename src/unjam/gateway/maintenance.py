"""What a caller gets when nothing of a service's fallback chain is left: its maintenance message, in its own dialect.

Rare, so nothing is kept for it: what the caller speaks is read from the request only now.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Final

import msgspec

from unjam.gateway import respond
from unjam.wire import frames, websocket
from unjam.wire.dialects.maintenance import Form, maintenance_body

if TYPE_CHECKING:
    from unjam.core.model import Refusal
    from unjam.gateway.exchange import Exchange

#: Close code of RFC 6455's registry: "Try Again Later".
TRY_AGAIN_LATER: Final = 1013


class _Asked(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(_Asked, strict=False).decode


def answer(exchange: Exchange, refusal: Refusal) -> bytes:
    """The whole answer, a closed WebSocket's too; `exchange.client.keep_alive` is settled before."""
    head = exchange.head
    if head.upgrade is not None:
        return _closed_socket(head.known.get(b"sec-websocket-key", b""), refusal.message)
    asked = _asked(exchange)
    form: Form = "json"
    if exchange.service.spec.dialect == "openai":
        form = "chat" if head.path.endswith("/chat/completions") else "openai"
    accept = head.get(b"accept") or b""
    retry_after = refusal.retry_after or 0.0
    request_id = exchange.request_id.decode("ascii")
    content_type, body = maintenance_body(
        form,
        refusal.message,
        status=refusal.status,
        retry_after=retry_after,
        request_id=request_id,
        stream=bool(asked.stream) or b"text/event-stream" in accept.lower(),
        model=(asked.model or "")[:64],
        created=time(),
    )
    return respond.whole(
        refusal.status,
        content_type,
        body,
        request_id=request_id,
        retry_after=refusal.retry_after,
        close=not exchange.client.keep_alive,
        head_only=head.method == "HEAD",
    )


def _asked(exchange: Exchange) -> _Asked:
    """What an OpenAI-shaped body says of the form it wants its answer in, as far as the body is here."""
    if exchange.service.spec.dialect != "openai" or not exchange.body:
        return _Asked()
    try:
        return _decode(b"".join(exchange.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Asked()  # not JSON, or not whole: the caller's own business


def _closed_socket(key: bytes, message: str) -> bytes:
    """Browsers show nothing of a refused handshake; a close's code and reason they do."""
    return (
        respond.status_line(101)
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n\r\n" % websocket.accept_for(key)
        + frames.close(TRY_AGAIN_LATER, message)
    )
