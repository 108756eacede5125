"""The opening handshake of WebSocket (RFC 6455 sections 1.3, 4). Frames pass through the tunnel unread."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Collection
from typing import Final

from unjam.wire.errors import Malformed
from unjam.wire.request import RequestHead
from unjam.wire.response import ResponseHead

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: 16 bytes in base64: 22 digits, of which the last carries four bits that must be zero, and the padding.
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch


def check_handshake(head: RequestHead, allowed_origins: Collection[str] | None) -> None:
    """Raises `Malformed` unless the request is a proper handshake: 400 for a bad method, version, Upgrade, Connection,
    key or a body, 426 for a version other than 13, 403 for an Origin that is not in `allowed_origins` (`scheme://host`
    in lower case, `*` for any; None: not checked). A request without Origin does not come from a browser and passes."""
    known = head.known
    if head.method != "GET" or head.minor != 1 or head.has_body or not head.connection_upgrade:
        raise Malformed("bad_handshake")
    if known.get(b"upgrade", b"").lower() != b"websocket":
        raise Malformed("bad_handshake")
    if _KEY(known.get(b"sec-websocket-key", b"")) is None:
        raise Malformed("bad_websocket_key")
    version = known.get(b"sec-websocket-version")
    if version is None:
        raise Malformed("bad_handshake")
    if version != b"13":
        raise Malformed("bad_websocket_version")
    origin = known.get(b"origin")
    if allowed_origins is None or origin is None or "*" in allowed_origins:
        return
    if origin.decode("latin-1").lower() not in allowed_origins:
        raise Malformed("forbidden_origin")


def accept_for(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (section 4.2.2)."""
    return b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def check_accept(head: ResponseHead, key: bytes) -> bool:
    """Whether an endpoint's 101 really answers the handshake with `key` (section 4.1)."""
    return (
        head.status == 101
        and head.connection_upgrade
        and head.known.get(b"upgrade", b"").lower() == b"websocket"
        and head.known.get(b"sec-websocket-accept") == accept_for(key)
    )
