"""The kinds of value in a configuration, as annotated types: each parses text, checks its bounds and knows its name.

`Kind` is what the reference pages read: a word for the type and the way to print a default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, PlainValidator

from unjam.config import quantities as q
from unjam.config.address import Address, Network, parse_listen, parse_network, parse_url
from unjam.config.quantities import BadValue, kind, shown
from unjam.wire.errors import Malformed
from unjam.wire.target import parse_path

N = TypeVar("N", int, float)


class Model(BaseModel):
    """Frozen, refuses what it does not know, and never shows its input in an error (it may hold a secret)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """A type's word in the reference, and how a value of it is written."""

    word: str
    show: Callable[[Any], str] = str


def _bounded(
    parse: Callable[[object], N],
    show: Callable[[N], str],
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> PlainValidator:
    def check(value: object) -> N:
        parsed = parse(value)
        limit = show(type(parsed)(above if above is not None else least if least is not None else 0))
        if above is not None and parsed <= above:
            raise BadValue(f"{shown(value)} is too small", f"It must be more than {limit}.")
        if least is not None and parsed < least:
            raise BadValue(f"{shown(value)} is too small", f"It must be at least {limit}.")
        if most is not None and parsed > most:
            raise BadValue(f"{shown(value)} is too large", f"It may be at most {show(type(parsed)(most))}.")
        return parsed

    return PlainValidator(check)


_DURATION = Kind("duration", q.format_duration)
_SIZE = Kind("size", q.format_size)
_SHARE = Kind("share", q.format_share)
_COUNT = Kind("count", q.format_count)
_NUMBER = Kind("number", q.format_number)

Duration = Annotated[float, _bounded(q.duration, q.format_duration), _DURATION]
PositiveDuration = Annotated[float, _bounded(q.duration, q.format_duration, above=0), _DURATION]
Size = Annotated[int, _bounded(q.size, q.format_size), _SIZE]
PositiveSize = Annotated[int, _bounded(q.size, q.format_size, above=0), _SIZE]
Share = Annotated[float, _bounded(q.share, q.format_share), _SHARE]
PositiveShare = Annotated[float, _bounded(q.share, q.format_share, above=0), _SHARE]
Count = Annotated[int, _bounded(q.count, q.format_count), _COUNT]
PositiveCount = Annotated[int, _bounded(q.count, q.format_count, above=0), _COUNT]
Number = Annotated[float, _bounded(q.number, q.format_number), _NUMBER]
PositiveNumber = Annotated[float, _bounded(q.number, q.format_number, above=0), _NUMBER]
Cores = Annotated[float, _bounded(q.number, q.format_number, above=0, most=10_000), _NUMBER]
Slots = Annotated[int, _bounded(q.count, q.format_count, above=0, most=1_000_000), _COUNT]
AtLeastOne = Annotated[float, _bounded(q.number, q.format_number, least=1), _NUMBER]
Switch = Annotated[bool, PlainValidator(q.switch), Kind("true or false", lambda on: "true" if on else "false")]

#: Names appear in headers, metric labels and commands.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
_VISIBLE = re.compile(r"[\x21-\x7e]+\Z")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?\Z")
_WORDS = re.compile(r"[A-Za-z0-9._~/-]+\Z")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?\Z")
_METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]{0,127}\Z")
_HASH = re.compile(r"sha256:[0-9a-f]{64}\Z")

#: Fields the gateway owns: routing or sticking by them would compare framing or credentials.
_OWNED_FIELDS = frozenset(
    (
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    )
)


def text(value: object) -> str:
    """One line of text."""
    if not isinstance(value, str):
        raise BadValue(f"must be text, not {kind(value)}")
    if "\n" in value or "\r" in value:
        raise BadValue("contains a line break", "Write it on one line (a block marked | or > ends in a line break).")
    if not value:
        raise BadValue("is empty", "Give it a value, or remove the key.")
    return value


def name(value: object) -> str:
    plain = text(value)
    if not NAME.match(plain):
        raise BadValue(
            f"{shown(plain)} is not a name",
            "Use letters, digits, '.', '_' and '-', at most 64, none of these at the ends.",
        )
    return plain


def field_name(value: object) -> str:
    """A header's name, in lower case."""
    plain = text(value).lower()
    if not _TOKEN.match(plain):
        raise BadValue(f"{shown(plain)} is not a header name", "Use a name such as x-session-id.")
    if plain in _OWNED_FIELDS:
        raise BadValue(f"{plain} belongs to the connection or holds credentials", "Use a header of your own.")
    return plain


def cookie_name(value: object) -> str:
    plain = text(value)
    if not _TOKEN.match(plain):
        raise BadValue(f"{shown(plain)} is not a cookie name", "Use a name such as session.")
    return plain


def field_value(value: object) -> str:
    plain = text(value).strip()
    if any(not (" " <= letter < "\x7f") for letter in plain):
        raise BadValue("a header's value has a control or non-ASCII character", "Use visible ASCII.")
    return plain


def host_pattern(value: object) -> str:
    plain = text(value).lower().removesuffix(".")
    if not _HOST.match(plain) or ".." in plain:
        fix = "Write a host name without a port, such as agents.example.com or *.example.com."
        raise BadValue(f"{shown(plain)} is not a host", fix)
    return plain


