"""Held WebSocket clients: the take-over, pings, slow readers, drain, and what an idle one costs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from unjam.gateway.socket_connection import HIGH, Handler, SocketConnection
from unjam.gateway.sockets import Sockets
from unjam.gateway.timers import TICK, Wheel
from unjam.wire import frames
from unjam.wire.websocket import accept_for

from .harness import PATIENCE, Wire, in_loop, until
from .held import KEY, PONG, Held, held, masked, text

ROOT = Path(__file__).parents[2]

# -- taken over --------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_connection_is_taken_over_with_what_came_early() -> None:
    async with held() as made:
        gateway = made.gateway
        client, echo = await made.connect(
            headers="Sec-WebSocket-Extensions: permessage-deflate\r\n", early=text("early")
        )
        assert client.head.startswith(b"HTTP/1.1 101 ")
        assert accept_for(KEY.encode()) in client.head
        assert b"extensions" not in client.head.lower()
        assert await client.message() == "early"
        await client.send(text("κόσμε"), masked(0x01, b"in "), masked(0x89, b"p"), masked(0x80, b"two"))
        assert await client.message() == "κόσμε"
        first, second = await client.frame(), await client.frame()
        assert sorted([first, second]) == [(0x81, b"in two"), (0x8A, b"p")]
        assert not gateway.clients
        assert len(gateway.sockets.held) == gateway.descriptors == gateway.stats.connections_open == 1
        await client.send(masked(0x88, b"\x0f\xa1bye"))
        assert await client.closed() == (4001, True)
        await made.empty()
        assert gateway.descriptors == gateway.stats.connections_open == 0
        assert echo.closed == 1


@in_loop
async def test_requests_before_it_are_answered_and_others_go_on_beside_it() -> None:
    async with held() as made:
        wire = await Wire.connect(made.gateway.port)
        assert (await wire.get("/healthz")).status == 200
        client, _ = await made.connect()
        assert (await wire.get("/healthz")).status == 200
        await client.send(text("x"))
        assert await client.message() == "x"
        wire.reset()


@in_loop
async def test_websockets_talks_to_it() -> None:
    async with held() as made, connect(f"ws://127.0.0.1:{made.gateway.port}/ws", proxy=None) as client:
        assert not client.protocol.extensions
        for message in ("", "hello", "κόσμε🎉" * 5000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["in ", "many ", "pieces"])
        assert await client.recv() == "in many pieces"
        assert await asyncio.wait_for(await client.ping(b"there?"), PATIENCE) >= 0
        await client.send("close 4000")
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert (client.close_code, client.close_reason) == (4000, "as you wish")
        await made.empty()


@in_loop
async def test_aiohttp_talks_to_it() -> None:
    async with held() as made, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{made.gateway.port}/ws"
        async with session.ws_connect(url, compress=15, autoping=False) as client:
            assert not client.compress
            for message in ("", "hello", "κόσμε🎉" * 5000):
                await client.send_str(message)
                assert await client.receive_str() == message
            await client.ping(b"there?")
            answer = await client.receive()
            assert (answer.type, bytes(answer.data)) == (aiohttp.WSMsgType.PONG, b"there?")
            await client.close(code=4002, message=b"bye")
            assert client.close_code == 4002
        await made.empty()
        async with session.ws_connect(url) as client:
            await client.send_bytes(b"binary")
            assert (await client.receive()).type is aiohttp.WSMsgType.CLOSE
            assert client.close_code == 1003


@in_loop
async def test_one_handler_that_fails_is_one_client_closed() -> None:
    async with held() as made:
        client, echo = await made.connect()
        other, _ = await made.connect()
        await client.send(text("fail"), text("not looked at"))
        assert (await client.frame())[1][:2] == (1011).to_bytes(2, "big")
        assert echo.heard == ["fail"]
        assert [connection.peer for connection in made.gateway.faults] == ["127.0.0.1"]
        await other.send(text("x"))
        assert await other.message() == "x"


@in_loop
async def test_a_goodbye_of_ours_waits_for_the_clients() -> None:
    async with held() as made:
        client, echo = await made.connect()
        await client.send(text("close 4000"))
        assert await client.frame() == (0x88, (4000).to_bytes(2, "big") + b"as you wish")
        assert echo.closed == 1
        assert made.gateway.sockets.held
        await client.send(text("too late"), masked(0x88, b"\x0f\xa0"))
        assert await client.ended()
        assert echo.heard == ["close 4000"]
        # And not for ever.
        client, _ = await made.connect()
        await client.send(text("close 4000"))
        await client.frame()
        await made.gateway.later(4.0)
        assert made.gateway.sockets.held
        await made.gateway.later(1.5)
        await made.empty()


@in_loop
async def test_a_client_that_hangs_up_is_told_of_once() -> None:
    async with held() as made:
        client, echo = await made.connect()
        client.writer.write_eof()
        await made.empty()
        assert echo.closed == 1
        client, echo = await made.connect()
        client.hang_up()
        await made.empty()
        assert echo.closed == 1
        assert made.gateway.descriptors == 0


# -- pings -------------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_client_that_answers_is_pinged_twice_a_minute_and_kept() -> None:
    async with held() as made:
        gateway = made.gateway
        client, _ = await made.connect()
        pings = 0
        for _ in range(60):
            await gateway.later(10.0)
            while client.reader._buffer:  # type: ignore[attr-defined]
                assert await client.frame() == (0x89, b"")
                pings += 1
                await client.send(PONG)
                await until(lambda: not next(iter(gateway.sockets.held))._asked)
        assert 19 <= pings <= 21
        assert gateway.sockets.held


@in_loop
async def test_many_that_come_at_once_are_not_pinged_at_once() -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(0.0)
    shared = Sockets(loop, wheel, clock=lambda: 0.0)
    made = [shared.adopt(cast(Any, Deaf()), "", lambda connection: Handler()) for _ in range(1000)]
    due = sorted(connection.due for connection in made)
    assert due[0] >= 15.0
    assert due[-1] <= 30.0
    assert max(later - earlier for earlier, later in pairwise(due)) < 0.1


class Deaf:
    """A transport of nothing: what is written is counted. `waits`: bytes not sent yet; None: it sends at once."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.waits: int | None = None
        self.reading = True
        self.aborted = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if self.waits is not None:
            self.waits += len(data)

    def get_write_buffer_size(self) -> int:
        return self.waits or 0

    def is_closing(self) -> bool:
        return False

    def set_protocol(self, protocol: object) -> None: ...
    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted += 1


