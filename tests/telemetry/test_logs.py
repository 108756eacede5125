"""Operational events: one safe line each, no secret anywhere, and no flood (hostile-input R, 52)."""

from __future__ import annotations

import json
import logging
import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from unjam.telemetry import logs
from unjam.telemetry.metrics import GatewayStats

SECRET = "planted-Secret-0123456789"


class Output:
    """A file that stands for stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    known = dict(logs._concealed)
    out = Output(tmp_path / "stderr")
    yield out
    root.handlers, root.level = handlers, level
    logs._concealed.clear()
    logs._concealed.update(known)
    logs._sink = None
    structlog.reset_defaults()
    os.close(out.fd)


def test_an_event_is_one_json_line(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    logs.get("gateway").info("reloaded", services=3)
    logs.get("gateway").debug("not shown")
    (event,) = output.events
    assert event.pop("time").endswith("Z")
    assert event == {"level": "info", "event": "reloaded", "component": "gateway", "services": 3}


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        logs.setup("loud")


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "admin_token",
        "api_key",
        "apikey",
        "apiKey",
        "x-api-key",
        "key",
        "Authorization",
        "proxy-authorization",
        "password",
        "client_secret",
        "cookie",
        "set-cookie",
        "credentials",
    ],
)
@pytest.mark.parametrize("style", ["json", "console"])
def test_fields_that_name_credentials_are_never_printed(output: Output, name: str, style: Any) -> None:
    logs.setup("info", style, fd=output.fd)
    log = logs.get("gateway")
    log.info("plain", **{name: SECRET})
    log.info("nested", headers={name: SECRET, "deep": [{name: [SECRET]}]})
    log.info("bytes", **{name: SECRET.encode()})
    assert "Secret" not in output.text
    assert output.text.count(logs.REDACTED) >= 4


@pytest.mark.parametrize("name", ["monkey", "tokens_per_minute", "keyboard", "config_key", "author", "endpoint"])
def test_other_fields_are_printed(output: Output, name: str) -> None:
    logs.setup("info", "json", fd=output.fd)
    logs.get("gateway").info("plain", **{name: "value"})
    assert output.events[0][name] == "value"


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_concealed_secret_is_in_no_message_field_or_traceback(output: Output, style: Any) -> None:
    logs.setup("info", style, fd=output.fd)
    logs.conceal(SECRET)
    log = logs.get("gateway")
    log.info(f"event with {SECRET}", note=f"x{SECRET}y", items=[SECRET, (SECRET,)], other={SECRET: 1})
    log.info("encoded", note=b64encode(SECRET.encode()).decode())
    log.info("object", thing=ValueError(SECRET))
    try:
        local = SECRET
        raise ValueError(f"cannot use {local}")
    except ValueError:
        log.exception("failed")
        logging.getLogger("uvicorn.error").exception("failed with %s", SECRET)
    assert SECRET not in output.text
    assert b64encode(SECRET.encode()).decode().rstrip("=") not in output.text
    assert "ValueError: cannot use [redacted]" in output.text


@pytest.mark.parametrize(
    "text",
    [f"Authorization: Bearer {SECRET}", f"basic {SECRET}", f"http://user:{SECRET}@10.0.0.1:9000", f"sk-{SECRET}"],
)
def test_what_looks_like_a_credential_is_not_printed(output: Output, text: str) -> None:
    logs.setup("info", "json", fd=output.fd)
    logs.get("gateway").warning("odd", note=text)
    assert SECRET not in output.text


def test_short_texts_are_not_concealed() -> None:
    logs.conceal("a")
    assert logs.scrub("a banana") == "a banana"


def test_concealed_secrets_are_bounded(output: Output) -> None:
    for n in range(logs.MAX_SECRETS * 3):
        logs.conceal(f"secret-{n}")
    assert len(logs._concealed) == 2 * logs.MAX_SECRETS
    assert f"secret-{logs.MAX_SECRETS * 3 - 1}" in logs._concealed


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("value", ["a\r\nb", "\x1b[31mred", "\x9b31m", "\u202e", "\x00", "\x7f", "\ud800"])
def test_values_cannot_forge_lines_or_drive_a_terminal(output: Output, style: Any, value: str) -> None:
    logs.setup("info", style, fd=output.fd)
    logs.get("gateway").info(f"event {value}", field=value, nested={value: [value]})
    lines = output.text.split("\n")
    assert len(lines) == 2
    assert lines[0].isascii()
    assert lines[0].isprintable()


def test_libraries_log_the_same_way(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    logging.getLogger("asyncio").error("task %s died", "x\ny")
    logging.getLogger("uvicorn.error").info("chatter")
    (event,) = output.events
    assert event["event"] == "task x\ny died"
    assert (event["level"], event["logger"]) == ("error", "asyncio")


def test_a_librarys_broken_log_call_is_survived(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    logging.getLogger("asyncio").error("%d requests", "many")
    assert output.events[0]["event"] == "log_record_broken"


def test_a_closed_stderr_never_raises(tmp_path: Path, output: Output) -> None:
    read, write = os.pipe()
    os.close(read)
    logs.setup("info", "json", fd=write)
    logs.get("gateway").info("into the void")
    assert logs.dropped() == 1
    logs.flush()
    os.close(write)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rejection_is_counted_and_logged_with_reason_and_peer(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    stats = GatewayStats()
    rejections = logs.Rejections(stats, clock=Clock())
    rejections.reject("bad_host", "192.0.2.7")
    assert stats.rejects == {"bad_host": 1}
    (event,) = output.events
    assert (event["event"], event["reason"], event["peer"]) == ("rejected", "bad_host", "192.0.2.7")


def test_a_flood_of_rejections_is_counted_in_full_and_logged_in_part(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    stats, clock = GatewayStats(), Clock()
    rejections = logs.Rejections(stats, per_second=10, clock=clock)
    for _ in range(1000):
        rejections.reject("bad_host", "192.0.2.7")
    assert stats.rejects == {"bad_host": 1000}
    assert len(output.events) == 10
    clock.now += 0.1
    rejections.reject("bad_method", "192.0.2.8")
    assert output.events[-1]["suppressed"] == 990
    assert len(output.events) == 11


def test_what_was_left_out_is_said_when_the_flood_is_over(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    clock = Clock()
    rejections = logs.Rejections(GatewayStats(), per_second=1, clock=clock)
    for reason in ("bad_host", "bad_host", "bad_method", "bad_method"):
        rejections.reject(reason, "192.0.2.7")
    rejections.tick()
    assert len(output.events) == 1
    clock.now += 1
    rejections.tick()
    rejections.tick()
    assert output.events[1:] == [
        {
            **output.events[1],
            "event": "rejections_suppressed",
            "reasons": {"bad_host": 1, "bad_method": 2},
            "suppressed": 3,
        }
    ]


def test_a_sinks_trouble_is_said_once_a_minute_at_most(output: Output) -> None:
    logs.setup("info", "json", fd=output.fd)
    clock = Clock()
    tell = logs.trouble("access_log", clock=clock)
    for _ in range(5):
        tell("stalled", why="No space left on device")
        tell("resumed", dropped=7)
    assert [event["event"] for event in output.events] == ["access_log_stalled", "access_log_resumed"]
    clock.now += 61
    tell("stalled", why="No space left on device")
    assert output.events[-1]["event"] == "access_log_stalled"
