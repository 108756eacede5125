"""A function becomes a worker: it claims runs, tells how far it has come, and hands back what it can't end.

    worker = Worker("http://127.0.0.1:8080", service="auditor", slots=4)

    @worker.run
    async def audit(run): ...

Lean on purpose: the standard library and msgspec; of unjam the records of runs and the HTTP client.
"""

from unjam.worker.http_link import HttpLink
from unjam.worker.link import Job, Link, Refused
from unjam.worker.plain import PlainRun
from unjam.worker.run import Input, Run
from unjam.worker.session import RunError, RunStopped
from unjam.worker.store_link import StoreLink
from unjam.worker.worker import Worker

__all__ = [
    "HttpLink",
    "Input",
    "Job",
    "Link",
    "PlainRun",
    "Refused",
    "Run",
    "RunError",
    "RunStopped",
    "StoreLink",
    "Worker",
]
