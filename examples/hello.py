"""The smallest agent: says hello in a few milliseconds.

python examples/hello.py --port 9001
curl 'http://127.0.0.1:9001/hello?name=Ada'
"""

from __future__ import annotations

import asyncio
import os

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentkit import Slots, arguments, make_app, serve, unless_gone


def routes(slots: Slots) -> list[Route]:
    async def hello(request: Request) -> Response:
        async def answer() -> dict[str, object]:
            async with slots:
                await asyncio.sleep(0.005)  # a quick look-up
                return {"message": f"Hello, {request.query_params.get('name', 'world')}!", "from": os.getpid()}

        return JSONResponse(await unless_gone(request, answer()))

    return [Route("/hello", hello, methods=["GET"])]


def main() -> None:
    options = arguments(__doc__, slots=32).parse_args()
    slots = Slots(options.slots)
    serve(make_app(routes(slots), slots), options)


if __name__ == "__main__":
    main()
