"""The small grammars of HTTP/1.1 heads (RFC 9110 section 5, RFC 9112 sections 5-7), as strict as a gateway must be.

Everything here is a pure function of the bytes given and raises `Malformed` or returns a normalised value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from unjam.wire.errors import Malformed

#: Largest body or chunk size understood: 2**63 - 1 bytes, what every endpoint's integer can hold.
MAX_SIZE: Final = 2**63 - 1

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
#: RFC 9110 section 5.5: visible characters, SP, HTAB and obs-text; no other control, no DEL.
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch
_HOST = re.compile(rb"([A-Za-z0-9_][A-Za-z0-9_.\-]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?").fullmatch


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a peer may send, bytes unless said. `head` counts from the first byte of the start line to the
    empty line inclusive; `chunk_ext` is the sum over one message."""

    line: int = 8192
    head: int = 32768
    fields: int = 100
    chunk_ext: int = 16384
    trailers: int = 8192


def strip(value: bytes) -> bytes:
    """Optional white space (SP, HTAB) off both ends."""
    return value.strip(b" \t")


def content_length(value: bytes) -> int:
    """1*DIGIT up to `MAX_SIZE`; signs, lists, underscores, prefixes and the empty value are refused."""
    # bytes.isdigit knows ASCII digits only.
    if not value.isdigit() or len(value) > 19 or (length := int(value)) > MAX_SIZE:
        raise Malformed("bad_content_length")
    return length


def check_framing(codings: bytes, length: int | None, minor: int) -> None:
    """Returns when a message with this (joined, lower-case) Transfer-Encoding is chunked and nothing else is said about
    its length; RFC 9112 sections 6.1, 7. Raises `length_and_coding`, `coding_on_http10`, `bad_transfer_encoding` or
    `unknown_coding`."""
    if length is not None:
        raise Malformed("length_and_coding")
    if minor == 0:
        raise Malformed("coding_on_http10")
    if codings == b"chunked":
        return
    parts = [strip(part) for part in codings.split(b",")]
    if b"chunked" in parts[:-1] or any(TOKEN(part) is None for part in parts):
        raise Malformed("bad_transfer_encoding")
    raise Malformed("unknown_coding")


def authority(value: bytes) -> tuple[str, bytes]:
    """`host[:port]` → (host in lower case without port or final dot, the authority to forward). No user information."""
    match = _HOST(value)
    if match is None or len(value) > 261:
        raise Malformed("bad_host")
    name, port = match.groups()
    host = name.decode("ascii").lower()
    if host[0] == "[":
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            raise Malformed("bad_host") from None
    elif ".." in host or len(host) > 255:
        raise Malformed("bad_host")
    wire = host.encode("ascii")
    if port:
        if int(port) > 65535:
            raise Malformed("bad_host")
        wire += b":" + port
    return host.removesuffix("."), wire


@dataclass(frozen=True, slots=True)
class Connection:
    """The options of Connection fields (RFC 9110 section 7.6.1). `named` holds the field names to strip besides the
    usual ones, lower case."""

    close: bool = False
    keep_alive: bool = False
    upgrade: bool = False
    named: frozenset[bytes] = frozenset()

    def __or__(self, other: Connection) -> Connection:
        return Connection(
            self.close or other.close,
            self.keep_alive or other.keep_alive,
            self.upgrade or other.upgrade,
            self.named | other.named,
        )


_ORDINARY_OPTIONS = {b"close", b"keep-alive", b"upgrade", b"te", b""}


def connection(value: bytes) -> Connection:
    """A comma list of tokens, empty elements allowed; raises `bad_connection`."""
    options = {strip(part).lower() for part in value.split(b",")}
    for option in options:
        if option and TOKEN(option) is None:
            raise Malformed("bad_connection")
    return Connection(
        b"close" in options, b"keep-alive" in options, b"upgrade" in options, frozenset(options - _ORDINARY_OPTIONS)
    )
