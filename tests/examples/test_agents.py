"""Every example agent, end to end, with clients that users have: curl, httpx and the openai SDK."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SSE = {"accept": "text/event-stream"}


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Polls, because what is awaited happens in another process."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def parse(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """(event, data) of a stream of Server-Sent Events."""
    event = "message"
    for line in lines:
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))
            event = "message"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A ledger of 20 pages, made by the command that the docs name, and what was planted in it."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.pdf"
    command = [sys.executable, str(EXAMPLES / "make_pdf.py"), str(path), "--pages", "20", "--seed", "3"]
    subprocess.run(command, check=True, capture_output=True)
    return path, json.loads(path.with_suffix(".planted.json").read_text())


# ------------------------------------------------------------------------------------------------ what all have alike


def test_hello_answers_curl(start: Any) -> None:
    agent = start("hello.py")
    said = subprocess.run(["curl", "-sf", f"{agent.url}/hello?name=Ada"], capture_output=True, check=True)
    assert json.loads(said.stdout) == {"message": "Hello, Ada!", "from": agent.process.pid}


def test_health_and_metrics_tell_slots_and_jobs_done(start: Any) -> None:
    agent = start("hello.py", "--slots", 3)
    httpx.get(f"{agent.url}/hello")
    assert agent.health() | {"pid": 0} == {"status": "ok", "slots": 3, "running": 0, "waiting": 0, "pid": 0}
    metrics = httpx.get(f"{agent.url}/metrics").text.splitlines()
    assert "agent_slots 3" in metrics
    assert "agent_served_total 1" in metrics


def test_work_beyond_the_slots_waits_in_the_agent_and_leaves_with_its_client(start: Any, ledger: Any) -> None:
    agent = start("office.py", "--slots", 1, "--document", ledger[0], "--page-pace", 1)
    with httpx.stream("GET", f"{agent.url}/audit", headers=SSE) as audit:
        until(lambda: agent.health()["running"] == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{agent.url}/hello", timeout=httpx.Timeout(20, read=0.3))
        until(lambda: agent.health()["waiting"] == 0)  # the hello has left the queue
        assert audit.status_code == 200
        assert agent.health()["running"] == 1
    assert httpx.get(f"{agent.url}/hello", timeout=15).status_code == 200  # the audit hung up: its slot is free


def test_sigterm_finishes_what_runs_and_takes_nothing_new(start: Any, ledger: Any) -> None:
    agent = start("auditor.py", "--document", ledger[0], "--pace", 0.05)
    with ThreadPoolExecutor() as threads:
        audit = threads.submit(httpx.get, f"{agent.url}/audit")
        until(lambda: agent.health()["running"] == 1)
        agent.process.terminate()

        def refused() -> bool:
            try:
                httpx.get(f"{agent.url}/health")
            except httpx.TransportError:
                return True
            return False

        until(refused)
        assert audit.result().json()["pages"] == 20
    assert agent.process.wait(30) == 0


def test_a_killed_auditor_leaves_no_worker_process(start: Any, ledger: Any) -> None:
    agent = start("auditor.py", "--document", ledger[0], "--pace", 0)
    httpx.get(f"{agent.url}/audit", params={})
    workers = psutil.Process(agent.process.pid).children(recursive=True)
    assert workers
    agent.process.kill()
    assert psutil.wait_procs(workers, timeout=20)[1] == []


# ------------------------------------------------------------------------------------------------------ script runner


def test_scripts_run_by_name_and_by_text(start: Any) -> None:
    url = f"{start('script_runner.py').url}/run"
    named = httpx.post(url, json={"name": "primes", "args": [1000]}).json()
    assert (named["output"], named["code"]) == ("168 primes below 1000, the last is 997\n", 0)
    given = httpx.post(url, json={"script": "import sys; print(sys.argv[1:]); sys.exit(3)", "args": ["a", 2]}).json()
    assert (given["output"], given["code"], given["why"]) == ("['a', '2']\n", 3, "finished")


def test_a_script_streams_its_output_while_it_runs(start: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    wait = f"while not os.path.exists({str(seen)!r}):\n    time.sleep(0.01)"
    script = f"import os, sys, time\nsys.stdout.write('one\\n')\n{wait}\nsys.stdout.write('two\\n')"
    with httpx.stream("POST", f"{start('script_runner.py').url}/run", json={"script": script}, headers=SSE) as response:
        events = []
        for event, data in parse(response.iter_lines()):
            events.append((event, data.get("text")))
            seen.touch()
    assert events == [("output", "one\n"), ("output", "two\n"), ("exit", None)]


def test_a_script_ends_with_its_client(start: Any, tmp_path: Path) -> None:
    agent = start("script_runner.py", "--slots", 1)
    with httpx.stream("POST", f"{agent.url}/run", json={"script": "while True: pass"}, headers=SSE):
        until(lambda: len(psutil.Process(agent.process.pid).children()) == 1)
        (script,) = psutil.Process(agent.process.pid).children()
        folder = script.cwd()
    assert psutil.wait_procs([script], timeout=20)[1] == []
    until(lambda: agent.health()["running"] == 0)
    assert not Path(folder).exists()


def test_a_script_cannot_take_more_memory_than_it_may(start: Any) -> None:
    ended = httpx.post(
        f"{start('script_runner.py').url}/run", json={"script": "x = bytearray(1 << 30)"}, timeout=30
    ).json()
    assert ended["code"] == 1
    assert "MemoryError" in ended["output"]


def test_a_script_sees_no_environment_and_a_folder_of_its_own(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "s")
    script = "import os; print('MY_SECRET' in os.environ, os.listdir())"
    ended = httpx.post(f"{start('script_runner.py').url}/run", json={"script": script}).json()
    assert ended["output"] == "False ['script.py']\n"


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"name": "rm"}', '{"script": 1}'])
def test_a_script_that_is_none_is_refused(start: Any, body: str) -> None:
    refused = httpx.post(f"{start('script_runner.py').url}/run", content=body)
    assert refused.status_code == 400
    assert "primes" in refused.json()["error"]


# ------------------------------------------------------------------------------------------------------------ auditor


def kinds(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"page": finding["page"], "kind": finding["kind"]} for finding in findings]


def test_the_audit_finds_what_was_planted_and_nothing_else(start: Any, ledger: Any) -> None:
    path, planted = ledger
    agent = start("auditor.py", "--document", path, "--pace", 0)
    assert {mistake["kind"] for mistake in planted} == {
        "wrong_total", "wrong_amount", "duplicate_number", "missing_signature", "date_out_of_order",
    }  # fmt: skip
    assert kinds(httpx.get(f"{agent.url}/audit").json()["findings"]) == planted
    with httpx.stream("POST", f"{agent.url}/audit", headers=SSE) as response:
        events = list(parse(response.iter_lines()))
    assert [data for event, data in events if event == "progress"] == [{"page": n, "of": 20} for n in range(1, 21)]
    assert kinds([data for event, data in events if event == "finding"]) == planted
    assert events[-1][0] == "report"
    assert kinds(events[-1][1]["findings"]) == planted


def test_the_ledger_it_makes_itself_has_the_pages_asked_for(start: Any) -> None:
    agent = start("auditor.py", "--pages", 500, "--pace", 0)
    report = httpx.get(f"{agent.url}/audit", timeout=60).json()
    assert report["pages"] == 500
    assert len(report["findings"]) == 25


def test_an_uploaded_pdf_is_audited_and_only_a_pdf(start: Any, ledger: Any) -> None:
    path, planted = ledger
    url = f"{start('auditor.py', '--pace', 0, '--pages', 5).url}/audit"
    pdf = {"content-type": "application/pdf"}
    assert kinds(httpx.post(url, content=path.read_bytes(), headers=pdf).json()["findings"]) == planted
    refused = httpx.post(url, content=b"%PDF-1.7 no more", headers=pdf)
    assert refused.status_code == 422
    with httpx.stream("POST", url, content=b"no PDF", headers=pdf | SSE) as response:
        assert [event for event, _ in parse(response.iter_lines())] == ["error"]
    assert httpx.post(url, content=b"[").status_code == 400


def test_an_audit_ends_with_its_client(start: Any, ledger: Any) -> None:
    agent = start("auditor.py", "--document", ledger[0], "--pace", 1)
    with httpx.stream("GET", f"{agent.url}/audit", headers=SSE) as response:
        next(response.iter_lines())
    until(lambda: agent.health()["running"] == 0, seconds=10)  # it had 19 seconds to go


def test_the_same_arguments_make_the_same_pdf(tmp_path: Path, ledger: Any) -> None:
    again = tmp_path / "again.pdf"
    command = [sys.executable, str(EXAMPLES / "make_pdf.py"), str(again), "--pages", "20", "--seed", "3"]
    subprocess.run(command, check=True, capture_output=True)
    assert again.read_bytes() == ledger[0].read_bytes()


# --------------------------------------------------------------------------------------------------------------- chat

ASK: dict[str, Any] = {"model": "harbour-1", "messages": [{"role": "user", "content": "Tell me of ships"}]}


@pytest.fixture
def client(start: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{start('chat.py', '--pace', 0.001).url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_the_openai_sdk_gets_a_completion(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["harbour-1"]
    said = client.chat.completions.create(**ASK)
    assert said.choices[0].finish_reason == "stop"
    assert said.usage is not None
    assert said.usage.prompt_tokens == 4
    assert said.usage.completion_tokens == len((said.choices[0].message.content or "").split())
    assert said.choices[0].message == client.chat.completions.create(**ASK).choices[0].message  # the same again
    other = client.chat.completions.create(**ASK, seed=5).choices[0].message
    assert other != said.choices[0].message


def test_the_openai_sdk_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK)
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    spoken = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(spoken) == whole.choices[0].message.content
    assert len(spoken) > 40


def test_an_answer_is_cut_at_max_tokens(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(**ASK, max_tokens=5)
    assert said.choices[0].finish_reason == "length"
    assert len((said.choices[0].message.content or "").split()) == 5


def test_errors_are_ones_the_openai_sdk_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="harbour-1"):
        client.chat.completions.create(**ASK | {"model": "gpt-9"})
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(**ASK | {"messages": "hello"})


def test_beyond_the_quota_is_429_and_what_is_left_is_told(start: Any) -> None:
    url = f"{start('chat.py', '--pace', 0, '--tokens-per-minute', 100).url}/v1/chat/completions"
    first = httpx.post(url, json=ASK | {"max_tokens": 60})
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    left = int(first.headers["x-ratelimit-remaining-tokens"])
    assert left < 60
    refused = httpx.post(url, json=ASK | {"max_tokens": 90})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
