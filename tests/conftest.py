"""The same examples each time and no deadline: a slow machine must not fail a test, nor luck."""

from hypothesis import settings

settings.register_profile("ponder", deadline=None, derandomize=True)
settings.load_profile("ponder")
