"""Tells others by HTTP what was changed: who listens is in the configuration, and nowhere else.

One POST of JSON for each event and receiver, in order, signed where there is a secret: `x-unjam-signature: sha256=` and
the HMAC-SHA256 of the body with that secret, in hex. Three tries, then it is counted as failed. A receiver that is slow
or dead has a queue of its own, which is bounded; nothing else waits for it. Certificates are verified, redirects not
followed, and of an answer only the status is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import ssl
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from unjam import __version__
from unjam.config.webhooks import Webhook
from unjam.telemetry import logs
from unjam.telemetry.metrics import GatewayStats

#: Events that wait for one receiver; one more is dropped and counted.
QUEUE: Final = 1000
#: Tries of one event, seconds that one may take, and those between the first two and the next two.
TRIES: Final = 3
TIMEOUT: Final = 5.0
PAUSES: Final = (1.0, 4.0)
#: Seconds that events still get when the gateway stops.
GRACE: Final = 2.0

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]")


class Event(msgspec.Struct, kw_only=True):
    """What receivers read. `event`: breaker, rollout, weight or drain; `at`: wall time, seconds; `gateway`: that tells;
    `who` decided; `service`, `version`, `endpoint`: what it is about, as far as it applies; `id`: the same for each try
    and receiver."""

    event: str
    id: str = ""
    at: float
    gateway: str
    who: str
    service: str | None = None
    version: str | None = None
    endpoint: str | None = None
    before: Any = None
    after: Any = None
    why: str = ""


class Webhooks:
    """`log`: a structlog logger."""

    def __init__(self, stats: GatewayStats, log: Any) -> None:
        self._stats = stats
        self._log = log
        self._receivers: dict[Webhook, _Receiver] = {}
        #: Those that a reload removed and that still have something to send.
        self._all: set[_Receiver] = set()
        self._encode = msgspec.json.Encoder().encode

    def configure(self, hooks: Sequence[Webhook]) -> None:
        """Take other webhooks. Those that stay keep what waits for them; what waits for the others is still sent."""
        for hook in hooks:
            if hook.secret is not None:
                logs.conceal(hook.secret)
        self._receivers = {
            hook: self._receivers.get(hook) or _Receiver(hook, self._stats, self._log, self._all) for hook in hooks
        }

    def tell(self, event: Event) -> None:
        """Queue it for who wants it. Never waits, never fails."""
        body = b""
        for hook, receiver in self._receivers.items():
            if event.event in hook.events:
                if not body:
                    event.id = uuid4().hex
                    body = self._encode(event)
                receiver.take(event, body)

    async def stop(self) -> None:
        """Send what waits, for at most `GRACE` seconds."""
        tasks = [receiver.task for receiver in self._all if receiver.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Receiver:
    """`task`: sends, while there is something to be sent."""

    def __init__(self, hook: Webhook, stats: GatewayStats, log: Any, busy: set[_Receiver]) -> None:
        self._hook = hook
        self._stats = stats
        self._log = log
        self._busy = busy
        self._queue: deque[tuple[Event, bytes]] = deque()
        self._rng = Random()
        self._tls: ssl.SSLContext | None = None
        self._dropping = False
        self.task: asyncio.Task[None] | None = None

    def take(self, event: Event, body: bytes) -> None:
        if len(self._queue) >= QUEUE:
            self._stats.webhook("dropped")
            if not self._dropping:
                self._dropping = True
                self._log.warning("webhooks_dropped", to=self._hook.shown, waiting=len(self._queue))
            return
        self._dropping = False
        self._queue.append((event, body))
        self._stats.webhooks_waiting += 1
        if self.task is None:
            self._busy.add(self)
            self.task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._queue:
                event, body = self._queue[0]
                why = await self._deliver(body)
                self._queue.popleft()
                self._stats.webhooks_waiting -= 1
                self._stats.webhook("failed" if why else "delivered")
                if why:
                    self._log.warning("webhook_failed", to=self._hook.shown, about=event.event, id=event.id, why=why)
        finally:
            self._stats.webhooks_waiting -= len(self._queue)
            self._queue.clear()
            self.task = None
            self._busy.discard(self)

    async def _deliver(self, body: bytes) -> str:
        """Deliver one event. Returns why it could not be, empty when it was."""
        why = ""
        for n in range(TRIES):
            if n:
                await asyncio.sleep(PAUSES[n - 1] * self._rng.uniform(0.5, 1.0))
            try:
                async with asyncio.timeout(TIMEOUT):
                    status = await self._post(body)
            except TimeoutError:
                why = f"no answer in {TIMEOUT:g} s"
            except (OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                why = str(error) or type(error).__name__
            except ValueError as error:
                return f"not a host's name: {error}"  # IDNA has its own idea of names
            else:
                if 200 <= status < 300:
                    return ""
                why = f"it answered {status}" if status else "what it answered is not HTTP"
                if 300 <= status < 500 and status not in (408, 425, 429):
                    return why  # the same would come again
        return why

    async def _post(self, body: bytes) -> int:
        """The status; 0: what came is not HTTP."""
        parts = urlsplit(self._hook.url)
        secure = parts.scheme == "https"
        if secure and self._tls is None:
            self._tls = ssl.create_default_context()
        host = parts.hostname or ""
        reader, writer = await asyncio.open_connection(
            host, parts.port or (443 if secure else 80), ssl=self._tls if secure else None
        )
        try:
            writer.write(self._head(parts.path or "/", parts.query, parts.netloc, len(body), body) + body)
            while True:
                found = _STATUS.match(await reader.readuntil(b"\n"))
                if found is None:
                    return 0
                if (status := int(found[1])) >= 200:
                    return status
                while (await reader.readuntil(b"\n")).strip():
                    pass  # the rest of an interim answer
        finally:
            # Its body, if any, is nothing to wait for.
            writer.transport.abort()

    def _head(self, path: str, query: str, authority: str, length: int, body: bytes) -> bytes:
        lines = [
            f"POST {path}{'?' + query if query else ''} HTTP/1.1",
            f"host: {authority}",
            f"user-agent: unjam/{__version__}",
            "content-type: application/json",
            f"content-length: {length}",
            "connection: close",
        ]
        if self._hook.secret is not None:
            lines.append(f"x-unjam-signature: {signature(self._hook.secret, body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def signature(secret: str, body: bytes) -> str:
    """What a receiver compares, in constant time, with the field that came."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
