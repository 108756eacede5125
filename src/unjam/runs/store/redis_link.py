"""The servers of a Redis: which one has a partition, a line to each, and what to do when one goes away.

A call waits for at most `patience` for a server that restarts, fails over or moves keys, then raises StoreAway in
words; while a server is known to be away for longer than that, at once. A call whose reply was lost is sent again,
marked so: scripts answer it as the first time. Calls that Redis refused are not.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from unjam.runs.model import PARTITIONS
from unjam.runs.store.base import KEY_KEPT, LOOKED, StoreAway, StoreError
from unjam.runs.store.redis_line import Line, Lost, in_words
from unjam.runs.store.redis_url import Address, Place, named

#: Version of the keys' layout.
SCHEMA: Final = b"1"
#: Bytes of a call from which it takes a connection of its own, so that small ones needn't wait behind it.
BULK: Final = 64 << 10
#: Bytes of the events of one append that are published with the word that there are some.
NEWS: Final = 8 << 10
#: Large calls under way at once; those after them wait here, not in a server's buffers and ours.
_BULKS: Final = 8
#: Seconds between looks at whether the lines still answer, and for how long nothing may cross on one.
_WATCH, _SILENCE = 0.5, 5.0
#: Different warnings that are given; a fault may come in many words.
_WARNINGS: Final = 1000
#: Seconds after which a sweep notes its time again; without a sweep for so long (and a sixth of a lease) the server was
#: away, or everybody was.
_STAMP, _HOLE = 0.5, 2.0
_NAMES: Final = [
    "open",
    "create",
    "claim",
    "claimed",
    "heads",
    "append",
    "heartbeat",
    "save",
    "finish",
    "release",
    "cancel",
    "requeue",
    "sweep",
    "send",
    "inputs",
    "get",
    "result",
    "read",
    "list",
    "dead",
    "delete",
    "housekeep",
    "depth",
    "announce",
    "workers",
]
#: What frees memory is done in want of it, too; and signs of life, which take none: or else the sweep, which is done,
#: would take runs from owners that live. And what a connection begins with, for these to come through.
_FREEING: Final = frozenset({"open", "heartbeat", "finish", "release", "cancel", "sweep", "delete", "housekeep"})
#: Of another name's text: what differs is when it may run.
_BODIES: Final = {"save": "heartbeat"}
_READING: Final = frozenset({"claimed", "heads", "inputs", "get", "result", "read", "list", "dead", "depth", "workers"})

#: A place for a line: the server, and what it is used for: 0 and 1, small calls; `_BULK`: large ones.
_Key = tuple[Address, int]
_BULK: Final = 2


class Library:
    """The Lua of one prefix and topology, as a library of functions. Its name is of its text: gateways of other
    versions have theirs beside it. `full`: by name, the function's."""

    def __init__(self, prefix: str, clustered: bool) -> None:
        folder = resources.files("unjam.runs.store") / "lua"
        text = (folder / "common.lua").read_text()
        for name in _NAMES:
            body = (folder / f"{_BODIES.get(name, name)}.lua").read_text()
            text += f"\nlocal function f_{name}(KEYS, ARGV)\nbegin(ARGV)\n{body}end\n"
        fill = {
            "@PREFIX@": prefix,
            "@PUBLISH@": "SPUBLISH" if clustered else "PUBLISH",
            "@ONE@": "false" if clustered else "true",
            "@LOOKED@": str(LOOKED),
            "@KEY_KEPT@": f"{KEY_KEPT:.0f}",
            "@NEWS@": str(NEWS),
            "@STAMP@": f"{_STAMP * 1000:.0f}",
            "@HOLE@": f"{_HOLE * 1000:.0f}",
        }
        for mark, value in fill.items():
            text = text.replace(mark, value)
        library = f"unjam_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.full = {name: f"{library}_{name}" for name in _NAMES}
        for name, full in self.full.items():
            flags = "'allow-oom'" if name in _FREEING else "'no-writes'" if name in _READING else ""
            text += f"redis.register_function{{function_name='{full}', callback=f_{name}, flags={{{flags}}}}}\n"
        self.text = f"#!lua name={library}\n{text}"


