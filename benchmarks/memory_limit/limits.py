"""A memory limit that processes share, as containers have one: a control group where this machine lets us make one.

Version 1 and 2 are both tried. Where neither can be had, `RLIMIT_AS` bounds the address space of each process alone:
then the ballast has to be in the agent's own process, and one that gets no memory ends itself as a killed one would.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
_ROOT = Path("/sys/fs/cgroup")


def _own(controller: str) -> str:
    """This process's group: of a version 1 controller, or of version 2 for an empty name."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


class Group:
    """One control group with `limit` bytes; make it with `make_group`."""

    def __init__(self, folder: Path, version: int, limit: int) -> None:
        self.folder = folder
        self.version = version
        (folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(limit))

    def enter(self, argv: Sequence[str], oom_score: int = 0) -> list[str]:
        """`argv`, made to run inside from its first instruction on. `oom_score`: how much more it is the one to kill
        (0 .. 1000)."""
        line = f"echo {oom_score} > /proc/$$/oom_score_adj && "
        line += f"echo $$ > {shlex.quote(str(self.folder / 'cgroup.procs'))} && exec {shlex.join(argv)}"
        return ["/bin/sh", "-c", line]

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed in it for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.folder / name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0

    @property
    def used(self) -> int:
        return int((self.folder / ("memory.usage_in_bytes" if self.version == 1 else "memory.current")).read_text())

    def remove(self) -> None:
        """Empty groups only; one that is not empty is left behind."""
        try:
            self.folder.rmdir()
        except OSError as e:
            print(f"{self.folder} is left behind: {e}", file=sys.stderr)


def make_group(name: str, limit: int) -> Group | None:
    """None where none can be made here."""
    plans = [(_ROOT / "memory" / _own("memory").lstrip("/"), 1), (_ROOT / _own("").lstrip("/"), 2)]
    for parent, version in plans:
        limits = parent / ("memory.limit_in_bytes" if version == 1 else "memory.max")
        folder = parent / f"unjam-{os.getpid()}-{name}"
        if version == 1 and not limits.exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            return Group(folder, version, limit)
        except OSError:
            # Version 2 without the controller: there is no such file.
            folder.rmdir()
    return None
