"""Which version of a service a request goes to: exact shares, sticky where there is a key, less for those under
suspicion.

A version's due is `weight / sum of weights`; its breaker's `share` says how much of that it may have at present. What a
version may not have goes to the versions with a closed breaker, in proportion to their weights; where none is closed it
*spills*: `pick` returns None and the service's fallback chain takes the request. Thus a version that ramps back at 1
% of a due of 90 % gets 0.9 % of all requests, whoever else is there.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Generic, NamedTuple, TypeVar

from unjam.core.hashing import hash64, name64, score

V = TypeVar("V")

#: Name under which the fallback chain takes part in the rendezvous; no version can have it (names are not empty).
_SPILL = ""
#: Callers whose version is remembered; hashing one anew takes 3 µs, looking it up 0.1. When full, all are forgotten.
#: Long keys are not remembered: callers choose them.
_REMEMBERED = 4096
_LONGEST = 64


class Candidate(NamedTuple, Generic[V]):
    """One version: `weight` as configured (0: never), `share` its breaker's (0 open .. 1 closed)."""

    version: V
    name: str
    weight: float
    share: float = 1.0


class VersionPicker(Generic[V]):
    """Picks versions; `set` tells it the weights. `salt` (the service's name) keeps services from sharing one split."""

    __slots__ = ("_credits", "_known", "_names", "_names64", "_only", "_salt", "_total", "_versions", "_weights")

    def __init__(self, salt: str = "") -> None:
        self._salt = name64(salt).to_bytes(8, "little")
        self._versions: list[V | None] = []
        self._names: list[str] = []
        self._names64: list[int] = []
        self._weights: list[float] = []
        self._credits: list[float] = []
        self._total = 0.0
        self._only: V | None = None
        self._known: dict[str, V | None] = {}

    def set(self, candidates: Sequence[Candidate[V]], spill: bool = False) -> None:
        """Take new weights and shares, at once and whole. Credits earned so far are kept in proportion, so that
        frequent changes don't bend the shares. `spill`: there is a fallback chain; without one nothing is ever
        withheld as long as some version has a share.

        Raises ValueError for negative or not finite weights, shares outside 0..1, and names given twice.
        """
        found = effective(candidates, spill)
        before = dict(zip(self._names, self._credits, strict=True))
        total = sum(weight for _, _, weight in found)
        scale = total / self._total if self._total else 0.0
        self._versions = [version for version, _, _ in found]
        self._names = [name for _, name, _ in found]
        self._names64 = [name64(name) for name in self._names]
        self._weights = [weight for _, _, weight in found]
        self._credits = [before.get(name, 0.0) * scale for name in self._names]
        self._total = total
        self._only = self._versions[0] if len(self._versions) == 1 else None
        self._known = {}

    def pick(self, sticky: str | None = None, without: Container[V] = ()) -> V | None:
        """The version for one request. None: this one is for the fallback chain, or nothing has weight.

        Without `sticky`: smooth weighted round robin (nginx), exact over small windows. With it: weighted rendezvous,
        so that after a change only callers move that must. `without`: versions not to use (tried, or no endpoint
        left).
        """
        if self._only is not None and not without:
            return self._only
        if sticky is not None:
            if without or len(sticky) > _LONGEST:
                return self._by_key(sticky, without)
            known = self._known
            if sticky in known:
                return known[sticky]
            if len(known) >= _REMEMBERED:
                known.clear()
            known[sticky] = chosen = self._by_key(sticky, without)
            return chosen
        if without:
            return self._by_turn_without(without)
        earned = self._credits
        weights = self._weights
        best = -1
        most = 0.0
        for i in range(len(earned)):
            credit = earned[i] + weights[i]
            earned[i] = credit
            if best < 0 or credit > most:
                best, most = i, credit
        if best < 0:
            return None
        earned[best] = most - self._total
        return self._versions[best]

    def shares(self) -> dict[str, float]:
        """Fraction of requests by version name, as in force; the fallback chain's part under the empty name."""
        return {name: weight / self._total for name, weight in zip(self._names, self._weights, strict=True)}

    def _by_turn_without(self, without: Container[V]) -> V | None:
        best = -1
        for i, version in enumerate(self._versions):
            if version is not None and version in without:
                continue
            if best < 0 or self._credits[i] + self._weights[i] > self._credits[best] + self._weights[best]:
                best = i
        # Credits stay as they are: an exception must not change the turns of the others.
        return self._versions[best] if best >= 0 else None

    def _by_key(self, sticky: str, without: Container[V]) -> V | None:
        key = hash64(sticky, self._salt)
        best: V | None = None
        most = -1.0
        for version, name, weight in zip(self._versions, self._names64, self._weights, strict=True):
            if without and version is not None and version in without:
                continue
            value = score(key, name, weight)
            if value > most:
                best, most = version, value
        return best


def effective(candidates: Sequence[Candidate[V]], spill: bool) -> list[tuple[V | None, str, float]]:
    """Versions that get anything, with the weights that their breakers leave; with `spill` the fallback chain, that has
    no name. Raises ValueError as `VersionPicker.set` does."""
    seen: set[str] = set()
    withheld = healthy = 0.0
    for _, name, weight, share in candidates:
        if not 0.0 <= weight < float("inf") or not 0.0 <= share <= 1.0:
            raise ValueError(f"version {name!r}: weight {weight} or share {share} out of range")
        if name in seen or name == _SPILL:
            raise ValueError(f"version name {name!r} is empty or given twice")
        seen.add(name)
        withheld += weight * (1.0 - share)
        if share >= 1.0:
            healthy += weight
    gain = 1.0 + withheld / healthy if healthy else 1.0
    found: list[tuple[V | None, str, float]] = [
        (version, name, weight * (gain if share >= 1.0 else share))
        for version, name, weight, share in candidates
        if weight * share > 0.0
    ]
    if withheld and not healthy and spill:
        found.append((None, _SPILL, withheld))
    return found
