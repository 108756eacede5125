"""One HTTP/1.1 connection: requests one after another, kept open between them, or one answer read as it comes.

Answers are read strictly (RFC 9112) and bounded: a status line, fields, and a body whose length is told or chunked.
Anything else is `BadAnswer`; after any error the connection is closed and the next request opens a new one.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

#: Bytes of an answer's head; and of its body, where nobody says how many.
MOST_HEAD: Final = 16 * 1024
MOST_BODY: Final = 64 * 1024
#: Bytes that a streamed answer is read by, at most, and a large one at once.
PIECE: Final = 64 * 1024
#: Bytes a second: a body that is sent more slowly is too slow.
SLOWEST: Final = 128 * 1024

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\Z")
_DIGITS = re.compile(rb"[0-9]{1,9}\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,7})[ \t]*(?:;[\t\x20-\x7e]*)?\r\n\Z")


class BadAnswer(Exception):
    """What came is not an HTTP answer that can be understood; in words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`fields`: by name in lower case."""

    status: int
    body: bytes
    fields: Mapping[bytes, bytes] = field(default_factory=dict)


class Connection:
    """To one host and port; `tls`: how to secure it, None for plain TCP. `most`: bytes of an answer's body. Not to be
    used by two tasks at once."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None, most: int = MOST_BODY) -> None:
        self.host = host
        self.port = port
        #: Whether the last request was written, so that the other side may have acted on it.
        self.sent = False
        self._tls = tls
        self._most = most
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, head: bytes, body: bytes = b"", timeout: float = 5.0, *, again: bool = True) -> Answer:
        """`head`: request line and fields, each with CRLF, without `content-length` and the empty line.

        A kept connection that the other side has closed meanwhile is renewed once, unseen, if the request may be sent
        `again`. Raises OSError, `BadAnswer`, TimeoutError after `timeout` seconds in all; each `PIECE` of a large
        answer has as many again, and a large body as many as it takes at `SLOWEST`.
        """
        data = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        self.sent = False
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(timeout + len(body) / SLOWEST) as limit:

                def more() -> None:
                    limit.reschedule(clock() + timeout)

                if again and self.alive:
                    try:
                        return await self._exchange(data, more)
                    except (ConnectionError, _NothingCame):
                        self.close()
                await self._open()
                return await self._exchange(data, more)
        except BaseException:
            # Also when cancelled: an answer that is on its way would be taken for the next one's.
            self.close()
            raise

    async def stream(self, head: bytes, timeout: float = 5.0) -> Stream:
        """Send a request without a body over a new connection; the answer is read as it comes. Raises as `request`;
        `timeout` is for its head."""
        self.sent = False
        try:
            async with asyncio.timeout(timeout):
                await self._open()
                reader = self._write(head + b"\r\n")
                return Stream(self, reader, *await _begin(reader))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as that is known without using it."""
        return self._reader is not None and self._writer is not None and not self._reader.at_eof()

    async def _open(self) -> None:
        self.close()
        self._reader, self._writer = await asyncio.open_connection(
            self.host, self.port, ssl=self._tls, limit=MOST_HEAD, server_hostname=self.host if self._tls else None
        )

    def _write(self, data: bytes) -> asyncio.StreamReader:
        assert self._reader is not None
        assert self._writer is not None
        self.sent = True
        self._writer.write(data)
        return self._reader

    async def _exchange(self, data: bytes, more: Callable[[], None]) -> Answer:
        # Not waiting until all is written: an answer that comes before refuses the rest.
        reader = self._write(data)
        answer, keep = await _read(reader, self._most, more)
        if not keep:
            self.close()
        return answer


class Stream:
    """An answer whose body is read as it comes. Close it, or its connection, when done."""

    def __init__(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        version: bytes,
        status: int,
        fields: dict[bytes, bytes],
    ) -> None:
        self.status = status
        self.fields = fields
        self._connection = connection
        self._reader = reader
        self._chunked, length = _framing(status, fields, None)
        #: Bytes left of the body, or of the open chunk.
        self._left = 0 if self._chunked else length
        self._ended = not self._chunked and length == 0

    async def read(self) -> bytes:
        """The next bytes; empty at the end, if it came where it was due. Raises OSError, `BadAnswer`."""
        if self._ended:
            return b""
        if self._chunked and self._left == 0:
            self._left = _chunk_size(await _line(self._reader))
            if self._left == 0:
                await _trailers(self._reader)
                self._ended = True
                return b""
        data = await self._reader.read(min(self._left, PIECE))
        if not data:
            raise BadAnswer("it closed the connection within its answer")
        self._left -= len(data)
        if self._left == 0:
            if self._chunked:
                await _chunk_end(self._reader)
            else:
                self._ended = True
        return data

    async def whole(self, most: int = MOST_BODY) -> Answer:
        """All of it. Raises as `read`."""
        body = bytearray()
        while data := await self.read():
            body += data
            if len(body) > most:
                raise BadAnswer("its answer is too long")
        return Answer(self.status, bytes(body), self.fields)

    def close(self) -> None:
        self._connection.close()


class _NothingCame(BadAnswer):
    pass


async def _begin(reader: asyncio.StreamReader) -> tuple[bytes, int, dict[bytes, bytes]]:
    """Minor version, status and fields of the final answer."""
    while True:
        version, status, fields = _parse_head(await _head(reader))
        if status >= 200:
            return version, status, fields
        if status == 101:
            raise BadAnswer("it switched protocols, which nobody asked for")


async def _read(reader: asyncio.StreamReader, most: int, more: Callable[[], None]) -> tuple[Answer, bool]:
    """An answer and whether the connection may be used again. `more` is called for each large part of it."""
    version, status, fields = await _begin(reader)
    keep = version == b"1" and b"close" not in fields.get(b"connection", b"").lower()
    chunked, length = _framing(status, fields, most)
    body = await _chunks(reader, most, more) if chunked else await _whole(reader, length, more)
    return Answer(status, body, fields), keep


def _framing(status: int, fields: dict[bytes, bytes], most: int | None) -> tuple[bool, int]:
    """Whether its body is chunked, and its length where not."""
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if status in (204, 304):
        return False, 0
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise BadAnswer("the length of its answer is ambiguous")
        return True, 0
    if length is None:
        raise BadAnswer("its answer does not say how long it is")
    if not _DIGITS.match(length) or (most is not None and int(length) > most):
        raise BadAnswer("its answer is too long, or its length is not a number")
    return False, int(length)


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.LimitOverrunError:
        raise BadAnswer("the head of its answer is too long") from None
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise _NothingCame("it closed the connection without an answer") from None
        raise BadAnswer("it closed the connection within its answer") from None


def _parse_head(head: bytes) -> tuple[bytes, int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    if (status := _STATUS.match(first)) is None:
        raise BadAnswer("what it says is not HTTP")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        if (found := _FIELD.match(line)) is None:
            raise BadAnswer("a line of its answer's head is malformed")
        name = found[1].lower()
        # A second content-length makes an invalid number of both, as it should.
        fields[name] = fields[name] + b", " + found[2] if name in fields else found[2]
    return status[1], int(status[2]), fields


async def _whole(reader: asyncio.StreamReader, length: int, more: Callable[[], None]) -> bytes:
    if length <= PIECE:
        return await _exactly(reader, length)
    body = bytearray()
    while len(body) < length:
        body += await _exactly(reader, min(PIECE, length - len(body)))
        more()
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader, most: int, more: Callable[[], None]) -> bytes:
    body = bytearray()
    while (length := _chunk_size(await _line(reader))) != 0:
        if len(body) + length > most:
            raise BadAnswer("its answer is too long")
        body += await _whole(reader, length, more)
        await _chunk_end(reader)
    await _trailers(reader)
    return bytes(body)


def _chunk_size(line: bytes) -> int:
    if (size := _CHUNK.match(line)) is None:
        raise BadAnswer("a chunk of its answer is malformed")
    return int(size[1], 16)


async def _chunk_end(reader: asyncio.StreamReader) -> None:
    if await _exactly(reader, 2) != b"\r\n":
        raise BadAnswer("a chunk of its answer is malformed")


async def _trailers(reader: asyncio.StreamReader) -> None:
    for _ in range(32):
        if await _line(reader) == b"\r\n":
            return
    raise BadAnswer("its answer has too many trailers")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError:
        raise BadAnswer("a line of its answer is too long") from None
    except asyncio.IncompleteReadError:
        raise BadAnswer("it closed the connection within its answer") from None


async def _exactly(reader: asyncio.StreamReader, length: int) -> bytes:
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise BadAnswer("it closed the connection within its answer") from None
