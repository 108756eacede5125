"""The tables of `docs/configuration.md`, made from the models, so that no key, default or type can be missing there.

`python -m unjam.config.reference docs/configuration.md` writes them between the markers of that file; a test fails when
they differ.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unjam.config.keys import inner_types, model_of
from unjam.config.schema import Config
from unjam.config.types import Kind

_BLOCK = re.compile(r"(<!-- keys: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TOP = "top"


def models() -> dict[str, type[BaseModel]]:
    """Every model by the dotted path of its keys, e.g. `services.<name>.queue`; the top level is `top`."""
    found: dict[str, type[BaseModel]] = {TOP: Config}

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            inner = model_of(info.annotation)
            if inner is not None:
                path = f"{prefix}{name}{_below(info)}"
                found[path] = inner
                walk(inner, f"{path}.")

    walk(Config, "")
    return found


def every_key() -> Iterator[str]:
    """The dotted path of every key, names and list places as `<name>` and `[]`."""
    for path, model in models().items():
        for name in model.model_fields:
            yield name if path == TOP else f"{path}.{name}"


def table(path: str) -> str:
    """The Markdown table of one model."""
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for name, info in models()[path].model_fields.items():
        rows.append(f"| `{name}` | {_type(info)} | {_default(info)} | {info.description} |")
    return "\n".join(rows) + "\n"


def fill(page: str) -> str:
    """`page` with each block between `<!-- keys: PATH -->` and `<!-- end -->` written anew. KeyError: no such path."""
    return _BLOCK.sub(lambda block: block[1] + table(block[2]) + block[3], page)


def _below(info: FieldInfo) -> str:
    origins = {get_origin(part) for part in _parts(info.annotation)}
    return ".<name>" if dict in origins else "[]" if tuple in origins else ""


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        if get_origin(annotation) in (Annotated, dict, tuple) or part is not Ellipsis:
            yield from _parts(part)


def kind_of(info: FieldInfo) -> Kind | None:
    """What a field holds, None for a model."""
    for item in info.metadata:
        if isinstance(item, Kind):
            return item
    annotation = info.annotation
    if get_origin(annotation) is dict:
        annotation = get_args(annotation)[1]
    for part in _parts(annotation):
        for item in getattr(part, "__metadata__", ()):
            if isinstance(item, Kind):
                return item
    return None


def _type(info: FieldInfo) -> str:
    below = _below(info)
    kind = kind_of(info)
    if (inner := model_of(info.annotation)) is not None:
        word = "mapping"
    elif kind is not None:
        word = kind.word
    else:
        word = next(inner_types(info.annotation)).__name__
    if below == "[]":
        return f"list of {word}s" if inner is None else "list"
    if below:
        return "mapping by name" if inner is not None else f"mapping to {word}"
    return word


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    kind = kind_of(info)
    if value is None:
        return "off" if any(type(item).__name__ == "BeforeValidator" for item in info.metadata) else "unset"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple | dict):
        if not value:
            return "none"
        return ", ".join(f"`{getattr(item, 'address', item)}`" for item in value)
    return f"`{kind.show(value) if kind else value}`"


def main(argv: list[str]) -> int:
    for name in argv:
        page = Path(name)
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
