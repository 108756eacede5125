"""Ids, and the data of the events that stores write."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.runs import model


@given(st.integers(0, model.PARTITIONS - 1), st.floats(0, 1e10))
def test_an_id_says_its_partition(partition: int, now: float) -> None:
    made = model.new_id(now, partition)
    assert re.fullmatch(r"run_[0-7][0-9a-f][0-9a-z]{25}", made)
    assert model.partition_of(made) == partition


@given(st.floats(0, 1e10), st.floats(0.001, 1e9))
def test_ids_sort_by_age_over_all_partitions(now: float, later: float) -> None:
    older, newer = model.new_id(now, 127), model.new_id(now + later + 0.001, 0)
    assert model.age(older) < model.age(newer)


def test_ids_spread_over_all_partitions_and_do_not_repeat() -> None:
    made = [model.new_id(1.7e9) for _ in range(5000)]
    assert len(set(made)) == len(made)
    assert {model.partition_of(run) for run in made} == set(range(model.PARTITIONS))


@given(
    st.integers(0, model.PARTITIONS - 1),
    st.integers(0, (1 << 80) - 1) | st.integers(0, 79).map(lambda bit: 1 << bit),
    st.integers(0, (1 << 45) - 1) | st.integers(0, 44).map(lambda bit: 1 << bit),
)
def test_an_id_is_its_time_and_random_bits_in_base_32(partition: int, bits: int, ms: int) -> None:
    def digits(value: int, count: int) -> str:
        alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
        return "".join(alphabet[value // 32**place % 32] for place in range(count - 1, -1, -1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.secrets, "randbits", {80: bits}.__getitem__)
        # In the middle of the millisecond: what it is must not depend on how its fraction rounds.
        made = model.new_id((ms + 0.5) / 1000, partition)
    assert made == f"run_{partition:02x}{digits(ms, 9)}{digits(bits, 16)}"


@given(st.text())
def test_what_is_no_id_is_told_apart(text: str) -> None:
    with pytest.raises(ValueError, match="not a run id"):
        model.partition_of(text)


@pytest.mark.parametrize(
    "near",
    [
        "run_80" + "0" * 25,  # no such partition
        "run_0g" + "0" * 25,
        "run_+1" + "0" * 25,
        "run_ 1" + "0" * 25,
        "run_1_" + "0" * 25,
        "run_0A" + "0" * 25,
        "run_٠١" + "0" * 25,  # digits of another script
        "run_00" + "0" * 24,
        "run_00" + "0" * 26,
        "run_00" + "0" * 24 + "i",
        "run_00" + "0" * 24 + "\n",
        "Run_00" + "0" * 25,
    ],
)
def test_what_is_nearly_an_id_is_none(near: str) -> None:
    with pytest.raises(ValueError, match="not a run id"):
        model.partition_of(near)
    with pytest.raises(ValueError, match="not a run id"):
        model.age(near)


def test_event_data_is_json() -> None:
    decode = msgspec.json.decode
    assert decode(model.created_data('a"b', "fast")) == {"service": 'a"b', "lane": "fast"}
    assert decode(model.attempt_data(2, 5, "lost")) == {"n": 2, "from_seq": 5, "reason": "lost"}
    assert decode(model.failed_data(None)) == {"error": None}
    assert decode(model.failed_data(b'{"code":"x"}')) == {"error": {"code": "x"}}
    assert decode(model.LOST)["code"] == "worker_lost"
    assert decode(model.EXHAUSTED)["code"] == "attempts_exhausted"


def test_a_run_in_json_has_its_error_and_metadata_as_they_are() -> None:
    run = model.Run(id=model.new_id(1.7e9), service="a", error=msgspec.Raw(b'{"code":"x"}'), created=1.5)
    written = msgspec.json.decode(msgspec.json.encode(run))
    assert (written["error"], written["metadata"], written["created"]) == ({"code": "x"}, None, 1.5)
