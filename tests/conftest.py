"""No deadlines, so that a busy machine fails no test, and the same examples each time."""

from hypothesis import settings

settings.register_profile("klmonitor", deadline=None, derandomize=True)
settings.load_profile("klmonitor")
