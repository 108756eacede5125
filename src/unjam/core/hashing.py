"""Stable 64-bit hashing for choices that must come out alike in every process: rendezvous ranks and sticky shares.

Python's own `hash()` of text differs between processes and is of no use here. All functions are pure; the same input
gives the same output on every machine and in every release (a change would move every sticky caller).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from math import log

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15


def hash64(text: str, key: bytes = b"") -> int:
    """64 bits of BLAKE2b of `text`; a `key` (at most 64 bytes) gives an independent family of hashes.

    Raises ValueError for a longer key.
    """
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest(), "little")


#: `hash64` remembered: for names of endpoints and versions, which are few and come back; never for callers' keys.
name64 = lru_cache(maxsize=65536)(hash64)


def mix(a: int, b: int) -> int:
    """One 64-bit hash of two: the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", OOPSLA 2014; constants of Stafford's variant 13). Not symmetric in its arguments."""
    z = (a + _GOLDEN * (b | 1)) & _MASK ^ b
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return z ^ (z >> 31)


def uniform(bits: int) -> float:
    """A float strictly between 0 and 1 from 64 bits. 52 of them are used: with 53 the largest would round to 1."""
    return ((bits >> 12) + 0.5) * 2.0**-52


def score(key: int, name: int, weight: float = 1.0) -> float:
    """Weighted rendezvous: the candidate with the highest score wins, each with probability weight / sum of weights.

    -w / ln(u) with u uniform in (0, 1) by key and name: the logarithmic method of Schindelhauer and Schomaker,
    "Weighted distributed hash tables" (SPAA 2005), in the form of Resch, "New hashing algorithms for data storage"
    (SNIA SDC 2015). Changing one weight moves only keys to or from that candidate. A weight of 0 (or below) scores 0
    and must never win.
    """
    if weight <= 0.0:
        return 0.0
    return -weight / log(uniform(mix(key, name)))


def rank(key: str, name: str, weight: float = 1.0) -> float:
    """`score` of plain texts; for loops over many candidates hash the key once and use `score` with `name64`."""
    return score(hash64(key), name64(name), weight)
