"""Makes text safe to print on one line of a log or a terminal (hostile-input 52)."""

from __future__ import annotations

#: Characters kept of one value; longer ones end with an ellipsis.
MAX_CHARS = 1024


def printable(text: str, limit: int = MAX_CHARS) -> str:
    """`text` with everything but printable ASCII written as `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN` (and `\\` doubled when
    anything was), at most `limit` characters of it.

    Non-ASCII goes too: C1 controls drive terminals like ANSI escapes do, and bidirectional marks reorder a line.
    """
    cut = len(text) > limit
    if cut:
        text = text[:limit]
    if not (text.isascii() and text.isprintable()):
        text = text.encode("unicode_escape", "surrogatepass").decode("ascii").replace("\x7f", "\\x7f")
    return text + "…" if cut else text