class Watched(SocketConnection):
    __slots__ = ()
    looks = 0

    def on_timer(self, now: float) -> float:
        Watched.looks += 1
        return super().on_timer(now)


@in_loop
async def test_ten_thousand_idle_ones_cost_nothing_in_a_tick_where_none_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.gateway.sockets.SocketConnection", Watched)
    Watched.looks = 0
    clock = [0.0]
    wheel = Wheel(0.0)
    shared = Sockets(asyncio.get_running_loop(), wheel, clock=lambda: clock[0])
    transports = [Deaf() for _ in range(10_000)]
    made = [shared.adopt(cast(Any, transport), "", lambda connection: Handler()) for transport in transports]

    def turn(seconds: float) -> None:
        end = clock[0] + seconds
        while clock[0] < end:
            clock[0] += TICK
            wheel.turn(clock[0], lambda timed: pytest.fail("a look failed"))

    turn(14.0)
    assert Watched.looks == 0
    # A whole minute: each is looked at when it is pinged and when its pong is due, and at no other time.
    for _ in range(6):
        turn(10.0)
        for connection in made:
            if connection._awaiting:
                connection.data_received(PONG)
    sent = sum(len(transport.written) for transport in transports)
    assert 20_000 <= sent <= 30_000
    assert Watched.looks <= 2 * sent
    assert not any(transport.aborted for transport in transports)
    assert len(wheel) == 10_000


