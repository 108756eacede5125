"""Each test of this folder runs once for each kind of store in `stores/`, on one loop that begins and ends with it.

A kind is a module there with `factory(place)`: an async context manager that yields a `Harness`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from pathlib import Path

import pytest

from .harness import CAPABILITIES, Factory

#: Seconds any test may take.
PATIENCE = 60.0

STORES: dict[str, Factory] = {
    file.stem: importlib.import_module(f".stores.{file.stem}", __package__).factory
    for file in sorted((Path(__file__).parent / "stores").glob("[a-z]*.py"))
}


@pytest.fixture(params=STORES)
def factory(request: pytest.FixtureRequest) -> Factory:
    return STORES[request.param]


@pytest.fixture
def h(factory: Factory, tmp_path: Path) -> None:
    """The harness; `pytest_pyfunc_call` enters it on the test's own loop."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    factory, place = pyfuncitem.funcargs["factory"], pyfuncitem.funcargs["tmp_path"]
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    needed = {mark.args[0] for mark in pyfuncitem.iter_markers("needs")}

    async def run() -> None:
        async with asyncio.timeout(PATIENCE), factory(place) as harness:
            assert harness.capabilities <= CAPABILITIES
            if lacking := needed - harness.capabilities:
                pytest.skip(f"has no {', '.join(lacking)}")
            arguments["h"] = harness
            await test(**arguments)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "the closed store has left tasks behind"

    asyncio.run(run())
    return True


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(capability): left out for stores without it")
