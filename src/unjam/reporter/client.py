"""One HTTP/1.1 connection of the reporter: requests one after another, kept open between them.

Answers are read strictly (RFC 9112) and bounded: a status line, fields, and a body whose length is told or chunked.
Anything else is `BadAnswer`; after any error the connection is closed and the next request opens a new one.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import Final

#: Bytes of an answer's head and of its body.
MOST_HEAD: Final = 16 * 1024
MOST_BODY: Final = 64 * 1024

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\Z")
_DIGITS = re.compile(rb"[0-9]{1,9}\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,6})[ \t]*(?:;[\t\x20-\x7e]*)?\r\n\Z")


class BadAnswer(Exception):
    """What came is not an HTTP answer that can be understood; in words."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


class Connection:
    """To one host and port; `tls`: how to secure it, None for plain TCP. Not to be used by two tasks at once."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.port = port
        self._tls = tls
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, head: bytes, body: bytes = b"", timeout: float = 5.0) -> Answer:
        """`head`: request line and fields, each with CRLF, without `content-length` and the empty line.

        A kept connection that the other side has closed meanwhile is renewed once, unseen. Raises OSError,
        TimeoutError after `timeout` seconds in all, `BadAnswer`.
        """
        data = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        try:
            async with asyncio.timeout(timeout):
                if self._alive():
                    try:
                        return await self._exchange(data)
                    except (ConnectionError, _NothingCame):
                        self.close()
                await self._open()
                return await self._exchange(data)
        except BaseException:
            # Also when cancelled: an answer that is on its way would be taken for the next one's.
            self.close()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    def _alive(self) -> bool:
        return self._reader is not None and self._writer is not None and not self._reader.at_eof()

    async def _open(self) -> None:
        self.close()
        self._reader, self._writer = await asyncio.open_connection(
            self.host, self.port, ssl=self._tls, limit=MOST_HEAD, server_hostname=self.host if self._tls else None
        )

    async def _exchange(self, data: bytes) -> Answer:
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()
        answer, keep = await _read(self._reader)
        if not keep:
            self.close()
        return answer


class _NothingCame(BadAnswer):
    pass


async def _read(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """An answer and whether the connection may be used again."""
    while True:
        version, status, fields = _parse_head(await _head(reader))
        if status >= 200:
            break
        if status == 101:
            raise BadAnswer("it switched protocols, which nobody asked for")
    keep = version == b"1" and b"close" not in fields.get(b"connection", b"").lower()
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if status in (204, 304):
        return Answer(status, b""), keep
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise BadAnswer("the length of its answer is ambiguous")
        return Answer(status, await _chunks(reader)), keep
    if length is None:
        raise BadAnswer("its answer does not say how long it is")
    if not _DIGITS.match(length) or int(length) > MOST_BODY:
        raise BadAnswer("its answer is too long, or its length is not a number")
    return Answer(status, await _exactly(reader, int(length))), keep


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
        if (field := _FIELD.match(line)) is None:
            raise BadAnswer("a line of its answer's head is malformed")
        name = field[1].lower()
        # A second content-length makes an invalid number of both, as it should.
        fields[name] = fields[name] + b", " + field[2] if name in fields else field[2]
    return status[1], int(status[2]), fields


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        line = await _line(reader)
        if (size := _CHUNK.match(line)) is None:
            raise BadAnswer("a chunk of its answer is malformed")
        length = int(size[1], 16)
        if length == 0:
            break
        if len(body) + length > MOST_BODY:
            raise BadAnswer("its answer is too long")
        body += await _exactly(reader, length)
        if await _exactly(reader, 2) != b"\r\n":
            raise BadAnswer("a chunk of its answer is malformed")
    for _ in range(32):
        if await _line(reader) == b"\r\n":
            return body
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
