"""The documented reasons are the reasons."""

from __future__ import annotations

import re
from pathlib import Path

from unjam.wire.errors import REASONS

ROOT = Path(__file__).parents[2]


def test_every_reason_is_documented_with_its_status() -> None:
    page = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert {reason: (int(status), detail) for reason, status, detail in rows} == REASONS


def test_every_reason_the_codecs_raise_is_in_the_table() -> None:
    for path in (ROOT / "src" / "unjam" / "wire").rglob("*.py"):
        for reason in re.findall(r'Malformed\("(\w+)"', path.read_text(encoding="utf-8")):
            assert reason in REASONS, path.name
