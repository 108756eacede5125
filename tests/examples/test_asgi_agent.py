"""The agent that tells its load: what it says while it works, to those beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from unjam.wire.orca import parse, report


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """Polls, because what is awaited happens in another process."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def test_it_says_what_it_works_on_and_what_waits(start: Any) -> None:
    agent = start("asgi_agent.py", "--slots", 1)

    def load() -> dict[str, float]:
        return dict(httpx.get(f"{agent.url}/.well-known/unjam/load").json())

    with ThreadPoolExecutor() as threads:
        burning = [threads.submit(httpx.get, f"{agent.url}/burn?seconds=2", timeout=60) for _ in range(2)]
        until(lambda: (load()["in_flight"], load()["waiting"]) == (2, 1))
        assert sorted(each.result().json()["rounds"] > 0 for each in burning) == [True, True]
    until(lambda: (load()["in_flight"], load()["waiting"]) == (0, 0))


def test_it_says_what_its_work_takes_of_the_machine(start: Any) -> None:
    agent = start("asgi_agent.py")
    with ThreadPoolExecutor() as threads:
        burning = threads.submit(httpx.get, f"{agent.url}/burn?seconds=5", timeout=60)

        def busy() -> dict[str, Any] | None:
            answer = httpx.get(f"{agent.url}/burn?seconds=0")
            said = report(parse(answer.headers["endpoint-load-metrics"].encode()))
            return said if said.get("agent_cpu", 0) * said.get("cores", 0) > 0.1 else None

        said = until(busy)
        assert said["cores"] <= (os.cpu_count() or 1)
        assert 0 < said["agent_memory"] < said["memory"]
        assert said["cpu"] >= said["agent_cpu"] - 0.25
        assert said["in_flight"] == 2
        assert burning.result().status_code == 200


@pytest.mark.parametrize("seconds", ["x", "-1", "1e9", "nan"])
def test_impossible_work_is_refused(start: Any, seconds: str) -> None:
    assert httpx.get(f"{start('asgi_agent.py').url}/burn", params={"seconds": seconds}).status_code == 400
