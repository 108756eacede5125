"""Those who follow the audit: `unjam.client`, a curl that reads server-sent events, and one that waits for the end.

Each keeps what it was given and when. What it does about a cut is its own: the client has that built in, curl is called
again by hand with the last id, as anybody would.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from unjam.client import AsyncClient
from unjam.client.sse import Reader

#: Seconds before curl is called again.
PAUSE: Final = 0.25
#: User-Agents, by which the proxies know them.
SSE: Final = "curl-events"
WAIT: Final = "curl-wait"
ENDS: Final = frozenset({"run.completed", "run.failed", "run.cancelled", "run.expired"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One event as somebody saw it. `seq`: -1 for one without a number."""

    seq: int
    type: str
    data: Any


@dataclass
class Reading:
    """What one reader got. `at`: the seconds of the story at which it came. `calls`: of curl."""

    entries: list[Entry] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    calls: int = 0

    @property
    def last(self) -> int:
        return self.entries[-1].seq if self.entries else -1

    @property
    def ended(self) -> bool:
        return bool(self.entries) and self.entries[-1].type in ENDS


Heard = Callable[[Entry], None]


class Readers:
    """`clock`: seconds of the story. `heard`: called with each event of the client."""

    def __init__(self, run: str, clock: Callable[[], float], heard: Heard) -> None:
        self.client = Reading()
        self.curl = Reading()
        self.waited: Any = None
        self.waits = 0
        self._run = run
        self._clock = clock
        self._heard = heard

    async def follow(self, client: AsyncClient) -> Any:
        """With `unjam.client`; the run's result."""
        async for event in client.follow(self._run):
            entry = Entry(event.seq, event.type, event.data)
            self._keep(self.client, entry)
            self._heard(entry)
        return await client.result(self._run)

    async def follow_with_curl(self, urls: Sequence[str]) -> None:
        """`curl -N`, at the next gateway with the last id when it ends too early."""
        reading = self.curl
        while not reading.ended:
            url = urls[reading.calls % len(urls)]
            reading.calls += 1
            asked = ["-N", "-A", SSE, "-H", "accept: text/event-stream"]
            asked += ["-H", f"last-event-id: {reading.last}"] if reading.entries else []
            parse = Reader()
            async with _curl(*asked, f"{url}/v1/runs/{self._run}/events") as output:
                while piece := await output.read(65536):
                    for message in parse.feed(piece):
                        seq = -1 if message.id is None else int(message.id)
                        self._keep(reading, Entry(seq, message.event, json.loads(message.data)))
            if not reading.ended:
                await asyncio.sleep(PAUSE)

    async def wait_with_curl(self, urls: Sequence[str]) -> None:
        """One GET that is answered when the run has ended; again at the next gateway when it was no such answer."""
        while True:
            url = urls[self.waits % len(urls)]
            self.waits += 1
            async with _curl("--fail", "-A", WAIT, f"{url}/v1/runs/{self._run}?wait=3600") as output:
                said = await output.read()
            run = json.loads(said) if said.endswith(b"}\n") else {}
            if f"run.{run.get('status')}" in ENDS:
                self.waited = run
                return
            await asyncio.sleep(PAUSE)

    def _keep(self, reading: Reading, entry: Entry) -> None:
        reading.entries.append(entry)
        reading.at.append(self._clock())


@asynccontextmanager
async def _curl(*arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    child = await asyncio.create_subprocess_exec(
        "curl",
        "--silent",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    try:
        yield child.stdout
    finally:
        if child.returncode is None and not child.stdout.at_eof():
            child.kill()
        await child.wait()
