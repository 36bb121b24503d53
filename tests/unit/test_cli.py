"""The command line without a daemon: what it takes, what it prints, what it loads for that."""

import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from buttervolume.cli.client import Answer, Refused
from buttervolume.cli.completion import PREAMBLE
from buttervolume.cli.main import Exit, main
from buttervolume.cli.meant import OTHER_WORDS, meant
from buttervolume.cli.parser import build_parser
from buttervolume.cli.printing import age_of
from buttervolume.cli.seeing import doctor, usage
from buttervolume.cli.terminal import columns
from buttervolume.jobs.actions import ACTIONS, Action

COMMANDS = ["init", "run", "snapshot", "snapshots", "restore", "clone", "rm"]
USAGE_ERRORS = [
    ["nonsense"],
    ["snapshot"],
    ["snapshot", "a", "b"],
    ["snapshots", "a", "b"],
    ["restore"],
    ["restore", "a", "b", "c"],
    ["restore", "--forse", "a"],
    ["clone", "a"],
    ["clone"],
    ["rm"],
    ["run", "a"],
    ["init", "a"],
    ["init", "--size", "1G"],
    ["init", "--file", "a", "--size"],
    ["--nonsense"],
]
HTTP = (
    "requests",
    "requests_unixsocket",
    "urllib3",
    "http.client",
    "flask",
    "werkzeug",
    "waitress",
)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`buttervolume` in a process of its own, with nothing but these variables."""
    return subprocess.run(
        [sys.executable, "-m", "buttervolume", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "", **environ},
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if arguments:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    else:
        assert main(arguments) == 0

    out, err = capsys.readouterr()
    for command in COMMANDS:
        assert re.search(rf"^ +{command}\s", out, re.MULTILINE), command
    assert not err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])

    assert end.value.code == 0
    assert f"usage: buttervolume {command}" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])

    assert end.value.code == 0
    assert capsys.readouterr().out == f"buttervolume {version('buttervolume')}\n"


@pytest.mark.parametrize("arguments", USAGE_ERRORS)
def test_a_wrong_call_is_told_on_stderr_with_exit_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)

    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert not out
    assert err.startswith("usage: buttervolume")


def test_the_exit_statuses_are_those_of_the_specification() -> None:
    assert [int(status) for status in Exit] == [0, 1, 2, 3]


def test_arguments_arrive_where_they_belong() -> None:
    parse = build_parser().parse_args

    assert parse(["snapshots"]).volume is None
    assert parse(["snapshots", "db"]).volume == "db"
    restore = parse(["restore", "--force", "db@1", "other"])
    assert (restore.name, restore.target, restore.force) == ("db@1", "other", True)
    assert parse(["restore", "db@1", "--force"]).force
    restore = parse(["restore", "db"])
    assert (restore.target, restore.force) == (None, False)
    assert parse(["rm", "--", "-odd@1", "b@2"]).snapshot == ["-odd@1", "b@2"]
    assert parse(["purge", "--dry-run", "1h:1d", "db"]).dryrun
    assert parse(["init"]).file is None
    assert parse(["init", "--file"]).file == Path("/var/lib/buttervolume.img")
    assert parse(["init", "--file", "/a", "--size", "1G"]).size == "1G"


ANYWHERE: dict[str, tuple[list[str], list[list[str]]]] = {
    "snapshots": (["db"], [["-l"], ["--json"]]),
    "restore": (["db@1", "other"], [["--force"], ["--at", "2026"], ["--from=host"]]),
    "removed": (["db"], [["--purge"], ["--json"]]),
    "send": (["host", "db@1"], [["--all"], ["--force"]]),
    "replicate": (["host", "db"], [["--force"]]),
    "purge": (["1h:1d", "db"], [["--dryrun"], ["-v"]]),
    "scheduled": (["pause"], [["--json"]]),
    "status": (["db"], [["--json"]]),
    "log": (["db"], [["-n", "7"], ["--sin", "2d"], ["--failed"]]),
    "follow": (["resolve", "db", "db@1", "drop"], [["--yes"], ["--every", "5"]]),
    "usage": (["db"], [["--json"]]),
    "doctor": (["one", "two", "three"], [["--json"]]),
}
"""For each command that takes both, its words and its options."""


def test_an_option_may_stand_anywhere() -> None:
    takes_both = set()
    for name, command in build_parser().commands.items():
        words = [action.dest for action in command._actions if not action.option_strings]
        options = [action.dest for action in command._actions if action.option_strings]
        if words and options != ["help"]:
            takes_both.add(name)
    assert set(ANYWHERE) == takes_both

    for name, (its_words, its_options) in ANYWHERE.items():
        parser = build_parser(name)
        in_order = parser.parse_args([name, *itertools.chain(*its_options), *its_words])
        places = range(len(its_words) + len(its_options))
        for chosen in itertools.permutations(places, len(its_options)):
            put = dict(zip(chosen, its_options, strict=True))
            left = iter(its_words)
            line = [word for place in places for word in (put.get(place) or [next(left)])]
            assert parser.parse_args([name, *line]) == in_order, line


def test_behind_two_dashes_nothing_is_an_option() -> None:
    parse = build_parser().parse_args

    for line in (["--force", "db", "--", "-x"], ["db", "--force", "--", "-x"]):
        restore = parse(["restore", *line])
        assert (restore.name, restore.target, restore.force) == ("db", "-x", True)
    restore = parse(["restore", "--", "db", "--force"])
    assert (restore.name, restore.target, restore.force) == ("db", "--force", False)


def test_an_option_is_no_value_and_a_value_no_option() -> None:
    parse = build_parser().parse_args

    init = parse(["init", "--file", "--size", "1G"])
    assert (init.file, init.size) == (Path("/var/lib/buttervolume.img"), "1G")
    assert parse(["log", "db", "--since=--failed"]).since == "--failed"
    for line in (
        ["log", "--since", "--failed", "db"],
        ["log", "db", "--since"],
        ["log", "db", "--failed", "--since"],
        ["log", "--since", "--", "db"],
        ["restore", "db", "--at", "--", "other"],
    ):
        assert "expected one argument" in usage_error(*line)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["restore", "--help"], ["--version"], ["nonsense"], ["snapshot"], []]
)
def test_help_and_usage_errors_load_no_http_library(arguments: list[str]) -> None:
    program = f"""
