"""A request on its way to an endpoint: what a client's exchange and a pushed run have in common."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from unjam.core.model import Lease, Request, Ticket
from unjam.gateway.states import CONNECTING

if TYPE_CHECKING:
    from unjam.core.spec import Timeouts
    from unjam.gateway.upstream import Upstream, UpstreamConnection


class Leased(Request):
    """The core's `Request`, and how far it has come. Times are monotonic seconds, sizes bytes.

    `ticket`: while it waits for a slot; `lease`: once it has one; `upstream`: the connection that carries it. `state`:
    one of `states`. `last`: of the last sign of life; `queued`: waited so far. `reason`: why it did not end well.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "first_byte",
        "last",
        "lease",
        "queued",
        "reason",
        "request_id",
        "retries",
        "sent_at",
        "state",
        "status",
        "ticket",
        "upstream",
    )

    bytes_in: int
    bytes_out: int
    first_byte: float
    last: float
    lease: Lease | None
    queued: float
    reason: str
    request_id: bytes
    retries: int
    sent_at: float
    state: int
    status: int
    ticket: Ticket | None
    upstream: UpstreamConnection | None

    def timeouts(self) -> Timeouts:
        """The limits of its lane, at the service that serves it."""
        lease = self.lease
        assert lease is not None
        lanes = lease.service.spec.lanes
        return lanes.heavy if lease.heavy else lanes.fast

    def awaits(self, upstream: Upstream) -> bool:
        """Whether a connection that is being opened to this endpoint is still for it."""
        lease = self.lease
        return self.state == CONNECTING and lease is not None and lease.endpoint is upstream.endpoint

    def connected(self, connection: UpstreamConnection) -> bool:
        """A connection was opened for it; False when it is no longer wanted."""
        if not self.awaits(connection.upstream):
            return False
        self.send(connection, monotonic())
        return True

    def send(self, connection: UpstreamConnection, now: float) -> None:
        """Write the request."""
        raise NotImplementedError

    def drop_upstream(self) -> None:
        connection, self.upstream = self.upstream, None
        if connection is not None:
            connection.abort()
