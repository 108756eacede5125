"""Addresses: where to listen, which endpoint to dial, which networks to trust. Compared in one spelling."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from unjam.config.quantities import BadValue, kind, shown

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?\Z"
)
_ALL_DIGITS = re.compile(r"[0-9.]+\Z")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or a Unix socket when `path` is given (then host is empty and port 0). Port 0: the OS picks."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        return self.path is not None or is_loopback(self.host)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint's URL taken apart. `scheme`: http, https or unix. `path`: the socket's, for unix only."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def url(self) -> str:
        """The one spelling: lower case, no trailing slash, no port where it is the scheme's own."""
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_listen(value: object) -> Address:
    """`host:port`, `[v6]:port` or `unix:/path`. Raises `BadValue`."""
    fix = "Write host:port, such as 127.0.0.1:8080 or [::]:8080, or unix:/run/unjam.sock."
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise BadValue(f"must be an address, not {kind(value)}", fix)
    text = value.strip()
    if text.startswith("unix:"):
        return Address(path=_socket_path(text))
    host, colon, port = text.rpartition(":")
    if not colon or not host or host == "*":
        digits = (port if colon else text) or "8080"
        if digits.isdecimal():
            fix = f"Write 127.0.0.1:{digits} for this machine only, 0.0.0.0:{digits} for every interface."
        raise BadValue(f"{shown(text)} does not say which interface and which port", fix)
    return Address(host=_host(host, text, fix), port=_port(port, text, fix, least=0))


def parse_url(value: object) -> Target:
    """An endpoint's `http://host:port`, `https://host` or `unix:/path`. Raises `BadValue`.

    Userinfo is never echoed: it may be a password.
    """
    fix = "Write http://host:port, https://host:port or unix:/path."
    if not isinstance(value, str):
        raise BadValue(f"must be a URL, not {kind(value)}", fix)
    text = value.strip()
    if text.startswith("unix:"):
        return Target("unix", path=_socket_path(text))
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        bare = _without_userinfo(text)
        meant = f"127.0.0.1:{bare.removeprefix(':')}" if bare.removeprefix(":").isdecimal() else bare
        raise BadValue(f"{shown(bare)} has no scheme", f"Write http://{meant}.")
    if scheme in ("ws", "wss"):
        right = "http" if scheme == "ws" else "https"
        raise BadValue(
            f"{scheme}:// is not a scheme of endpoints", f"Write {right}://: WebSockets are tunnelled over it."
        )
    if scheme not in _PORTS:
        raise BadValue(f"{shown(scheme)} is not a scheme of endpoints", fix)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in authority:
        raise BadValue(
            "the URL carries a user name or password", "Remove it: endpoints take the headers of the request instead."
        )
    if tail not in ("", "/"):
        what = {"/": "a path", "?": "a query", "#": "a fragment"}[tail[0]]
        raise BadValue(
            f"the URL has {what}, {shown(tail)}",
            f"Write {scheme}://{authority}: the path of the request is forwarded (see strip_prefix).",
        )
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        return Target(scheme, _host(authority, text, fix), _PORTS[scheme])
    return Target(scheme, _host(host, text, fix), _port(port, text, fix, least=1))


def parse_network(value: object) -> Network:
    """`10.0.0.0/8`, `fd00::/8`, or one address. Raises `BadValue`."""
    fix = "Write a network such as 10.0.0.0/8, or one address."
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    if not isinstance(value, str):
        raise BadValue(f"must be a network, not {kind(value)}", fix)
    try:
        return ipaddress.ip_network(value.strip())
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError:
        raise BadValue(f"{shown(value)} is not a network", fix) from None
    raise BadValue(f"{shown(value)} has bits set beyond its prefix", f"Write {loose}.")


def _without_userinfo(text: str) -> str:
    return text.rpartition("@")[2] or "host:port"


def _host(host: str, text: str, fix: str) -> str:
    plain = host.lower()
    if plain.startswith("[") and plain.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(plain[1:-1]))
        except ValueError:
            raise BadValue(f"{shown(text)} has no valid IPv6 address in its brackets", fix) from None
    if ":" in plain:
        raise BadValue(f"{shown(text)} has an IPv6 address without brackets", f"Write [{plain}]:port. {fix}")
    if _ALL_DIGITS.match(plain):
        try:
            return str(ipaddress.IPv4Address(plain))
        except ValueError:
            raise BadValue(f"{shown(text)} has no valid IPv4 address", fix) from None
    if not _NAME.match(plain):
        raise BadValue(f"{shown(text)} has no valid host", fix)
    return plain


def _port(port: str, text: str, fix: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", port) or not least <= int(port) <= 65535:
        raise BadValue(f"{shown(text)} has no port between {least} and 65535", fix)
    return int(port)


def _socket_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    if not path.startswith("/") or len(path) < 2:
        raise BadValue(f"{shown(text)} has no absolute path", "Write unix:/run/agent.sock.")
    if not path.isprintable():
        # It becomes part of a header of answers, and of log lines.
        raise BadValue(f"{shown(text)} has a control character in its path", "Write unix:/run/agent.sock.")
    # sun_path holds 108 bytes with its final NUL.
    if len(path.encode()) > 107:
        raise BadValue("the path of the Unix socket is longer than 107 bytes", "Use a shorter path.")
    return path
