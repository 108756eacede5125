"""Weights, breakers, drains and rollouts change here and nowhere else: applied at once, written down, kept, told on.

Each change is one line of the audit log (who, when, where, from, to, why) and, where the state is shared, reaches the
other gateways within two seconds; trips that a gateway decides on by itself too. The proxy never waits for any of it: a
place for the state that is away costs only that the change holds here, and until the next restart, if that comes before
the place is back: then it is kept, unless somebody else has decided otherwise meanwhile.

A weight set at run time remembers what the file said then, and holds as long as the file says that.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from unjam.config import Config
from unjam.gateway.webhooks import Event, Webhooks
from unjam.kept.base import MOST, Change, Kept, KeptError
from unjam.kept.values import problem

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.service import Service, Version
    from unjam.gateway.gateway import Gateway

#: Seconds that a change is waited for to be kept, and between two looks for those of other gateways.
PATIENCE: Final = 2.0
POLL: Final = 1.0

Applied = Callable[[str, Change], None]
T = TypeVar("T")


class Changes:
    """`kept`: where they are kept, not open yet; `lasting`: it outlives the process. `where`: this gateway's name."""

    def __init__(self, gateway: Gateway, config: Config, kept: Kept, webhooks: Webhooks) -> None:
        self.where = f"{socket.gethostname()}:{os.getpid()}"
        self.lasting = config.state.kind != "memory"
        #: Told of every `rollout/SERVICE` from elsewhere: the service's name, and the change.
        self.on_rollout: Applied = lambda service, change: None
        self._gateway = gateway
        self._kept = kept
        self._webhooks = webhooks
        self._weights = _file_weights(config)
        #: The last change of each key that is in force here. Those made while the place was away have no number.
        self._latest: dict[str, Change] = {}
        self._loaded = False
        #: Those that could not be kept.
        self._owed: dict[str, Change] = {}
        #: The last number that was read up to, and the highest known; how many writes are under way, and have begun.
        self._last = 0
        self._highest = 0
        self._writing = 0
        self._writes = 0
        self._polling = False
        self._polled = 0.0
        #: When all that others had changed was last known.
        self._read = 0.0
        self._stopped = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._states: dict[Version, str] = {}

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Put in force what was kept. A place that is away is asked again while the gateway serves."""
        await self._poll()

    async def stop(self) -> None:
        """Waits until what is being written is kept, but no longer than for any other change."""
        self._stopped = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._kept.close()
        except (KeptError, TimeoutError, OSError):
            pass  # nothing is lost by it: what was kept is kept

    def configured(self, config: Config) -> None:
        """A new configuration is in force. What was decided still holds where the file says what it said then."""
        self._weights = _file_weights(config)
        self._settle()

    def joined(self, endpoint: Endpoint) -> None:
        """There is one more endpoint: drain it if its URL is drained."""
        if self.value(f"drain/{endpoint.url}") is True:
            self._drain(endpoint.url, True)

    def left(self, endpoint: Endpoint) -> None:
        """An endpoint is gone. Another one that gets its address later must not be drained on its account."""
        key = f"drain/{endpoint.url}"
        if self.value(key) is True and not self._endpoints(endpoint.url):
            self._spawn(self._write_down([self._change(key, True, False, self.where, "the endpoint left")]))

    def tick(self) -> None:
        """Twice a second: trips of our own, and changes of others."""
        self._look()
        now = monotonic()
        if not self._polling and now - self._polled >= POLL and (self._kept.shared or not self._loaded):
            self._polled = now
            self._spawn(self._poll())

    # -- what can be changed ------------------------------------------------------------------------------------

    async def set_weights(
        self, service: str, weights: Mapping[str, float], who: str, why: str = ""
    ) -> tuple[dict[str, float], str]:
        """All between two requests, or none. Returns the weights before, and why this is not kept, empty when it is.
        Raises KeyError for an unknown service or version."""
        changes = self._weighed(service, weights, who, why)
        before = {name: self._version(service, name).weight for name in weights}
        self._set_weights(service, weights)
        return before, await self._record(*changes)

    async def breaker(self, service: str, version: str, action: str, who: str) -> tuple[str, str, str]:
        """`action`: trip or reset. Returns the state before, the state after, and why this is not kept. Raises
        KeyError for an unknown service or version."""
        found = self._version(service, version)
        before = found.breaker.state
        self._turn(service, found, action == "trip", "by hand" if action == "trip" else "reset by hand")
        after = found.breaker.state
        change = self._change(f"breaker/{service}/{version}", before, after, who, "by hand")
        return before, after, await self._record(change)

    async def drain(self, url: str, draining: bool, who: str) -> tuple[bool, str]:
        """Every endpoint of that URL. Returns whether all were drained before, and why this is not kept. Raises
        KeyError when there is none."""
        found = self._endpoints(url)
        if not found:
            raise KeyError(url)
        before = all(endpoint.drained for endpoint in found)
        self._drain(url, draining)
        return before, await self._record(self._change(f"drain/{url}", before, draining, who, ""))

    def rollout(
        self, service: str, before: Any, after: Any, who: str, why: str, weights: Mapping[str, float] | None = None
    ) -> asyncio.Task[str]:
        """The state of a service's rollout, with the weights that go with it: in force on return, and kept all
        together or not at all by the task, whose result is why they are not kept. Raises KeyError for an unknown
        version; nothing is changed then."""
        changes = [self._change(f"rollout/{service}", before, after, who, why)]
        if weights is not None:
            changes += self._weighed(service, weights, who, f"rollout: {why}")
            self._set_weights(service, weights)
        self._enter(changes)
        return self._start(self._put(changes))

    # -- what is known ------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        """What was kept is known."""
        return self._loaded

    def value(self, key: str) -> Any:
        """What was last decided on it, here or elsewhere; None where nothing was."""
        change = self._latest.get(key)
        return None if change is None else change.after

    def age(self, key: str) -> float:
        """Seconds since that was decided, by the wall clock: nothing else outlives a process. 0 where nothing was."""
        change = self._latest.get(key)
        return 0.0 if change is None else max(0.0, time.time() - change.at)

    async def history(self, limit: int, before: int | None, key: str | None) -> list[Change]:
        """As `Kept.history`. Raises KeptError, TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            return await self._kept.history(limit, before, key)

    # -- applying -------------------------------------------------------------------------------------------------

    def _apply(self, change: Change, fresh: bool) -> None:
        """Put in force what another gateway, or this one in an earlier life, decided. `fresh`: just now."""
        kind, _, rest = change.key.partition("/")
        service, _, version = rest.partition("/")
        self._latest[change.key] = change
        if kind == "drain":
            self._drain(rest, change.after is True)
        elif kind == "rollout":
            self.on_rollout(service, change)
        elif self._has(service, version):
            found = self._version(service, version)
            if kind == "breaker" and (fresh or change.after == "open"):
                if change.after != "open" or self._lately(change, fresh, found.breaker.spec.open):
                    self._turn(service, found, change.after == "open", f"{change.why or 'tripped'} ({change.where})")
            elif kind == "weight" and self._fits(change):
                self._set_weights(service, {version: change.after["weight"]})

    def _lately(self, change: Change, fresh: bool, within: float) -> bool:
        """A trip of long ago is over: every gateway ramps up by itself. Clocks differ, so one that was not there when
        we last looked has happened since."""
        return (fresh and monotonic() - self._read < within) or abs(time.time() - change.at) < within

    def _counts(self, change: Change) -> bool:
        """Others would take it for news: not a trip that is over."""
        kind, service, version = (*change.key.split("/"), "", "")[:3]
        if kind != "breaker" or change.after != "open":
            return True
        return self._has(service, version) and self._lately(
            change, False, self._version(service, version).breaker.spec.open
        )

    def _fits(self, change: Change) -> bool:
        """The file says what it said when this weight was set."""
        _, service, version = change.key.split("/")
        after = change.after
        return isinstance(after, dict) and after.get("base") == self._weights.get((service, version))

    def _settle(self) -> None:
        """After a start or a reload: hold what was kept against the file, whose word counts where it is a new one."""
        overruled = []
        for change in list(self._latest.values()):
            kind, _, rest = change.key.partition("/")
            if kind == "drain" and change.after is True:
                self._drain(rest, True)
            elif kind == "weight":
                service, _, version = rest.partition("/")
                weight = self._weights.get((service, version))
                if weight is None:
                    continue  # no such version, or not yet
                if self._fits(change):
                    self._set_weights(service, {version: change.after["weight"]})
                else:
                    said = {"weight": weight, "base": weight}
                    why = "the configuration file says so"
                    overruled.append(self._change(change.key, change.after.get("weight"), said, self.where, why))
        if overruled:
            self._spawn(self._write_down(overruled))

    def _set_weights(self, service: str, weights: Mapping[str, float]) -> None:
        gateway, now = self._gateway, monotonic()
        for name, weight in weights.items():
            if self._version(service, name).weight != weight:
                gateway.carry_out(gateway.balancer.set_weight(service, name, weight, now), now)

    def _turn(self, service: str, version: Version, trip: bool, why: str) -> None:
        balancer, now = self._gateway.balancer, monotonic()
        if trip:
            balancer.trip(service, version.name, now)
        else:
            balancer.reset(service, version.name, now)
        version.breaker.why = why
        # Told by whoever decided it; `_look` is for what breakers do by themselves.
        self._states[version] = version.breaker.state

    def _drain(self, url: str, draining: bool) -> None:
        gateway, now = self._gateway, monotonic()
        for endpoint in self._endpoints(url):
            if endpoint.drained is not draining:
                gateway.carry_out(gateway.balancer.drain(endpoint, draining, now), now)

    # -- trips of our own -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look for what breakers did by themselves, write it down and tell others."""
        states: dict[Version, str] = {}
        for service in self._gateway.balancer.services.values():
            for version in service.versions:
                state = states[version] = version.breaker.state
                before = self._states.get(version, "closed")
                if state != before:
                    self._turned(service, version, before, state)
        self._states = states

    def _turned(self, service: Service, version: Version, before: str, state: str) -> None:
        change = self._change(f"breaker/{service.name}/{version.name}", before, state, self.where, version.breaker.why)
        if state == "open" and not version.down:
            self._spawn(self._write_down([change]))
        else:
            # How it comes back is every gateway's own affair; so is which endpoints one can reach.
            self._tell(change)

    # -- keeping --------------------------------------------------------------------------------------------------

    def _weighed(self, service: str, weights: Mapping[str, float], who: str, why: str) -> list[Change]:
        """Raises KeyError."""
        changes = []
        for name, weight in weights.items():
            before = self._version(service, name).weight
            after = {"weight": weight, "base": self._weights.get((service, name), weight)}
            changes.append(self._change(f"weight/{service}/{name}", before, after, who, why))
        return changes

    def _change(self, key: str, before: Any, after: Any, who: str, why: str) -> Change:
        return Change(key=key, before=before, after=after, who=who, where=self.where, why=why[:500], at=time.time())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._stopped:
            work.close()
        else:
            self._start(work)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._gateway.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _write_down(self, changes: list[Change]) -> None:
        await self._record(*changes)

    async def _record(self, *changes: Change) -> str:
        """Keep what is in force here already, and tell of it. Returns why it is not kept, empty when it is."""
        self._enter(changes)
        return await self._put(changes)

    def _enter(self, changes: Sequence[Change]) -> None:
        """They are in force. From now on nothing counts that was read before; `_put` must follow."""
        self._writing += 1
        self._writes += 1
        for change in changes:
            self._latest[change.key] = change
            self._gateway.stats.change(change.key.partition("/")[0], "here")
            self._tell(change)

    async def _put(self, changes: Sequence[Change]) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                last = await self._kept.put(*changes)
        except (KeptError, TimeoutError, ValueError) as error:
            why = str(error) or f"no answer in {PATIENCE:g} s"
            self._away(why)
            if not isinstance(error, ValueError):  # the same would come again
                self._owed.update((each.key, each) for each in changes if self._latest.get(each.key) is each)
            return why
        finally:
            self._writing -= 1
        self._back()
        self._highest = last
        for n, change in enumerate(changes, last - len(changes) + 1):
            if self._latest[change.key] is change:
                self._latest[change.key] = replace(change, n=n)
        return ""

    async def _poll(self) -> None:
        self._polling = True
        try:
            async with asyncio.timeout(PATIENCE):
                if not self._loaded:
                    now = monotonic()
                    await self._kept.open()
                    self._put_in_force(await self._kept.current())
                    self._loaded = True
                    self._read = now
                    self._settle()
                    known = True
                else:
                    known = await self._catch_up()
        except (KeptError, TimeoutError) as error:
            self._away(str(error) or f"no answer in {PATIENCE:g} s")
        except Exception:
            self._gateway.log.exception("fault", what="reading changes")
        else:
            self._back()
            if known:
                self._repay()
        finally:
            self._polling = False

    async def _catch_up(self) -> bool:
        """Whether all that others had decided when it was asked for is known now."""
        writes, now = self._writes, monotonic()
        found = await self._kept.since(self._last)
        if self._writing or self._writes != writes:
            return False  # a write of ours may be later than what was read: once more, in the next turn
        end = found[-1].n if found else self._last
        lost = end < self._highest and len(found) < MOST
        if lost or (found and found[0].n != self._last + 1):
            # Longer away than the log goes back, or the place has lost data and counts anew.
            if lost:
                self._latest = {key: replace(each, n=0) if each.n else each for key, each in self._latest.items()}
            self._put_in_force(await self._kept.current())
            return True
        for change in found:
            self._take(change, fresh=True)
        self._last = self._highest = end
        self._read = now
        return len(found) < MOST

    def _repay(self) -> None:
        """The place is there: keep what could not be, as far as it is still what counts here."""
        owed = [
            change for key, change in self._owed.items() if self._latest.get(key) is change and self._counts(change)
        ]
        self._owed = {}
        if owed and not self._stopped:
            self._writing += 1
            self._writes += 1
            self._start(self._put(owed))

    def _put_in_force(self, current: Mapping[str, Change]) -> None:
        for change in sorted(current.values(), key=_number):
            self._take(change, fresh=False)
        self._last = self._highest = max(map(_number, current.values()), default=0)

    def _take(self, change: Change, fresh: bool) -> None:
        mine = self._latest.get(change.key)
        ours = not fresh or change.where == self.where
        if mine is not None and (mine.n >= change.n or (ours and not mine.n and mine.at >= change.at)):
            return  # ours is later, or is this one; of one that could not be kept only the clock can tell
        wrong = problem(change)
        if wrong:
            self._gateway.log.warning("change_refused", key=change.key, who=change.who, where=change.where, why=wrong)
            return
        self._apply(change, fresh)
        if fresh:
            self._gateway.stats.change(change.key.partition("/")[0], "elsewhere")
            self._gateway.log.info(
                "change", key=change.key, who=change.who, where=change.where, to=change.after, why=change.why
            )

    def _away(self, why: str) -> None:
        if self._gateway.stats.changes_kept:
            self._gateway.stats.changes_kept = False
            self._gateway.log.warning("changes_not_kept", why=why)

    def _back(self) -> None:
        if not self._gateway.stats.changes_kept:
            self._gateway.stats.changes_kept = True
            self._gateway.log.info("changes_kept_again")

    # -- telling --------------------------------------------------------------------------------------------------

    def _tell(self, change: Change) -> None:
        kind, _, rest = change.key.partition("/")
        after = change.after["weight"] if kind == "weight" else change.after
        event = Event(
            event=kind,
            at=change.at,
            gateway=self.where,
            who=change.who,
            before=change.before,
            after=after,
            why=change.why,
        )
        if kind == "drain":
            event.endpoint = rest
        else:
            event.service, _, version = rest.partition("/")
            event.version = version or None
        self._webhooks.tell(event)

    # -- looking up -----------------------------------------------------------------------------------------------

    def _has(self, service: str, version: str) -> bool:
        found = self._gateway.balancer.services.get(service)
        return found is not None and any(each.name == version for each in found.versions)

    def _version(self, service: str, version: str) -> Version:
        for found in self._gateway.balancer.services[service].versions:
            if found.name == version:
                return found
        raise KeyError(version)

    def _endpoints(self, url: str) -> list[Endpoint]:
        """Endpoints of that URL, or workers of that name."""
        return [
            *self._gateway.balancer.workers.named(url),
            *self._of_url(url),
        ]

    def _of_url(self, url: str) -> list[Endpoint]:
        return [
            endpoint
            for service in self._gateway.balancer.services.values()
            for version in service.versions
            for endpoint in version.endpoints.values()
            if endpoint.url == url
        ]


def _file_weights(config: Config) -> dict[tuple[str, str], float]:
    return {
        (service, name): version.weight
        for service, found in config.services.items()
        for name, version in found.versions.items()
    }


def _number(change: Change) -> int:
    return change.n
