"""Making peers' text safe for a log line or a terminal."""

from __future__ import annotations


def escape(value: bytes | str, most: int = 256) -> str:
    """`value` on one line, printable, at most `most` characters before escaping: CR, LF, ANSI sequences and anything
    else that is not printable become `\\xNN` or `\\uNNNN`, so does a backslash; what is cut off shows as `…`."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if len(text) > most:
        text, end = text[:most], "…"
    else:
        end = ""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text + end
    return "".join(_escape(char) for char in text) + end


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
