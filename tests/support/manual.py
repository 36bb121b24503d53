"""The manual as the tests see it: its pages, and the commands that they show."""

import re
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = (TOP / "README.rst", *sorted(DOCS.rglob("*.rst")))
"""README.rst and all of docs."""
OTHERS = tuple(TOP / name for name in ("CHANGES.rst", "CONTRIBUTING.rst", "SECURITY.rst"))
"""What is marked up in the same way, and shows no commands that users type."""

MARK = re.compile(r"^\.\. (runnable|given) on (this|the other) host$", re.MULTILINE)
INDENTED = re.compile(r"\n\n((?:    .*\n|\n)+)")


@dataclass(frozen=True)
class Step:
    """A command of the manual and the output that it shows, if any.

    What is given is in a comment that readers don't see: it makes what the page takes for granted.
    """

    here: bool
    given: bool
    command: str
    output: str


def text(page: str) -> str:
    """A page by its name below docs, without its ending: `reference/commands`."""
    return (DOCS / f"{page}.rst").read_text(encoding="utf-8")


def manual() -> str:
    """Everything, one page after the other."""
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def steps(page: str) -> list[Step]:
    """What a page has to run, in its order.

    The mark `.. runnable on this host` is about the first literal block below it; `.. given on this
    host` has its block in the comment itself. Without a prompt `#`, every line is a command.
    """
    found = []
    for mark in MARK.finditer(page):
        given = mark[1] == "given"
        start = mark.end() if given else page.index("::\n\n", mark.end()) + 2
        block = INDENTED.match(page, start)
        assert block, f"no commands follow {mark[0]!r}"
        lines = [line.removeprefix("    ") for line in block[1].strip("\n").split("\n")]
        if given:
            found.append(Step(mark[2] == "this", given, "\n".join(lines), ""))
            continue
        if not any(line.startswith("# ") for line in lines):
            lines = [f"# {line}" for line in lines if line]
        for part in re.split(r"^# ", "\n".join(lines), flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Step(mark[2] == "this", given, command, output.strip()))
    return found
