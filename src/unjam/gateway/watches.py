"""Which watches an endpoint has, by its service's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from unjam.gateway.agentpoll import AgentPoll
from unjam.gateway.probes import HealthWatch
from unjam.gateway.scrape import Scrape
from unjam.gateway.watch import Watch

if TYPE_CHECKING:
    from unjam.core.spec import ServiceSpec
    from unjam.gateway.upstream import Upstream


def renew(current: Sequence[Watch[Any]], upstream: Upstream, spec: ServiceSpec, rng: Random) -> list[Watch[Any]]:
    """The watches of an endpoint from now on: those of `current` that are as they should be go on, others are stopped,
    and what is missing is started."""
    wanted = list(_wanted(upstream, spec))
    kept = {
        type(watch): watch for watch in current if (type(watch), watch.spec) in wanted and watch.upstream is upstream
    }
    for watch in current:
        if kept.get(type(watch)) is not watch:
            watch.stop()
    return [kept.get(kind) or kind(upstream.gateway, upstream, each, rng) for kind, each in wanted]


def _wanted(upstream: Upstream, spec: ServiceSpec) -> Iterator[tuple[type[Watch[Any]], Any]]:
    if spec.health is not None:
        yield HealthWatch, spec.health
    if spec.load.metrics is not None:
        yield Scrape, spec.load.metrics
    if spec.load.agent_check is not None and upstream.unix_path is None:
        yield AgentPoll, spec.load.agent_check
