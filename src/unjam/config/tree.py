"""YAML to a tree that remembers lines. The schema decides what a scalar is, not YAML.

Every scalar stays the text that was written, so `1.10`, `no` and `1:30` mean what they look like; only the schema knows
whether a number, a switch or a name belongs there. Duplicate keys, tags and empty values are refused. Anchors and merge
keys work; depth and the number of nodes after expanding them are bounded, so that no file can blow up the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 24
MAX_NODES = 1_000_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_VARIABLE = re.compile(r"\$(?:(\$\{)|\{([^}]*)\}|\{)")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")
_GIVE = "Give it one, indent what belongs to it further than the key, or remove the key."
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong. `line` counts from 1, 0 when there is no file. `key`: dotted path. `fix`: what to do."""

    line: int
    key: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        fix = f" {self.fix}" if self.fix else ""
        return f"{where}{self.message.rstrip('.')}.{fix}"


class ConfigError(Exception):
    """The configuration was refused. `problems`: all that was found, in the order of the file."""

    def __init__(self, problems: list[Problem], name: str = "") -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        self.name = name
        super().__init__("\n".join(self.lines()))

    def lines(self) -> Iterator[str]:
        for problem in self.problems:
            place = ":".join(part for part in (self.name, str(problem.line) if problem.line else "") if part)
            yield f"{place}: {problem}" if place else str(problem)


@dataclass(slots=True)
class Node:
    """`value`: text, None where nothing is written, a list of nodes, or a dict of key → (line of the key, node)."""

    line: int
    value: str | list[Node] | dict[str, tuple[int, Node]] | None


def key_text(path: Path) -> str:
    """`("services", "a", "endpoints", 1)` → `services.a.endpoints[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def line_of(root: Node, path: Path, of_key: bool = False) -> int:
    """The line where `path` is written, or where its nearest written ancestor is.

    Parts that the file does not have are skipped: `match: {…}` answers for `match[0]`.
    """
    node, line = root, root.line
    for part in path:
        value = node.value
        if isinstance(value, dict) and isinstance(part, str) and part in value:
            line, node = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            node = value[part]
            line = node.line
        elif not isinstance(part, int):
            break
    return line if of_key or isinstance(node.value, dict | list) else max(line, node.line)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def written(root: Node, path: Path) -> Path:
    """`path` as the file has it: shorthand leaves parts out, such as the 0 of a list of one."""
    node, parts = root, list[str | int]()
    for place, part in enumerate(path):
        value = node.value
        if isinstance(value, dict):
            if isinstance(part, int):
                continue
            if part not in value:
                return (*parts, *path[place:])
            parts.append(part)
            node = value[part][1]
        elif isinstance(value, list):
            parts.append(part)
            if not isinstance(part, int) or part >= len(value):
                return (*parts, *path[place + 1 :])
            node = value[part]
        elif not isinstance(part, int):
            break
    return tuple(parts)


class _Builder:
    """Nodes from the parser's events, without recursion into the YAML library."""

    def __init__(self, events: Iterator[Any], problems: list[Problem]) -> None:
        self.events = events
        self.problems = problems
        self.anchors: dict[str, Node] = {}
        self.open: set[str] = set()

    def document(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    line = _line(event)
                    raise ConfigError(
                        [Problem(line, "", "a second document begins here", "Keep one document per file.")]
                    )
                root = self.node(next(self.events), ())
        return root if root is not None else Node(1, None)

    def node(self, event: Any, path: Path) -> Node:
        line = _line(event)
        if len(path) > MAX_DEPTH:
            raise ConfigError([Problem(line, key_text(path), "is nested too deeply", f"At most {MAX_DEPTH} levels.")])
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                why = "refers to itself" if event.anchor in self.open else "is not defined above this line"
                raise ConfigError([Problem(line, key_text(path), f"the anchor *{event.anchor} {why}")])
            return Node(line, self.anchors[event.anchor].value)
        if event.tag is not None and event.tag != "!":
            fix = "Remove it: unjam reads each value by its key."
            self.problems.append(Problem(line, key_text(path), "has a YAML tag", fix))
        if event.anchor:
            self.open.add(event.anchor)
        built = self.content(event, line, path)
        if event.anchor:
            self.anchors[event.anchor] = built
        return built

    def content(self, event: Any, line: int, path: Path) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style is None or event.style == ""
            return Node(line, None if plain and event.value in _NULLS else str(event.value))
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(event, (*path, len(items))))
            return Node(line, items)
        return Node(line, self.mapping(path))

    def mapping(self, path: Path) -> dict[str, tuple[int, Node]]:
        entries: dict[str, tuple[int, Node]] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise ConfigError(
                    [Problem(line, key_text(path), "has a key that is not text", "Keys are plain names.")]
                )
            key = str(event.value)
            value = self.node(next(self.events), (*path, key))
            if not key.isprintable():
                self.problems.append(Problem(line, key_text(path), "has a key with a control character", "Remove it."))
            elif key == "<<" and not event.style:
                merged.extend(value.value if isinstance(value.value, list) else [value])
            elif key in entries:
                first = entries[key][0]
                fix = f"It is first given on line {first}: keep one of the two."
                self.problems.append(Problem(line, key_text((*path, key)), "is given twice", fix))
            else:
                entries[key] = (line, value)
        for other in merged:
            if not isinstance(other.value, dict):
                fix = "Write <<: *name, where &name marks a mapping."
                self.problems.append(Problem(other.line, key_text((*path, "<<")), "can only merge mappings", fix))
                continue
            for key, entry in other.value.items():
                entries.setdefault(key, entry)
        return entries


