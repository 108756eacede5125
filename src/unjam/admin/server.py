"""Runs the admin application inside the gateway's event loop, on a listener of its own.

uvicorn's server without the parts that belong to a process of its own: it installs no signal handlers, configures no
logging and wakes once a second instead of ten times. What it lacks is added: strangers may not hold connections, or
flood the log, beyond a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unjam.admin.auth import Guard, check_exposure

#: Connections at once. One more, and the one that has been silent longest without a request under way is closed.
MAX_CONNECTIONS = 256
#: Seconds from the first byte, or the connection, to the end of a request's head.
HEAD_TIMEOUT = 10.0
#: Seconds a kept-alive connection may be idle.
KEEP_ALIVE = 15
#: Seconds that `stop` lets running requests finish.
GRACE = 2


class _Protocol(H11Protocol):
    """One connection, with a limit on how long it may take to ask for something."""

    def __init__(self, on_reject: Callable[[str, str], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # uvicorn warns once per malformed request, as often as somebody likes; `on_reject` counts and is bounded.
        self.logger = _quiet
        self._on_reject = on_reject
        #: When the request began that is not complete yet; None while one is served or the connection is idle.
        self.asking_since: float | None = None
        self.heard = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.asking_since = self.heard = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            others = (c for c in self.connections if isinstance(c, _Protocol) and c is not self and not c.serving)
            min(others, key=_heard, default=self).refuse("admin_connections")

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        super().data_received(data)
        if self.serving:
            self.asking_since = None
        elif self.asking_since is None and self.conn.trailing_data[0]:
            self.asking_since = self.heard

    def send_400_response(self, msg: str) -> None:
        self._on_reject("admin_malformed", self.peer)
        super().send_400_response(msg)

    def refuse(self, reason: str) -> None:
        self._on_reject(reason, self.peer)
        self.connections.discard(self)
        self.transport.abort()

    @property
    def serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def peer(self) -> str:
        return self.client[0] if self.client else "unix"


def _heard(connection: _Protocol) -> float:
    return connection.heard


_quiet = logging.getLogger("unjam.admin.http")
_quiet.setLevel(logging.ERROR)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.over = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # SIGTERM and SIGHUP are the gateway's.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        # on_tick(0) refreshes the Date header.
        while not await self.on_tick(0):
            self._hurry()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.over.wait()

    def _hurry(self) -> None:
        latest = asyncio.get_running_loop().time() - HEAD_TIMEOUT
        for connection in list(self.server_state.connections):
            assert isinstance(connection, _Protocol)
            if connection.asking_since is not None and connection.asking_since < latest:
                connection.refuse("admin_head_timeout")


class AdminServer:
    """`token`: only to refuse a listener beyond loopback without one; the application checks it.

    One use: `start` once, `stop` once.
    """

    def __init__(self, app: Guard, *, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._app = app
        self._token = token
        self._tls = tls
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0
        self.host = ""

    async def start(
        self, host: str = "127.0.0.1", port: int = 0, *, sockets: Sequence[socket.socket] | None = None
    ) -> None:
        """Listen; returns when connections are accepted. `sockets`: bound already, TCP or Unix; else `host` and `port`
        (0: the OS picks, see `port`). Raises `auth.AdminExposed`, or OSError when the address cannot be bound."""
        if self._task is not None:
            raise RuntimeError("this admin server has been started before")
        listeners = list(sockets) if sockets is not None else []
        for listener in listeners:
            if listener.family != socket.AF_UNIX:
                check_exposure(listener.getsockname()[0], self._token)
        if sockets is None:
            check_exposure(host, self._token)
            listeners = [_bind(host, port)]
        name = listeners[0].getsockname()
        if listeners[0].family != socket.AF_UNIX:
            self.host, self.port = name[0], name[1]
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        config.load()
        config.ssl = self._tls
        config.http_protocol_class = functools.partial(_Protocol, self._app.on_reject)  # type: ignore[assignment]
        self._server = server = _Server(config)
        self._task = task = asyncio.create_task(server.serve(sockets=listeners), name="unjam-admin")
        up = asyncio.create_task(server.up.wait())
        await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            up.cancel()
            # It ended before it began; the reason is in the task.
            await task
            raise RuntimeError("the admin listener ended while it started")

    async def stop(self) -> None:
        """Stop listening, let running requests finish for `GRACE` seconds, close. Harmless when not started."""
        server, task = self._server, self._task
        if server is None or task is None:
            return
        server.should_exit = True
        server.over.set()
        self._server = None
        await task


def _bind(host: str, port: int) -> socket.socket:
    # The first address of a name is enough for an admin listener; config has one address, not a list.
    family, kind, proto, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"admin address {host}:{port}: {(error.strerror or str(error)).lower()}") from None
    return listener
