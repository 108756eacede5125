"""`unjam check`: a configuration explained, or refused with what to mend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Unjam = Callable[..., Result]

KEY_HASH = "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # of the word "key"

TEXT = f"""listen: [127.0.0.1:8080, unix:/run/unjam.sock]
trusted_proxies: [0.0.0.0/0]
keys:
  - {{hash: "{KEY_HASH}", tenant: acme, services: [auditor, chat]}}
services:
  auditor:
    match: [{{path: /agents/auditor}}, {{host: "*.audit.example.com"}}]
    strip_prefix: true
    lanes: {{fast: {{up_to: 2s}}, heavy: {{share: 50%, timeout: 2h, idle: 15m}}}}
    session: {{header: x-session-id}}
    sticky: tenant
    health: /healthz
    versions:
      v7:
        weight: 3
        endpoints: [{{url: "http://10.0.0.1:9000", cores: 8}}, {{url: "http://10.0.0.2:9000", slots: 128}}]
      v8: {{weight: 1, endpoints: ["http://10.0.0.3:9000"]}}
    fallback: [basic, {{maintenance: "Back soon."}}]
    websocket: {{origins: ["https://app.example.com"]}}
  chat:
    match: {{path: /v1, model: harbour-1, header: {{x-beta: "*"}}}}
    breaker: off
    queue: off
    retry: off
    versions:
      v1:
        endpoints:
          - {{url: "http://10.0.0.4:9000", slots: 4, region: us}}
          - {{url: "http://10.0.0.5:9000", slots: 4}}
  basic:
    versions: {{v1: {{endpoints: [{{url: "http://10.0.0.9:9000", slots: 1}}]}}}}
