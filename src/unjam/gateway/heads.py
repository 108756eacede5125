"""Heads as they are written: the request's to the endpoint, the answer's to the client.

What repeats from one message to the next on a connection is put together once and kept in the head's `memo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.gateway import loads, respond
from unjam.wire import verdict

if TYPE_CHECKING:
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.exchange import Exchange
    from unjam.gateway.settings import Settings
    from unjam.gateway.upstream import Upstream
    from unjam.wire.http1 import RequestHead, ResponseHead

#: Fields that are for the endpoint when this gateway has no keys of its own.
CREDENTIALS = (b"authorization", b"x-api-key")

#: Fields of an answer that are said to the gateway.
_SAYING = loads.PRESENT | {verdict.HEADER}

#: The settings and the prefix length it was made for; the request line; every line but Host, request id and framing.
RequestMemo = tuple["Settings", int, bytes, bytes]


def request_memo(client: ClientConnection, head: RequestHead, prefix: int) -> RequestMemo:
    """What of a request to an endpoint doesn't change while the head's fields don't. `prefix`: bytes of the target that
    the endpoint isn't shown."""
    settings = client.gateway.settings
    target = head.wire_target
    if prefix:
        target = target[prefix:]
        if target[:1] != b"/":
            target = b"/" + target
    lines = [*head.forward, client.forwarded(head)]
    if settings.forward_credentials:
        known = head.known
        lines += [b"%b: %b\r\n" % (name, known[name]) for name in CREDENTIALS if name in known]
    memo = (settings, prefix, b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), target), b"".join(lines))
    head.memo = memo
    return memo


def request_framing(head: RequestHead) -> bytes:
    """The last lines of a request's head."""
    if head.length is not None:
        return b"Content-Length: %d\r\n\r\n" % head.length
    if head.chunked:
        return b"Transfer-Encoding: chunked\r\n\r\n"
    if head.upgrade is not None:
        return b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    return b"\r\n"


def answer_memo(head: ResponseHead) -> bytes:
    """The status line and the lines of an answer that are passed on. Not kept in the head when it says something to the
    gateway, of the endpoint's load or its own quality: so answers that don't are not even asked."""
    memo = respond.status_line(head.status, head.reason) + b"".join(head.forward)
    if _SAYING.isdisjoint(head.known):
        head.memo = memo
    return memo


def answer_framing(exchange: Exchange, head: ResponseHead, kind: str) -> bytes:
    """The last lines of an answer's head; settles how its body is framed for this client."""
    client = exchange.client
    framing = b""
    if kind == "length":
        framing = b"Content-Length: %d\r\n" % (head.length or 0)
    elif kind == "none":
        if head.length is not None and head.status != 204:
            framing = b"Content-Length: %d\r\n" % head.length
    elif exchange.head.minor == 1:
        exchange.chunk_out = True
        framing = b"Transfer-Encoding: chunked\r\n"
    else:
        client.keep_alive = client.framed = False
    if not client.keep_alive:
        framing += b"Connection: close\r\n"
    elif exchange.head.minor == 0:
        framing += b"Connection: keep-alive\r\n"
    return framing + b"\r\n"


def markers(exchange: Exchange) -> bytes:
    """The x-unjam-* lines: why a request went where it went."""
    lease = exchange.lease
    assert lease is not None
    if not exchange.client.gateway.settings.response_headers:
        return b""
    upstream: Upstream = lease.endpoint.shell
    if exchange.queued < 0.001 and not lease.fallback and not exchange.retries:
        return upstream.prompt[lease.heavy]
    lines = upstream.markers[lease.heavy] + b"x-unjam-queued-ms: %d\r\n" % (exchange.queued * 1000.0)
    if lease.fallback:
        lines += b"x-unjam-fallback: %b\r\n" % lease.service.name.encode("ascii", "replace")
    if exchange.retries:
        lines += b"x-unjam-retries: %d\r\n" % exchange.retries
    return lines