import sys
from buttervolume.cli.main import main
try:
    main({arguments!r})
except SystemExit:
    pass
print("loaded:", *[name for name in {HTTP!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    loaded = done.stderr.splitlines()[-1].split()[1:]
    if arguments == ["--version"]:
        loaded = [name for name in loaded if name != "http.client"]
    assert loaded == []


def test_help_and_usage_errors_look_at_no_configuration() -> None:
    assert run("--help", BUTTERVOLUME_TIMER="x").returncode == 0
    assert run("nonsense", BUTTERVOLUME_TIMER="x").returncode == 2


def test_a_bad_configuration_is_one_line_and_exit_status_1(tmp_path: Path) -> None:
    done = run("snapshots", BUTTERVOLUME_TIMER="x")

    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("buttervolume: TIMER = 'x' (environment variable")


def test_no_daemon_and_no_docker_is_exit_status_3_and_says_how_to_start_one(
    tmp_path: Path,
) -> None:
    done = run("snapshots", BUTTERVOLUME_SOCKET=str(tmp_path / "none.sock"))

    assert done.returncode == 3
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none.sock") in done.stderr
    assert "buttervolume run" in done.stderr
    assert "docker plugin enable" in done.stderr


def fake_docker(directory: Path, script: str) -> None:
    docker = directory / "docker"
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def test_the_managed_plugin_is_asked_for_by_its_name(tmp_path: Path) -> None:
    fake_docker(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/asked; echo abc123')

    done = run(
        "snapshots",
        PATH=str(tmp_path),
        BUTTERVOLUME_RUNPATH=str(tmp_path / "run"),
        BUTTERVOLUME_DRIVERNAME="me/buttervolume:7",
    )

    assert done.returncode == 3
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == ["plugin", "inspect"]
    assert asked[-1] == "me/buttervolume:7"
    assert str(tmp_path / "run/plugins/abc123/btrfs.sock") in done.stderr
    assert "is not running" in done.stderr


def test_a_socket_of_the_plugin_that_no_address_has_room_for_is_told(tmp_path: Path) -> None:
    fake_docker(tmp_path, f"echo {'a' * 64}")
    runpath = tmp_path / ("r" * 80)
    socket = runpath / "plugins" / ("a" * 64) / "btrfs.sock"
    socket.parent.mkdir(parents=True)
    socket.touch()

    done = run(
        "snapshots",
        PATH=str(tmp_path),
        BUTTERVOLUME_RUNPATH=str(runpath),
        BUTTERVOLUME_SOCKET=str(tmp_path / "none.sock"),
    )

    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert "too long; choose a shorter RUNPATH" in line


def test_whatever_a_parent_leaves_of_signals_the_end_of_a_command_is_known(tmp_path: Path) -> None:
    fake_docker(tmp_path, "echo abc123")

    done = subprocess.run(
        [sys.executable, "-m", "buttervolume", "snapshots"],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "BUTTERVOLUME_RUNPATH": str(tmp_path / "run")},
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        check=False,
    )

    assert done.returncode == 3
    assert "abc123" in done.stderr, done.stderr


def test_what_docker_says_about_an_unknown_plugin_is_passed_on(tmp_path: Path) -> None:
    fake_docker(tmp_path, 'echo "Error: No such plugin: x" >&2; exit 1')

    done = run("snapshots", PATH=str(tmp_path), BUTTERVOLUME_SOCKET=str(tmp_path / "s"))

    assert done.returncode == 3
    assert done.stderr.count("No such plugin: x") == 1
    assert "docker plugin enable anybox/buttervolume" in done.stderr


@pytest.mark.parametrize("command", ["replicate", "send --all", "sync"])
def test_the_order_of_words_is_no_hint_where_a_host_has_failed(command: str) -> None:
    given = arguments(*command.split(), "one", "two")

    assert "comes first" in meant(given, "NoSuchVolume")
    assert "comes first" not in meant(given, "HostFailed") + meant(given, "SyncFailed")


def test_a_host_that_failed_is_one_for_the_doctor() -> None:
    assert "buttervolume doctor b" in meant(arguments("send", "b", "db@2026"), "HostFailed")
    assert "buttervolume doctor b" in meant(arguments("send", "--all", "b", "db"), "HostFailed")
    assert "buttervolume doctor b" in meant(arguments("restore", "--from", "b", "d"), "HostFailed")
    assert meant(arguments("send", "b", "db@2026"), "Diverged") == ""


SOMEBODY_ELSE = """
import _strptime, os, pathlib, sys
import requests, requests_unixsocket, buttervolume.cli.client, buttervolume.config
buttervolume.config.load.__defaults__ = (pathlib.Path("/nowhere"),)  # this host's may be closed
from buttervolume.cli.main import main
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(["snapshots"]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("where", ["managed", "configured"])
def test_who_may_not_look_where_the_socket_is_is_told_so(where: str) -> None:
    """Docker keeps a managed plugin's socket in a directory of mode 0700."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        plugin = directory / "run/plugins/abc123"
        plugin.mkdir(parents=True)
        plugin.chmod(0o700)
        fake_docker(directory, "echo abc123")
        environ = {"PATH": name, "BUTTERVOLUME_RUNPATH": f"{name}/run"}
        if where == "configured":
            environ["BUTTERVOLUME_SOCKET"] = f"{plugin}/btrfs.sock"

        done = subprocess.run(
            [sys.executable, "-c", SOMEBODY_ELSE],
            capture_output=True,
            text=True,
            env=environ,
            cwd="/",
            check=False,
        )

    assert "Traceback" not in done.stderr
    assert done.returncode == 3
    assert "ermission denied" in done.stderr
    assert done.stderr.count("\n") == 1


# A wrong call says how it would be right


def usage_error(*arguments: str) -> str:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["snapshto", "db"], "'snapshot'"),
        (["snap", "db"], "'snapshot'"),
        (["restor", "db"], "'restore'"),
        (["schedul"], "'schedule'"),
        (["scheduled", "puase"], "'pause'"),
        (["restore", "--forse", "db"], "'--force'"),
        (["purge", "--dry_run", "1h:1d", "db"], "'--dryrun'"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(wrong: list[str], right: str) -> None:
    assert f"did you mean {right}?" in usage_error(*wrong)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["ls"], "'volumes' lists the volumes"),
        (["create", "db"], "docker volume create -d btrfs"),
        (["delete", "db"], "docker volume rm"),
        (["rollback", "db"], "'restore'"),
        (["help", "snapshot"], "buttervolume <command> --help"),
        (["--json", "volumes"], "it goes behind the command: buttervolume volumes --json"),
        (["--force", "restore", "db"], "buttervolume restore --force"),
        (["schedule", "list"], "buttervolume scheduled"),
        (["schedule", "purge", "1d:1w", "720", "db"], "buttervolume schedule purge:1d:1w 720 db"),
        (["schedule", "replicate", "b", "60", "db"], "buttervolume schedule replicate:b 60 db"),
        (
            ["schedule", "snapshot", "0", "3", "*", "*", "*", "db"],
            "buttervolume schedule snapshot '0 3 * * *' db",
        ),
        (["schedule", "snapshot", "0", "3", "a", "b", "a", "b", "a", "b", "db"], "'0 3 * * *'"),
        (["removed", "db"], "buttervolume undelete db"),
        (["peer", "--authorize", "push"], "< key.pub"),
    ],
)
def test_what_a_newcomer_types_is_answered_with_what_works(wrong: list[str], right: str) -> None:
    error = usage_error(*wrong)

    assert right in error
    assert "did you mean" not in error


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_the_comment_of_a_public_key_may_be_in_any_encoding(locale: str, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "buttervolume", "peer", "--authorize", "push"],
        input="ssh-ed25519 AAAA jérôme".encode(encoding),
        capture_output=True,
        env={"PATH": "", "LC_ALL": locale},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert b" ssh-ed25519 AAAA j" in done.stdout


