"""What the gateway and the process that judges say to each other: a length of four bytes, then msgpack."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from unjam.evaluate.record import Record

#: Bytes of an answer.
MOST_ANSWER: Final = 4096

GOOD: Final = "good"
BAD: Final = "bad"
ERROR: Final = "error"


class Prepare(msgspec.Struct, tag=True):
    """Make evaluator `key` ready: import what it needs. `limit`: seconds, after which the process may end itself."""

    key: int
    kind: str
    options: dict[str, Any]
    limit: float


class Take(msgspec.Struct, tag=True):
    """What is judged from now on. Not answered."""

    record: Record


class Judge(msgspec.Struct, tag=True):
    key: int
    limit: float


class Said(msgspec.Struct):
    """`result`: good, bad or error; good to `Prepare` means ready."""

    result: str
    reason: str = ""


_encode = msgspec.msgpack.Encoder().encode
decode_asked = msgspec.msgpack.Decoder(Prepare | Take | Judge).decode
decode_said = msgspec.msgpack.Decoder(Said).decode


def frame(message: msgspec.Struct) -> bytes:
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data
