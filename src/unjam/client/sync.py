"""The client for programs without asyncio. It has a loop of its own in a thread of its own, so it may also be used
where one runs already, and by many threads at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from unjam.client.aio import TRYING, AsyncClient
from unjam.client.model import Event, Run

T = TypeVar("T")

#: Seconds for a stream to close.
_CLOSING: Final = 2.0


class Client:
    """`AsyncClient` without the awaits; see there. `with` or `close` ends it; a client that is not closed ends with the
    program."""

    def __init__(
        self, urls: str | Sequence[str], *, key: str | None = None, ca: str | None = None, patience: float = TRYING
    ) -> None:
        self._client = AsyncClient(urls, key=key, ca=ca, patience=patience)
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Calls that other threads still wait for end with CancelledError."""
        with self._starting:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    def submit(
        self,
        service: str,
        input: object = None,  # noqa: A002 — the API's name for it
        *,
        key: str | None = None,
        lane: str | None = None,
        version: str | None = None,
        retry: str | None = None,
        max_attempts: int | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        pull: bool | None = None,
    ) -> Run:
        """See `AsyncClient.submit`."""
        return self._wait(
            self._client.submit(
                service,
                input,
                key=key,
                lane=lane,
                version=version,
                retry=retry,
                max_attempts=max_attempts,
                deadline=deadline,
                metadata=metadata,
                pull=pull,
            )
        )

    def get(self, run: str | Run) -> Run:
        """How it stands, with its result when it has one."""
        return self._wait(self._client.get(run))

    def list(self, *, service: str | None = None, status: str | None = None, limit: int = 50) -> list[Run]:
        """The newest first."""
        return self._wait(self._client.list(service=service, status=status, limit=limit))

    def result(self, run: str | Run, *, timeout: float | None = None) -> Any:
        """See `AsyncClient.result`."""
        return self._wait(self._client.result(run, timeout=timeout))

    def cancel(self, run: str | Run) -> Run:
        """Wish for its end. A running one ends when its worker has heard of it."""
        return self._wait(self._client.cancel(run))

    def send(self, run: str | Run, data: object) -> int:
        """See `AsyncClient.send`."""
        return self._wait(self._client.send(run, data))

    def verdict(self, run: str | Run, word: Literal["good", "bad"], reason: str = "") -> str:
        """See `AsyncClient.verdict`."""
        return self._wait(self._client.verdict(run, word, reason))

    def follow(self, run: str | Run, *, after: int = -1) -> Iterator[Event]:
        """See `AsyncClient.follow`. Breaking off the loop over it closes the connection."""
        events = self._client.follow(run, after=after)
        try:
            while (event := self._wait(_next(events))) is not None:
                yield event
        finally:
            loop = self._loop
            if loop is not None:
                try:
                    asyncio.run_coroutine_threadsafe(_close(events), loop).result(_CLOSING)
                except (TimeoutError, CancelledError):
                    # The program ends, or another thread has closed the client.
                    pass

    def _wait(self, asked: Coroutine[Any, Any, T]) -> T:
        try:
            future: Future[T] = asyncio.run_coroutine_threadsafe(asked, self._running())
        except BaseException:
            asked.close()
            raise
        try:
            return future.result()
        except BaseException:
            # Also ctrl-C: what nobody waits for shall end.
            future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop, self._client), name="unjam-client", daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop, client: AsyncClient) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


async def _close(events: AsyncGenerator[Event, None]) -> None:
    try:
        await events.aclose()
    except RuntimeError:
        # It runs still, and is being cancelled.
        pass
