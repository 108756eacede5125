"""The gateway's end of the process that judges: started when there is something to judge, ended when it takes too long,
started again after a pause that grows with each such end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from time import monotonic
from typing import Any, Final

import msgspec

from unjam.evaluate.frames import ERROR, GOOD, MOST_ANSWER, Judge, Prepare, Said, Take, decode_said, frame
from unjam.evaluate.record import Record

#: Seconds that an evaluator may take to import what it needs, the first time.
PREPARE: Final = 60.0
#: Seconds in which one that could not be made ready is not tried again.
AGAIN: Final = 10.0
#: Seconds before the next start after one, and many, ends in a row; in a row: it had not lived for `LIVED` seconds.
PAUSE: Final = 0.1
PAUSE_MOST: Final = 10.0
LIVED: Final = 30.0

TIMEOUT: Final = "timeout"

#: What of the gateway's environment it is given, by name, and by how the name begins: to be found and to run. Nothing
#: else, as the gateway's secrets are in there too.
ENVIRONMENT: Final = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV", "LD_LIBRARY_PATH"})
ENVIRONMENT_BEGINS: Final = ("LC_", "PYTHON")


class Spec(msgspec.Struct, eq=False, frozen=True):
    """One evaluator of one service. `kind`: of `checks.CHECKS`, or python."""

    name: str
    kind: str
    options: dict[str, Any]


class Child:
    """For one task at a time. `starts`: processes begun."""

    def __init__(self) -> None:
        self.starts = 0
        self._process: Process | None = None
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._ready: dict[Spec, int] = {}
        self._holds: Record | None = None
        #: Those that could not be made ready: until when, and why.
        self._refused: dict[Spec, tuple[float, Said]] = {}
        self._born = 0.0
        self._pause = 0.0
        self._not_before = 0.0
        self._stale = False

    async def judge(self, record: Record, spec: Spec, timeout: float) -> Said:
        """`result` good, bad, error, or timeout when it took longer than `timeout` seconds."""
        refused = self._refused.get(spec)
        if refused is not None and monotonic() < refused[0]:
            return refused[1]
        whole = False
        try:
            if self._stale:
                await self.close()
            await self._start()
            said = await self._prepare(spec)
            if said.result == GOOD:
                said = await self._judge(record, spec, timeout)
            whole = True
        except TimeoutError:
            return Said(TIMEOUT, f"no verdict in {timeout:g} s")
        except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
            return Said(ERROR, f"its process ended: {await self._end()}" if self._process else str(error))
        finally:
            if not whole:  # cancelled too: an answer that is on its way would be taken for the next one's
                await self._died()
        return said

    def renew(self) -> None:
        """The next evaluation is by a new process, with the code and the schemas as they are then."""
        self._stale = True
        self._refused.clear()

    async def close(self) -> None:
        """End it. Another `judge` starts one anew."""
        self._stale = False
        await self._end()

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _prepare(self, spec: Spec) -> Said:
        if spec in self._ready:
            return Said(GOOD)
        key = len(self._ready)
        try:
            async with asyncio.timeout(PREPARE):
                said = await self._ask(Prepare(key, spec.kind, spec.options, PREPARE))
        except TimeoutError:
            self._refuse(spec, Said(ERROR, f"not ready in {PREPARE:g} s"))
            raise
        except (OSError, EOFError):
            self._refuse(spec, Said(ERROR, "its process ended as it was made ready"))
            raise
        if said.result == GOOD:
            self._ready[spec] = key
        else:
            self._refuse(spec, said)
        return said

    def _refuse(self, spec: Spec, said: Said) -> None:
        self._refused[spec] = (monotonic() + AGAIN, said)

    async def _judge(self, record: Record, spec: Spec, timeout: float) -> Said:
        async with asyncio.timeout(timeout):
            if self._holds is not record:
                assert self._line is not None
                self._line[1].write(frame(Take(record)))
                self._holds = record
            return await self._ask(Judge(self._ready[spec], timeout))

    async def _ask(self, message: Prepare | Judge) -> Said:
        """Raises EOFError, OSError, ValueError for what can't be understood."""
        assert self._line is not None
        reader, writer = self._line
        writer.write(frame(message))
        await writer.drain()
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MOST_ANSWER:
            raise ValueError("it said too much")
        return decode_said(await reader.readexactly(size))

    # -- the process --------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self._process is not None and self._line is not None:
            if self._process.returncode is None and not self._line[0].at_eof():
                return
            await self._died()
        pause = self._not_before - monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        self._born = monotonic()
        ours, theirs = socket.socketpair()
        try:
            # A session of its own: signals of a terminal are the gateway's, and what it starts ends with it.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "unjam.evaluate"),
                stdin=theirs.fileno(),
                stdout=2,
                start_new_session=True,
                env=_environment(),
            )
            self._line = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.starts += 1

    async def _died(self) -> None:
        await self._end()
        lived = monotonic() - self._born
        self._pause = PAUSE if lived > LIVED or not self._pause else min(2 * self._pause, PAUSE_MOST)
        self._not_before = monotonic() + self._pause

    async def _end(self) -> str:
        """End it, if it is there. How it ended, in words."""
        process, self._process = self._process, None
        line, self._line = self._line, None
        self._ready = {}
        self._holds = None
        if line is not None:
            line[1].transport.abort()
        return "" if process is None else await asyncio.shield(_reaped(process))


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith(ENVIRONMENT_BEGINS)
    }


async def _reaped(process: Process) -> str:
    try:
        # What it has started too: they are in its session.
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    code = await process.wait()
    return f"signal {-code}" if code < 0 else f"exit status {code}"
