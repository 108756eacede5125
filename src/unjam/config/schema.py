"""The configuration as the gateway reads it: frozen, typed, every value checked. Seconds, bytes, fractions of one.

This is the top level and the gateway's own keys; `services.py` has those below `services`. `Config.topology()` is what
the core is given.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr, model_validator

from unjam.config.address import Address, is_loopback, parse_listen
from unjam.config.quantities import BadValue, kind, shown
from unjam.config.runs import Runs
from unjam.config.services import EndpointTls, Region, Service, off_means, on_means, short_for
from unjam.config.topology import topology
from unjam.config.tree import Problem
from unjam.config.types import (
    FilePath,
    HostPattern,
    KeyHash,
    Kind,
    ListenAddress,
    Model,
    Name,
    NetworkItem,
    PositiveCount,
    PositiveDuration,
    PositiveSize,
    ReportToken,
    Size,
    Switch,
    Token,
    one_of,
    one_or_list,
    text,
)
from unjam.config.webhooks import Webhook
from unjam.core import spec

#: Seconds: two lost reports must not take an endpoint out.
LEAST_EXPIRE = 5.0


class Tls(Model):
    """The listener's certificate. Read again on reload."""

    cert: FilePath = Field(description="Certificate chain, PEM. Relative to the configuration file.")
    key: FilePath = Field(description="Its private key, PEM.")


class Listen(Model):
    """One place where clients connect. `host:port` or `unix:/path` is short for `{address: ...}`."""

    address: ListenAddress = Field(description="host:port, [v6]:port or unix:/path. Port 0: any free one.")
    tls: Tls | None = Field(None, description="Serve TLS.")

    @property
    def host(self) -> str:
        return self.address.host

    @property
    def port(self) -> int:
        return self.address.port

    @property
    def path(self) -> str | None:
        """The Unix socket, None for TCP."""
        return self.address.path

    @property
    def cert(self) -> str | None:
        return self.tls.cert if self.tls else None

    @property
    def key(self) -> str | None:
        return self.tls.key if self.tls else None


class Admin(Model):
    """Dashboard, metrics and control API. An address is short for `{listen: ...}`; `off`: none."""

    listen: ListenAddress = Field(parse_listen("127.0.0.1:8081"), description="host:port, [v6]:port or unix:/path.")
    token: Token | None = Field(
        None, description="Bearer token, or the sha256:... of it; required beyond loopback.", repr=False
    )
    hosts: Annotated[tuple[HostPattern, ...], BeforeValidator(one_or_list)] = Field(
        (), description="Names, beside the address itself, that operators may call it by (Host and Origin)."
    )
    tls: Tls | None = Field(None, description="Serve TLS.")

    @model_validator(mode="after")
    def _guarded(self) -> Admin:
        if self.token is None and not self.listen.loopback:
            raise BadValue(
                f"{self.listen} can be reached from other machines and has no token",
                f'Write admin: {{listen: "{self.listen}", token: "${{UNJAM_ADMIN_TOKEN}}"}}, or listen on 127.0.0.1.',
            )
        return self

    @property
    def host(self) -> str:
        return self.listen.host

    @property
    def port(self) -> int:
        return self.listen.port

    @property
    def path(self) -> str | None:
        """The Unix socket, None for TCP."""
        return self.listen.path


class Reporters(Model):
    """Where reporters tell how busy their endpoints are, and add endpoints to versions that `discover` them."""

    listen: ListenAddress = Field(parse_listen("127.0.0.1:8082"), description="host:port, [v6]:port or unix:/path.")
    token: ReportToken = Field(
        description="Bearer token of the reporters, or the sha256:... of it; always required.", repr=False
    )
    tls: Tls | None = Field(None, description="Serve TLS.")
    expire: PositiveDuration = Field(
        60.0,
        description="An endpoint that a reporter added gets nothing after so long a silence, and is removed after ten "
        "times as long.",
    )

    @model_validator(mode="after")
    def _longer_than_a_beat(self) -> Reporters:
        if self.expire < LEAST_EXPIRE:
            raise BadValue(
                f"expire is shorter than {LEAST_EXPIRE:g}s, and reporters report every 2s", "Give at least 5s."
            )
        return self


