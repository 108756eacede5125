"""What holds for all tests: properties are checked with the same examples in every run, however slow the machine is.

`pytest --hypothesis-profile explore` looks for new examples.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")
