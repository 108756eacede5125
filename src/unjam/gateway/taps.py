"""What is kept of an answer on its way to the client, for the few that somebody wants to look at afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from unjam.core.model import Lease, Outcome
    from unjam.gateway.exchange import Exchange
    from unjam.wire.http1 import ResponseHead

#: Bytes of an answer's end in which a provider's token usage is looked for.
USAGE_TAIL: Final = 4096


class Watch(Protocol):
    """Stands at `Service.shell` of a service whose exchanges are judged. `ends`: the tap of those whose answers nobody
    wants to see."""

    ends: Ends

    def wants(self) -> int:
        """Bytes of the answer that begins which are to be kept; 0: this one isn't looked at."""
        ...

    def ended(self, exchange: Exchange, lease: Lease, outcome: Outcome, now: float) -> None:
        """`exchange.tap` has what was kept of it."""
        ...


class Tap:
    """`tail`: the end of the answer, None when nobody asks for usage. `pieces`: its bytes, if no more than were wanted,
    which `whole` tells. `watch`: who is told of its end, and `wanted` so many bytes. `head`: of the answer."""

    __slots__ = ("_left", "head", "pieces", "tail", "wanted", "watch", "whole")

    def __init__(self, usage: bool, watch: Watch | None, wanted: int = 0, head: ResponseHead | None = None) -> None:
        self.tail: bytes | None = b"" if usage else None
        self.watch = watch
        self.head = head
        self._left = self.wanted = wanted
        self.pieces: list[bytes] = []
        self.whole = True

    def feed(self, payload: bytes) -> None:
        tail = self.tail
        if tail is not None:
            self.tail = (tail + payload)[-USAGE_TAIL:]
        left = self._left
        if len(payload) <= left:
            self._left = left - len(payload)
            self.pieces.append(payload)
        else:
            self._left = 0
            self.whole = False
            self.pieces.clear()


def begin(lease: Lease, head: ResponseHead, payload: bytes) -> Tap:
    """What to keep of the answer that begins with `head` and `payload`: its end where its region has a quota, and as
    much as the service's watch wants."""
    usage = lease.endpoint.region is not None
    watch: Watch | None = lease.service.shell
    wanted = watch.wants() if watch is not None else 0
    if watch is not None and not wanted and not usage:
        return watch.ends
    tap = Tap(usage, watch, wanted, head)
    tap.feed(payload)
    return tap


class Ends(Tap):
    """Keeps nothing: one for all exchanges of which only the end is told."""

    __slots__ = ()

    def __init__(self, watch: Watch) -> None:
        super().__init__(False, watch)

    def feed(self, payload: bytes) -> None:
        pass
