"""Counters of requests in flight: exact over threads and processes, and what a killed process counted is gone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from unjam.reporter.inflight import Local, Shared, shared

#: Counts as it is told on its standard input, and answers each line with the totals.
CHILD = """
import sys
from unjam.reporter.inflight import shared
counter = shared(sys.argv[1])
for line in sys.stdin:
    word, waiting = line.split()
    if word == "begin": counter.begin()
    if word == "end": counter.end()
    print(*counter.totals(int(waiting), sweep=True), flush=True)
"""


class Child:
    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, word: str, waiting: int = 0) -> tuple[int, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word} {waiting}\n")
        self.process.stdin.flush()
        in_flight, total = self.process.stdout.readline().split()
        return int(in_flight), int(total)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_processes_count_together_and_a_killed_ones_count_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "counter"
    one, two = Child(path), Child(path)
    try:
        assert one("begin") == (1, 0)
        assert two("begin", 1) == (2, 1)
        assert two("begin", 1) == (3, 1)
        assert one("look") == (3, 1)
        two.kill()
        assert one("look") == (1, 0)
        three = Child(path)
        try:
            assert three("begin") == (2, 0)  # in the slot that became free
            assert one("end") == (1, 0)
        finally:
            three.kill()
        assert one("look") == (0, 0)
    finally:
        one.kill()
        two.kill()


def test_a_fork_counts_for_itself(tmp_path: Path) -> None:
    """As behind a server that loads the application before it forks its workers."""
    script = f"""
import os
from unjam.reporter.inflight import shared
counter = shared({str(tmp_path / "counter")!r})
counter.begin()
told, tell = os.pipe()
done, finish = os.pipe()
pid = os.fork()
if not pid:
    counter.end()  # the parent's, begun before the fork: not ours to end
    counter.begin()
    counter.begin()
    os.write(tell, b"x")
    os.read(done, 1)
    os._exit(0)
os.read(told, 1)
print(*counter.totals(sweep=True))
os.write(finish, b"x")
os.waitpid(pid, 0)
print(*counter.totals(sweep=True))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["3 0", "1 0"]


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_threads_lose_no_count(kind: str, tmp_path: Path) -> None:
    counter = Local() if kind == "local" else Shared(str(tmp_path / "counter"))

    def work() -> None:
        for _ in range(2000):
            counter.begin()
            counter.begin()
            counter.end()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.totals() == (8000, 0)


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_no_more_wait_than_are_in_flight(kind: str, tmp_path: Path) -> None:
    counter = Local() if kind == "local" else Shared(str(tmp_path / "counter"))
    counter.begin()
    counter.begin()
    assert counter.totals(7) == (2, 2)
    counter.end()
    assert counter.totals(7) == (1, 1)


def test_the_dead_are_looked_for_once_in_a_while(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "counter"
    counter = Shared(str(path), clock=lambda: now)
    child = Child(path)
    child("begin")
    assert counter.totals() == (1, 0)
    child.kill()
    assert counter.totals() == (1, 0)
    now = 1.0
    assert counter.totals() == (0, 0)


def test_one_counter_for_one_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "same").symlink_to(tmp_path / "folder")
    counter = shared(tmp_path / "folder" / "counter")
    assert shared(str(tmp_path / "folder" / ".." / "same" / "counter")) is counter
    assert shared(tmp_path / "folder" / "another") is not counter


def test_a_file_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("keep me")
    with pytest.raises(ValueError, match="not a counter"):
        shared(notes)
    assert notes.read_text() == "keep me"
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(OSError, match="symbolic links"):
        shared(tmp_path / "link")
    assert (tmp_path / "empty").read_bytes() == b""
    with pytest.raises(OSError, match="directory"):
        shared(tmp_path)
    with pytest.raises(FileNotFoundError):
        shared(tmp_path / "nowhere" / "counter")
