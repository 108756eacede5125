"""What operators and breakers decided, kept over restarts and shared by the gateways of one state.

`base` says what each place must do; the others do it, and one suite (tests/kept) checks them all.

Nothing is imported here before it is made: who uses one kind doesn't pay for the others.
"""

from __future__ import annotations

from unjam.kept.base import Kept


def make(url: str) -> Kept:
    """Where the state of a URL keeps it: `memory`, `sqlite:PATH` (in a file of its own beside it, as the runs' store
    has that one to itself), or one of the Redis URLs. Not open yet. Raises ValueError for a URL of no store."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        from unjam.kept.memory import MemoryKept

        return MemoryKept()
    if scheme == "sqlite":
        from unjam.kept.sqlite import SqliteKept, beside

        return SqliteKept(beside(rest))
    if scheme.startswith("redis"):
        from unjam.kept.redis import RedisKept

        return RedisKept(url)
    raise ValueError(f"{scheme!r} is no kind of store")
