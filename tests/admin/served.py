"""A real admin server on a port of the OS's choice, and a client for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import uvloop

from unjam.admin.app import create_app
from unjam.admin.auth import Hosts, hosts_for
from unjam.admin.server import AdminServer

from .fleet import Fleet

TOKEN = "planted-Admin-Token-0123456789"


@dataclass
class Served:
    client: httpx.AsyncClient
    fleet: Fleet
    server: AdminServer
    rejected: list[tuple[str, str]] = field(default_factory=list)


@asynccontextmanager
async def served(
    fleet: Fleet | None = None, token: str | None = None, hosts: Hosts | None = None
) -> AsyncIterator[Served]:
    fleet = fleet or Fleet()
    rejected: list[tuple[str, str]] = []
    app = create_app(
        fleet, token, hosts or hosts_for("127.0.0.1"), lambda reason, peer: rejected.append((reason, peer))
    )
    server = AdminServer(app, token=token)
    await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10, trust_env=False) as client:
            yield Served(client, fleet, server, rejected)
    finally:
        await server.stop()


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a test coroutine on the loop the gateway uses."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_bounded(test(*args, **kwargs)))

    return run


async def _bounded(coroutine: Awaitable[None]) -> None:
    async with asyncio.timeout(30):
        await coroutine
