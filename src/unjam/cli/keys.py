"""API keys on the command line: made, read without echo, hashed."""

from __future__ import annotations

import getpass
import hashlib
import secrets
import sys

from unjam.cli.trouble import CliError, say

#: A plain SHA-256 protects only what cannot be guessed: 32 random bytes can't, a word can.
SHORT = 20


def new_key() -> str:
    """256 random bits, recognisable to secret scanners."""
    return f"unjam_{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def read_key() -> str:
    """From the terminal without echo, else the first line of standard input. Raises `CliError`."""
    try:
        key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline(65536).rstrip("\r\n")
    except EOFError:
        key = ""
    if not key:
        raise CliError("no key was given: type it, or pipe it in: printf %s KEY | unjam hash-key.")
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise CliError("a key travels in a header: use visible ASCII without spaces at its ends.")
    if len(key) < SHORT:
        say(f"warning: a key of fewer than {SHORT} characters can be guessed from its hash; use --generate.")
    return key
