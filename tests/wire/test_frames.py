"""Our frames against those of `websockets` and `wsproto` (aiohttp shows no codec of its own: its client talks to a real
socket in tests/gateway/test_sockets.py); over any split; and what is refused, with which code."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest
import websockets.frames
import wsproto.events
from hypothesis import given
from hypothesis import strategies as st
from websockets.protocol import Protocol, Side
from wsproto.connection import Connection, ConnectionType

from unjam.wire import frames
from unjam.wire.frames import Broken, Close, Event, FrameLimits, FrameReader, Ping, Pong

LIMITS = FrameLimits(message=200_000, fragments=16)
MASK = b"\x37\xfa\x21\x3d"


def read(*pieces: bytes, limits: FrameLimits = LIMITS) -> list[Event]:
    reader = FrameReader(limits)
    return [event for piece in pieces for event in reader.feed(piece)]


def masked(first: int, payload: bytes = b"", mask: bytes = MASK, length: bytes | None = None) -> bytes:
    """One frame of a client's, well formed but for what the arguments make of it."""
    if length is None:
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 65536:
            length = b"\xfe" + struct.pack("!H", size)
        else:
            length = b"\xff" + struct.pack("!Q", size)
    return bytes([first]) + length + mask + frames.unmask(mask, payload)


def closing(payload: bytes) -> bytes:
    return masked(0x88, payload)


# -- what other implementations write, and read --------------------------------------------------------------------

MESSAGES: list[str | bytes] = [
    "",
    "Hello",
    "κόσμε 🎉",
    "x" * 125,
    "x" * 126,
    "x" * 65535,
    "x" * 65536,
    b"",
    b"\x00\xff" * 99,
]


def by_websockets(message: str | bytes) -> bytes:
    client = Protocol(Side.CLIENT, max_size=None)
    client.send_text(message.encode()) if isinstance(message, str) else client.send_binary(message)
    client.send_ping(b"p")
    client.send_close(1001, "gone")
    return b"".join(client.data_to_send())


def by_wsproto(message: str | bytes) -> bytes:
    client = Connection(ConnectionType.CLIENT)
    event = wsproto.events.TextMessage if isinstance(message, str) else wsproto.events.BytesMessage
    return (
        client.send(event(data=message))  # type: ignore[arg-type]
        + client.send(wsproto.events.Ping(b"p"))
        + client.send(wsproto.events.CloseConnection(1001, "gone"))
    )


@pytest.mark.parametrize("write", [by_websockets, by_wsproto])
def test_what_other_clients_write_is_read(write: Callable[[str | bytes], bytes]) -> None:
    for message in MESSAGES:
        assert read(write(message)) == [message, Ping(b"p"), Close(1001, "gone")]


def ours(message: str | bytes) -> bytes:
    body = frames.text(message) if isinstance(message, str) else frames.binary(message)
    return body + frames.ping(b"p") + frames.close(1012, "restart")


LONG = "ä🎉" * 30_000


@pytest.mark.parametrize("message", [*MESSAGES, LONG, LONG.encode()])
def test_what_we_write_is_read_by_others(message: str | bytes) -> None:
    raw = ours(message)
    assert by_websockets_read(raw) == (message, b"p", 1012)
    assert by_wsproto_read(raw) == (message, b"p", 1012)


def by_websockets_read(raw: bytes) -> tuple[object, ...]:
    client = Protocol(Side.CLIENT, max_size=None)
    client.receive_data(raw)
    data, text = b"", False
    ping = None
    for event in client.events_received():
        assert isinstance(event, websockets.frames.Frame)
        if event.opcode is websockets.frames.Opcode.PING:
            ping = bytes(event.data)
        elif event.opcode is not websockets.frames.Opcode.CLOSE:
            text |= event.opcode is websockets.frames.Opcode.TEXT
            data += bytes(event.data)
    assert client.close_rcvd is not None
    return data.decode() if text else data, ping, client.close_rcvd.code


def by_wsproto_read(raw: bytes) -> tuple[object, ...]:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(raw)
    parts: list[str | bytes] = []
    ping = code = None
    for event in client.events():
        if isinstance(event, wsproto.events.Message):
            parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
        elif isinstance(event, wsproto.events.Ping):
            ping = bytes(event.payload)
        elif isinstance(event, wsproto.events.CloseConnection):
            code = event.code
    return "".join(parts) if isinstance(parts[0], str) else b"".join(parts), ping, code  # type: ignore[arg-type]


