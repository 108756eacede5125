"""Who may speak to the admin listener (hostile-input 50).

A token, when set, is needed for everything but `/healthz` and `/readyz`; without one the listener may only be reachable
from this machine. Foreign `Host` (DNS rebinding) and foreign `Origin` (cross-site requests) are refused before that.
The 401 is the same for a missing, wrong or malformed token and for every path. Wrapped around the application as plain
ASGI, so that no route can be added outside it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Answered without a token and under any Host: probes come from the outside, and the answer is one word.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "localhost."})

SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class AdminExposed(ValueError):
    """The admin listener would be reachable from other machines without a token."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """What `Host` may say. `names`: lower case, without port, `*.` in front for all below. `any_ip`: any IP
    address will do; a page that rebinds DNS always comes under a name."""

    names: frozenset[str]
    any_ip: bool = False

    def allows(self, host: str) -> bool:
        if host in self.names or ("." in host and "*." + host.partition(".")[2] in self.names):
            return True
        return self.any_ip and _ip(host) is not None


def hosts_for(bound: str, names: Iterable[str] = ()) -> Hosts:
    """The hosts that may be named to reach a listener bound to `bound` (empty: a Unix socket). `names`: further ones,
    from the configuration, e.g. the name of an ingress."""
    allowed = LOOPBACK_NAMES | {name.lower().strip("[]") for name in names}
    if bound:
        allowed |= {bound.lower().strip("[]")}
    return Hosts(allowed, any_ip=not is_loopback(bound))


def is_loopback(host: str) -> bool:
    """Only this machine can reach a listener on `host`. Empty: a Unix socket, guarded by its file mode."""
    if host in ("", "localhost"):
        return True
    address = _ip(host.strip("[]"))
    return address is not None and address.is_loopback


def check_exposure(host: str, token: str | None) -> None:
    """Raises `AdminExposed` when a listener on `host` needs a token and has none."""
    if not token and not is_loopback(host):
        raise AdminExposed(
            f"the admin listener on {host} can be reached from other machines and has no token: "
            "set one (admin: token: ${UNJAM_ADMIN_TOKEN}), or listen on 127.0.0.1"
        )


class Token:
    """The admin token, kept as a digest only. Given as it is, or as `sha256:` and 64 hex digits."""

    __slots__ = ("_digest",)

    def __init__(self, token: str) -> None:
        if token.startswith("sha256:"):
            self._digest = bytes.fromhex(token.removeprefix("sha256:"))
            if len(self._digest) != 32:
                raise ValueError("an admin token given as sha256: needs 64 hex digits")
        else:
            self._digest = _sha256(token.encode())

    def matches(self, presented: bytes) -> bool:
        """In constant time: digests are compared, and those have one length."""
        return hmac.compare_digest(_sha256(presented), self._digest)

    @property
    def fingerprint(self) -> str:
        """Tells tokens apart in the audit log without giving away the digest itself."""
        return _sha256(b"unjam-audit:" + self._digest).hex()[:8]


class Guard:
    """ASGI middleware: Host, Origin, token, in this order; then the application, with its answers' headers hardened.

    `on_reject(reason, peer)` is told of every refusal. The caller's name for the audit log (`token:1a2b3c4d` or
    `loopback`, and the peer's address) is left in `scope["state"]["who"]`.
    """

    def __init__(self, app: ASGIApp, token: Token | None, hosts: Hosts, on_reject: Callable[[str, str], None]) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self.on_reject = on_reject

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        peer = scope["client"][0] if scope.get("client") else "unix"
        state: dict[str, Any] = scope.setdefault("state", {})
        refusal = self._check(scope, peer, state)
        if refusal is None:
            await self._app(scope, receive, _hardened(send))
        else:
            await refusal(scope, receive, _hardened(send))

    def _check(self, scope: Scope, peer: str, state: dict[str, Any]) -> Response | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        authorised = self._token is None or _presents(headers, self._token)
        state["authorised"] = authorised
        if scope["path"] in OPEN_PATHS:
            return None
        hosts = [value for name, value in headers if name == b"host"]
        authority = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if not self._hosts.allows(_host_of(authority)):
            self.on_reject("admin_foreign_host", peer)
            return error(
                403,
                "foreign_host",
                "This host name is not one the admin listener answers to. Use its address, or add the name to the "
                "configuration (admin: hosts).",
            )
        for name, value in headers:
            if name == b"origin" and not _same_origin(value.decode("latin-1").lower(), authority):
                self.on_reject("admin_foreign_origin", peer)
                return error(403, "foreign_origin", "Requests from other sites' pages are refused.")
            if name == b"sec-fetch-site" and value == b"cross-site" and scope["method"] not in ("GET", "HEAD"):
                self.on_reject("admin_foreign_origin", peer)
                return error(403, "foreign_origin", "Requests from other sites' pages are refused.")
        if not authorised:
            self.on_reject("admin_unauthorized", peer)
            return error(
                401,
                "unauthorized",
                "Send the admin token as `Authorization: Bearer ...` or `x-unjam-token`; "
                "in a browser, as the password.",
                {"www-authenticate": 'Bearer realm="unjam", Basic realm="unjam", charset="UTF-8"'},
            )
        caller = "loopback" if self._token is None else f"token:{self._token.fingerprint}"
        state["who"] = f"{caller}@{peer}"
        return None


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """The one shape of refusals: `{"error": {"code", "message"}}`."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def _presents(headers: list[tuple[bytes, bytes]], token: Token) -> bool:
    found = False
    for name, value in headers:
        if name == b"x-unjam-token":
            found = token.matches(value.strip()) or found
        elif name == b"authorization":
            scheme, _, credential = value.strip().partition(b" ")
            credential = credential.strip()
            if scheme.lower() == b"bearer":
                found = token.matches(credential) or found
            elif scheme.lower() == b"basic":
                # What a browser can send: any user name, the token as the password.
                try:
                    plain = base64.b64decode(credential, validate=True)
                except binascii.Error:
                    continue
                found = token.matches(plain.partition(b":")[2]) or found
    return found


def _host_of(authority: str) -> str:
    """`[::1]:8081` → `::1`, `localhost:8081` → `localhost`; empty when it is neither."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        return host if bracket and (not port or _is_port(port)) else ""
    host, colon, port = authority.partition(":")
    return host if not colon or _is_port(":" + port) else ""


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def _same_origin(origin: str, authority: str) -> bool:
    scheme, separator, rest = origin.partition("://")
    if not separator or scheme not in ("http", "https"):
        return False
    # Behind a proxy that speaks TLS the scheme differs from ours; the authority is what tells sites apart.
    default = ":443" if scheme == "https" else ":80"
    return rest.removesuffix(default) == authority.removesuffix(default)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _hardened(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            given = {name for name, _ in headers}
            headers += [
                (name.encode(), value.encode())
                for name, value in SECURITY_HEADERS.items()
                if name.encode() not in given
            ]
            message = {**message, "headers": headers}
        await send(message)

    return sender
