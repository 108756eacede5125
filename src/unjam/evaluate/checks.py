"""The evaluators that need no model. Each is made from its options and then says of a record what is wrong with it:
in words that hold nothing of the answer, as they are logged; empty when nothing is."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from unjam.evaluate.record import Record
from unjam.evaluate.text import refused

Check = Callable[[Record], str]

# -- refusal -----------------------------------------------------------------------------------------------------------

#: Characters at the beginning in which a refusal is looked for: further on it is mostly quoted.
BEGINNING: Final = 300

_CANT = r"(?:can(?:'t| ?not)|could(?:n't| not)|won't|will not|am unable to|'m unable to|am not able to|'m not able to)"
_DO = (
    r"(?:help|assist|comply|fulfil|answer|provide|do that|do this|continue|engage|support|discuss|create|generate|write"
    r"|process|complete|share|give|offer|respond)"
)
_REFUSALS: Final = re.compile(
    rf"\bi ?{_CANT} (?:\w+ )?{_DO}"
    rf"|\b(?:sorry|apologi[sz]e|afraid)\b[^.!?\n]{{0,40}}\bi ?{_CANT}\b"
    r"|\bas an ai\b(?: language)?(?: model| assistant)?"
    r"|\bi (?:must|have to|need to) (?:\w+ )?(?:decline|refuse)\b"
    r"|\b(?:against|violates?) (?:my|our|the) (?:content |usage |safety )?(?:guidelines|programming|polic(?:y|ies))\b",
    re.IGNORECASE,
)


def refusal(options: Mapping[str, Any]) -> Check:
    def check(record: Record) -> str:
        if refused(record.answer, record.content_type):
            return "the provider says that the model refused"
        beginning = record.text.lstrip()[:BEGINNING].replace("\u2019", "'")
        return "it begins like a refusal" if _REFUSALS.search(beginning) else ""

    return check


# -- repetition --------------------------------------------------------------------------------------------------------

#: One character so often in a row, of those that make no rules and tables.
CHARACTERS: Final = 100
#: One line so often, and more than so much of all lines.
LINES: Final = 10
LINES_SHARE: Final = 0.5
#: The end is one phrase of at most `PHRASE` words, `TIMES` over, of at least `TAIL` words together.
PHRASE: Final = 40
TIMES: Final = 6
TAIL: Final = 40
#: Fewer than this part of all runs of `GRAM` words are different, in texts of at least `WORDS` words; where words are
#: not set apart, of `LETTERS` letters in texts of at least five times as many letters as words.
DIFFERENT: Final = 0.2
GRAM: Final = 4
WORDS: Final = 100
LETTERS: Final = 12

#: Characters at the end of a text that are looked at: phrases take some sixty times the memory of their first letter.
ENOUGH: Final = 200_000

_ROW: Final = re.compile(rf"([^\s\-=_*#.~|+])\1{{{CHARACTERS - 1}}}")


def repetition(options: Mapping[str, Any]) -> Check:
    def check(record: Record) -> str:
        return repeats(record.text)

    return check


def repeats(text: str) -> str:
    text = text[-ENOUGH:]
    if _ROW.search(text):
        return f"one character {CHARACTERS} times in a row"
    lines = [line for line in map(str.strip, text.splitlines()) if any(map(str.isalnum, line)) and len(line) > 2]
    if len(lines) >= LINES:
        most = Counter(lines).most_common(1)[0][1]
        if most >= LINES and most > LINES_SHARE * len(lines):
            return f"one line {most} times"
    words = text.split()
    if _looping(words):
        return "it ends in a loop"
    if len(words) >= WORDS:
        return _few([tuple(words[n : n + GRAM]) for n in range(len(words) - GRAM + 1)])
    letters = "".join(filter(str.isalnum, text))
    if len(letters) >= 5 * WORDS:
        return _few([letters[n : n + LETTERS] for n in range(len(letters) - LETTERS + 1)])
    return ""


def _looping(words: list[str]) -> bool:
    for length in range(1, min(PHRASE, len(words) // TIMES) + 1):
        tail = max(TIMES * length, TAIL)
        if len(words) >= tail and words[-tail:-length] == words[length - tail :]:
            return True
    return False


def _few(grams: list[Any]) -> str:
    different = len(set(grams)) / len(grams)
    return f"only {different:.0%} of its phrases are different" if different < DIFFERENT else ""


# -- the others --------------------------------------------------------------------------------------------------------


def length(options: Mapping[str, Any]) -> Check:
    """`least`, `most`: characters of its words."""
    least, most = options.get("least") or 0, options.get("most")

    def check(record: Record) -> str:
        size = len(record.text)
        if size < least:
            return f"{size} characters, fewer than {least}"
        return f"{size} characters, more than {most}" if most is not None and size > most else ""

    return check


def pattern(options: Mapping[str, Any]) -> Check:
    must, never = (re.compile(options[key]) if options.get(key) else None for key in ("must", "never"))

    def check(record: Record) -> str:
        if must is not None and must.search(record.text) is None:
            return "what must be there is not"
        return "what must never be there is" if never is not None and never.search(record.text) else ""

    return check


def schema(options: Mapping[str, Any]) -> Check:
    """Raises OSError, ValueError for a file that holds no schema."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry

    with open(options["file"], "rb") as opened:
        held = json.load(opened)
    kind = validator_for(held)
    kind.check_schema(held)
    # A registry of its own: references to elsewhere are never fetched.
    validator = kind(held, registry=Registry())

    def check(record: Record) -> str:
        try:
            value = record.json
        except ValueError as error:
            return str(error)
        wrong = best_match(validator.iter_errors(value))
        return "" if wrong is None else f"{_place(wrong.absolute_path)} does not fit: {wrong.validator}"

    return check


def _place(path: Any) -> str:
    """A place in the answer, as `$.steps[0].name`. Names that the answer chose itself are cut."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{str(part)[:40]}" for part in list(path)[:8])


CHECKS: Final[dict[str, Callable[[Mapping[str, Any]], Check]]] = {
    "schema": schema,
    "refusal": refusal,
    "repetition": repetition,
    "length": length,
    "pattern": pattern,
}
