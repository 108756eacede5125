"""A function of the user's as an evaluator: found by name, and what it returns understood."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from unjam.evaluate.record import Record, Verdict


def find(name: str) -> Callable[[Record], Verdict]:
    """`name`: `module:function`, the module looked for in the current folder too. Raises whatever the import does,
    ValueError for what is no function."""
    module, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{module} has no function {path}")
    function = found

    def call(record: Record) -> Verdict:
        said = function(record)
        if inspect.isawaitable(said):
            said = asyncio.run(_awaited(said))
        return understood(said)

    return call


async def _awaited(said: Any) -> Any:
    return await said


def understood(said: object) -> Verdict:
    """Raises TypeError for what is no verdict."""
    if isinstance(said, Verdict):
        return said
    if isinstance(said, bool):
        return Verdict(said)
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], bool) and isinstance(said[1], str):
        return Verdict(*said)
    raise TypeError(f"it returned {type(said).__name__}, not a bool, (bool, reason) or Verdict")
