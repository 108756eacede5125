"""The keys that say which version a request gets beyond its weight. Defaults are those of `unjam.core.spec`."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from unjam.config.quantities import BadValue
from unjam.config.types import (
    Duration,
    FieldName,
    FieldValue,
    Kind,
    Model,
    Name,
    Number,
    PositiveCount,
    PositiveDuration,
    PositiveShare,
    Text,
    one_of,
    one_or_list,
)
from unjam.core import spec

_OVERFLOW = spec.OverflowSpec("")
_ROLLOUT = spec.RolloutSpec("")


class Overflow(Model):
    """Spill-over to another version when this one has no free slot. `overflow: NAME` is short for `to`."""

    to: Name = Field(description="The version that takes it, as far as it has free slots.")
    after: Duration = Field(_OVERFLOW.after, description="How long a request waits here first.")


class Rollout(Model):
    """Gives a new version more of the traffic step by step, while it is no worse than the others."""

    version: Name | None = Field(None, description="The new one. Unset: the last that is listed.")
    steps: Annotated[tuple[PositiveShare, ...], BeforeValidator(one_or_list)] = Field(
        _ROLLOUT.steps, description="Shares of the traffic, rising to 100 %."
    )
    hold: PositiveDuration = Field(_ROLLOUT.hold, description="Shortest time of a step.")
    min_requests: PositiveCount = Field(_ROLLOUT.min_requests, description="Fewest calls of the version in a step.")

    @model_validator(mode="after")
    def _rising(self) -> Rollout:
        steps = self.steps
        if not steps or steps[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise(steps)):
            raise BadValue("the steps don't rise to 100 %", "Write steps: [1%, 10%, 50%, 100%].")
        return self


class SplitRule(Model):
    """Weights of their own for some requests: all that is given must hold."""

    lane: Annotated[str, one_of(spec.FAST, spec.HEAVY), Kind("fast or heavy")] | None = Field(
        None, description="Requests of this lane."
    )
    header: dict[FieldName, FieldValue] = Field({}, description="Headers and their exact values; `*`: present.")
    tenant: Text | None = Field(None, description="Requests with keys of this tenant.")
    weights: dict[Name, Number] = Field(description="Weights by version; those not named get none.")

    @model_validator(mode="after")
    def _useful(self) -> SplitRule:
        if self.lane is None and not self.header and self.tenant is None:
            raise BadValue(
                "holds for every request", "Give a lane, header or tenant; or set the versions' own weights."
            )
        if not any(self.weights.values()):
            raise BadValue("every weight is 0, so nothing could be served", "Give one version a weight above 0.")
        return self
