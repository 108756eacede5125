"""Whose turn it is to begin a run: workers of several versions ask for what waits, when they have room, and the weights
of their versions say how much of it each gets.

A version that asks may begin one while it has not had its share of all that were begun, that one among them, and no
other would be a whole run behind then. So of two versions each has its share of any number of runs, rounded up or down,
in whatever order they ask; of more, one may be up to a run further behind where several came to be at once. One that
has no time holds the others back when its turn has come: shares are kept, as they are for requests, not workers busy.
One of those that take part may always go on.

What a claim comes to is known only after it was made. So a version may begin one if it might whatever those on their
way come to, and may not if it might in no case; in between it has to wait for their answers, and then nobody else goes
on before those are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

#: Of a run: what sums of binary fractions may be off.
_CLOSE: Final = 1e-9


class May(Enum):
    """`LATER`: that depends on what a claim comes to that is on its way."""

    YES = 1
    NO = 2
    LATER = 3


class Turns:
    """Of one queue. `weights`: of the versions that take part, by name. `held`: one was told to wait since these, or
    what each has had, last changed."""

    __slots__ = ("_behind", "_excused", "_flying", "_total", "_waited_for", "held", "weights")

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        self.held = False
        #: Runs by which each is behind its share, times the sum of the weights; the sum of all is 0.
        self._behind: dict[str, float] = {}
        self._total = 0.0
        #: Claims on their way, by version; whether somebody has to wait for their answers.
        self._flying: dict[str, int] = {}
        self._waited_for = False
        #: They have no part of the next run, and it makes no difference to what is theirs.
        self._excused: set[str] = set()

    def set(self, weights: Mapping[str, float]) -> None:
        """Who takes part, with weights above 0. By how much each of those that stay is behind stays; others begin with
        nothing, and what those had who left is nobody's."""
        if weights == self.weights:
            return
        total = sum(weights.values())
        scale = total / self._total if self._total else 0.0
        kept = {name: self._behind.get(name, 0.0) * scale for name in weights}
        excess = sum(kept.values())
        self.weights = dict(weights)
        self._total = total
        self._behind = {name: kept[name] - excess * weight / total for name, weight in weights.items()}
        self._excused &= kept.keys()
        self.held = False

    def may(self, name: str) -> May:
        """Whether a worker of this version, which takes part, may begin a run."""
        total, flying = self._total, self._flying
        weights, behinds = self._among(name)
        weight, close = weights[name], total * _CLOSE
        every = sum(flying.values())
        own = flying.get(name, 0)
        # By how much it is behind when the next one has begun: if only its own claims come to something, and if only
        # those of others do.
        least = behinds[name] + weight * (own + 1) - total * own
        most = behinds[name] + weight * (every - own + 1)
        sure = least > close
        never = most <= close
        for other, behind in behinds.items():
            if other == name:
                continue
            theirs, each = flying.get(other, 0), weights[other]
            least_behind = behind + each * (theirs + 1) - total * theirs
            most_behind = behind + each * (every - theirs + 1)
            enough = total - close
            if least_behind >= enough and least_behind > most + close:
                never = True
            elif most_behind >= enough and most_behind > least + close:
                sure = False
        if never:
            self.held = True
            return May.NO
        if sure and not (every and self._waited_for):
            return May.YES
        if not every:
            self.held = True
            return May.NO
        self._waited_for = True
        return May.LATER

    def excuse(self, name: str) -> None:
        """It can't take the next one, though it takes part: that is divided among the others."""
        if name in self.weights:
            self._excused.add(name)

    def begin(self, name: str) -> None:
        """It asks for one, as it may. `end` must follow."""
        self._flying[name] = self._flying.get(name, 0) + 1

    def end(self, name: str, began: bool, otherwise: bool = False) -> bool:
        """What its claim came to: a run of this queue that no version had; or `otherwise` another run. True: somebody
        waited for it to take its turn, and need not any more."""
        self._flying[name] -= 1
        if not self._flying[name]:
            del self._flying[name]
        if not self._flying:
            self._waited_for = False
        if name not in self.weights:
            return False
        if began:
            self._count(name)
        elif otherwise and self.held:
            self._excused.add(name)
            return True
        return False

    def _among(self, name: str) -> tuple[dict[str, float], dict[str, float]]:
        """Of those that the next run is divided among, `name` at least: weights, as if there were no others, and by how
        much each is behind the others of them."""
        excused = self._excused - {name}
        if not excused:
            return self.weights, self._behind
        weights = {each: weight for each, weight in self.weights.items() if each not in excused}
        whole = sum(weights.values())
        theirs = sum(self._behind[each] for each in excused)
        behind = {each: self._behind[each] + theirs * weight / whole for each, weight in weights.items()}
        return {each: weight * self._total / whole for each, weight in weights.items()}, behind

    def _count(self, name: str) -> None:
        for each, weight in self._among(name)[0].items():
            self._behind[each] += weight
        self._behind[name] -= self._total
        self._excused.clear()
        self.held = False


__all__ = ["May", "Turns"]
