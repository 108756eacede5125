"""The keys below `quality`: who judges answers. Defaults of the core are those of `unjam.core.spec`."""

from __future__ import annotations

import re
import warnings
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from unjam.config.quantities import BadValue, shown
from unjam.config.types import (
    Count,
    FilePath,
    Kind,
    Model,
    Name,
    PositiveCount,
    PositiveDuration,
    PositiveShare,
    PositiveSize,
    Switch,
    one_or_list,
    text,
)
from unjam.config.webhooks import hook_url
from unjam.core import spec

_QUALITY = spec.QualitySpec()
_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\Z", re.ASCII)
#: Bytes of an answer that may be kept for evaluators.
_LARGEST_MOST = 16 << 20
#: Characters of a regular expression.
_REGEX_MOST = 10_000


def _regex(value: object) -> str:
    plain = text(value)
    try:
        if len(plain) > _REGEX_MOST:
            raise ValueError(f"has more than {_REGEX_MOST} characters")
        re.compile(plain)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        why = str(error) if str(error).isprintable() else "it can't be read"
        raise BadValue(f"is not a regular expression: {why[:100]}", "Write it as Python has them.") from None
    return plain


def _function(value: object) -> str:
    plain = text(value)
    if not _FUNCTION.match(plain):
        raise BadValue(f"{shown(plain)} is not a function's name", "Write module:function, such as checks:grounded.")
    return plain


def _hook(value: object) -> str:
    return hook_url(value, "https://judge.example.com/verdict")


Regex = Annotated[str, PlainValidator(_regex), Kind("regular expression")]


class Length(Model):
    """Characters of what the agent said."""

    least: Count = Field(0, description="Fewer characters are bad.")
    most: Count | None = Field(None, description="More characters are bad.")

    @model_validator(mode="after")
    def _in_order(self) -> Length:
        if self.most is None and not self.least:
            raise BadValue("lets everything pass", "Give least:, most: or both.")
        if self.most is not None and self.most < self.least:
            raise BadValue("most is less than least", "Raise most or lower least.")
        return self


class Pattern(Model):
    """Regular expressions, searched anywhere in what the agent said."""

    must: Regex | None = Field(None, description="Answers without it are bad.")
    never: Regex | None = Field(None, description="Answers with it are bad.")

    @model_validator(mode="after")
    def _some(self) -> Pattern:
        if self.must is None and self.never is None:
            raise BadValue("has nothing to look for", "Give must:, never: or both.")
        return self


KINDS = ("schema", "refusal", "repetition", "length", "pattern", "python", "http")


with warnings.catch_warnings():
    # pydantic's own `schema`, long deprecated, is of no use here.
    warnings.simplefilter("ignore", UserWarning)

    class Evaluator(Model):
        """Judges an answer, in one of these ways."""

        name: Name | None = Field(None, description="In metrics and logs. Unset: the way, such as `schema`.")
        schema: FilePath | None = Field(  # type: ignore[assignment]
            None, description="JSON schema that the answer must fit. Relative to the configuration file."
        )
        refusal: Switch = Field(False, description="Answers that begin like a refusal are bad.")
        repetition: Switch = Field(False, description="Answers that go round in a loop are bad.")
        length: Length | None = Field(None, description="Answers that are too short or too long are bad.")
        pattern: Pattern | None = Field(None, description="Answers with or without a pattern are bad.")
        python: Annotated[str, PlainValidator(_function), Kind("module:function")] | None = Field(
            None, description="A function that says whether it is good."
        )
        http: Annotated[str, PlainValidator(_hook), Kind("http URL")] | None = Field(
            None, description="A URL that is asked. Of https the certificate is verified.", repr=False
        )

        @property
        def kind(self) -> str:
            return next(each for each in KINDS if getattr(self, each))

        @property
        def label(self) -> str:
            return self.name or self.kind

        @model_validator(mode="after")
        def _one(self) -> Evaluator:
            given = [each for each in KINDS if getattr(self, each)]
            if len(given) != 1:
                fix = f"Give each evaluator one of {', '.join(KINDS)}."
                raise BadValue("judges in no way" if not given else f"is {' and '.join(given)} at once", fix)
            return self


class Quality(Model):
    """Judges answers, and takes a version out of traffic on evidence that too many are bad."""

    error_rate: PositiveShare = Field(
        _QUALITY.error_rate, description="Of answers that evaluators looked at: trips on evidence that more are bad."
    )
    sample: PositiveShare = Field(0.1, description="Share of the answers that evaluators look at.")
    largest: PositiveSize = Field(256 << 10, description="Longer answers are not looked at.")
    queue: PositiveCount = Field(1000, description="Answers that may wait to be looked at; more are dropped.")
    timeout: PositiveDuration = Field(10.0, description="Time that one evaluator has for one answer.")
    evaluators: Annotated[tuple[Evaluator, ...], BeforeValidator(one_or_list)] = Field(
        (), description="Who looks. None: users' verdicts alone."
    )

    @model_validator(mode="after")
    def _sound(self) -> Quality:
        if self.error_rate > 0.5:
            raise BadValue("error_rate above 50% would not tell a broken version", "Give a share up to 50%.")
        if self.largest > _LARGEST_MOST:
            raise BadValue("largest is too large to be kept in memory", "Give at most 16MiB.")
        labels = [each.label for each in self.evaluators]
        for label in labels:
            if labels.count(label) > 1:
                raise BadValue(f"two evaluators are called {label}", "Give them names: {name: short, length: ...}.")
        if not self.evaluators and (given := sorted(self.model_fields_set - {"evaluators"})):
            raise BadValue(f"{given[0]} has no use without evaluators", "Add evaluators:, or write quality: on.")
        return self
