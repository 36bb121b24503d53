"""How a command line is taken apart, and what is said of a wrong one."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from buttervolume.words import shortened


class Parser(argparse.ArgumentParser):
    """Says of a wrong call how it would be right: usage, an example, and the nearest word."""

    def __init__(self, *arguments: Any, example: str = "", also: str = "", **options: Any) -> None:
        """`example` is a call that works, without the program's name; `also` says what other
        command may have been meant."""
        super().__init__(*arguments, **options)
        self.commands: dict[str, Parser] = {}
        self._example = example
        self._also = f"; {also}" if also else ""

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Options may stand anywhere. argparse by itself finds an optional word missing where an
        option stands before it."""
        if args is not None and not self.commands:
            args = self._options_first(list(args))
        return super().parse_known_args(args, namespace)

    def _options_first(self, words: list[str]) -> list[str]:
        """The same words, the options of this command with their values before all others."""
        end = words.index("--") if "--" in words else len(words)  # behind it nothing is an option
        options: list[str] = []
        others: list[str] = []
        wants_value = False
        for word in words[:end]:
            option = self._option(word)
            (options if option or wants_value else others).append(word)
            wants_value = option is not None and option.nargs != 0 and "=" not in word
        if wants_value:  # another word must not pass for the value that is missing
            return words
        return [*options, *others, *words[end:]]

    def _option(self, word: str) -> argparse.Action | None:
        """The option that a word is or, as argparse allows, begins; None if it is none."""
        name = word.partition("=")[0]
        known = self._option_string_actions
        if name in known or not name.startswith("--"):
            return known.get(name)
        return next((known[option] for option in known if option.startswith(name)), None)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.print_usage(sys.stderr)
        if self._example:
            print(f"example: buttervolume {self._example}", file=sys.stderr)
        self.exit(2, f"{self.prog}: error: {shortened(message)}{self._also}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(value, action.choices) or f"choose from {', '.join(action.choices)}"
            wrong = f"{value!r} is not possible here"
            if action.dest == "command":
                from buttervolume.cli.meant import OTHER_WORDS  # only for those who err

                wrong, hint = f"there is no command {value!r}", OTHER_WORDS.get(value, hint)
            raise argparse.ArgumentError(None, f"{wrong}; {hint}")


def nearest(word: str, words: Iterable[str]) -> str:
    """A question that names the most similar word; empty if none is similar."""
    from difflib import get_close_matches  # only for those who err

    found = get_close_matches(word, list(words), n=1)
    return f"did you mean {found[0]!r}?" if found else ""


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Take a command line apart; whatever is too much is told by the command that got it."""
    arguments: argparse.Namespace
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        from buttervolume.cli.meant import meant_by_words

        command = parser.commands.get(arguments.command, parser)
        message = f"unrecognized arguments: {' '.join(unknown)}"
        options = re.findall(r"--[a-z-]+", command.format_usage())
        if unknown[0] in options:
            hint = f"it goes behind the command: {command.prog} {unknown[0]}"
        else:
            hint = nearest(unknown[0], options) or meant_by_words(arguments, unknown)
        command.error(f"{message}; {hint}" if hint else message)
    return arguments
