"""README.rst says what the program is: no command, option, key or endpoint more or less."""

import argparse
import io
import re
from pathlib import Path
from unittest.mock import create_autospec

import docutils.core
import pytest

from buttervolume import config
from buttervolume.api import driver, management
from buttervolume.api.http import create_app
from buttervolume.cli.parser import build_parser
from buttervolume.services import Services

TOP = Path(__file__).parents[2]
README = (TOP / "README.rst").read_text(encoding="utf-8")


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    (action,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return action.choices


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a command, without --help."""
    return {
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    } - {"--help"}


def section(title: str) -> str:
    """The text below a title, up to the next one."""
    found = re.search(
        rf"^{title}\n=+\n(.*?)(?=^\S[^\n]*\n=+\n|\Z)", README, re.DOTALL | re.MULTILINE
    )
    assert found, f"there is no section {title}"
    return found[1]


@pytest.mark.parametrize("name", ["README.rst", "CHANGES.rst"])
def test_the_markup_is_right(name: str) -> None:
    warnings = io.StringIO()
    docutils.core.publish_string(
        (TOP / name).read_text(encoding="utf-8"),
        writer="html",
        settings_overrides={"warning_stream": warnings, "report_level": 1},
    )
    assert not warnings.getvalue()


def test_every_command_has_its_line_and_every_line_is_a_command() -> None:
    lines = re.findall(r"^``(\w+)(.*?)``", section("Commands"), re.MULTILINE)
    assert [name for name, _ in lines] == list(commands())
    for name, rest in lines:
        assert set(re.findall(r"--\w+", rest)) == options(commands()[name]), name


def test_every_command_that_the_manual_shows_can_be_parsed() -> None:
    shown = re.findall(r"^ +# buttervolume (.*)$", README, re.MULTILINE)
    assert len(shown) > 20
    for line in shown:
        build_parser().parse_args(line.split())


def test_every_command_is_shown_in_use() -> None:
    for name in set(commands()) - {"run"}:
        assert re.search(rf"buttervolume {name}\b.*$", README, re.MULTILINE), name


def test_every_key_is_explained_and_every_explained_key_exists() -> None:
    rows = re.findall(r"^``(?:BUTTERVOLUME_)?(\w+)``  ", section("Configuration"), re.MULTILINE)
    assert rows == list(config._KEYS)


def test_every_endpoint_is_listed_and_every_listed_endpoint_exists() -> None:
    app = create_app(
        create_autospec(Services, instance=True),
        (*driver.ENDPOINTS, *management.ENDPOINTS),
        transfer_limit=1,
    )
    served = {rule.rule.lstrip("/") for rule in app.url_map.iter_rules()}
    listed = set(re.findall(r"^``([A-Z]\w+\.[\w.]+)``", section("HTTP API"), re.MULTILINE))
    assert listed == {rule for rule in served if "<" not in rule}
    for rule in served - listed:
        assert f"/{rule}" in README


def test_every_volume_option_is_listed() -> None:
    for word in ("copyonwrite", "compression", "true", "false", "zlib", "lzo", "zstd"):
        assert f"``{word}``" in section("Volumes")
