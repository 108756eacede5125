"""Loops for tests of the reporter, which runs on asyncio's own: one of real time, and one that skips waiting.

`skipping`: an event loop whose clock jumps to the next timer when nothing is left to do, and stands still otherwise: an
hour of reports in a blink, and no second of it is the machine's that was slow.

Real sockets work as ever: what was written on loopback is there before the loop looks again.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

#: Seconds of real time that sockets have before time jumps, and that a test may wait for something without a timer.
GRACE = 0.002
PATIENCE = 20.0


class _Selector(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(PATIENCE)
            assert ready, "nothing is left to wait for"
            return ready
        if timeout <= 0:
            return super().select(0)
        ready = super().select(min(timeout, GRACE))
        if not ready:
            self.now += timeout
        return ready


class SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._own = _Selector()
        super().__init__(self._own)

    def time(self) -> float:
        return self._own.now


def plain(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in real time, within a minute."""

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(3 * PATIENCE):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return wrapper


def skipping(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in such a loop."""

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=SkippingLoop) as runner:
            runner.run(test(*args, **kwargs))

    return wrapper
