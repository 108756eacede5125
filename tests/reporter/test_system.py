"""Both ways of asking the system agree about this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.reporter.kernel import MIB
from unjam.reporter.elsewhere import Elsewhere
from unjam.reporter.system import Linux, System, system
from unjam.reporter.tree import Agent

NOBODY = 1 << 22  # the largest pid there can be, plus one


@pytest.fixture(params=[Linux, Elsewhere])
def both(request: pytest.FixtureRequest) -> System:
    made: System = request.param()
    return made


def test_this_process(both: System) -> None:
    me = both.process(os.getpid())
    assert me is not None
    assert (me.parent, me.dead) == (os.getppid(), False)
    assert 0 <= both.now() - me.start < 3600
    assert abs(me.own - time.process_time()) < 1.0
    assert me.space > 10 * MIB
    assert os.getpid() in both.pids()
    memory = both.memory(os.getpid())
    assert memory is not None
    assert memory > MIB


def test_descriptors(both: System) -> None:
    before = both.open_files(os.getpid())
    assert before is not None
    assert before >= 3
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert both.open_files(os.getpid()) == before + 5
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_nobody(both: System) -> None:
    assert both.process(NOBODY) is None
    assert both.memory(NOBODY) is None
    assert both.open_files(NOBODY) is None


def test_the_machine(both: System) -> None:
    times = both.cpus().times
    assert len(times) == os.cpu_count()
    assert all(0 <= idle <= whole for idle, whole in times.values())
    total, available = both.machine_memory()
    assert total is not None
    assert available is not None
    assert 0 < available <= total


def test_who_listens(both: System) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert both.listener(port) == os.getpid()
        assert both.listens(os.getpid(), port)
        assert not both.listens(os.getppid(), port)
    assert both.listener(port) is None
    assert not both.listens(os.getpid(), port)
    assert not both.listens(NOBODY, port)


def test_who_listens_on_version_6(both: System) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        return  # a machine without it has nobody to find there
    with server:
        assert both.listener(server.getsockname()[1]) == os.getpid()


def test_a_tree(both: System) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        taken = Agent(os.getpid, both).read(time.monotonic())
        assert taken is not None
        assert {os.getpid(), child.pid} <= taken.pids
        child.communicate(b"\n")


def test_a_zombie_is_dead(both: System) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        found = both.process(child.pid)
        assert found is None or found.dead
    finally:
        child.wait()


def test_linux_is_asked_directly() -> None:
    assert isinstance(system(), Linux)
    assert isinstance(system("/host/proc"), Linux)
