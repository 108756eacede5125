"""Hostile input 41, 42 and 44 to 46 from clients that the gateway itself holds: through real sockets, to a server made
of `ClientConnection` and `SocketConnection`. (43 is about tunnels: tests/hostile/test_gateway_websocket.py. What comes
before the 101 here is the first frame, and is read as one.)"""

from __future__ import annotations

import struct

import pytest

from ..gateway.harness import Wire, in_loop, until
from ..gateway.held import LIMITS, PONG, Client, Made, held, masked, text
from .test_gateway_websocket import handshake

HELLO = text("hello")


async def refused(made: Made, raw: bytes, code: int) -> None:
    """The client said `raw`: its connection ends with `code`, cleanly, after an answer to what came before; nothing
    behind it is looked at, and no other client is disturbed."""
    beside, _ = await made.connect()
    client, echo = await made.connect()
    await client.send(HELLO, raw, text("behind"))
    assert await client.message() == "hello"
    first, payload = await client.frame()
    while first == 0x8A:
        first, payload = await client.frame()
    assert (first, int.from_bytes(payload[:2], "big")) == (0x88, code)
    assert await client.ended()
    assert echo.heard == ["hello"]
    assert echo.closed == 1
    client.hang_up()
    await beside.send(HELLO)
    assert await beside.message() == "hello"
    beside.hang_up()
    await made.empty()


@in_loop
async def test_41_bad_handshakes_are_refused_before_anything_is_held() -> None:
    async with held() as made:
        for raw, status in [
            (handshake(Sec_WebSocket_Key="short"), 400),
            (handshake(Sec_WebSocket_Key=None), 400),
            (handshake(Upgrade="h2c, websocket"), 400),
            (handshake(Upgrade=None), 400),
            (handshake(Connection="keep-alive"), 400),
            (handshake("POST /ws HTTP/1.1"), 400),
            (handshake("GET /ws HTTP/1.0"), 400),
            (handshake(Content_Length="5") + b"hello", 400),
            (handshake(Sec_WebSocket_Version=None), 400),
            (handshake(Sec_WebSocket_Version="8"), 426),
        ]:
            wire = await Wire.connect(made.gateway.port)
            await wire.send(raw + HELLO)
            answer = await wire.answer()
            assert (answer.status, answer.header("connection")) == (status, "close"), raw
            if status == 426:
                assert answer.header("sec-websocket-version") == "13"
            wire.close()
        assert not made.gateway.handlers
        assert not made.gateway.sockets.held


@in_loop
async def test_42_origins_that_are_not_allowed_are_403() -> None:
    async with held(origins=("https://good.example",)) as made:
        wire = await Wire.connect(made.gateway.port)
        await wire.send(handshake(Origin="https://evil.example"))
        assert (await wire.answer()).status == 403
        wire.close()
        assert not made.gateway.handlers
        for headers in ("Origin: https://good.example\r\n", ""):
            client, _ = await made.connect(headers=headers)
            await client.send(HELLO)
            assert await client.message() == "hello"


@in_loop
async def test_43_early_bytes_are_frames_and_never_requests() -> None:
    async with held() as made:
        early = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        client = await Client.connect(made.gateway.port, early=early)
        made.clients.append(client)
        assert (await client.frame())[1][:2] == (1002).to_bytes(2, "big")
        assert await client.ended()
        assert made.gateway.stats.requests_total == 0, "nothing was routed but the handshake"


FRAMING = {
    "unmasked": b"\x81\x02hi",
    "unmasked ping": b"\x89\x00",
    "rsv1": masked(0xC1, b"x"),
    "rsv2": masked(0xA1, b"x"),
    "rsv3": masked(0x91, b"x"),
    **{f"opcode {code:x}": masked(0x80 | code) for code in (3, 7, 0xB, 0xF)},
    "fragmented ping": masked(0x09),
    "long ping": masked(0x89, b"x" * 126),
    "long close": masked(0x88, b"\x03\xe8" + b"x" * 124),
    "continuation of nothing": masked(0x80, b"x"),
    "text in text": masked(0x01, b"x") + masked(0x81, b"y"),
    "length not shortest": b"\x81\xfe\x00\x01maskx",
    "length over 63 bits": b"\x81\xff" + b"\xff" * 8,
}


