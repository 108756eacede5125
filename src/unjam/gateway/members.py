"""Endpoints that reporters speak for: those of the configuration, and those that joined by a report.

An endpoint that joined serves at once. It gets nothing new when its reporter has been silent for `expire` seconds, and
is removed after ten times as long, or when its reporter says that it leaves. A reload keeps it as long as its version
is there, still discovers, still allows its address, and doesn't list it itself.

Who may join is decided by the token, the version's `discover`, and the address: a gateway that connects wherever it is
told to is a way into its own network.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Final

from unjam.config.address import Target, is_loopback, parse_url
from unjam.config.quantities import BadValue
from unjam.core.spec import EndpointSpec, Topology
from unjam.telemetry.escape import printable

if TYPE_CHECKING:
    from unjam.config import Config
    from unjam.config.services import Discover
    from unjam.core.endpoint import Endpoint
    from unjam.core.service import Version
    from unjam.gateway.gateway import Gateway

#: An endpoint that joined is removed after so many times `expire` without a report.
GONE_AFTER: Final = 10.0
#: Seconds of silence for one that was draining: before its last word (`REPORT_LIFE`) is forgotten, as it won't be back.
DRAINED: Final = 10.0
#: Most endpoints that may join one gateway.
MOST: Final = 10_000
#: Spellings of (service, version, URL) that are remembered.
MOST_NAMES: Final = 4 * MOST
#: Seconds between two lines of the log on refused reports of one endpoint, and most endpoints told apart for it.
SAY_EVERY: Final = 60.0
MOST_SAID: Final = 1024

#: What becomes of reports beside what `loads` says; labels of `unjam_reports_total`.
BAD_REPORT: Final = "bad_report"
UNAUTHORIZED: Final = "unauthorized"
UNKNOWN: Final = "unknown"
NOT_ALLOWED: Final = "not_allowed"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """A report that is not taken. `status` and `code`: of the answer; `result`: what it counts as."""

    def __init__(self, status: int, code: str, message: str, result: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.result = result


class Member:
    """An endpoint that somebody reports on. `joined`: by a report, rather than by the configuration. `heard`: when it
    was last reported on, monotonic seconds. `draining`: so it said."""

    __slots__ = ("draining", "endpoint", "heard", "joined", "silent")

    def __init__(self, endpoint: Endpoint, joined: bool, now: float) -> None:
        self.endpoint = endpoint
        self.joined = joined
        self.heard = now
        self.silent = False
        self.draining = False


class Members:
    """The books of one gateway. `equip`, `unequip`: give an endpoint its connections and checks, and take them away.
    `clock`: monotonic seconds."""

    def __init__(
        self,
        gateway: Gateway,
        equip: Callable[[Endpoint], None],
        unequip: Callable[[Endpoint], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.clock = clock
        self.expire = 60.0
        self._gateway = gateway
        self._equip = equip
        self._unequip = unequip
        self._members: dict[Endpoint, Member] = {}
        #: By the words of the reports; emptied when anything leaves.
        self._names: dict[tuple[str, str | None, str], Member] = {}
        self._discover: dict[tuple[str, str], Discover | None] = {}
        self._said: dict[str, float] = {}

    # -- configuration ---------------------------------------------------------------------------------------------

    def merge(self, config: Config) -> Topology:
        """The topology of `config` with the endpoints that joined and may stay."""
        topology = config.topology()
        services = dict(topology.services)
        for member in self._members.values():
            endpoint = member.endpoint
            version = endpoint.pool.version
            if not member.joined or not self._may_stay(endpoint, version, config):
                continue
            spec = services[version.service.name]
            services[spec.name] = replace(
                spec,
                versions=tuple(
                    replace(each, endpoints=(*each.endpoints, endpoint.given)) if each.name == version.name else each
                    for each in spec.versions
                ),
            )
        return Topology(services=services, regions=topology.regions)

    def _may_stay(self, endpoint: Endpoint, version: Version, config: Config) -> bool:
        service = config.services.get(version.service.name)
        found = service.versions.get(version.name) if service is not None else None
        if found is None or found.discover is None or any(each.url == endpoint.url for each in found.endpoints):
            return False
        if endpoint.given.region is not None and endpoint.given.region not in config.regions:
            return False
        return not _forbidden(parse_url(endpoint.url), found.discover, "")

    def configured(self, config: Config) -> None:
        """`config`, with what `merge` added, has been put in force: forget what is gone or not ours any more."""
        if config.reporters is not None:
            self.expire = config.reporters.expire
        self._discover = {
            (name, version): each.discover
            for name, service in config.services.items()
            for version, each in service.versions.items()
        }
        listed = {
            (name, version, endpoint.url)
            for name, service in config.services.items()
            for version, each in service.versions.items()
            for endpoint in each.endpoints
        }
        for member in list(self._members.values()):
            endpoint = member.endpoint
            if endpoint.removed:
                self._forget(member)
                if member.joined:
                    self._gateway.log.info(
                        "endpoint_left", **_named(member), why="the configuration has no place for it"
                    )
            elif member.joined and (*_place(endpoint), endpoint.url) in listed:
                member.joined = endpoint.discovered = False
                self._gateway.stats.endpoints_discovered -= 1
                self._silence(member, False, self.clock())
        self._names.clear()

    # -- reports ---------------------------------------------------------------------------------------------------

    def meet(self, service: str, version: str | None, url: str) -> tuple[Member | None, Version, Target | None]:
        """Who is spoken of: the member if there is one, else the version it would join and its address. Raises
        `Refused` for what isn't known here or is no URL."""
        member = self._names.get((service, version, url))
        if member is not None:
            return member, member.endpoint.pool.version, None
        found = self._version(service, version)
        try:
            target = parse_url(url)
        except BadValue as error:
            raise Refused(400, "bad_report", f"url: {error.message}. {error.fix}", BAD_REPORT) from None
        endpoint = found.endpoints.get(target.url)
        if endpoint is None:
            return None, found, target
        member = self._members.get(endpoint)
        if member is None:
            member = self._members[endpoint] = Member(endpoint, False, self.clock())
        if len(self._names) >= MOST_NAMES:
            self._names.clear()
        self._names[service, version, url] = member
        return member, found, target

    def _version(self, service: str, version: str | None) -> Version:
        found = self._gateway.balancer.services.get(service)
        if found is None:
            raise Refused(404, "unknown_service", f"There is no service {printable(service, 64)}.", UNKNOWN)
        if version is None:
            if len(found.versions) != 1:
                names = ", ".join(each.name for each in found.versions)
                raise Refused(400, "bad_report", f"version: {found.name} has several: name one of {names}.", BAD_REPORT)
            return found.versions[0]
        for each in found.versions:
            if each.name == version:
                return each
        raise Refused(404, "unknown_version", f"{found.name} has no version {printable(version, 64)}.", UNKNOWN)

    def may_join(self, version: Version, target: Target, region: str | None, peer: str) -> None:
        """Raises `Refused` when this endpoint may not be added to the version by somebody at `peer`."""
        discover = self._discover.get((version.service.name, version.name))
        if discover is None:
            raise Refused(
                409,
                "not_discoverable",
                f"{target.url} is not listed in version {version.name}, which takes no others: list it, or say "
                "discover: true.",
                NOT_ALLOWED,
            )
        problem = _forbidden(target, discover, peer)
        if problem:
            raise Refused(403, "address_not_allowed", problem, NOT_ALLOWED)
        if region is not None and region not in self._gateway.balancer.regions:
            raise Refused(400, "bad_report", f"region: there is no region {printable(region, 64)}.", BAD_REPORT)
        if self._gateway.stats.endpoints_discovered >= MOST:
            raise Refused(409, "too_many_endpoints", f"{MOST:,} endpoints have joined: no more can.", NOT_ALLOWED)

    def join(self, version: Version, spec: EndpointSpec, now: float) -> Member:
        """Add an endpoint that `may_join`, with connections and checks of its own; it serves at once."""
        endpoint = self._gateway.balancer.join(version.service.name, version.name, spec, now)
        member = self._members[endpoint] = Member(endpoint, True, now)
        self._gateway.stats.endpoints_discovered += 1
        self._equip(endpoint)
        self._gateway.log.info("endpoint_joined", **_named(member))
        return member

    def heard(self, member: Member, now: float) -> None:
        """Its reporter lives, whatever it says."""
        member.heard = now
        if member.silent:
            self._silence(member, False, now)

    def leave(self, member: Member, now: float, why: str) -> None:
        """It joined, and leaves: what runs on it may end."""
        self._forget(member)
        self._gateway.log.info("endpoint_left", **_named(member), why=why)
        decided = self._gateway.balancer.leave(member.endpoint, now)
        self._unequip(member.endpoint)
        self._gateway.carry_out(decided, now)

    def drop(self, member: Member) -> None:
        """Nobody reports on it any more; it is the configuration's."""
        self._forget(member)

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second: reporters that have fallen silent."""
        now = self.clock()
        expire = self.expire
        for member in list(self._members.values()):
            quiet = now - member.heard
            if quiet < (min(expire, DRAINED) if member.draining else expire):
                continue
            if not member.silent:
                self._gateway.log.warning("reporter_silent", **_named(member), seconds=round(quiet, 1))
                self._silence(member, True, now)
            if not member.joined:
                self._forget(member)
            elif quiet >= GONE_AFTER * expire:
                self.leave(member, now, f"its reporter was silent for {quiet:.0f} s")

    def _silence(self, member: Member, silent: bool, now: float) -> None:
        member.silent = silent
        if member.joined or not silent:
            self._gateway.carry_out(self._gateway.balancer.silence(member.endpoint, silent, now), now)

    # -- telling ---------------------------------------------------------------------------------------------------

    def refused(self, name: str, code: str, why: str, now: float) -> None:
        """Tell the operator of refused reports: once a minute for each endpoint. `name`: of the endpoint, as given."""
        said = self._said.get(name)
        if said is not None and now - said < SAY_EVERY:
            return
        if said is None and len(self._said) >= MOST_SAID:
            self._said = {each: at for each, at in self._said.items() if now - at < SAY_EVERY}
            if len(self._said) >= MOST_SAID:
                return
        self._said[name] = now
        self._gateway.log.warning("reports_refused", endpoint=printable(name, 256), reason=code, why=printable(why))

    def _forget(self, member: Member) -> None:
        self._names.clear()
        if self._members.pop(member.endpoint, None) is not None and member.joined:
            self._gateway.stats.endpoints_discovered -= 1


def _named(member: Member) -> dict[str, str]:
    """For the log."""
    service, version = _place(member.endpoint)
    return {"endpoint": member.endpoint.name, "service": service, "version": version}


def _place(endpoint: Endpoint) -> tuple[str, str]:
    version = endpoint.pool.version
    return version.service.name, version.name


def _forbidden(target: Target, discover: Discover, peer: str) -> str:
    """Why an endpoint at this address may not join; empty when it may. `peer`: address of who adds it, empty when it
    has been added before."""
    if target.scheme == "unix":
        return "A Unix socket can't be added by a reporter: list it in the configuration."
    address = _ip(target.host)
    if address is None and _is_number(target.host):
        return f"{target.host} is an odd way to write an address: write it with four numbers and dots."
    if discover.networks is not None:
        if address is None:
            return f"{target.host} is a name, and this version discovers networks: give the address."
        if not any(address in network for network in discover.networks):
            return f"{target.host} is in none of the networks that this version discovers."
        return ""
    if address is not None and (address.is_unspecified or address.is_multicast or address.is_link_local):
        return f"{target.host} is no address of a server: only networks that are listed in discover may be like that."
    here = is_loopback(target.host if address is None else str(address))
    if here and peer not in ("", "unix") and not is_loopback(str(_ip(peer) or peer)):
        return f"{target.host} is this gateway's own machine, and the report comes from another: give its address."
    return ""


def _is_number(host: str) -> bool:
    """A resolver takes it for an address although it isn't written as one: 0x7f000001, 127.1, 2130706433."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


def _ip(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