class Link:
    """`on_warning`: told in words what an operator should know. `on_map`: the servers, or who has what, changed."""

    def __init__(self, place: Place, on_warning: Callable[[str], None]) -> None:
        self.place = place
        self.clustered = place.kind == "cluster"
        #: By partition: hash tags of the indexes; one for all where there is one server.
        self.tags = [f"p{part:02x}" for part in range(PARTITIONS)] if self.clustered else ["all"]
        self.on_map: Callable[[], None] = lambda: None
        self._slots = [key_slot(f"p{part:02x}".encode()) for part in range(PARTITIONS)]
        self._library = Library(place.prefix, self.clustered)
        self._warn = on_warning
        self._warned: set[str] = set()
        self._lines: dict[_Key, Line] = {}
        self._dialing: dict[_Key, asyncio.Task[Line]] = {}
        self._arriving: set[Line] = set()
        self._refreshing: asyncio.Task[None] | None = None
        #: By partition in a cluster, else one: the server, None: to be found out.
        self._map: list[Address | None] = [None] * len(self.tags)
        #: By partition: the server that was looked at, and found to have it.
        self._seen: list[Address | None] = list(self._map)
        if place.kind == "one":
            self._map = [place.addresses[0]]
        #: Since when a server is away, when it was last tried.
        self._away: dict[str, tuple[float, float, StoreError]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._bulks = asyncio.Semaphore(_BULKS)

    async def open(self) -> None:
        """Raises StoreAway, or StoreError for what isn't a store of ours."""
        for host in self.place.in_the_open():
            self.tell(f"Redis at {host} is beyond this machine and spoken to without TLS: use rediss://")
        self._watcher = asyncio.create_task(self._watch())
        try:
            for part in range(len(self._map)):
                await self.line(part)
        except (RedisError, OSError, Lost) as error:
            raise in_words(error, self.place.shown()) from error

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [task for task in (self._watcher, self._refreshing) if task is not None]
        tasks += self._dialing.values()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        lines = list(self._lines.values())
        self._lines.clear()
        for line in lines:
            await line.close()

    # -- calls ----------------------------------------------------------------------------------------------------

    async def script(
        self, name: str, part: int, key: str, *argv: Any, now: str = "", durable: bool = True, bulk: bool = False
    ) -> list[Any]:
        """Run a function; `part`: whose server it is sent to. Raises StoreAway, StoreError."""
        full = self._library.full[name]
        first = ("FCALL", full, 1, key, now, "0", *argv)
        again = ("FCALL", full, 1, key, now, "1", *argv)
        if not bulk:
            return await self._call(part, first, again, durable, False)  # type: ignore[no-any-return]
        async with self._bulks:
            return await self._call(part, first, again, durable, True)  # type: ignore[no-any-return]

    async def command(self, part: int, *args: Any) -> Any:
        """A command that changes nothing."""
        return await self._call(part, args, args, False, False)

    async def _call(self, part: int, args: Sequence[Any], again: Sequence[Any], durable: bool, bulk: bool) -> Any:
        # Small calls go by two lines, so that replies of one are read while Redis works for the other.
        use = _BULK if bulk else part & 1
        if not self.clustered:
            part = 0
        # The common case, without the ceremony of the other.
        address = self._map[part]
        line = None if address is None else self._lines.get((address, use))
        waits, loop, ask = 0.02, asyncio.get_running_loop(), None
        until = 0.0
        while True:
            try:
                if ask is not None:
                    line, ask = await self._dial(ask, use), None
                    line.send(("ASKING",)).add_done_callback(_ignore)
                elif line is None or line.lost is not None:
                    line = await self.line(part, use)
                return await line.send(args, durable)
            except AskError as error:
                if not isinstance(error, MovedError):
                    ask = (error.host, error.port)
                    continue
                why: BaseException = error
                self._moved(part)
            except ReadOnlyError as error:
                if self.place.kind == "one":
                    raise in_words(error, self.place.shown()) from error
                why = error
                self._moved(part)
            except Lost as error:
                why = error
                if error.sent:
                    args = again
                self._moved(part)
            except AuthenticationError as error:
                raise in_words(error, self.place.shown()) from error
            except (ClusterDownError, TryAgainError, BusyLoadingError) as error:
                why = error
            except ResponseError as error:
                if "Function not found" not in str(error) or line is None:
                    raise in_words(error, self.place.shown()) from error
                # Flushed, or a server that came without: it has done nothing yet.
                why = error
                await self._load(line)
                if not until:
                    until = loop.time() + self.place.patience
                    continue
            except (RedisError, OSError) as error:
                why = error
                self._moved(part)
            line = None
            now = loop.time()
            until = until or now + self.place.patience
            if now + waits > until:
                raise in_words(why, self.place.shown()) from why
            await asyncio.sleep(waits)
            waits = min(waits * 2, 0.3)

    # -- lines ----------------------------------------------------------------------------------------------------

    def server(self, part: int) -> Address | None:
        return self._map[part if self.clustered else 0]

    def servers(self) -> set[Address]:
        return {address for address in self._map if address is not None}

    async def line(self, part: int, use: int = 0) -> Line:
        """The line to the server of a partition. Raises StoreAway, StoreError, redis-py's errors and OSError."""
        address = self._map[part]
        if address is None:
            await asyncio.shield(self._refresh_soon())
            address = self._map[part]
            if address is None:
                raise Lost(f"no server of the Redis Cluster at {self.place.shown()} has all of our keys", False)
        return await self._dial(address, use)

    async def _dial(self, address: Address, use: int) -> Line:
        line = self._lines.get((address, use))
        if line is not None and line.lost is None:
            return line
        name = named(address)
        if (away := self._away.get(name)) is not None:
            now = asyncio.get_running_loop().time()
            if now - away[0] > self.place.patience and now - away[1] < 0.5:
                raise type(away[2])(str(away[2]))
        task = self._dialing.get((address, use))
        if task is None or task.done():
            task = asyncio.create_task(self._connect(address, use))
            task.add_done_callback(_ignore)
            self._dialing[(address, use)] = task
        return await asyncio.shield(task)

    async def _connect(self, address: Address, use: int) -> Line:
        loop, name = asyncio.get_running_loop(), named(address)
        try:
            connection = self.place.connection(address)
            line = await Line.connected(connection, name, self.place.replicas, self.place.patience)
            self._arriving.add(line)
            try:
                await self._arrive(line, address)
            except BaseException:
                await line.close()
                raise
            finally:
                self._arriving.remove(line)
        except (RedisError, OSError, Lost, StoreAway) as error:
            since = self._away.get(name, (loop.time(), 0.0, None))[0]
            why = error if isinstance(error, StoreError) else in_words(error, name)
            self._away[name] = (since, loop.time(), why)
            raise
        self._away.pop(name, None)
        old = self._lines.get((address, use))
        self._lines[(address, use)] = line
        if old is not None:
            await old.close()
        return line

    async def _arrive(self, line: Line, address: Address) -> None:
        """Look at who answers there, and whether it has all that was acknowledged."""
        try:
            info = _pairs(await line.send(("INFO",)))
        except NoPermissionError:
            self.tell(f"we may not read INFO of Redis at {line.name}: what a failover loses can't be told")
            info = {}
        if info.get("loading") == "1":
            raise BusyLoadingError("LOADING")
        if info.get("role") == "slave" and self.place.kind != "one":
            raise Lost(f"{line.name} is a replica", False)
        if info and int(info["redis_version"].split(".")[0]) < 7:
            raise StoreError(f"Redis at {line.name} is {info['redis_version']}; it must be 7.0 or newer")
        if info and (info.get("cluster_enabled") == "1") != self.clustered:
            wanted = "redis://" if self.clustered else "redis+cluster://"
            raise StoreError(f"Redis at {line.name} is {'no' if self.clustered else 'a'} Cluster: use {wanted}")
        self._judge(line.name, info)
        if info.get("role") == "slave":
            raise StoreAway(f"Redis at {line.name} is a read-only replica")
        refused = None
        try:
            await self._load(line)
        except StoreAway as error:
            refused = error  # out of memory, say: the functions are there from before, maybe
        promoted = info.get("master_replid2", "0").strip("0")
        lineage = (info.get("master_replid", ""), promoted)
        try:
            await asyncio.gather(
                *(self._check(line, part, address, lineage) for part, at in enumerate(self._map) if at == address)
            )
        except ResponseError:
            if refused is not None:
                raise refused from None
            raise

    async def _load(self, line: Line) -> None:
        try:
            await line.send(("FUNCTION", "LOAD", "REPLACE", self._library.text), True)
        except ResponseError as error:
            raise in_words(error, line.name) from error
        except Lost:
            pass  # whoever calls finds out

    async def _check(self, line: Line, part: int, address: Address, lineage: tuple[str, str]) -> None:
        tag = self.tags[part]
        key = f"{self.place.prefix}{{{tag}}}:schema"
        try:
            reply = await line.send(("FCALL", self._library.full["open"], 1, key, "", "0", tag, SCHEMA, *lineage), True)
        except MovedError:
            return
        if reply[1] != SCHEMA:
            found = reply[1].decode(errors="replace")
            raise StoreError(f"Redis at {line.name} has runs of schema {found}; this is {SCHEMA.decode()}")
        self._seen[part] = address
        if reply[2]:
            self.tell(f"Redis at {line.name} was a replica before: logs of live runs may show a gap", always=True)

    def _judge(self, name: str, info: dict[str, str]) -> None:
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            self.tell(f"Redis at {name} evicts keys when it is full (maxmemory-policy {policy}): runs would be lost")
        if info.get("aof_enabled") == "0":
            self.tell(f"Redis at {name} keeps no append-only file: what it acknowledged is lost when it dies")

    def tell(self, warning: str, always: bool = False) -> None:
        if always or (warning not in self._warned and len(self._warned) < _WARNINGS):
            self._warned.add(warning)
            self._warn(warning)

    # -- who has what ---------------------------------------------------------------------------------------------

    def _moved(self, part: int) -> None:
        """Ask again who has it before it is next sent there."""
        if self.clustered:
            self._map[part] = None
        elif self.place.kind == "sentinel":
            self._map[0] = None

    def suspect(self, address: Address) -> None:
        """A connection to it failed: find out anew who has what."""
        if self.place.kind != "one" and address in self.servers():
            self._refresh_soon()

    def _refresh_soon(self) -> asyncio.Task[None]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(_ignore)
        return self._refreshing

    async def _refresh(self) -> None:
        if self.clustered:
            await self._ask_cluster()
        else:
            self._map[0] = await self._ask_sentinels()
        # A line's server was looked at when it was opened; for a partition that came since, it must be again.
        came = {now for was, now in zip(self._seen, self._map, strict=True) if was != now}
        for (address, _), line in self._lines.items():
            if self.clustered and address in came:
                line.lose("its server has other keys now")
        self.on_map()

    async def _ask_cluster(self) -> None:
        why: BaseException = Lost("none of its servers answers", False)
        known = list(dict.fromkeys([*self.servers(), *self.place.addresses]))
        for address in known:
            try:
                reply = await self._ask(self.place.connection(address), "CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:
                why = error
                continue
            ranges = [(first, last, self._of(node, address)) for first, last, node, *_ in reply]
            self._map = [next((at for low, high, at in ranges if low <= slot <= high), None) for slot in self._slots]
            return
        raise why

    @staticmethod
    def _of(node: Sequence[Any], asked: Address) -> Address:
        host = node[0].decode() if node[0] else ""
        return (host or asked[0], node[1])

    async def _ask_sentinels(self) -> Address:
        why: BaseException | None = None
        for address in self.place.addresses:
            connection = self.place.connection(address, sentinel=True)
            try:
                found = await self._ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.place.service)
            except (RedisError, OSError) as error:
                why = error
                continue
            if found:
                return found[0].decode(), int(found[1])
        raise Lost("no sentinel knows its master" + (f": {why}" if why else ""), False)

    async def _ask(self, connection: AbstractConnection, *args: str) -> Any:
        try:
            async with asyncio.timeout(self.place.patience):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command(*args)
                return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_WATCH)
            for line in (*self._lines.values(), *self._arriving):
                # All are asked each time: what has crossed shows by asking.
                if line.silent(loop.time()) > _SILENCE and line.lost is None:
                    line.lose(f"silent for {_SILENCE:g} s")


def _ignore(future: asyncio.Future[Any]) -> None:
    # Whoever waits for it is told; there may be nobody left.
    if not future.cancelled():
        future.exception()


def _pairs(info: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