@in_loop
async def test_a_message_that_takes_too_long_is_ended_though_the_client_lives() -> None:
    async with held() as made:
        client, echo = await made.connect()
        await client.send(masked(0x01, b"begun and"))
        await until(lambda: next(iter(made.gateway.sockets.held))._reader.partial)  # type: ignore[union-attr]
        for _ in range(5):
            await made.gateway.later(11.0)
            await client.send(PONG)
            await until(lambda: next(iter(made.gateway.sockets.held))._heard)
        assert not echo.closed
        await made.gateway.later(6.0)
        first, payload = await client.frame()
        while first == 0x89:
            first, payload = await client.frame()
        assert payload[:2] == (1008).to_bytes(2, "big")
        # One that was ended in time is forgotten.
        client, echo = await made.connect()
        raw = text("x" * 50)
        await client.send(raw[:20])
        await until(lambda: echo.connection._begun)
        await client.send(raw[20:])
        for _ in range(8):
            await client.send(PONG)
            await until(lambda: echo.connection._heard and not echo.connection._asked)
            await made.gateway.later(10.0)
        assert not echo.closed
        # One message after the other may go on for ever, wherever the bytes happen to be cut.
        client, echo = await made.connect()
        for step in range(30):
            await client.send(raw[20:] + PONG + raw[:20] if step else raw[:20])
            await until(lambda step=step: len(echo.heard) == step)
            await made.gateway.later(10.0)
        assert not echo.closed


# -- slow readers ------------------------------------------------------------------------------------------------------


async def fill(gateway: Held, echo: Any, message: str) -> int:
    """Talk to a client that does not read until there is no more room. How many messages were taken."""
    frame = frames.text(message)
    taken = 0
    while echo.connection.send(frame):
        taken += 1
        assert echo.connection.transport.get_write_buffer_size() <= HIGH
        if taken % 64 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return taken


async def stuffed(gateway: Held, echo: Any, message: str) -> int:
    """As `fill`, until the kernel takes no more either."""
    taken = 0
    while True:
        more = await fill(gateway, echo, message)
        taken += more
        for _ in range(5):
            await asyncio.sleep(0.002)
        if not echo.connection.writable:
            return taken


@in_loop
async def test_a_slow_reader_is_closed_after_its_time_and_costs_no_other() -> None:
    async with held() as made:
        gateway = made.gateway
        client, echo = await made.connect(small=True)
        other, _ = await made.connect()
        taken = await stuffed(gateway, echo, "x" * 1000)
        assert echo.connection.transport.get_write_buffer_size() <= HIGH
        assert not echo.connection.send(frames.text("more"))
        await gateway.later(29.0)
        assert not echo.closed
        await other.send(text("beside"))
        seen = await other.frame()
        assert seen in [(0x89, b""), (0x81, b"beside")]
        await gateway.later(1.5)
        assert echo.closed == 1
        assert gateway.sockets.closed_for == {4408: 1}
        # What was taken arrives, and then why it ended.
        for _ in range(taken):
            assert await client.message() == "x" * 1000
        assert (await client.frame())[1][:2] == (4408).to_bytes(2, "big")
        await client.send(masked(0x88, b"\x11\x38"))
        assert await client.ended()


@in_loop
async def test_a_slow_reader_that_never_reads_again_is_aborted() -> None:
    async with held() as made:
        _, echo = await made.connect(small=True)
        await stuffed(made.gateway, echo, "x" * 1000)
        await made.gateway.later(30.2)
        assert echo.closed == 1
        await made.gateway.later(5.2)
        await made.empty()


@in_loop
async def test_a_reader_that_catches_up_misses_nothing() -> None:
    async with held() as made:
        gateway = made.gateway
        client, echo = await made.connect(small=True)
        expected = [f"{number} " + "x" * 2000 for number in range(3000)]
        for message in expected:
            echo.say(message)
        await asyncio.sleep(0.01)
        assert echo.owed
        await gateway.later(20.0)  # a ping is due meanwhile: it is not put behind what waits
        for message in expected:
            assert await client.message() == message
        assert not echo.closed
        await until(lambda: echo.connection.writable)
        await gateway.later(30.0)
        assert await client.frame() == (0x89, b"")


