"""What all tests need."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: what a shell starts in the background ignores it, and
    so does all that this starts in turn."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
