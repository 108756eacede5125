"""Where an exchange is, and its client's connection. The arrows, each taken by one method of `Exchange`:

INSPECTING → QUEUED → CONNECTING → WAITING → RELAYING → ENDED
                                      │ ╲
                                      │  TUNNELLING → ENDED
                                      └→ QUEUED (another endpoint)       any state → ENDED (the client left, a limit)

QUEUED → REFUSING → ENDED where the form of the refusal depends on a body that isn't whole yet.
"""

from __future__ import annotations

from typing import Final

#: Its body is read before it is routed.
INSPECTING: Final = 0
#: Offered to the core; waiting for a slot.
QUEUED: Final = 1
#: A slot is ours; the endpoint's connection is being opened.
CONNECTING: Final = 2
#: The request is with the endpoint; no byte of an answer yet.
WAITING: Final = 3
#: The client has part of the answer.
RELAYING: Final = 4
#: Both sides switched protocols; bytes pass through.
TUNNELLING: Final = 5
ENDED: Final = 6
#: The gateway answers it itself: see `local`.
LOCAL: Final = 7
#: Nobody will serve it; it is told so once its body is here, which says in which form.
REFUSING: Final = 8

NAMES: Final = ("inspecting", "queued", "connecting", "waiting", "relaying", "tunnelling", "ended", "local", "refusing")


#: What the next bytes from a client are (`ClientConnection.mode`): a head; a body, by its length or in chunks; ahead of
#: their turn, while a request is under way; a tunnel's; thrown away, as we are closing; closed; the connection is gone.
HEADS, BODY, CHUNKS, AHEAD, TUNNEL, DISCARDING, CLOSED, GONE = range(8)


class Unwanted(Exception):
    """The answer that begins is not for the client, which is served elsewhere; its connection was aborted."""