@in_loop
async def test_a_message_beyond_the_bound_goes_out_as_room_comes() -> None:
    async with held() as made:
        client, echo = await made.connect(small=True)
        large = "0123456789abcdef" * 500_000
        assert echo.connection.send(frames.text(large))
        assert not echo.connection.send(frames.text("behind"))
        sizes = []
        parts = []
        while len(parts) == 0 or not parts[-1][0] & 0x80:
            parts.append(await client.frame())
            sizes.append(echo.connection.transport.get_write_buffer_size())
        assert max(sizes) <= HIGH
        assert b"".join(payload for _, payload in parts).decode() == large
        await until(lambda: echo.connection.writable)


@in_loop
async def test_a_close_comes_between_the_fragments_of_a_message() -> None:
    async with held() as made:
        client, echo = await made.connect(small=True)
        assert echo.connection.send(frames.text("y" * 8_000_000))
        await asyncio.sleep(0.01)
        echo.connection.close(1012, "restart")
        first, payload = await client.frame()
        while first != 0x88:
            assert first & 0x7F in (0x00, 0x01)
            first, payload = await client.frame()
        assert payload == (1012).to_bytes(2, "big") + b"restart"


@in_loop
async def test_a_client_that_talks_and_does_not_listen_is_not_listened_to() -> None:
    async with held() as made:
        client, echo = await made.connect(small=True)
        sent = 0
        flood = b"".join([text("z" * 1000)] * 50)
        while True:
            client.writer.write(flood)
            sent += 50
            try:
                await asyncio.wait_for(client.writer.drain(), 0.1)
            except TimeoutError:
                break
        assert len(echo.owed) <= 1
        assert echo.connection.transport.get_write_buffer_size() <= HIGH
        assert len(echo.heard) < sent
        for _ in range(sent):
            assert await client.message() == "z" * 1000
        assert len(echo.heard) == sent


