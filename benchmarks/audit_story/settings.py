"""How long the audit takes, and everything that follows from that."""

from __future__ import annotations

from typing import NamedTuple

#: Seconds per page that an audit of any length comes near to; more pages than `MOST` are slower ones.
PACE = 0.15
LEAST, MOST = 60, 2000
#: From this many minutes on everything else has its usual length too.
LONG = 5.0


class Settings(NamedTuple):
    """`pages` of `pace` seconds each, of which the worker spends some computing: it reads a page `effort` times, which
    takes about a millisecond each time. `lease`: seconds. `away`: seconds that Redis, or a gateway, is not there.
    `every`: seconds between two looks at the page. `straight`: the second worker speaks to the store itself, with
    the lease that it has by itself, 30 s."""

    store: str
    pages: int
    pace: float
    effort: int
    lease: float
    away: float
    every: float
    browser: bool
    straight: bool


def scaled(store: str, minutes: float, browser: bool) -> Settings:
    """For an audit of so many minutes. ValueError for one that is over before something can be done to it."""
    seconds = minutes * 60
    if seconds < 5:
        raise ValueError("an audit takes 5 seconds at least: --minutes 0.1")
    pages = min(MOST, max(LEAST, round(seconds / PACE)))
    pace = seconds / pages
    long = minutes >= LONG
    return Settings(
        store=store,
        pages=pages,
        pace=pace,
        effort=max(1, round(150 * pace)),
        lease=30.0 if long else 4.0,
        away=10.0 if long else 0.2,
        every=1.0 if long else 0.2,
        browser=browser,
        straight=long and store == "redis",
    )
