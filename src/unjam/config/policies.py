"""The names a `policy:` may have."""

from __future__ import annotations

POLICIES = (
    "least_loaded",
    "least_outstanding",
    "round_robin",
    "weighted_round_robin",
    "random",
    "power_of_two",
    "peak_ewma",
    "rendezvous",
)
