"""Workers as processes: kill -9 and another goes on, SIGTERM hands back, a child that is killed, the command line."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from typer.main import get_command

from unjam.cli.main import app
from unjam.runs.store.memory import MemoryStore
from unjam.worker import PlainRun
from unjam.worker.__main__ import OPTIONS
from unjam.worker.link import Job
from unjam.worker.processes import Processes
from unjam.worker.session import Session, Unbegun
from unjam.worker.store_link import StoreLink

from ..gateway.processes import Process, process
from .api import api, until
from .made import create, ended, in_loop, log_of, own_of, reaches, result_of

#: Ten pages: one event and one checkpoint each. Waits in the middle until the file `go` is there.
PAGES = """
import asyncio, os, time
from unjam.worker import Worker

worker = Worker("http://127.0.0.1:1", service="auditor", grace=10)

@worker.run
async def pages(run):
    for page in range(run.checkpoint or 0, 10):
        while page == 5 and not os.path.exists("go"):
            await asyncio.sleep(0.01)
        await run.emit("page", page)
        await run.save(page + 1)
    return [run.attempt, os.getpid()]
"""

PLAIN = """
import os, time
from unjam.worker import Worker

worker = Worker("http://127.0.0.1:1", service="auditor", processes=PROCESSES, grace=10)

@worker.run
def pages(run):
    for page in range(run.checkpoint or 0, 10):
        run.emit("page", [page, os.getpid()])
        run.save(page + 1)
        while page == 4 and not os.path.exists("go"):
            if run.stopping:
                run.save(page + 1)
            time.sleep(0.01)
    return [run.attempt, os.getpid()]
"""


@asynccontextmanager
async def worker(folder: Path, url: str, *options: str) -> AsyncIterator[Process]:
    async with process("-m", "unjam.worker", "pages:worker", "--target", url, *options, cwd=folder) as running:
        yield running


@in_loop
async def test_a_worker_is_killed_half_way_and_another_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "pages.py").write_text(PAGES)
    store = MemoryStore()
    async with api(store, lease=0.6) as server:
        run = await create(store)
        async with worker(tmp_path, server.url, "--name", "first") as first:
            while len(await own_of(store, run)) < 5:
                await asyncio.sleep(0.01)
            first.send(signal.SIGKILL)
            assert await first.exit_code() == -signal.SIGKILL
        assert (await store.get(run)).status == "running"  # until its lease ends
        (tmp_path / "go").touch()
        async with worker(tmp_path, server.url, "--name", "second") as second:
            while not await store.sweep():
                await asyncio.sleep(0.02)
            found = await ended(store, run)
            await second.says(rf"{run} auditor attempt 2: completed after")
        assert (found.status, found.attempt, found.fence, found.worker) == ("completed", 2, 2, "second")
        # The checkpoint of the fifth page may not have come in time: then that page is there twice, and said to be.
        pages = [data for _, data in await own_of(store, run)]
        (again,) = [data for kind, data in await log_of(store, run) if kind == "run.attempt" and data["n"] == 2]
        assert again["reason"] == "lost"
        shown = 2 + 5 - again["from_seq"]
        assert pages == [*range(5), *range(5 - shown, 10)]


@pytest.mark.parametrize("mode", ["coroutine", "thread", "process"])
@in_loop
async def test_sigterm_hands_back_and_ends_well(tmp_path: Path, mode: str) -> None:
    code = PAGES.replace("while page == 5", "while page == 5 and not run.stopping")
    if mode != "coroutine":
        code = PLAIN.replace("PROCESSES", str(mode == "process"))
    (tmp_path / "pages.py").write_text(code)
    store = MemoryStore()
    async with api(store) as server:
        run = await create(store)
        async with worker(tmp_path, server.url) as first:
            while len(await own_of(store, run)) < 5:
                await asyncio.sleep(0.01)
            children = psutil.Process(first.child.pid).children(recursive=True)
            assert bool(children) == (mode == "process")
            first.send(signal.SIGTERM)
            assert await first.exit_code() == 0
            assert re.search(rf"{run} auditor attempt 1: handed back after \d", first.said)
            assert psutil.wait_procs(children, timeout=20)[1] == []
        found = await store.get(run)
        assert (found.status, found.attempt) == ("queued", 0)
        (tmp_path / "go").touch()
        async with worker(tmp_path, server.url):
            assert (await ended(store, run)).status == "completed"
        pages = [data if isinstance(data, int) else data[0] for _, data in await own_of(store, run)]
        assert pages == list(range(10))


@in_loop
async def test_a_child_that_is_killed_costs_an_attempt_and_the_worker_nothing(tmp_path: Path) -> None:
    (tmp_path / "pages.py").write_text(PLAIN.replace("PROCESSES", "True"))
    store = MemoryStore()
    async with api(store, lease=0.5) as server:
        run = await create(store)
        async with worker(tmp_path, server.url) as running:
            while len(events := await own_of(store, run)) < 5:
                await asyncio.sleep(0.01)
            os.kill(events[0][1][1], signal.SIGKILL)  # the pid that the function told
            await running.says("lost: its process was ended by signal 9")
            (tmp_path / "go").touch()
            while not await store.sweep():
                await asyncio.sleep(0.02)
            assert (await ended(store, run)).status == "completed"
        attempt, pid = await result_of(store, run)
        assert attempt == 2
        assert pid != events[0][1][1]


FORKS = """
import os, signal, time
from unjam.worker import Worker
from unjam.worker.processes import Processes

