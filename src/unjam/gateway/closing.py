"""How a client's connection ends, so that the client can tell what it got: an answer in full, or one that was cut."""

from __future__ import annotations

import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Final

from unjam.gateway.states import CLOSED, DISCARDING
from unjam.gateway.timers import TICK

if TYPE_CHECKING:
    from unjam.gateway.client import ClientConnection

#: Bytes of an unread request body that are read and thrown away to keep a connection; seconds a closing one lingers.
DISCARD: Final = 262144
LINGER: Final = 2.0


def close(client: ClientConnection, unread: bool) -> None:
    """Close after what is written has been flushed. With unread input, half-close and read on for a moment: an
    immediate close would reset the connection and destroy the answer on its way (RFC 9112 §9.6)."""
    if client.mode >= CLOSED:
        return
    if unread and not client.transport.is_closing():
        client.mode = DISCARDING
        client.discard_left = DISCARD
        client.resume_reading()
        if client.transport.can_write_eof():
            client.transport.write_eof()
        _gone_by(client, LINGER)
    else:
        client.mode = CLOSED
        client.transport.close()
        _gone_by(client, client.gateway.settings.stall_timeout)


def cut(client: ClientConnection) -> None:
    """End so that the client can tell: flush what was relayed, then close. A chunked body lacks its last chunk and one
    with a length is short; one that ends with the connection (HTTP/1.0) ends with a reset, and under TLS without the
    close_notify of a clean end."""
    client.mode = CLOSED
    if client.framed:
        client.transport.close()
        _gone_by(client, client.gateway.settings.stall_timeout)
        return
    sock = client.transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if client.secure:
        _gone_by(client, TICK)  # a moment for what is written, then an abort
    else:
        client.transport.close()
        _gone_by(client, client.gateway.settings.stall_timeout)


def _gone_by(client: ClientConnection, seconds: float) -> None:
    """What is written may take this long to be read; then the connection is aborted."""
    client.close_by = monotonic() + seconds
    client.look(client.close_by)
