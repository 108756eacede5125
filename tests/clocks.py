"""Clocks that are given to what is tested."""

from time import monotonic


class Awake:
    """A monotonic clock that takes a pause of this process for a moment. For leases, which signs of life keep if they
    come in time: those of a process that was not let run do not."""

    def __init__(self, most: float = 0.03) -> None:
        """`most`: seconds that may pass between two looks. Who tests has to look more often."""
        self._most = most
        self._seen = monotonic()
        self._now = self._seen

    def __call__(self) -> float:
        seen = monotonic()
        self._now += min(seen - self._seen, self._most)
        self._seen = seen
        return self._now
