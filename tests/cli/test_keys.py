"""`unjam hash-key`: what goes into `keys:`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from typer.testing import Result

from unjam.cli.keys import hash_of, new_key
from unjam.config import from_urls

Unjam = Callable[..., Result]

LONG = "a-key-of-more-than-twenty-letters"


def test_a_piped_key_is_hashed(unjam: Unjam) -> None:
    result = unjam("hash-key", stdin=f"{LONG}\n")
    assert result.exit_code == 0
    assert result.stdout == f"sha256:{hashlib.sha256(LONG.encode()).hexdigest()}\n"
    assert result.stderr == ""


def test_a_short_key_is_warned_of(unjam: Unjam) -> None:
    result = unjam("hash-key", stdin="hunter2\n")
    assert result.exit_code == 0
    assert "can be guessed" in result.stderr
    assert "hunter2" not in result.output


def test_what_is_no_key(unjam: Unjam) -> None:
    for stdin in ("", "\n", "with space at the end \n", "ü" * 30):
        result = unjam("hash-key", stdin=stdin)
        assert result.exit_code == 1
        assert result.stdout == ""


def test_a_new_key(unjam: Unjam) -> None:
    lines = dict(line.split() for line in unjam("hash-key", "--generate").stdout.splitlines())
    assert lines["hash:"] == hash_of(lines["key:"])
    assert new_key() != new_key()


def test_what_it_prints_is_what_the_configuration_takes() -> None:
    config = from_urls(["http://h"], keys=[{"hash": hash_of(LONG), "tenant": "acme"}])
    assert config.keys[0].digest == hashlib.sha256(LONG.encode()).digest()