def test_other_words_are_no_commands_and_name_commands_that_are() -> None:
    commands = set(build_parser().commands)
    assert not set(OTHER_WORDS) & commands
    for hint in OTHER_WORDS.values():
        assert set(re.findall(r"'(\w+)'", hint)) <= commands


def test_a_word_like_no_other_is_answered_with_all_of_them() -> None:
    error = usage_error("xyzzy")

    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", error.partition("choose from")[2])


@pytest.mark.parametrize(
    "command", ["snapshot", "clone", "rm", "send", "sync", "purge", "schedule"]
)
@pytest.mark.parametrize("rest", [[], ["--nonsense"]])
def test_a_usage_error_shows_that_commands_usage_and_an_example(
    command: str, rest: list[str]
) -> None:
    usage, *others = usage_error(command, *rest).split("\n")

    assert usage.startswith(f"usage: buttervolume {command}")
    [example] = [line for line in others if line.startswith("example: buttervolume ")]
    words = shlex.split(example.removeprefix("example: buttervolume "))
    assert words[0] == command
    build_parser().parse_args(words)
    assert others[-2].startswith(f"buttervolume {command}: error: ")


@pytest.mark.parametrize("odd", ["a\nb", "\x1b[2J", "\u202e", "\u2028", "\udcff", "x" * 100_000])
@pytest.mark.parametrize(
    "place", [["{}"], ["snapshot", "a", "{}"], ["restore", "--{}"], ["scheduled", "{}"]]
)
def test_no_argument_reaches_the_terminal_as_it_is(odd: str, place: list[str]) -> None:
    error = usage_error(*(word.format(odd) for word in place))

    assert all(line.isprintable() for line in error.split("\n"))
    assert len(error.encode()) < 3000
    assert len(error.rstrip("\n").split("\n")) <= 5


