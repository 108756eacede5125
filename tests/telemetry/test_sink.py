"""Log lines leave without blocking, without tearing, and what is lost is counted and said."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unjam.telemetry.sink import Sink


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            pass


def _drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    while True:
        try:
            part = os.read(fd, 65536)
        except BlockingIOError:
            return data
        if not part:
            return data
        data += part


def test_lines_are_appended_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"old\n")
    sink = Sink(str(path))
    sink.write(b"one\n")
    sink.write(b"two\nthree\n")
    sink.close()
    assert path.read_bytes() == b"old\none\ntwo\nthree\n"


def test_a_new_file_is_not_world_readable(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "new.log"))
    sink.close()
    assert (tmp_path / "new.log").stat().st_mode & 0o007 == 0


def test_a_path_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Sink(str(tmp_path / "missing" / "access.log"))


def test_a_named_pipe_without_reader_does_not_hang_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        Sink(str(tmp_path / "fifo"))


def test_reopen_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    sink = Sink(str(path))
    sink.write(b"before\n")
    path.rename(tmp_path / "access.log.1")
    assert sink.reopen() is None
    sink.write(b"after\n")
    sink.close()
    assert (tmp_path / "access.log.1").read_bytes() == b"before\n"
    assert path.read_bytes() == b"after\n"


def test_a_reopen_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    sink = Sink(str(folder / "access.log"))
    moved = tmp_path / "moved"
    folder.rename(moved)
    problem = sink.reopen()
    assert problem is not None
    assert "still writing to the old file" in problem
    sink.write(b"line\n")
    sink.close()
    assert (moved / "access.log").read_bytes() == b"line\n"


def test_a_full_disk_drops_whole_lines_counts_them_and_says_so_once() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    told = Told()
    sink = Sink("/dev/full", limit=100, on_trouble=told)
    for n in range(50):
        sink.write(b"%09d\n" % n)
    assert sink.buffered == 100
    assert sink.dropped == 40
    assert told.events == [("stalled", {"why": "No space left on device"})]
    sink.close()
    assert sink.dropped == 50


def test_a_closed_pipe_drops_counts_and_never_raises(pipe: tuple[int, int]) -> None:
    read, write = pipe
    told = Told()
    sink = Sink(None, fd=write, on_trouble=told)
    os.close(read)
    for _ in range(3):
        sink.write(b"line\nline\n")
    assert sink.dropped == 6
    assert sink.buffered == 0
    assert told.names == ["stalled"]


def test_a_closed_descriptor_never_raises(pipe: tuple[int, int]) -> None:
    _, write = pipe
    sink = Sink(None, fd=write)
    os.close(write)
    sink.write(b"line\n")
    assert sink.dropped == 1


def test_a_stalled_reader_neither_blocks_nor_tears_lines(pipe: tuple[int, int]) -> None:
    read, write = pipe
    told = Told()
    sink = Sink(None, fd=write, limit=200_000, on_trouble=told)
    line = b"x" * 99 + b"\n"
    start = time.monotonic()
    written = 0
    for _ in range(200):
        sink.write(line * 50)
        written += 50
    assert time.monotonic() - start < 5  # it would be forever
    assert sink.dropped > 0
    # The descriptor is shared with whoever started us: it must still be blocking for them.
    assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK
    got = _drain(read)
    while sink.buffered:
        sink.flush()
        got += _drain(read)
    got += _drain(read)
    lines = got.split(b"\n")
    assert lines.pop() == b""
    assert set(lines) == {line[:-1]}
    assert len(lines) + sink.dropped == written
    assert told.names == ["stalled", "resumed"]
    assert told.events[1][1] == {"dropped": sink.dropped}


def test_trouble_is_said_anew_after_it_was_over(pipe: tuple[int, int]) -> None:
    read, write = pipe
    told = Told()
    sink = Sink(None, fd=write, limit=100_000, on_trouble=told)
    for _ in range(2):
        for _ in range(300):
            sink.write(b"y" * 999 + b"\n")
        while sink.buffered:
            _drain(read)
            sink.flush()
        _drain(read)
    assert told.names == ["stalled", "resumed", "stalled", "resumed"]


def test_a_burst_larger_than_the_buffer_passes_when_the_file_takes_it(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "log"), limit=25)
    assert sink.write(b"123456789\n" * 40) == 0
    sink.close()
    assert (tmp_path / "log").read_bytes() == b"123456789\n" * 40


def test_the_half_written_line_is_never_the_one_dropped(pipe: tuple[int, int]) -> None:
    read, write = pipe
    sink = Sink(None, fd=write, limit=10)
    sink.write(b"a" * 70_000 + b"\n" + b"b" * 100 + b"\n")
    assert sink.dropped == 1
    got = _drain(read)
    while sink.buffered:
        sink.flush()
        got += _drain(read)
    got += _drain(read)
    assert got == b"a" * 70_000 + b"\n"
