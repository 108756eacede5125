"""The keys below `breaker`. Defaults are those of `unjam.core.spec`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator, model_validator

from unjam.config.quantities import BadValue, format_share, share
from unjam.config.types import Count, Kind, Model, PositiveCount, PositiveDuration, PositiveShare, Switch, one_of
from unjam.core import spec
from unjam.core.evidence import LEARN_CALLS, allowed

_BREAKER = spec.BreakerSpec()
#: A byte for each call and version.
_WINDOW_MOST = 100_000


def _baseline(value: object) -> float | str:
    return "learn" if value == "learn" else share(value)


class Breaker(Model):
    """Takes a version out of traffic on evidence of errors."""

    enabled: Switch = Field(_BREAKER.enabled, description="`breaker: off` is short for false.")
    error_rate: PositiveShare = Field(_BREAKER.error_rate, description="Trips on evidence that more than this fails.")
    open: PositiveDuration = Field(_BREAKER.open, description="Out of traffic for so long, then ramped back.")
    rule: Annotated[str, one_of("cusum", "window"), Kind("cusum or window")] = Field(
        _BREAKER.rule, description="`cusum`: evidence adds up, call by call. `window`: counts the last `window` calls."
    )
    window: PositiveCount = Field(
        _BREAKER.window, description="With `rule: window`: trips when more than `error_rate` of so many calls failed."
    )
    least: Count = Field(_BREAKER.least, description="With `rule: window`: calls to be seen first.")
    baseline: (
        Annotated[float | str, PlainValidator(_baseline), Kind("share or learn", lambda v: format_share(v))] | None
    ) = Field(
        None,
        description="The rate at which a good version fails. Unset: 0.4 × `error_rate`. `learn`: measured, from "
        f"{LEARN_CALLS:,} calls of the version on, and taken for `error_rate` at most.",
    )

    @model_validator(mode="after")
    def _sound(self) -> Breaker:
        if self.error_rate > 0.5:
            raise BadValue("error_rate above 50% would not tell a broken version", "Give a share up to 50%.")
        if isinstance(self.baseline, float) and self.baseline >= self.error_rate:
            raise BadValue(
                "baseline is not below error_rate, so what is normal would be too much",
                "Raise error_rate or lower baseline.",
            )
        if self.rule != "window":
            if given := sorted(self.model_fields_set & {"window", "least"}):
                raise BadValue(f"{given[0]} has no use with rule: {self.rule}", "Write rule: window, or remove it.")
            return self
        if self.window > _WINDOW_MOST:
            raise BadValue(
                f"a window of {self.window:,} calls is too large", f"Give at most {_WINDOW_MOST:,}, or rule: cusum."
            )
        if "least" in self.model_fields_set and not 1 <= self.least <= self.window:
            raise BadValue("least must be from 1 to window", "Give it so many, or remove it.")
        if allowed(self.error_rate, self.window) < 1:
            raise BadValue(
                f"error_rate of {self.window} calls is less than one, so a single failure would trip",
                "Raise window or error_rate.",
            )
        return self

    def to_spec(self) -> spec.BreakerSpec:
        return spec.BreakerSpec(
            error_rate=self.error_rate,
            open=self.open,
            enabled=self.enabled,
            rule=self.rule,
            window=self.window,
            least=min(self.least, self.window),
            baseline=self.baseline if isinstance(self.baseline, float) else None,
            learn=self.baseline == "learn",
        )
