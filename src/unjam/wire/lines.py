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
from unjam.wire.grammar import TOKEN, authority, check_value, connection, content_length, strip

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
    b"upgrade": KNOWN,
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
#: Lines with these names are new in almost every message: remembering them would only push others out.
_VARYING = frozenset(
    b"age date etag expires if-none-match last-event-id last-modified content-md5 content-range range server-timing"
    b" traceparent tracestate baggage b3 x-b3-traceid x-b3-spanid x-amzn-trace-id x-cloud-trace-context x-request-id"
    b" x-correlation-id request-id idempotency-key x-request-start x-runtime x-response-time"
    b" x-envoy-upstream-service-time openai-processing-ms cf-ray endpoint-load-metrics endpoint-load-metrics-json"
    b" endpoint-load-metrics-bin x-unjam-deadline".split()
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
    the start of the name. Not thread-safe beyond what the GIL gives: use one event loop per process."""

    __slots__ = ("_kinds", "_names", "_old", "_prefixes", "_shadowed", "young")

    def __init__(self, kinds: Mapping[bytes, int], prefixes: Mapping[bytes, int]) -> None:
        self._kinds = dict(kinds)
        self._prefixes = dict(prefixes)
        #: Names whose spelling with '_' must not slip past us to a server that reads '_' as '-'.
        self._shadowed = frozenset(kinds) | {b"content-type", b"content-encoding"}
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
        entry = self._old.get(line)
        if entry is None:
            colon = line.find(b":")
            name = line[:colon] if colon > 0 else b""
            field = self._names.get(name)
            if field is None:
                field = self._learn(line, colon)
            raw = line[colon + 1 :]
            value = raw.strip(b" \t")
            if not (value.isascii() and value.decode("ascii").isprintable()):
                check_value(value)
            kind = field.kind
            if kind <= KNOWN:
                # The usual spelling is kept as it is; any other white space is brought to it.
                wire = line + b"\r\n" if raw == b" " + value else b"%b: %b\r\n" % (name, value)
                entry = (kind, wire, field.lower, value)
            else:
                entry = (kind, b"", field.lower, _PARSERS[kind](value))
            if not field.keep or len(line) > _LINE_MAX or (kind == LENGTH and len(value) > 3):
                return entry
        young = self.young
        if len(young) >= _GENERATION:
            self._old = young
            self.young = young = {}
        young[line] = entry
        return entry

    def _learn(self, line: bytes, colon: int) -> Field:
        if line[:1] in (b" ", b"\t"):
            raise Malformed("obs_fold")
        if colon < 0:
            raise Malformed("no_colon")
        name = line[:colon]
        if not name:
            raise Malformed("empty_name")
        if name[-1:] in (b" ", b"\t"):
            raise Malformed("space_before_colon")
        if TOKEN(name) is None:
            raise Malformed("bad_name")
        lower = name.lower()
        if b"_" in lower:
            plain = lower.replace(b"_", b"-")
            if plain in self._shadowed or any(plain.startswith(prefix) for prefix in self._prefixes):
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


def _nothing(value: bytes) -> None:
    return None


_PARSERS: dict[int, Callable[[bytes], Any]] = {
    HOST: authority,
    LENGTH: content_length,
    CONNECTION: connection,
    DROP: _nothing,
    CODING: bytes.lower,
    EXPECT: bytes.lower,
}


def named(line: bytes, name: bytes) -> bool:
    """Whether a checked field line has this name (lower case)."""
    return line[: line.find(b":")].lower() == name


def value_of(line: bytes) -> bytes:
    """The value of a checked field line."""
    return strip(line[line.find(b":") + 1 :])
