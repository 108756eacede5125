"""Hints from Redis: which logs have grown, and that runs wait. One subscription connection per server.

A hint may be lost whenever a connection is. So after every (re)connection all is subscribed again, and for each channel
that is confirmed `on_subscribed` is called: what happened before must be looked up, what comes after will be told.
A connection that says nothing is asked every 5 s and given up after 12. What isn't understood, and faults of those who
are told, are warned of; nothing ends the hearing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, Protocol, cast

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from unjam.runs.store.redis_url import Address, Place
from unjam.runs.store.redis_wire import Wire

Channels = list[str]

_PING, _SILENCE = 5.0, 12.0
#: Channels in one command.
_CHUNK: Final = 500


class Servers(Protocol):
    """Who has which partition, as `redis_link.Link` knows it."""

    place: Place
    clustered: bool

    def server(self, part: int) -> Address | None: ...

    def servers(self) -> set[Address]: ...

    def suspect(self, address: Address) -> None: ...

    def tell(self, warning: str, always: bool = False) -> None: ...


class Feed:
    """`on_message(channel, payload)`, `on_subscribed(channels)`: called on the loop. A channel is of its partition."""

    def __init__(
        self, link: Servers, on_message: Callable[[str, bytes], None], on_subscribed: Callable[[list[str]], None]
    ) -> None:
        self.on_message = on_message
        self.on_subscribed = on_subscribed
        self.link = link
        self._parts: dict[str, int] = {}
        self._ears: dict[Address, _Ear] = {}
        self._open = False
        self._first: set[str] = set()
        self._confirmed = asyncio.Event()

    async def open(self, patience: float) -> None:
        """Returns when the channels added so far are subscribed to, or after `patience` seconds."""
        self._open = True
        self._first = set(self._parts)
        self.replan()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._confirmed.wait(), patience)

    async def close(self) -> None:
        self._open = False
        ears, self._ears = list(self._ears.values()), {}
        for ear in ears:
            await ear.close()

    def add(self, channel: str, part: int) -> None:
        if channel not in self._parts:
            self._parts[channel] = part
            self._ear(part, channel)

    def remove(self, channel: str) -> None:
        part = self._parts.pop(channel, None)
        if part is not None:
            for ear in self._ears.values():
                ear.remove(channel)

    def confirm(self, channels: Channels) -> None:
        self._first.difference_update(channels)
        if not self._first:
            self._confirmed.set()
        self.on_subscribed(channels)

    def replan(self) -> None:
        """The servers changed: each channel goes to the one that has its partition now."""
        if not self._open:
            return
        servers = self.link.servers()
        for address in [address for address in self._ears if address not in servers]:
            self._ears.pop(address).stop()
        for channel, part in self._parts.items():
            self._ear(part, channel)

    def _ear(self, part: int, channel: str) -> None:
        address = self.link.server(part)
        if address is None or not self._open:
            return
        if address not in self._ears:
            self._ears[address] = _Ear(self, address)
        for other, ear in self._ears.items():
            if other != address:
                ear.remove(channel)
        self._ears[address].add(channel, part)


class _Ear:
    """The subscription connection to one server, kept up for as long as it is wanted."""

    def __init__(self, feed: Feed, address: Address) -> None:
        self._feed = feed
        self._address = address
        self._sharded = "S" if feed.link.clustered else ""
        self._channels: dict[str, int] = {}
        self._changes: dict[str, bool] = {}
        self._wake = asyncio.Event()
        self._heard = 0.0
        self._fresh: Channels = []
        self._error: RedisError | None = None
        self._task = asyncio.create_task(self._run())

    def add(self, channel: str, part: int) -> None:
        if channel not in self._channels:
            self._channels[channel] = part
            self._change(channel, True)

    def remove(self, channel: str) -> None:
        if self._channels.pop(channel, None) is not None:
            self._change(channel, False)

    def stop(self) -> None:
        self._task.cancel()

    async def close(self) -> None:
        self.stop()
        await asyncio.wait([self._task])

    def _change(self, channel: str, wanted: bool) -> None:
        if self._changes.pop(channel, wanted) == wanted:
            self._changes[channel] = wanted
        self._wake.set()

    async def _run(self) -> None:
        pause = 0.02
        while True:
            connection = self._feed.link.place.connection(self._address)
            try:
                # redis-py waits without limit for answers to what it begins with.
                async with asyncio.timeout(_SILENCE):
                    await connection.connect()  # type: ignore[no-untyped-call]
                pause = 0.02
                await self._listen(connection)
            except NoPermissionError as error:
                self._feed.link.tell(f"Redis does not allow us to subscribe, so hints come late: {error}")
            except (RedisError, OSError):
                pass
            except Exception as error:  # noqa: BLE001 - without hints all is late, for the life of the process
                self._feed.link.tell(f"hints from Redis were interrupted by a fault: {error!r}")
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
            self._feed.link.suspect(self._address)

    async def _listen(self, connection: AbstractConnection) -> None:
        """Returns or raises when the connection is no good any more."""
        self._heard = asyncio.get_running_loop().time()
        self._changes = dict.fromkeys(self._channels, True)
        self._wake.set()
        self._error, self._fresh = None, []
        wire = Wire(connection, self._take)
        tasks = [asyncio.create_task(work) for work in (self._write(wire), wire.gone(), self._ask(wire))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wire.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error
        for task in done:
            if (error := task.exception()) is not None:
                raise error

    async def _write(self, wire: Wire) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changes, self._changes = self._changes, {}
            for wanted, verb in ((True, "SUBSCRIBE"), (False, "UNSUBSCRIBE")):
                for channels in self._grouped(channel for channel, to in changes.items() if to is wanted):
                    wire.send(pack_command(cast("Any", (self._sharded + verb, *channels))))

    def _grouped(self, channels: Iterable[str]) -> Iterable[list[str]]:
        """As many as may be in one command: of one partition where they are sharded."""
        groups: dict[str, list[str]] = {}
        for channel in channels:
            groups.setdefault(channel[: channel.index("}")] if self._sharded else "", []).append(channel)
        for group in groups.values():
            rest = iter(group)
            while chunk := list(islice(rest, _CHUNK)):
                yield chunk

    async def _ask(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() - self._heard < _SILENCE:
            wire.send(pack_command(("PING",)))
            await asyncio.sleep(_PING)

    def _take(self, reply: Any) -> None:
        """What comes. Raises what ends the connection."""
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        if isinstance(reply, RedisError):
            self._error = reply
            raise reply
        if not isinstance(reply, list):
            return
        kind, channel = reply[0], reply[1].decode()
        if kind in (b"message", b"smessage"):
            if channel in self._channels:
                self._hear(channel, reply[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            if not self._fresh:
                loop.call_soon(self._confirm)
            self._fresh.append(channel)
        elif kind == b"sunsubscribe" and channel in self._channels and channel not in self._changes:
            raise RedisError("its partition has moved")

    def _hear(self, channel: str, payload: bytes) -> None:
        try:
            self._feed.on_message(channel, payload)
        except Exception as error:  # noqa: BLE001 - anybody may publish there, and one hint is no more than that
            self._feed.link.tell(f"a hint from Redis was dropped: {error!r}")

    def _confirm(self) -> None:
        fresh, self._fresh = self._fresh, []
        channels = [channel for channel in fresh if channel in self._channels]
        self._feed.confirm(channels)
