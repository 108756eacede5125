"""An agent that burns CPU for each request, and says how busy it is: in a header of every answer, and at a path.

python examples/asgi_agent.py --port 9005
curl -i 'http://127.0.0.1:9005/burn?seconds=0.5'
curl http://127.0.0.1:9005/.well-known/unjam/load
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentkit import Slots, arguments, make_app, refusal, serve
from unjam.reporter.asgi import LoadHeaders
from unjam.reporter.machine import Machine
from unjam.reporter.tree import Agent

MOST_SECONDS = 60.0


def burn(seconds: float) -> int:
    """Use a core for so many seconds of its time; how many rounds that was."""
    rounds, end = 0, time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 10_000)  # lets other threads run meanwhile
        rounds += 1
    return rounds


def routes(slots: Slots) -> list[Route]:
    async def burning(request: Request) -> Response:
        try:
            seconds = float(request.query_params.get("seconds", 0.1))
        except ValueError:
            return refusal("seconds must be a number")
        if not 0 <= seconds <= MOST_SECONDS:
            return refusal(f"seconds must be from 0 to {MOST_SECONDS:g}")
        async with slots:
            rounds = await asyncio.to_thread(burn, seconds)
        return JSONResponse({"rounds": rounds, "seconds": seconds})

    return [Route("/burn", burning)]


def main() -> None:
    options = arguments(__doc__, slots=4).parse_args()
    slots = Slots(options.slots)
    app = make_app(routes(slots), slots)
    app.add_middleware(LoadHeaders, waiting=lambda: slots.waiting, machine=Machine(Agent.of_pid(os.getpid())))
    serve(app, options)


if __name__ == "__main__":
    main()
