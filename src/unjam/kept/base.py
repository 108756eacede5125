"""What every place for kept decisions does: an audit log of changes, and the last value of each key.

Promises, of every method:
- What `put` returned for is durable as far as the place goes: of a file and Redis it survives the death of any process.
- Atomic: the changes of one `put` are there all or none, values and log alike; called again after an error it may be
  that they are there twice, never in part.
- `n` counts the changes of all gateways, from 1, without gaps; who has the larger one came later.
- `KeptAway`: not now, try again. Nothing is retried in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from unjam.kept.others import Others

#: Changes that the log holds at least; older ones are forgotten some time. The last value of a key never is.
LOGGED: Final = 10_000
#: Changes in one answer.
MOST: Final = 1000
#: Bytes of one value as JSON.
LARGEST: Final = 64 << 10


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. `n`: its number, 0 until it is kept; `at`: wall time, seconds; `who` decided; `where`: the gateway
    that was told; `key`: what it is about, such as `weight/SERVICE/VERSION`; `before`, `after`: JSON values; `why`: in
    words, may be empty."""

    key: str
    after: Any
    before: Any = None
    who: str
    where: str
    why: str = ""
    at: float = 0.0
    n: int = 0


class KeptError(Exception):
    """Base of what is raised here: it cannot be kept there, in words."""


class KeptAway(KeptError):
    """It can't be reached, is read-only, full, or not allowed to us."""


class Kept(Protocol):
    """`shared`: other gateways may write there, so `since` is worth asking."""

    shared: bool

    async def open(self) -> None:
        """Raises KeptAway; KeptError for a place that isn't ours."""
        ...

    async def close(self) -> None:
        """Close it; harmless when it is not open."""
        ...

    async def put(self, *changes: Change) -> int:
        """Append to the log and make each `after` the value of its key; `n` of the changes are given here. Returns the
        last of them. Raises ValueError for none, or one that is too large."""
        ...

    async def current(self) -> dict[str, Change]:
        """The last change of each key."""
        ...

    async def history(self, limit: int = 100, before: int | None = None, key: str | None = None) -> list[Change]:
        """The newest first; `before`: those with a smaller `n` only; `key`: of this one only, or of all below it
        (`weight/agent` has `weight/agent/v7`). `limit`: at most `MOST`."""
        ...

    async def since(self, n: int) -> list[Change]:
        """Those after `n`, oldest first, at most `MOST`. Where the log is not as long as `n` (the place lost data),
        all it has."""
        ...

    def others(self) -> Others | None:
        """The other gateways of this state, not spoken to yet; to be closed before this. None where there are none."""
        ...


def checked(changes: Sequence[Change], n: int) -> list[tuple[Change, bytes]]:
    """The changes numbered from `n` on, and each as JSON. Raises ValueError."""
    if not changes:
        raise ValueError("no change")
    found = []
    for i, change in enumerate(changes):
        numbered = msgspec.structs.replace(change, n=n + i)
        data = _encode(numbered)
        if len(data) > LARGEST:
            raise ValueError(f"a change of {change.key} has {len(data)} bytes; at most {LARGEST}")
        found.append((numbered, data))
    return found


def is_below(key: str, wanted: str | None) -> bool:
    return wanted is None or key == wanted or key.startswith(f"{wanted}/")


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Change).decode


def decode(data: bytes) -> Change:
    """Raises KeptError for what none of us wrote."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeptError(f"a change that is kept there can't be read: {error}") from None
