"""An agent that the reporter starts itself, and the exit codes that come of it.

The child has a process group of its own, so that ctrl-C at a terminal reaches the reporter alone, which drains first.
As process 1 of a container the reporter also buries the orphans it inherits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

#: Handed on to the child as they come. TERM and INT are for the reporter, KILL and STOP for nobody.
HANDED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCONT)

#: As shells have them.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
BY_SIGNAL: Final = 128


class NoChild(Exception):
    """The command cannot be started. `code`: the exit code for that."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Child:
    """Start it within the running loop. `ended` is set when it has ended."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises `NoChild`."""
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            self._process = subprocess.Popen(command, process_group=0)
        except OSError as error:
            loop.remove_signal_handler(signal.SIGCHLD)
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            raise NoChild(f"cannot start {command[0]}: {error.strerror}", code) from None
        for number in HANDED_ON:
            loop.add_signal_handler(number, self.send, number)
        # It may have ended before anybody listened.
        self._reap()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int:
        """Its exit code, 128 + N when signal N ended it. Only when it has ended."""
        code = self._process.returncode
        assert code is not None
        return code if code >= 0 else BY_SIGNAL - code

    def send(self, number: signal.Signals) -> None:
        """To the child, which passes on what its own children need. What ends it goes to all of its process group: a
        shell around the agent would die of it and leave the agent behind."""
        if self.ended.is_set():
            return
        if number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGCHLD, *HANDED_ON):
            loop.remove_signal_handler(number)

    def _reap(self) -> None:
        if self._process.poll() is not None:
            self.ended.set()
        if os.getpid() == 1:
            _bury(self._process.pid)


def _bury(spared: int) -> None:
    """Wait for every dead child but one, whose exit code is wanted."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == spared:
            return
        os.waitpid(found.si_pid, 0)
