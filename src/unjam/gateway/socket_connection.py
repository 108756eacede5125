"""One held WebSocket client on the data port, and the `Handler` of what is said over it. See `sockets` for all of them.

Here is what holds for any protocol:

- A client that reads slower than it is written to costs `HIGH` bytes and a place in one message that may be shared
  with all others. `send` then refuses, nothing more is read from it, and `on_writable` tells when to go on. After
  `stall` seconds without room it is closed with 4408.
- Pings come from the gateway's timer wheel. A client that is silent for `pong_within` seconds after one is aborted, and
  so is one that sends but answered none of three.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from unjam.gateway.timers import NEVER
from unjam.wire import frames
from unjam.wire.frames import Broken, Close, Event, FrameLimits, FrameReader, Ping

if TYPE_CHECKING:
    from unjam.gateway.sockets import Sockets

#: Bytes that may be written to a client and not yet be sent. What is longer goes out as room comes, whole fragments at
#: a time, so that a ping or a close can come between.
HIGH: Final = 65536
#: Above this the transport says that it is full: one more fragment always fits.
FULL: Final = HIGH - frames.FRAGMENT

#: Of our own (4000 to 4999): the client reads too slowly.
TOO_SLOW: Final = 4408

#: Pings without one pong, from a client that does send other things.
UNANSWERED: Final = 3

_PING: Final = frames.ping()

OPEN, CLOSING, GONE = range(3)


class Handler:
    """What is said over one socket. All calls come on the loop's thread; what is not overridden does nothing. An
    exception ends that client's connection with 1011, and no other's."""

    __slots__ = ()

    def on_message(self, text: str) -> None:
        """One message. `SocketConnection.send` takes at least one frame now."""

    def on_writable(self) -> None:
        """There is room again after `send` had refused."""

    def on_drain(self, seconds: float) -> None:
        """The gateway is stopping; this client will be closed in `seconds`, unless it leaves before."""

    def on_closed(self) -> None:
        """Once, when nothing more will come nor can be sent: whoever closed, and for whatever reason."""


class SocketConnection(asyncio.Protocol):
    """One held client. Idle it holds no buffer of ours; see docs/wire.md for what it costs."""

    __slots__ = (
        "_asked",
        "_awaiting",
        "_begun",
        "_busy",
        "_handler",
        "_heard",
        "_held",
        "_look_at",
        "_paused",
        "_reader",
        "_rest",
        "_stalled",
        "_until",
        "due",
        "peer",
        "shared",
        "state",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, shared: Sockets, transport: asyncio.Transport, peer: str) -> None:
        self.shared = shared
        self.transport = transport
        self.peer = peer
        self.state = OPEN
        self.due = NEVER
        self._handler: Handler | None = None
        self._reader: FrameReader | None = FrameReader(shared.limits)
        #: The transport is full; what did not fit of the last frame; messages that wait until there is room.
        self._paused = False
        self._rest: memoryview | None = None
        self._held: Sequence[Event] = ()
        #: The handler wants no more messages for now.
        self._busy = False
        #: Since when there is no room, and since when a message is under way (monotonic seconds); 0: it isn't so.
        self._stalled = 0.0
        self._begun = 0.0
        #: Something came since the last ping; pings without a pong; the last ping is still to be judged; when that, or
        #: the next ping, is due.
        self._heard = False
        self._asked = 0
        self._awaiting = False
        self._look_at = NEVER
        #: Open: when to leave, by a drain. Closing: when to give up on a clean end.
        self._until = NEVER

    # -- what handlers use -----------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self.state == OPEN and not self._paused and self._rest is None

    def send(self, frame: bytes) -> bool:
        """Send one message built by `wire.frames`. False, and nothing of it is sent: no room (`on_writable` will tell),
        or the connection is over (`on_closed` told)."""
        if self.state != OPEN or self._paused or self._rest is not None:
            return False
        transport = self.transport
        if len(frame) <= HIGH - transport.get_write_buffer_size():
            transport.write(frame)
        else:
            self._rest = memoryview(frame)
            self._push()
        return True

    @property
    def handler(self) -> Handler | None:
        """None once it was told that all is over."""
        return self._handler

    def hold(self) -> None:
        """Bring no more messages until `listen`: as much as has come already is kept, and no more is read."""
        if not self._busy and self.state == OPEN:
            self._busy = True
            self.transport.pause_reading()

    def listen(self) -> None:
        """Bring messages again."""
        if self._busy:
            self._busy = False
            self._heard = True  # its pong may be behind what was not read from it meanwhile
            if self._begun:
                self._begun = self.shared.clock()
                self._look(self._begun + self.shared.message_within)
            self._hear()

    def restrict(self, limits: FrameLimits) -> None:
        """Other limits than those of all, from the next frame on."""
        if self._reader is not None:
            self._reader.limits = limits

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye; the client has `shared.linger` seconds to answer, and to read what is on its way. ValueError
        for a code that may not be sent."""
        if self.state != OPEN:
            return
        self._leave(frames.close(code, reason))

    def crowded_out(self) -> None:
        """Too many large messages are under way; this is the largest."""
        if self.state == OPEN:
            self._refuse(frames.TRY_LATER, "too much is being sent")
        else:
            self.abort()

    def abort(self) -> None:
        """End at once, without a word."""
        if self.state != GONE:
            self.state = CLOSING
            self.transport.abort()
            self._over()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard = True
        reader = self._reader
        if reader is None:  # it broke the protocol, or said goodbye: nothing behind that is looked at
            return
        events = reader.feed(data)
        if reader.partial:
            # Each message is given its own time; a frame that is cut by the end of `data` begins one.
            if not self._begun or any(type(event) is str for event in events):
                self._begun = self.shared.clock()
                self._look(self._begun + self.shared.message_within)
            self.shared.intake.grown(self, reader.held, False)
        elif self._begun:
            self._begun = 0.0
            self.shared.intake.done(self)
        if events:
            self._deliver(events)

    def eof_received(self) -> bool:
        if self.state == OPEN:
            self._leave(b"")  # it won't say goodbye any more; the transport closes once all is flushed
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.state = GONE
        self._over()
        # The wheel may hold it for a while yet: let go of what takes memory.
        self._reader = None
        self._held = ()
        self._rest = None
        self.shared.intake.done(self)
        self.shared.forget(self)
        del self.transport

    def pause_writing(self) -> None:
        self._paused = True
        self._stalled = self.shared.clock()
        self._look(self._stalled + self.shared.stall)

    def resume_writing(self) -> None:
        self._paused = False
        self._stalled = 0.0
        self._heard = True  # it reads, so it lives; and its pong may be behind what was not read from it meanwhile
        self._push()
        self._go_on()

    # -- writing ---------------------------------------------------------------------------------------------------

    def _push(self) -> None:
        """Write of `_rest` what there is room for."""
        transport = self.transport
        while (rest := self._rest) is not None and not self._paused:
            if transport.is_closing():
                self._rest = None
                return
            room = HIGH - transport.get_write_buffer_size()
            if room >= len(rest):
                self._rest = None
                transport.write(rest)
            elif room >= frames.FRAGMENT:
                room -= room % frames.FRAGMENT
                self._rest = rest[room:]
                transport.write(rest[:room])
            else:
                # It is full and has not said so yet: uvloop does when it has tried to send, at the end of this turn.
                self.shared.loop.call_soon(self._again)
                return

    def _again(self) -> None:
        if self.state == OPEN and self._rest is not None and not self._paused:
            self._push()
            self._go_on()

    def _go_on(self) -> None:
        """There may be room again: first for what the client had said meanwhile, then for what it is told."""
        self._hear()
        handler = self._handler
        if handler is not None and self.writable:
            try:
                handler.on_writable()
            except Exception:  # noqa: BLE001 - a fault of one handler is one client's
                self._fault()

    def _hear(self) -> None:
        """Take up reading where it was left, if nothing is against it."""
        if not self.writable or self._busy:
            return
        held, self._held = self._held, ()
        if held:
            self._deliver(held)
            if not self.writable or self._busy or self._held:
                return
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _deliver(self, events: Sequence[Event]) -> None:
        """Act on what came. Of several pings the last is answered, as RFC 6455 section 5.5.3 allows: a flood of them
        does not make a flood of ours."""
        if self._held:
            self._held = [*self._held, *events]
            return
        ping: Ping | None = None
        for number, event in enumerate(events):
            kind = type(event)
            if self.state != OPEN:
                if kind is Close or kind is Broken:
                    self._finish()
                continue
            if self._busy or ((kind is str or kind is Ping) and not self.writable):
                self._held = events[number:]
                self.transport.pause_reading()
                break
            if isinstance(event, str):
                handler = self._handler
                if handler is not None:
                    try:
                        handler.on_message(event)
                    except Exception:  # noqa: BLE001 - a fault of one handler is one client's
                        self._fault()
            elif isinstance(event, Ping):
                ping = event
            elif isinstance(event, Close):
                self._leave(frames.close(event.code))
                self._finish()
            elif isinstance(event, Broken):
                self._refuse(event.code, event.reason)
            elif isinstance(event, bytes):
                self._refuse(frames.UNSUPPORTED, "text messages only")
            else:
                self._asked = 0
        if ping is not None and self.state == OPEN:
            self.transport.write(frames.pong(ping.payload))

    # -- ending ----------------------------------------------------------------------------------------------------

    def _leave(self, goodbye: bytes, hang_up: bool = False) -> None:
        """Say the last word, and wait for the client's. `hang_up`: close our half, as nothing it could answer will be
        understood."""
        transport = self.transport
        self.state = CLOSING
        self._held = ()
        self._rest = None  # fragments of a message; a close may come between
        self._until = self.shared.clock() + self.shared.linger
        self._look(self._until)
        if not transport.is_closing():
            if goodbye:
                transport.write(goodbye)
            if hang_up and transport.can_write_eof():
                transport.write_eof()
            # Read on, even if only to throw away: an immediate close would reset the connection and destroy what is
            # still on its way to the client.
            transport.resume_reading()
        self._over()

    def _refuse(self, code: int, reason: str) -> None:
        self._reader = None
        self.shared.intake.done(self)
        self.shared.refused(code)
        self._leave(frames.close(code, reason), hang_up=True)

    def _finish(self) -> None:
        """Both sides said goodbye: the server hangs up first (section 7.1.1)."""
        self._reader = None
        self.transport.close()

    def _over(self) -> None:
        """Tell the handler, once."""
        handler, self._handler = self._handler, None
        if handler is not None:
            try:
                handler.on_closed()
            except Exception:  # noqa: BLE001 - a fault of one handler is one client's
                self.shared.on_fault(self)

    def _fault(self) -> None:
        self.shared.on_fault(self)
        self.close(frames.INTERNAL, "an error of the gateway's own")

    # -- time ------------------------------------------------------------------------------------------------------

    def _look(self, when: float) -> None:
        if when < self.due:
            self.shared.wheel.at(self, when)

    def on_timer(self, now: float) -> float:
        """Do what is overdue; return when to look again (monotonic seconds)."""
        shared = self.shared
        if self.state != OPEN:
            if self.state == GONE:
                return NEVER
            if now >= self._until:
                self.transport.abort()
                return NEVER
            return self._until
        if now >= self._until:
            self.close(frames.RESTART, "the gateway is stopping")
            return NEVER
        if self._stalled:
            due = self._stalled + shared.stall
            if now >= due:
                shared.refused(TOO_SLOW)
                self.close(TOO_SLOW, "too slow")
                return NEVER
            if now >= self._look_at:  # a ping would only wait behind the rest
                self._awaiting = False
                self._look_at = now + shared.ping_every
            return min(due, self._look_at, self._until)
        due = self._until
        if self._begun and not self._busy:
            due = min(due, self._begun + shared.message_within)
            if now >= due:
                shared.refused(frames.POLICY)
                self._refuse(frames.POLICY, "the message took too long")
                return NEVER
        if now >= self._look_at and not self._beat(now):
            shared.refused(0)
            self.abort()
            return NEVER
        return min(due, self._look_at)

    def _beat(self, now: float) -> bool:
        """Judge the last ping, or send the next. False: the client is dead."""
        shared = self.shared
        if self._awaiting:
            self._awaiting = False
            # Any byte is a sign of life: a client in the middle of a long frame can't put a pong into it.
            if not self._busy and (not self._heard or self._asked >= UNANSWERED):
                return False
            self._look_at = now + shared.ping_every - shared.pong_within
        else:
            self.transport.write(_PING)
            self._awaiting = True
            self._heard = False
            self._asked += 1
            self._look_at = now + shared.pong_within
        return True

    def begin(self, handler: Handler, first: float) -> None:
        """Start to serve: messages go to `handler`, the first ping is due at `first` (monotonic seconds)."""
        self._handler = handler
        self._look_at = first
        self._look(first)

    def leave_at(self, when: float, now: float) -> None:
        """Close with 1012 at `when`, and tell the handler how long that is."""
        if self.state == OPEN:
            self._until = when
            self._look(when)
            handler = self._handler
            if handler is not None:
                try:
                    handler.on_drain(when - now)
                except Exception:  # noqa: BLE001 - a fault of one handler is one client's
                    self._fault()
