"""From a request's head to its service and bucket: looked up once per kind of request, then remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.gateway import features

if TYPE_CHECKING:
    from unjam.core.balancer import Balancer
    from unjam.core.service import Service
    from unjam.telemetry.metrics import GatewayStats, ServiceStats
    from unjam.wire.http1 import RequestHead

#: Entries of the memo before it is emptied: paths are the callers' to choose.
MOST = 4096


class Route:
    """Where requests of one kind go. `plain`: nothing but the head's kind decides, so no header or body is looked at.
    `prefix`: characters of the path that the endpoint doesn't see."""

    __slots__ = ("bucket", "plain", "prefix", "service", "stats")

    def __init__(self, service: Service, bucket: str, stats: ServiceStats, plain: bool, prefix: int) -> None:
        self.service = service
        self.bucket = bucket
        self.stats = stats
        self.plain = plain
        self.prefix = prefix


class Router:
    """Asks the balancer's matcher, and remembers what depends on nothing but method, host, path and size class."""

    __slots__ = ("_balancer", "_memoise", "_stats", "by_model", "known")

    def __init__(self, balancer: Balancer, stats: GatewayStats) -> None:
        self._balancer = balancer
        self._stats = stats
        self._memoise = True
        #: Some service is chosen by the model named in the body.
        self.by_model = False
        #: (method, host, path, bits of the length) → route; read by the hot path.
        self.known: dict[tuple[str, str, str, int], Route] = {}

    def changed(self) -> None:
        """The topology is another one: everything is looked up anew."""
        matches = [match for service in self._balancer.services.values() for match in service.spec.match]
        self._memoise = not any(match.headers for match in matches)
        self.by_model = any(match.model is not None for match in matches)
        self.known.clear()

    def find(self, head: RequestHead, key: tuple[str, str, str, int]) -> Route | None:
        """The route of a request of a kind not seen before; None when no service has this address."""
        service = self.match(head, None)
        if service is None:
            if not self.by_model or not head.has_body:
                return None
            service = next(iter(self._balancer.services.values()))  # until the body says which
        route = self.route(head, service)
        if self._memoise:
            if len(self.known) >= MOST:
                self.known.clear()
            self.known[key] = route
        return route

    def match(self, head: RequestHead, model: str | None) -> Service | None:
        def header(name: str) -> str | None:
            value = head.get(name.lower().encode("ascii"))
            return None if value is None else value.decode("latin-1")

        return self._balancer.match(head.host, head.path, header, model)

    def route(self, head: RequestHead, service: Service) -> Route:
        """The route of this request to a service that has been settled on."""
        prefix = prefix_of(service, head.path)
        bucket = features.bucket(head.method, head.path, prefix, None if head.chunked else head.length or 0)
        spec = service.spec
        plain = (
            spec.session is None
            and spec.sticky is None
            and not spec.split
            and spec.inspect != "body"
            and not self.by_model
        )
        stats = self._stats.service(service.name)
        return Route(service, bucket, stats, plain, len(prefix) if spec.strip_prefix else 0)


def prefix_of(service: Service, path: str) -> str:
    """The longest path prefix of the service that `path` lies under; empty when it has none."""
    best = ""
    for match in service.spec.match:
        prefix = (match.path or "").rstrip("/")
        if len(prefix) > len(best) and (path == prefix or path.startswith(prefix + "/")):
            best = prefix
    return best
