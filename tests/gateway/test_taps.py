"""What is kept of answers for evaluators."""

from __future__ import annotations

from unjam.gateway.taps import Tap


def test_of_an_answer_that_is_too_long_nothing_is_kept_and_the_end_for_usage() -> None:
    tap = Tap(True, None, wanted=10)
    tap.feed(b"12345")
    tap.feed(b"67890")
    assert (tap.whole, tap.pieces, tap.tail) == (True, [b"12345", b"67890"], b"1234567890")
    tap.feed(b"1")
    assert (tap.whole, tap.pieces, tap.tail) == (False, [], b"12345678901")
    tap.feed(b"")
    assert not tap.whole
