"""What all tests need."""

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of what can go on for as long as you like; by default it takes a few minutes."""
    parser.addoption("--cuts", type=int, default=40, help="how often tests/power cuts the power")
    parser.addoption("--hours", type=float, default=6, help="simulated hours of tests/soak")


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: what a shell starts in the background ignores it, and
    so does all that this starts in turn."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
