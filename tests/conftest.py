"""What holds for all tests: properties are checked with the same examples in every run, however slow the machine is.

`pytest --hypothesis-profile explore` looks for new examples.
"""

import inspect

import httpx
from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")

#: Of clients that are told none: five seconds are not enough for agents that have to share a machine.
patience = inspect.signature(httpx.get).parameters["timeout"].default
patience.connect = patience.read = patience.write = patience.pool = 30.0
