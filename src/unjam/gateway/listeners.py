"""Addresses that are listened on: which a configuration asks for, their TLS, and the paths of Unix sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from unjam.config import Config
from unjam.config.schema import Listen

#: The reporters' listener among the `Server.listeners`, which are known by their addresses.
REPORTERS = "reporters "


@dataclass(slots=True)
class Listener:
    """One address being listened on."""

    spec: Listen
    #: One, or one for each address that a host name stands for.
    servers: list[asyncio.Server]
    tls: ssl.SSLContext | None
    #: The port bound, which the system chose when the configuration said 0; 0 for a Unix socket.
    port: int
    reporters: bool = False

    def close(self, unlink: bool = True) -> None:
        """Accept nothing more. The path of a Unix socket goes too, now: later it may be another gateway's."""
        servers, self.servers = self.servers, []
        for server in servers:
            server.close()
        if servers and unlink and self.spec.path is not None:
            _unlink(self.spec.path)


def wanted_by(config: Config) -> dict[str, Listen]:
    """What a configuration asks for, by the name of the listener."""
    found = {str(listen.address): listen for listen in config.listen}
    reporters = config.reporters
    if reporters is not None:
        found[f"{REPORTERS}{reporters.listen}"] = Listen(address=reporters.listen, tls=reporters.tls)
    return found


def server_tls(cert: str, key: str | None) -> ssl.SSLContext:
    """Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key)
    return context


async def unix_socket(path: str) -> socket.socket:
    """A bound socket that only our own user may connect to."""
    await clear(path)
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        bound.bind(path)
    finally:
        os.umask(before)
    return bound


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


async def clear(path: str) -> None:
    """Remove a socket that a killed gateway left behind. Raises OSError when somebody listens on it: binding would
    take its place without a word."""
    if await _answers(path):
        raise OSError(errno.EADDRINUSE, f"another process listens on {path}")
    _unlink(path)


async def _answers(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True
