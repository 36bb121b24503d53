"""What all tests need."""

import os
import signal

from hypothesis import settings

settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: what a shell starts in the background ignores it, and
    so does all that this starts in turn."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
