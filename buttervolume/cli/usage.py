"""How a command line is taken apart, and what is said of a wrong one."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from buttervolume.words import shortened


class Parser(argparse.ArgumentParser):
    """Says of a wrong call how it would be right: usage, an example, and the nearest word."""

    def __init__(self, *arguments: Any, example: str = "", **options: Any) -> None:
        """`example` is a call that works, without the program's name."""
        super().__init__(*arguments, **options)
        self.commands: dict[str, Parser] = {}
        self._example = example

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.print_usage(sys.stderr)
        if self._example:
            print(f"example: buttervolume {self._example}", file=sys.stderr)
        self.exit(2, f"{self.prog}: error: {shortened(message)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = "command" if action.dest == "command" else f"{self.prog.split()[-1]}"
            hint = nearest(value, action.choices) or f"choose from {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"there is no {kind} {value!r}; {hint}")


def nearest(word: str, words: Iterable[str]) -> str:
    """A question that names the most similar word; empty if none is similar."""
    from difflib import get_close_matches  # only for those who err

    found = get_close_matches(word, list(words), n=1)
    return f"did you mean {found[0]!r}?" if found else ""


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Take a command line apart; whatever is too much is told by the command that got it."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        command = parser.commands.get(arguments.command, parser)
        message = f"unrecognized arguments: {' '.join(unknown)}"
        known = re.findall(r"--[a-z-]+", command.format_usage())
        hint = nearest(unknown[0], known)
        if unknown[0] in known:
            hint = f"it goes behind the command: {command.prog} {unknown[0]}"
        command.error(f"{message}; {hint}" if hint else message)
    return arguments
