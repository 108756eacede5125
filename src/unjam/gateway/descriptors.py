"""File descriptors, the first wall a gateway with many held clients meets: raise the limit, then watch it."""

from __future__ import annotations

import resource

#: Share of the descriptors that data-plane sockets may use; the rest is for admin, logs, stores and files.
SHARE = 0.9


def raise_limit() -> tuple[int, int]:
    """Raise the soft limit to the hard one. Returns (soft before, limit now)."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(before, 1 << 20)
    if before < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before, hard