def path_prefix(value: object) -> str:
    """A prefix on segment boundaries, in the normal form that `unjam.wire.target` gives every path."""
    plain = text(value)
    fix = "Write an absolute path such as /agents/auditor."
    if not plain.startswith("/"):
        raise BadValue(f"{shown(plain)} does not begin with /", f"Write /{plain}." if _WORDS.match(plain) else fix)
    if "?" in plain or "#" in plain:
        raise BadValue(f"{shown(plain)} has a query or a fragment", "Only the path is matched: remove the rest.")
    try:
        normal, _ = parse_path(quote(plain, safe=_PRINTABLE).encode())
    except Malformed:
        raise BadValue(f"{shown(plain)} has an escape or a segment that the gateway refuses", fix) from None
    if normal != plain:
        raise BadValue(f"{shown(plain)} is not how the gateway sees this path", f"Write {normal}.")
    return plain.rstrip("/") or "/"


def check_path(value: object) -> str:
    """The path and query of a health check."""
    plain = text(value)
    if not plain.startswith("/") or not _VISIBLE.match(plain) or "#" in plain:
        raise BadValue(f"{shown(plain)} is not a path to ask for", "Write one such as /healthz.")
    return plain


def metric_name(value: object) -> str:
    """The name of a Prometheus metric."""
    plain = text(value)
    if not _METRIC.match(plain):
        raise BadValue(f"{shown(plain)} is not the name of a metric", "Write the name alone, such as queue_length.")
    return plain


def port(value: object) -> int:
    """A port that can be connected to."""
    number = q.count(value)
    if not 1 <= number <= 65535:
        raise BadValue(f"{shown(value)} is not a port", "Write one from 1 to 65535.")
    return number


def file_path(value: object) -> str:
    return text(value)


def token(variable: str) -> Callable[[object], str]:
    """Reads a bearer token, or its `sha256:` digest. Never echoed. `variable`: of the environment, usually with it."""

    def check(value: object) -> str:
        plain = text(value)
        if plain.startswith("sha256:") and not _HASH.match(plain):
            fix = "Write the sha256:... that `unjam hash-key` prints."
            raise BadValue("the token's sha256 is not 64 hex digits", fix)
        if not _VISIBLE.match(plain) or len(plain) < 16:
            fix = f"Use at least 16 visible ASCII characters, best from the environment: token: ${{{variable}}}."
            raise BadValue("the token is too short or has white space", fix)
        return plain

    return check


def key_hash(value: object) -> str:
    """`sha256:` and 64 hex digits. What else is written here may be the key itself, so it is never echoed."""
    plain = text(value).lower()
    if not _HASH.match(plain):
        raise BadValue("is not a hashed key", "Run `unjam hash-key` with the key, and write the sha256:... it prints.")
    return plain


def one_or_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def origin(value: object) -> str:
    plain = text(value).lower().removesuffix("/")
    if plain != "*" and not _ORIGIN.match(plain):
        raise BadValue(f"{shown(plain)} is not an origin", "Write scheme and host, such as https://app.example.com.")
    return plain


def server_name(value: object) -> str:
    plain = host_pattern(value)
    if plain.startswith("*"):
        raise BadValue("a server name has no wildcard", "Write the name in the endpoint's certificate.")
    return plain


def url(value: object) -> str:
    return parse_url(value).url


Text = Annotated[str, PlainValidator(text), Kind("text")]
Name = Annotated[str, PlainValidator(name), Kind("name")]
FieldName = Annotated[str, PlainValidator(field_name), Kind("header name")]
FieldValue = Annotated[str, PlainValidator(field_value), Kind("text")]
CookieName = Annotated[str, PlainValidator(cookie_name), Kind("cookie name")]
HostPattern = Annotated[str, PlainValidator(host_pattern), Kind("host")]
PathPrefix = Annotated[str, PlainValidator(path_prefix), Kind("path")]
CheckPath = Annotated[str, PlainValidator(check_path), Kind("path")]
MetricName = Annotated[str, PlainValidator(metric_name), Kind("metric name")]
Port = Annotated[int, PlainValidator(port), Kind("port")]
FilePath = Annotated[str, PlainValidator(file_path), Kind("file")]
Token = Annotated[str, PlainValidator(token("UNJAM_ADMIN_TOKEN")), Kind("token")]
ReportToken = Annotated[str, PlainValidator(token("UNJAM_REPORT_TOKEN")), Kind("token")]
KeyHash = Annotated[str, PlainValidator(key_hash), Kind("sha256:...")]
Origin = Annotated[str, PlainValidator(origin), Kind("origin")]
ServerName = Annotated[str, PlainValidator(server_name), Kind("host")]
Url = Annotated[str, PlainValidator(url), Kind("URL")]
ListenAddress = Annotated[Address, PlainValidator(parse_listen), Kind("address")]
NetworkItem = Annotated[Network, PlainValidator(parse_network), Kind("network")]


def one_of(*words: str) -> PlainValidator:
    """One of a few words, with a suggestion for a near miss."""

    def check(value: object) -> str:
        plain = text(value)
        if plain not in words:
            near = nearest(plain, words)
            hint = f"Did you mean {near}? " if near else ""
            raise BadValue(f"{shown(plain)} is not known here", f"{hint}It is one of {', '.join(words)}.")
        return plain

    return PlainValidator(check)


def nearest(word: str, words: tuple[str, ...] | list[str], least: float = 0.6) -> str | None:
    """The most similar of `words`, None when none is at least so similar, 1.0 being the same."""
    import difflib

    folded = {other.lower().replace("-", "_"): other for other in words}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), list(folded), n=1, cutoff=least)
    return folded[found[0]] if found else None
