"""Questions of our own to endpoints, on the same connections that requests use; and the active health checks.

A `Probe` stands where an exchange would, so what is checked is the very path that requests take. `check` only wants to
know the status, `fetch` the body.
"""

from __future__ import annotations

import asyncio
import ssl
from random import Random
from time import monotonic
from typing import TYPE_CHECKING

from unjam.core.spec import HealthSpec
from unjam.gateway.upstream import HEAD, Upstream, UpstreamConnection
from unjam.gateway.watch import Watch
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway
    from unjam.wire.http1 import ResponseHead

#: Bytes of a health check's answer that are read before it counts as broken.
MOST = 65536


class Probe:
    """One question under way: an `upstream.Asker`. `most`: bytes of the answer's body that
    are read. `pages`: takes the body, None: nobody wants it, and a longer one is good too."""

    __slots__ = ("client", "done", "head", "last", "most", "pages", "received", "status", "upstream")

    class _Head:
        method = "GET"

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int = MOST, pages: list[bytes] | None = None) -> None:
        self.head = self._Head()
        self.client = self
        self.done: asyncio.Future[int] = loop.create_future()
        self.status = 0
        self.most = most
        self.pages = pages
        self.last = 0.0
        self.received = 0
        self.upstream: UpstreamConnection | None = None

    def send(self, connection: UpstreamConnection, path: str, lines: bytes = b"User-Agent: unjam-health\r\n") -> None:
        connection.exchange = self
        connection.mode = HEAD
        self.upstream = connection
        connection.transport.write(
            b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path.encode("ascii"), connection.upstream.host_line, lines)
        )

    # What the connection calls.

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_switch(self, head: ResponseHead, rest: bytes) -> None:
        self._fail(Malformed("unasked_101", "endpoint"))

    def on_head(self, head: ResponseHead, kind: str, payload: bytes) -> None:
        self.status = head.status
        self.on_body(payload)

    def on_body(self, payload: bytes) -> None:
        self.received += len(payload)
        if self.received <= self.most:
            if self.pages is not None:
                self.pages.append(payload)
        elif self.pages is not None:
            self._fail(ValueError(f"the answer is longer than {self.most} bytes"))
        elif self.upstream is not None:
            connection, self.upstream = self.upstream, None
            connection.abort()
            self._settle()

    def on_end(self, reusable: bool, now: float = 0.0) -> None:
        connection, self.upstream = self.upstream, None
        if connection is not None:
            if reusable:
                connection.release()
            else:
                connection.close()
        self._settle()

    def on_lost(self, error: Exception | None) -> None:
        self.upstream = None
        self._fail(error or ConnectionResetError("closed before it answered"))

    def bad_answer(self, error: Malformed) -> None:
        self._fail(error)

    def hold_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def _settle(self) -> None:
        if not self.done.done():
            self.done.set_result(self.status)

    def _fail(self, error: Exception) -> None:
        connection, self.upstream = self.upstream, None
        if connection is not None:
            connection.abort()
        if not self.done.done():
            self.done.set_exception(error)

    def give_up(self) -> None:
        connection, self.upstream = self.upstream, None
        if connection is not None:
            connection.abort()


async def check(upstream: Upstream, spec: HealthSpec) -> str:
    """Check once; the empty string when healthy, else what was wrong."""
    probe = Probe(upstream.gateway.loop)
    try:
        async with asyncio.timeout(spec.timeout):
            connection = upstream.acquire() or await upstream.open(spec.timeout)
            probe.send(connection, spec.path)
            status = await probe.done
    except TimeoutError:
        return f"no answer within {spec.timeout:g} s"
    except (OSError, ssl.SSLError, ValueError, Malformed) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        probe.give_up()
    return "" if 200 <= status < 400 else f"status {status}"


async def fetch(upstream: Upstream, path: str, timeout: float, most: int, lines: bytes = b"") -> tuple[int, bytes]:
    """GET a page: its status and its body. `timeout`: to connect, seconds; whoever calls it bounds the rest. `lines`:
    more of the request's head, with CRLF. Raises OSError, ssl.SSLError, TimeoutError, Malformed; ValueError when it is
    longer than `most`."""
    pages: list[bytes] = []
    probe = Probe(upstream.gateway.loop, most, pages)
    try:
        connection = upstream.acquire() or await upstream.open(timeout)
        probe.send(connection, path, b"User-Agent: unjam-load\r\n" + lines)
        status = await probe.done
    finally:
        probe.give_up()
    return status, b"".join(pages)


class HealthWatch(Watch[HealthSpec]):
    """The checks of one endpoint."""

    __slots__ = ("_healthy", "_run_length")

    def __init__(self, gateway: Gateway, upstream: Upstream, spec: HealthSpec, rng: Random) -> None:
        self._healthy = upstream.endpoint.healthy
        #: Verdicts in a row that differ from it.
        self._run_length = 0
        super().__init__(gateway, upstream, spec, rng)

    async def step(self) -> None:
        spec = self.spec
        problem = await check(self.upstream, spec)
        good = not problem
        self._run_length = 0 if good is self._healthy else self._run_length + 1
        if self._run_length >= (spec.unhealthy_after if self._healthy else spec.healthy_after):
            self._healthy, self._run_length = good, 0
            gateway, endpoint = self.gateway, self.upstream.endpoint
            gateway.log.info("health", endpoint=endpoint.name, healthy=good, why=problem or "checks pass")
            now = monotonic()
            gateway.carry_out(gateway.balancer.set_health(endpoint, good, now), now)
