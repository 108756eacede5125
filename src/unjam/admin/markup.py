"""Small pieces of HTML that the status page is made of. Every text that comes in is escaped; widths are attributes,
since a style attribute would need a weaker content security policy."""

from __future__ import annotations

import re
from html import escape
from typing import Final

#: A space at which no line is broken, and where it is better than another.
STAY: Final = "\u00a0"
_UNIT: Final = re.compile(r"(?<=\d) (?=[%sKMG])")


def pill(tone: str, text: str) -> str:
    """`tone`: ok, note, warn or bad."""
    return f'<span class="pill {tone}">{escape(_UNIT.sub(STAY, text))}</span>'


def dim(text: str) -> str:
    return f'<span class="dim">{escape(_UNIT.sub(STAY, text))}</span>' if text else ""


def clock(at: object) -> str:
    """A time of RFC 3339 in UTC: the time of day, and the date below it. Empty for None."""
    said = "" if at is None else str(at)
    date, _, time = said.partition("T")
    shown = f"{escape(time[:8])}<small>{escape(date)}</small>" if time else escape(said)
    return f'<time datetime="{escape(said)}">{shown}</time>' if said else ""


def moment(at: object) -> str:
    """As `clock`, to the millisecond and in one line; the date may be left out where there is little room."""
    said = "" if at is None else str(at)
    date, _, time = said.partition("T")
    if not time:
        return escape(said)
    shown = escape(time.removesuffix("Z")[:12])
    return f'<time datetime="{escape(said)}"><span class="dim a">{escape(date)} </span>{shown}</time>'


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min"


def percent(share: float) -> str:
    """Of 0 .. 1; a share that is not nothing is not shown as such."""
    return f"{number(100 * share) if share < 0.1 else f'{100 * share:.0f}'}{STAY}%"


def clip(share: float) -> float:
    return min(1.0, max(0.0, share))


def meter(share: float, tone: str, said: str = "") -> str:
    """A bar that is full to `share`, 0 .. 1. `tone`: class of the filled part; `said`: for who can't see it, else the
    bar is left out of what is read aloud."""
    told = f'role="img" aria-label="{escape(said)}"' if said else 'aria-hidden="true"'
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" {told}><rect class="free" width="100" '
        f'height="10"/><rect class="{tone}" width="{100 * clip(share):.2f}" height="10"/></svg>'
    )