def test_the_examples_of_the_rfc() -> None:
    assert frames.text("Hello") == bytes.fromhex("810548656c6c6f")
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == ["Hello"]
    assert frames.ping(b"Hello") == bytes.fromhex("890548656c6c6f")
    assert read(bytes.fromhex("8a8537fa213d7f9f4d5158")) == [Pong(b"Hello")]
    assert frames.binary(bytes(256)) == bytes.fromhex("827e0100") + bytes(256)


def test_a_long_message_leaves_room_between_its_fragments() -> None:
    raw = frames.text(LONG)
    at, payload, first = 0, b"", 0x01
    while at < len(raw):
        assert at % frames.FRAGMENT == 0
        last = len(raw) - at <= frames.FRAGMENT
        assert raw[at] == first | (0x80 if last else 0)
        size, head = (raw[at + 1], 2) if raw[at + 1] < 126 else (int.from_bytes(raw[at + 2 : at + 4], "big"), 4)
        payload += raw[at + head : at + head + size]
        at, first = at + head + size, 0x00
    assert payload.decode() == LONG


# -- splits ------------------------------------------------------------------------------------------------------------

controls = st.one_of(
    st.binary(max_size=125).map(Ping),
    st.binary(max_size=125).map(Pong),
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """What a well-behaved client may send, and what it means."""
    raw, meant = b"", []
    for message in draw(st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300), controls), max_size=5)):
        mask = draw(st.binary(min_size=4, max_size=4))
        if isinstance(message, Ping | Pong):
            raw += masked(0x89 if isinstance(message, Ping) else 0x8A, message.payload, mask)
            meant.append(message)
            continue
        payload = message.encode() if isinstance(message, str) else message
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, piece in enumerate(pieces):
            opcode = 0 if number else 1 if isinstance(message, str) else 2
            raw += masked(opcode | (0x80 if number == len(pieces) - 1 else 0), piece, mask)
            if number < len(pieces) - 1 and draw(st.booleans()):
                between = draw(controls)
                raw += masked(0x89 if isinstance(between, Ping) else 0x8A, between.payload, mask)
                meant.append(between)
        meant.append(message)
    if draw(st.booleans()):
        raw += closing(b"\x03\xe9bye") + b"whatever comes behind"
        meant.append(Close(1001, "bye"))
    return raw, meant


@given(conversations(), st.data())
def test_any_split_means_the_same(conversation: tuple[bytes, list[Event]], data: st.DataObject) -> None:
    raw, meant = conversation
    assert read(raw) == meant
    assert read(*(raw[at : at + 1] for at in range(len(raw)))) == meant
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    assert read(*(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))) == meant


@given(st.binary(min_size=4, max_size=4), st.binary(max_size=64))
def test_masking_is_its_own_opposite_and_by_the_byte(mask: bytes, payload: bytes) -> None:
    for data in (payload, payload * 200):
        once = frames.unmask(mask, data)
        assert once == bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        assert frames.unmask(mask, once) == data


def test_between_messages_nothing_is_held() -> None:
    reader = FrameReader(LIMITS)
    reader.feed(masked(0x81, b"x" * 1000)[:-1])
    assert reader.partial
    reader.feed(masked(0x81, b"x" * 1000)[-1:])
    assert not reader.partial
    reader.feed(masked(0x01, b"part"))
    assert reader.partial
    assert [*reader.feed(masked(0x80))] == ["part"]
    assert not reader.partial
    assert reader._pending is None
    assert reader._message is None


# -- what is refused ---------------------------------------------------------------------------------------------------