def arguments(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(words)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["clone", "db@2026", "copy"], "buttervolume restore db@2026 copy"),
        (["snapshot", "db@2026"], "buttervolume snapshot db"),
        (["snapshots", "db@2026"], "buttervolume snapshots db"),
        (["rm", "db"], "docker volume rm db"),
        (["rm", "db@1", "my db"], "docker volume rm 'my db'"),
        (["restore", "copy", "db@2026"], "buttervolume restore db@2026 copy"),
        (["restore", "db", "latest"], "buttervolume restore db@latest"),
        (["restore", "my db", "2026-11-26"], "buttervolume restore 'my db@2026-11-26'"),
        (["restore", "db", "2026-11-26T10:00"], "buttervolume restore db@2026-11-26T10:00"),
        (["send", "db@2026", "backup"], "buttervolume send backup db@2026"),
        (["send", "backup", "db"], "buttervolume send backup db@latest"),
        (["send", "backup", "db"], "buttervolume snapshot db"),
        (["send", "db", "b.example.org"], "buttervolume send b.example.org db@latest"),
        (["send", "--all", "db", "backup"], "buttervolume send --all <host> <volume>"),
        (["receive", "db", "b.example.org"], "buttervolume receive b.example.org db"),
        (["replicate", "db", "b.example.org"], "buttervolume replicate <host> <volume>"),
        (["purge", "db", "4h:1d"], "buttervolume purge 4h:1d db"),
        (["purge", "db", "2h"], "buttervolume purge 2h db"),
        (["schedule", "snapshot", "db", "60"], "buttervolume schedule snapshot 60 db"),
        (["schedule", "db", "snapshot", "60"], "buttervolume schedule snapshot 60 db"),
        (["schedule", "60", "snapshot", "db"], "buttervolume schedule snapshot 60 db"),
        (["schedule", "db", "60", "purge:1h:1d"], "buttervolume schedule purge:1h:1d 60 db"),
        (["schedule", "replicate:b", "db", "pause"], "buttervolume schedule replicate:b pause db"),
        (["sync", "web1", "uploads"], "buttervolume sync <volume> <host>"),
    ],
)
def test_a_refusal_names_the_command_that_was_meant(given: list[str], hint: str) -> None:
    assert hint in meant(arguments(*given))


