"""Hashing must be stable for ever, even, and fair by weight: sticky callers hang on it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.hashing import hash64, mix, name64, rank, score, uniform

U64 = st.integers(min_value=0, max_value=2**64 - 1)


def test_the_values_never_change() -> None:
    # BLAKE2b with an eight-byte digest, little endian: changing one moves every sticky caller.
    assert hash64("caller-1") == 0x23E80FE9CA7ED246
    assert name64("http://10.0.0.1:9000") == 0xF2982D1EF9B97D9F
    # The first output of SplitMix64 seeded with 0 and with 1234567.
    assert mix(0, 0) == 0xE220A8397B1DCDAF
    assert mix(1234567, 0) == 0x599ED017FB08FC85
    assert mix(1, 2) != mix(2, 1)


@given(st.text(), st.binary(max_size=64))
def test_any_text_has_a_hash_of_64_bits(text: str, key: bytes) -> None:
    assert 0 <= hash64(text, key) < 2**64


def test_a_key_gives_another_family() -> None:
    assert len({hash64("a"), hash64("a", b"x"), hash64("a", b"y")}) == 3
    with pytest.raises(ValueError, match="64"):
        hash64("a", b"k" * 65)


def test_a_lone_surrogate_is_hashed_too() -> None:
    assert hash64("\ud800") != hash64("\ud801")


@given(U64)
def test_uniform_never_reaches_its_ends(bits: int) -> None:
    assert 0.0 < uniform(bits) < 1.0


def test_uniform_at_the_ends() -> None:
    assert 0.0 < uniform(0) < 1e-15
    assert 1.0 - 1e-15 < uniform(2**64 - 1) < 1.0


@given(U64, U64)
def test_one_bit_changed_changes_about_half(a: int, b: int) -> None:
    changed = mix(a, b) ^ mix(a ^ 1, b)
    assert 8 <= changed.bit_count() <= 56


def test_winners_are_fair_by_weight() -> None:
    weights = {"a": 1.0, "b": 3.0, "c": 6.0}
    wins = Counter(max(weights, key=lambda name: rank(f"caller-{i}", name, weights[name])) for i in range(20_000))
    for name, weight in weights.items():
        # Three standard deviations of a binomial share are about 1 point here.
        assert wins[name] / 20_000 == pytest.approx(weight / 10.0, abs=0.012)


@given(U64, U64, st.floats(min_value=1e-6, max_value=1e6))
def test_scores_rise_with_weight_and_nothing_scores_below_nothing(key: int, name: int, weight: float) -> None:
    assert 0.0 < score(key, name, weight) < score(key, name, 2.0 * weight)
    assert score(key, name, 0.0) == 0.0
    assert score(key, name, -weight) == 0.0
