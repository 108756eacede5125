"""The line to one gateway: says what there is to say, in time, and remembers what the gateway answered.

Each gateway has its own `Link`, with its own connection, echo and back-off, so that the trouble of one delays no other.
What cannot be delivered is not queued: the next attempt says what is true then. A gateway that restarts is told
everything by the next report, for every report says everything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from unjam.http.connection import Answer, BadAnswer, Connection
from unjam.http.origin import Origin

READY: Final = "ready"
DRAINING: Final = "draining"
LEAVING: Final = "leaving"

#: Seconds for an answer, and for a connection with it.
PATIENCE: Final = 5.0
#: Seconds before trying again: the first time, and at most. Between the two it doubles; jitter takes up to half.
SOON: Final = 0.2
LATER: Final = 5.0
#: A gateway may ask for fewer reports, but not for so few that they are stale.
LONGEST_INTERVAL: Final = 10.0
#: Failed attempts in a row after which a gateway counts as unreachable.
UNREACHABLE: Final = 2

log = logging.getLogger("unjam.reporter")


@dataclass(frozen=True, slots=True)
class Statement:
    """What is so: `state`, the figures, and when they were measured (seconds of the loop's clock)."""

    state: str
    load: dict[str, Any]
    measured_at: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A gateway's answer. `inflight`: requests of its clients that run at the agent, `heavy`: those in the heavy lane.
    `draining`: it sends nothing new."""

    inflight: int
    heavy: int
    draining: bool
    echo: str
    interval: float


class Gateway(Origin):
    """Where a gateway's listener for reporters is. `base`: path before `/v1/report`, mostly empty."""

    __slots__ = ()

    @property
    def head(self) -> bytes:
        return (
            f"POST {self.base}/v1/report HTTP/1.1\r\nhost: {self.authority}\r\n"
            "content-type: application/json\r\naccept: application/json\r\nuser-agent: unjam-reporter\r\n"
        ).encode()


@dataclass(slots=True)
class Link:
    """`about`: what never changes (service, version, url, …). `token`: gives the token; asked again after it was
    refused. `heard_from`: called after every attempt."""

    gateway: Gateway
    token: Callable[[], str]
    about: dict[str, Any]
    interval: float
    tls: ssl.SSLContext | None = None
    heard_from: Callable[[], None] = lambda: None
    rng: random.Random = field(default_factory=random.Random)

    #: The last good answer, and the state it was about.
    heard: Heard | None = None
    told: str = ""
    failures: int = 0
    sent: int = 0
    _statement: Statement | None = None
    _said: Statement | None = None
    _poke: asyncio.Event = field(default_factory=asyncio.Event)
    _answered_at: float = 0.0
    _trouble: str = ""
    _token: str = ""
    _bare: bool = False
    _connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        self._connection = Connection(self.gateway.host, self.gateway.port, self.tls)

    @property
    def said(self) -> Statement | None:
        """The last statement this gateway has taken."""
        return self._said

    @property
    def reachable(self) -> bool:
        """False after two failed attempts in a row, or a refusal: nobody need wait for this gateway."""
        return self.failures < UNREACHABLE

    def say(self, statement: Statement, at_once: bool = False) -> None:
        """From now on this is what is so. A new state is said at once, also to one that is in trouble."""
        changed = self._statement is None or self._statement.state != statement.state
        self._statement = statement
        if changed or (at_once and not self._trouble):
            self._poke.set()

    async def run(self) -> None:
        """Reports until it is cancelled."""
        try:
            while True:
                if (statement := self._to_say()) is None:
                    await self._poke.wait()
                    self._poke.clear()
                    continue
                self._poke.clear()
                pause = await self._report(statement)
                self.heard_from()
                try:
                    async with asyncio.timeout(pause):
                        await self._poke.wait()
                except TimeoutError:
                    pass
        finally:
            self._connection.close()

    def _to_say(self) -> Statement | None:
        """None before the first statement, and after it has taken leave."""
        if self._statement is None or (self._statement.state == LEAVING and self.told == LEAVING):
            return None
        return self._statement

    async def _report(self, statement: Statement) -> float:
        """Send one report. Returns the seconds until the next is due."""
        clock = asyncio.get_running_loop().time
        body = {**self.about, "state": statement.state, "load": {} if self._bare else statement.load}
        if self.heard is not None and self.heard.echo:
            body["echo"] = self.heard.echo
            body["held"] = round(max(0.0, statement.measured_at - self._answered_at), 3)
        self._token = self._token or self.token()
        head = self.gateway.head + f"authorization: Bearer {self._token}\r\n".encode()
        self.sent += 1
        try:
            answer = await self._connection.request(head, _encode(body), PATIENCE)
            heard = _understand(answer) if answer.status == 200 else None
        except TimeoutError:
            return self._failed(f"has not answered within {PATIENCE:g} s")
        except ssl.SSLCertVerificationError as error:
            return self._failed(
                f"has a certificate that is not trusted ({error.verify_message}): --ca FILE names whom to"
            )
        except OSError as error:
            # asyncio's own words for it name the address again.
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
            return self._failed(f"cannot be reached: {why}")
        except BadAnswer as error:
            return self._failed(f"is not understood: {error}. Is this the address of its reporters listener?")
        if heard is None:
            return self._refused(answer, statement)
        if self.told in ("", LEAVING) and statement.state != LEAVING:
            log.info(f"registered with {self.gateway.url}")
        elif self._trouble:
            log.info(f"{self.gateway.url} takes reports again")
        self.heard, self.told, self._said, self._answered_at = heard, statement.state, statement, clock()
        self.failures, self._trouble, self._bare = 0, "", False
        if statement.state == DRAINING:
            # Somebody waits for its end.
            return min(self.interval, 0.5)
        return max(self.interval, heard.interval)

    def _failed(self, why: str) -> float:
        self.failures += 1
        self._say_trouble(f"{self.gateway.url} {why}")
        delay = min(LATER, SOON * 2.0 ** min(self.failures - 1, 10))
        return delay * (1 - self.rng.random() / 2)

    def _refused(self, answer: Answer, statement: Statement) -> float:
        status, message = answer.status, _message(answer.body)
        if statement.state == LEAVING and 400 <= status < 500 and status not in (401, 429):
            # It knows nothing of us: that is what leaving is for.
            self.told = LEAVING
            return 0.0
        if status == 429 or status >= 500:
            return self._failed(f"answered {status}{message}")
        if status == 422 and statement.state != READY and not self._bare:
            # It must hear that we drain, whatever it thinks of our figures.
            self._bare = True
            self._say_trouble(f"{self.gateway.url} refuses what is measured{message}")
            return 0.0
        self.failures = max(self.failures, UNREACHABLE)
        if status == 401:
            self._token = ""
            why = "refuses the token (401): it must be that of `reporters: {token: …}` there"
        elif status == 422:
            why = f"refuses what is measured (422){message}"
        elif status in (403, 404, 409, 400):
            why = f"refuses this endpoint ({status}){message}"
        else:
            why = f"answered {status}{message}: is this the address of its reporters listener?"
        self._say_trouble(f"{self.gateway.url} {why}")
        return LATER

    def _say_trouble(self, words: str) -> None:
        if words != self._trouble:
            log.warning(f"{words}; trying again")
            self._trouble = words


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _understand(answer: Answer) -> Heard:
    """Raises `BadAnswer`."""
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise BadAnswer("its answer is not a JSON object")
    inflight, heavy, echo = told.get("inflight"), told.get("heavy", 0), told.get("echo", "")
    interval = told.get("interval", 0.0)
    if not _count(inflight) or not _count(heavy) or not isinstance(echo, str) or len(echo) > 1024:
        raise BadAnswer("its answer lacks inflight or echo")
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval >= 0:
        raise BadAnswer("the interval in its answer is not a number of seconds")
    return Heard(inflight, heavy, told.get("draining") is True, echo, min(float(interval), LONGEST_INTERVAL))


def _count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _message(body: bytes) -> str:
    """What the gateway says is wrong, fit for a log line; empty when it says nothing."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    if not isinstance(message, str) or not message:
        return ""
    return ": " + "".join(character if character.isprintable() else " " for character in message[:300])
