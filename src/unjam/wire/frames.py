"""WebSocket frames, the server's side (RFC 6455 sections 5 to 8); the handshake is `wire.websocket`'s.

`FrameReader` turns bytes of a client into messages and control frames, in order. What it finds depends on the bytes
alone, not on how they were split. The first offence comes out as `Broken` behind everything that was sent before it,
with the code to close with: 1002 for framing, 1007 for text that isn't UTF-8, 1009 for what is too large. Nothing
behind an offence or a close is looked at. No extension is spoken, so all reserved bits must be zero.

Between messages a reader holds no buffer. What is written to many is built once: `text` and its sisters return bytes
that can be sent to any number of clients, as a server masks nothing.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

# Close codes (section 7.4.1 and the IANA registry). 4000 to 4999 are the application's own.
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED: Final = 1003
#: Never on the wire: what a close frame without a code stands for.
NO_CODE: Final = 1005
BAD_TEXT: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012
TRY_LATER: Final = 1013

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

#: The longest payload of a control frame, bytes; of a close reason (section 5.5).
CONTROL: Final = 125
REASON: Final = CONTROL - 2

#: A longer message of ours goes out in fragments of exactly this many bytes, headers included, and a shorter last one:
#: other frames may come between them.
FRAGMENT: Final = 16384

_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015)})
_FIN: Final = 0x80
_decoder = getincrementaldecoder("utf-8")


class FrameLimits(NamedTuple):
    """Shared by all connections. `message`: bytes of one message, over all its frames; `fragments`: its frames."""

    message: int = 1 << 20
    fragments: int = 256


@dataclass(frozen=True, slots=True)
class Ping:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The client's close frame. `code`: `NO_CODE` when it gave none."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The client broke the protocol. `code`: what to close with; `reason`: why, in words free of its bytes."""

    code: int
    reason: str


#: A text message is a `str`, a binary one `bytes`.
Event: TypeAlias = str | bytes | Ping | Pong | Close | Broken


def unmask(mask: bytes, payload: bytes) -> bytes:
    """`payload` with each byte XORed with the byte of the four-byte `mask` at its place modulo four (section 5.3).
    Masking is the same. Long integers are the fastest way in Python up to some 8 KiB, tables beyond."""
    length = len(payload)
    if length <= 8192:
        key = mask * (length >> 2) + mask[: length & 3]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(length, "little")
    out = bytearray(length)
    for place in range(4):
        out[place::4] = payload[place::4].translate(_table(mask[place]))
    return bytes(out)


_tables: dict[int, bytes] = {}


def _table(key: int) -> bytes:
    table = _tables.get(key)
    if table is None:
        table = _tables[key] = bytes(key ^ byte for byte in range(256))
    return table


class _Message:
    """A message of which some frames have arrived. Text is decoded frame by frame, so that bad UTF-8 is found early."""

    __slots__ = ("count", "decoder", "parts", "size")

    def __init__(self, is_text: bool) -> None:
        self.decoder = _decoder() if is_text else None
        self.parts: list[str | bytes] = []
        self.count = 0
        self.size = 0

    def add(self, payload: bytes, last: bool) -> None:
        """Raises UnicodeDecodeError."""
        self.count += 1
        self.size += len(payload)
        if self.decoder is None:
            self.parts.append(payload)
        else:
            self.parts.append(self.decoder.decode(payload, last))

    def whole(self) -> str | bytes:
        return b"".join(self.parts) if self.decoder is None else "".join(self.parts)  # type: ignore[arg-type]


class _Offence(Exception):
    def __init__(self, code: int, reason: str) -> None:
        self.event = Broken(code, reason)


