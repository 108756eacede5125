"""The maintenance message in every form is whole and well formed, whatever it says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.dialects.maintenance import Form, maintenance_body

FORMS: tuple[Form, ...] = ("json", "openai", "chat", "completion", "response")


@given(st.text(min_size=1), st.sampled_from(FORMS), st.sampled_from([200, 503]), st.booleans())
def test_the_message_comes_out_as_it_went_in(message: str, form: Form, status: int, stream: bool) -> None:
    content_type, body = maintenance_body(
        form, message, status=status, retry_after=1.5, request_id="r-1", stream=stream, model="m", created=7.9
    )
    body.decode("ascii")
    if content_type == b"application/json":
        documents = [json.loads(body)]
    else:
        assert content_type == b"text/event-stream"
        assert body.endswith(b"\n\n")
        data = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
        documents = [json.loads(piece) for piece in data if piece != b"[DONE]"]
    assert message in list(_strings(documents))


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return []


@pytest.mark.parametrize("form", ["openai", "chat", "completion", "response"])
def test_errors_for_openais_sdk_are_json_although_a_stream_was_asked_for(form: Form) -> None:
    content_type, body = maintenance_body(form, "no", status=503, retry_after=1.0, stream=True)
    assert content_type == b"application/json"
    assert json.loads(body)["error"]["type"] == "server_error"
