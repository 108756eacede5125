"""Field lines: what each one means to a gateway, remembered by its exact bytes.

Most lines of a connection's heads repeat (Host, User-Agent, Content-Type ...), so `LineTable` maps the bytes of a line
to its checked `Entry`, and a head of ten fields costs about ten look-ups. Two generations of bounded size keep it from
growing; lines that may hold a secret, that change with every message, or that are long are never kept. A line that was
never seen goes through the whole grammar: the memo can only skip work whose result it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from unjam.wire.errors import Malformed
from unjam.wire.grammar import TOKEN, VALUE, authority, connection, content_length, strip

# What to do with a field. PLAIN must stay 0 and the most frequent ones low: the readers test in this order.
PLAIN: Final = 0  #: forwarded, not looked at
BOTH: Final = 1  #: forwarded and handed to the gateway
KNOWN: Final = 2  #: handed to the gateway, which decides what the other side sees
HOST: Final = 3  #: value is (host, authority)
LENGTH: Final = 4  #: value is the number of bytes
CONNECTION: Final = 5  #: value is a grammar.Connection
DROP: Final = 6  #: hop-by-hop, ends here
CODING: Final = 7  #: Transfer-Encoding, value raw
EXPECT: Final = 8  #: value in lower case
UPGRADE: Final = 9  #: KNOWN, and the other side wants to change protocols
HANDSHAKE: Final = 10  #: BOTH, and the client wants a WebSocket
MEDIA: Final = 11  #: Content-Type of a response; value is (raw, whether it is text/event-stream)

_COLON: Final = 0x3A

#: (kind, line to forward with its CRLF, name in lower case, value as its kind says)
Entry = tuple[int, bytes, bytes, Any]

HOP_BY_HOP = {
    b"connection": CONNECTION,
    b"keep-alive": DROP,
    b"proxy-connection": DROP,
    b"proxy-authorization": DROP,
    b"proxy-authenticate": DROP,
    b"proxy-authentication-info": DROP,
    b"te": DROP,
    b"trailer": DROP,
    b"http2-settings": DROP,
    b"transfer-encoding": CODING,
    b"upgrade": UPGRADE,
}

#: Names holding one of these may carry a secret: never remembered.
_SECRET = (
    b"auth",
    b"cookie",
    b"key",
    b"token",
    b"secret",
    b"password",
    b"credential",
    b"session",
    b"signature",
    b"jwt",
)
#: Lines with these names are new in almost every message, so that remembering them would only push others out; or they
#: have carried secrets without saying so (Sec-WebSocket-Protocol, Referer).
_VARYING = frozenset(
    b"age etag expires if-none-match last-event-id last-modified content-md5 content-range range server-timing"
    b" traceparent tracestate baggage b3 x-b3-traceid x-b3-spanid x-amzn-trace-id x-cloud-trace-context x-request-id"
    b" x-correlation-id request-id idempotency-key x-request-start x-runtime x-response-time"
    b" x-envoy-upstream-service-time openai-processing-ms cf-ray endpoint-load-metrics endpoint-load-metrics-json"
    b" endpoint-load-metrics-bin x-unjam-deadline x-forwarded-for forwarded x-real-ip referer location link"
    b" content-disposition sec-websocket-protocol".split()
)
_VARYING_PREFIXES = (b"x-ratelimit-remaining", b"x-ratelimit-reset", b"anthropic-ratelimit-")

_LINE_MAX = 256
_GENERATION = 2048
_NAMES_MAX = 1024
_NAME_MAX = 64


class Field:
    """What is known of a field by its name as it was spelt."""

    __slots__ = ("keep", "kind", "lower")

    def __init__(self, lower: bytes, kind: int) -> None:
        self.lower = lower
        self.kind = kind
        self.keep = not (
            lower in _VARYING or lower.startswith(_VARYING_PREFIXES) or any(word in lower for word in _SECRET)
        )


class LineTable:
    """Classifies the field lines of one direction. `kinds` names the fields that are not PLAIN; `prefixes` does so by
    the start of the name; `shadows`: refuse names that a server which reads '_' as '-' would take for one of them. Not
    thread-safe beyond what the GIL gives: use one event loop per process."""

    __slots__ = ("_kinds", "_names", "_old", "_prefixes", "_shadowed", "_shadowed_prefixes", "young")

    def __init__(self, kinds: Mapping[bytes, int], prefixes: Mapping[bytes, int], shadows: bool) -> None:
        self._kinds = dict(kinds)
        self._prefixes = dict(prefixes)
        self._shadowed = frozenset(kinds) | {b"content-type", b"content-encoding"} if shadows else frozenset()
        self._shadowed_prefixes = tuple(prefixes) if shadows else ()
        self._names: dict[bytes, Field] = {}
        self.young: dict[bytes, Entry] = {}
        self._old: dict[bytes, Entry] = {}

    def clear(self) -> None:
        self._names = {}
        self.young = {}
        self._old = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def entry(self, line: bytes) -> Entry:
        """The checked entry of a line without its CRLF. Raises `Malformed` (side client)."""
        found = self.young.get(line)
        return self.miss(line) if found is None else found

    def miss(self, line: bytes) -> Entry:
        """`entry` for a line that is not in `young`."""
        name, colon, value = line.partition(b": ")
        field = self._names.get(name)
        wire = line
        if field is None or not colon or value.strip(b" \t") != value:
            # A name not met before, or other white space than one space before the value: brought to the usual form.
            at = line.find(b":")
            field = self._field(line, at)
            value = strip(line[at + 1 :])
            wire = b"%b: %b" % (line[:at], value)
        kind = field.kind
        if kind == LENGTH:
            entry: Entry = LENGTH, b"", field.lower, content_length(value)
            if len(value) <= 3:  # longer ones hardly repeat
                self._keep(line, entry)
            return entry
        keep = field.keep
        if keep:
            found = self._old.get(line)
            if found is not None:
                self._keep(line, found)
                return found
        # As Latin-1, printable is a subset of what is allowed (0x20-0x7e, 0xa1-0xff but the soft hyphen), and found
        # out in C. What fails it may still be HTAB or other obs-text.
        if not value.decode("latin-1").isprintable() and VALUE(value) is None:
            raise Malformed("bad_value")
        if kind <= BOTH or kind == HANDSHAKE:
            entry = kind, wire + b"\r\n", field.lower, value
        elif kind in (KNOWN, UPGRADE):
            entry = kind, b"", field.lower, value
        elif kind == MEDIA:
            entry = kind, wire + b"\r\n", field.lower, (value, _is_sse(value))
        else:
            entry = kind, b"", field.lower, _PARSERS[kind](value)
        if keep:
            self._keep(line, entry)
        return entry

    def _keep(self, line: bytes, entry: Entry) -> None:
        if len(line) > _LINE_MAX:
            return
        young = self.young
        if len(young) >= _GENERATION:
            self._old = young
            self.young = young = {}
        young[line] = entry

    def _field(self, line: bytes, colon: int) -> Field:
        if line[:1] in (b" ", b"\t"):
            raise Malformed("obs_fold")
        if colon < 0:
            raise Malformed("no_colon")
        name = line[:colon]
        field = self._names.get(name)
        if field is not None:
            return field
        if not name:
            raise Malformed("empty_name")
        if name[-1:] in (b" ", b"\t"):
            raise Malformed("space_before_colon")
        if TOKEN(name) is None:
            raise Malformed("bad_name")
        lower = name.lower()
        if b"_" in lower:
            plain = lower.replace(b"_", b"-")
            if plain in self._shadowed or plain.startswith(self._shadowed_prefixes):
                raise Malformed("shadow_name")
        field = Field(lower, self._kind(lower))
        if len(name) <= _NAME_MAX:
            if len(self._names) >= _NAMES_MAX:
                self._names = {}
            self._names[name] = field
        return field

    def _kind(self, lower: bytes) -> int:
        kind = self._kinds.get(lower)
        if kind is None:
            kind = next((kind for prefix, kind in self._prefixes.items() if lower.startswith(prefix)), PLAIN)
        return kind


def _is_sse(value: bytes) -> bool:
    return value[:17].lower() == b"text/event-stream" and value[17:18] in (b"", b";", b" ", b"\t")


def _nothing(value: bytes) -> None:
    return None


_PARSERS: dict[int, Callable[[bytes], Any]] = {
    HOST: authority,
    CONNECTION: connection,
    DROP: _nothing,
    CODING: bytes.lower,
    EXPECT: bytes.lower,
}


def places_of(lines: list[bytes], name: bytes) -> tuple[int, ...]:
    """Which of the checked field lines have this name (lower case), in order. Nearly all others are told by where their
    colon would be."""
    size = len(name)
    return tuple(
        [
            place
            for place, line in enumerate(lines)
            if len(line) > size and line[size] == _COLON and line[:size].lower() == name
        ]
    )


def value_of(line: bytes) -> bytes:
    """The value of a checked field line."""
    return strip(line[line.find(b":") + 1 :])


def without(forward: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    """The lines but those with one of `names` (lower case): what a Connection field asks for."""
    return [line for line in forward if line[: line.find(b":")].lower() not in names]
