"""Decisions in Redis: one for all its gateways. Also behind sentinels, and in a cluster.

Three keys, with the prefix of the state's URL: `{kept}:n` counts, `{kept}:latest` is a hash of the last change of each
key, `{kept}:log` a stream of them all. A write is one script. One whose reply was lost is sent again, marked so: it is
not done twice. Channels by which gateways ask each other are `redis_others`'.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as TooLate

from unjam.kept.base import LOGGED, MOST, Change, KeptAway, KeptError, checked, decode, is_below
from unjam.kept.others import Others
from unjam.runs.store.redis_url import Address, Place, parse

#: The connection is of no more use, or the server has gone elsewhere; and what no other connection would change.
_LOST: Final = (Disconnected, TooLate, ReadOnlyError, BusyLoadingError, ClusterError, OSError)
_REFUSED: Final = (AuthenticationError, AuthorizationError, NoPermissionError)

T = TypeVar("T")
Client = Any  # redis-py's two clients have no common type

#: Seconds for which a write is known by its mark.
KNOWN: Final = 60
#: Changes that are looked through at a time for those of one key.
_PAGE: Final = 1000

# KEYS: n, latest, log, mark. ARGV: how many to log, seconds the mark is known; then of each change its key, what is
# before its number in its JSON, and what is after.
_PUT: Final = """
local done = redis.call('GET', KEYS[4])
if done then return tonumber(done) end
local n
for i = 3, #ARGV, 3 do
  n = redis.call('INCR', KEYS[1])
  local change = ARGV[i + 1] .. string.format('%d', n) .. ARGV[i + 2]
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[1], string.format('%d-1', n), 'change', change)
  redis.call('HSET', KEYS[2], ARGV[i], change)
end
redis.call('SET', KEYS[4], n, 'EX', ARGV[2])
return n
"""
#: What the number is cut out at.
_NUMBER: Final = b'"n":1}'


class RedisKept:
    """`url`: as of the runs' store. Raises ValueError for one that is none."""

    shared = True

    def __init__(self, url: str) -> None:
        self.place = parse(url)
        self._client: _Used | None = None
        self._open = False
        prefix = f"{self.place.prefix}{{kept}}"
        #: What the names of channels begin with; of one slot, as the keys are. All databases of a server share them.
        self.channels = f"{prefix}:{self.place.db}" if self.place.db else prefix
        self._n, self._latest, self._log = f"{prefix}:n", f"{prefix}:latest", f"{prefix}:log"
        self._mark = f"{prefix}:put:"

    async def open(self) -> None:
        self._open = True
        await self._do(lambda client: client.get(self._n))

    async def close(self) -> None:
        self._open = False
        used, self._client = self._client, None
        if used is not None:
            await used.drop()

    async def put(self, *changes: Change) -> int:
        given: list[Any] = [LOGGED, KNOWN]
        for change in changes:
            ((_, data),) = checked((change,), 1)
            assert data.endswith(_NUMBER)
            given += [change.key, data[: -len(_NUMBER)] + b'"n":', b"}"]
        checked(changes, 1)  # there is at least one
        keys = (self._n, self._latest, self._log, f"{self._mark}{secrets.token_hex(8)}")
        return int(await self._do(lambda client: client.eval(_PUT, len(keys), *keys, *given)))

    async def current(self) -> dict[str, Change]:
        found = [decode(data) for data in await self._do(lambda client: client.hvals(self._latest))]
        return {change.key: change for change in found}

    async def history(self, limit: int = 100, before: int | None = None, key: str | None = None) -> list[Change]:
        limit, page = min(limit, MOST), _PAGE if key is not None else min(limit, MOST)
        found: list[Change] = []
        if before is not None and before <= 1:
            return []
        end = "+" if before is None else f"({before}-0"
        while len(found) < limit:
            rows = await self._range(end, "-", page, newest=True)
            found += [change for change in rows if is_below(change.key, key)]
            if len(rows) < page:
                break
            end = f"({rows[-1].n}-0"
        return found[:limit]

    async def since(self, n: int) -> list[Change]:
        rows = await self._range(f"({n}-1", "+", MOST)
        if not rows and n and int(await self._do(lambda client: client.get(self._n)) or 0) < n:
            return await self._range("-", "+", MOST)
        return rows

    def others(self) -> Others:
        from unjam.kept.redis_others import RedisOthers

        return RedisOthers(self)

    async def publish(self, channel: str, data: bytes) -> int:
        """Returns how many have been told."""
        verb = "SPUBLISH" if self.place.kind == "cluster" else "PUBLISH"
        return int(await self._do(lambda client: client.execute_command(verb, channel, data)))

    async def server(self, key: str) -> Address:
        """Which one has the key, or the channel."""
        host, port = await self._do(lambda client: _server(self.place, client, key))
        return str(host), int(port)

    async def _range(self, start: str, end: str, count: int, newest: bool = False) -> list[Change]:
        call: Callable[[Client], Awaitable[Sequence[Any]]] = (
            (lambda client: client.xrevrange(self._log, start, end, count))
            if newest
            else (lambda client: client.xrange(self._log, start, end, count))
        )
        return [decode(fields[b"change"]) for _, fields in await self._do(call)]

    async def _do(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """Once more when the connection was lost, on another one: also after a failover, within the URL's patience."""
        place, loop = self.place, asyncio.get_running_loop()
        until = loop.time() + place.patience
        while True:
            used = None
            try:
                async with asyncio.timeout_at(until):
                    if not self._open:
                        raise KeptAway(f"Redis at {place.shown()}: closed")
                    if self._client is None:
                        self._client = _Used(_client(place))
                    used = self._client
                    return await used.do(call)
            except (RedisError, OSError, TimeoutError) as error:
                lost = isinstance(
                    error, Disconnected | TooLate | ReadOnlyError | BusyLoadingError | ClusterError | OSError
                )
                refused = isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError)
                if lost and not refused:
                    if used is not None:
                        if self._client is used:
                            self._client = None
                        await used.drop()
                    if loop.time() + 0.1 < until:
                        await asyncio.sleep(0.1)
                        continue
                raise _in_words(error, place) from error


