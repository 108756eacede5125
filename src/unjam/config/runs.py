"""The keys of durable runs: at the top level, and below each service."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from unjam.config.quantities import BadValue
from unjam.config.types import (
    CheckPath,
    Kind,
    Model,
    Origin,
    PositiveCount,
    PositiveDuration,
    PositiveSize,
    Switch,
    one_of,
    one_or_list,
)

#: What every store takes, and for how long ended runs are kept at least: `unjam.runs.store.base` has the same figures.
LARGEST = 16 << 20
KEPT_AT_LEAST = 3600.0
#: Seconds: a worker gives a sign of life every third of its lease, and one may get lost.
LEAST_LEASE = 3.0
#: Seconds: the longest a lost worker may keep its run.
MOST_LEASE = 3600.0


class Runs(Model):
    """Durable runs: work that outlives its client, its worker and this gateway. `runs: on` takes the defaults."""

    max_input: PositiveSize = Field(2**20, description="Input of one run; more is answered 413.")
    max_event: PositiveSize = Field(2**18, description="Data of one event.")
    max_result: PositiveSize = Field(2**24, description="Result of one run.")
    max_checkpoint: PositiveSize = Field(2**20, description="One checkpoint.")
    keep: PositiveDuration = Field(86400.0, description="Ended runs, their events and results are kept so long.")
    lease: PositiveDuration = Field(30.0, description="A worker that is silent for so long has lost its run.")
    max_queued: PositiveCount = Field(10_000, description="Runs of one service that may wait; more are answered 429.")
    wait: PositiveDuration = Field(3600.0, description="The longest that an answer is held for a run to go on or end.")
    dispatch: PositiveCount = Field(256, description="Runs that this gateway pushes to endpoints at once.")
    sockets: PositiveCount = Field(
        100_000, description="WebSocket clients at `/v1/ws`; one more is closed with 1013, to try elsewhere."
    )
    origins: Annotated[tuple[Origin, ...], BeforeValidator(one_or_list)] | None = Field(
        None, description="Origins of pages that may open `/v1/ws`, `*` for all. Unset: pages of this very host."
    )

    @model_validator(mode="after")
    def _in_bounds(self) -> Runs:
        for key in ("max_input", "max_event", "max_result", "max_checkpoint"):
            if getattr(self, key) > LARGEST:
                raise BadValue(f"{key} is more than the stores take", f"It may be at most {LARGEST >> 20}MiB.")
        if self.keep < KEPT_AT_LEAST:
            raise BadValue("keep is shorter than clients may be away", f"Give at least {KEPT_AT_LEAST / 3600:g}h.")
        if not LEAST_LEASE <= self.lease <= MOST_LEASE:
            raise BadValue(
                "lease is out of range", f"Give from {LEAST_LEASE:g}s to {MOST_LEASE / 3600:g}h; 30s is usual."
            )
        return self


class ServiceRuns(Model):
    """The service's durable runs, where the top level has `runs`. `off`: it takes none."""

    enabled: Switch = Field(True, description="`runs: off` is short for false.")
    execute: Annotated[str, one_of("push", "pull"), Kind("push or pull")] = Field(
        "push", description="`push`: the gateway calls an endpoint; `pull`: workers claim them."
    )
    retry: Annotated[str, one_of("fail", "restart"), Kind("fail or restart")] = Field(
        "fail", description="When a worker is lost after it has shown output and there is no checkpoint."
    )
    max_attempts: PositiveCount = Field(3, description="Executions of one run before it is given up.")
    timeout: PositiveDuration = Field(
        3600.0, description="A run that hasn't ended so long after its creation expires, unless it says otherwise."
    )
    max_queued_tenant: PositiveCount | None = Field(
        None,
        description="Runs of one tenant that may wait; more are answered 429. Unset: half of `max_queued` where `keys` "
        "name several tenants, else all.",
    )
    path: CheckPath | None = Field(
        None, description="Where the input of a pushed run is POSTed. Unset: the path that the service matches."
    )

    @property
    def pulled(self) -> bool:
        return self.enabled and self.execute == "pull"

    @model_validator(mode="after")
    def _in_bounds(self) -> ServiceRuns:
        if self.max_attempts > 100:
            raise BadValue("max_attempts above 100 multiply an outage", "Give at most 100.")
        return self
