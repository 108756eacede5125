"""The agent's processes: which they are, and what they take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.reporter.kernel import MIB, Kernel
from unjam.reporter.tree import Agent, Allowance, listener


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def agent(kernel: Kernel, pid: int = 7) -> Agent:
    return Agent.of_pid(pid, str(kernel.proc), cost=lambda: 0.0)


def on_port(kernel: Kernel, port: int = 9000) -> Agent:
    return Agent.of_port(port, str(kernel.proc), cost=lambda: 0.0)


def used(of: Agent, kernel: Kernel) -> float | None:
    taken = of.read(kernel.at)
    assert taken is not None
    return None if taken.cpu is None else round(taken.cpu, 6)


# Which processes


def test_children_belong_to_it_and_strangers_do_not(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(9, parent=7)
    kernel.process(8, parent=9)  # pids wrap around: a child's may be the smaller
    kernel.process(20)
    taken = agent(kernel).read(kernel.at)
    assert taken is not None
    assert taken.pids == {7, 8, 9}
    assert (taken.memory, taken.open_files) == (3 * 6 * MIB, 12)


def test_children_are_found_as_they_come_and_forgotten_as_they_go(kernel: Kernel) -> None:
    kernel.process(7)
    of = agent(kernel)
    seen = []
    for act in (lambda: None, lambda: kernel.process(8, parent=7), lambda: kernel.end(8)):
        act()
        kernel.pass_time(2.0)
        taken = of.read(kernel.at)
        assert taken is not None
        seen.append(set(taken.pids))
    assert seen == [{7}, {7, 8}, {7}]


def test_a_child_that_was_handed_to_another_parent_stays(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(8, parent=7)
    kernel.process(9, parent=8)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.end(8)
    kernel.process(9, parent=1)
    kernel.pass_time(2.0)
    taken = of.read(kernel.at)
    assert taken is not None
    assert taken.pids == {7, 9}


def test_another_process_with_its_pid_is_not_it(kernel: Kernel) -> None:
    kernel.process(7)
    of = agent(kernel)
    assert of.read(kernel.at) is not None
    assert of.pid == 7
    kernel.process(7, start=kernel.at, cpu=50.0)
    kernel.pass_time(2.0)
    assert of.read(kernel.at) is None
    assert of.pid is None
    kernel.pass_time(60.0)
    assert of.read(kernel.at) is None


def test_a_strangers_pid_that_becomes_a_childs_is_noticed(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(8)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.process(8, parent=7, start=kernel.at)
    kernel.pass_time(31.0)
    taken = of.read(kernel.at)
    assert taken is not None
    assert taken.pids == {7, 8}


def test_a_dead_process_that_nobody_waited_for_is_not_an_agent(kernel: Kernel) -> None:
    kernel.process(7)
    of = agent(kernel)
    assert of.read(kernel.at) is not None
    kernel.process(7, state="Z")
    kernel.pass_time(2.0)
    assert of.read(kernel.at) is None


def test_there_must_be_such_a_process(kernel: Kernel) -> None:
    with pytest.raises(ProcessLookupError, match="no process 7"):
        agent(kernel)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_there_must_be_such_a_port(port: int) -> None:
    with pytest.raises(ValueError, match="is not a port"):
        Agent.of_port(port)


def test_what_cannot_be_looked_at_is_unknown(kernel: Kernel) -> None:
    kernel.process(7)
    (kernel.proc / "7/statm").unlink()
    for file in (kernel.proc / "7/fd").iterdir():
        file.unlink()
    (kernel.proc / "7/fd").rmdir()
    taken = agent(kernel).read(kernel.at)
    assert taken is not None
    assert (taken.memory, taken.open_files) == (None, None)


# By port


def test_the_first_process_of_those_that_share_the_socket(kernel: Kernel) -> None:
    for pid, parent in ((9, 1), (7, 9), (8, 9)):
        kernel.process(pid, parent=parent)
        kernel.listen(pid, 9000, 4711, own_row=pid == 9)
    kernel.process(3)
    kernel.listen(3, 9001, 4712)
    of = on_port(kernel)
    taken = of.read(kernel.at)
    assert taken is not None
    assert (of.pid, taken.pids) == (9, {7, 8, 9})


def test_a_service_manager_that_keeps_the_socket_is_not_the_agent(kernel: Kernel) -> None:
    kernel.process(1, parent=0, name="systemd")
    kernel.process(7, parent=1)
    kernel.listen(1, 9000, 4711)
    kernel.listen(7, 9000, 4711, own_row=False)
    assert listener(9000, str(kernel.proc)) == 7


def test_a_container_s_first_process_may_be_the_agent(kernel: Kernel) -> None:
    kernel.process(1, parent=0, name="gunicorn")
    kernel.process(7, parent=1)
    kernel.listen(1, 9000, 4711)
    kernel.listen(7, 9000, 4711, own_row=False)
    assert listener(9000, str(kernel.proc)) == 1


def test_an_agent_that_starts_later_and_again_is_found(kernel: Kernel) -> None:
    of = on_port(kernel)
    assert of.read(kernel.at) is None
    kernel.pass_time(2.0)
    kernel.process(7, start=kernel.at - 1.0, cpu=0.5)
    kernel.listen(7, 9000, 4711)
    assert used(of, kernel) == 0.5
    assert of.pid == 7
    kernel.end(7)
    kernel.pass_time(2.0)
    assert of.read(kernel.at) is None
    assert of.pid is None
    kernel.process(30, start=kernel.at + 1.0, cpu=0.25)
    kernel.listen(30, 9000, 4711, own_row=False)
    kernel.pass_time(2.0)
    assert used(of, kernel) == 0.25
    assert of.pid == 30


def test_a_successor_that_took_over_the_port_is_the_agent(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.listen(7, 9000, 4711)
    of = on_port(kernel)
    of.read(kernel.at)
    (kernel.proc / "7/fd/4711").unlink()  # it still lives, but listens no more
    kernel.process(30, start=kernel.at)
    kernel.listen(30, 9000, 4711, own_row=False)
    kernel.pass_time(10.0)
    taken = of.read(kernel.at)
    assert taken is not None
    assert taken.pids == {30}


# CPU time


def test_cpu_time_is_what_was_added_since_the_last_read(kernel: Kernel) -> None:
    kernel.process(7, cpu=100.0)
    kernel.process(8, parent=7, cpu=10.0)
    of = agent(kernel)
    assert used(of, kernel) is None
    kernel.pass_time(2.0)
    kernel.process(7, cpu=100.5)
    kernel.process(8, parent=7, cpu=10.25)
    assert used(of, kernel) == 0.75


def test_children_that_came_and_went_are_counted_once(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(8, parent=7, cpu=5.0)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.pass_time(2.0)
    kernel.end(8)  # used 0.5 more before it ended; another, never seen, used 0.25
    kernel.process(7, reaped=5.75)
    assert used(of, kernel) == 0.75


def test_grandchildren_that_ended_with_their_parent_are_counted_once(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(8, parent=7, cpu=2.0)
    kernel.process(9, parent=8, cpu=4.0)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.pass_time(2.0)
    kernel.end(8)
    kernel.end(9)
    kernel.process(7, reaped=6.5)
    assert used(of, kernel) == 0.5


def test_a_child_nobody_waited_for_takes_nothing_back(kernel: Kernel) -> None:
    kernel.process(7, cpu=1.0)
    kernel.process(8, parent=7, cpu=5.0)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.pass_time(2.0)
    kernel.end(8)
    kernel.process(7, cpu=1.5)
    assert used(of, kernel) == 0.5


def test_a_child_seen_late_counts_for_its_life_within_the_interval(kernel: Kernel) -> None:
    kernel.process(7)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.process(8, parent=7, start=kernel.at - 6.0, cpu=4.0)
    kernel.pass_time(2.0)
    assert used(of, kernel) == 1.0  # 2 of its 8 seconds


def test_counters_that_jump_backwards_count_for_nothing(kernel: Kernel) -> None:
    kernel.process(7, cpu=100.0, reaped=50.0)
    of = agent(kernel)
    of.read(kernel.at)
    kernel.pass_time(2.0)
    kernel.process(7, cpu=1.0, reaped=0.0)
    assert used(of, kernel) == 0.0


# Cost


def test_looking_at_all_processes_is_done_as_seldom_as_it_is_dear() -> None:
    allowance = Allowance(0.002, least=1.0)
    assert allowance.due(0.0)
    allowance.spent(0.0, 0.02)
    assert not allowance.due(9.9)
    assert allowance.due(10.0)
    allowance.spent(10.0, 0.0)
    assert not allowance.due(10.9)
    assert allowance.due(11.0)


def test_children_are_looked_for_less_often_where_it_is_dear(kernel: Kernel) -> None:
    spent = iter(range(1000))
    kernel.process(7)
    of = Agent.of_pid(7, str(kernel.proc), cost=lambda: next(spent) * 0.01)  # each look costs 10 ms
    seen = []
    for pid in range(100, 120):
        kernel.process(pid, parent=7, start=kernel.at)
        kernel.pass_time(1.0)
        taken = of.read(kernel.at)
        assert taken is not None
        seen.append(len(taken.pids))
    assert len(set(seen)) <= 5, seen
    assert seen[-1] > 10, seen


# Real ones


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_real_tree_that_listens() -> None:
    code = (
        "import socket, os, sys\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "pid = os.fork()\n"
        "if pid: print(s.getsockname()[1], pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with child(code) as server:
        assert server.stdout is not None
        port, worker = (int(word) for word in server.stdout.readline().split())
        of = Agent.of_port(port)
        taken = of.read(time.monotonic())
        assert taken is not None
        assert of.pid == server.pid
        assert taken.pids == {server.pid, worker}
        assert taken.open_files is not None
        assert taken.open_files >= 8  # the standard three and the socket, of both
        assert taken.memory is not None
        assert 1 * MIB < taken.memory < 200 * MIB
    # The worker, whose parent was killed, is the agent's until it ends, too.
    deadline = time.monotonic() + 10.0
    while of.read(time.monotonic()) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_descriptors_are_counted_rightly() -> None:
    of = Agent.of_pid(os.getpid())
    taken = of.read(time.monotonic())
    assert taken is not None
    listed = len(os.listdir(f"/proc/{os.getpid()}/fd"))
    children = len(taken.pids) - 1
    assert taken.open_files is not None
    assert abs(taken.open_files - listed) <= 3 + 64 * children


def test_processes_that_come_and_go_all_the_time_do_no_harm() -> None:
    of = Agent.of_pid(os.getpid(), cost=lambda: 0.0)
    stop = threading.Event()

    def churn() -> None:
        while not stop.wait(0.005):
            subprocess.run(["/bin/true"], check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for step in range(60):
            taken = of.read(time.monotonic())
            assert taken is not None, step
            assert os.getpid() in taken.pids
    finally:
        stop.set()
        thread.join()


def test_a_connection_is_no_listener(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.listen(7, 9000, 4711)
    table = (kernel.proc / "net/tcp").read_text()
    kernel.put("proc/net/tcp", table.replace(" 0A ", " 01 "))
    assert listener(9000, str(kernel.proc)) is None
    kernel.put("proc/net/tcp", "")
    kernel.put("proc/net/tcp6", table.replace("0100007F", "0" * 32))
    assert listener(9000, str(kernel.proc)) == 7


def test_a_port_on_which_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, so that no other test gets it; but not listening
        assert listener(held.getsockname()[1]) is None
