"""Who gets which versions: rules on the caller and the lane, each with weights of its own. The first that holds
decides; where none does, or none of its versions can be had, the versions' own weights do.

Headers and the tenant are known when a request comes in, the lane only once its size has been predicted: so the shell
asks `applicable` what may hold, and the core takes the first of those that fits the lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.core.rollout import Candidate, VersionPicker
from unjam.core.spec import HEAVY

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from unjam.core.service import Version
    from unjam.core.spec import SplitSpec


class Split:
    """One rule. `heavy`: the lane it is for, None for both."""

    __slots__ = ("_fields", "_picker", "heavy", "spec")

    def __init__(self, spec: SplitSpec, salt: str) -> None:
        self.spec = spec
        self._fields = [(name.lower().encode("ascii"), wanted) for name, wanted in spec.headers.items()]
        self.heavy = None if spec.lane is None else spec.lane == HEAVY
        self._picker: VersionPicker[Version] = VersionPicker(salt)

    def reweigh(self, versions: Iterable[Version]) -> None:
        """Breakers or usable endpoints changed: what a version may not have goes to the others of the rule."""
        weights = self.spec.weights
        self._picker.set(
            [
                Candidate(
                    version, version.name, weights.get(version.name, 0.0) if version.usable else 0.0, version.share
                )
                for version in versions
            ],
            spill=True,
        )

    def holds(self, header: Callable[[bytes], bytes | None], tenant: str) -> bool:
        spec = self.spec
        if spec.tenant is not None and spec.tenant != tenant:
            return False
        for name, wanted in self._fields:
            value = header(name)
            if value is None or (wanted != "*" and value.decode("latin-1") != wanted):
                return False
        return True

    def pick(self, sticky: str | None, without: Container[Version]) -> Version | None:
        return self._picker.pick(sticky, without)


def applicable(splits: Sequence[Split], header: Callable[[bytes], bytes | None], tenant: str) -> tuple[Split, ...]:
    """The rules that hold for a caller, whatever the lane, in order. `header`: looks one up by lower-case name."""
    return tuple(split for split in splits if split.holds(header, tenant))


def first(splits: Sequence[Split], heavy: bool, current: Container[Split]) -> Split | None:
    """The rule for this lane. `current`: the rules in force; a request that waits or is tried again may have come under
    others, which nobody tells of breakers and versions any more."""
    for split in splits:
        if (split.heavy is None or split.heavy == heavy) and split in current:
            return split
    return None


def renewed(specs: Iterable[SplitSpec], before: Iterable[Split], salt: str) -> tuple[Split, ...]:
    """Rules for a new configuration. Those that it has unchanged stay as they are, and hold for what waits too."""
    left = list(before)
    rules = []
    for spec in specs:
        kept = next((split for split in left if split.spec == spec), None)
        if kept is None:
            kept = Split(spec, salt)
        else:
            left.remove(kept)
        rules.append(kept)
    return tuple(rules)
