"""Where a Redis is, as a URL says it, and how to open a connection to it.

    redis://[user:password@]host[:port][/db]           rediss:// with TLS
    unix://[user:password@]/path/of/socket[?db=0]
    redis+sentinel://host[:port],host.../service[/db]  rediss+sentinel://
    redis+cluster://host[:port],host...                rediss+cluster://

Query: `prefix` of all keys (default `unjam:`), `replicas` that must have what is acknowledged (default 0), `patience`
in seconds (default 2) that a call waits for a server that doesn't answer, `sentinel_username` and `sentinel_password`,
and of TLS `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths), `ssl_check_hostname` (true). Anything else is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

#: host and port, or the path of a socket and 0
Address = tuple[str, int]

_PREFIX: Final = re.compile(r"[A-Za-z0-9:_.-]{0,64}")
_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_KNOWN: Final = frozenset({"prefix", "replicas", "patience", "db", "sentinel_username", "sentinel_password", *_TLS})


@dataclass(frozen=True)
class Place:
    """`kind`: one server, one found by its sentinels, or a cluster. `tls`: arguments of connections, None without."""

    kind: Literal["one", "sentinel", "cluster"]
    addresses: tuple[Address, ...]
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] | None = field(default=None, repr=False)
    prefix: str = "unjam:"
    replicas: int = 0
    patience: float = 2.0

    def shown(self) -> str:
        """For people; without names and passwords."""
        hosts = ",".join(named(address) for address in self.addresses)
        return f"{hosts} ({self.service})" if self.service else hosts

    def in_the_open(self) -> list[str]:
        """Hosts beyond this machine that are spoken to without TLS."""
        if self.tls is not None:
            return []
        return [host for host, port in self.addresses if port and not _loopback(host)]

    def connection(self, address: Address, *, sentinel: bool = False) -> AbstractConnection:
        """Not opened yet. redis-py's own time limits on reading are off: an idle subscription is no failure, and a
        command's patience is the link's."""
        host, port = address
        common: dict[str, Any] = {
            "username": self.sentinel_username if sentinel else self.username,
            "password": self.sentinel_password if sentinel else self.password,
            "db": 0 if sentinel else self.db,
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": self.patience,
            "retry": Retry(NoBackoff(), 0),
            "client_name": "unjam",
            "driver_info": None,
            "health_check_interval": 0,
        }
        if not port:
            return UnixDomainSocketConnection(path=host, **common)
        common.update(host=host, port=port, socket_keepalive=True)
        return Connection(**common) if self.tls is None else SSLConnection(**common, **self.tls)


def named(address: Address) -> str:
    host, port = address
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(url: str) -> Place:
    """Raises ValueError, in words that don't repeat the password."""
    scheme, _, rest = url.partition("://")
    kinds: dict[str, tuple[Literal["one", "sentinel", "cluster"], bool]] = {
        "redis": ("one", False),
        "rediss": ("one", True),
        "unix": ("one", False),
        "redis+sentinel": ("sentinel", False),
        "rediss+sentinel": ("sentinel", True),
        "redis+cluster": ("cluster", False),
        "rediss+cluster": ("cluster", True),
    }
    if not rest or scheme not in kinds:
        raise ValueError(f"the store's URL must begin with one of {', '.join(f'{known}://' for known in kinds)}")
    kind, tls = kinds[scheme]
    parts = urlsplit("//" + rest)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := query.keys() - _KNOWN:
        raise ValueError(f"the store's URL has an unknown option: {', '.join(sorted(unknown))}")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    path = [unquote(piece) for piece in parts.path.split("/") if piece]
    service = ""
    if scheme == "unix":
        addresses: tuple[Address, ...] = (((unquote(hosts + parts.path)), 0),)
        path = []
    else:
        addresses = tuple(_address(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(","))
    if kind == "sentinel":
        if not path:
            raise ValueError("the store's URL must name the sentinels' service: redis+sentinel://host/service")
        service = path.pop(0)
    db = query.get("db", path.pop(0) if path else "0")
    if path or not db.isdigit():
        raise ValueError("the store's URL has a path that is no number of a database")
    if kind == "cluster" and (int(db) or len(addresses[0]) == 0):
        raise ValueError("a Redis Cluster has database 0 only")
    prefix = query.get("prefix", "unjam:")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("prefix must be at most 64 letters, digits and any of : _ . -")
    return Place(
        kind=kind,
        addresses=addresses,
        service=service,
        db=int(db),
        username=unquote(user) or None,
        password=unquote(password) or None,
        sentinel_username=query.get("sentinel_username"),
        sentinel_password=query.get("sentinel_password"),
        tls=_tls(query, tls),
        prefix=prefix,
        replicas=int(_number("replicas", query.get("replicas", "0"), 0, 10)),
        patience=_number("patience", query.get("patience", "2"), 0.1, 60),
    )


def _address(text: str, default: int) -> Address:
    try:
        parts = urlsplit("//" + text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("the store's URL has a host that is none") from None
    if not host:
        raise ValueError("the store's URL names no host")
    return host, port or default


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}")
    return value


def _tls(query: dict[str, str], wanted: bool) -> dict[str, Any] | None:
    if not wanted:
        if given := [name for name in _TLS if name in query]:
            raise ValueError(f"{', '.join(given)} needs rediss://")
        return None
    found: dict[str, Any] = {name: query[name] for name in _TLS if name in query}
    checked = found.pop("ssl_check_hostname", "true")
    if checked not in ("true", "false"):
        raise ValueError("ssl_check_hostname must be true or false")
    return {**found, "ssl_check_hostname": checked == "true", "ssl_cert_reqs": "required"}


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
