"""Requests to one of several gateways that stand for one another: kept connections, and the next one when one fails.

Nothing is tried twice here but on a kept connection that had been closed; how often and for how long is the caller's
business. What may have been acted on and what surely was not are told apart.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Iterable, Sequence
from typing import Final

from unjam.http.connection import Answer, BadAnswer, Connection, Stream
from unjam.http.origin import Origin

#: Seconds for an answer.
PATIENCE: Final = 10.0
#: Kept connections without a request, of each gateway.
MOST_IDLE: Final = 8
#: Bytes of an answer's body.
LARGEST: Final = 24 << 20


class Unreachable(Exception):
    """No answer of this gateway, in words; the next attempt goes to another. `sent`: it may have acted on the
    request."""

    def __init__(self, words: str, sent: bool) -> None:
        super().__init__(words)
        self.sent = sent


class Gateways:
    """`urls`: of the gateways' data ports, any of which will do. `key`: sent as `Authorization: Bearer`. `ca`: file
    with certificates to trust in place of the system's. ValueError in words for what is no URL, key or file."""

    def __init__(
        self, urls: str | Sequence[str], *, key: str | None = None, ca: str | None = None, agent: str = "unjam"
    ) -> None:
        given = [urls] if isinstance(urls, str) else list(urls)
        if not given:
            raise ValueError("no gateway: give the URL of one at least")
        if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() or " " in key):
            raise ValueError("the key must be visible ASCII characters")
        self.origins = [Origin.at(url) for url in given]
        self._common = f"user-agent: {agent}\r\naccept: application/json\r\n"
        if key is not None:
            self._common += f"authorization: Bearer {key}\r\n"
        self._key = key
        self._tls: ssl.SSLContext | None = None
        if ca is not None:
            try:
                self._tls = ssl.create_default_context(cafile=ca)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(f"{ca} holds no certificates in PEM form: {error}") from None
        self._now = 0
        self._idle: dict[str, list[Connection]] = {origin.url: [] for origin in self.origins}
        self._closed = False

    @property
    def bare(self) -> list[str]:
        """Gateways to which the key would cross the network without TLS."""
        if self._key is None:
            return []
        return [origin.url for origin in self.origins if not origin.secure and not origin.on_this_machine]

    @property
    def origin(self) -> Origin:
        """The gateway that is asked next."""
        return self.origins[self._now]

    def next(self, failed: Origin) -> None:
        """Ask another one from now on, unless that was done already."""
        if self.origin is failed:
            self._now = (self._now + 1) % len(self.origins)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        timeout: float = PATIENCE,
        again: bool = True,
    ) -> Answer:
        """One attempt. `again`: acting on it twice is as good as once. Raises Unreachable."""
        origin = self.origin
        connection = self._take(origin, fresh=not again)
        try:
            answer = await connection.request(self._head(origin, method, path, headers), body, timeout, again=again)
        except (OSError, TimeoutError, BadAnswer) as error:
            self.next(origin)
            if isinstance(error, TimeoutError):
                # What lies between may have forgotten all that were open: a new one shows.
                self._drop(origin)
            raise Unreachable(f"{origin.url} {_words(error, timeout)}", connection.sent) from None
        self._give_back(origin, connection)
        return answer

    async def stream(
        self, path: str, headers: Iterable[tuple[str, str]] = (), *, timeout: float = PATIENCE
    ) -> tuple[Origin, Stream]:
        """The answer to a GET, to be read as it comes and closed by the caller; and who gives it. Raises
        Unreachable."""
        origin = self.origin
        connection = self._connection(origin)
        try:
            return origin, await connection.stream(self._head(origin, "GET", path, headers), timeout)
        except (OSError, TimeoutError, BadAnswer) as error:
            self.next(origin)
            raise Unreachable(f"{origin.url} {_words(error, timeout)}", connection.sent) from None

    def close(self) -> None:
        self._closed = True
        for origin in self.origins:
            self._drop(origin)

    def _drop(self, origin: Origin) -> None:
        """Kept connections to it."""
        kept = self._idle[origin.url]
        while kept:
            kept.pop().close()

    def _head(self, origin: Origin, method: str, path: str, headers: Iterable[tuple[str, str]]) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"{method} {origin.base}{path} HTTP/1.1\r\nhost: {origin.authority}\r\n{self._common}{lines}".encode()

    def _take(self, origin: Origin, fresh: bool) -> Connection:
        kept = self._idle[origin.url]
        while kept and not fresh:
            connection = kept.pop()
            if connection.alive:
                return connection
            connection.close()
        return self._connection(origin)

    def _connection(self, origin: Origin) -> Connection:
        if origin.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        return Connection(origin.host, origin.port, self._tls if origin.secure else None, LARGEST)

    def _give_back(self, origin: Origin, connection: Connection) -> None:
        kept = self._idle[origin.url]
        if connection.alive and not self._closed and len(kept) < MOST_IDLE:
            kept.append(connection)
        else:
            connection.close()


class Backoff:
    """Seconds before trying again: doubles from `first` to `most`; jitter takes up to half of it."""

    def __init__(self, first: float = 0.1, most: float = 10.0, rng: random.Random | None = None) -> None:
        self._first = first
        self._most = most
        self._rng = rng or random.Random()
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next(self, at_least: float = 0.0) -> float:
        """`at_least`: what the other side asked for; jitter is added to that."""
        delay = min(self._most, self._first * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return max(delay * (1 - self._rng.random() / 2), at_least * (1 + self._rng.random() / 4))


def retry_after(answer: Answer, most: float = 60.0) -> float:
    """Seconds that an answer asks to wait; 0 when it doesn't say."""
    value = answer.fields.get(b"retry-after", b"")
    return min(float(value), most) if value.isdigit() and len(value) < 8 else 0.0


def _words(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"has not answered within {timeout:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({error.verify_message})"
    if isinstance(error, OSError):
        # asyncio's own words for it name the address again.
        number = error.errno
        why = os.strerror(number) if number and number > 0 else str(error.strerror or error or type(error).__name__)
        return f"cannot be reached: {why}"
    return f"is not understood: {error}"


async def pause(seconds: float, until: asyncio.Event | None = None) -> None:
    """Sleep, but no longer than `until` is set."""
    if until is None:
        await asyncio.sleep(seconds)
        return
    try:
        async with asyncio.timeout(seconds):
            await until.wait()
    except TimeoutError:
        pass
