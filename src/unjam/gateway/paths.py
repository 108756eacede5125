"""Which paths the gateway answers itself, and how: looked at only for requests of a kind not met before.

A path belongs to the gateway by its second segment (`/v1/runs/…`), or alone (`/v1/requests/*/verdict`), or for some
methods and ids only (`/v1/responses/…`); everything else below `/v1/` is the services'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from unjam.gateway.local import Handler, LocalExchange, Refused

if TYPE_CHECKING:
    from unjam.gateway.auth import Tenant
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.exchange import Exchange
    from unjam.wire.http1 import RequestHead

#: Bytes of a body where nothing of size is expected.
SMALL = 65536


class Local(NamedTuple):
    """`most`: bytes of the body, asked for at each request. `worker`: only for keys of that role. `ours`: see
    `Paths.add`."""

    handler: Handler
    most: Callable[[], int]
    worker: bool
    ours: Callable[[str], bool] | None


#: Takes the connection itself, before any body; None: it is answered or has another owner, see `Gateway.route`.
Taker = Callable[["ClientConnection", "RequestHead", bytes, float, "Tenant | None"], "Exchange | None"]


class Paths:
    """`add` and `take` say what is there, `begin` finds it."""

    def __init__(self) -> None:
        self._local: dict[str, dict[str, Local]] = {}
        self._taken: dict[str, Taker] = {}
        #: Those of them that find out by themselves who calls, if the head doesn't say.
        self.asking: set[str] = set()
        self._nouns: set[str] = set()
        self._alone = False

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        most: Callable[[], int] = lambda: SMALL,
        worker: bool = False,
        alone: bool = False,
        ours: Callable[[str], bool] | None = None,
    ) -> None:
        """`path`: below `/v1/`; its third segment may be `*`: any. `alone`: others that begin like it are the
        services'. `ours`: also those of this very path of which it is not so, and other methods."""
        if alone or ours is not None:
            self._alone = True
        else:
            self._nouns.add(path.split("/")[2])
        self._local.setdefault(path, {})[method] = Local(handler, most, worker, ours)

    def take(self, path: str, taker: Taker, asks: bool = False) -> None:
        """Requests of `path` are the taker's, whatever their method. `asks`: where keys are configured, those without
        one reach it too, with the caller `auth.NOBODY`."""
        if asks:
            self.asking.add(path)
        self._nouns.add(path.split("/")[2])
        self._taken[path] = taker

    def owns(self, method: str, path: str) -> bool:
        """Whether the gateway answers this itself."""
        if not path.startswith("/v1/"):
            return False
        if path[4:].partition("/")[0] in self._nouns:
            return True
        methods = self._find(path) if self._alone else {}
        local = methods.get("GET" if method == "HEAD" else method)
        if local is None:  # answered 405, where no method is the services'
            return bool(methods) and all(each.ours is None for each in methods.values())
        return local.ours is None or local.ours(path)

    def begin(
        self, client: ClientConnection, head: RequestHead, request_id: bytes, now: float, caller: Tenant | None
    ) -> LocalExchange | Exchange | None:
        """The exchange for a path that is owned."""
        taker = self._taken.get(head.path)
        if taker is not None:
            return taker(client, head, request_id, now, caller)
        methods = self._find(head.path)
        local = methods.get("GET" if head.method == "HEAD" else head.method)
        exchange = LocalExchange(client, head, request_id, now, caller)
        if not methods:
            exchange.refusal = Refused(404, "not_found", "There is nothing here. GET /v1/openapi.json lists the paths.")
        elif local is None:
            allow = ", ".join(sorted(methods))
            exchange.refusal = Refused(
                405, "method_not_allowed", f"Use {allow}.", lines=b"allow: %b\r\n" % allow.encode("ascii")
            )
        elif local.worker and caller is not None and not caller.worker:
            client.gateway.stats.reject("forbidden")
            exchange.refusal = Refused(403, "forbidden", "This call needs an API key with role: worker.")
        else:
            exchange.handler = local.handler
            exchange.most = local.most()
        return exchange

    def _find(self, path: str) -> dict[str, Local]:
        found = self._local.get(path)
        if found is None:
            segments = path.split("/")
            if len(segments) > 3 and segments[3]:
                segments[3] = "*"
                found = self._local.get("/".join(segments))
        return found or {}
