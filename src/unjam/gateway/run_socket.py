"""The `unjam.v1` protocol at `/v1/ws`: many runs on one WebSocket. docs/websocket.md is its page.

- A subscriber costs a `RunSocket`, and a cursor for each run it follows; no task, no queue, no timer. What many follow
  is encoded once, and the same bytes are written to all.
- A client that reads slowly is written to until `sockets.HIGH` bytes wait; then none of its runs is read for it until
  there is room, one after the other. It misses nothing: it goes on where it was, or is closed with 4408.
- What a client asks for while as much as `PENDING` or `WEIGHT` of it is not yet done is not read from its socket.
- Every message is answered in the order of its run, but for `create`: those go side by side.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import Struct

from unjam.gateway import runs_shapes as shapes
from unjam.gateway import socket_shapes as said
from unjam.gateway.auth import NOBODY, Tenant
from unjam.gateway.local import ANSWERED, LocalExchange, Refused
from unjam.gateway.runs_api import AROUND
from unjam.gateway.runs_errors import missing, refused
from unjam.gateway.socket_connection import OPEN, Handler, SocketConnection
from unjam.gateway.socket_shapes import MOST_RUNS, PROTOCOL
from unjam.gateway.sockets import Sockets
from unjam.runs.hub import Delivery, Follower
from unjam.runs.machine import TERMINAL, Status
from unjam.runs.store.base import StoreError
from unjam.wire import frames, websocket
from unjam.wire.frames import FrameLimits

if TYPE_CHECKING:
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.durable import Durable
    from unjam.gateway.exchange import Exchange
    from unjam.gateway.paths import Paths
    from unjam.gateway.runs_api import RunsApi
    from unjam.runs.model import Run
    from unjam.wire.request import RequestHead

PATH: Final = "/v1/ws"

#: Of our own (4000 to 4999): no key, or none that is known, or not any more.
UNAUTHORISED: Final = 4401

#: Messages of one client, and characters of them, that are being acted on at once.
PENDING: Final = 64
WEIGHT: Final = 1 << 20
#: Seconds that a client without room may have none, at most; `limits.stalled_timeout` if that is less.
STALL: Final = 30.0
#: What may be said before it is known who calls.
STRANGERS: Final = FrameLimits(message=65536, fragments=16)

#: Type of a log's last event → status.
_ENDS: Final = {f"run.{status}": status for status in TERMINAL}


class Subscription(Follower):
    """One run that a socket follows. `_status`: how it has ended, once that is known."""

    __slots__ = ("_socket", "_status", "service")

    def __init__(self, socket: RunSocket, run: Run, after: int) -> None:
        super().__init__(run.id, after)
        self.service = run.service
        self._socket = socket
        self._status: str | None = run.status if run.status in TERMINAL else None

    def take(self, delivery: Delivery) -> bool:
        socket = self._socket
        while self.cursor < delivery.next:
            frame, following = said.piece(self.run, delivery, self.cursor)
            if not socket.send(frame):
                socket.wait(self)
                return False
            self.cursor = following
        if delivery.ended:
            self._status = _ENDS.get(delivery.events[-1].type)
        socket.go_on()
        return True

    def on_gap(self, following: int) -> None:
        self._socket.say(said.Gap(self.run, following))
        self._socket.go_on()

    def on_nothing(self) -> None:
        self._socket.go_on()

    def on_end(self) -> None:
        self._socket.ended(self, self._status)

    def on_error(self, error: StoreError) -> None:
        self._socket.failed(self, refused(error))


class RunSocket(Handler):
    """One client. `caller`: None when no keys are configured, `NOBODY` until it has said who it is."""

    __slots__ = ("_out", "_pending", "_queue", "_runs", "_shared", "_waiting", "_weight", "caller", "connection")

    def __init__(self, shared: RunSockets, connection: SocketConnection, caller: Tenant | None) -> None:
        self._shared = shared
        self.connection = connection
        self.caller = caller
        self._runs: dict[str, Subscription] = {}
        #: Messages for which there was no room, and runs that wait for it, the longest first.
        self._out: list[bytes] | None = None
        self._waiting: list[Subscription] | None = None
        #: What was asked for and is not begun, the first being under way; how much that is, `create` included.
        self._queue: list[tuple[said.Said, int]] | None = None
        self._pending = 0
        self._weight = 0
        if caller is NOBODY:
            connection.restrict(STRANGERS)
            gateway = shared.durable.gateway
            gateway.loop.call_later(gateway.settings.header_timeout, self._late)

    # -- telling ---------------------------------------------------------------------------------------------------

    def say(self, message: Struct) -> None:
        """Say it now, or as soon as there is room."""
        if self.connection.state != OPEN:
            return
        frame = frames.text(said.encode(message))
        if self._out is not None:
            self._out.append(frame)
        elif not self.connection.send(frame):
            self._out = [frame]

    def send(self, frame: bytes) -> bool:
        """False: there is no room."""
        return self._out is None and self.connection.send(frame)

    def wait(self, subscription: Subscription) -> None:
        """Have this run wait until there is room for what it has to say."""
        if self._waiting is None:
            self._waiting = [subscription]
        else:
            self._waiting.append(subscription)

    def on_writable(self) -> None:
        out = self._out
        if out is not None:
            while out:
                if not self.connection.send(out[0]):
                    return
                del out[0]
            self._out = None
        self.go_on()

    def go_on(self) -> None:
        """Let those go on that waited: one at a time, as what is read for the others would find no room."""
        waiting = self._waiting
        if waiting is None:
            return
        while waiting and self._out is None and self.connection.writable:
            if self._shared.durable.hub.go_on(waiting.pop(0)):
                return  # it will be given something, and then call again
        if not waiting:
            self._waiting = None

    # -- runs ------------------------------------------------------------------------------------------------------

    def _follow(self, run: Run, after: int) -> None:
        """Raises `Refused`."""
        if self.caller is not None and not self.caller.may_call(run.service):
            raise missing()  # the keys have changed while the store was asked
        known = self._runs.get(run.id)
        if known is None:
            self._check_room()
        else:
            self._forget(known)
        subscription = self._runs[run.id] = Subscription(self, run, after)
        self._shared.durable.hub.follow(subscription)

    def _check_room(self, run: str = "") -> None:
        """Make sure that there is room for one more run, or that this is one of those. Raises `Refused`."""
        if run not in self._runs and len(self._runs) >= MOST_RUNS:
            raise Refused(429, "too_many_runs", f"One socket may follow {MOST_RUNS} runs at once.")

    def _forget(self, subscription: Subscription) -> None:
        self._shared.durable.hub.unfollow(subscription)
        if self._runs.get(subscription.run) is subscription:
            del self._runs[subscription.run]
        if self._waiting is not None and subscription in self._waiting:
            self._waiting.remove(subscription)
        self.go_on()

    def ended(self, subscription: Subscription, status: str | None) -> None:
        """The log has had its last event."""
        self._forget(subscription)
        if status is not None:
            self.say(said.Done(subscription.run, cast(Status, status)))
        else:  # it was lost, so ask for what it was
            self._shared.durable.gateway.spawn(self._attempt(self._done(subscription.run), subscription.run, None))

    async def _done(self, run: str) -> Struct:
        found = await self._shared.durable.store.get(run)
        return said.Done(run, found.status)

    def failed(self, subscription: Subscription, why: Refused) -> None:
        self._forget(subscription)
        self.say(said.error(why, subscription.run, None))

    # -- what the connection calls ---------------------------------------------------------------------------------

    def on_message(self, text: str) -> None:
        message = said.read(text)
        if isinstance(message, said.Bad):
            if self.caller is NOBODY:
                self._unauthorised("say who you are first: hello with a token")
                return
            self.say(said.error(*message))
            return
        if isinstance(message, said.Hello):
            if self._authorised(message):
                self.say(self._shared.welcome(message.ref))
                if message.resume:
                    self._queue_up(message, len(text))
            return
        if self.caller is NOBODY:
            self._unauthorised("say who you are first: hello with a token")
        elif isinstance(message, said.Create):
            self._taken(len(text))
            self._shared.durable.gateway.spawn(self._create(message, len(text)))
        else:
            self._queue_up(message, len(text))

    def on_drain(self, seconds: float) -> None:
        self.say(said.Drain(round(seconds, 1)))

    def on_closed(self) -> None:
        runs, self._runs = self._runs, {}
        hub = self._shared.durable.hub
        for subscription in runs.values():
            hub.unfollow(subscription)
        self._out = self._waiting = self._queue = None

    # -- who calls -------------------------------------------------------------------------------------------------

    def _authorised(self, hello: said.Hello) -> bool:
        """Whether this caller may go on; else it is closed."""
        keyring = self._shared.durable.gateway.settings.keyring
        caller = self.caller
        if not keyring:
            caller = None
        elif hello.token is not None:
            found = keyring.tenant(None, hello.token.encode("utf-8", "replace"))
            if found is None or (caller is not NOBODY and (caller is None or caller.digest != found.digest)):
                self._unauthorised("the token is not a valid API key, or another than before")
                return False
            caller = found
        try:
            if caller is NOBODY:
                raise KeyError
            caller = keyring.renewed(caller)
        except KeyError:
            self._unauthorised("a valid API key is required: hello with a token")
            return False
        if self.caller is NOBODY:
            self.connection.restrict(self._shared.sockets.limits)
        self.caller = caller
        return True

    def check(self) -> None:
        """The keys may have changed, or what they are for. Not of one that hasn't said yet who it is."""
        try:
            caller = self.caller = self._shared.durable.gateway.settings.keyring.renewed(self.caller)
        except KeyError:
            self._unauthorised("the key is not valid any more")
            return
        for subscription in list(self._runs.values()):
            if caller is not None and not caller.may_call(subscription.service):
                self.failed(subscription, missing())

    def _late(self) -> None:
        if self.caller is NOBODY and self.connection.state == OPEN:
            self._unauthorised("it took too long to say who calls")

    def _unauthorised(self, why: str) -> None:
        shared = self._shared
        shared.durable.gateway.stats.reject("unauthorized")
        shared.sockets.refused(UNAUTHORISED)
        self.connection.close(UNAUTHORISED, why)

    # -- doing -----------------------------------------------------------------------------------------------------

    def _taken(self, weight: int) -> None:
        self._pending += 1
        self._weight += weight
        if self._pending >= PENDING or self._weight >= WEIGHT:
            self.connection.hold()

    def _finished(self, weight: int) -> None:
        self._pending -= 1
        self._weight -= weight
        if self._pending < PENDING and self._weight < WEIGHT:
            self.connection.listen()

    def _queue_up(self, message: said.Said, weight: int) -> None:
        self._taken(weight)
        if self._queue is None:
            self._queue = [(message, weight)]
            self._shared.durable.gateway.spawn(self._work(self._queue))
        else:
            self._queue.append((message, weight))

    async def _work(self, queue: list[tuple[said.Said, int]]) -> None:
        """One after the other, until nothing waits or the client has left."""
        while queue:
            message, weight = queue[0]
            if isinstance(message, said.Hello):
                for place in message.resume:
                    if self._queue is queue:
                        await self._attempt(self._subscribe(place), place.run, None)
            else:
                assert not isinstance(message, said.Create)
                await self._attempt(self._act(message), message.run, message.ref)
            if self._queue is not queue:
                return
            del queue[0]
            if not queue:
                self._queue = None
            self._finished(weight)

    async def _attempt(self, work: Coroutine[Any, Any, Struct | None], run: str | None, ref: str | int | None) -> None:
        """Say what came of it."""
        try:
            answer = await work
        except StoreError as error:
            self.say(said.error(refused(error), run, ref))
        except Refused as error:
            self.say(said.error(error, run, ref))
        except Exception:
            self._shared.durable.gateway.log.exception("fault", client=self.connection.peer)
            why = Refused(500, "internal", "The gateway failed at this; its log says why.")
            self.say(said.error(why, run, ref))
        else:
            if answer is not None:
                self.say(answer)

    async def _act(self, message: said.Subscribe | said.Unsubscribe | said.Cancel | said.Input) -> Struct | None:
        """Raises `Refused`, StoreError."""
        api = self._shared.api
        answer = said.Ok(message.run, ref=message.ref)
        if isinstance(message, said.Subscribe):
            run = await api.run_of(message.run, self.caller)
            self._check_room(run.id)
            if message.ref is not None:
                self.say(answer)  # before its events
            self._follow_on(run, message.after)
            return None
        if isinstance(message, said.Unsubscribe):
            subscription = self._runs.get(message.run)
            if subscription is not None:
                self._forget(subscription)
        elif isinstance(message, said.Cancel):
            await api.stop(await api.run_of(message.run, self.caller))
        else:
            data = shapes.payload(message.data, self._shared.durable.limits.max_input, "data")
            answer.n = await api.give(await api.run_of(message.run, self.caller), data)
        return answer if message.ref is not None else None

    async def _subscribe(self, place: said.Place) -> None:
        self._follow_on(await self._shared.api.run_of(place.run, self.caller), place.after)

    def _follow_on(self, run: Run, after: int) -> None:
        if self.connection.state == OPEN:
            self._follow(run, after)

    async def _create(self, message: said.Create, weight: int) -> None:
        await self._attempt(self._created(message), None, message.ref)
        self._finished(weight)

    async def _created(self, message: said.Create) -> None:
        api = self._shared.api
        new = api.new_run(message, self.caller, message.idem)
        if message.follow:
            self._check_room()
        run, made = await api.keep(new)
        self.say(said.Created(run.id, run.status, made, message.ref))
        if message.follow:
            try:
                self._follow_on(run, -1)
            except Refused as error:  # others were faster; the message has its answer
                self.say(said.error(error, run.id, None))


