"""What the values of the keys look like. Others may write where gateways keep their decisions: what isn't one of ours
is refused where it is read, and not where it would do harm."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from unjam.core import breaker, promotion
from unjam.kept.base import Change


def problem(change: Change) -> str:
    """Why a change can't be put in force, in words; empty for a proper one."""
    kind, _, rest = change.key.partition("/")
    after = change.after
    if not rest:
        return "its key is none of ours"
    if kind == "drain":
        return "" if isinstance(after, bool) else "whether an endpoint is drained is true or false"
    if kind == "breaker":
        return "" if after in breaker.STATES else f"a breaker is {', '.join(breaker.STATES)}"
    if kind == "weight":
        return _weight(after)
    if kind == "rollout":
        return _rollout(after)
    return "its key is none of ours"


def _weight(after: Any) -> str:
    if not isinstance(after, Mapping) or not _amount(after.get("weight")) or not _amount(after.get("base")):
        return "a weight is {weight, base}, numbers from 0"
    return ""


def _rollout(after: Any) -> str:
    if not isinstance(after, Mapping):
        return "a rollout is an object"
    before, step = after.get("before"), after.get("step")
    if not isinstance(after.get("version"), str) or after.get("state") not in promotion.STATES:
        return f"a rollout has a version, and a state of {', '.join(promotion.STATES)}"
    if not isinstance(step, int) or isinstance(step, bool) or step < 0 or not _amount(after.get("held")):
        return "a rollout has a step and the seconds it was held, from 0"
    if not isinstance(before, Mapping) or not all(_amount(weight) for weight in before.values()):
        return "a rollout has the weights from before it, by version"
    return ""


def _amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0
