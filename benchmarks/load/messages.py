"""The bytes that load generator and origin exchange.

A request looks like one of the OpenAI SDK's: ten fields, of which content-length, authorization and x-request-id
differ between requests (eight body sizes, four keys, and a request id never repeated); a body of about 200 bytes. The
answer has five fields, of which date changes every second and x-request-id with every answer, and about 300 bytes of
JSON that repeat the request's nonce: an answer that reaches the wrong caller is an error, not a fast answer.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from email.utils import formatdate

NONCE = b"nonce-"
NONCE_LENGTH = len(NONCE) + 16
MODEL = "bench"
CHAT_PATH = "/v1/chat/completions"
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_WORDS = b"Please read the attached audit and tell me in one sentence what is wrong with it, and what it will cost. "

#: The fields that the Python SDK sends beside the ten (fields="sdk"); all are the same in every request.
_SDK_FIELDS = (
    b"Connection: keep-alive\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
    b"X-Stainless-Package-Version: 1.61.0\r\nX-Stainless-Runtime: CPython\r\n"
    b"X-Stainless-Runtime-Version: 3.11.7\r\nX-Stainless-Async: false\r\n"
)


def nonce(connection: int, number: int) -> bytes:
    """16 hex digits after a marker, unique for a connection and the number of its request."""
    return b"nonce-%06x%010x" % (connection, number)


class RequestMaker:
    """Builds one connection's requests: everything but nonce and request id is put together once."""

    __slots__ = ("_connection", "_heads", "_number", "_run")

    def __init__(
        self,
        connection: int,
        authority: str,
        path: str = CHAT_PATH,
        *,
        stream: bool = False,
        max_tokens: int = 256,
        fields: str = "ten",
        users: bool = False,
    ) -> None:
        """`users`: each connection is a user, by one more field."""
        self._connection = connection
        self._number = 0
        self._run = b"%08x" % int.from_bytes(os.urandom(4))
        self._heads: list[tuple[bytes, bytes]] = []
        for size in range(8):
            tail = b' %s"}],"max_tokens":%d,"temperature":0.2,"stream":%s}' % (
                _WORDS[: 40 + 8 * size],
                max_tokens,
                b"true" if stream else b"false",
            )
            before = b'{"model":"%s","messages":[{"role":"user","content":"' % MODEL.encode()
            head = (
                b"POST %s HTTP/1.1\r\nHost: %s\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
                b"Content-Type: application/json\r\nUser-Agent: OpenAI/Python 1.61.0\r\nX-Stainless-Lang: python\r\n"
                b"X-Stainless-Retry-Count: 0\r\n%sAuthorization: Bearer sk-bench-%032x\r\nContent-Length: %d\r\n"
                b"X-Request-Id: "
                % (
                    path.encode(),
                    authority.encode(),
                    (_SDK_FIELDS if fields == "sdk" else b"")
                    + (b"X-User-Id: user-%d\r\n" % connection if users else b""),
                    connection % 4,
                    len(before) + NONCE_LENGTH + len(tail),
                )
            )
            self._heads.append((head, b"%s\r\n\r\n" + before.replace(b"%", b"%%") + b"%s" + tail.replace(b"%", b"%%")))

    def next(self) -> tuple[bytes, bytes]:
        """(nonce, request)."""
        number = self._number
        self._number = number + 1
        mark = b"nonce-%06x%010x" % (self._connection, number)
        head, rest = self._heads[number & 7]
        return mark, head + rest % (self._run + mark[6:], mark)


class AnswerMaker:
    """Builds the origin's answers. The date is that of the last `refresh`. `extra`: further lines of the head."""

    __slots__ = ("_after", "_before", "_extra", "_number")

    def __init__(self, extra: bytes = b"") -> None:
        self._number = 0
        self._extra = extra
        self.refresh()

    def refresh(self) -> None:
        body_before = (
            b'{"id":"chatcmpl-%016x","object":"chat.completion","created":1700000000,"model":"' + MODEL.encode()
        )
        body_after = (
            b'","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"%b is wrong."}}],'
            b'"usage":{"prompt_tokens":40,"completion_tokens":8,"total_tokens":48},"system_fingerprint":"fp_bench_000001"}'
        )
        length = len(body_before % 0) + len(body_after) - 2 + NONCE_LENGTH
        self._before = (
            b"HTTP/1.1 200 OK\r\nDate: %s\r\nServer: origin\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"%bX-Request-Id: req_%%016x\r\n\r\n" % (formatdate(time.time(), usegmt=True).encode(), length, self._extra)
        ) + body_before
        self._after = body_after

    def make(self, mark: bytes) -> bytes:
        self._number += 1
        return (self._before + self._after) % (self._number, self._number, mark)


def sse_head() -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nDate: %s\r\nServer: origin\r\nContent-Type: text/event-stream\r\n"
        b"Cache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n" % formatdate(time.time(), usegmt=True).encode()
    )


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def sse_event(mark: bytes, number: int) -> bytes:
    """One event of about 120 bytes in a chunk of its own, stamped with the monotonic clock (ns)."""
    return chunk(
        b'data: {"id":"%s","n":%08d,"t":%019d,"choices":[{"delta":{"content":" wrong"}}]}\n\n'
        % (mark, number, time.monotonic_ns())
    )


def find_nonce(data: bytes) -> bytes:
    """The nonce in `data`, or sixteen zeros for a request that carries none (health probes of a router)."""
    at = data.find(NONCE)
    return data[at : at + NONCE_LENGTH] if at >= 0 else NONCE + b"0" * 16


def dechunk(data: bytes) -> tuple[bytes, bool]:
    """(payload, complete) of a chunked body, for checks off the hot path. Raises ValueError when it is malformed."""
    out: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return b"".join(out), False
        size = int(data[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(out), data[end + 2 :] == b"\r\n"
        at = end + 2 + size
        if len(data) < at + 2:
            return b"".join(out), False
        if data[at : at + 2] != b"\r\n":
            raise ValueError(f"chunk of {size} bytes does not end with CRLF")
        out.append(data[end + 2 : at])
        at += 2


def websocket_accept(key: bytes) -> bytes:
    """RFC 6455 section 4.2.2."""
    return base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID, usedforsecurity=False).digest())


def masked_text(payload: bytes, mask: bytes) -> bytes:
    """A client's text frame of at most 125 bytes."""
    n = len(payload)
    if n > 125:
        raise ValueError("this frame is for short payloads")
    pad = (mask * (n // 4 + 1))[:n]
    mixed = int.from_bytes(payload) ^ int.from_bytes(pad)
    return bytes((0x81, 0x80 | n)) + mask + mixed.to_bytes(n)
