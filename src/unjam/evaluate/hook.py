"""An evaluator that is asked by HTTP: a record as JSON, answered `{"verdict": "good" or "bad", "reason": "..."}`."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from unjam.evaluate.frames import BAD, ERROR, GOOD, Said
from unjam.evaluate.record import Record, Unreadable, one_line, plain
from unjam.http.connection import BadAnswer, Connection

#: Questions to one hook at once.
ASKED: Final = 4


class _Answer(msgspec.Struct):
    verdict: str
    reason: str = ""


_decode = msgspec.json.Decoder(_Answer).decode


def body(record: Record) -> bytes:
    """Raises Unreadable."""
    record = plain(record)
    return msgspec.json.encode(
        {
            "service": record.service,
            "version": record.version,
            "status": record.status,
            "content_type": record.content_type,
            "seconds": round(record.seconds, 6),
            "request": record.request.decode("utf-8", "replace"),
            "answer": record.answer.decode("utf-8", "replace"),
        }
    )


class Hook:
    """`url`: http or https, the certificate is verified; checked by whoever read it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._head = (
            f"POST {target} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            "accept: application/json\r\n"
        ).encode("ascii")
        self._tls: Any = None
        self._idle: list[Connection] = []

    async def judge(self, record: Record, timeout: float) -> Said:
        """`result` good, bad or error. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            try:
                # A large one takes long to be written as JSON, and longer to be decompressed.
                asked = await asyncio.to_thread(body, record)
            except Unreadable as error:
                return Said(ERROR, str(error))
            connection = self._idle.pop() if self._idle else self._connection()
            try:
                answer = await connection.request(self._head, asked, timeout)
            except (OSError, BadAnswer) as error:
                if isinstance(error, TimeoutError):
                    raise
                return Said(ERROR, one_line(str(error) or type(error).__name__))
            self._idle.append(connection)
        if not 200 <= answer.status < 300:
            return Said(ERROR, f"it answered {answer.status}")
        try:
            said = _decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = _Answer("")
        if said.verdict not in (GOOD, BAD):
            return Said(ERROR, 'it did not answer {"verdict": "good"} or "bad"')
        return Said(said.verdict, one_line(said.reason))

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle = []

    def _connection(self) -> Connection:
        if self._secure and self._tls is None:
            self._tls = ssl.create_default_context()
        return Connection(self._host, self._port, self._tls)