@pytest.mark.parametrize(
    "given",
    [
        ["clone", "db", "copy"],
        ["snapshot", "db"],
        ["snapshots"],
        ["rm", "db@2026"],
        ["rm", ""],
        ["restore", "db@2026", "copy"],
        ["restore", "db@2026", "latest"],
        ["restore", "db", "latest-db"],
        ["restore", "db", "2026"],
        ["restore", "db"],
        ["send", "backup", "db@2026"],
        ["purge", "4h:1d", "db"],
        ["purge", "4h:1d", "2h"],
        ["schedule", "snapshot", "60", "db"],
        ["schedule", "snapshot", "60", "70"],
        ["schedule", "nonsense", "60", "db"],
        ["scheduled"],
        ["status"],
    ],
)
def test_where_the_form_is_right_no_other_command_is_named(given: list[str]) -> None:
    assert meant(arguments(*given)) == ""


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.kind)
def test_the_command_line_knows_every_action_of_a_job(action: type[Action]) -> None:
    example = action.usage.partition("[")[0].replace("<", "").replace(">", "")

    assert action.usage in " ".join(run("schedule", "--help").stdout.split())
    assert re.search(rf"printf .* {action.kind}:? ", PREAMBLE)
    said = meant(argparse.Namespace(command="schedule", action="60", timer=example, volume="db"))
    assert f"schedule {example} 60 db" in said


@pytest.mark.parametrize("command", sorted(build_parser().commands))
def test_a_command_that_is_asked_for_is_the_same_without_the_others(command: str) -> None:
    alone, among_all = build_parser(command), build_parser()

    assert [*alone.commands] == [command]
    assert alone.commands[command].format_help() == among_all.commands[command].format_help()


@pytest.mark.parametrize("word", [None, "", "nonsense", "--help", "-h"])
def test_where_no_command_is_asked_for_all_are_there(word: str | None) -> None:
    assert build_parser(word).format_help() == build_parser().format_help()