class FrameReader:
    """Reads the frames of one client. `feed` never raises for anything a client can send."""

    __slots__ = ("_message", "_need", "_pending", "ended", "limits")

    def __init__(self, limits: FrameLimits) -> None:
        #: May be replaced; counts for what comes from then on.
        self.limits = limits
        #: The start of a frame, and how long it must get before it is worth another look.
        self._pending: bytearray | None = None
        self._need = 0
        self._message: _Message | None = None
        #: A `Close` or `Broken` came out: nothing more will.
        self.ended = False

    @property
    def partial(self) -> bool:
        """Whether part of a frame or of a message is held."""
        return self._pending is not None or self._message is not None

    @property
    def held(self) -> int:
        """Bytes of it."""
        pending, message = self._pending, self._message
        return (0 if pending is None else len(pending)) + (0 if message is None else message.size)

    def feed(self, data: bytes) -> Sequence[Event]:
        """What `data` completes: messages and control frames, in order."""
        pending = self._pending
        if pending is not None:
            pending += data
            if len(pending) < self._need:
                return ()
            data = bytes(pending)
            self._pending = None
        if self.ended:
            return ()
        events: list[Event] = []
        try:
            self._read(data, events)
        except _Offence as offence:
            events.append(offence.event)
            self._end()
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        """All whole frames in `data`; the rest is kept."""
        at, end = 0, len(data)
        while at < end:
            first = data[at]
            opcode = first & 0x0F
            # Checked as soon as they are there, so that nobody waits for the rest of what is refused anyway.
            if first & 0x70:
                raise _Offence(PROTOCOL_ERROR, "a reserved bit is set")
            if opcode > BINARY:
                if opcode not in (CLOSE, PING, PONG):
                    raise _Offence(PROTOCOL_ERROR, "the opcode is reserved")
                if not first & _FIN:
                    raise _Offence(PROTOCOL_ERROR, "a control frame is fragmented")
            elif (opcode == CONTINUATION) is (self._message is None):
                if opcode:
                    raise _Offence(PROTOCOL_ERROR, "a message begins inside another")
                raise _Offence(PROTOCOL_ERROR, "a continuation of nothing")
            have = end - at
            if have < 2:
                return self._keep(data, at, 6)
            second = data[at + 1]
            length = second & 0x7F
            if second < 0x80:
                raise _Offence(PROTOCOL_ERROR, "the frame is not masked")
            start = at + 2
            if length > CONTROL:
                if opcode > BINARY:
                    raise _Offence(PROTOCOL_ERROR, "a control frame is too long")
                start = at + (4 if length == 126 else 10)
                if start > end:
                    return self._keep(data, at, start - at)
                least = 126 if length == 126 else 1 << 16
                length = int.from_bytes(data[at + 2 : start], "big")
                if length < least or length >> 63:
                    raise _Offence(PROTOCOL_ERROR, "the length is not in its shortest form")
            if opcode <= BINARY:
                self._check_size(length)
            body = start + 4
            following = body + length
            if following > end:
                return self._keep(data, at, following - at)
            payload = unmask(data[start:body], data[body:following]) if length else b""
            at = following
            if opcode > BINARY:
                events.append(self._control(opcode, payload))
                if self.ended:
                    return None
            else:
                try:
                    self._data(opcode, payload, first >= _FIN, events)
                except UnicodeDecodeError:
                    raise _Offence(BAD_TEXT, "the text is not UTF-8") from None
        return None

    def _keep(self, data: bytes, at: int, need: int) -> None:
        self._pending = bytearray(data[at:] if at else data)
        # A header is looked at as it comes: a bad second byte must not wait for the mask.
        self._need = need if need > 6 else 0

    def _check_size(self, length: int) -> None:
        message, limits = self._message, self.limits
        if length + (0 if message is None else message.size) > limits.message:
            raise _Offence(TOO_BIG, "the message is too large")
        if message is not None and message.count >= limits.fragments:
            raise _Offence(TOO_BIG, "the message has too many fragments")

    def _data(self, opcode: int, payload: bytes, last: bool, events: list[Event]) -> None:
        message = self._message
        if message is None:
            if last:
                events.append(payload.decode("utf-8") if opcode == TEXT else payload)
                return
            message = self._message = _Message(opcode == TEXT)
        message.add(payload, last)
        if last:
            self._message = None
            events.append(message.whole())

    def _control(self, opcode: int, payload: bytes) -> Event:
        if opcode == PING:
            return Ping(payload)
        if opcode == PONG:
            return Pong(payload)
        if len(payload) == 1:
            raise _Offence(PROTOCOL_ERROR, "the close code is cut")
        code = int.from_bytes(payload[:2], "big") if payload else NO_CODE
        if payload and not (code in _CODES or 3000 <= code < 5000):
            raise _Offence(PROTOCOL_ERROR, "the close code is not allowed")
        try:
            reason = payload[2:].decode("utf-8")
        except UnicodeDecodeError:
            raise _Offence(BAD_TEXT, "the close reason is not UTF-8") from None
        self._end()
        return Close(code, reason)

    def _end(self) -> None:
        self.ended = True
        self._pending = self._message = None


# -- what a server sends ---------------------------------------------------------------------------------------------


def _message(opcode: int, payload: bytes) -> bytes:
    length = len(payload)
    if length <= CONTROL:
        return b"%c%c%b" % (_FIN | opcode, length, payload)
    if length <= _BODY:
        return b"%c\x7e%b%b" % (_FIN | opcode, length.to_bytes(2, "big"), payload)
    parts: list[bytes] = []
    for start in range(0, length, _BODY):
        part = payload[start : start + _BODY]
        last = start + _BODY >= length
        size = b"%c" % len(part) if len(part) <= CONTROL else b"\x7e" + len(part).to_bytes(2, "big")
        parts += (b"%c" % ((opcode if start == 0 else CONTINUATION) | (_FIN if last else 0)), size, part)
    return b"".join(parts)


_BODY: Final = FRAGMENT - 4


def text(message: str | bytes) -> bytes:
    """One text message. Bytes must be UTF-8 (a JSON encoder's output, say); they are not checked."""
    return _message(TEXT, message.encode() if isinstance(message, str) else message)


def binary(message: bytes) -> bytes:
    """One binary message."""
    return _message(BINARY, message)


def ping(payload: bytes = b"") -> bytes:
    """ValueError for more than `CONTROL` bytes."""
    return _control_frame(PING, payload)


def pong(payload: bytes = b"") -> bytes:
    """ValueError for more than `CONTROL` bytes."""
    return _control_frame(PONG, payload)


def close(code: int = NO_CODE, reason: str = "") -> bytes:
    """`NO_CODE`: an empty close. A reason of more than `REASON` bytes is cut between two characters. ValueError for a
    code that may not be sent, and for a reason without a code."""
    if code == NO_CODE:
        if reason:
            raise ValueError("a close reason needs a code")
        return _control_frame(CLOSE, b"")
    if code not in _CODES and not 3000 <= code < 5000:
        raise ValueError(f"{code} is no close code that may be sent")
    said = reason.encode()[:REASON].decode("utf-8", "ignore").encode()
    return _control_frame(CLOSE, code.to_bytes(2, "big") + said)


def _control_frame(opcode: int, payload: bytes) -> bytes:
    if len(payload) > CONTROL:
        raise ValueError(f"a control frame carries at most {CONTROL} bytes")
    return _message(opcode, payload)
