"""Which process is the agent, and since when it is there: with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from benchmarks.common.procs import free_port

from unjam.reporter.meter import HostMeter

#: Waits for a line, then listens on the port, itself or in a child.
LATE = """
import socket, subprocess, sys, time
sys.stdin.readline()
code = "import socket, time; s = socket.create_server(('127.0.0.1', int(%r))); time.sleep(60)" % sys.argv[1]
if sys.argv[2] == "child":
    subprocess.run([sys.executable, "-c", code])
else:
    exec(code)
"""


@pytest.fixture(params=["itself", "child"])
def late(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    command = [sys.executable, "-c", LATE, str(port), request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as child:
        try:
            yield child, port
        finally:
            os.killpg(child.pid, signal.SIGKILL)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_child_is_there_when_it_listens(late: tuple[subprocess.Popen[bytes], int]) -> None:
    child, port = late
    meter = HostMeter(child.pid, None, port)
    for _ in range(3):
        assert meter.load()["cores"] > 0
        assert meter.pid() is None
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()
    until(lambda: "cores" in meter.load() and meter.pid() == child.pid)
    until(lambda: meter.load()["agent_memory"] > 1 << 20)  # it is not measured each time, and first perhaps before exec


def test_a_child_without_a_port_is_there_at_once(late: tuple[subprocess.Popen[bytes], int]) -> None:
    child, _ = late
    meter = HostMeter(child.pid, None, None)
    meter.load()
    assert meter.pid() == child.pid
    os.killpg(child.pid, signal.SIGKILL)
    until(lambda: "cores" in meter.load() and meter.pid() is None)


def test_who_listens_is_the_agent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        meter = HostMeter(None, None, listener.getsockname()[1])
        meter.load()
        assert meter.pid() == os.getpid()


def test_nobody_is_no_agent() -> None:
    with pytest.raises(ProcessLookupError):
        HostMeter(None, 2**22 + 1, None)
    with pytest.raises(ValueError, match="which process"):
        HostMeter(None, None, None)
