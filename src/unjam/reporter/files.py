"""Small files of the kernel: whole or not at all.

Nothing here raises for a file that is missing, forbidden, or whose process has just ended: for whoever measures, these
are all the same answer, `None`.
"""

from __future__ import annotations

import os


def read(path: str) -> bytes | None:
    """The whole file, None where it cannot be read. (Half as dear as `open`: no buffers, no text layer.)"""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        # The kernel hands lists out page by page: a short read is not yet the end.
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:  # the process ended meanwhile, or the kernel was built or started without this figure
        return None
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def number(path: str) -> int | None:
    """The one whole number in the file; None where there is none (`max` in a control group means: no limit)."""
    return whole(read(path))


def whole(text: bytes | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return None


def table(text: bytes | None) -> dict[bytes, int]:
    """Lines of `name number …` (or `name: number …`) by name; others are left out."""
    found = {}
    for line in (text or b"").splitlines():
        words = line.split(None, 2)
        if len(words) >= 2 and (value := whole(words[1])) is not None:
            found[words[0].rstrip(b":")] = value
    return found


def cpu_list(text: bytes | None) -> frozenset[int] | None:
    """CPUs of a list such as `0-3,8`; None where it is missing, empty or not a list."""
    cpus: set[int] = set()
    try:
        for part in (text or b"").decode("ascii").strip().split(","):
            first, _, last = part.partition("-")
            if first:
                cpus.update(range(int(first), int(last or first) + 1))
    except ValueError:
        return None
    return frozenset(cpus) or None


def names(folder: str) -> list[str] | None:
    """What the folder holds; None where that cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return None
