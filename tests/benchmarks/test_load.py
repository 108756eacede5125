"""Load generator and origin together over loopback, without a proxy, and the bytes they exchange."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.load.messages import (
    AnswerMaker,
    RequestMaker,
    chunk,
    dechunk,
    find_nonce,
    masked_text,
    sse_event,
    websocket_accept,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fields", ["ten", "sdk"])
def test_requests_are_framed_right_and_never_repeat(fields: str) -> None:
    maker = RequestMaker(3, "127.0.0.1:80", fields=fields)
    seen = set()
    for _ in range(20):
        mark, request = maker.next()
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert len(lines) - 1 == {"ten": 10, "sdk": 17}[fields]
        sent = dict(line.split(b": ", 1) for line in lines[1:])
        assert int(sent[b"Content-Length"]) == len(body)
        assert find_nonce(body) == mark
        assert json.loads(body)["messages"][0]["content"].encode().startswith(mark)
        seen.add((mark, sent[b"X-Request-Id"]))
    assert len(seen) == 20


def test_answers_repeat_the_nonce_and_are_framed_right() -> None:
    head, _, body = AnswerMaker().make(b"nonce-0123456789abcdef").partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert head.count(b"\r\n") == 5
    assert b"nonce-0123456789abcdef" in body
    json.loads(body)


def test_chunks_there_and_back() -> None:
    event = sse_event(b"nonce-0123456789abcdef", 7)
    assert dechunk(event) == (event.split(b"\r\n")[1], False)
    assert dechunk(chunk(b"a") + chunk(b"bc") + b"0\r\n\r\n") == (b"abc", True)
    with pytest.raises(ValueError, match="does not end"):
        dechunk(b"3\r\nabcd\r\n0\r\n\r\n")


def test_websocket_example_of_the_rfc() -> None:
    assert websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert masked_text(b"Hello", b"\x37\xfa\x21\x3d") == bytes.fromhex("818537fa213d7f9f4d5158")


@pytest.mark.parametrize("mode", ["json", "sse", "ws"])
def test_generator_and_origin_agree(mode: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.origin"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as origin:
        try:
            assert origin.stdout is not None
            port = str(json.loads(origin.stdout.readline())["ports"][0])
            argv = [sys.executable, "-m", "benchmarks.load.client", mode, "--port", port, "--connections", "4"]
            argv += ["--warm", "0.2", "--seconds", "0.3", "--watch", str(origin.pid)]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        finally:
            origin.terminate()
    answer = json.loads(done.stdout)
    assert answer["errors"] == 0
    assert answer["done"] > 10
    assert answer["proxy_cpu_us"] > 0


def test_streams_opened_after_others_were_closed_are_answered() -> None:
    """The origin gives a closed stream's descriptor to a new one while the old still waits for its turn."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.origin", "--rate", "1", "--beat"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as origin:
        try:
            assert origin.stdout is not None
            port = str(json.loads(origin.stdout.readline())["ports"][0])
            argv = [sys.executable, "-m", "benchmarks.load.hold", "--ports", port, "--streams", "40", "--rate", "400"]
            for _ in range(2):
                done = subprocess.run(
                    [*argv, "--hold", "1.0", "--more", "5"],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=True,
                )
                opened, held = map(json.loads, done.stdout.splitlines())
                assert (opened["open"], opened["lost"], opened["unanswered"]) == (40, 0, 0)
                assert (held["lost"], held["first_event"]["count"]) == (0, 5)
        finally:
            origin.terminate()
