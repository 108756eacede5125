"""API keys: who is calling. Keys are hashed in the configuration and never kept in the clear.

A key is looked up by the full SHA-256 digest of what the caller sent, then compared in constant time: the digest leaks
nothing about the key to someone who can measure dictionary look-ups.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Final


class Tenant:
    """`services` empty: all of them. `worker`: it may claim runs of these services, whosever they are."""

    __slots__ = ("digest", "name", "services", "worker")

    def __init__(self, name: str, digest: bytes, services: frozenset[str], worker: bool = False) -> None:
        self.name = name
        self.digest = digest
        self.services = services
        self.worker = worker

    def may_call(self, service: str) -> bool:
        return not self.services or service in self.services


#: Who has not said yet who it is, where that may be said later than in the request's head. It may call nothing.
NOBODY: Final = Tenant("", b"", frozenset({""}))


class Keyring:
    """`shared`: more than one tenant may call."""

    __slots__ = ("_tenants", "shared")

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._tenants = {tenant.digest: tenant for tenant in tenants}
        self.shared = len({tenant.name for tenant in self._tenants.values() if not tenant.worker}) > 1

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def renewed(self, tenant: Tenant | None) -> Tenant | None:
        """A caller of an earlier keyring perhaps, as it is known here; None where nobody needs a key. KeyError: it may
        not call any more, for its key is gone, or another tenant's now, or there are keys now."""
        if not self._tenants and tenant is None:
            return None
        found = None if tenant is None else self._tenants.get(tenant.digest)
        if tenant is None or found is None or found.name != tenant.name:
            raise KeyError("the key is not valid any more")
        return found

    def tenant(self, authorization: bytes | None, api_key: bytes | None) -> Tenant | None:
        """The caller by `Authorization: Bearer …` or `x-api-key`; None when neither names a key we know."""
        if authorization is not None:
            scheme, _, key = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                return None
            key = key.strip()
        elif api_key is not None:
            key = api_key
        else:
            return None
        digest = sha256(key).digest()
        tenant = self._tenants.get(digest)
        if tenant is None or not compare_digest(tenant.digest, digest):
            return None
        return tenant