class Alone:
    """One connection on a transport of nothing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wheel = Wheel(0.0)
        self.shared = Sockets(asyncio.get_running_loop(), self.wheel, clock=lambda: self.now)
        self.transport = Deaf()
        self.heard: list[str] = []
        outer = self

        class Listener(Handler):
            def on_message(self, text: str) -> None:
                outer.heard.append(text)

        self.connection = self.shared.adopt(cast(Any, self.transport), "", lambda connection: Listener())

    def until(self, when: float) -> None:
        while self.now < when:
            self.now += TICK
            self.wheel.turn(self.now, lambda timed: pytest.fail("a look failed"))


@in_loop
async def test_who_was_slow_is_given_time_for_the_pong_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.gateway.sockets.SocketConnection", Watched)
    Watched.looks = 0
    alone = Alone()
    alone.until(30.2)
    asked = alone.transport.written
    assert asked == [frames.ping()]
    alone.connection.pause_writing()
    alone.until(44.0)
    alone.connection.resume_writing()
    alone.until(52.0)
    assert not alone.transport.aborted
    # And while it has no room it is neither pinged nor looked at in vain, whenever its ping was due.
    alone.connection.pause_writing()
    Watched.looks = 0
    alone.until(80.0)
    assert asked == [frames.ping()]
    assert Watched.looks <= 3
    alone.connection.resume_writing()
    alone.until(89.0)
    assert not alone.transport.aborted
    alone.until(150.0)
    assert alone.transport.aborted == 1


@in_loop
async def test_a_transport_that_is_full_and_has_not_said_so_is_asked_again() -> None:
    alone = Alone()
    alone.transport.waits = HIGH - 100
    message = frames.text("x" * 40_000)
    assert alone.connection.send(message)
    assert not alone.connection.send(frames.text("behind"))
    await asyncio.sleep(0)
    assert alone.transport.written == []
    alone.transport.waits = HIGH - 20_000
    await asyncio.sleep(0)
    assert alone.transport.written == [message[: frames.FRAGMENT]]
    alone.transport.waits = 0
    await asyncio.sleep(0)
    assert b"".join(alone.transport.written) == message
    assert alone.connection.writable


@in_loop
async def test_what_comes_though_reading_is_paused_keeps_its_order() -> None:
    alone = Alone()
    alone.connection.pause_writing()
    alone.connection.data_received(text("one") + text("two"))
    assert not alone.transport.reading
    alone.connection.data_received(text("three"))
    assert alone.heard == []
    alone.connection.resume_writing()
    assert alone.heard == ["one", "two", "three"]
    assert alone.transport.reading


# -- the end of the gateway, and too many ------------------------------------------------------------------------------


@in_loop
async def test_a_drain_closes_with_1012_spread_over_time() -> None:
    async with held() as made:
        gateway = made.gateway
        clients = [await made.connect() for _ in range(10)]
        gateway.sockets.drain(20.0)
        told = sorted(seconds for _, echo in clients for seconds in echo.drained)
        assert told == pytest.approx([2.0 * number for number in range(10)])
        left = []
        for _ in range(11):
            await gateway.later(2.0)
            left.append(sum(not echo.closed for _, echo in clients))
        assert left[-2:] == [0, 0]
        assert left == sorted(left, reverse=True)
        assert max(a - b for a, b in zip([10, *left], left, strict=False)) <= 2
        for client, _ in clients:
            first, payload = await client.frame()
            while first == 0x89:
                first, payload = await client.frame()
            assert (first, payload[:2]) == (0x88, (1012).to_bytes(2, "big"))
        # Who comes now is sent on at once.
        late = await made.open()
        assert (await late.frame())[1][:2] == (1012).to_bytes(2, "big")


@in_loop
async def test_one_too_many_is_told_to_try_again_later() -> None:
    async with held(most=2) as made:
        await made.connect()
        await made.connect()
        late = await made.open()
        assert (await late.frame())[1][:2] == (1013).to_bytes(2, "big")
        assert made.gateway.sockets.closed_for == {1013: 1}
        assert len(made.gateway.handlers) == 2


# -- many --------------------------------------------------------------------------------------------------------------


@in_loop
async def test_what_is_told_to_many_is_built_once() -> None:
    shared = Sockets(asyncio.get_running_loop(), Wheel(0.0), clock=lambda: 0.0)
    transports = [Deaf() for _ in range(500)]
    made = [shared.adopt(cast(Any, transport), "", lambda connection: Handler()) for transport in transports]
    made[7].pause_writing()
    frame = frames.text("news " * 100)
    assert [connection for connection in made if not connection.send(frame)] == [made[7]]
    assert all(t.written == [frame] and t.written[0] is frame for n, t in enumerate(transports) if n != 7)


MEASURE = """
import asyncio, gc, json, resource, socket, sys
import uvloop
from tests.gateway.held import HANDSHAKE, held

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

async def main(many):
    async with held(most=10**6) as made:
        loop = asyncio.get_running_loop()
        async def add(count):
            for _ in range(count):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", made.gateway.port))
                await loop.sock_sendall(sock, (HANDSHAKE + "\\r\\n").encode())
                while not (await loop.sock_recv(sock, 4096)).endswith(b"\\r\\n\\r\\n"):
                    pass
                socks.append(sock)
        socks = []
        await add(200)
        gc.collect()
        before = resident()
        await add(many)
        # What the gateway's own wheel holds of spent connections goes within seconds.
        made.gateway.wheel.turn(made.gateway.now + 3600, print)
        gc.collect()
        after = resident()
        assert len(made.gateway.sockets.held) == many + 200
        print(json.dumps((after - before) / many))
        for sock in socks:
            sock.close()

uvloop.run(main(int(sys.argv[1])))
"""


def test_an_idle_client_costs_less_than_four_kib() -> None:
    """All of it: transport, connection, reader, the timer wheel's entry, and the test's own handler and socket."""
    argv = [sys.executable, "-c", MEASURE, "1000"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 4096