Processes.__init__.__defaults__ = (0.2,)
worker = Worker("http://127.0.0.1:1", service="auditor", processes=True)

@worker.run
def pages(run):
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(1)
    run.emit("started", child)
    if run.input == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("how", ["killed", "cancelled", "worker"])
@in_loop
async def test_what_a_function_has_started_ends_with_its_process(tmp_path: Path, how: str) -> None:
    """It holds the pipe to the worker open, too."""
    (tmp_path / "pages.py").write_text(FORKS)
    store = MemoryStore()
    async with api(store, lease=0.6) as server:
        run = await create(store, how, retry="restart", max_attempts=1)
        async with worker(tmp_path, server.url) as running:
            while not (events := await own_of(store, run)):
                await asyncio.sleep(0.01)
            ((_, started),) = events
            if how == "killed":
                await running.says("lost: its process was ended by signal 9")
                while not await store.sweep():
                    await asyncio.sleep(0.02)
                assert (await store.get(run)).status == "failed"
            elif how == "cancelled":
                await store.cancel(run)
                assert (await ended(store, run)).status == "cancelled"
            else:
                running.send(signal.SIGKILL)
        await until(lambda: over(started))


def over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@in_loop
async def test_children_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "pages.py").write_text(PLAIN.replace("PROCESSES", "True"))
    store = MemoryStore()
    async with api(store) as server:
        run = await create(store)
        async with worker(tmp_path, server.url) as running:
            await reaches(store, run, "running")
            children = psutil.Process(running.child.pid).children(recursive=True)
            assert children
            running.send(signal.SIGKILL)
            await running.exit_code()
        assert (await asyncio.to_thread(psutil.wait_procs, children, 20))[1] == []


HOLDS_ON = """
import asyncio, time
import unjam.worker.session, unjam.worker.worker
from unjam.worker import Worker

unjam.worker.session.LINGER = unjam.worker.worker.LAST = 0.2
worker = Worker("http://127.0.0.1:1", service="auditor", grace=0.1)

@worker.run
async def pages(run):
    await run.emit("page", 1)
    if run.input == "thread":
        await asyncio.to_thread(time.sleep, 3600)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""


@pytest.mark.parametrize("how", ["thread", "task"])
@in_loop
async def test_a_function_that_does_not_stop_does_not_hold_the_end_of_the_process(tmp_path: Path, how: str) -> None:
    (tmp_path / "pages.py").write_text(HOLDS_ON)
    store = MemoryStore()
    async with api(store) as server:
        run = await create(store, how, retry="restart")
        async with worker(tmp_path, server.url) as first:
            while not await own_of(store, run):
                await asyncio.sleep(0.01)
            first.send(signal.SIGTERM)
            assert await first.exit_code() == 0
            assert f"{run} auditor attempt 1: handed back after" in first.said
            assert "is ended with the process" in first.said
        found = await store.get(run)
        assert (found.status, found.attempt) == ("queued", 0)


BREAKS = """
import os
from unjam.worker import Worker

worker = Worker("http://127.0.0.1:1", service="auditor", processes=True)

