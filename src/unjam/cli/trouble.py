"""How commands end: exit codes, and one clear sentence on stderr instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from unjam.config import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

#: The configuration, the request or the action was refused, or the gateway could not start.
REFUSED = 1
#: The command line itself is wrong; typer's own code for it.
USAGE = 2
#: The admin listener did not answer.
UNREACHABLE = 3
#: 128 + SIGINT.
INTERRUPTED = 130


class CliError(Exception):
    """`message`: a sentence that says what to do. `code`: the exit code."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def say(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"unjam: {message}\n")


def in_sentences(command: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: errors become sentences and exit codes, ctrl-C is quiet."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except CliError as error:
            say(error.message)
            raise typer.Exit(error.code) from None
        except ConfigError as error:
            for line in error.lines():
                sys.stderr.write(line + "\n")
            number = len(error.problems)
            say(f"the configuration was refused: {number} problem{'s' if number != 1 else ''}.")
            raise typer.Exit(REFUSED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return wrapped
