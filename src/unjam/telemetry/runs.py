"""What happened to durable runs on this gateway: plain counters, read at scrape."""

from __future__ import annotations


class RunsStats:
    """`claims_refused`: claims of workers that may have had a run and were given none, by service and reason.
    `created`: by service. `ended`: by service and status. `swept`: leases that expired and deadlines that passed,
    by service and what became of the run. `errors`: what the store refused or failed at, by code. `depth`: by service,
    runs queued and running, in the whole store, as last asked. `followers`, `followed`: who follows logs now, and how
    many runs. `waiting`: workers that hold a claim open. `away`: the store can't be reached. `sockets`: WebSocket
    clients held now; `sockets_closed`: those that we ended, by close code, 0 for no pong."""

    __slots__ = (
        "away",
        "claims_refused",
        "created",
        "depth",
        "ended",
        "errors",
        "followed",
        "followers",
        "sockets",
        "sockets_closed",
        "swept",
        "waiting",
    )

    def __init__(self) -> None:
        self.claims_refused: dict[tuple[str, str], int] = {}
        self.created: dict[str, int] = {}
        self.ended: dict[tuple[str, str], int] = {}
        self.swept: dict[tuple[str, str], int] = {}
        self.errors: dict[str, int] = {}
        self.depth: dict[str, tuple[int, int]] = {}
        self.followers = 0
        self.followed = 0
        self.waiting = 0
        self.sockets = 0
        self.sockets_closed: dict[int, int] = {}
        self.away = False
