"""How `unjam report` and `unjam worker` end as processes of their own: exit codes, and quietly after ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

#: It could not begin, or not go on.
FAILED: Final = 1
#: The command line is wrong.
USAGE: Final = 2
#: 128 + SIGINT.
INTERRUPTED: Final = 130

Main = Callable[[Sequence[str], Mapping[str, str]], int]


def run(main: Main) -> NoReturn:
    """Call `main` with the command line's arguments and the environment; what it returns is the exit code."""
    try:
        code = main(sys.argv[1:], os.environ)
    except KeyboardInterrupt:
        # Before it had its own handlers for signals.
        code = INTERRUPTED
    sys.exit(code)
