"""What is remembered of a cluster's queues."""

from __future__ import annotations

import itertools

from unjam.runs.store.redis import RedisStore
from unjam.runs.store.redis_ready import Kind


def test_kinds_of_claims_that_nobody_asks_for_are_forgotten() -> None:
    store = RedisStore("redis+cluster://127.0.0.1:1")
    names = [f"s{n}" for n in range(12)]
    used = Kind(frozenset(names[:1]), True, ("fast",), None, frozenset())
    kept = store._heads_of(used)
    for size in range(3, 6):
        for some in itertools.combinations(names, size):
            store._heads_of(Kind(frozenset(some), True, ("fast",), None, frozenset()))
            assert store._heads_of(used) is kept
    assert len(store._heads) <= 32


def test_what_a_version_has_begun_is_not_looked_for_at_every_new_run() -> None:
    store = RedisStore("redis+cluster://127.0.0.1:1")
    for pinned, found in ((False, (0, 7)), (True, None)):
        heads = store._heads_of(Kind(frozenset({"s"}), True, ("fast",), "v8", frozenset(), pinned))
        heads.hint(True, "fast", "s", 7, 1.0)
        assert heads.take() == found
