"""One connection to one Redis, shared by all who call: commands leave as they come, many in a packet, and replies are
matched in order as they come.

So a caller that is cancelled leaves nothing behind: its reply is read and dropped here. A line that fails, or is silent
for too long, is given up as a whole: all who wait get `Lost`, and nobody ever reads a reply that was another's. A slow
way is no silence: as long as bytes cross, whatever is large may take its time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from unjam.runs.store.base import StoreAway, StoreError
from unjam.runs.store.redis_wire import Wire

#: Milliseconds that the replicas get to confirm, where that is asked for.
_REPLICATION: Final = 1000

_PLAIN, _DURABLE, _WAIT = range(3)
#: Bytes that may be on their way where we can't see them, and bytes in a second that the slowest way takes.
_HIDDEN, _SLOWEST = 8 << 20, 512 << 10


class Lost(Exception):
    """The connection is gone. `sent`: the command may have been carried out."""

    def __init__(self, why: str, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Line:
    """`replicas`: that must have what a durable command changed before it is answered. Made within a running loop, by
    `connected` only."""

    def __init__(self, connection: AbstractConnection, name: str, replicas: int) -> None:
        self.name = name
        self.lost: str | None = None
        self._connection = connection
        self._replicas = replicas
        self._loop = asyncio.get_running_loop()
        self._flying: deque[tuple[asyncio.Future[Any] | None, float, int, int]] = deque()
        self._weight = 0
        self._unconfirmed: list[tuple[asyncio.Future[Any], Any]] = []
        self._durable = False
        self._wire = Wire(connection, self._heard)
        self._crossed = (0, 0, 0)
        self._crossed_at = self._loop.time()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def connected(cls, connection: AbstractConnection, name: str, replicas: int, patience: float) -> Line:
        """Raises redis-py's errors; TimeoutError after `patience` seconds."""
        try:
            # redis-py waits without limit for answers to what it begins with.
            async with asyncio.timeout(patience):
                await connection.connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            await connection.disconnect(nowait=True)
            raise TimeoutError(f"no answer in {patience:g} s") from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return cls(connection, name, replicas)

    def send(self, args: Sequence[Any], durable: bool = False) -> asyncio.Future[Any]:
        """The future has the reply, or raises redis-py's ResponseError, `Lost`, or StoreAway (too few replicas)."""
        if self.lost is not None:
            raise Lost(self.lost, False)
        future: asyncio.Future[Any] = self._loop.create_future()
        packed = pack_command(tuple(args))
        replicated = durable and self._replicas > 0
        if replicated and not self._durable:
            self._durable = True
            self._loop.call_soon(self._confirm)
        self._wire.send(packed)
        self._weight += len(packed)
        self._flying.append((future, self._loop.time(), _DURABLE if replicated else _PLAIN, len(packed)))
        return future

    def silent(self, now: float) -> float:
        """Seconds for which commands have waited without a byte crossing the line, as far as the kernel tells, less the
        seconds that what was sent may still need where the kernel can't see it: behind a proxy or in a tunnel."""
        if not self._flying:
            return 0.0
        if (crossed := self._wire.crossed()) != self._crossed:
            self._crossed, self._crossed_at = crossed, now
        return now - max(self._flying[0][1], self._crossed_at) - min(self._weight, _HIDDEN) / _SLOWEST

    def lose(self, why: str) -> None:
        """Give this line up; callers may send again over another one."""
        if self.lost is None:
            self.lost = why
            self._task.cancel()

    async def close(self) -> None:
        self.lose("closed")
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._wire.gone()
        finally:
            self.lost = self.lost or self._wire.lost
            self._wire.close()
            for future, _ in self._unconfirmed:
                self._fail(future)
            for entry, _, _, _ in self._flying:
                if entry is not None:
                    self._fail(entry)
            self._flying.clear()
            self._unconfirmed.clear()
            await self._connection.disconnect(nowait=True)

    def _fail(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(Lost(self.lost or "", True))

    def _confirm(self) -> None:
        """Ask once for all commands that were sent in this turn of the loop."""
        self._durable = False
        if self.lost is None:
            self._wire.send(pack_command(_wait(self._replicas)))
            self._flying.append((None, self._loop.time(), _WAIT, 0))

    def _heard(self, reply: Any) -> None:
        if not self._flying:
            raise RedisError("a reply that nobody asked for")
        future, _, kind, size = self._flying.popleft()
        self._weight -= size
        if kind == _WAIT:
            self._confirmed(reply)
        elif future is None or future.done():
            pass
        elif isinstance(reply, Exception):
            future.set_exception(reply)
        elif kind == _DURABLE:
            self._unconfirmed.append((future, reply))
        else:
            future.set_result(reply)

    def _confirmed(self, reply: Any) -> None:
        enough = isinstance(reply, int) and reply >= self._replicas
        for future, value in self._unconfirmed:
            if future.done():
                continue
            if enough:
                future.set_result(value)
            else:
                found = reply if isinstance(reply, int) else 0
                future.set_exception(StoreAway(f"{found} replicas of {self.name} confirm, {self._replicas} must"))
        self._unconfirmed.clear()


def _wait(replicas: int) -> tuple[Any, ...]:
    return ("WAIT", replicas, _REPLICATION)


_WORDS: Final = {
    "OOM": "is out of memory (maxmemory)",
    "READONLY": "is a read-only replica",
    "LOADING": "is still loading its data",
    "NOAUTH": "wants a password",
    "WRONGPASS": "refuses our name or password",
    "NOPERM": "does not allow us what we need",
    "CLUSTERDOWN": "is in a cluster that is down",
    "MASTERDOWN": "has lost its master",
    "TRYAGAIN": "is moving these keys to another server",
    "MISCONF": "can't write its snapshots, and takes no writes until it can",
    "NOREPLICAS": "has too few replicas, and takes no writes",
    "BUSY": "is busy with a script",
    "MAXCLIENTS": "has as many clients as it may",
}


def in_words(error: BaseException, name: str) -> StoreError:
    """What Redis said, as what a caller can do about it: StoreAway, or StoreError for what trying again won't mend."""
    if isinstance(error, StoreError):
        return error
    text = str(error)
    code = str(getattr(error, "status_code", None) or text.split(" ", 1)[0])
    if isinstance(error, BusyLoadingError) or "loading the dataset" in text:
        code = "LOADING"
    if "max number of clients" in text:
        code = "MAXCLIENTS"
    if isinstance(error, AuthenticationError) and code not in _WORDS:
        code = "WRONGPASS"
    if "ACL failure" in text or "can't run this command" in text or "can't access" in text:
        code = "NOPERM"
    if code in _WORDS:
        return StoreAway(f"Redis at {name} {_WORDS[code]}")
    if isinstance(error, ResponseError):
        return StoreError(f"Redis at {name}: {text}")
    if isinstance(error, (RedisError, OSError, Lost)):
        return StoreAway(f"Redis at {name} can't be reached: {text}")
    raise error
