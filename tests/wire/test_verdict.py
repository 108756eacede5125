"""Verdicts of agents on their own answers: two words, a reason that fits a line, and nothing that breaks a log."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.verdict import LONGEST, BadVerdict, from_event, from_header


@pytest.mark.parametrize(
    ("value", "bad", "reason"),
    [
        (b"bad", True, ""),
        (b"good", False, ""),
        (b" BAD ; it made up a  source ", True, "it made up a source"),
        (b"bad; caf\xc3\xa9", True, "café"),
    ],
)
def test_headers(value: bytes, bad: bool, reason: str) -> None:
    assert from_header(value) == (bad, reason)


@pytest.mark.parametrize("value", [b"", b"worse", b"bad, bad", b"0.3", b"good bad"])
def test_what_says_neither_is_refused(value: bytes) -> None:
    with pytest.raises(BadVerdict):
        from_header(value)


@pytest.mark.parametrize("data", [b"", b"bad", b"{}", b"[]", b'{"verdict": 1}', b'{"verdict": "bad"', b"[" * 100_000])
def test_events_that_say_neither_are_refused(data: bytes) -> None:
    with pytest.raises(BadVerdict):
        from_event(data)


@given(st.sampled_from(["good", "bad"]), st.text())
def test_events(word: str, reason: str) -> None:
    said = from_event(json.dumps({"verdict": word, "reason": reason}).encode())
    assert said.bad is (word == "bad")
    assert len(said.reason) <= LONGEST
    assert said.reason == " ".join(reason.split())[:LONGEST]


@given(st.binary())
def test_any_header(value: bytes) -> None:
    try:
        said = from_header(value)
    except BadVerdict:
        return
    assert "\n" not in said.reason
