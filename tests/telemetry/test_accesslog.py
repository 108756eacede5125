"""One line per request: complete, printable whatever a client sent, and lost only when it is said (hostile 39, 52)."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.model import Outcome
from unjam.telemetry.accesslog import BATCH, REFUSED, AccessLog, Entry, Record
from unjam.telemetry.metrics import GatewayStats

NOW = 1_790_000_000.1239


def write(log: AccessLog, **changes: Any) -> None:
    entry: dict[str, Any] = {
        "request_id": "0123456789abcdef",
        "client": "192.0.2.7",
        "tenant": "acme",
        "method": "POST",
        "path": "/agents/auditor",
        "service": "auditor",
        "version": "v7",
        "endpoint": "http://10.0.0.1:9000",
        "lane": "heavy",
        "status": 200,
        "outcome": Outcome.OK,
        "reason": None,
        "bytes_in": 12,
        "bytes_out": 3456,
        "queued": 0.3401,
        "estimate": 90.0,
        "first_byte": 1.25,
        "duration": 95.0,
        "retries": 1,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    entry.update(changes)
    log.write(Entry(**entry))


def lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return data.split(b"\n")[:-1]


def logged(file: Path, layout: str = "json", /, **changes: Any) -> bytes:
    log = AccessLog(str(file), style=layout, clock=lambda: NOW)  # type: ignore[arg-type]
    write(log, **changes)
    log.close()
    (line,) = lines(file)
    return line


def test_a_line_has_every_field_in_order(tmp_path: Path) -> None:
    record = json.loads(logged(tmp_path / "log"))
    assert list(record) == list(Record.__struct_fields__)
    assert record == {
        "time": "2026-09-21T14:13:20.123Z",
        "request_id": "0123456789abcdef",
        "client": "192.0.2.7",
        "tenant": "acme",
        "method": "POST",
        "path": "/agents/auditor",
        "service": "auditor",
        "version": "v7",
        "endpoint": "http://10.0.0.1:9000",
        "lane": "heavy",
        "status": 200,
        "outcome": "ok",
        "reason": None,
        "bytes_in": 12,
        "bytes_out": 3456,
        "queued_ms": 340.1,
        "estimate_s": 90.0,
        "first_byte_ms": 1250.0,
        "duration_ms": 95000.0,
        "retries": 1,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }


def test_a_client_that_left_is_499_and_cancelled(tmp_path: Path) -> None:
    record = json.loads(logged(tmp_path / "log", status=499, outcome=Outcome.CANCELLED, first_byte=None))
    assert (record["status"], record["outcome"], record["first_byte_ms"]) == (499, "cancelled", None)


def test_a_refused_request_has_a_reason_and_no_endpoint(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("tenant", "service", "version", "endpoint", "lane", "estimate", "first_byte", "trace_id"))
    record = json.loads(logged(tmp_path / "log", status=400, outcome=REFUSED, reason="bad_host", **nothing))
    assert record["reason"] == "bad_host"
    assert all(record[name] is None for name in ("tenant", "service", "version", "endpoint", "lane", "trace_id"))


@pytest.mark.parametrize(
    "at", [0.0, 1.0, 1_790_000_000.0, 1_790_000_000.9999, 1_790_000_000.0005, 1_789_999_999.999999]
)
def test_times_are_rfc_3339_with_milliseconds(tmp_path: Path, at: float) -> None:
    log = AccessLog(str(tmp_path / "log"), style="json", clock=lambda: at)
    write(log)
    log.close()
    text = json.loads(lines(tmp_path / "log")[0])["time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert 0 <= at - datetime.fromisoformat(text).timestamp() < 0.0011


def test_the_second_is_never_stale(tmp_path: Path) -> None:
    times = iter([10.5, 11.5, 10.9, 3600.0])
    log = AccessLog(str(tmp_path / "log"), style="json", clock=lambda: next(times))
    for _ in range(4):
        write(log)
    log.close()
    shown = [json.loads(line)["time"][11:] for line in lines(tmp_path / "log")]
    assert shown == ["00:00:10.500Z", "00:00:11.500Z", "00:00:10.900Z", "01:00:00.000Z"]


HOSTILE = [
    "/a\r\nHTTP/1.1 200 OK",
    '/a\n{"time":"forged"}',
    "/a\x1b[2J\x1b[31mred",
    "/a\x00b",
    "/a\x7f",
    "/a\x9b31m",
    "/a\u2028b\u2029c\u0085d",
    "/a\u202egnp.exe",
    "/a\ud800lone",
    "/\U0001f600",
    '/a"quote\\back',
]


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_stay_on_one_printable_line(tmp_path: Path, style: str, value: str) -> None:
    line = logged(tmp_path / "log", style, path=value, request_id=value, method=value, client=value, tenant=value)
    assert line.isascii()
    assert line.decode().isprintable()
    if style == "json":
        record = json.loads(line)
        assert record["status"] == 200
        if "\ud800" not in value:
            # JSON escapes are lossless: a reader gets the value back.
            assert record["path"] == value


@given(st.text(st.characters(codec=None), max_size=40), st.sampled_from(["json", "console"]))
def test_no_text_breaks_a_line(tmp_path_factory: pytest.TempPathFactory, value: str, style: str) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    line = logged(path, style, path=value, request_id=value, trace_id=value)
    assert line.decode("ascii").isprintable()
    if style == "json":
        assert json.loads(line)["bytes_out"] == 3456


def test_long_values_are_cut(tmp_path: Path) -> None:
    record = json.loads(logged(tmp_path / "log", path="/" + "a" * 8000, request_id="r" * 8000))
    assert record["path"] == "/" + "a" * 1023 + "…"
    assert len(record["request_id"]) == 129


def test_the_console_line_reads_well(tmp_path: Path) -> None:
    line = logged(tmp_path / "log", "console").decode()
    assert line == (
        "14:13:20.123  200 ok  POST /agents/auditor  auditor/v7  http://10.0.0.1:9000  heavy  95.0 s  "
        "expected 90.0 s, queued 340 ms, 1 retry, acme, 3456 B, 192.0.2.7, 0123456789abcdef"
    )


def test_the_console_line_of_a_refusal_says_the_reason(tmp_path: Path) -> None:
    line = logged(tmp_path / "log", "console", status=503, outcome=REFUSED, reason="queue_full", endpoint=None)
    assert b"503 queue_full" in line


def test_stdout_that_is_no_terminal_gets_json(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("stdout")
    write(log)
    log.close()
    assert json.loads(capfd.readouterr().out)["status"] == 200


@pytest.mark.parametrize("no_color", [None, "1"])
def test_a_terminal_gets_the_readable_line(monkeypatch: pytest.MonkeyPatch, no_color: str | None) -> None:
    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = os.openpty()
    saved = os.dup(1)
    try:
        os.dup2(theirs, 1)
        log = AccessLog("stdout")
        write(log)
        log.close()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    shown = os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert b"POST /agents/auditor" in shown
    assert (b"\x1b[32m200 ok\x1b[0m" in shown) is (no_color is None)


def test_off_costs_no_file_and_no_memory() -> None:
    log = AccessLog("off")
    assert not log.enabled
    log.flush()
    assert log.reopen() is None
    log.close()


def test_lines_wait_for_flush_but_not_beyond_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AccessLog(str(path))
    for _ in range(BATCH - 1):
        write(log)
    assert lines(path) == []
    write(log)
    assert len(lines(path)) == BATCH
    write(log)
    log.flush()
    assert len(lines(path)) == BATCH + 1
    log.close()


def test_rotation_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AccessLog(str(path))
    write(log, request_id="before")
    path.rename(tmp_path / "log.1")
    assert log.reopen() is None
    write(log, request_id="after")
    log.close()
    assert [json.loads(line)["request_id"] for line in lines(tmp_path / "log.1")] == ["before"]
    assert [json.loads(line)["request_id"] for line in lines(path)] == ["after"]


def test_a_full_disk_is_counted_and_never_raises() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    stats = GatewayStats()
    told: list[str] = []
    log = AccessLog("/dev/full", stats=stats, on_trouble=lambda event, **fields: told.append(event))
    total = BATCH * 10
    for _ in range(total):
        write(log)
    log.close()
    assert stats.log_dropped == total
    assert told == ["stalled"]


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    section = page.split("\n## Access log")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(Record.__struct_fields__)
