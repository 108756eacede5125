"""Large answers that a gateway holds until their readers have taken them: together they cost a bounded amount."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unjam.gateway.local import LocalExchange

#: Bytes that they may hold together.
MOST: Final = 128 << 20


class Backlog:
    """When they are more than `most` bytes, the slowest reader is dropped: it may come back. What several are given
    counts once."""

    __slots__ = ("_held", "_readers", "most", "size")

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.size = 0
        self._held: dict[LocalExchange, bytes] = {}
        #: How many are given a body, by its identity.
        self._readers: dict[int, int] = {}

    def add(self, exchange: LocalExchange, body: bytes) -> None:
        """Hold the answer `body`, of which the reader has not taken all at once."""
        self._held[exchange] = body
        readers = self._readers.get(id(body), 0)
        self._readers[id(body)] = readers + 1
        if not readers:
            self.size += len(body)
        while self.size > self.most and len(self._held) > 1:
            now = monotonic()
            slowest = min(self._held, key=lambda each: each.bytes_out / (now - each.first_byte + 1.0))
            self.remove(slowest)
            slowest.reason = "stalled_reader"
            slowest.client.transport.abort()

    def remove(self, exchange: LocalExchange) -> None:
        """It has ended, or been dropped already."""
        body = self._held.pop(exchange, None)
        if body is None:
            return
        readers = self._readers.pop(id(body))
        if readers > 1:
            self._readers[id(body)] = readers - 1
        else:
            self.size -= len(body)
