"""What a page holds: its fenced blocks, its headings and its links.

A block's info string is its language and, for files that an example needs, a name: a `yaml unjam.yaml` block is that
file. A `console` block is a session: `$ ` begins a command, `> ` goes on with it, the rest is what it prints.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """`page`: below docs/. `line`: of the fence in it. `name`: of the file it is, empty for none."""

    page: str
    line: int
    language: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a session and the lines it is said to print; none: anything."""

    text: str
    expected: tuple[str, ...]


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def readmes() -> list[Path]:
    """Pages that lie beside what they speak of."""
    return [page for page in (ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))) if page.parent != DOCS]


def name_of(page: Path) -> str:
    """Below docs/; `../README.md` for others."""
    return Path(os.path.relpath(page, DOCS)).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, _, name = match.group(1).strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(name_of(page), line, language, name.strip(), match.group(2)))
    return found


def all_blocks(language: str) -> list[Block]:
    return [block for page in (*pages(), *readmes()) for block in blocks(page) if block.language == language]


def commands(block: Block) -> list[Command]:
    """Raises ValueError for a session that begins with output."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif not found:
            raise ValueError(f"{block}: output before the first command")
        elif line.startswith("> ") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        else:
            found[-1][1].append(line)
    return [Command(text, tuple(expected)) for text, expected in found]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        plain = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        anchor, count = plain, 0
        while anchor in found:
            count += 1
            anchor = f"{plain}-{count}"
        found.add(anchor)
    return found
