"""A connection that redis-py has opened (name, password, TLS), taken over: replies are handed on as they come, and what
is written leaves at the end of the loop's turn, in one packet. No coroutine, future or task for either.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any, cast

from hiredis import Reader
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as Broken
from redis.exceptions import RedisError


class Wire(asyncio.Protocol):
    """`on_reply`: called with each reply; an error reply is redis-py's exception, not raised. `lost`: why it can't be
    used any more, None while it can. Made within a running loop."""

    def __init__(self, connection: AbstractConnection, on_reply: Callable[[Any], None]) -> None:
        """Nothing may be under way on the connection. Raises OSError when it is closed already."""
        self.lost: str | None = None
        self._on_reply = on_reply
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._out: list[bytes] = []
        self._due = False
        self._full = False
        self._came = 0
        taken = cast("Any", connection)
        writer: asyncio.StreamWriter | None = taken._writer
        if writer is None or writer.is_closing():
            raise ConnectionResetError("connection closed")
        self._reader = Reader(protocolError=Broken, replyError=taken._parser.parse_error, notEnoughData=self)
        self._transport = cast("asyncio.Transport", writer.transport)
        self._streams = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._transport.resume_reading()
        if taken._reader.at_eof():
            self._lose("connection closed")

    def send(self, packed: bytes) -> None:
        """Nothing happens once it is lost."""
        self._out.append(packed)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._flush)

    async def gone(self) -> None:
        """Returns once it is lost."""
        await asyncio.shield(self._gone)

    def crossed(self) -> tuple[int, int, int]:
        """Changes with every byte that comes, and as bytes leave: from our buffer, and from the kernel's."""
        unsent = 0
        if (socket := self._transport.get_extra_info("socket")) is not None:
            try:
                # SIOCOUTQ on a socket: what the other end has not acknowledged.
                unsent = struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
            except OSError:
                pass  # there is none any more
        return self._came, self._transport.get_write_buffer_size() + sum(map(len, self._out)), unsent

    def close(self) -> None:
        self._lose("closed")
        self._transport.close()

    def _flush(self) -> None:
        self._due = False
        if not self._full and self.lost is None and self._out:
            out, self._out = self._out, []
            self._transport.write(b"".join(out))

    def _lose(self, why: str) -> None:
        if self.lost is None:
            self.lost = why
            self._out.clear()
            if not self._gone.done():
                self._gone.set_result(None)

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        self._came += len(data)
        try:
            reader.feed(data)
            while self.lost is None and (reply := reader.gets()) is not self:
                if isinstance(reply, Broken):  # of the server: it is loading, or has no room for us
                    raise reply
                self._on_reply(reply)
        except (RedisError, ValueError) as error:
            self._lose(str(error))
            self._transport.abort()

    def eof_received(self) -> bool:
        self._lose("Connection closed by server.")
        return False

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(str(error) if error else "connection closed")
        # What redis-py waits for when it closes.
        self._streams.connection_lost(error)
