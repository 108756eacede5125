"""Connections that are looked at ten times a second, not when something arrives.

A thousand reporters that each say something every two seconds would wake the loop 500 times a second, and a processor
that is woken for each of them takes several times as long for it as for one of many in a row. So the idle connections
of many reporters are taken out of the loop's care and asked all at once, by an `epoll` of their own.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import Final, Protocol

#: Bytes read of one connection at a time.
PIECE: Final = 65536
#: Connections read at a time; the others have their turn at the next.
MOST: Final = 4096


class Parked(Protocol):
    """Who may be parked. `transport`: of a plain socket; reading from it is paused meanwhile."""

    transport: asyncio.Transport

    def parked_data(self, data: bytes) -> None:
        """Some bytes have come."""
        ...


class Parking:
    """The parked connections of one loop."""

    __slots__ = ("_connections", "_descriptors", "_epoll")

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._connections: dict[int, Parked] = {}
        self._descriptors: dict[Parked, int] = {}

    def __contains__(self, connection: Parked) -> bool:
        return connection in self._descriptors

    def park(self, connection: Parked) -> None:
        """Look at it now and then from now on. Nothing is done where that can't be: TLS has to be read by the loop."""
        transport = connection.transport
        if (
            connection in self._descriptors
            or transport.is_closing()
            or transport.get_extra_info("sslcontext") is not None
            or not hasattr(select, "epoll")
        ):
            return
        if self._epoll is None:
            self._epoll = select.epoll()
        descriptor: int = transport.get_extra_info("socket").fileno()
        transport.pause_reading()
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        self._connections[descriptor] = connection
        self._descriptors[connection] = descriptor

    def unpark(self, connection: Parked) -> None:
        """Give it back to the loop."""
        if self.drop(connection) and not connection.transport.is_closing():
            connection.transport.resume_reading()

    def drop(self, connection: Parked) -> bool:
        """Forget it: it is lost, or no longer parked. False: it wasn't."""
        descriptor = self._descriptors.pop(connection, None)
        if descriptor is None:
            return False
        del self._connections[descriptor]
        assert self._epoll is not None
        try:
            self._epoll.unregister(descriptor)
        except OSError:
            pass  # closed by now, and with that forgotten by the kernel
        return True

    def look(self) -> None:
        """Read what has come."""
        if not self._connections:
            return
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0, MOST):
            connection = self._connections.get(descriptor)
            if connection is None:
                continue
            try:
                data = os.read(descriptor, PIECE)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                connection.transport.abort()
                continue
            if data:
                connection.parked_data(data)
            else:
                connection.transport.close()

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._connections.clear()
        self._descriptors.clear()
