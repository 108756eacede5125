"""The demo as users run it: `unjam demo`, its processes, its verdict, and nothing left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COMMAND = [sys.executable, "-m", "unjam.cli.main", "demo", "--port", "0", "--admin-port", "0"]


def begin(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    env = os.environ | {"TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        [*COMMAND, *options],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def family(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(demo.pid).children(recursive=True)


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=20)[1]


def test_once_answers_every_request_and_leaves_nothing(tmp_path: Path) -> None:
    demo = begin(tmp_path, "--once", "--seconds", "5")
    try:
        said, _ = demo.communicate(timeout=100)
    finally:
        demo.kill()
    assert demo.returncode == 0, said
    assert re.search(r"^hello +\d+ ", said, re.MULTILINE), said
    assert "FAILED" not in said
    assert list(tmp_path.iterdir()) == []


def test_it_stays_up_for_curl_until_ctrl_c(tmp_path: Path) -> None:
    demo = begin(tmp_path, "--seconds", "2")
    assert demo.stdout is not None
    said = ""
    try:
        while "ctrl-C" not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        paste = said[said.index("\ncurl") : said.index("\nadmin")]
        answers = subprocess.run(["bash", "-e"], input=paste, capture_output=True, text=True, timeout=60).stdout
        for proof in ("Hello, Ada!", "x-unjam-endpoint", '"why":"finished"', "event: report", "[DONE]", "harbour-1"):
            assert proof in answers, answers
        children = family(demo)
        assert len(children) >= 10
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=30)
        assert demo.returncode == 0, rest
        assert left_of(children) == []
        assert list(tmp_path.iterdir()) == []
    finally:
        demo.kill()
        demo.stdout.close()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.skipif(
                sys.platform != "linux", reason="only Linux tells children of their parent's death"
            ),
        ),
    ],
)
def test_stopped_halfway_through_its_start_it_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    demo = begin(tmp_path, "--seconds", "20")
    assert demo.stdout is not None
    try:
        end = time.monotonic() + 60
        while len(family(demo)) < 10:
            assert time.monotonic() < end
            assert demo.poll() is None
            time.sleep(0.1)
        children = family(demo)
        demo.send_signal(number)
        demo.wait(20)
        assert left_of(children) == []
    finally:
        demo.kill()
        demo.stdout.close()