@pytest.mark.parametrize("said", ["120", " 40 ", "", "0", "-5", "wide", "\u00b2"])
def test_the_help_is_as_wide_as_the_terminal(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", said)

    assert columns() == shutil.get_terminal_size().columns


def test_an_option_before_the_command_is_told_its_place() -> None:
    assert "behind the command: buttervolume status --json" in usage_error("--json", "status")
    assert "did you mean '--json'" in usage_error("status", "--jsn")


@pytest.mark.parametrize(
    ("days", "marker"), [(3, ""), (3, "@backup"), (0, ""), (-3, "")], ids=lambda value: f"{value}"
)
def test_the_age_of_a_snapshot_stands_behind_its_name(days: int, marker: str) -> None:
    date = datetime.now().astimezone().replace(tzinfo=None) - timedelta(days=days)

    said = age_of(f"db@{date:%Y-%m-%dT%H:%M:%S.%f}{marker}")

    if days < 0:
        assert said == "", "an age to come is none"
    elif days:
        assert said == f" ({days} days old)"
    else:
        assert re.fullmatch(r" \(.*(moment|second|minute)s? old\)", said)


@pytest.mark.parametrize("date", ["", "odd", "2026-11-23T21:00:00+01:00", "23.11.2026"])
def test_an_age_that_the_date_does_not_tell_is_left_out(date: str) -> None:
    assert age_of(f"db@{date}") == ""


def test_a_finding_and_what_to_do_about_it_are_one_sentence() -> None:
    findings = [
        {"Host": "b", "Check": "port", "Level": "good", "Message": "1122 is open", "Advice": ""},
        {"Host": "b", "Check": "key", "Level": "bad", "Message": "denied.", "Advice": "let it in"},
    ]

    lines, is_well = doctor(lambda *_, **__: {"Findings": findings}, arguments("doctor", "b"))

    assert not is_well
    assert [line.split() for line in lines[1:]] == [
        ["good", "b", "port", "1122", "is", "open"],
        ["bad", "b", "key", "denied:", "let", "it", "in"],
    ]


def test_a_volume_that_is_removed_while_usage_measures_spoils_no_other() -> None:
    def call(endpoint: str, Name: str = "") -> dict[str, Any]:  # noqa: N803 - a key of the API
        if endpoint == "VolumeDriver.Volume.List":
            return {"Volumes": [{"Name": name} for name in ("db", "gone", "web")]}
        if Name == "gone":
            raise Refused("gone: no such volume", Answer(Code="NoSuchVolume"))
        return {"Usage": [{"Name": Name, "Bytes": 1, "Exclusive": 1, "Snapshots": 0}]}

    lines = usage(call, arguments("usage"))

    assert [line.split()[0] for line in lines] == ["VOLUME", "db", "web"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_volume_that_cannot_be_measured_is_named_and_spoils_no_other(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    kinds = {"bad": "Unreadable", "worse": "OperationFailed"}

    def call(endpoint: str, Name: str = "") -> dict[str, Any]:  # noqa: N803 - a key of the API
        if endpoint == "VolumeDriver.Volume.List":
            return {"Volumes": [{"Name": name} for name in ("bad", "db", "worse")]}
        if Name in kinds:
            raise Refused(f"{Name}: Input/output error", Answer(Code=kinds[Name]))
        return {"Usage": [{"Name": Name, "Bytes": 1, "Exclusive": 1, "Snapshots": 0}]}

    lines = usage(call, arguments("usage", *options))

    said = "bad: Input/output error; worse: Input/output error"
    assert capsys.readouterr().err == f"buttervolume: warning: {said}\n"
    if options:
        answer = json.loads("\n".join(lines))
        assert ([each["Name"] for each in answer["Usage"]], answer["Warning"]) == (["db"], said)
    else:
        assert [line.split()[0] for line in lines] == ["VOLUME", "db"]


def test_where_no_volume_can_be_measured_usage_fails() -> None:
    def call(endpoint: str, Name: str = "") -> dict[str, Any]:  # noqa: N803 - a key of the API
        if endpoint == "VolumeDriver.Volume.List":
            return {"Volumes": [{"Name": "bad"}]}
        raise Refused(f"{Name}: Input/output error", Answer(Code="Unreadable"))

    with pytest.raises(Refused, match="bad: Input/output error"):
        usage(call, arguments("usage"))


# Where nothing can be printed


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["peer", "--help"], []])
def test_without_standard_streams_it_ends_as_ever(arguments: list[str]) -> None:
    command = shlex.join([sys.executable, "-m", "buttervolume", *arguments])

    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], check=False)

    assert done.returncode == 0


def test_a_usage_error_is_one_where_nobody_can_read_it() -> None:
    command = shlex.join([sys.executable, "-m", "buttervolume", "nonsense"])

    done = subprocess.run(["sh", "-c", f"{command} 2>&-"], check=False, capture_output=True)

    assert (done.returncode, done.stdout) == (2, b"")
