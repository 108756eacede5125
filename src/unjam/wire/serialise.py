"""Heads written by us: every byte that is forwarded passes through here or was checked on its way in."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from unjam.wire.grammar import TOKEN, VALUE

_STATUS_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}


def status_line(status: int, reason: bytes = b"") -> bytes:
    """With the usual phrase when `reason` is empty. ValueError when a status or reason cannot be written."""
    if not reason:
        line = _STATUS_LINES.get(status)
        if line is not None:
            return line
    if not 100 <= status <= 599 or VALUE(reason) is None:
        raise ValueError("not a status line")
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def field_line(name: bytes, value: bytes) -> bytes:
    """`Name: value` with CRLF. ValueError when a CR, LF or other control would get in (a template, a redirect)."""
    if TOKEN(name) is None or VALUE(value) is None or value != value.strip(b" \t"):
        raise ValueError("not a header field")
    return b"%b: %b\r\n" % (name, value)


def response_head(status: int, lines: Iterable[bytes], reason: bytes = b"") -> bytes:
    """A whole head; `lines` end in CRLF already (from a reader's `forward`, or `field_line`)."""
    return b"%b%b\r\n" % (status_line(status, reason), b"".join(lines))


def request_head(method: str, wire_target: bytes, authority: bytes, lines: Iterable[bytes]) -> bytes:
    """A whole HTTP/1.1 request head with Host first; arguments as `RequestHead` has them."""
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method.encode("ascii"), wire_target, authority, b"".join(lines))
