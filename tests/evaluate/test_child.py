"""The process that judges: what becomes of evaluations that hang, crash or come to an end, and of the process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from time import monotonic

import pytest

from tests.gateway.harness import in_loop, until
from unjam.evaluate import Record
from unjam.evaluate.child import Child, Spec
from unjam.evaluate.frames import Said

FUNCTIONS = """
import os, sys, time

def good(record):
    print("what it prints is nobody's answer")
    return len(record.text) > 0

async def waits(record):
    return record.status == 200, "status"

def hangs(record):
    while True:
        pass

def crashes(record):
    os._exit(3)

def leaves(record):
    sys.exit("enough")

def returns_nothing(record):
    pass

def score(record):
    with open("/proc/self/oom_score_adj") as score:
        return True, score.read().strip()

def environment(record):
    return True, " ".join(each for each in ("PATH", "LC_ALL", "PYTHONHASHSEED", "HOOK_SECRET") if each in os.environ)
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "them.py").write_text(FUNCTIONS, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    (tmp_path / "deadly.py").write_text("import os\nos._exit(4)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(answer: bytes = b"hello", encoding: str = "") -> Record:
    return Record(
        service="s",
        version="v",
        request=b"",
        answer=answer,
        status=200,
        content_type="text/plain",
        seconds=1.0,
        encoding=encoding,
    )


def function(name: str) -> Spec:
    return Spec(name, "python", {"function": name})


@in_loop
async def test_whatever_one_does_the_next_is_judged() -> None:
    child = Child()
    good = function("them:good")
    for name, wanted in (
        ("them:good", Said("good")),
        ("them:waits", Said("good", "status")),
        ("them:hangs", Said("timeout", "no verdict in 0.3 s")),
        ("them:crashes", Said("error", "its process ended: exit status 3")),
        ("them:leaves", Said("error", "SystemExit: enough")),
        (
            "them:returns_nothing",
            Said("error", "TypeError: it returned NoneType, not a bool, (bool, reason) or Verdict"),
        ),
        ("them:missing", Said("error", "ValueError: them has no function missing")),
        ("broken:x", Said("error", "ModuleNotFoundError: No module named 'nothing_of_this_name'")),
        ("deadly:x", Said("error", "its process ended: exit status 4")),
    ):
        patience = 0.3 if wanted.result == "timeout" else 20.0
        assert await child.judge(record(), function(name), patience) == wanted
        assert await child.judge(record(), good, 20.0) == Said("good")
    assert child.starts == 4
    await child.close()


@in_loop
async def test_it_sees_of_the_environment_what_it_needs_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "not for evaluators")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    child = Child()
    said = await child.judge(record(), function("them:environment"), 20.0)
    await child.close()
    assert said == Said("good", "PATH LC_ALL PYTHONHASHSEED")


@in_loop
async def test_one_that_cannot_be_loaded_is_left_alone_for_a_while() -> None:
    child = Child()
    deadly = function("deadly:x")
    for _ in range(20):
        assert (await child.judge(record(), deadly, 20.0)).result == "error"
    assert child.starts == 1
    await child.close()


@in_loop
async def test_starts_come_at_growing_intervals() -> None:
    child = Child()
    crashes = function("them:crashes")
    began = monotonic()
    for _ in range(4):
        await child.judge(record(), crashes, 20.0)
    assert child.starts == 4
    assert monotonic() - began > 0.1 + 0.2 + 0.4
    await child.close()


@in_loop
async def test_it_ends_when_the_gateway_is_gone_and_starts_anew_when_it_was_killed() -> None:
    child = Child()
    good = function("them:good")
    await child.judge(record(), good, 20.0)
    process = child._process
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    await until(lambda: process.returncode is not None)
    assert await child.judge(record(), good, 20.0) == Said("good")
    process, line = child._process, child._line
    assert process is not None
    assert line is not None
    line[1].transport.abort()  # as a gateway that died does
    async with asyncio.timeout(20):
        assert await process.wait() == 0
    await child.close()


@in_loop
async def test_after_a_reload_the_code_is_that_of_the_files(functions: Path) -> None:
    child = Child()
    good = function("them:good")
    assert await child.judge(record(), good, 20.0) == Said("good")
    (functions / "them.py").write_text("def good(record): return False, 'of a later day'\n")
    os.utime(functions / "them.py", (1, 1))
    assert await child.judge(record(), good, 20.0) == Said("good")
    child.renew()
    assert await child.judge(record(), good, 20.0) == Said("bad", "of a later day")
    await child.close()


@in_loop
async def test_what_cannot_be_read_is_an_error_of_this_answer_alone() -> None:
    child = Child()
    good = function("them:good")
    said = await child.judge(record(encoding="br"), good, 20.0)
    assert said == Said("error", "content-encoding br is not read")
    assert await child.judge(record(), good, 20.0) == Said("good")
    await child.close()


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="no such score")
@in_loop
async def test_where_memory_runs_out_it_goes_before_the_gateway() -> None:
    child = Child()
    assert await child.judge(record(), function("them:score"), 10.0) == Said("good", "1000")
    await child.close()