class RunSockets:
    """All of one gateway."""

    def __init__(self, durable: Durable, api: RunsApi) -> None:
        self.durable = durable
        self.api = api
        gateway = durable.gateway
        self.sockets = Sockets(
            gateway.loop, gateway.wheel, intake=gateway.intake, on_fault=self._fault, on_gone=self._gone
        )
        self.configure()

    def add_to(self, paths: Paths) -> None:
        paths.take(PATH, self.begin, asks=True)

    def configure(self) -> None:
        """Take the limits in force; who has a key that is not known any more is closed."""
        limits, sockets = self.durable.limits, self.sockets
        sockets.limits = FrameLimits(message=limits.max_input + AROUND)
        sockets.most = limits.sockets
        sockets.stall = min(STALL, self.durable.gateway.settings.stall_timeout)
        for connection in list(sockets.held):
            handler = connection.handler
            if isinstance(handler, RunSocket) and handler.caller is not NOBODY:
                connection.restrict(sockets.limits)
                handler.check()

    def welcome(self, ref: str | int | None) -> said.Welcome:
        sockets = self.sockets
        return said.Welcome(PROTOCOL.decode("ascii"), MOST_RUNS, sockets.limits.message, sockets.ping_every, ref)

    def begin(
        self, client: ClientConnection, head: RequestHead, request_id: bytes, now: float, caller: Tenant | None
    ) -> Exchange | None:
        """Take the connection over. Raises `Malformed`."""
        origins = self.durable.limits.origins
        if origins is None:
            here = head.authority.decode("latin-1").lower()
            origins = (f"http://{here}", f"https://{here}")
        websocket.check_handshake(head, origins)
        offered = head.known.get(b"sec-websocket-protocol")
        if offered is not None and PROTOCOL not in [each.strip() for each in offered.split(b",")]:
            exchange = LocalExchange(client, head, request_id, now, caller)
            exchange.refusal = Refused(400, "bad_subprotocol", "Offer the WebSocket subprotocol unjam.v1, or none.")
            return cast("Exchange", exchange)
        tenant = None if caller is None else caller.name or None
        self.durable.gateway.log_answer(client, head, request_id, 101, ANSWERED, tenant=tenant)
        self.sockets.take(
            client,
            head,
            lambda connection: RunSocket(self, connection, caller),
            subprotocol=PROTOCOL if offered is not None else b"",
            extra=b"x-request-id: %b\r\n" % request_id,
        )
        return None

    def _fault(self, connection: SocketConnection) -> None:
        self.durable.gateway.log.exception("fault", client=connection.peer)

    def _gone(self, connection: SocketConnection) -> None:
        gateway = self.durable.gateway
        gateway.descriptors -= 1
        gateway.stats.connections_open -= 1
