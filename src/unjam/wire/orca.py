"""ORCA load reports in a response header: `endpoint-load-metrics`, in its text and JSON formats.

The figures are those of `xds.data.orca.v3.OrcaLoadReport`, flat, under the names that the text format gives them:
`cpu_utilization`, `mem_utilization`, `application_utilization`, `rps_fractional`, `rps` (deprecated), `eps`,
`named_metrics.NAME`, `utilization.NAME`, `request_cost.NAME`. What is read is bounded (`MOST_BYTES`, `MOST_FIGURES`).
A value of which one part is wrong is refused whole, as Envoy does: half a report would be believed like a whole one.
The bounds on values are those of the protobuf definition and of gRPC's A51. The binary format is not read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

HEADER: Final = b"endpoint-load-metrics"

MOST_BYTES: Final = 4096
MOST_FIGURES: Final = 64

#: Plain figures: the most each may be, None where there is no bound. `cpu_utilization` may be above 1 (soft limits).
_PLAIN: Final[dict[str, float]] = {
    "cpu_utilization": math.inf,
    "mem_utilization": 1.0,
    "application_utilization": math.inf,
    "rps_fractional": math.inf,
    "rps": math.inf,
    "eps": math.inf,
}
#: Maps of figures: the least and the most each value may be.
_MAPS: Final[dict[str, tuple[float, float]]] = {
    "named_metrics": (-math.inf, math.inf),
    "utilization": (0.0, 1.0),
    "request_cost": (-math.inf, math.inf),
}
#: The JSON of protobuf names fields in camel case; its readers take both.
_CAMEL: Final = {
    re.sub("_([a-z])", lambda found: found[1].upper(), name): name for name in (*_PLAIN, *_MAPS) if "_" in name
}

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch
#: What can stand in the text format without being taken for its punctuation.
_NAME = re.compile(r"[A-Za-z0-9_./:%()\[\]{}@*+-]{1,128}").fullmatch

#: Figures of a load report that travel as `named_metrics.NAME`; those that count things or bytes are whole.
_NAMED: Final = (
    "in_flight",
    "waiting",
    "cores",
    "memory",
    "memory_free",
    "agent_cpu",
    "agent_memory",
    "cache",
    "pressure",
    "memory_pressure",
    "run_queue",
    "open_files",
    "slots",
)
_WHOLE: Final = frozenset({"in_flight", "waiting", "memory", "memory_free", "agent_memory", "open_files", "slots"})
#: What inference engines call them: vLLM, Triton.
_ENGINES: Final = {
    "kv_cache_usage_perc": "cache",
    "kv_cache_utilization": "cache",
    "num_requests_waiting": "waiting",
}


class BadLoad(ValueError):
    """The value is not an ORCA report; the text says why, and quotes no more of the value than one checked name."""


def parse(value: bytes) -> dict[str, float]:
    """The figures of an `endpoint-load-metrics` value: `TEXT name=value, …`, `JSON {…}` or the bare JSON object.

    A report without figures is none the worse for it (vLLM sends one before its first request). Raises `BadLoad`.
    """
    if len(value) > MOST_BYTES:
        raise BadLoad(f"more than {MOST_BYTES} bytes")
    try:
        text = value.decode("ascii").strip(" \t")
    except UnicodeDecodeError:
        raise BadLoad("not ASCII") from None
    if text.startswith("{"):
        return _collect(_from_json(text))
    kind, _, rest = text.partition(" ")
    if kind == "TEXT":
        return _collect(_from_text(rest))
    if kind == "JSON":
        return _collect(_from_json(rest))
    if kind == "BIN":
        raise BadLoad("the binary format is not read here: use TEXT or JSON")
    raise BadLoad("neither TEXT nor JSON nor a JSON object")


def to_text(figures: Mapping[str, float]) -> str:
    """The header's value in the text format. Raises `BadLoad` for what `parse` would refuse."""
    return _bounded("TEXT " + ", ".join(f"{name}={_written(value)}" for name, value in _checked(figures).items()))


def to_json(figures: Mapping[str, float]) -> str:
    """The header's value in the JSON format. Raises `BadLoad` for what `parse` would refuse."""
    said: dict[str, Any] = {}
    for name, value in _checked(figures).items():
        number = int(value) if _is_whole(value) else value
        group, dot, rest = name.partition(".")
        if dot:
            said.setdefault(group, {})[rest] = number
        else:
            said[name] = number
    return _bounded("JSON " + json.dumps(said, separators=(",", ":")))


