"""Quantities as people write them: `1h30m`, `16GiB`, `5%`, `2M`. One parser and one formatter per kind.

Text comes from a file, and always needs its unit there: a bare `60` is seconds to one proxy and milliseconds to
another. A Python number is taken as seconds, bytes, a fraction or a count. Every parser raises `BadValue`, which says
what was wrong and what to write instead; `parse(format(x)) == x` holds for each pair.
"""

from __future__ import annotations

import itertools
import math
import re
from decimal import Decimal

_DIGITS = r"[0-9]{1,20}(?:\.[0-9]{1,9})?"
_NUMBER = re.compile(rf"{_DIGITS}\Z")
_DURATION = re.compile(rf"(?:{_DIGITS}(?:ms|s|m|h|d))+\Z")
_DURATION_PART = re.compile(rf"({_DIGITS})(ms|s|m|h|d)")
_WITH_UNIT = re.compile(rf"({_DIGITS})\s?([A-Za-z%]*)\Z")

_SECONDS = {"d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_UNIT_ORDER = {unit: place for place, unit in enumerate(_SECONDS)}
#: Longer is a mistake in the unit, and would overflow timers.
LONGEST = 366 * 86400.0

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_MANY = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
LARGEST = 2**60


class BadValue(ValueError):
    """`message`: what is wrong, without the key. `fix`: what to write instead, a whole sentence."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


def shown(value: object) -> str:
    """A value for a message: short, printable, quoted when it is text."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _finite(value: object, what: str, fix: str) -> float | None:
    """The number when `value` is a Python number, None when it is text; anything else is refused."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadValue(f"must be {what}, not {kind(value)}", fix)
    if isinstance(value, str):
        return None
    if not math.isfinite(value) or value < 0:
        raise BadValue(f"{shown(value)} is not {what}", fix)
    return float(value)


def kind(value: object) -> str:
    """What a value is, in the words of the file format."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "text" if isinstance(value, str) else type(value).__name__


def duration(value: object) -> float:
    """Seconds from `60s`, `1h30m`, `250ms`. Units d, h, m, s, ms, largest first, each at most once."""
    fix = "Write a duration with its unit, such as 250ms, 60s or 1h30m."
    number = _finite(value, "a duration", fix)
    if number is None:
        text = str(value).strip()
        if text == "0":
            return 0.0
        if _NUMBER.match(text):
            raise BadValue(f"{shown(text)} has no unit", f"Write {text}s for seconds, {text}ms for milliseconds.")
        if not _DURATION.match(text):
            raise BadValue(f"{shown(text)} is not a duration", fix)
        parts = _DURATION_PART.findall(text)
        places = [_UNIT_ORDER[unit] for _, unit in parts]
        if any(later <= earlier for earlier, later in itertools.pairwise(places)):
            raise BadValue(f"{shown(text)} has its units out of order or twice", "Write the largest first: 1h30m.")
        number = float(sum(Decimal(amount) * _SECONDS[unit] for amount, unit in parts))
    if number > LONGEST:
        raise BadValue(f"{shown(value)} is longer than a year", fix)
    return number


def format_duration(seconds: float) -> str:
    """The shortest exact spelling: 3600 → `1h`, 0.25 → `250ms`, 5400 → `1h30m`."""
    if not seconds:
        return "0s"
    left = Decimal(repr(float(seconds)))
    parts = []
    for unit, size in _SECONDS.items():
        if unit == "ms":
            amount, left = left / size, Decimal(0)
        elif unit == "s" and left % size and left < 1:
            continue
        else:
            amount, left = (left // size, left % size)
        if amount:
            parts.append(f"{amount.normalize():f}{unit}")
    return "".join(parts)


def size(value: object) -> int:
    """Bytes from `16GiB`, `64MB`, `512`. `Gi` is GiB; a bare `G` is refused, it means either."""
    fix = "Write a size such as 64KiB, 64MB or 16GiB."
    number = _finite(value, "a size", fix)
    if number is None:
        found = _WITH_UNIT.match(str(value).strip())
        if not found:
            raise BadValue(f"{shown(value)} is not a size", fix)
        amount, unit = found[1], found[2].lower()
        if unit in ("k", "m", "g", "t"):
            letter = unit.upper()
            raise BadValue(
                f"{shown(value)} could mean two sizes",
                f"Write {amount}{letter}iB (1024s) or {amount}{letter}B (1000s).",
            )
        if unit not in _BYTES:
            raise BadValue(f"{shown(value)} has no unit of size", fix)
        exact = Decimal(amount) * _BYTES[unit]
        number = _whole(exact, value, "bytes")
    elif number != int(number):
        raise BadValue(f"{shown(value)} is not a whole number of bytes", fix)
    if number > LARGEST:
        raise BadValue(f"{shown(value)} is too large", fix)
    return int(number)


def format_size(count: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and not count % _BYTES[unit.lower()]:
            return f"{count // _BYTES[unit.lower()]}{unit}"
    return str(count)


def share(value: object) -> float:
    """A fraction of one from `5%` or `0.05`."""
    fix = "Write a share of the whole, such as 5% or 0.05."
    number = _finite(value, "a share", fix)
    if number is None:
        text = str(value).strip()
        bare = text.removesuffix("%").rstrip()
        if not _NUMBER.match(bare):
            raise BadValue(f"{shown(text)} is not a share", fix)
        number = float(Decimal(bare) / 100) if text.endswith("%") else float(bare)
        if number > 1 and bare == text:
            raise BadValue(f"{shown(text)} is more than the whole", f"Write {text}%." if number <= 100 else fix)
    if number > 1:
        raise BadValue(f"{shown(value)} is more than the whole", fix)
    return number


def format_share(fraction: float) -> str:
    return f"{(Decimal(repr(float(fraction))) * 100).normalize():f}%"


def count(value: object) -> int:
    """A whole number from `1000`, `10k`, `2M`, `1.5M`."""
    fix = "Write a whole number, such as 100, 10k or 2M."
    number = _finite(value, "a whole number", fix)
    if number is None:
        found = _WITH_UNIT.match(str(value).strip())
        if not found or found[2] not in _MANY:
            if found and found[2] in ("K", "m", "g"):
                right = {"K": "k", "m": "M", "g": "G"}[found[2]]
                raise BadValue(f"{shown(value)} is not a whole number", f"Write {found[1]}{right}.")
            raise BadValue(f"{shown(value)} is not a whole number", fix)
        number = _whole(Decimal(found[1]) * _MANY[found[2]], value, "")
    elif number != int(number):
        raise BadValue(f"{shown(value)} is not a whole number", fix)
    if number > LARGEST:
        raise BadValue(f"{shown(value)} is too large", fix)
    return int(number)


def format_count(number: int) -> str:
    for unit, least in (("G", 1), ("M", 1), ("k", 10)):
        if number >= least * _MANY[unit] and not number % _MANY[unit]:
            return f"{number // _MANY[unit]}{unit}"
    return str(number)


def number(value: object) -> float:
    """A plain number from `8`, `0.5`: cores, weights, factors."""
    fix = "Write a number, such as 1, 8 or 0.5."
    parsed = _finite(value, "a number", fix)
    if parsed is None:
        text = str(value).strip()
        if not _NUMBER.match(text):
            negative = text.startswith("-") and _NUMBER.match(text[1:])
            raise BadValue(f"{shown(text)} is {'negative' if negative else 'not a number'}", fix)
        parsed = float(text)
    return parsed


def format_number(value: float) -> str:
    return f"{Decimal(repr(float(value))).normalize():f}"


def switch(value: object) -> bool:
    """true or false; `on`, `off`, `yes` and `no` are understood."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "on", "yes"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "off", "no"):
        return False
    raise BadValue(f"{shown(value)} is neither true nor false", "Write true or false.")


def _whole(exact: Decimal, value: object, what: str) -> float:
    if exact != exact.to_integral_value():
        raise BadValue(
            f"{shown(value)} is not a whole number{' of ' + what if what else ''}", "Write it without a rest."
        )
    return int(exact)
