"""What the estimator may know of a request before it runs, read from its head: the bucket, hints, the deadline.

Buckets name a kind of request, not a request: method, path below the service's prefix with identifiers collapsed, and
a size class of the body. So `/agents/auditor/docs/81723/page/4` and `/…/docs/90001/page/7` share one history.
"""

from __future__ import annotations

import re

#: Path segments that name one thing among many: numbers, UUIDs, long hex or base64-like tokens with a digit in them.
_IDENTIFIER = re.compile(r"\d+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{13,}|(?=[^/]*\d)[A-Za-z0-9_\-]{20,}")

#: Segments kept of a path; deeper ones share a bucket.
_DEPTH = 6


def bucket(method: str, path: str, prefix: str, length: int | None) -> str:
    """The feature bucket, e.g. `POST /docs/:id s3`. The size class grows by one with every factor of 16 in bytes."""
    below = path[len(prefix) :] if prefix and path.startswith(prefix) else path
    segments = below.strip("/").split("/")[:_DEPTH]
    kind = "/".join(":id" if _IDENTIFIER.fullmatch(segment) else segment[:40] for segment in segments)
    return f"{method} /{kind} s{size_class(length)}"


def size_class(length: int | None) -> int:
    """0: no body; 9: unknown (chunked); else one more than the number of hexadecimal digits above 256 bytes."""
    if length is None:
        return 9
    return min(8, 1 + max(0, length.bit_length() - 8) // 4) if length else 0


#: Fields in which a caller says something of its request.
HINTS = frozenset(
    {
        b"x-unjam-lane",
        b"x-unjam-expected-seconds",
        b"x-unjam-deadline",
        b"x-stainless-timeout",
        b"request-timeout",
        b"x-envoy-expected-rq-timeout-ms",
    }
)


#: The longest time that a caller may speak of, seconds.
YEAR = 366 * 86400.0


class BadHint(Exception):
    """A header of ours that says nothing we understand; the message names it."""


def seconds(name: str, value: bytes) -> float:
    """A positive, finite number of seconds. Raises `BadHint`."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number <= YEAR:
        raise BadHint(f"{name} must be a positive number of seconds, such as 90 or 0.5, and at most a year")
    return number


def lane(value: bytes) -> str:
    """Raises `BadHint`."""
    name = value.decode("ascii", "replace").lower()
    if name not in ("fast", "heavy"):
        raise BadHint("x-unjam-lane must be fast or heavy")
    return name


#: Time-outs that well-known clients announce, and how many seconds one unit is. They bound the wait in the queue: the
#: caller will have gone by then. Values that are not numbers are theirs to send, so they are passed over.
_CLIENT_TIMEOUTS = (
    (b"x-stainless-timeout", 1.0),
    (b"request-timeout", 1.0),
    (b"x-envoy-expected-rq-timeout-ms", 0.001),
)


def client_timeout(known: dict[bytes, bytes]) -> float | None:
    """Seconds the caller is going to wait, by its client library's own header."""
    for name, unit in _CLIENT_TIMEOUTS:
        value = known.get(name)
        if value is not None:
            try:
                number = float(value) * unit
            except ValueError:
                continue
            if 0 < number <= YEAR:
                return number
    return None


def provider_limits(known: dict[bytes, bytes], status: int) -> dict[str, float] | None:
    """What a provider's answer says of the quota left: keyword arguments of `Balancer.heed`, None when it says nothing.

    Heeded: `x-ratelimit-remaining-tokens`, `-requests`, `x-ratelimit-reset-tokens`, `-requests` (seconds, or durations
    such as `1m30s` and `20ms`), and `retry-after` (seconds) of a 429.
    """
    limits: dict[str, float] = {}
    for header, key in (
        (b"x-ratelimit-remaining-tokens", "remaining_tokens"),
        (b"x-ratelimit-remaining-requests", "remaining_requests"),
    ):
        value = known.get(header)
        if value is not None and value.isdigit():
            limits[key] = float(value)
    resets = [
        seconds
        for header in (b"x-ratelimit-reset-tokens", b"x-ratelimit-reset-requests")
        if header in known and (seconds := duration(known[header])) is not None
    ]
    if resets:
        limits["reset"] = max(resets)
    if status == 429 and (value := known.get(b"retry-after")) is not None and value.isdigit():
        limits["retry_after"] = float(value)
    return limits or None


_DURATION = re.compile(rb"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def duration(value: bytes) -> float | None:
    """Seconds of `12`, `0.5`, `1m30s`, `20ms`; None when it is none of those."""
    try:
        return float(value)
    except ValueError:
        match = _DURATION.fullmatch(value)
        if match is None or not value:
            return None
        hours, minutes, whole, thousandths = match.groups()
        return (
            int(hours or 0) * 3600.0 + int(minutes or 0) * 60.0 + float(whole or 0) + float(thousandths or 0) / 1000.0
        )
