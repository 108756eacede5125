"""What every place for kept decisions does: `unjam.kept.base`, promise by promise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from unjam.kept.base import LARGEST, LOGGED, MOST, Change, KeptAway

from .conftest import Harness, change


def of(found: list[Change]) -> list[tuple[int, str, Any]]:
    return [(each.n, each.key, each.after) for each in found]


async def test_an_empty_place(h: Harness) -> None:
    assert await h.kept.current() == {}
    assert await h.kept.history() == []
    assert await h.kept.since(0) == []


async def test_a_change_is_the_value_and_is_logged_whole(h: Harness) -> None:
    given = change(
        "weight/agent/v8",
        {"weight": 20.5, "base": 10.0},
        before=10.0,
        who='token:1a2b3c4d@10.0.0.1 "n":1}',
        why="größer",
        where="g-2",
    )
    assert await h.kept.put(given) == 1
    (kept,) = await h.kept.history()
    assert kept == Change(
        key="weight/agent/v8",
        after={"weight": 20.5, "base": 10.0},
        before=10.0,
        who='token:1a2b3c4d@10.0.0.1 "n":1}',
        why="größer",
        where="g-2",
        at=1_700_000_000.0,
        n=1,
    )
    assert await h.kept.current() == {"weight/agent/v8": kept}
    assert await h.kept.since(0) == [kept]


async def test_the_last_one_counts_and_all_are_logged(h: Harness) -> None:
    for n in range(1, 6):
        assert await h.kept.put(change(f"weight/agent/v{n % 2}", n)) == n
    assert {key: each.after for key, each in (await h.kept.current()).items()} == {
        "weight/agent/v0": 4,
        "weight/agent/v1": 5,
    }
    assert [each.after for each in await h.kept.history()] == [5, 4, 3, 2, 1]
    assert of(await h.kept.since(3)) == [(4, "weight/agent/v0", 4), (5, "weight/agent/v1", 5)]


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, {"deep": [1, {"é": None}]}])
async def test_any_json_value(h: Harness, value: Any) -> None:
    await h.kept.put(change("rollout/agent", value))
    assert (await h.kept.current())["rollout/agent"].after == value


async def test_several_at_once_are_numbered_in_their_order(h: Harness) -> None:
    await h.kept.put(change("drain/http://a", True))
    assert await h.kept.put(change("weight/a/v7", 90), change("weight/a/v8", 10)) == 3
    assert of(await h.kept.since(1)) == [(2, "weight/a/v7", 90), (3, "weight/a/v8", 10)]
    with pytest.raises(ValueError, match="no change"):
        await h.kept.put()


async def test_what_is_too_large_changes_nothing(h: Harness) -> None:
    with pytest.raises(ValueError, match="bytes"):
        await h.kept.put(change("rollout/a", 1), change("rollout/b", "x" * LARGEST))
    assert await h.kept.current() == {}
    assert await h.kept.put(change("rollout/a", 2)) == 1


async def test_history_by_pages_and_by_key(h: Harness) -> None:
    for n in range(1, 31):
        await h.kept.put(change(f"{('weight', 'breaker', 'weights')[n % 3]}/agent/v{n % 2}", n))
    assert [each.n for each in await h.kept.history(4)] == [30, 29, 28, 27]
    assert [each.n for each in await h.kept.history(4, before=27)] == [26, 25, 24, 23]
    assert await h.kept.history(4, before=1) == []
    assert [each.n for each in await h.kept.history(3, key="weight")] == [30, 27, 24]
    assert [each.n for each in await h.kept.history(3, before=24, key="weight")] == [21, 18, 15]
    assert [each.n for each in await h.kept.history(2, key="breaker/agent/v1")] == [25, 19]
    assert await h.kept.history(key="weight/agent/v") == []
    assert await h.kept.history(key="weight/%") == []


async def test_many_at_the_same_time_lose_nothing(h: Harness) -> None:
    numbers = await asyncio.gather(*[h.kept.put(change(f"weight/a/v{n % 7}", n)) for n in range(100)])
    assert sorted(numbers) == list(range(1, 101))
    logged = await h.kept.since(0)
    assert [each.n for each in logged] == list(range(1, 101))
    assert sorted(each.after for each in logged) == list(range(100))
    last = {each.key: each for each in logged}
    assert await h.kept.current() == last


async def test_since_gives_what_it_can_at_once_and_goes_on(h: Harness) -> None:
    for start in range(0, MOST + 50, 50):
        await h.kept.put(*[change("weight/a/v1", start + n) for n in range(50)])
    first = await h.kept.since(0)
    assert [each.n for each in first] == list(range(1, MOST + 1))
    rest = await h.kept.since(first[-1].n)
    assert [each.n for each in rest] == list(range(MOST + 1, MOST + 51))
    assert len(await h.kept.history(5 * MOST)) == MOST


async def test_a_number_from_a_longer_log_is_told_all(h: Harness) -> None:
    await h.kept.put(change("weight/a/v1", 1), change("weight/a/v1", 2))
    assert await h.kept.since(2) == []
    assert [each.n for each in await h.kept.since(17)] == [1, 2]


async def test_the_log_is_bounded_and_values_stay(h: Harness) -> None:
    await h.kept.put(change("drain/http://a", True))
    more = LOGGED + 400
    for start in range(0, more, 200):
        await h.kept.put(*[change("weight/a/v1", start + n) for n in range(200)])
    assert [each.n for each in await h.kept.history(1)] == [more + 1]
    oldest = (await h.kept.since(0))[0].n
    assert 1 < oldest <= more + 2 - LOGGED
    current = await h.kept.current()
    assert (current["drain/http://a"].after, current["weight/a/v1"].n) == (True, more + 1)


@pytest.mark.lasting
async def test_all_is_there_when_it_is_opened_again(h: Harness) -> None:
    await h.kept.put(change("weight/a/v7", 90), change("weight/a/v8", 10))
    before = await h.kept.history()
    await h.reopen()
    assert await h.kept.history() == before
    assert await h.kept.put(change("weight/a/v8", 20)) == 3


@pytest.mark.lasting
async def test_two_gateways_see_one_log(h: Harness) -> None:
    other = h.another()
    await other.open()
    try:
        numbers = await asyncio.gather(
            *[each.put(change("weight/a/v1", n, where=str(n % 2))) for n in range(40) for each in (h.kept, other)]
        )
        assert sorted(numbers) == list(range(1, 81))
        assert await other.since(0) == await h.kept.since(0)
        assert await other.current() == await h.kept.current()
    finally:
        await other.close()


@pytest.mark.lasting
async def test_what_is_closed_is_away_until_it_is_opened(h: Harness) -> None:
    await h.kept.put(change("weight/a/v1", 1))
    await h.kept.close()
    await h.kept.close()
    with pytest.raises(KeptAway, match="closed"):
        await h.kept.current()
    await h.kept.open()
    assert (await h.kept.current())["weight/a/v1"].after == 1
