"""`python -m unjam.evaluate`: the process that judges. Its standard input is a socket to the gateway, both ways.

One question at a time. It ends with the gateway: at the socket's end, or, in the midst of an evaluation that never
ends, by an alarm of the system that no evaluator can hold up.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Final

from unjam.evaluate import checks, named
from unjam.evaluate.frames import BAD, ERROR, GOOD, Judge, Prepare, Said, Take, decode_asked, frame
from unjam.evaluate.record import Record, Unreadable, Verdict, one_line, plain

#: Seconds beyond a limit in which the gateway should have ended this process.
GRACE: Final = 5.0
#: How much less the processor is given to it than to the gateway.
NICE: Final = 10

Evaluator = Callable[[Record], Verdict]


class _Desk:
    def __init__(self) -> None:
        self._evaluators: dict[int, Evaluator] = {}
        self._record: Record | None = None
        self._unreadable = ""

    def answer(self, asked: Prepare | Take | Judge) -> Said | None:
        if isinstance(asked, Take):
            self._take(asked.record)
            return None
        # The default action of this signal ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_REAL, asked.limit + GRACE)
        try:
            return self._prepare(asked) if isinstance(asked, Prepare) else self._judge(asked.key)
        except BaseException as error:  # noqa: BLE001 - whatever a function of the user's raises, SystemExit too
            return Said(ERROR, one_line(f"{type(error).__name__}: {error}"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _take(self, record: Record) -> None:
        self._unreadable = ""
        try:
            self._record = plain(record)
        except Unreadable as error:
            self._unreadable = str(error)

    def _prepare(self, asked: Prepare) -> Said:
        if asked.kind == "python":
            self._evaluators[asked.key] = named.find(asked.options["function"])
        else:
            check = checks.CHECKS[asked.kind](asked.options)

            def evaluate(record: Record) -> Verdict:
                wrong = check(record)
                return Verdict(not wrong, wrong)

            self._evaluators[asked.key] = evaluate
        return Said(GOOD)

    def _judge(self, key: int) -> Said:
        if self._unreadable:
            return Said(ERROR, self._unreadable)
        assert self._record is not None
        verdict = self._evaluators[key](self._record)
        return Said(GOOD if verdict.good else BAD, one_line(verdict.reason))


def _exactly(line: socket.socket, size: int) -> bytearray | None:
    """None at the end."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = line.recv_into(view[at:])
        if not got:
            return None
        at += got
    return data


def _first_to_go() -> None:
    """Where memory runs out the kernel shall take it from this process, not from the gateway."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    except OSError:
        pass  # not Linux, or not ours to say


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    line = socket.socket(fileno=os.dup(0))
    # What functions print or read is not for this line.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.nice(NICE)
    _first_to_go()
    desk = _Desk()
    while (size := _exactly(line, 4)) is not None and (data := _exactly(line, int.from_bytes(size, "big"))) is not None:
        said = desk.answer(decode_asked(data))
        if said is not None:
            line.sendall(frame(said))


if __name__ == "__main__":
    try:
        main()
    except ConnectionError:
        pass  # the gateway is gone
