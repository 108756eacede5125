"""Answers of the gateway's own: errors, maintenance, health. Everything else a client reads comes from an endpoint."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from math import ceil

from unjam.wire.dialects.errors import Dialect, error_body


@lru_cache(maxsize=256)
def status_line(status: int, reason: bytes = b"") -> bytes:
    """`reason` empty: the registered phrase."""
    if not reason:
        try:
            reason = HTTPStatus(status).phrase.encode()
        except ValueError:
            reason = b"Unknown" if status != 499 else b"Client Closed Request"
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def error(
    status: int,
    code: str,
    message: str,
    *,
    dialect: Dialect = "json",
    request_id: str = "",
    retry_after: float | None = None,
    close: bool = False,
    extra: bytes = b"",
    head_only: bool = False,
) -> bytes:
    """An error. `code` is the stable reason (log field, metric label); `extra`: header lines, serialised."""
    content_type, body = error_body(dialect, code, message, request_id, status)
    return whole(
        status,
        content_type,
        body,
        request_id=request_id,
        retry_after=retry_after,
        close=close,
        extra=extra,
        head_only=head_only,
    )


def whole(
    status: int,
    content_type: bytes,
    body: bytes,
    *,
    request_id: str = "",
    retry_after: float | None = None,
    close: bool = False,
    extra: bytes = b"",
    head_only: bool = False,
) -> bytes:
    """One whole answer with this body, or with its head only."""
    lines = [
        status_line(status),
        b"content-type: %b\r\ncontent-length: %d\r\ncache-control: no-store\r\n" % (content_type, len(body)),
    ]
    if request_id:
        lines.append(b"x-request-id: %b\r\n" % request_id.encode())
    if retry_after is not None:
        lines.append(b"retry-after: %d\r\n" % max(1, ceil(retry_after)))
    if extra:
        lines.append(extra)
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)


def text(status: int, body: bytes, *, close: bool = False) -> bytes:
    """A small plain answer, for health checks."""
    return b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\ncache-control: no-store\r\n%b\r\n%b" % (
        status_line(status),
        len(body),
        b"connection: close\r\n" if close else b"",
        body,
    )
