"""Stores of runs. `base` says what each must do; the others do it, and one suite checks them all.

Nothing is imported here before it is made: who uses one store doesn't pay for the others.
"""

from __future__ import annotations

from collections.abc import Callable

from unjam.runs.store.base import LEASE, Store


def make(url: str, on_warning: Callable[[str], None] = lambda why: None, lease: float = LEASE) -> Store:
    """The store of a URL: `memory`, `sqlite:PATH`, or one of the Redis URLs. Not open yet. `on_warning` is told, in
    words, of what endangers runs and still works; `lease`: seconds for which owners are waited for after a start or an
    outage. Raises ValueError for a URL of no store."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        from unjam.runs.store.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        from unjam.runs.store.sqlite import SqliteStore

        return SqliteStore(rest, lease=lease)
    if scheme == "unix" or scheme.startswith("redis"):
        from unjam.runs.store.redis import RedisStore

        return RedisStore(url, on_warning=on_warning, lease=lease)
    raise ValueError(f"{scheme!r} is no kind of store")
