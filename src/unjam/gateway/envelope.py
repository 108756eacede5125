"""A request as the input of a run: what `Prefer: respond-async` keeps, and what the dispatcher sends to an endpoint.

Kept as JSON, `{"unjam.request": 1, "method", "path", "headers", "body" | "body_b64"}`: `path` with its query, `headers`
as pairs, `body` as text, or in base64 where it is none. An input is such a request if and only if it begins with
`MARK`, byte for byte; `plain` makes sure that no client's own input does, so nobody calls another path than theirs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from unjam.wire.serialise import field_line

MARK: Final = b'{"unjam.request":1,'

#: Fields between two neighbours, and those the gateway writes itself; they are never replayed. `accept-encoding`: what
#: comes back is read here.
NOT_REPLAYED: Final[frozenset[str]] = frozenset(
    (
        *("accept-encoding", "connection", "content-length", "expect", "host", "http2-settings", "idempotency-key"),
        *("keep-alive", "prefer", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade", "x-request-id"),
    )
)

#: Methods whose requests have no body unless they say so.
BODILESS: Final = ("GET", "HEAD", "DELETE", "OPTIONS")


class _Kept(msgspec.Struct, omit_defaults=True):
    method: str
    path: str
    headers: list[tuple[str, str]] = []
    body: str | None = None
    body_b64: str | None = None


_decode = msgspec.json.Decoder(_Kept).decode


@dataclass(frozen=True, slots=True)
class Envelope:
    """One request. `path`: the target, with its query. `headers`: without framing and Host."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """The value of a header, repeated ones joined by comma."""
        values = [value for key, value in self.headers if key.lower() == name]
        return ", ".join(values) if values else None

    def lines(self) -> bytes:
        """The header lines that may go to an endpoint. What is no header (the store is not ours alone) is left out."""
        return b"".join(_lines(self.headers))

    def request(self, path: str, host_line: bytes, run: bytes, attempt: int) -> bytes:
        """The whole request. `path`: as the endpoint is to see it; `run`: its id."""
        body = self.body
        length = b"Content-Length: %d\r\n" % len(body) if body or self.method not in BODILESS else b""
        return (
            b"%b %b HTTP/1.1\r\n%b%bIdempotency-Key: %b\r\nx-unjam-run-id: %b\r\nx-unjam-attempt: %d\r\n"
            b"x-request-id: %b\r\n%b\r\n%b"
            % (
                self.method.encode("ascii"),
                path.encode("ascii"),
                host_line,
                self.lines(),
                run,
                run,
                attempt,
                run,
                length,
                body,
            )
        )


class EnvelopeHead:
    """What of a request's head is asked for here and there."""

    __slots__ = ("envelope", "known", "method", "path")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.method = envelope.method
        self.path = envelope.path.partition("?")[0]
        self.known: dict[bytes, bytes] = {}

    def get(self, name: bytes) -> bytes | None:
        value = self.envelope.get(name.decode("ascii"))
        return None if value is None else value.encode("latin-1", "replace")


def _lines(headers: Iterable[tuple[str, str]]) -> Iterable[bytes]:
    for name, value in headers:
        lower = name.lower()
        if lower in NOT_REPLAYED or lower.startswith("x-unjam-"):
            continue
        try:
            yield field_line(name.encode("ascii"), value.encode("latin-1"))
        except ValueError:
            continue


def wrap(method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """The input of a run that is this request."""
    kept = _Kept(method, path, [(name, value) for name, value in headers if name.lower() not in NOT_REPLAYED])
    try:
        kept.body = body.decode()
    except UnicodeDecodeError:
        kept.body_b64 = base64.b64encode(body).decode("ascii")
    return MARK + msgspec.json.encode(kept)[1:]


def plain(given: bytes) -> bytes:
    """A client's own input, in a form that is never taken for a request."""
    return b" " + given if given.startswith(MARK) else given


def unwrap(kept: bytes, path: str) -> Envelope:
    """The request to send for an input; an ordinary one is POSTed to `path` as JSON. Raises ValueError for a request
    that can't be read."""
    if not kept.startswith(MARK):
        return Envelope(
            "POST",
            path,
            (("content-type", "application/json"), ("accept", "application/json, text/event-stream")),
            kept,
        )
    try:
        found = _decode(kept)
        body = (
            (found.body or "").encode() if found.body_b64 is None else base64.b64decode(found.body_b64, validate=True)
        )
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"the request that was kept can't be read: {error}") from error
    if not found.path.startswith("/") or not found.path.isascii() or any(c <= " " or c == "\x7f" for c in found.path):
        raise ValueError("the request that was kept has no path")
    if not found.method.isascii() or not found.method.isalpha():
        raise ValueError("the request that was kept has no method")
    return Envelope(found.method, found.path, found.headers, body)
