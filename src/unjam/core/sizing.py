"""How many requests an endpoint may run, where nobody said, and how much memory they need: learnt from reports.

Slots start at twice the cores (dispatch rules: least_loaded is then within 1.08 of a clairvoyant queue) and no more
than memory has room for. From there reports move them: up while all are taken and the processor is idle (agents that
wait for a model use next to none of it), back down when it is not, never beyond `MOST_TIMES` the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20
GIB: Final = 1 << 30

#: Memory that stays free, as a share of all: an endpoint with less takes nothing new.
MEMORY_SHORT: Final = 0.05
#: Adapted slots are at most this many times those derived from cores.
MOST_TIMES: Final = 8
#: Below this use of the processor, and with all slots taken, more requests fit ..
ROOM_BELOW: Final = 0.7
#: .. half as many again below this.
MUCH_ROOM_BELOW: Final = 0.5
#: Above it, fewer. Between the two nothing changes.
FULL_ABOVE: Final = 0.9
#: Share of the time that tasks waited for a processor, above which no slots are added whatever the average use.
PRESSED_ABOVE: Final = 0.3
#: Share of the slots taken that counts as all.
TAKEN: Final = 0.9
#: Seconds in which a learnt need of memory halves, unless it is seen again.
NEED_HALF_LIFE: Final = 600.0
#: Seconds for which the most requests that ran at once are remembered: what they used may not have been returned yet.
CROWD_LIFE: Final = 60.0
#: Needs below this are noise of the allocator.
NEED_LEAST: Final = MIB
#: Heavy requests that must have ended before what they used is believed to be all they need.
SURE_AFTER: Final = 3


def first_guess(memory: int) -> int:
    """Bytes that one heavy request is taken to need before any was seen: a sixteenth of the memory, but at least 1 GiB
    where that leaves room for two."""
    return max(memory // 16, min(GIB, memory // 2))


class Need:
    """Bytes that one heavy request needs at its peak, learnt. Shared by the endpoints of a version, which run the same
    code. `sure`: enough have ended for the figure to stand by itself."""

    __slots__ = ("_at", "_ended", "bytes")

    def __init__(self) -> None:
        self.bytes = 0.0
        self._at = 0.0
        self._ended = 0

    def see(self, observed: float, ended: int, now: float) -> None:
        """Requests were seen to use `observed` bytes each, and `ended` of them have ended since. The largest counts,
        fading."""
        self.bytes = max(self.now(now), observed, float(NEED_LEAST))
        self._at = now
        self._ended += ended

    def now(self, now: float) -> float:
        """What is left of it: it fades whether anything is seen or not, or a need above all memory would keep heavy
        work away for ever."""
        faded: float = self.bytes * 0.5 ** (max(0.0, now - self._at) / NEED_HALF_LIFE)
        return faded

    @property
    def sure(self) -> bool:
        return self._ended >= SURE_AFTER

    def of(self, memory: int, now: float) -> float:
        """Bytes to reckon with for one request on an endpoint with so much `memory`. What has only begun may still
        grow, so the first few count as the first guess at least."""
        need = self.now(now)
        return max(need, float(NEED_LEAST)) if self.sure else max(need, float(first_guess(memory)))


class Crowd:
    """The most requests that ran at once within the last minute."""

    __slots__ = ("at", "most")

    def __init__(self) -> None:
        self.most = 0
        self.at = 0.0

    def see(self, count: int, now: float) -> int:
        if count >= self.most or now - self.at > CROWD_LIFE:
            self.most = count
            self.at = now
        return self.most


def heavy_room(free: int, limit: int, used_by_ours: float, need: float) -> int:
    """The most heavy requests at once, those that run included. `free`: bytes free; `used_by_ours`: what the agent uses
    more than when it is idle, which those that run will go on using; `need`: bytes of one."""
    return max(0, math.floor((free - MEMORY_SHORT * limit + used_by_ours) / need))


@dataclass(frozen=True, slots=True)
class Use:
    """What a report says of an endpoint, as far as slots depend on it. `cpu`: in use by anybody, `pressure`: share of
    time, both 0 .. 1 or None; `running`: our requests on it."""

    cpu: float | None
    pressure: float | None
    running: int


def adapt(slots: int, base: int, use: Use) -> int:
    """The next number of slots, from the present one. `base`: derived from cores and memory."""
    if use.cpu is None:
        return slots
    if use.running >= TAKEN * slots and use.cpu < ROOM_BELOW and (use.pressure or 0.0) < PRESSED_ABOVE:
        grown = slots + max(1, slots // (2 if use.cpu < MUCH_ROOM_BELOW else 8))
        return min(grown, MOST_TIMES * base)
    if use.cpu > FULL_ABOVE and slots > base:
        return max(base, slots - max(1, slots // 8))
    return slots


def engine_slots(slots: int, sized: bool, ours: int, in_flight: int, waiting: int) -> int:
    """Of an inference engine that says how many requests it runs and how many wait inside it: those of ours that it
    can run, and an eighth more so that it never idles. `sized`: `slots` is more than a guess."""
    if waiting > 0 and in_flight > 0:
        running = max(1, math.ceil(ours * (in_flight - waiting) / in_flight))
        return min(slots, running + max(1, running // 8))
    if sized and ours >= TAKEN * slots:
        return slots + max(1, slots // 8)
    return slots