def report(figures: Mapping[str, float]) -> dict[str, Any]:
    """What a load report (`LoadReport`) says of these figures, by the report's names; what it has no place for is left.

    `cpu_utilization` above 1 is all of the CPU. `mem_utilization` needs `named_metrics.memory` to be worth bytes, and
    `named_metrics.memory_free` is better. Counts are rounded to whole numbers. Whether the result can be true is not
    judged here.
    """
    fields: dict[str, Any] = {}
    if (cpu := figures.get("cpu_utilization")) is not None:
        fields["cpu"] = min(1.0, cpu)
    for theirs, name in _ENGINES.items():
        if (value := figures.get("named_metrics." + theirs)) is not None:
            fields[name] = round(value) if name in _WHOLE else value
    for name in _NAMED:
        if (value := figures.get("named_metrics." + name)) is not None:
            fields[name] = round(value) if name in _WHOLE else value
    used = figures.get("mem_utilization")
    if used is not None and "memory" in fields and "memory_free" not in fields:
        fields["memory_free"] = round(fields["memory"] * (1.0 - used))
    return fields


def figures(load: Mapping[str, Any]) -> dict[str, float]:
    """The figures for a load (names as in a report's `load` object); what ORCA has no place for is left out.

    `report(figures(load))` gives those of `load` back.
    """
    said: dict[str, float] = {}
    if (cpu := load.get("cpu")) is not None:
        said["cpu_utilization"] = float(cpu)
    memory, free = load.get("memory"), load.get("memory_free")
    if memory and free is not None:
        said["mem_utilization"] = min(1.0, max(0.0, 1.0 - free / memory))
    for name in _NAMED:
        if (value := load.get(name)) is not None:
            said["named_metrics." + name] = float(value)
    return said


def _from_text(text: str) -> Iterable[tuple[str, float]]:
    if not text.strip(" \t"):
        return
    for item in text.split(","):
        # `name: value` is how Envoy had it first.
        name, separator, number = item.partition("=" if "=" in item else ":")
        name, number = name.strip(" \t"), number.strip(" \t")
        if not separator or not name:
            raise BadLoad("an item is not name=value")
        if _NAME(name) is None:
            raise BadLoad("a name holds a character that is not allowed, or is too long")
        yield name, _number(name, number)


def _from_json(text: str) -> Iterable[tuple[str, float]]:
    try:
        whole = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise BadLoad("not JSON") from None
    if not isinstance(whole, _Pairs):
        raise BadLoad("the JSON is not an object")
    groups: set[str] = set()
    for key, value in whole:
        key = _CAMEL.get(key, key)
        if key not in _MAPS:
            if value is not None:
                yield key, _json_number(key, value)
            continue
        if key in groups:
            raise BadLoad(f"{key} occurs twice")
        groups.add(key)
        if value is not None and not isinstance(value, _Pairs):
            raise BadLoad(f"{key} is not an object")
        for name, number in value or ():
            yield f"{key}.{name}", _json_number(f"{key}.{name}", number)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a name that occurs twice must be seen."""


def _not_json(constant: str) -> float:
    raise BadLoad("not JSON")


def _json_number(name: str, value: Any) -> float:
    if isinstance(value, str):  # the JSON of protobuf allows it, and writes whole numbers of 64 bits so
        return _number(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLoad(f"{_shown(name)} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise BadLoad(f"{_shown(name)} is not a finite number") from None


def _number(name: str, text: str) -> float:
    if _NUMBER(text) is None:
        raise BadLoad(f"{_shown(name)} is not a number")
    return float(text)


def _collect(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in pairs:
        _check(name, value)
        if name in found:
            raise BadLoad(f"{name} occurs twice")
        found[name] = value
        if len(found) > MOST_FIGURES:
            raise BadLoad(f"more than {MOST_FIGURES} figures")
    return found


def _check(name: str, value: float) -> None:
    """Raises `BadLoad` unless ORCA has a figure of this name, and this is a value of it."""
    group, dot, rest = name.partition(".")
    if dot and group in _MAPS:
        if not rest or _NAME(name) is None:
            raise BadLoad(f"a name in {group} is empty, too long or holds a character that is not allowed")
        least, most = _MAPS[group]
    elif name in _PLAIN:
        least, most = 0.0, _PLAIN[name]
    else:
        raise BadLoad(f"ORCA has no figure named {_shown(name)}")
    if not math.isfinite(value):
        raise BadLoad(f"{name} is not a finite number")
    if value < least:
        raise BadLoad(f"{name} is less than {least:g}")
    if value > most:
        raise BadLoad(f"{name} is more than {most:g}")


def _checked(figures: Mapping[str, float]) -> Mapping[str, float]:
    if len(figures) > MOST_FIGURES:
        raise BadLoad(f"more than {MOST_FIGURES} figures")
    for name, value in figures.items():
        _check(name, value)
    return figures


def _bounded(value: str) -> str:
    if len(value) > MOST_BYTES:
        raise BadLoad(f"more than {MOST_BYTES} bytes")
    return value


def _shown(name: str) -> str:
    return name if _NAME(name) is not None else "(a name that is not allowed)"


def _is_whole(value: float) -> bool:
    return value == int(value) and abs(value) <= 1 << 53


def _written(value: float) -> str:
    return str(int(value)) if _is_whole(value) else repr(float(value))
