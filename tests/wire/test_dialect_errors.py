"""Whatever an error says, the client's library can read it."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from unjam.wire.dialects.errors import error_body

NASTY = 'a "quote"\r\n\r\n<b>\u2028\x00'


def test_json() -> None:
    media, body = error_body("json", "queue_full", NASTY, "r-1")
    assert media == b"application/json"
    assert json.loads(body) == {"error": {"code": "queue_full", "message": NASTY, "request_id": "r-1"}}


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("quota", 429, "rate_limit_error"),
        ("anything", 429, "rate_limit_error"),
        ("unauthorized", 401, "authentication_error"),
        ("bad_value", 400, "invalid_request_error"),
        ("no_endpoint", 503, "server_error"),
    ],
)
def test_openai(code: str, status: int, kind: str) -> None:
    _, body = error_body("openai", code, NASTY, "r-1", status)
    assert json.loads(body)["error"] == {
        "message": NASTY,
        "type": kind,
        "param": None,
        "code": code,
        "request_id": "r-1",
    }


def test_the_openai_library_reads_it() -> None:
    media, body = error_body("openai", "quota", "wait a little", "r-1", 429)

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, headers={"content-type": media.decode()}, content=body)

    with httpx.Client(transport=httpx.MockTransport(handler)) as http:
        client = openai.OpenAI(api_key="k", base_url="http://a.example", max_retries=0, http_client=http)
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
    assert caught.value.code == "quota"
    assert caught.value.type == "rate_limit_error"


def test_sse_is_one_event() -> None:
    media, body = error_body("sse", "endpoint_died", NASTY)
    assert media == b"text/event-stream"
    assert body.startswith(b"event: error\ndata: {")
    assert body.count(b"\n") == 3


def test_text() -> None:
    media, body = error_body("text", "queue_full", "try again in 5 s", "r-1")
    assert media == b"text/plain; charset=utf-8"
    assert body == b"queue_full: try again in 5 s\nrequest id: r-1\n"
