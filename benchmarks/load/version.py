"""One version of an agent: speaks as its callers do, and fails as often as it is told to, by a seed.

    python -m benchmarks.load.version --port 9001

POST gets a chat completion, or a stream of events where the request asks for one (`Accept: text/event-stream`, or
`"stream": true`); a WebSocket handshake gets an echo. `GET /plant?rate=0.1&seed=7&how=error` as in `planted`; `GET
/times` has the path and the monotonic time of each call since then.
"""

from __future__ import annotations

import json
import re
import time
from functools import partial

from . import planted
from .messages import websocket_accept

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_KEY = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r]+)")
_EVENTS = re.compile(rb'(?i)\r\naccept: *text/event-stream|"stream": ?true')
_CHAT = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
    }
).encode()
_STREAM = b'data: {"answer": 42}\n\ndata: [DONE]\n\n'


def _answer(kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


class Plan(planted.Plan):
    def set(self, rate: float, seed: int, how: str) -> None:
        super().set(rate, seed, how)
        self.times: list[tuple[str, float]] = []


class Version(planted.Endpoint):
    plan: Plan

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.socket = False

    def data_received(self, data: bytes) -> None:
        if self.socket:
            self.echo(data)
            return
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self.rest, 0, end + 2)
            whole = end + 4 + (int(found[1]) if found is not None else 0)
            if len(self.rest) < whole:
                return
            request, self.rest = self.rest[:whole], self.rest[whole:]
            self.transport.write(self.respond(request))

    def respond(self, request: bytes) -> bytes:
        path, _, query = request.split(b" ", 2)[1].decode().partition("?")
        if path == "/plant":
            return self.plant(query)
        if path == "/times":
            return _answer(b"application/json", json.dumps(self.plan.times).encode())
        self.plan.times.append((path, time.monotonic()))
        answer = self.plan.answer()
        if answer is not planted.GOOD:
            return answer
        key = _KEY.search(request)
        if key is not None:
            self.socket = True
            return (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + websocket_accept(key[1].strip()) + b"\r\n\r\n"
            )
        if request.startswith(b"GET"):
            return answer
        return (
            _answer(b"text/event-stream", _STREAM) if _EVENTS.search(request) else _answer(b"application/json", _CHAT)
        )

    def echo(self, data: bytes) -> None:
        """Short masked frames, one at a time."""
        size = data[1] & 0x7F
        mask, payload = data[2:6], data[6 : 6 + size]
        plain = bytes(byte ^ mask[n & 3] for n, byte in enumerate(payload))
        self.transport.write(bytes((data[0], size)) + plain)
        if data[0] & 0x0F == 8:
            self.transport.close()


if __name__ == "__main__":
    planted.main(__doc__, partial(Version, Plan()))
