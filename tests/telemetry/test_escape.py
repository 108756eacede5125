from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.telemetry.escape import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x7f", "\\x7f"),
        ("\x9b", "\\x9b"),
        ("\u202e", "\\u202e"),
        ("\U0001f600", "\\U0001f600"),
        ("a\\b", "a\\b"),
        ("abcdef", "abcd…"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text, 4 if shown.endswith("…") else 1024) == shown


@given(st.text(st.characters(codec=None)))
def test_always_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert shown.removesuffix("…").isascii()
    assert shown.isprintable()
