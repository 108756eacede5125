"""From host, path, headers and model to a service: the most specific rule first.

Order: exact host > `*.` host (the longer first) > any host; then the longer path prefix (whole segments); then more
headers; then a model; then the order of the configuration. What host and path alone decide is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unjam.core.service import Service
    from unjam.core.spec import MatchSpec

#: (host, path) pairs remembered in each of two generations.
REMEMBERED: Final = 2048
#: Longer ones are worked out every time: they are rarely asked for twice.
LONGEST: Final = 256


class _Rule:
    """What must hold beside host and path."""

    __slots__ = ("headers", "model", "rank", "service")

    def __init__(self, spec: MatchSpec, service: Service, position: int) -> None:
        self.headers = tuple((name.lower(), value) for name, value in spec.headers.items())
        self.model = spec.model
        self.service = service
        self.rank = (-len(self.headers), self.model is None, position)

    @property
    def always(self) -> bool:
        return not self.headers and self.model is None

    def holds(self, headers: Callable[[str], str | None], model: str | None) -> bool:
        if self.model is not None and model != self.model:
            return False
        for name, wanted in self.headers:
            value = headers(name)
            if value is None or (wanted != "*" and value != wanted):
                return False
        return True


class Matcher:
    """The rules of all services, compiled."""

    __slots__ = ("_any", "_deepest", "_exact", "_older", "_recent", "_wild")

    def __init__(self, services: Sequence[Service]) -> None:
        self._exact: dict[str, dict[str, list[_Rule]]] = {}
        self._wild: dict[str, dict[str, list[_Rule]]] = {}
        self._any: dict[str, list[_Rule]] = {}
        self._deepest = 0
        self._recent: dict[tuple[str, str], tuple[_Rule, ...]] = {}
        self._older: dict[tuple[str, str], tuple[_Rule, ...]] = {}
        position = 0
        for service in services:
            for spec in service.spec.match:
                position += 1
                self._add(spec, _Rule(spec, service, position))

    def match(
        self, host: str, path: str, headers: Callable[[str], str | None], model: str | None = None
    ) -> Service | None:
        """The service, or None. `host`: lower case, without port. `path`: normalised, without query."""
        rules = self._recent.get((host, path))
        if rules is None:
            rules = self._rules(host, path)
        for rule in rules:
            if rule.always or rule.holds(headers, model):
                return rule.service
        return None

    def _rules(self, host: str, path: str) -> tuple[_Rule, ...]:
        """Those that host and path allow, in order, up to the first that asks for nothing more."""
        key = (host, path)
        found = self._older.get(key)
        if found is None:
            kept: list[_Rule] = []
            for rule in self._candidates(host, path):
                kept.append(rule)
                if rule.always:
                    break
            found = tuple(kept)
        if len(host) + len(path) <= LONGEST:
            if len(self._recent) >= REMEMBERED:
                self._older, self._recent = self._recent, {}
            self._recent[key] = found
        return found

    def _candidates(self, host: str, path: str) -> Iterator[_Rule]:
        prefixes = self._prefixes(path)
        for table in self._tables(host):
            for prefix in prefixes:
                yield from table.get(prefix, ())

    def _tables(self, host: str) -> Iterator[dict[str, list[_Rule]]]:
        table = self._exact.get(host)
        if table is not None:
            yield table
        if self._wild:
            dot = host.find(".")
            while dot >= 0:
                table = self._wild.get(host[dot:])
                if table is not None:
                    yield table
                dot = host.find(".", dot + 1)
        yield self._any

    def _prefixes(self, path: str) -> list[str]:
        """Of whole segments, the longest first, no deeper than any rule."""
        ends = []
        end = 0
        for _ in range(self._deepest):
            end = path.find("/", end + 1)
            if end < 0:
                ends.append(len(path.rstrip("/")) if path.endswith("/") else len(path))
                break
            ends.append(end)
        return [path[:end] for end in reversed(ends)] + [""]

    def _add(self, spec: MatchSpec, rule: _Rule) -> None:
        prefix = (spec.path or "").rstrip("/")
        self._deepest = max(self._deepest, prefix.count("/"))
        host = spec.host.lower() if spec.host is not None else None
        if host is None or host == "*":
            table = self._any
        elif host.startswith("*."):
            table = self._wild.setdefault(host[1:], {})
        else:
            table = self._exact.setdefault(host, {})
        rules = table.setdefault(prefix, [])
        rules.append(rule)
        rules.sort(key=lambda rule: rule.rank)
