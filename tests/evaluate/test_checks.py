"""What the evaluators that need no model find wrong, and what they leave alone."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from unjam.evaluate import Record, Verdict
from unjam.evaluate.checks import CHECKS, repeats
from unjam.evaluate.named import understood
from unjam.evaluate.record import Unreadable, plain


def record(answer: bytes | str | dict[str, Any], content_type: str = "text/plain", encoding: str = "") -> Record:
    if isinstance(answer, dict):
        answer, content_type = json.dumps(answer), "application/json"
    return Record(
        service="s",
        version="v",
        request=b"{}",
        answer=answer.encode() if isinstance(answer, str) else answer,
        status=200,
        content_type=content_type,
        seconds=0.5,
        encoding=encoding,
    )


def events(*data: Any) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (each.encode() if isinstance(each, str) else json.dumps(each).encode()) for each in data
    )


CHAT = {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there"}}]}
RESPONSE = {
    "object": "response",
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi there"}]},
    ],
}


@pytest.mark.parametrize(
    ("answer", "content_type"),
    [
        (b"Hi there", "text/plain"),
        (json.dumps(CHAT).encode(), "application/json; charset=utf-8"),
        (json.dumps(RESPONSE).encode(), "application/json"),
        (json.dumps({"choices": [{"text": "Hi there"}]}).encode(), "application/json"),
        (
            json.dumps({"type": "message", "content": [{"type": "text", "text": "Hi there"}]}).encode(),
            "application/json",
        ),
        (b'"Hi there"', "application/json"),
        (
            events(
                {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
                {"choices": [{"index": 0, "delta": {"content": "Hi "}}]},
                {"choices": [{"index": 1, "delta": {"content": "other"}}]},
                {"choices": [{"index": 0, "delta": {"content": "there"}}]},
                {"choices": [], "usage": {"total_tokens": 3}},
                "[DONE]",
            ),
            "text/event-stream",
        ),
        (
            events(
                {"type": "response.created", "response": {}},
                {"type": "response.output_text.delta", "delta": "Hi "},
                {"type": "response.output_text.delta", "delta": "there"},
                {"type": "response.output_text.done", "text": "Hi there"},
                {"type": "response.completed", "response": RESPONSE},
            ),
            "text/event-stream",
        ),
        (
            events(
                {"type": "message_start", "message": {}},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi there"}},
                {"type": "message_stop"},
            ),
            "text/event-stream",
        ),
        (b"event: unjam.verdict\ndata: {}\n\ndata: Hi there\n\n", "text/event-stream"),
    ],
)
def test_the_words_are_found_in_every_shape(answer: bytes, content_type: str) -> None:
    assert record(answer, content_type).text == "Hi there"


def test_what_has_none_of_the_shapes_is_taken_as_it_is() -> None:
    assert record({"rows": [1, 2]}).text == '{"rows": [1, 2]}'
    assert record(b"\xff\xfe", "application/json").text == "\ufffd\ufffd"
    assert record(b'data: {"a": 1}\n\ndata: {"b": 2}\n\n', "text/event-stream").text == '{"a": 1}\n{"b": 2}'
    assert record(b"{" * 100_000, "application/json").text.startswith("{{{")
    assert record(b"").text == ""


def test_compressed_answers_are_read_within_bounds() -> None:
    assert plain(record(gzip.compress(b"hello"), encoding="gzip")).text == "hello"
    assert plain(record(b"hello", encoding="identity")).text == "hello"
    bomb = gzip.compress(b"x" * (64 << 20))
    for answer, encoding in (
        (b"hello", "br"),
        (b"hello", "gzip"),
        (bomb, "gzip"),
        (gzip.compress(b"x" * 99)[:-9], "gzip"),
    ):
        with pytest.raises(Unreadable):
            plain(record(answer, encoding=encoding))


# -- refusal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "I cannot provide medical advice.",
        "Sorry, I am unable to complete this task at the moment.",
        "As an AI language model, I do not have opinions.",
        "I must respectfully decline to answer.",
        "Unfortunately this is against my guidelines.",
        {"choices": [{"message": {"content": None, "refusal": "I won't."}}]},
        {"choices": [{"message": {"content": "Well"}, "finish_reason": "content_filter"}]},
        {"object": "response", "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]},
    ],
)
def test_refusals(answer: Any) -> None:
    assert CHECKS["refusal"]({})(record(answer))


@pytest.mark.parametrize(
    "answer",
    [
        "The audit found 3 issues. I can help you fix them.",
        "I'm sorry to hear that your order is late. It arrives on Monday.",
        "The pump cannot provide more than 3 bar.",
        "You can't write to this file because it is read-only.",
        "x " * 200 + "The agent said: I'm sorry, but I can't help with that.",
        {"result": 7, "refusal": None},
        "",
    ],
)
def test_what_is_no_refusal(answer: Any) -> None:
    assert not CHECKS["refusal"]({})(record(answer))


# -- repetition --------------------------------------------------------------------------------------------------------

PROSE = (
    "A breaker judges a version by what its calls come to. It adds evidence call by call, and single failures fade, "
    "while a rate that goes on does not. When it trips, the other versions take over, and after a while the version is "
    "given a little of its traffic back, step by step, each of them a test of its own. Whoever wants to see why it did "
    "what it did asks for its state, which says so in words, with the figures that led to it and those it waits for. "
    "Nothing of this costs more than a microsecond, since a success that would change nothing is not even recorded."
)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("a" * 300, "one character"),
        ("All good.\n" * 30, "one line"),
        (PROSE + " and so on" * 40, "loop"),
        (PROSE + " the" * 60, "loop"),
        (" ".join(f"w{n % 7} x{n % 7} y{n % 7}" for n in range(200)) + " end", "phrases"),
        ("abcdefghijklmnop" * 60 + "!", "phrases"),
    ],
)
def test_degenerate_loops(answer: str, why: str) -> None:
    assert why in repeats(answer)


@pytest.mark.parametrize(
    "answer",
    [
        PROSE,
        "",
        "no no no no no",
        "-" * 500,
        "\n" * 500,
        "| a | b |\n|---|---|\n" + "\n".join(f"| {n} | {n * n} |" for n in range(200)),
        "\n".join(f"for i in range({n}):\n    print(i)\n" for n in range(40)),
        "\n".join(json.dumps({"id": n, "name": f"item {n * 7919 % 1000}", "ok": n % 3 == 0}) for n in range(100)),
        "0, " * 20,
    ],
)
def test_what_repeats_as_it_should(answer: str) -> None:
    assert repeats(answer) == ""


# -- the others --------------------------------------------------------------------------------------------------------


def test_length_counts_the_characters_of_the_words() -> None:
    check = CHECKS["length"]({"least": 3, "most": 8})
    assert [bool(check(record(answer))) for answer in ("ab", "abc", "äöüäöüäö", "123456789")] == [
        True,
        False,
        False,
        True,
    ]
    assert not check(record(CHAT))


def test_patterns_are_looked_for_in_the_words() -> None:
    check = CHECKS["pattern"]({"must": r"\[\d+\]", "never": "(?i)lorem"})
    assert [check(record(answer)) for answer in ("see [1]", "see", "Lorem [2]")] == [
        "",
        "what must be there is not",
        "what must never be there is",
    ]


def test_the_schema_is_held_against_the_json_of_the_answer(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "required": ["price"],
        "properties": {"price": {"$ref": "#/$defs/price"}},
        "$defs": {"price": {"type": "number", "minimum": 0}},
    }
    (tmp_path / "s.json").write_text(json.dumps(schema))
    check = CHECKS["schema"]({"file": str(tmp_path / "s.json")})
    assert check(record({"price": 3})) == ""
    assert check(record({"price": -3})) == "$.price does not fit: minimum"
    assert check(record({"prize": 3})) == "$ does not fit: required"
    assert check(record("price: 3")) == "the answer is not JSON"
    said = {"choices": [{"message": {"content": '{"price": 4}'}}]}
    assert check(record(said)) == ""
    said["choices"][0]["message"]["content"] = '{"price": "secret"}'
    assert check(record(said)) == "$.price does not fit: type"


def test_a_schema_elsewhere_is_never_fetched(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"$ref": "http://127.0.0.1:9/schema.json"}')
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        CHECKS["schema"]({"file": str(tmp_path / "s.json")})(record({}))


def test_what_a_function_may_return() -> None:
    assert understood(True) == Verdict(True)
    assert understood((False, "made up")) == Verdict(False, "made up")
    assert understood(Verdict(False)) == Verdict(False)
    for wrong in (None, 1, "good", (1, "x"), (True,), (True, None)):
        with pytest.raises(TypeError):
            understood(wrong)


def test_a_long_answer_takes_no_more_memory_than_its_end() -> None:
    letters = random.Random(1)
    text = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=2_000_000))
    tracemalloc.start()
    try:
        assert repeats(text) == ""
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert repeats(text + 50 * " and so on") == "it ends in a loop"
