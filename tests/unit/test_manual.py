"""README.rst and docs say what the program is: no command, option, key or endpoint more or less."""

import argparse
import io
import re
import shlex
from functools import cache
from pathlib import Path
from unittest.mock import create_autospec

import docutils.core
import docutils.nodes
import pytest

from buttervolume import config
from buttervolume.api import driver, management, seeing
from buttervolume.api.http import create_app
from buttervolume.cli.init import OPTIONS as MOUNT_OPTIONS
from buttervolume.cli.parser import build_parser
from buttervolume.jobs.actions import USAGES
from buttervolume.report.status import Kind, State
from buttervolume.services import Services
from buttervolume.store.options import OPTIONS
from tests.support.manual import OTHERS, PAGES, TOP, manual, text


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


# The pages and their links


@cache
def parsed(page: Path) -> tuple[docutils.nodes.document, str]:
    """A page as docutils reads it, and what docutils has to say of it."""
    warnings = io.StringIO()
    document = docutils.core.publish_doctree(
        page.read_text(encoding="utf-8"),
        settings_overrides={"warning_stream": warnings, "report_level": 1},
    )
    return document, warnings.getvalue()


def links(page: Path) -> list[tuple[Path, str]]:
    """The files that a page links to, and the anchor in each, if any."""
    uris = [link.get("refuri", "") for link in parsed(page)[0].findall(docutils.nodes.reference)]
    found = [uri.partition("#") for uri in uris if uri and ":" not in uri]
    return [((page.parent / file).resolve(), anchor) for file, _, anchor in found]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(TOP)))
def test_the_markup_is_right_and_every_link_leads_somewhere(page: Path) -> None:
    assert not parsed(page)[1]
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in parsed(file)[0].ids, (file, anchor)


def test_every_page_is_found_from_the_readme() -> None:
    found, left = set(), {TOP / "README.rst"}
    while left:
        page = left.pop()
        found.add(page)
        left |= {file for file, _ in links(page) if file.suffix == ".rst"} - found
    assert found >= {*PAGES}


def test_the_readme_is_two_screens_at_the_most() -> None:
    assert len((TOP / "README.rst").read_text(encoding="utf-8").splitlines()) < 80


# What the pages say


def test_every_command_has_its_line_and_every_line_is_a_command() -> None:
    lines = re.findall(r"^``(\w+)(.*?)``  ", text("reference/commands"), re.MULTILINE)
    assert [name for name, _ in lines] == list(commands())
    for name, rest in lines:
        assert set(re.findall(r"--[\w-]+", rest)) == options(commands()[name]), name


def test_every_command_that_the_manual_shows_can_be_parsed() -> None:
    shown = re.findall(r"^ +# buttervolume (.*)$", manual(), re.MULTILINE)
    assert len(shown) > 20
    for line in shown:
        build_parser().parse_args(shlex.split(re.split(" [<>|]", line)[0]))


def test_every_command_is_shown_in_use() -> None:
    for name in set(commands()) - {"run"}:
        assert re.search(rf"buttervolume {name}\b.*$", manual(), re.MULTILINE), name


def test_every_key_is_explained_and_every_explained_key_exists() -> None:
    page = text("reference/configuration")
    rows = re.findall(r"^``(?:BUTTERVOLUME_)?(\w+)``  ", page, re.MULTILINE)
    assert rows == list(config._KEYS)


def test_every_endpoint_is_listed_and_every_listed_endpoint_exists() -> None:
    app = create_app(
        create_autospec(Services, instance=True),
        (*driver.ENDPOINTS, *management.ENDPOINTS, *seeing.ENDPOINTS),
    )
    page = text("reference/api")
    served = {rule.rule.lstrip("/") for rule in app.url_map.iter_rules()}
    listed = set(re.findall(r"^``([A-Z]\w+\.[\w.]+)``", page, re.MULTILINE))
    assert listed == {rule for rule in served if "<" not in rule}
    for rule in served - listed:
        assert f"/{rule}" in page


def test_every_kind_of_problem_and_every_action_is_listed() -> None:
    page = text("reference/monitoring")
    problems = page[page.index("\nProblems\n") : page.index("\nNotices\n")]
    assert re.findall(r"^``([\w-]+)``  ", problems, re.MULTILINE) == [*Kind]
    states = page[: page.index("\nProblems\n")]
    assert sorted(re.findall(r"^``(\w+)``  ", states, re.MULTILINE)) == sorted(State)
    actions = re.findall(r"^``([\w:<>,…\[\]]+)``  ", text("reference/schedule"), re.MULTILINE)
    assert actions[: len(USAGES)] == [*USAGES]


def test_every_room_of_the_map_is_there() -> None:
    rooms = re.findall(r"^``(\w+/\w+)``  ", text("design/index"), re.MULTILINE)
    assert len(rooms) > 20
    package = TOP / "buttervolume"
    modules = {path.relative_to(package).with_suffix("") for path in package.glob("*/*.py")}
    assert sorted(rooms) == sorted(str(m) for m in modules if m.name != "__init__")


def test_the_line_for_fstab_by_hand_mounts_as_init_does() -> None:
    assert f" btrfs {MOUNT_OPTIONS} 0 0'" in text("howto/prepare-btrfs")


def test_every_volume_option_is_listed() -> None:
    page = text("reference/volumes")
    for word in ("true", "false", "zlib", "lzo", "zstd"):
        assert f"``{word}``" in page
    for option in OPTIONS:
        assert re.search(rf"^``{option.name}`` ", page, re.MULTILINE), option
