"""Example agents as a stranger starts them: real processes, found by the URL they print."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Agent:
    url: str
    process: subprocess.Popen[str]

    def health(self) -> dict[str, int]:
        return httpx.get(f"{self.url}/health").json()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


Start = Callable[..., Agent]


@contextlib.contextmanager
def starting() -> Iterator[Start]:
    agents: list[Agent] = []

    def begin(script: str, *args: object) -> Agent:
        command = [sys.executable, str(EXAMPLES / script), *map(str, args)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        agent = Agent(process.stdout.readline().strip(), process)
        agents.append(agent)
        assert agent.url.startswith("http://127.0.0.1:"), agent.url
        return agent

    try:
        yield begin
    finally:
        for agent in agents:
            agent.process.kill()
            agent.process.wait()
            assert agent.process.stdout is not None
            agent.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """start("hello.py", "--slots", 2): the agent, serving; ended with the test."""
    with starting() as begin:
        yield begin


@pytest.fixture(scope="module")
def start_for_all() -> Iterator[Start]:
    """The same, ended with the module's last test."""
    with starting() as begin:
        yield begin
