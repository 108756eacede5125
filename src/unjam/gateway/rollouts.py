"""Carries out progressive rollouts: `core.promotion` decides, this moves the weights, and has it kept and told.

Each gateway judges the traffic it sees. Who finds a step passed takes the next one for all; who finds the new version
worse takes it back for all, and that wins over a step taken at the same moment elsewhere. Weights that somebody moved
by hand meanwhile are left alone: the rollout pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import isclose
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from unjam.admin.control import ControlRefused
from unjam.core import promotion
from unjam.core.promotion import Promotion, Seen

if TYPE_CHECKING:
    from unjam.core.service import Service, Version
    from unjam.core.spec import RolloutSpec
    from unjam.gateway.changes import Changes
    from unjam.gateway.gateway import Gateway
    from unjam.kept.base import Change

#: Seconds that weights may differ from what the rollout wants before it takes that for somebody's wish: another
#: gateway's come in two pieces.
PATIENCE: Final = 5.0
#: States in which it still has something to do.
UNDER_WAY: Final = ("running", "paused")


class Rollout:
    """Of one service. `before`: the weights when it began, of the versions that are there; `trips`: of the new
    version's breaker by then, for what it answered; `share`, `told`: that the new version was last given, and
    the weights for it, here or elsewhere; `strange`: since when the weights have been other than that."""

    __slots__ = ("before", "promotion", "recording", "share", "strange", "told", "trips")

    def __init__(self, spec: RolloutSpec) -> None:
        self.promotion = Promotion(spec)
        self.before: dict[str, float] = {}
        self.trips = 0
        self.share = self.promotion.share
        self.told: dict[str, float] = {}
        self.strange: float | None = None
        #: The last decision on its way to where it is kept.
        self.recording: asyncio.Task[str] | None = None

    @property
    def busy(self) -> bool:
        return self.recording is not None and not self.recording.done()

    def weights(self, share: float) -> dict[str, float]:
        """The weights that give the new version this share."""
        return promotion.weights(self.before, self.promotion.spec.version, share)

    def saved(self, now: float) -> dict[str, Any]:
        return {**self.promotion.saved(now), "share": self.promotion.share, "before": self.before}


class Rollouts:
    """All of a gateway; implements `admin.control.Rollouts`."""

    def __init__(self, gateway: Gateway, changes: Changes) -> None:
        self._gateway = gateway
        self._changes = changes
        self._rollouts: dict[str, Rollout] = {}
        changes.on_rollout = self._elsewhere

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Call this twice a second. Nothing is begun before it is known what was kept."""
        if not self._changes.loaded:
            return
        now = monotonic()
        for name, service in self._gateway.balancer.services.items():
            spec = service.spec.rollout
            if spec is None:
                continue
            rollout = self._rollouts.get(name)
            if rollout is None:
                self._take_up(name, service, spec, now)
            elif not rollout.busy:
                self._look(name, service, rollout, now)
        for name in [name for name in self._rollouts if not self._wanted(name)]:
            self._forget(name)

    def configured(self) -> None:
        """A new configuration is in force: steps, times and versions may be others."""
        for name, rollout in list(self._rollouts.items()):
            service = self._gateway.balancer.services.get(name)
            spec = None if service is None else service.spec.rollout
            if spec is None or service is None:
                continue
            if spec.version != rollout.promotion.spec.version:
                self._forget(name)  # another version's turn; taken up at the next tick
                continue
            now = monotonic()
            before = rollout.saved(now)
            self._regroup(service, rollout)
            if spec != rollout.promotion.spec:
                rollout.promotion = Promotion(spec)
                rollout.promotion.restore(before, *self._seen(service, spec.version), now)
                self._time(service, rollout)
            self._align(name, service, rollout, before)

    def _align(self, name: str, service: Service, rollout: Rollout, before: Any) -> None:
        """Steps or versions are others than when the weights were decided on: have those that go with the new ones. Not
        in place of what somebody, or the file itself, has set."""
        state = rollout.promotion
        if (
            self._as_told(service, rollout)
            and rollout.told != rollout.weights(state.share)
            and state.state in UNDER_WAY
        ):
            state.why = "the configuration was changed"
            self._changed(name, service, rollout, before, self._changes.where)

    def _as_told(self, service: Service, rollout: Rollout) -> bool:
        """Each version that was given a weight has it still."""
        return all(isclose(each.weight, rollout.told.get(each.name, each.weight)) for each in service.versions)

    def _regroup(self, service: Service, rollout: Rollout) -> None:
        """Versions may have come or gone."""
        if rollout.before.keys() != {each.name for each in service.versions}:
            rollout.before = {each.name: rollout.before.get(each.name, each.weight) for each in service.versions}
            rollout.promotion.recount(*self._seen(service, rollout.promotion.spec.version))
            self._time(service, rollout)

    def _wanted(self, name: str) -> bool:
        service = self._gateway.balancer.services.get(name)
        return service is not None and service.spec.rollout is not None

    def _forget(self, name: str) -> None:
        del self._rollouts[name]
        service = self._gateway.balancer.services.get(name)
        if service is not None:
            service.times = None

    def _take_up(self, name: str, service: Service, spec: RolloutSpec, now: float) -> None:
        """Go on with what was kept, or begin."""
        rollout = Rollout(spec)
        kept = self._changes.value(f"rollout/{name}")
        if (
            isinstance(kept, dict)
            and kept.get("version") == spec.version
            and self._restored(rollout, service, kept, now)
        ):
            self._rollouts[name] = rollout
            if rollout.promotion.state == "running":
                # What it had held when that was kept, and what has passed since.
                rollout.promotion.since -= self._changes.age(f"rollout/{name}")
            self._regroup(service, rollout)
            self._align(name, service, rollout, dict(kept))
            return
        self._begin(name, service, spec, self._changes.where, "configured", now)

    def _restored(self, rollout: Rollout, service: Service, kept: Mapping[str, Any], now: float) -> bool:
        spec = rollout.promotion.spec
        try:
            rollout.promotion.restore(kept, *self._seen(service, spec.version), now)
            rollout.before = {str(version): float(weight) for version, weight in kept["before"].items()}
            # By its own steps, which may be other ones than ours until the next reload.
            rollout.share = float(kept.get("share", rollout.promotion.share))
            rollout.told = rollout.weights(rollout.share)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._gateway.log.warning("rollout_unreadable", service=service.name, why=repr(error))
            return False
        rollout.trips = _trips(self._version(service, spec.version))
        self._time(service, rollout)
        return True

    def _begin(self, name: str, service: Service, spec: RolloutSpec, who: str, why: str, now: float) -> None:
        rollout = self._rollouts[name] = Rollout(spec)
        rollout.before = {version.name: version.weight for version in service.versions}
        rollout.trips = _trips(self._version(service, spec.version))
        rollout.promotion.begin(0, *self._seen(service, spec.version), now, why)
        self._changed(name, service, rollout, None, who)

    def _look(self, name: str, service: Service, rollout: Rollout, now: float) -> None:
        state = rollout.promotion
        if state.state not in UNDER_WAY:
            return
        version = self._version(service, state.spec.version)
        if version.down:
            # Nobody can reach it, which says nothing of its answers: it waits where it is.
            return
        if state.state == "running" and self._moved(service, rollout, now):
            before = rollout.saved(now)
            state.pause(now)
            state.why = "paused: the weights were changed by hand"
            self._changed(name, service, rollout, before, self._changes.where, weigh=False)
            return
        tripped = version.breaker.why if _trips(version) > rollout.trips else ""
        if rollout.strange is not None and not tripped:
            return  # whatever is due would overrule who has just set them
        before = rollout.saved(now)
        if state.look(*self._seen(service, state.spec.version), tripped, now):
            self._changed(name, service, rollout, before, self._changes.where)

    def _moved(self, service: Service, rollout: Rollout, now: float) -> bool:
        """Somebody else has been setting the weights for a while."""
        actual = {version.name: version.weight for version in service.versions}
        total = sum(actual.values())
        share = actual[rollout.promotion.spec.version] / total if total else 0.0
        if isclose(share, rollout.share, abs_tol=1e-4) or self._as_told(service, rollout):
            rollout.strange = None
        elif rollout.strange is None:
            rollout.strange = now
        return rollout.strange is not None and now - rollout.strange >= PATIENCE

    def _changed(
        self, name: str, service: Service, rollout: Rollout, before: Any, who: str, weigh: bool = True
    ) -> None:
        """The promotion decided: have it in force, kept and told."""
        self._time(service, rollout)
        state = rollout.promotion
        self._gateway.log.info(
            "rollout",
            service=name,
            version=state.spec.version,
            state=state.state,
            share=state.share,
            who=who,
            why=state.why,
        )
        weights = self._weights(service, rollout) if weigh else None
        rollout.strange = None
        rollout.share = state.share
        rollout.told = rollout.weights(state.share)
        after = rollout.saved(monotonic())
        rollout.recording = self._changes.rollout(name, before, after, who, state.why, weights)

    def _weights(self, service: Service, rollout: Rollout) -> dict[str, float]:
        """What the versions are to have now. One that goes back leaves those of the others as somebody has set them."""
        state = rollout.promotion
        if state.state == "rolled_back" and not self._as_told(service, rollout):
            mine = state.spec.version
            if any(each.weight for each in service.versions if each.name != mine):
                return {mine: 0.0}
        return rollout.weights(state.share)

    # -- others' decisions ------------------------------------------------------------------------------------------

    def _elsewhere(self, name: str, change: Change) -> None:
        """Another gateway, or this one in an earlier life, has decided."""
        rollout = self._rollouts.get(name)
        service = self._gateway.balancer.services.get(name)
        if rollout is None or service is None or not isinstance(change.after, dict):
            return
        if change.after.get("version") != rollout.promotion.spec.version:
            return
        mine, now = rollout.promotion, monotonic()
        step_taken = change.who == change.where and change.after.get("state") in ("running", "promoted")
        if rollout.busy:
            return  # what was decided here is on its way, and later than this
        if mine.state == "rolled_back" and step_taken:
            # It had not heard of what was found here.
            self._changed(name, service, rollout, change.after, self._changes.where)
            return
        if self._restored(rollout, service, change.after, now):
            # Who was reloaded before us, or wasn't yet, knows other versions.
            self._regroup(service, rollout)

    # -- the admin's ------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, dict[str, Any]]:
        return {name: self._row(name, rollout) for name, rollout in self._rollouts.items() if self._wanted(name)}

    async def start(self, service: str, version: str | None, who: str) -> dict[str, Any]:
        found = self._service(service)
        spec = found.spec.rollout
        assert spec is not None
        if version is not None and version != spec.version:
            message = (
                f"The rollout of {service} is for {spec.version}: name another version in its file (rollout.version)."
            )
            raise ControlRefused("not_configured", message, 409)
        self._begin(service, found, spec, who, "started by hand", monotonic())
        return await self._answer(service)

    async def pause(self, service: str, who: str) -> dict[str, Any]:
        rollout, now = await self._of(service, "running"), monotonic()
        before = rollout.saved(now)
        rollout.promotion.pause(now)
        self._changed(service, self._service(service), rollout, before, who, weigh=False)
        return await self._answer(service)

    async def resume(self, service: str, who: str) -> dict[str, Any]:
        rollout, now = await self._of(service, "paused"), monotonic()
        before = rollout.saved(now)
        rollout.promotion.resume(now)
        self._changed(service, self._service(service), rollout, before, who)
        return await self._answer(service)

    async def promote(self, service: str, who: str) -> dict[str, Any]:
        rollout, now = await self._of(service, *UNDER_WAY), monotonic()
        found = self._service(service)
        before = rollout.saved(now)
        rollout.promotion.promote(*self._seen(found, rollout.promotion.spec.version), now, "promoted by hand")
        self._changed(service, found, rollout, before, who)
        return await self._answer(service)

    async def abort(self, service: str, who: str) -> dict[str, Any]:
        rollout, now = await self._of(service, *UNDER_WAY, "promoted"), monotonic()
        before = rollout.saved(now)
        rollout.promotion.abort("aborted by hand")
        self._changed(service, self._service(service), rollout, before, who)
        return await self._answer(service)

    async def _answer(self, name: str) -> dict[str, Any]:
        rollout = self._rollouts[name]
        await self._settled(rollout)
        return self._row(name, rollout)

    async def _settled(self, rollout: Rollout) -> None:
        if rollout.recording is not None:
            await asyncio.wait([rollout.recording])

    def _row(self, name: str, rollout: Rollout) -> dict[str, Any]:
        state, now = rollout.promotion, monotonic()
        service = self._gateway.balancer.services[name]
        new, old = self._seen(service, state.spec.version)
        running = state.state == "running"
        return {
            "version": state.spec.version,
            "state": state.state,
            "share": state.share,
            "step": state.step,
            "steps": list(state.spec.steps),
            "hold": state.spec.hold,
            "held": state.saved(now)["held"],
            "waits_for": self._waits(service, state, new, now) if running else "",
            "why": state.why,
            "new": state.of_step(new, old)[0]._asdict(),
            "old": state.of_step(new, old)[1]._asdict(),
        }

    def _waits(self, service: Service, state: Promotion, new: Seen, now: float) -> str:
        if self._version(service, state.spec.version).down:
            return "no endpoint of it is in service"
        return state.waits(new, now)

    # -- looking up -------------------------------------------------------------------------------------------------

    async def _of(self, name: str, *states: str) -> Rollout:
        self._service(name)
        rollout = self._rollouts.get(name)
        if rollout is None:
            raise ControlRefused("not_begun", "The rollout has not begun: what was kept of it is not known yet.", 503)
        await self._settled(rollout)
        if rollout.promotion.state not in states:
            message = (
                f"The rollout of {name} is {rollout.promotion.state.replace('_', ' ')}, not {' or '.join(states)}."
            )
            raise ControlRefused("not_now", message, 409)
        return rollout

    def _service(self, name: str) -> Service:
        service = self._gateway.balancer.services.get(name)
        if service is None:
            raise ControlRefused("unknown_service", f"There is no service {name}: `unjam status` lists them.", 404)
        if service.spec.rollout is None:
            raise ControlRefused("no_rollout", f"{name} has no rollout: write rollout: {{}} below it in the file.", 404)
        return service

    def _version(self, service: Service, name: str) -> Version:
        return next(version for version in service.versions if version.name == name)

    def _seen(self, service: Service, version: str) -> tuple[Seen, Seen]:
        """What the new version has done, and the others together."""
        new, old = Seen(0, 0, 0, 0), Seen(0, 0, 0, 0)
        for each in service.versions:
            counts = each.counts
            seen = Seen(counts.calls, counts.failures, counts.good + counts.bad, counts.bad)
            if each.name == version:
                new = seen
            else:
                old = Seen(*(a + b for a, b in zip(old, seen, strict=True)))
        return new, old

    def _time(self, service: Service, rollout: Rollout) -> None:
        """Have the core note durations, as long as they are of use."""
        state = rollout.promotion
        service.times = state.times if state.state in UNDER_WAY else None


def _trips(version: Version) -> int:
    """Of its breaker, other than for want of an endpoint that can be reached."""
    return version.breaker.trips - version.outages