def read_tree(text: str, problems: list[Problem]) -> Node:
    """The tree of `text`. What can be passed over is added to `problems`; what cannot raises `ConfigError`."""
    if len(text) > MAX_BYTES:
        raise ConfigError([Problem(1, "", f"the file is larger than {MAX_BYTES >> 20} MiB")])
    try:
        return _Builder(yaml.parse(text, Loader=_LOADER), problems).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fix = "Remove control characters; save the file as UTF-8."
        raise ConfigError([Problem(line, "", "has a character that YAML does not allow", fix)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        fix = "Check the indentation, the quotes and the colons here and on the line above."
        if error.problem and "found character" in error.problem and "\\t" in error.problem:
            fix = "Indent with spaces: YAML does not allow tabs."
        line = mark.line if mark else 0
        if any("${" in near for near in text.splitlines()[max(0, line - 1) : line + 1]):
            fix = 'Inside { } and [ ], put quotes around a variable: "${NAME}".'
        raise ConfigError([Problem(line + 1, "", f"is not valid YAML: {what}", fix)]) from None


def to_data(root: Node, env: Mapping[str, str], problems: list[Problem]) -> Any:
    """Plain dicts, lists and text, variables expanded. What could not be read is in `problems`."""
    budget = MAX_NODES

    def convert(node: Node, path: Path) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0 or len(path) > MAX_DEPTH:
            raise ConfigError([Problem(node.line, key_text(path), "anchors expand to too much", "Use fewer of them.")])
        value = node.value
        if isinstance(value, dict):
            return {key: convert(child, (*path, key)) for key, (_, child) in value.items()}
        if isinstance(value, list):
            return [convert(child, (*path, place)) for place, child in enumerate(value)]
        if value is None:
            problems.append(Problem(node.line, key_text(path), "has no value", _GIVE))
            return ""
        try:
            value = expand(value, env)
        except LookupError as error:
            name = str(error.args[0])
            fix = f"Set {name}, or give a default: ${{{name}:-value}}."
            problems.append(Problem(node.line, key_text(path), f"the environment variable {name} is not set", fix))
        except ValueError as error:
            fix = "Write ${NAME} or ${NAME:-default}; $${ is a plain ${."
            problems.append(Problem(node.line, key_text(path), str(error), fix))
        if _CONTROL.search(value):
            fix = "Remove it (a variable may end in a stray carriage return)."
            problems.append(Problem(node.line, key_text(path), "contains a control character", fix))
        return value

    return convert(root, ())


def expand(text: str, env: Mapping[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}` (also used when NAME is empty), `$${` for a plain `${`.

    Raises LookupError(name) when a variable is missing, ValueError when the spelling is wrong.
    """
    if "${" not in text:
        return text

    def one(found: re.Match[str]) -> str:
        if found[1]:
            return "${"
        name, dash, default = (found[2] or "").partition(":-")
        if not _VARIABLE_NAME.match(name):
            raise ValueError("has a ${...} that names no variable")
        if dash:
            return env.get(name) or default
        if name not in env:
            raise LookupError(name)
        return env[name]

    return _VARIABLE.sub(one, text)
