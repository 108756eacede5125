"""Submit durable runs, follow them and get their results: over dropped connections and gateways that restart.

    client = Client("http://127.0.0.1:8080")
    run = client.submit("auditor", {"pages": 500})
    for event in client.follow(run):
        print(event.type, event.data)
    print(client.result(run))

`AsyncClient` is the same for asyncio. Lean on purpose: the standard library and msgspec.
"""

from unjam.client.aio import AsyncClient
from unjam.client.errors import (
    ClientError,
    NotAccepted,
    RunCancelled,
    RunExpired,
    RunFailed,
    RunNotCompleted,
    Unavailable,
)
from unjam.client.model import Event, Run
from unjam.client.sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "NotAccepted",
    "Run",
    "RunCancelled",
    "RunExpired",
    "RunFailed",
    "RunNotCompleted",
    "Unavailable",
]
