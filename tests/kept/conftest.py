"""Each test that takes `h` runs once for each kind of place in `KINDS`, on one loop that begins and ends with it."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.store_contract.stores.redis import cluster, server
from unjam.kept import make
from unjam.kept.base import Change, Kept

PATIENCE = 30.0


@dataclass
class Harness:
    """A place under test. `another`: what a second gateway of the same state has, None where there is no such thing."""

    kept: Kept
    url: str

    def another(self) -> Kept:
        return make(self.url)

    async def reopen(self) -> None:
        await self.kept.close()
        self.kept = self.another()
        await self.kept.open()


def change(key: str, after: object, **more: object) -> Change:
    given: dict[str, object] = {"who": "loopback", "where": "g1", "at": 1_700_000_000.0, **more}
    return Change(key=key, after=after, **given)  # type: ignore[arg-type]


def _url(kind: str, place: Path) -> str:
    prefix = f"{uuid.uuid4().hex[:8]}:"
    match kind:
        case "memory":
            return "memory"
        case "sqlite":
            return f"sqlite:{place / 'unjam.db'}"
        case "redis":
            return server().url(prefix=prefix)
        case _:
            return cluster().url(prefix=prefix)


@asynccontextmanager
async def _opened(kind: str, place: Path) -> AsyncIterator[Harness]:
    url = _url(kind, place)
    harness = Harness(make(url), url)
    await harness.kept.open()
    try:
        yield harness
    finally:
        await harness.kept.close()


KINDS = ("memory", "sqlite", "redis", "redis_cluster")
Factory = Callable[[Path], AbstractAsyncContextManager[Harness]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def h(kind: str, tmp_path: Path) -> None:
    """The harness; `pytest_pyfunc_call` enters it on the test's own loop."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}

    async def run() -> None:
        async with asyncio.timeout(PATIENCE):
            if "h" not in arguments:
                await test(**arguments)
            else:
                kind = pyfuncitem.funcargs["kind"]
                if kind == "memory" and pyfuncitem.get_closest_marker("lasting"):
                    pytest.skip("memory is gone with its process")
                async with _opened(kind, pyfuncitem.funcargs["tmp_path"]) as harness:
                    arguments["h"] = harness
                    await test(**arguments)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "what was closed has left tasks behind"

    asyncio.run(run())
    return True


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lasting: left out for what is gone with its process")
