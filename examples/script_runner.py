"""An agent that runs Python scripts, each in a process of its own that keeps one core busy.

    python examples/script_runner.py --port 9002 --slots 2
    curl http://127.0.0.1:9002/run -d '{"name": "primes", "args": ["200000"]}'
    curl -N http://127.0.0.1:9002/run -H 'accept: text/event-stream' -d '{"script": "for i in range(3): print(i)"}'

THIS IS NOT A SANDBOX. CPU time, memory, file size and wall time are limited, the environment is emptied, there is no
shell, and a client that hangs up ends its script; but the script still runs as this user, reads what this user can
read, and reaches the network. Run only scripts of people you would give a login on this machine.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentkit import EventStream, Slots, arguments, make_app, refusal, serve, sse, unless_gone, wants_events

CPU_SECONDS, WALL_SECONDS, MEMORY, FILE_SIZE, OUTPUT = 60, 300, 512 << 20, 16 << 20, 1 << 20

#: Scripts that can be asked for by name. `args` arrive as sys.argv[1:].
NAMED = {
    "primes": """
import sys
top, primes = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000, []
for n in range(2, top):
    for p in primes:
        if n % p == 0:
            break
        if p * p > n:
            primes.append(n)
            break
    else:
        primes.append(n)
print(f"{len(primes)} primes below {top}, the last is {primes[-1]}")
""",
    "mandelbrot": """
import sys
height = int(sys.argv[1]) if len(sys.argv) > 1 else 24
for row in range(height):
    line = ""
    for column in range(2 * height):
        c, z, n = complex(3.2 * column / (2 * height) - 2.3, 2.4 * row / height - 1.2), 0j, 0
        while abs(z) < 2 and n < 2000:
            z, n = z * z + c, n + 1
        line += " .:-=+*#%@"[min(9, n.bit_length())]
    print(line, flush=True)
""",
}

#: Runs in the new process before the script does: hard limits, which the script cannot raise again.
LAUNCHER = """
import resource as r, runpy, sys
cpu, memory, size = map(int, sys.argv[1:4])
for what, most in ((r.RLIMIT_CPU, cpu), (r.RLIMIT_AS, memory), (r.RLIMIT_FSIZE, size), (r.RLIMIT_CORE, 0)):
    try:
        r.setrlimit(what, (most, most))
    except (ValueError, OSError):
        print(f"limit {what} not set on this system", file=sys.stderr)
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def run(script: str, args: list[str]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """Yields ("output", {text}) as the script prints, then one ("exit", {code, seconds, why}). Closing it kills."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="script-") as folder:
        path = os.path.join(folder, "script.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)
        limits = [str(CPU_SECONDS), str(MEMORY), str(FILE_SIZE)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-u", "-c", LAUNCHER, *limits, path, *args),
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "PYTHONUTF8": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # so that killing the group also ends what the script itself started
        )
        why, printed = "finished", 0
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        try:
            assert process.stdout is not None
            async with asyncio.timeout(WALL_SECONDS):
                while piece := await process.stdout.read(4096):
                    printed += len(piece)
                    if printed > OUTPUT:
                        why = f"printed more than {OUTPUT} bytes"
                        break
                    yield "output", {"text": decode(piece)}
                else:
                    await process.wait()
        except TimeoutError:
            why = f"took longer than {WALL_SECONDS} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it and all its children had ended
            code = await process.wait()
        if code < 0 and why == "finished":
            why = f"killed by {signal.Signals(-code).name}"
        yield "exit", {"code": code, "why": why, "seconds": round(time.monotonic() - began, 3)}


def routes(slots: Slots) -> list[Route]:
    async def post(request: Request) -> Response:
        try:
            asked = await request.json()
            script = NAMED[asked["name"]] if "name" in asked else asked["script"]
            args = [str(arg) for arg in asked.get("args", [])]
            if not isinstance(script, str):
                raise TypeError("script must be text")
        except (ValueError, KeyError, TypeError) as error:
            return refusal(f'send {{"script": "..."}} or {{"name": one of {sorted(NAMED)}}}, "args": [...]: {error!r}')

        async def events() -> AsyncGenerator[bytes, None]:
            async with slots, aclosing(run(script, args)) as steps:
                async for event, data in steps:
                    yield sse(event, data)

        async def answer() -> dict[str, Any]:
            output, end = [], {}
            async with slots, aclosing(run(script, args)) as steps:
                async for event, data in steps:
                    if event == "output":
                        output.append(data["text"])
                    else:
                        end = data
            return {"output": "".join(output), **end}

        if wants_events(request):
            return EventStream(events())
        return JSONResponse(await unless_gone(request, answer()))

    return [Route("/run", post, methods=["POST"])]


def main() -> None:
    options = arguments(__doc__, slots=2).parse_args()
    slots = Slots(options.slots)
    serve(make_app(routes(slots), slots), options)


if __name__ == "__main__":
    main()