@worker.run
def pages(run):
    if run.input == "crash":
        os._exit(3)
    return run.attempt
"""


@in_loop
async def test_a_worker_that_cannot_begin_a_run_hands_it_back_and_lets_others_have_it(tmp_path: Path) -> None:
    """A module that is changed under a worker: of new processes none finds the function."""
    (tmp_path / "pages.py").write_text(BREAKS)
    store = MemoryStore()
    async with api(store) as server, worker(tmp_path, server.url) as first:
        await first.says("works for auditor")
        (tmp_path / "pages.py").write_text("import none_such")
        await create(store, "crash")
        await first.says("lost: its process ended: 3;")
        run = await create(store)
        await first.says(rf"{run} auditor attempt 1: not begun \(its process ended: 1, .*: handed back")
        (tmp_path / "pages.py").write_text(BREAKS)
        assert (await ended(store, run)).status == "completed"
        assert await result_of(store, run) == 1  # no attempt was charged before


def nothing(run: PlainRun) -> None:
    pass


@pytest.mark.parametrize("had", range(4))  # one to start the process, and two with which it can be listened to
@in_loop
async def test_a_run_for_which_there_are_no_threads_is_not_begun(monkeypatch: pytest.MonkeyPatch, had: int) -> None:
    job = Job(run="r", service="auditor", lane="fast", attempt=1, fence=1, input=b"null", checkpoint=None, lease=30.0)
    pool = Processes(nothing)
    session = Session(StoreLink(MemoryStore(), ["auditor"], "w"), job)
    start = threading.Thread.start
    left = had

    def starts(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", starts)
        assert await pool.call(session) == Unbegun("no process can be started: can't start new thread")
    await until(lambda: not multiprocessing.active_children())


@in_loop
async def test_a_second_signal_hands_back_at_once(tmp_path: Path) -> None:
    (tmp_path / "pages.py").write_text(PAGES.replace("grace=10", "grace=1000"))
    store = MemoryStore()
    async with api(store) as server:
        run = await create(store)
        async with worker(tmp_path, server.url) as running:
            while len(await own_of(store, run)) < 5:
                await asyncio.sleep(0.01)
            running.send(signal.SIGTERM)
            await running.says("leaving: 1 runs go on for 1000 s")
            running.send(signal.SIGTERM)
            assert await running.exit_code() == 0
        assert (await store.get(run)).status == "queued"


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing_like_it:worker"], "there is no module 'nothing_like_it'"),
        (["pages.py:worker"], "here or among what is installed: say pages, as import does"),
        (["../jobs/pages"], "'../jobs/pages' is a path: go to its folder and say the module"),
        (["json:nothing"], "json has no nothing"),
        (["json:dumps"], "is no unjam.worker.Worker"),
        ([":worker"], "say module:object"),
        (["pages", "--slots", "none"], "--slots must be a whole number"),
        (["pages", "--grace", "-1"], "--grace must be a number of seconds"),
        (["pages", "--name", "of two words"], "the name 'of two words' won't do"),
        (["pages", "--what"], "unrecognized arguments: --what"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "pages.py").write_text(PAGES)
    command = [sys.executable, "-m", "unjam.cli.main", "worker", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "pages.py").write_text(PAGES)
    command = [sys.executable, "-m", "unjam.worker", "pages", "--target", "sqlite:runs.db"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "must begin with http://" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_help_says_what_the_worker_takes() -> None:
    (command,) = [each for name, each in get_command(app).commands.items() if name == "worker"]  # type: ignore[attr-defined]
    shown = {each.name: (each.metavar, each.help) for each in command.params if each.param_type_name == "option"}
    assert shown == {name: (metavar, words) for name, metavar, words in OPTIONS}


@in_loop
async def test_the_command_becomes_the_worker(tmp_path: Path) -> None:
    """Nothing of the command line stays in its memory, and its process is the worker's."""
    (tmp_path / "pages.py").write_text(PAGES)
    async with process(
        "-m", "unjam.cli.main", "worker", "pages", "--target", "http://127.0.0.1:1", cwd=tmp_path
    ) as running:
        await running.says("works for auditor with 1 slot")
        await until(lambda: "unjam.worker" in psutil.Process(running.child.pid).cmdline())
        running.send(signal.SIGTERM)
        assert await running.exit_code() == 0
