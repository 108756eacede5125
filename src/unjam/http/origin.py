"""Where a server is: a URL taken apart, checked."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """`base`: path before the paths that are asked for, mostly empty."""

    url: str
    host: str
    port: int
    secure: bool
    base: str = ""

    @classmethod
    def at(cls, url: str) -> Self:
        """Raises ValueError in words for what is not an http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{url!r} must begin with http:// or https://")
        if not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(f"{url!r} has no host, or characters that a URL may not have")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(f"{url!r} must be scheme, host, port and perhaps a path, and nothing else")
        secure = parts.scheme == "https"
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"{url!r}: the port must be a number up to 65535") from None
        if port is None:
            port = 443 if secure else 80
        return cls(url.rstrip("/"), parts.hostname, port, secure, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """For the `host` field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def on_this_machine(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
