"""What the middlewares have in common, whichever protocol they are for: their options, and the figures they tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from unjam.reporter.figures import PATH, Figures, Format, HasRead

App = TypeVar("App")


class Middleware(Generic[App]):
    """`app` with the header on its responses (an application that sets it itself is not overruled).

    `every`: least seconds between two readings of `machine` (a `unjam.reporter.machine.Machine`; None: only requests
    are counted). `format`: `text` or `json`. `path`: where the JSON is, None for nowhere. `waiting`: tells how many of
    the requests in flight the application has not begun. `shared`: a file in which the server's worker processes count
    together; without it each tells only of its own.

    ValueError for options that cannot be, OSError when `shared` can't be made.
    """

    def __init__(
        self,
        app: App,
        *,
        every: float = 1.0,
        format: Format = "text",  # noqa: A002
        machine: HasRead | None = None,
        path: str | None = PATH,
        waiting: Callable[[], int] | None = None,
        shared: str | os.PathLike[str] | None = None,
    ) -> None:
        self.app = app
        self._figures = Figures(every=every, format=format, machine=machine, waiting=waiting, shared_file=shared)
        self._path = path
