"""The commands that speak to a running gateway."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from unjam.cli.client import AdminClient
from unjam.cli.trouble import CliError
from unjam.config import parse
from unjam.core.balancer import Balancer
from unjam.core.model import Request

Unjam = Callable[..., Result]

CONFIG = """services:
  auditor:
    versions:
      v7: {weight: 90, endpoints: [{url: "http://10.0.0.1:9000", cores: 4, region: us}]}
      v8: {weight: 10, endpoints: ["http://10.0.0.3:9000"]}
regions: {us: {tokens_per_minute: 2M}}
"""


def state() -> dict[str, Any]:
    """What a real balancer with work and trouble says."""
    balancer = Balancer(random.Random(1))
    balancer.apply(parse(CONFIG, {}).topology(), 0.0)
    for number in range(10):
        balancer.offer(Request(balancer.services["auditor"], f"POST /x{number}", 1.0, tenant="ac\x1b[31mme"), 1.0)
    balancer.tick(20.0)
    balancer.trip("auditor", "v8", 20.0)
    snapshot = balancer.snapshot(30.0)
    return {"ready": True, "why": "", **snapshot}


def test_status_as_tables(unjam: Unjam, admin: Any) -> None:
    admin.answer = state()
    result = unjam("status", "--admin", admin.url)
    assert result.exit_code == 0
    assert admin.asked[0][:3] == ("GET", "/api/state", None)
    words = " ".join(result.stdout.split())
    for phrase in (
        "ready, ",
        "auditor least_loaded; running",
        "v7 weight 90",
        "breaker closed",
        "v8 weight 10",
        "breaker open for 50 s more",
        "http://10.0.0.1:9000",
        "breaker open",
        "us 100%",
    ):
        assert phrase in words
    assert "\x1b" not in result.stdout


def test_status_as_json(unjam: Unjam, admin: Any) -> None:
    admin.answer = state()
    result = unjam("status", "--json", "--admin", admin.url)
    assert json.loads(result.stdout) == json.loads(json.dumps(admin.answer))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"services": {"a": {}}},
        {"services": {"a": {"versions": {"v": {"endpoints": [{}]}}}}, "regions": {"r": {}}},
        {"services": []},
    ],
)
def test_status_of_a_gateway_that_says_less(unjam: Unjam, admin: Any, answer: Any) -> None:
    admin.answer = answer
    assert unjam("status", "--admin", admin.url).exit_code == 0


def test_status_says_that_runs_cannot_be_reached(unjam: Unjam, admin: Any) -> None:
    admin.answer = {"store_away": "Redis at h: connection \x1b[31mrefused"}
    lines = unjam("status", "--admin", admin.url).stdout.splitlines()
    assert lines[1] == r"runs can't be reached: Redis at h: connection \x1b[31mrefused"


def test_status_of_a_gateway_that_is_not_ready(unjam: Unjam, admin: Any) -> None:
    admin.answer = {"ready": False, "why": "draining", "services": {}}
    assert "not ready: draining" in unjam("status", "--admin", admin.url).stdout


def test_status_shows_trouble_first_and_not_ten_thousand_rows(unjam: Unjam, admin: Any) -> None:
    endpoints = [{"name": f"http://h{n}", "inflight": 0, "why": ["open"]} for n in range(200)]
    endpoints.append({"name": "http://sick", "inflight": 0, "why": ["unhealthy"]})
    admin.answer = {"services": {"a": {"versions": {"v": {"endpoints": endpoints}}}}}
    lines = unjam("status", "--admin", admin.url).stdout.splitlines()
    assert "http://sick" in lines[5]
    assert "151 more" in lines[-1]


@pytest.mark.parametrize(
    ("command", "path", "body", "said"),
    [
        (
            ["drain", "HTTP://10.0.0.1:9000/"],
            "/api/drain",
            {"endpoint": "http://10.0.0.1:9000", "draining": True},
            "nothing new",
        ),
        (
            ["undrain", "unix:/run/a.sock"],
            "/api/drain",
            {"endpoint": "unix:/run/a.sock", "draining": False},
            "takes new",
        ),
        (
            ["weight", "a", "v1", "0.5"],
            "/api/weight",
            {"service": "a", "weights": {"v1": 0.5}},
            "weight 0.5",
        ),
        (
            ["breaker", "a", "v1", "trip"],
            "/api/breaker",
            {"service": "a", "version": "v1", "action": "trip"},
            "out of traffic",
        ),
        (
            ["breaker", "a", "v1", "reset"],
            "/api/breaker",
            {"service": "a", "version": "v1", "action": "reset"},
            "back in traffic",
        ),
        (["reload"], "/api/reload", {}, "in force"),
    ],
)
def test_actions(unjam: Unjam, admin: Any, command: list[str], path: str, body: dict[str, Any], said: str) -> None:
    admin.answer = {"before": 90}
    result = unjam(*command, "--admin", admin.url.removeprefix("http://"), "--token", "t0ken")
    assert result.exit_code == 0
    assert said in result.stdout
    method, asked, sent, headers = admin.asked[0]
    assert (method, asked, sent) == ("POST", path, body)
    assert headers["authorization"] == "Bearer t0ken"
    assert headers["content-type"] == "application/json"


def test_the_environment_gives_address_and_token(unjam: Unjam, admin: Any) -> None:
    assert unjam("status", UNJAM_ADMIN=admin.url, UNJAM_ADMIN_TOKEN="t0ken").exit_code == 0
    assert admin.asked[0][3]["authorization"] == "Bearer t0ken"


def test_a_wrong_token_is_not_a_missing_one(unjam: Unjam, admin: Any) -> None:
    admin.status, admin.answer = 401, {"error": {"code": "unauthorized", "message": "x"}}
    result = unjam("status", "--token", "wrong", "--admin", admin.url)
    assert result.exit_code == 1
    assert "refuses this admin token" in result.stderr


def test_no_token_is_no_header(unjam: Unjam, admin: Any) -> None:
    unjam("status", "--admin", admin.url, UNJAM_ADMIN_TOKEN="")
    assert "authorization" not in admin.asked[0][3]


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (
            401,
            {"error": {"code": "unauthorized", "message": "x"}},
            "needs the admin token: give --token, or set UNJAM_ADMIN_TOKEN",
        ),
        (
            404,
            {"error": {"code": "no_service", "message": "x", "request_id": "1"}},
            "is where clients connect: --admin, or UNJAM_ADMIN",
        ),
        (
            404,
            {"error": {"code": "unknown_endpoint", "message": "No endpoint has this URL."}},
            "unjam: No endpoint has this URL.",
        ),
        (
            422,
            {"error": {"code": "x", "message": "Not accepted."}, "problems": ["u.yaml:3: bad."]},
            "unjam: Not accepted.\n  u.yaml:3: bad.",
        ),
        (500, {"error": {"code": "x", "message": "a\x1b[31mb"}}, "a\\x1b[31mb"),
        (200, b"<html>", "answered 200, which is not an admin listener of unjam"),
        (404, b"", "answered 404, which is not an admin listener of unjam"),
    ],
)
def test_refusals_are_the_gateways_own_words(unjam: Unjam, admin: Any, status: int, answer: Any, said: str) -> None:
    admin.status, admin.answer = status, answer
    result = unjam("drain", "http://h", "--admin", admin.url)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stdout == ""


def test_nobody_answers(unjam: Unjam) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = unjam("status", "--admin", url)
    assert result.exit_code == 3
    assert result.stderr == f"unjam: no answer from {url}: connection refused. Is a gateway running there?\n"


def test_nobody_answers_on_a_socket(unjam: Unjam, tmp_path: Any) -> None:
    result = unjam("status", "--admin", f"unix:{tmp_path}/admin.sock")
    assert result.exit_code == 3
    assert "no such file" in result.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["status", "--admin", "ftp://h"], "--admin takes"),
        (["status", "--admin", "http://h/path"], "--admin takes"),
        (["status", "--admin", "http://u:p@h"], "--admin takes"),
        (["status", "--admin", "http://h:x"], "--admin takes"),
        (["status", "--token", "a\nb"], "white space"),
        (["drain", "10.0.0.1:9000"], "Write http://10.0.0.1:9000."),
        (["breaker", "a", "v", "open"], "give trip or reset"),
        (["weight", "a", "v", "-1"], ""),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_command_lines(unjam: Unjam, command: list[str], said: str) -> None:
    result = unjam(*command)
    assert result.exit_code == 2
    assert said in result.output


def test_a_token_without_tls_beyond_this_machine_is_warned_of() -> None:
    assert AdminClient("http://10.0.0.1:8081", "t").bare_token
    assert not AdminClient("https://10.0.0.1:8081", "t").bare_token
    assert not AdminClient("http://localhost:8081", "t").bare_token
    assert not AdminClient("unix:/run/admin.sock", "t").bare_token
    assert not AdminClient("http://10.0.0.1:8081").bare_token


def test_a_client_raises_sentences_only() -> None:
    with pytest.raises(CliError, match="the name is not known"):
        AdminClient("http://unjam.invalid:1").get("/api/state")
