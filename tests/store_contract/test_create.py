"""Create: once for one key, all at once, within the queue's limit."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from unjam.runs.model import partition_of
from unjam.runs.store.base import LARGEST, KeyReused, QueueFull, TooLarge

from .harness import Harness, data, ids, new_run


async def test_a_new_run_is_queued_and_its_log_begins(h: Harness) -> None:
    metadata = msgspec.Raw(b'{"ticket":7}')
    run = await h.create(
        tenant="acme",
        lane="heavy",
        version="v7",
        retry="restart",
        max_attempts=5,
        deadline=h.now() + 900,
        metadata=metadata,
    )
    found = await h.store.get(run.id)
    assert found == run
    assert (found.status, found.lane, found.version, found.retry, found.max_attempts, found.pull) == (
        "queued", "heavy", "v7", "restart", 5, True,
    )  # fmt: skip
    assert (found.tenant, found.attempt, found.fence, found.seq) == ("acme", 0, 0, 1)
    assert (found.started, found.ended, found.worker, found.error) == (None, None, None, None)
    assert found.metadata is not None
    assert msgspec.json.decode(found.metadata) == {"ticket": 7}
    assert found.created == pytest.approx(h.now(), abs=5)
    assert found.deadline == pytest.approx(run.created + 900, abs=5)
    [event] = await h.log(run.id)
    assert (event.seq, event.type, data(event)) == (0, "run.created", {"service": "auditor", "lane": "heavy"})


async def test_ids_differ_and_say_their_partition(h: Harness) -> None:
    runs = [await h.create() for _ in range(50)]
    assert len(set(ids(runs))) == 50
    assert all(0 <= partition_of(run.id) < 128 for run in runs)


async def test_what_is_given_back_is_the_callers_own(h: Harness) -> None:
    run = await h.create()
    run.status = "failed"
    assert (await h.store.get(run.id)).status == "queued"


async def test_57_the_same_key_gives_the_same_run(h: Harness) -> None:
    first, made = await h.store.create(new_run(key="k"))
    again, made_again = await h.store.create(new_run(key="k"))
    assert (made, made_again) == (True, False)
    assert again.id == first.id
    assert await h.store.depth() == {"auditor": (1, 0)}


async def test_the_same_key_gives_the_run_as_it_is_now(h: Harness) -> None:
    claim = await h.taken(key="k")
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    again, made = await h.store.create(new_run(key="k"))
    assert (again.id, again.status, made) == (claim.run.id, "completed", False)


async def test_the_same_key_for_another_request_is_refused(h: Harness) -> None:
    run = await h.create(key="k")
    with pytest.raises(KeyReused):
        await h.store.create(new_run(key="k", digest=b"another"))
    assert ids(await h.store.list(None)) == [run.id]


@pytest.mark.parametrize("other", [{"tenant": "acme"}, {"service": "painter"}, {"key": "K"}, {"key": None}])
async def test_keys_of_others_are_others(h: Harness, other: dict[str, str]) -> None:
    run = await h.create(key="k")
    second = await h.create(**{"key": "k", **other})
    assert second.id != run.id


async def test_parts_of_a_key_do_not_run_together(h: Harness) -> None:
    first = await h.create(tenant="a", service="b:c", key="d")
    second = await h.create(tenant="a:b", service="c", key="d")
    third = await h.create(tenant="a", service="b", key="c:d")
    assert len({first.id, second.id, third.id}) == 3


async def test_57_one_key_many_at_once_one_run(h: Harness) -> None:
    answers = await asyncio.gather(*(h.store.create(new_run(key="k")) for _ in range(50)))
    assert len({run.id for run, _ in answers}) == 1
    assert sum(made for _, made in answers) == 1


@pytest.mark.needs("wall")
async def test_a_key_is_known_for_a_day(h: Harness) -> None:
    run = await h.create(key="k")
    h.wall(24 * 3600 - 60)
    again, made = await h.store.create(new_run(key="k"))
    assert (again.id, made) == (run.id, False)
    h.wall(120)
    other, made = await h.store.create(new_run(key="k", digest=b"another"))
    assert made
    assert other.id != run.id


@pytest.mark.needs("wall")
async def test_a_key_is_forgotten_with_its_run(h: Harness) -> None:
    claim = await h.taken(key="k")
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    h.wall(2 * 3600)
    assert await h.store.housekeep(3600) == 1
    _, made = await h.store.create(new_run(key="k"))
    assert made


async def test_a_full_queue_refuses_and_changes_nothing(h: Harness) -> None:
    runs = [await h.create(max_queued=3, lane=lane) for lane in ("fast", "heavy", "fast")]
    with pytest.raises(QueueFull):
        await h.store.create(new_run(max_queued=3))
    assert await h.store.depth() == {"auditor": (3, 0)}
    assert sorted(ids(await h.store.list(None))) == sorted(ids(runs))
    await h.create("painter", max_queued=3)
    await h.claim()
    await h.create(max_queued=3)


async def test_the_same_key_is_answered_though_the_queue_is_full(h: Harness) -> None:
    run = await h.create(key="k", max_queued=1)
    again, made = await h.store.create(new_run(key="k", max_queued=1))
    assert (again.id, made) == (run.id, False)


async def test_a_refused_key_may_be_used_later(h: Harness) -> None:
    await h.create()
    with pytest.raises(QueueFull):
        await h.store.create(new_run(key="k", max_queued=1))
    await h.claim()
    _, made = await h.store.create(new_run(key="k", digest=b"another", max_queued=1))
    assert made


@pytest.mark.needs("exact_limit")
async def test_the_limit_holds_when_many_create_at_once(h: Harness) -> None:
    answers = await asyncio.gather(*(h.store.create(new_run(max_queued=10)) for _ in range(40)), return_exceptions=True)
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 30
    assert await h.store.depth() == {"auditor": (10, 0)}


async def test_the_largest_input_is_taken_and_a_larger_one_is_not(h: Harness) -> None:
    whole = bytes(range(256)) * (LARGEST // 256)
    await h.create(input=whole, digest=b"whole")
    claim = await h.claim()
    assert claim.input == whole
    with pytest.raises(TooLarge):
        await h.store.create(new_run(input=whole + b"x", digest=b"more"))
    assert await h.maybe() is None


async def test_any_text_is_kept_as_it_is(h: Harness) -> None:
    odd = 'a{b}c:*d "ü\n\x00☃'
    run = await h.create(odd, input=b"\x00\xff\r\n", tenant=odd, key=odd, version=odd)
    claim = await h.claim(odd, worker=odd)
    assert (claim.run.id, claim.run.service, claim.run.tenant, claim.run.version) == (run.id, odd, odd, odd)
    assert (claim.run.worker, claim.input) == (odd, b"\x00\xff\r\n")
    assert ids(await h.store.list(odd, service=odd)) == [run.id]
    assert await h.store.depth() == {odd: (0, 1)}
