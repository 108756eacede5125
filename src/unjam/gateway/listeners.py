"""Addresses that are listened on: which a configuration asks for, how a reload replaces them without closing a socket,
their TLS, and the paths of Unix sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unjam.config import Config
from unjam.config.schema import Listen
from unjam.gateway.client import ClientConnection
from unjam.gateway.reports import ReportConnection, Reports

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway

BACKLOG = 4096

#: Seconds that a TLS client has to answer our farewell: one that keeps its connection without reading must not hold up
#: a drain.
TLS_FAREWELL = 2.0

#: The path of a Unix socket is ours to remove: when a listener is replaced on the same socket the path has to stay.
_KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}

#: What the name of the reporters' listener begins with; the others are called by their addresses.
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


class Listeners:
    """All that one gateway listens on. `open`: what is in force, by name."""

    def __init__(self, gateway: Gateway, reports: Reports) -> None:
        self.open: dict[str, Listener] = {}
        self._gateway = gateway
        self._loop = gateway.loop
        self._reports = reports

    async def prepare(self, config: Config) -> dict[str, Listener]:
        """What `config` asks for and is not listened on like that, made ready beside what is in force. Raises OSError,
        ssl.SSLError; then nothing is left of it."""
        wanted = wanted_by(config)
        contexts = {
            address: server_tls(listen.cert, listen.key)
            for address, listen in wanted.items()
            if listen.cert is not None
        }
        ready: dict[str, Listener] = {}
        try:
            for address, listen in wanted.items():
                if address not in self.open:
                    reporters = address.startswith(REPORTERS)
                    ready[address] = await self._bind(listen, contexts.get(address), reporters)
            # Then those that exist: the same socket, so that nothing has to be free and no client is turned away.
            for address, listen in wanted.items():
                current = self.open.get(address)
                tls = contexts.get(address)
                if current is not None and (current.tls is not None or tls is not None):
                    ready[address] = await self._bind_again(current, listen, tls)
        except BaseException:
            self.discard(ready)
            raise
        return ready

    def discard(self, ready: dict[str, Listener]) -> None:
        """Close what was made ready in vain."""
        for address, listener in ready.items():
            listener.close(unlink=address not in self.open)

    def swap(self, config: Config, ready: dict[str, Listener]) -> None:
        """Put in force what `prepare` made ready; close what it replaces and what is gone."""
        wanted = wanted_by(config)
        for address in [address for address in self.open if address not in wanted]:
            self.open.pop(address).close()
        for address, listener in ready.items():
            replaced = self.open.get(address)
            if replaced is not None:
                replaced.close(unlink=False)
            self.open[address] = listener
            if replaced is None or (replaced.tls is None) != (listener.tls is None):
                told: dict[str, Any] = {"address": str(listener.spec.address), "port": listener.port}
                if listener.reporters:
                    told["what"] = "reports"
                self._gateway.log.info("listening", **told, tls=listener.tls is not None)

    async def _bind(self, listen: Listen, tls: ssl.SSLContext | None, reporters: bool) -> Listener:
        """Listen on an address on which we don't listen yet."""
        accept, options = self._accepting(tls, reporters)
        if listen.path is not None:
            await clear(listen.path)
            server = await self._loop.create_unix_server(accept, listen.path, **options, **_KEEP_PATH)
            return Listener(listen, [server], tls, 0, reporters)
        server = await self._loop.create_server(accept, listen.host, listen.port, **options)
        return Listener(listen, [server], tls, int(server.sockets[0].getsockname()[1]), reporters)

    async def _bind_again(self, current: Listener, listen: Listen, tls: ssl.SSLContext | None) -> Listener:
        """Listen on the very sockets of `current`, with other TLS. A context of its own even for a renewed certificate:
        one that has loaded two of different kinds serves either."""
        accept, options = self._accepting(tls, current.reporters)
        again = Listener(listen, [], tls, current.port, current.reporters)
        try:
            for server in current.servers:
                for bound in server.sockets:
                    shared = socket.fromfd(bound.fileno(), bound.family, bound.type)
                    if listen.path is not None:
                        created = await self._loop.create_unix_server(accept, sock=shared, **options, **_KEEP_PATH)
                    else:
                        created = await self._loop.create_server(accept, sock=shared, **options)
                    again.servers.append(created)
        except BaseException:
            again.close(unlink=False)
            raise
        return again

    def _accepting(
        self, tls: ssl.SSLContext | None, reporters: bool
    ) -> tuple[Callable[[], asyncio.Protocol], dict[str, Any]]:
        """What the loop is to do with connections, and how."""
        gateway = self._gateway
        secure = tls is not None

        def accept() -> asyncio.Protocol:
            return ReportConnection(self._reports) if reporters else ClientConnection(gateway, secure)

        options: dict[str, Any] = {"backlog": BACKLOG}
        if secure:
            options.update(
                ssl=tls, ssl_handshake_timeout=gateway.settings.header_timeout, ssl_shutdown_timeout=TLS_FAREWELL
            )
        return accept, options

    def close(self) -> None:
        """Accept nothing more."""
        for listener in self.open.values():
            listener.close()


def wanted_by(config: Config) -> dict[str, Listen]:
    """What a configuration asks for, by the name of the listener."""
    found = {str(listen.address): listen for listen in config.listen}
    reporters = config.reporters
    if reporters is not None:
        found[f"{REPORTERS}{reporters.listen}"] = Listen(address=reporters.listen, tls=reporters.tls)
    return found


def why_not(error: Exception) -> str:
    """Why a gateway could not start, and where somebody else has its address: what to do."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"{error.strerror}: another program, perhaps another gateway, listens there. End it, or choose another "
            "address: listen and admin in the file, or --listen and --admin"
        )
    return str(error)


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