class Key(Model):
    """An API key. With any key given, every request on the data port needs one."""

    hash: KeyHash = Field(description="What `unjam hash-key` prints for the key.")
    tenant: Name = Field(description="Whose requests these are: fairness, logs and metrics go by it.")
    services: Annotated[tuple[Name, ...], BeforeValidator(one_or_list)] | None = Field(
        None, description="The services it may call. Unset: all."
    )
    role: Annotated[str, one_of("client", "worker"), Kind("client or worker")] = Field(
        "client", description="`worker`: it may also claim the runs of these services, whosever they are."
    )

    @model_validator(mode="after")
    def _some(self) -> Key:
        if self.services == ():
            raise BadValue("may call no service", "Name its services, or remove services: for all of them.")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key, 32 bytes."""
        return bytes.fromhex(self.hash.removeprefix("sha256:"))


class Limits(Model):
    """Bounds of what clients may send and hold."""

    max_connections: PositiveCount = Field(100_000, description="Open client connections; more are answered 503.")
    max_line: PositiveSize = Field(8192, description="Request line or one header; longer is answered 414 or 431.")
    max_header_bytes: PositiveSize = Field(32768, description="All headers; more is answered 431.")
    max_fields: PositiveCount = Field(100, description="Number of headers; more is answered 431.")
    max_body: Size = Field(2**30, description="One request body, streamed; more is answered 413.")
    max_inspect: PositiveSize = Field(
        2**20, description="Most of a body that is inspected. A longer one goes by its head; 413 if only `model` tells."
    )
    header_timeout: PositiveDuration = Field(10.0, description="From the first byte to the end of the headers; 408.")
    body_timeout: PositiveDuration = Field(30.0, description="Longest silence within a request body; 408.")
    stalled_timeout: PositiveDuration = Field(60.0, description="A client that reads nothing for so long is dropped.")
    keepalive: PositiveDuration = Field(75.0, description="An idle connection is closed after this.")

    @model_validator(mode="after")
    def _in_order(self) -> Limits:
        if self.max_line > self.max_header_bytes:
            raise BadValue("max_line is larger than max_header_bytes", "Raise max_header_bytes or lower max_line.")
        return self


def _log_target(value: object) -> str:
    return "off" if value is False else text(value)


class AccessLog(Model):
    """One line per request. `off`, `stdout` or a path is short for `{to: ...}`."""

    to: Annotated[str, PlainValidator(_log_target), Kind("off, stdout, stderr or a file")] = Field(
        "stdout", description="Where it goes. A file is relative to the configuration file and reopened on reload."
    )
    format: Annotated[str, one_of("auto", "json", "console"), Kind("auto, json or console")] = Field(
        "auto", description="`auto`: console on a terminal, JSON elsewhere."
    )

    @property
    def enabled(self) -> bool:
        return self.to != "off"


@dataclass(frozen=True, slots=True)
class State:
    """Where durable state lives. `url` may carry a password. `kind`: memory, sqlite or redis."""

    kind: str
    url: str = field(repr=False)
    path: str | None = None
    hosts: tuple[str, ...] = ()
    tls: bool = False


_REDIS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def parse_state(value: object) -> State:
    """`memory`, `sqlite:PATH` or one of the Redis URLs. Raises `BadValue`; never echoes the URL."""
    fix = "Write memory, sqlite:unjam.db, redis://host:6379/0, rediss://, redis+sentinel:// or redis+cluster://."
    if isinstance(value, State):
        return value
    if not isinstance(value, str):
        raise BadValue(f"must be a URL, not {kind(value)}", fix)
    scheme, colon, rest = text(value).partition(":")
    if scheme == "memory" and rest in ("", "//"):
        return State("memory", "memory")
    if scheme == "sqlite" and colon:
        # SQLAlchemy's habit: three slashes are relative, four absolute.
        path = rest[3:] if rest.startswith("///") else rest
        if not path or path.startswith("//"):
            raise BadValue("sqlite: names no file", "Write sqlite:unjam.db or sqlite:/var/lib/unjam/unjam.db.")
        return State("sqlite", f"sqlite:{path}", path=path)
    if scheme not in _REDIS or not rest.startswith("//"):
        raise BadValue(f"{shown(scheme)} is not a store unjam knows" if colon else "is not the URL of a store", fix)
    try:
        authority = urllib.parse.urlsplit(text(value)).netloc.rpartition("@")[2]
    except ValueError:
        raise BadValue("is not a valid URL", fix) from None
    hosts = tuple(re.sub(r":[0-9]+\Z", "", host).strip("[]") for host in authority.split(",") if host)
    if not hosts:
        raise BadValue("names no host", fix)
    return State("redis", value, hosts=hosts, tls=scheme.startswith("rediss"))


def _listens(value: Any) -> Any:
    """One or a list, each an address or a mapping."""
    return [{"address": item} if isinstance(item, str | Address) else item for item in one_or_list(value)]


class Config(Model):
    """A whole configuration. Made by `load`, `parse` and `from_urls` only."""

    listen: Annotated[tuple[Listen, ...], BeforeValidator(_listens)] = Field(
        (Listen(address=parse_listen("127.0.0.1:8080")),), description="Where clients connect: one or a list."
    )
    admin: Annotated[Admin | None, short_for("listen"), off_means(None)] = Field(
        Admin(), description="Dashboard, metrics, control API."
    )
    reporters: Annotated[Reporters | None, off_means(None)] = Field(
        None, description="Where reporters report. Unset: nobody may report."
    )
    state: Annotated[State, PlainValidator(parse_state), Kind("URL", lambda state: str(state.url))] = Field(
        State("memory", "memory"),
        description="Where durable runs, and what was changed at run time, are kept: memory, sqlite:PATH (relative to "
        "the configuration file), redis://, rediss://, redis+sentinel://, redis+cluster://. Takes effect at the next "
        "start.",
    )
    runs: Annotated[Runs | None, on_means({}), off_means(None)] = Field(
        None, description="Durable runs: `on`, or their limits. Unset: none."
    )
    trusted_proxies: Annotated[tuple[NetworkItem, ...], BeforeValidator(one_or_list)] = Field(
        (), description="Networks whose X-Forwarded-* are believed."
    )
    keys: tuple[Key, ...] = Field((), description="API keys. None: no key is asked for.")
    limits: Limits = Field(Limits(), description="Bounds of what clients may send and hold.")
    access_log: Annotated[AccessLog, short_for("to"), off_means({"to": "off"})] = Field(
        AccessLog(), description="One line per request."
    )
    response_headers: Switch = Field(True, description="Send x-unjam-endpoint, -version, -lane and -queued-ms.")
    drain_timeout: PositiveDuration = Field(3600.0, description="On SIGTERM: time for what is running to finish.")
    heartbeat: Annotated[PositiveDuration | None, off_means(None)] = Field(
        10.0, description="Comment sent on an SSE stream after so long a silence. `off`: none."
    )
    services: dict[Name, Service] = Field(description="The agents behind this gateway.")
    regions: dict[Name, Region] = Field({}, description="Provider quotas shared by endpoints.")
    webhooks: Annotated[tuple[Annotated[Webhook, short_for("url")], ...], BeforeValidator(one_or_list)] = Field(
        (), description="Who is told of breakers, rollouts, weights and drains."
    )

    _warnings: tuple[Problem, ...] = PrivateAttr(())
    _name: str = PrivateAttr("")

    @model_validator(mode="after")
    def _some(self) -> Config:
        if not self.listen:
            raise BadValue("listens nowhere", "Write listen: 127.0.0.1:8080.")
        if not self.services:
            raise BadValue("has no services", "Describe at least one below services:.")
        return self

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What works but is probably not meant, in the order of the file."""
        return self._warnings

    @property
    def name(self) -> str:
        """The file's name as given, empty for `from_urls`."""
        return self._name

    def topology(self) -> spec.Topology:
        """What the core balances: services, versions, endpoints, regions."""
        return topology(self.services, self.regions)

    def endpoint_tls(self, service: str, version: str, url: str) -> EndpointTls:
        """The TLS settings towards one endpoint, listed or discovered; verified when nothing is said. Raises KeyError
        when it is not here."""
        found = self.services[service].versions[version]
        for endpoint in found.endpoints:
            if endpoint.url == url:
                return endpoint.endpoint_tls or found.endpoint_tls or VERIFIED
        if found.discover is not None:
            return found.endpoint_tls or VERIFIED
        raise KeyError(url)

    def origins(self, service: str) -> tuple[str, ...] | None:
        """Origins that browsers may open WebSockets from; None: any."""
        allowed = self.services[service].websocket.origins
        return None if allowed is None or "*" in allowed else allowed


VERIFIED = EndpointTls()

__all__ = [
    "AccessLog",
    "Admin",
    "Config",
    "Key",
    "Limits",
    "Listen",
    "Reporters",
    "State",
    "Tls",
    "is_loopback",
]
