"""As much of JSON Schema as the gateway's OpenAPI document uses, written apart from what makes it."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}
_IGNORED = {"title", "description", "default", "format", "discriminator"}


def check(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "$") -> None:
    """Raises AssertionError for a value that doesn't fit, and for a keyword that isn't known here."""
    for keyword, given in schema.items():
        if keyword in _IGNORED:
            continue
        if keyword == "$ref":
            target: Any = root
            for part in given.removeprefix("#/").split("/"):
                target = target[part]
            check(value, target, root, where)
        elif keyword == "anyOf":
            problems = []
            for option in given:
                try:
                    check(value, option, root, where)
                    break
                except AssertionError as problem:
                    problems.append(str(problem))
            else:
                raise AssertionError("; ".join(problems))
        elif keyword == "type":
            assert _is(value, given), f"{where} is {value!r}, not {given}"
        elif keyword == "enum":
            assert value in given, f"{where} is {value!r}, none of {given}"
        elif keyword == "properties":
            for name, inner in given.items():
                if isinstance(value, dict) and name in value:
                    check(value[name], inner, root, f"{where}.{name}")
        elif keyword == "required":
            missing = set(given) - set(value)
            assert not missing, f"{where} lacks {missing}"
        elif keyword == "additionalProperties":
            if given is False:
                assert set(value) <= set(schema["properties"]), f"{where} has {set(value)}"
        elif keyword == "items":
            for place, item in enumerate(value):
                check(item, given, root, f"{where}[{place}]")
        elif keyword in ("minItems", "minLength"):
            assert len(value) >= given, where
        elif keyword in ("maxItems", "maxLength"):
            assert len(value) <= given, where
        elif keyword == "minimum":
            assert value >= given, where
        elif keyword == "maximum":
            assert value <= given, where
        elif keyword == "exclusiveMinimum":
            assert value > given, where
        elif keyword == "pattern":
            assert re.search(given, value), f"{where}: {value!r}"
        else:
            raise AssertionError(f"{keyword} is not known here")


def message(document: dict[str, Any], by: str, value: Any) -> None:
    """Holds one message of a socket against the document. `by`: client or server."""
    check(value, document["paths"]["/v1/ws"]["get"]["x-messages"][by], document)


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def answer(document: dict[str, Any], method: str, path: str, status: int, kind: str | None, body: Any) -> None:
    """Holds one answer against the document. `kind`: its media type; `body`: decoded."""
    template = re.sub(r"^(/v1/runs)/[^/]+", r"\1/{id}", path.partition("?")[0])
    operation = document["paths"][template][method.lower()]
    described = operation["responses"].get(str(status))
    if described is None:
        assert status >= 400, f"{method} {template} answers {status}, which is not described"
        described = operation["responses"]["default"]
    content = described.get("content")
    if content is None:
        assert body is None, f"{method} {template} {status} has a body"
        return
    assert kind in content, f"{method} {template} {status} is {kind}"
    if kind == "application/json":
        check(body, content[kind]["schema"], document)
