"""Bodies that the gateway takes in whole before it acts on them: together they cost a bounded amount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unjam.gateway.local import LocalExchange

#: Bytes of them all, those under way among them.
MOST: Final = 256 << 20


class Intake:
    """When they are more than `most` bytes, the largest of those that aren't complete is refused with 503: small ones
    get in all the same, whoever sends large ones and however slowly."""

    __slots__ = ("_coming", "_sizes", "most", "size")

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.size = 0
        self._sizes: dict[LocalExchange, int] = {}
        #: Of those, the ones of which there is more to come.
        self._coming: set[LocalExchange] = set()

    def grown(self, exchange: LocalExchange) -> None:
        """More of its body is here. It may be over with it after this."""
        self.size += exchange.bytes_in - self._sizes.get(exchange, 0)
        self._sizes[exchange] = exchange.bytes_in
        if exchange.body_done:
            self._coming.discard(exchange)
        else:
            self._coming.add(exchange)
        while self.size > self.most and len(self._sizes) > 1 and self._coming:
            largest = max(self._coming, key=self._sizes.__getitem__)
            self.done(largest)
            largest.crowded_out()

    def done(self, exchange: LocalExchange) -> None:
        """Its body is gone, or in other hands."""
        self.size -= self._sizes.pop(exchange, 0)
        self._coming.discard(exchange)


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
