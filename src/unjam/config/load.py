"""From a file, a text or a list of URLs to a `Config`, or to a `ConfigError` that lists every problem with its line.

Nothing is defaulted silently: a configuration with any problem is refused whole, so a reload keeps the old one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from unjam.config import checks, keys
from unjam.config.quantities import BadValue, kind
from unjam.config.schema import Config
from unjam.config.services import Service
from unjam.config.tree import (
    MAX_BYTES,
    ConfigError,
    Node,
    Path,
    Problem,
    key_text,
    line_of,
    read_tree,
    to_data,
    written,
)

#: The name of the only service of `from_urls`, and of its version.
DEFAULT_SERVICE = "default"
DEFAULT_VERSION = "v1"


def load(path: FilePath, env: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration in `path`. Files it names are relative to its folder. `overrides`: top-level keys that the
    command line gives instead. Raises `ConfigError`."""
    name = str(path)
    try:
        with open(path, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise ConfigError(
            [Problem(0, "", f"cannot be read: {why}", "Check the path and its permissions.")], name
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(line, "", "is not UTF-8", "Save the file as UTF-8.")], name) from None
    return parse(text, os.environ if env is None else env, name, path.parent, overrides)


def parse(
    text: str,
    env: Mapping[str, str],
    name: str = "",
    base: FilePath | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration in `text`. `base`: the folder that relative files start from, the current one when None.

    Raises `ConfigError`.
    """
    problems: list[Problem] = []
    unreadable: list[Problem] = []
    try:
        root = read_tree(text, problems)
        if not isinstance(root.value, dict):
            what = "is empty" if root.value in (None, "") else f"must be a mapping of keys, not {kind(root.value)}"
            raise ConfigError([Problem(root.line, "", what, "Begin with `services:`.")])
        data = to_data(root, env, unreadable)
    except ConfigError as error:
        raise ConfigError([*problems, *unreadable, *error.problems], name) from None
    source = _Source(root, name, base, frozenset(overrides or ()), {found.key for found in unreadable if found.key})
    return _build(data, overrides or {}, source, [*problems, *unreadable])


def from_urls(urls: Iterable[str | Mapping[str, Any]], **overrides: Any) -> Config:
    """One service over `urls` (or endpoint mappings), as `unjam serve --to` makes it.

    `overrides`: other top-level keys or keys of the service, in the file's form or as Python values (numbers are
    seconds and bytes). Raises `ConfigError`.
    """
    listed = [dict(url) if isinstance(url, Mapping) else url for url in urls]
    if not listed:
        raise ConfigError([Problem(0, "", "no endpoint is given", "Give at least one: --to http://127.0.0.1:9001.")])
    own = {key: overrides.pop(key) for key in list(overrides) if key in Service.model_fields}
    data = {"services": {DEFAULT_SERVICE: {"versions": {DEFAULT_VERSION: {"endpoints": listed}}, **own}}}
    return _build(data, overrides, _Source(None, "", None, frozenset(), set()), [])


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a configuration came from. `root` None: not from a text. `overridden`: keys that the text does not decide.
    `unreadable`: places whose value is already reported."""

    root: Node | None
    name: str
    base: FilePath | None
    overridden: frozenset[str]
    unreadable: set[str]

    def problem(self, path: Path, message: str, fix: str, of_key: bool = False) -> Problem:
        if self.root is None or (path and path[0] in self.overridden):
            return Problem(0, key_text(path), message, fix)
        return Problem(line_of(self.root, path, of_key), key_text(written(self.root, path)), message, fix)

    def fresh(self, found: Problem) -> bool:
        """One problem per place: a value that could not be expanded is not also blamed for being empty."""
        return not any(found.key == key or found.key.startswith((f"{key}.", f"{key}[")) for key in self.unreadable)


def _build(data: Any, overrides: Mapping[str, Any], source: _Source, problems: list[Problem]) -> Config:
    if source.base is not None:
        _resolve_files(data, source.base)
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            data[key] = {**data[key], **value}
        else:
            data[key] = value
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = [_explain(details, data, source) for details in error.errors(include_url=False, include_input=False)]
        problems = [*problems, *filter(source.fresh, found)]
        raise ConfigError(_unique(problems), source.name) from None
    found = [source.problem(*finding) for finding in checks.errors(config)]
    problems = [*problems, *filter(source.fresh, found)]
    if problems:
        raise ConfigError(_unique(problems), source.name)
    noticed = [source.problem(*finding) for finding in checks.warnings(config)]
    config._warnings = tuple(sorted(noticed, key=lambda one: one.line))
    config._name = source.name
    return config


def _explain(details: ErrorDetails, data: Any, source: _Source) -> Problem:
    """pydantic's finding in our words."""
    loc = tuple(part for part in details["loc"] if part != "[key]")
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, BadValue):
        return source.problem(loc, cause.message, cause.fix, details["loc"][-1:] == ("[key]",))
    kinds = {"extra_forbidden": _extra, "missing": _missing}
    if (explain := kinds.get(details["type"])) is not None:
        message, fix = explain(loc)
        return source.problem(loc, message, fix, True)
    value = _value_at(data, loc)
    if details["type"] in ("model_type", "dict_type", "model_attributes_type"):
        fix = keys.example(loc)
        return source.problem(loc, f"must be a mapping of keys, not {kind(value)}", fix)
    if details["type"] in ("tuple_type", "list_type"):
        return source.problem(loc, f"must be a list, not {kind(value)}", keys.example(loc))
    return source.problem(loc, f"is not accepted: {details['msg'].lower()}", "")


def _extra(loc: Path) -> tuple[str, str]:
    return f"there is no key {loc[-1]} here", keys.suggestion(loc)


def _missing(loc: Path) -> tuple[str, str]:
    return "is required", keys.missing(loc)


def _value_at(data: Any, loc: Path) -> Any:
    for part in loc:
        inside = isinstance(part, int) and part < len(data) if isinstance(data, list | tuple) else False
        if inside or (isinstance(data, dict) and part in data):
            data = data[part]
    return data


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _resolve_files(data: Any, base: FilePath) -> None:
    """Makes the files that `data` names relative to `base`, in place. Values of the wrong shape are left alone."""
    for holder, key in keys.files(data):
        value = holder[key]
        if isinstance(value, str) and value and not os.path.isabs(value):
            holder[key] = str(base / value)
    state = data.get("state") if isinstance(data, dict) else None
    if isinstance(state, str) and state.startswith("sqlite:"):
        path = state.removeprefix("sqlite:")
        # See `schema.parse_state`: three slashes are relative, four absolute.
        path = path[3:] if path.startswith("///") else path
        if path and not os.path.isabs(path):
            data["state"] = f"sqlite:{base / path}"