HELLO = masked(0x81, b"hello")
REFUSED = {
    "unmasked": (b"\x81\x05hello", 1002),
    "unmasked, empty": (b"\x81\x00", 1002),
    "rsv1, deflate was not agreed on": (masked(0xC1, b"x"), 1002),
    "rsv2": (masked(0xA1, b"x"), 1002),
    "rsv3": (masked(0x91, b"x"), 1002),
    "rsv on a control frame": (masked(0xC9), 1002),
    **{f"opcode {code:x}": (masked(0x80 | code), 1002) for code in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)},
    "fragmented ping": (masked(0x09, b"x"), 1002),
    "fragmented close": (masked(0x08), 1002),
    "ping of 126 bytes": (masked(0x89, b"x" * 126), 1002),
    "close with a 64-bit length": (masked(0x88, b"x" * 65536), 1002),
    "continuation of nothing": (masked(0x80, b"x"), 1002),
    "text inside text": (masked(0x01, b"x") + masked(0x81, b"y"), 1002),
    "binary inside text": (masked(0x01, b"x") + masked(0x82, b"y"), 1002),
    "16-bit length for 125": (masked(0x81, b"x" * 125, length=b"\xfe\x00\x7d"), 1002),
    "64-bit length for 65535": (masked(0x82, b"", length=b"\xff" + struct.pack("!Q", 65535)), 1002),
    "length with its top bit": (masked(0x82, b"", length=b"\xff" + b"\xff" * 8), 1002),
    "close of one byte": (closing(b"\x03"), 1002),
    **{
        f"close code {code}": (closing(struct.pack("!H", code) + b"x"), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close reason not UTF-8": (closing(b"\x03\xe8\xff"), 1007),
    "text not UTF-8": (masked(0x81, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"), 1007),
    "overlong": (masked(0x81, b"\xc0\xaf"), 1007),
    "beyond Unicode": (masked(0x81, b"\xf4\x90\x80\x80"), 1007),
    "character cut at the end": (masked(0x81, b"\xe2\x82"), 1007),
    "character cut at the last fragment": (masked(0x01, b"\xe2") + masked(0x80, b"\x82"), 1007),
    "bad in the first fragment": (masked(0x01, b"\xff"), 1007),
    "frame too large": (masked(0x82, length=b"\xff" + struct.pack("!Q", 200_001)), 1009),
    "frame far too large": (masked(0x82, length=b"\xff" + struct.pack("!Q", (1 << 63) - 1)), 1009),
    "message too large over fragments": (masked(0x02, b"x" * 150_000) + masked(0x80, b"x" * 50_001), 1009),
    "too many fragments": (masked(0x01, b"x") + masked(0x00) * 16, 1009),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_code_that_says_why(name: str) -> None:
    bad, code = REFUSED[name]
    raw = HELLO + bad + HELLO
    events = read(raw)
    assert events[0] == "hello"
    last = events[-1]
    assert isinstance(last, Broken)
    assert last.code == code
    assert len(events) == 2, "nothing behind an offence is looked at"
    pieces = [raw[at : at + 1] for at in range(min(len(raw), 400))]
    assert read(*pieces, raw[400:]) == events
    # What can be closed with can be sent.
    assert frames.close(last.code, last.reason)


def test_refused_as_soon_as_it_shows() -> None:
    for raw in (b"\xc1", b"\x83", b"\x09", b"\x00", b"\x81\x05", b"\x89\xfe", b"\x82\xff" + b"\x80" + bytes(7)):
        reader = FrameReader(LIMITS)
        for at in range(len(raw) - 1):
            assert not reader.feed(raw[at : at + 1])
        assert isinstance(reader.feed(raw[-1:])[0], Broken), raw


def test_at_the_limit_is_not_over_it() -> None:
    assert read(masked(0x82, b"x" * 200_000)) == [b"x" * 200_000]
    assert read(masked(0x02, b"x" * 150_000) + masked(0x80, b"x" * 50_000)) == [b"x" * 200_000]
    assert read(masked(0x01, b"x") + masked(0x00) * 14 + masked(0x80)) == ["x"]
    assert read(closing(b"\x03\xe8" + b"x" * 123)) == [Close(1000, "x" * 123)]


def test_close_codes_that_are_good() -> None:
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4408, 4999):
        assert read(closing(struct.pack("!H", code))) == [Close(code, "")]
    assert read(closing(b"")) == [Close(frames.NO_CODE, "")]


def test_nothing_is_read_behind_a_close() -> None:
    assert read(closing(b"") + HELLO, HELLO) == [Close(frames.NO_CODE, "")]


def test_characters_may_be_cut_between_fragments() -> None:
    word = "κόσμε🎉".encode()
    for at in range(len(word) + 1):
        raw = masked(0x01, word[:at]) + masked(0x89, b"between") + masked(0x80, word[at:])
        assert read(raw) == [Ping(b"between"), "κόσμε🎉"]


def test_a_large_message_in_tiny_pieces_takes_time_in_proportion() -> None:
    """Bytes held are appended to, not copied for each piece: 200,000 pieces would take minutes."""
    raw = masked(0x82, os.urandom(200_000))
    reader = FrameReader(LIMITS)
    events = [event for at in range(len(raw)) for event in reader.feed(raw[at : at + 1])]
    assert len(events) == 1


def test_what_may_not_be_sent_is_not_built() -> None:
    for code in (0, 1004, 1006, 1015, 2000, 5000):
        with pytest.raises(ValueError, match="close code"):
            frames.close(code)
    with pytest.raises(ValueError, match="needs a code"):
        frames.close(reason="x")
    with pytest.raises(ValueError, match="125"):
        frames.ping(bytes(126))
    with pytest.raises(ValueError, match="125"):
        frames.pong(bytes(126))


def test_a_long_close_reason_is_cut_between_characters() -> None:
    raw = frames.close(1000, "x" + "ä" * 100)
    assert len(raw) <= 2 + 125
    assert raw[4:].decode() == "x" + "ä" * 61