class _Used:
    """A client, which calls may share: one that is dropped is closed after the last of them, which may open a
    connection until then."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._dropped = False
        self._calls = 0

    async def do(self, call: Callable[[Client], Awaitable[T]]) -> T:
        self._calls += 1
        try:
            return await call(self.client)
        finally:
            self._calls -= 1
            if self._dropped:
                await self.drop()

    async def drop(self) -> None:
        self._dropped = True
        if not self._calls:
            try:
                await self.client.aclose()
            except (RedisError, OSError):
                pass  # it is gone anyway


def _client(place: Place) -> Client:
    """Not connected yet."""
    common: dict[str, Any] = {
        "username": place.username,
        "password": place.password,
        "socket_timeout": place.patience,
        "socket_connect_timeout": place.patience,
        "client_name": "unjam",
        "health_check_interval": 0,
        "protocol": 2,
    }
    if place.tls is not None:
        common.update(ssl=True, **place.tls)
    if place.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in place.addresses]
        return RedisCluster(startup_nodes=nodes, **common)
    common.update(db=place.db, retry=Retry(NoBackoff(), 0), driver_info=None)
    if place.kind == "sentinel":
        own: dict[str, Any] = {
            "username": place.sentinel_username,
            "password": place.sentinel_password,
            "socket_timeout": place.patience,
            "socket_connect_timeout": place.patience,
        }
        if place.tls is not None:
            own.update(ssl=True, **place.tls)
        sentinel = Sentinel(list(place.addresses), sentinel_kwargs=own, **common)  # type: ignore[no-untyped-call]
        return _OfSentinels(sentinel, place.service)
    host, port = place.addresses[0]
    if not port:
        return Redis(unix_socket_path=host, **common)
    return Redis(host=host, port=port, **common)


async def _server(place: Place, client: Client, key: str) -> tuple[Any, Any]:
    if place.kind == "cluster":
        node = (await client.initialize()).get_node_from_key(key)
        return node.host, node.port
    if place.kind == "sentinel":
        return await client.connection_pool.get_master_address()  # type: ignore[no-any-return]
    return place.addresses[0]


class _OfSentinels:
    """The master's client; closes the sentinels' as well."""

    def __init__(self, sentinel: Sentinel, service: str) -> None:
        self._sentinel = sentinel
        self._master: Client = sentinel.master_for(service)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._master, name)

    async def aclose(self) -> None:
        for client in (self._master, *self._sentinel.sentinels):
            await client.aclose()


def _in_words(error: BaseException, place: Place) -> KeptError:
    at = place.shown()
    if isinstance(error, TimeoutError | TooLate):
        return KeptAway(f"Redis at {at} doesn't answer")
    if isinstance(error, _REFUSED):
        return KeptAway(f"Redis at {at} doesn't let us: {error}")
    if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
        return KeptError(f"Redis at {at} has something else under our keys")
    return KeptAway(f"Redis at {at}: {error or type(error).__name__}")
