"""Tells the operational log what the balancer decided about endpoints and versions: ejections, breakers, panic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unjam.core.balancer import Balancer
    from unjam.core.service import Version


class News:
    """Asks the balancer now and then and says what is new. `log`: a structlog logger."""

    __slots__ = ("_balancer", "_log", "_panics", "_states")

    def __init__(self, balancer: Balancer, log: Any) -> None:
        self._balancer = balancer
        self._log = log
        self._states: dict[Version, str] = {}
        self._panics: set[Version] = set()

    def tell(self) -> None:
        """Say what has changed since the last call; called once a second."""
        for endpoint, seconds in self._balancer.ejections():
            self._log.warning(
                "ejected",
                endpoint=endpoint.name,
                service=endpoint.pool.version.service.name,
                failures=endpoint.failures,
                seconds=round(seconds, 1),
                why=endpoint.ejected_for or "failures in a row",
            )
        states: dict[Version, str] = {}
        panics: set[Version] = set()
        for service in self._balancer.services.values():
            for version in service.versions:
                state = states[version] = version.breaker.state
                before = self._states.get(version, "closed")
                if state != before:
                    tell = self._log.warning if state == "open" else self._log.info
                    why = version.breaker.why
                    tell("breaker", service=service.name, version=version.name, state=state, before=before, why=why)
                if version.panic:
                    panics.add(version)
                    if version not in self._panics:
                        self._log.warning(
                            "panic",
                            service=service.name,
                            version=version.name,
                            healthy=version.healthy,
                            of=version.members,
                            what="too few endpoints are healthy, so all of them are used",
                        )
        self._states = states
        self._panics = panics
