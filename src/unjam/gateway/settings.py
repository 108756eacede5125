"""The gateway's side of a configuration, made ready for the hot path. Replaced whole by a reload, never changed."""

from __future__ import annotations

from dataclasses import dataclass

from unjam.config import Config
from unjam.gateway.auth import Keyring, Tenant
from unjam.gateway.timers import NEVER
from unjam.wire.forwarded import TrustedProxies
from unjam.wire.http1 import Limits


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes."""

    wire_limits: Limits
    keyring: Keyring
    trusted: TrustedProxies
    origins: dict[str, tuple[str, ...] | None]
    max_connections: int
    max_body: int
    inspect_bytes: int
    header_timeout: float
    body_timeout: float
    stall_timeout: float
    keepalive: float
    heartbeat: float
    drain_timeout: float
    response_headers: bool
    #: Without keys of our own, credentials are between the client and the endpoint.
    forward_credentials: bool

    @staticmethod
    def of(config: Config) -> Settings:
        limits = config.limits
        keyring = Keyring(
            Tenant(key.tenant, key.digest, frozenset(key.services or ()), key.role == "worker") for key in config.keys
        )
        return Settings(
            wire_limits=Limits(line=limits.max_line, head=limits.max_header_bytes, fields=limits.max_fields),
            keyring=keyring,
            trusted=TrustedProxies(str(network) for network in config.trusted_proxies),
            origins={name: config.origins(name) for name in config.services},
            max_connections=limits.max_connections,
            max_body=limits.max_body,
            inspect_bytes=limits.max_inspect,
            header_timeout=limits.header_timeout,
            body_timeout=limits.body_timeout,
            stall_timeout=limits.stalled_timeout,
            keepalive=limits.keepalive,
            heartbeat=NEVER if config.heartbeat is None else config.heartbeat,
            drain_timeout=config.drain_timeout,
            response_headers=config.response_headers,
            forward_credentials=not keyring,
        )