@pytest.mark.parametrize("name", FRAMING)
@in_loop
async def test_44_framing_is_1002(name: str) -> None:
    async with held() as made:
        await refused(made, FRAMING[name], 1002)


@pytest.mark.parametrize(
    "raw",
    [
        masked(0x81, b"\xff"),
        masked(0x81, b"\xed\xa0\x80"),
        masked(0x01, b"\xe2\x82") + masked(0x80, b"x"),
        masked(0x01, b"x\xff") + masked(0x89),
        masked(0x88, b"\x03\xe8\xff"),
    ],
)
@in_loop
async def test_45_bad_utf_8_is_1007(raw: bytes) -> None:
    async with held() as made:
        await refused(made, raw, 1007)


@pytest.mark.parametrize(
    "raw",
    [
        masked(0x81, b"x" * (LIMITS.message + 1)),
        b"\x81\xff" + struct.pack("!Q", 1 << 40),
        masked(0x01, b"x" * 60_000) + masked(0x80, b"x" * 60_000),
        masked(0x01, b"x") + masked(0x00) * 20,
        masked(0x81, b"x" * 3_000_000),
    ],
)
@in_loop
async def test_45_too_large_is_1009_and_not_held(raw: bytes) -> None:
    async with held() as made:
        await refused(made, raw, 1009)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
@in_loop
async def test_45_a_bad_close_code_is_1002(code: int) -> None:
    async with held() as made:
        await refused(made, masked(0x88, struct.pack("!H", code)), 1002)
        await refused(made, masked(0x88, b"\x03"), 1002)


@in_loop
async def test_45_binary_is_1003_as_only_text_is_spoken() -> None:
    async with held() as made:
        await refused(made, masked(0x82, b"x"), 1003)


@in_loop
async def test_46_no_pong_is_an_abort() -> None:
    async with held() as made:
        gateway = made.gateway
        silent, silent_echo = await made.connect()
        talks, talks_echo = await made.connect()
        good, good_echo = await made.connect()
        for _ in range(16):
            await gateway.later(10.0)
            if not good_echo.closed:
                await good.send(PONG)
            if not talks_echo.closed:
                await talks.send(HELLO)
            heard = [echo for echo in (good_echo, talks_echo) if not echo.closed]
            await until(lambda heard=heard: all(echo.connection._heard for echo in heard))
        assert (silent_echo.closed, talks_echo.closed, good_echo.closed) == (1, 1, 0)
        assert gateway.sockets.closed_for == {0: 2}
        assert len(gateway.sockets.held) == 1
        assert await silent.frame() == (0x89, b"")
        await silent.ended()


@in_loop
async def test_46_silence_is_found_within_a_ping_and_its_time() -> None:
    async with held() as made:
        _, echo = await made.connect()
        await made.gateway.later(30.0)
        assert not echo.closed
        await made.gateway.later(20.2)
        assert echo.closed == 1


@in_loop
async def test_46_drain_is_1012() -> None:
    async with held() as made:
        client, echo = await made.connect()
        made.gateway.sockets.drain(0.0)
        await made.gateway.later(0.3)
        assert await client.frame() == (0x88, (1012).to_bytes(2, "big") + b"the gateway is stopping")
        await client.send(masked(0x88, (1012).to_bytes(2, "big")))
        assert await client.ended()
        assert echo.closed == 1


@in_loop
async def test_a_flood_of_pings_makes_no_flood_of_pongs() -> None:
    async with held() as made:
        client, echo = await made.connect(small=True)
        flood = b"".join(masked(0x89, b"%d" % number) for number in range(20_000))
        await client.send(flood, HELLO)
        pongs = 0
        waiting = {(0x81, b"hello"), (0x8A, b"19999")}
        while waiting:
            frame = await client.frame()
            pongs += frame[0] == 0x8A
            waiting.discard(frame)
        assert pongs < 1000
        assert not echo.closed


@in_loop
async def test_one_byte_at_a_time_is_the_same_client() -> None:
    async with held() as made:
        client, echo = await made.connect()
        for byte in HELLO + masked(0x01, b"in ") + masked(0x80, b"two") + masked(0x88, b"\x03\xe8"):
            await client.send(bytes([byte]))
        assert await client.message() == "hello"
        assert await client.message() == "in two"
        assert await client.frame() == (0x88, b"\x03\xe8")
        assert await client.ended()
        assert echo.heard == ["hello", "in two"]
