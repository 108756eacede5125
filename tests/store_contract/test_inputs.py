"""Inputs sent to a run, read by their numbers in portions."""

from __future__ import annotations

import pytest

from unjam.runs.store import base
from unjam.runs.store.base import InputsFull, UnknownRun

from .harness import Harness


async def sent(h: Harness, run: str, *inputs: bytes) -> list[tuple[int, bytes]]:
    return [(await h.store.send(run, data), data) for data in inputs]


async def test_a_portion_is_as_long_as_asked_for(h: Harness) -> None:
    run = (await h.create()).id
    every = await sent(h, run, *(b"%d" % number for number in range(30)))
    assert [number for number, _ in every] == list(range(1, 31))
    assert await h.store.inputs(run, 0) == every
    assert await h.store.inputs(run, 0, 20) == every[:20]
    assert await h.store.inputs(run, 20, 20) == every[20:]
    assert await h.store.inputs(run, 20, 10) == every[20:]
    assert await h.store.inputs(run, 7, 1) == every[7:8]
    assert await h.store.inputs(run, 30, 5) == []
    assert await h.store.inputs(run, 1 << 40, 5) == []
    assert await h.store.inputs(run, -5, 2) == every[:2]


async def test_portions_are_everything_in_order(h: Harness) -> None:
    run = (await h.create()).id
    every = await sent(h, run, *(b"%d" % number for number in range(23)))
    found: list[tuple[int, bytes]] = []
    while portion := await h.store.inputs(run, found[-1][0] if found else 0, 5):
        assert len(portion) <= 5
        found += portion
    assert found == every


async def test_a_portion_ends_once_it_is_large(h: Harness) -> None:
    run = (await h.create()).id
    every = await sent(h, run, b"a" * 600, b"b" * 600, b"c" * 600, b"")
    assert await h.store.inputs(run, 0, 10, 1000) == every[:2]
    assert await h.store.inputs(run, 2, 10, 100) == every[2:3]
    assert await h.store.inputs(run, 3, 10, 1) == every[3:]
    assert await h.store.inputs(run, 0, 10, 1801) == every


async def test_without_a_limit_it_is_bounded_all_the_same(h: Harness) -> None:
    run = (await h.create()).id
    for _ in range(257):
        await h.store.send(run, b"1")
    assert len(await h.store.inputs(run, 0)) == 256
    assert len(await h.store.inputs(run, 256)) == 1


async def test_a_run_without_inputs_and_no_run(h: Harness) -> None:
    run = (await h.create()).id
    assert await h.store.inputs(run, 0, 5) == []
    with pytest.raises(UnknownRun):
        await h.store.inputs("run_00" + "0" * 25, 0, 5)


async def test_a_run_takes_so_many_and_no_more(h: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_INPUTS", 5)
    run, other = (await h.create()).id, (await h.create()).id
    every = await sent(h, run, *(b"%d" % number for number in range(5)))
    with pytest.raises(InputsFull):
        await h.store.send(run, b"one too many")
    assert await h.store.inputs(run, 0) == every
    assert await h.store.send(other, b"another's are its own") == 1


@pytest.mark.parametrize("reopened", [False, True])
async def test_a_run_takes_so_many_bytes_and_no_more(
    h: Harness, monkeypatch: pytest.MonkeyPatch, reopened: bool
) -> None:
    monkeypatch.setattr(base, "INPUT_BYTES", 1000)
    run = (await h.create()).id
    every = await sent(h, run, b"a" * 400, b"b" * 400)
    if reopened:
        if "persistent" not in h.capabilities:
            pytest.skip("is gone when it is closed")
        await h.reopen()
    for _ in range(2):
        with pytest.raises(InputsFull):
            await h.store.send(run, b"c" * 201)
    every += [(await h.store.send(run, b"c" * 200), b"c" * 200)]
    with pytest.raises(InputsFull):
        await h.store.send(run, b"d")
    assert await h.store.inputs(run, 0) == every
    assert InputsFull.code == "inputs_full"
