"""Bodies and messages that the gateway takes in whole before it acts on them: together they cost a bounded amount."""

from __future__ import annotations

from typing import Final, Protocol

#: Bytes of them all, those under way among them.
MOST: Final = 256 << 20
#: Bytes of one that is too small to be counted.
SMALL: Final = 65536


class Sender(Protocol):
    """Whose body or message is under way."""

    def crowded_out(self) -> None:
        """There is no room for it: refuse it, and let go of what is here of it."""


class Intake:
    """When they are more than `most` bytes, the largest of those that aren't complete is refused: small ones get in all
    the same, whoever sends large ones and however slowly."""

    __slots__ = ("_coming", "_sizes", "most", "size")

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.size = 0
        self._sizes: dict[Sender, int] = {}
        #: Of those, the ones of which there is more to come.
        self._coming: set[Sender] = set()

    def grown(self, sender: Sender, size: int, whole: bool) -> None:
        """`size` bytes are here; `whole`: that is all. It may be over with it after this."""
        if size <= SMALL:
            self.done(sender)
            return
        self.size += size - self._sizes.get(sender, 0)
        self._sizes[sender] = size
        if whole:
            self._coming.discard(sender)
        else:
            self._coming.add(sender)
        while self.size > self.most and len(self._sizes) > 1 and self._coming:
            largest = max(self._coming, key=self._sizes.__getitem__)
            self.done(largest)
            largest.crowded_out()

    def done(self, sender: Sender) -> None:
        """What was here of it is gone, or in other hands."""
        self.size -= self._sizes.pop(sender, 0)
        self._coming.discard(sender)


class Passed(list[bytes]):
    """A body that was passed on whole. It counts for as long as there is somebody who has it."""

    __slots__ = ("_bytes", "_intake")

    def __init__(self, intake: Intake, body: bytes) -> None:
        super().__init__([body])
        self._intake = intake
        self._bytes = len(body)
        intake.size += self._bytes

    def __del__(self) -> None:
        self._intake.size -= self._bytes
