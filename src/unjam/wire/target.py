"""Request targets (RFC 9112 section 3.2) and the one normalisation of paths.

What is routed and authorised on is what is forwarded: `path` is the text of the bytes in `wire_target`, and
normalising it again changes nothing. Unreserved characters are decoded (RFC 3986 section 6.2.2.2), hex digits of the
other escapes are upper case, repeated slashes collapse, dot segments are resolved, printable characters that RFC 3986
does not allow raw are escaped. Encoded slashes, backslashes, controls and malformed escapes are refused, since servers
differ in what they make of them. The query is opaque: checked for printable ASCII, kept byte for byte.
"""

from __future__ import annotations

import re

from unjam.wire.errors import Malformed
from unjam.wire.grammar import authority

#: A path that is already normal: no escape, no empty segment but the last, no segment that starts with a dot.
_PLAIN = re.compile(rb"/(?:[A-Za-z0-9_~!$&'()*+,;=:@\-][A-Za-z0-9._~!$&'()*+,;=:@\-]*(?:/(?!/)|\Z))*").fullmatch
_PRINTABLE = re.compile(rb"[!-~]*").fullmatch
_PIECE = re.compile(rb"%([0-9A-Fa-f]{2})?|[^A-Za-z0-9._~!$&'()*+,;=:@/\-]")
_SLASHES = re.compile(rb"/{2,}")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)", re.DOTALL).fullmatch
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def _escape(match: re.Match[bytes]) -> bytes:
    piece = match.group()
    if piece == b"\\":
        raise Malformed("backslash")
    if piece[0] != 0x25:
        return b"%%%02X" % piece[0]
    if match.group(1) is None:
        raise Malformed("bad_escape")
    code = int(match.group(1), 16)
    if code in _UNRESERVED:
        return bytes((code,))
    if code == 0x2F:
        raise Malformed("encoded_slash")
    if code == 0x5C:
        raise Malformed("backslash")
    if code < 0x20 or code == 0x7F:
        raise Malformed("encoded_control")
    return piece.upper()


def normalise(path: bytes) -> bytes:
    """The normal form of a path that starts with a slash and holds printable ASCII only."""
    if _PLAIN(path) is not None:
        return path
    path = _SLASHES.sub(b"/", _PIECE.sub(_escape, path))
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment.startswith((b".;", b"..;")):
            # Some servers drop the parameters and then see a dot segment.
            raise Malformed("dot_segment")
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def parse_path(path: bytes) -> tuple[str, bytes]:
    """A raw path without query → (normal path as text, the same as bytes). Raises `Malformed`."""
    if path[:1] != b"/" or _PRINTABLE(path) is None or b"#" in path:
        raise Malformed("bad_target")
    wire = normalise(path)
    return wire.decode("ascii"), wire


def check_query(query: bytes) -> None:
    if _PRINTABLE(query) is None or b"#" in query:
        raise Malformed("bad_target")


def split_absolute(target: bytes) -> tuple[tuple[str, bytes], bytes]:
    """`http://authority/path?query` → (authority as (host, wire form), origin-form). Raises `Malformed`."""
    match = _ABSOLUTE(target)
    if match is None:
        raise Malformed("bad_target")
    where, origin = match.groups()
    if origin[:1] != b"/":
        origin = b"/" + origin
    return authority(where), origin