regions:
  us: {{tokens_per_minute: 2M}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "unjam.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_it_explains_in_words(unjam: Unjam, file: str) -> None:
    result = unjam("check", file)
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for phrase in (
        f"{file} is valid: 3 services, 6 endpoints.",
        "listens on 127.0.0.1:8080, unix:/run/unjam.sock",
        "API keys 1 for 1 tenant; every request needs one",
        "auditor: takes path /agents/auditor, or host *.audit.example.com",
        "version v7, 75% of the traffic",
        "http://10.0.0.1:9000: 16 slots (2 × 8 cores), 8 of them for heavy work",
        "http://10.0.0.2:9000: 128 slots, 64 of them for heavy work",
        "version v8, 25% of the traffic",
        "http://10.0.0.3:9000: any number of slots (neither slots nor cores are given, so unjam spreads work and none",
        "a caller stays on its version, by its tenant",
        "fast lane expected to end within 2s; connect 5s, in all 1h",
        "heavy lane up to 50% of the slots; connect 5s, silence 15m, in all 2h",
        "fallback basic, then 503 “Back soon.”",
        "GET /healthz every 5s; out after 5 failures in a row",
        "browsers from https://app.example.com only",
        "takes path /v1 and header x-beta and model harbour-1",
        "heavy work holds at most 6 of these 8 slots",
        "http://10.0.0.4:9000: 4 slots, region us",
        "queue none: a request that finds no slot is refused",
        "breaker off",
        "retries off",
        "reads model and max_tokens from JSON bodies up to 1MiB",
        "basic: takes nothing by itself, only what other services fall back on",
        "us 2M tokens a minute, any number of requests; 1m of it at once",
    ):
        assert phrase in words


def test_what_reporters_may_add_is_said(unjam: Unjam, tmp_path: Path) -> None:
    file = tmp_path / "unjam.yaml"
    file.write_text(
        "reporters: {token: 0123456789abcdef}\n"
        "services: {hello: {versions: {v1: {discover: {networks: 10.0.0.0/8}}}}}\n",
        encoding="utf-8",
    )
    result = unjam("check", str(file))
    assert result.exit_code == 0, result.output
    assert "1 service, 0 endpoints, and reporters may add more." in result.stdout
    assert "reporters   127.0.0.1:8082, with a token" in result.stdout
    assert "and those that reporters add in 10.0.0.0/8" in result.stdout
    assert "0123456789abcdef" not in result.output
    result = unjam("check", str(file), "--request", "GET /x")
    assert result.exit_code == 0, result.output
    assert "hello, by every request" in result.stdout


def test_warnings_go_to_stderr_and_are_no_failure(unjam: Unjam, file: str) -> None:
    result = unjam("check", "--quiet", file)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"warning: {file}:2: trusted_proxies[0]: every client may choose its own address." in result.stderr


def test_a_refused_configuration(unjam: Unjam, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("listn: 127.0.0.1:1\nservices:\n  a:\n    queue: {timeout: 60}\n", encoding="utf-8")
    result = unjam("check", str(file))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{file}:1: listn: there is no key listn here. Did you mean listen?",
        f"{file}:3: services.a.versions: is required. Write versions: {{v1: {{endpoints: [http://127.0.0.1:9001]}}}}.",
        f"{file}:4: services.a.queue.timeout: '60' has no unit. Write 60s for seconds, 60ms for milliseconds.",
        "unjam: the configuration was refused: 3 problems.",
    ]


def test_a_file_that_is_not_there(unjam: Unjam, tmp_path: Path) -> None:
    result = unjam("check", str(tmp_path / "nowhere.yaml"))
    assert result.exit_code == 1
    assert "nowhere.yaml: cannot be read: no such file or directory." in result.stderr


def key(*more: str) -> list[str]:
    return ["-H", "Authorization: Bearer key", *more]


@pytest.mark.parametrize(
    ("request_line", "options", "phrases"),
    [
        (
            "POST /agents/auditor/x?y=1",
            key(),
            [
                "service auditor, by path /agents/auditor",
                "forwarded /x",
                "lane fast, until its history",
                "v7 75%, v8 25%",
            ],
        ),
        ("/agents/auditor", key(), ["GET /agents/auditor on host localhost", "forwarded /", "without x-session-id"]),
        ("GET /agents/./auditor//x", key(), ["GET /agents/auditor/x on host", "service auditor"]),
        (
            "GET /",
            key("-H", "Host: EU.audit.example.com:443"),
            ["host eu.audit.example.com", "by host *.audit.example.com"],
        ),
        ("GET /agents/auditor", key("-H", "X-Session-Id: 1"), ["its session decides first"]),
        ("GET /agents/auditor", key("-H", "x-unjam-lane: heavy"), ["lane heavy, since it says so", "in all 2h"]),
        ("GET /agents/auditor", key("-H", "x-unjam-expected-seconds: 90"), ["lane heavy, since it says it takes 90 s"]),
        ("GET /agents/auditor", key("-H", "x-unjam-expected-seconds: 1"), ["lane fast, since it says it takes 1 s"]),
        (
            "POST /v1/chat",
            key("-H", "x-beta: 1", "--model", "harbour-1"),
            ["service chat", "of tenant acme", "versions v1 100%"],
        ),
    ],
)
def test_what_a_request_meets(
    unjam: Unjam, file: str, request_line: str, options: list[str], phrases: list[str]
) -> None:
    result = unjam("check", file, "--request", request_line, *options)
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert all(phrase in words for phrase in phrases), words


@pytest.mark.parametrize(
    ("request_line", "options", "phrase"),
    [
        ("GET /nowhere", key(), "none takes it: answered 404"),
        ("POST /v1/chat", key("-H", "x-beta: 1"), "(some match by model: give --model)"),
        ("GET /agents/auditor%2fx", key(), "refused with 400, encoded_slash"),
        ("GET /agents/auditor", [], "missing or unknown: answered 401"),
        ("GET /agents/auditor", ["-H", "x-api-key: other"], "missing or unknown: answered 401"),
        ("TRACE /agents/auditor", key(), "refused with 405"),
        (
            "GET /agents/auditor",
            key("-H", "x-unjam-lane: slow"),
            "refused with 400: x-unjam-lane must be fast or heavy",
        ),
        ("GET /agents/auditor", key("-H", "Content-Length: 5, 6"), "refused with 400, bad_content_length"),
    ],
)
def test_what_no_service_gets(unjam: Unjam, file: str, request_line: str, options: list[str], phrase: str) -> None:
    result = unjam("check", file, "-r", request_line, *options)
    assert result.exit_code == 1
    assert phrase in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-r", "GET"], "--request takes a method and a path"),
        (["-r", "GET /", "-H", "nonsense"], "--header takes Name: value"),
        (["-r", "GET /€"], "no header can carry"),
        (["-H", "a: b"], "give --request too"),
        (["--model", "m"], "give --request too"),
    ],
)
def test_wrong_options(unjam: Unjam, file: str, options: list[str], message: str) -> None:
    result = unjam("check", file, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_as_a_process(file: str) -> None:
    """Also: nothing but its own words on either stream, and the environment is what variables come from."""
    Path(file).write_text(TEXT.replace("127.0.0.1:8080", '"127.0.0.1:${PORT}"'), encoding="utf-8")
    command = [sys.executable, "-m", "unjam.cli.main", "check", file, "--quiet"]
    env = {**os.environ, "PORT": "18080", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1
    del env["PORT"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 1
    assert f"{file}:1: listen[0]: the environment variable PORT is not set." in done.stderr
    assert "Traceback" not in done.stderr
