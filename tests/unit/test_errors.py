"""What an error says to a user: the reason, and each file once."""

import errno
from pathlib import Path

import pytest

from buttervolume.errors import OperationFailed


def denied(*files: object) -> OSError:
    """What the kernel says of a file, or of two: `OSError(errno, text, file, winerror, file2)`."""
    one, *other = files
    return OSError(errno.EACCES, "Permission denied", one, *((None, other[0]) if other else ()))


@pytest.mark.parametrize(
    ("attempt", "reason", "said"),
    [
        ("make /a/b", denied("/a/b"), "cannot make /a/b: Permission denied"),
        ("make /a/b", denied(b"/a/b"), "cannot make /a/b: Permission denied"),
        ("make /a/b", denied(Path("/a/b")), "cannot make /a/b: Permission denied"),
        ("make /a b/c", denied("/a b/c"), "cannot make /a b/c: Permission denied"),
        ("mount /a on /b", denied("/a"), "cannot mount /a on /b: Permission denied"),
        ("rename /a to /b", denied("/a", "/b"), "cannot rename /a to /b: Permission denied"),
    ],
)
def test_a_file_that_the_attempt_names_is_not_named_again(
    attempt: str, reason: OSError, said: str
) -> None:
    assert str(OperationFailed(attempt, reason)) == said


@pytest.mark.parametrize(
    ("attempt", "reason", "said"),
    [
        ("list the snapshots", denied("/a"), "cannot list the snapshots: Permission denied: /a"),
        ("make /a/b", denied("/a"), "cannot make /a/b: Permission denied: /a"),
        ("make /a", denied("/a/b"), "cannot make /a: Permission denied: /a/b"),
        ("make /ab", denied("/a"), "cannot make /ab: Permission denied: /a"),
        ("make x/a", denied("/a"), "cannot make x/a: Permission denied: /a"),
        ("write /b", denied("/b.new", "/b"), "cannot write /b: Permission denied: /b.new"),
        ("write c", denied("/a", "/b"), "cannot write c: Permission denied: /a -> /b"),
    ],
)
def test_a_file_that_the_attempt_does_not_name_is_told(
    attempt: str, reason: OSError, said: str
) -> None:
    assert str(OperationFailed(attempt, reason)) == said


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (denied(7), "Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
        ("it exists and is no socket: /a", "it exists and is no socket: /a"),
        (ValueError("no number"), "no number"),
    ],
)
def test_a_reason_that_names_no_file_is_told_in_its_own_words(reason: object, said: str) -> None:
    assert str(OperationFailed("make /a", reason)) == f"cannot make /a: {said}"
