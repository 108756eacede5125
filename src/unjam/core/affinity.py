"""Sessions: requests with the same key meet the same endpoint, for a while, and move together when it goes.

Where a new session goes is decided elsewhere (`policies.rendezvous`: it would come home to the same endpoint even if
its binding were lost); here is remembered where it went. Bounded in number (the least recently used goes first) and in
time (`ttl` seconds after the last use).
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint

MAX_ENTRIES = 100_000
#: Longer keys are kept as their hash: callers choose them, and a hundred thousand headers of 8 KiB would be 800 MB.
MAX_KEY = 64


class Binding:
    """Where a session lives. `epoch` grows with every move and tells a late writer from the present owner; `used` is
    the monotonic second of the last use."""

    __slots__ = ("endpoint", "epoch", "used")

    def __init__(self, endpoint: Endpoint, epoch: int, used: float) -> None:
        self.endpoint = endpoint
        self.epoch = epoch
        self.used = used


class Sessions:
    """The bindings of one service. `now` must not go back between calls: the order of use is the order of expiry."""

    __slots__ = ("_bindings", "_epoch", "_keys", "max_entries", "ttl")

    def __init__(self, ttl: float, max_entries: int = MAX_ENTRIES) -> None:
        if ttl <= 0.0 or max_entries < 1:
            raise ValueError("sessions need a ttl above 0 s and room for at least one")
        self.ttl = ttl
        self.max_entries = max_entries
        # Least recently used first. A plain dict would walk over its own graves at the front.
        self._bindings: OrderedDict[str, Binding] = OrderedDict()
        self._keys: dict[Endpoint, set[str]] = {}
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._bindings)

    def lookup(self, key: str, now: float) -> Endpoint | None:
        """The endpoint `key` is bound to, and the binding lives on for another `ttl`. None: no live binding."""
        if len(key) > MAX_KEY:
            key = _digest(key)
        binding = self._bindings.get(key)
        if binding is None:
            return None
        if now - binding.used >= self.ttl:
            self._drop(key, binding)
            return None
        binding.used = now
        self._bindings.move_to_end(key)
        return binding.endpoint

    def binding(self, key: str) -> Binding | None:
        """The binding as it is, expired or not, without touching it."""
        return self._bindings.get(key if len(key) <= MAX_KEY else _digest(key))

    def bind(self, key: str, endpoint: Endpoint, now: float) -> int:
        """Bind `key` to `endpoint`; returns the epoch: the same as before if it lived there already (within the ttl),
        else higher than any this object ever gave."""
        if len(key) > MAX_KEY:
            key = _digest(key)
        binding = self._bindings.get(key)
        if binding is not None:
            if binding.endpoint is endpoint and now - binding.used < self.ttl:
                binding.used = now
                self._bindings.move_to_end(key)
                return binding.epoch
            self._drop(key, binding)
        elif len(self._bindings) >= self.max_entries:
            oldest = next(iter(self._bindings))
            self._drop(oldest, self._bindings[oldest])
        self._epoch += 1
        self._bindings[key] = Binding(endpoint, self._epoch, now)
        self._keys.setdefault(endpoint, set()).add(key)
        return self._epoch

    def forget(self, endpoint: Endpoint) -> int:
        """The endpoint is gone: its sessions are placed anew at their next request. Returns how many there were."""
        keys = self._keys.pop(endpoint, None)
        if keys is None:
            return 0
        for key in keys:
            del self._bindings[key]
        return len(keys)

    def count(self, endpoint: Endpoint) -> int:
        """Sessions bound to `endpoint`, those included that expired and were not cleared yet."""
        keys = self._keys.get(endpoint)
        return len(keys) if keys is not None else 0

    def tick(self, now: float, budget: int = 1000) -> int:
        """Clear at most `budget` expired bindings, oldest first; returns how many."""
        cleared = 0
        while cleared < budget and self._bindings:
            key = next(iter(self._bindings))
            binding = self._bindings[key]
            if now - binding.used < self.ttl:
                break
            self._drop(key, binding)
            cleared += 1
        return cleared

    def _drop(self, key: str, binding: Binding) -> None:
        del self._bindings[key]
        keys = self._keys[binding.endpoint]
        keys.discard(key)
        if not keys:
            del self._keys[binding.endpoint]


def _digest(key: str) -> str:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=MAX_KEY // 2).hexdigest()
