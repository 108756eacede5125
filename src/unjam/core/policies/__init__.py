"""The policies by name. A new one is one file here and one line below."""

from __future__ import annotations

from typing import Final

from unjam.core.policies.base import Policy
from unjam.core.policies.least_loaded import LeastLoaded
from unjam.core.policies.least_outstanding import LeastOutstanding
from unjam.core.policies.peak_ewma import PeakEwma
from unjam.core.policies.power_of_two import PowerOfTwo
from unjam.core.policies.random import RandomChoice
from unjam.core.policies.rendezvous import Rendezvous
from unjam.core.policies.round_robin import RoundRobin
from unjam.core.policies.weighted_round_robin import WeightedRoundRobin

POLICIES: Final[dict[str, type[Policy]]] = {
    policy.name: policy
    for policy in (
        LeastLoaded,
        LeastOutstanding,
        RoundRobin,
        WeightedRoundRobin,
        RandomChoice,
        PowerOfTwo,
        PeakEwma,
        Rendezvous,
    )
}

__all__ = ["POLICIES", "Policy"]
