"""Real processes for tests: `unjam serve` as a user starts it, and endpoints that can be killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PATIENCE = 45.0


class Process:
    """A child whose output is kept. Ended by its own id when the test is over."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.said = ""
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.child.stdout is not None
        while line := await self.child.stdout.readline():
            self.said += line.decode("utf-8", "replace")
            self._more.set()
        self._more.set()

    async def says(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Wait until its output matches, from the character `after` on."""
        async with asyncio.timeout(PATIENCE):
            while (match := re.compile(pattern).search(self.said, after)) is None:
                assert not self._reading.done(), f"it ended without saying {pattern!r}:\n{self.said}"
                self._more.clear()
                await self._more.wait()
        return match

    def send(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE):
            code = await self.child.wait()
            await self._reading
        return code

    def resident(self) -> int:
        """Bytes of memory it holds."""
        fields = Path(f"/proc/{self.child.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))


@asynccontextmanager
async def process(*command: str, cwd: Path | None = None) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Process(child)
    try:
        yield running
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        await running._reading


@asynccontextmanager
async def served(*arguments: str, cwd: Path | None = None) -> AsyncIterator[tuple[Process, int]]:
    """`unjam serve` with `arguments`, and the port of its first listener."""
    async with process("-m", "unjam.cli.main", "serve", *arguments, cwd=cwd) as gateway:
        match = await gateway.says(r'"event": ?"listening".*?"port": ?(\d+)')
        yield gateway, int(match.group(1))
