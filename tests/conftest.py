"""Settings for all tests."""

from hypothesis import settings

# No deadline per example: on a busy machine it would judge the machine, not the code.
settings.register_profile("kupgrade", deadline=None)
settings.load_profile("kupgrade")
