"""All example agents behind one port, as examples/unjam.yaml has them: clients need not know there is a gateway."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from benchmarks.common.procs import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def agents(start_for_all: Any) -> dict[int, Any]:
    """Port in examples/unjam.yaml → the agent that takes its place."""
    return {
        9001: start_for_all("hello.py"),
        9002: start_for_all("script_runner.py", "--slots", 2),
        9003: start_for_all("auditor.py", "--pages", 20, "--pace", 0.02),
        9013: start_for_all("auditor.py", "--pages", 20, "--pace", 0.02),
        9004: start_for_all("chat.py", "--pace", 0.001),
    }


@pytest.fixture(scope="module")
def url(agents: dict[int, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tmp_path = tmp_path_factory.mktemp("gateway")
    text = (EXAMPLES / "unjam.yaml").read_text()
    ours, admin = free_port(), free_port()
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{ours}").replace("127.0.0.1:8081", f"127.0.0.1:{admin}")
    text = re.sub(r"http://127\.0\.0\.1:(\d+)", lambda found: agents[int(found[1])].url, text)
    config = tmp_path / "unjam.yaml"
    config.write_text(text)
    command = [sys.executable, "-m", "unjam.cli.main", "serve", "--config", str(config)]
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            assert gateway.poll() is None, (tmp_path / "log").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{ours}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{ours}"
        gateway.terminate()
        assert gateway.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        gateway.kill()
        gateway.wait()


def test_curl_httpx_and_the_openai_sdk_find_every_agent_behind_one_port(url: str, agents: dict[int, Any]) -> None:
    said = subprocess.run(["curl", "-sfi", f"{url}/hello?name=Ada"], capture_output=True, text=True, check=True).stdout
    head, body = said.split("\n\n", 1)
    assert json.loads(body)["message"] == "Hello, Ada!"
    assert f"x-unjam-endpoint: {agents[9001].url}" in head
    assert "x-unjam-lane: fast" in head

    ran = httpx.post(f"{url}/agents/scripts/run", json={"name": "primes", "args": [1000]}).json()
    assert ran["output"] == "168 primes below 1000, the last is 997\n"

    command = ["curl", "-sfN", f"{url}/agents/auditor/audit", "-H", "accept: text/event-stream", "-d", '{"pages": 20}']
    audit = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert audit.count("event: progress") == 20
    assert audit.count("event: report") == 1

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        assert [model.id for model in sdk.models.list()] == ["harbour-1"]
        ask: Any = {"model": "harbour-1", "messages": [{"role": "user", "content": "Tell me of ships"}]}
        whole = sdk.chat.completions.create(**ask)
        chunks = list(sdk.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-1].usage == whole.usage
        with pytest.raises(openai.NotFoundError, match="harbour-1"):
            sdk.chat.completions.create(**ask | {"model": "gpt-9"})


def test_hanging_up_ends_the_work_behind_the_gateway(url: str, agents: dict[int, Any]) -> None:
    runner = agents[9002]

    def until_running(number: int) -> None:
        end = time.monotonic() + 30
        while runner.health()["running"] != number:
            assert time.monotonic() < end
            time.sleep(0.02)

    body = {"script": "while True: pass"}
    with httpx.stream("POST", f"{url}/agents/scripts/run", json=body, headers={"accept": "text/event-stream"}):
        until_running(1)
    until_running(0)
