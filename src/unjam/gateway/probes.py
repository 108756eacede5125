"""Active health checks: GET a path now and then, on the same connections that requests use.

A `Probe` stands where an exchange would, so what is checked is the very path that requests take.
"""

from __future__ import annotations

import asyncio
import ssl
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any

from unjam.core.spec import HealthSpec
from unjam.gateway.upstream import HEAD, Upstream, UpstreamConnection
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway
    from unjam.wire.http1 import ResponseHead

#: Bytes of a health check's answer that are read before it counts as broken.
MOST = 65536


class Probe:
    """One check under way; the exchange's place on an `UpstreamConnection`."""

    __slots__ = ("client", "done", "head", "last", "received", "status", "upstream")

    class _Head:
        method = "GET"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.head = self._Head()
        self.client = self
        self.done: asyncio.Future[int] = loop.create_future()
        self.status = 0
        self.last = 0.0
        self.received = 0
        self.upstream: UpstreamConnection | None = None

    def send(self, connection: UpstreamConnection, path: str) -> None:
        connection.exchange = self  # type: ignore[assignment]
        connection.mode = HEAD
        self.upstream = connection
        connection.transport.write(
            b"GET %b HTTP/1.1\r\n%bUser-Agent: unjam-health\r\n\r\n"
            % (path.encode("ascii"), connection.upstream.host_line)
        )

    # What the connection calls, as it would of an exchange.

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_switch(self, head: ResponseHead, rest: bytes) -> None:
        self._fail(Malformed("unasked_101", "endpoint"))

    def on_head(self, head: ResponseHead, kind: str, payload: bytes) -> None:
        self.status = head.status
        self.on_body(payload)

    def on_body(self, payload: bytes) -> None:
        self.received += len(payload)
        if self.received > MOST and self.upstream is not None:
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


class Watch:
    """The checks of one endpoint, for as long as it is in the topology."""

    __slots__ = ("_gateway", "_rng", "_spec", "_task", "upstream")

    def __init__(self, gateway: Gateway, upstream: Upstream, spec: HealthSpec, rng: Random) -> None:
        self._gateway = gateway
        self._spec = spec
        self._rng = rng
        self.upstream = upstream
        self._task: asyncio.Task[Any] = gateway.loop.create_task(self._run())

    @property
    def spec(self) -> HealthSpec:
        return self._spec

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        spec = self._spec
        endpoint = self.upstream.endpoint
        healthy, run = endpoint.healthy, 0
        await asyncio.sleep(self._rng.random() * min(1.0, spec.interval))  # not all endpoints in one instant
        while True:
            problem = await check(self.upstream, spec)
            good = not problem
            run = 0 if good is healthy else run + 1
            if run >= (spec.unhealthy_after if healthy else spec.healthy_after):
                healthy, run = good, 0
                self._gateway.log.info("health", endpoint=endpoint.name, healthy=healthy, why=problem or "checks pass")
                now = monotonic()
                self._gateway.carry_out(self._gateway.balancer.set_health(endpoint, healthy, now), now)
            await asyncio.sleep(spec.interval * (0.9 + 0.2 * self._rng.random()))
