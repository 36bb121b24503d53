"""The configuration: where a value comes from, what is wrong with it, and who is told."""

import configparser
import logging
import socket
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume import config
from buttervolume.config import Address, Config
from buttervolume.errors import ConfigError
from buttervolume.words import shortened

EXAMPLE = Path(__file__).parents[2] / "config.ini.example"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.ini"


def load(file: Path, text: str = "", **environ: str) -> Config:
    """The configuration from the lines of `[DEFAULT]` and these variables."""
    file.write_text(f"[DEFAULT]\n{text}\n", encoding="utf-8")
    return config.load(environ, file)


def problem(file: Path, text: str = "", **environ: str) -> str:
    """The one line that tells what is wrong."""
    with pytest.raises(ConfigError) as error:
        load(file, text, **environ)
    line = str(error.value)
    assert line.isprintable(), "one line, whatever the value holds"
    return line


def test_without_file_and_variables_there_are_the_defaults(file: Path) -> None:
    assert config.load({}, file) == Config(
        drivername="anybox/buttervolume:latest",
        volumes_path=Path("/var/lib/buttervolume/volumes"),
        snapshots_path=Path("/var/lib/buttervolume/snapshots"),
        test_remote_path=Path("/var/lib/buttervolume/received"),
        schedule=Path("/etc/buttervolume/schedule.csv"),
        history=Path("/etc/buttervolume/history.sqlite"),
        runpath=Path("/run/docker"),
        socket=Path("/run/docker/plugins/btrfs.sock"),
        timer=60,
        dtformat="%Y-%m-%dT%H:%M:%S.%f",
        loglevel=logging.INFO,
        keep_removed=timedelta(days=1),
        min_free=0.1,
        web=None,
        web_token="",
        node=socket.gethostname(),
        peers=(),
        notify=(),
        ssh_port=1122,
    )


def test_the_file_is_that_of_etc_if_no_other_is_named() -> None:
    assert Path("/etc/buttervolume/config.ini") == config.CONFIG_FILE


def test_the_file_beats_the_default_and_the_environment_beats_the_file(file: Path) -> None:
    assert load(file, "TIMER = 5").timer == 5
    assert load(file, "TIMER = 5", BUTTERVOLUME_TIMER="7").timer == 7


def test_an_empty_variable_and_an_empty_line_count_as_unset(file: Path) -> None:
    assert load(file, "TIMER = 5", BUTTERVOLUME_TIMER="").timer == 5
    assert load(file, "TIMER =", BUTTERVOLUME_TIMER="").timer == 60
    assert load(file, "", SSH_PORT="").ssh_port == 1122


def test_the_history_is_beside_the_schedule_unless_it_is_said_where(file: Path) -> None:
    assert load(file, "SCHEDULE = /a/b.csv").history == Path("/a/history.sqlite")
    assert load(file, "SCHEDULE = /a/b.csv\nHISTORY = /c/d").history == Path("/c/d")


@pytest.mark.parametrize("history", ["/a/b.csv", "/a/b.csv.disabled", "/a/../a/b.csv", "/s"])
def test_the_history_is_a_file_of_its_own(file: Path, history: str) -> None:
    line = problem(file, f"SCHEDULE = /a/b.csv\nSOCKET = /s\nHISTORY = {history}")

    assert "HISTORY" in line


def test_every_key_can_be_set_in_either_place(file: Path) -> None:
    given = {
        "DRIVERNAME": "me/buttervolume:1",
        "VOLUMES_PATH": "/b/v",
        "SNAPSHOTS_PATH": "/b/s",
        "TEST_REMOTE_PATH": "/b/r",
        "SCHEDULE": "/b/schedule.csv",
        "HISTORY": "/h/history",
        "RUNPATH": "/b/run",
        "SOCKET": "/b/sock",
        "TIMER": "1",
        "DTFORMAT": "%Y%m%d-%H%M%S",
        "LOGLEVEL": "debug",
        "MIN_FREE": "5%",
        "WEB": "127.0.0.1:9178",
        "WEB_TOKEN": "secret",
        "NODE": "alpha",
        "PEERS": "alpha, beta gamma",
        "NOTIFY": "json://a  ntfy://b/c",
    }
    expected = Config(
        drivername="me/buttervolume:1",
        volumes_path=Path("/b/v"),
        snapshots_path=Path("/b/s"),
        test_remote_path=Path("/b/r"),
        schedule=Path("/b/schedule.csv"),
        history=Path("/h/history"),
        runpath=Path("/b/run"),
        socket=Path("/b/sock"),
        timer=1,
        dtformat="%Y%m%d-%H%M%S",
        loglevel=logging.DEBUG,
        keep_removed=timedelta(days=1),
        min_free=0.05,
        web=Address("127.0.0.1", 9178),
        web_token="secret",
        node="alpha",
        peers=("alpha", "beta", "gamma"),
        notify=("json://a", "ntfy://b/c"),
        ssh_port=1122,
    )

    assert load(file, "\n".join(f"{key} = {value}" for key, value in given.items())) == expected
    assert load(file, "", **{f"BUTTERVOLUME_{k}": v for k, v in given.items()}) == expected


def test_the_ssh_port_comes_from_its_own_variable_alone(file: Path) -> None:
    assert load(file, "", SSH_PORT="22").ssh_port == 22

    in_file = load(file, "SSH_PORT = 22")
    assert in_file.ssh_port == 1122
    assert "SSH_PORT" in in_file.warnings[0]

    with_prefix = load(file, "", BUTTERVOLUME_SSH_PORT="22")
    assert with_prefix.ssh_port == 1122
    assert "BUTTERVOLUME_SSH_PORT" in with_prefix.warnings[0]


def test_the_socket_follows_runpath_unless_it_is_set(file: Path) -> None:
    assert load(file, "RUNPATH = /r/").socket == Path("/r/plugins/btrfs.sock")
    assert load(file, "RUNPATH = /r", BUTTERVOLUME_SOCKET="/s").socket == Path("/s")


def test_percent_signs_are_taken_as_they_are_and_doubled_ones_as_one(file: Path) -> None:
    assert load(file, "DTFORMAT = %Y-%m-%d_%H:%M:%S").dtformat == "%Y-%m-%d_%H:%M:%S"
    assert load(file, "DTFORMAT = %%Y-%%m-%%d_%%H:%%M:%%S").dtformat == "%Y-%m-%d_%H:%M:%S"
    assert load(file, "VOLUMES_PATH = /100%/v").volumes_path == Path("/100%/v")
    assert load(file, "VOLUMES_PATH = /%(x)s/v").volumes_path == Path("/%(x)s/v")


@pytest.mark.parametrize(
    "dtformat",
    [
        "%Y-%m-%dT%H:%M:%S.%f",
        "%Y-%m-%dT%H:%M:%S",
        "%Y%m%d%H%M%S",
        "%d.%m.%Y %H-%M-%S",
        "%y%j-%H%M%S",
        "%Y-%m-%d %I:%M:%S %p",
    ],
)
def test_a_date_format_that_keeps_the_second_is_good(file: Path, dtformat: str) -> None:
    assert load(file, f"DTFORMAT = {dtformat}").dtformat == dtformat


# Key, a value that it cannot have, and words that must say what it can have.
BAD = [
    ("TIMER", "0", "whole number from 1"),
    ("TIMER", "-1", "whole number"),
    ("TIMER", "1.5", "whole number"),
    ("TIMER", "60s", "whole number"),
    ("TIMER", "٣", "whole number"),
    ("TIMER", "9" * 5000, "whole number"),
    ("TIMER", "0x10", "whole number"),
    ("TIMER", "1_0", "whole number"),
    ("LOGLEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ("LOGLEVEL", "10", "DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ("LOGLEVEL", "NOTSET", "DEBUG, INFO"),
    ("MIN_FREE", "100%", "from 0% to 99%"),
    ("MIN_FREE", "10", "from 0% to 99%"),
    ("MIN_FREE", "-1%", "from 0% to 99%"),
    ("MIN_FREE", "1.5%", "from 0% to 99%"),
    ("MIN_FREE", "9" * 5000 + "%", "from 0% to 99%"),
    ("WEB", "9178", "127.0.0.1:9178"),
    ("WEB", "127.0.0.1", "127.0.0.1:9178"),
    ("WEB", "127.0.0.1:0", "127.0.0.1:9178"),
    ("WEB", "::1:9178", "127.0.0.1:9178"),
    ("WEB", "[127.0.0.1]:9178", "127.0.0.1:9178"),
    ("WEB", "example.org:80", "127.0.0.1:9178"),
    ("WEB", "unix:socket", "absolute path"),
    ("NODE", "root@alpha", "a letter or a digit"),
    ("VOLUMES_PATH", "volumes", "absolute path"),
    ("VOLUMES_PATH", "~/volumes", "absolute path"),
    ("SNAPSHOTS_PATH", "./s", "absolute path"),
    ("TEST_REMOTE_PATH", "r", "absolute path"),
    ("SCHEDULE", "schedule.csv", "absolute path"),
    ("SCHEDULE", "/", "path of a file"),
    ("SCHEDULE", "//", "path of a file"),
    ("SCHEDULE", "/etc/..", "path of a file"),
    ("SCHEDULE", "/etc/" + "x" * 201, "at most 200 bytes"),
    ("HISTORY", "/.", "path of a file"),
    ("HISTORY", "/" + "x" * 255, "at most 200 bytes"),
    ("RUNPATH", "run/docker", "absolute path"),
    ("SOCKET", "btrfs.sock", "absolute path"),
    ("SOCKET", "/" + "s" * 107, "at most 107 bytes"),
    ("DRIVERNAME", "my plugin", "without spaces"),
    ("DTFORMAT", "%Y-%m-%d", "to the second"),
    ("DTFORMAT", "%Y-%m-%d %H:%M", "to the second"),
    ("DTFORMAT", "%Y/%m/%d %H:%M:%S", "'/'"),
    ("DTFORMAT", "%Y@%m@%d %H:%M:%S", "'@'"),
    ("DTFORMAT", "%D %H:%M:%S", "'/'"),
    ("DTFORMAT", "now", "to the second"),
    ("DTFORMAT", "%Y-%m-%dT%H:%M:%S" + "x" * 100, "at most 100 bytes"),
    ("DTFORMAT", "%", "to the second"),
    ("DTFORMAT", "%Q", "to the second"),
    ("DTFORMAT", "%I:%M:%S %Y-%m-%d", "to the second"),
    ("DTFORMAT", "%s", "to the second"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value_in_the_environment_gets_its_own_line(
    file: Path, key: str, value: str, allowed: str
) -> None:
    line = problem(file, **{f"BUTTERVOLUME_{key}": value})

    assert line.startswith(f"{key} = {value!r}")
    assert f"BUTTERVOLUME_{key}" in line
    assert allowed in line


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value_in_the_file_gets_its_own_line(
    file: Path, key: str, value: str, allowed: str
) -> None:
    line = problem(file, f"{key} = {value}")

    assert line.startswith(f"{key} = ")
    assert str(file) in line
    assert allowed in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VOLUMES_PATH", "/a\0b"),
        ("VOLUMES_PATH", "a\nb"),
        ("DRIVERNAME", "a\nb"),
        ("DTFORMAT", "%Y-%m-%dT%H:%M:%S\n"),
        ("DTFORMAT", "%Y-%m-%dT%H:%M:%S\0"),
        ("DTFORMAT", "%Y-%m-%dT%H:%M:%S\udcff"),
        ("TIMER", " 5\n"),
        ("LOGLEVEL", "INFO\x1b"),
    ],
)
def test_control_characters_are_refused_and_shown_escaped(file: Path, key: str, value: str) -> None:
    assert repr(value) in problem(file, **{f"BUTTERVOLUME_{key}": value})


@pytest.mark.parametrize("value", ["0", "65536", "-22", "ssh", "2 2"])
def test_a_bad_ssh_port_gets_its_own_line(file: Path, value: str) -> None:
    line = problem(file, SSH_PORT=value)

    assert line.startswith(f"SSH_PORT = {value!r} (environment variable SSH_PORT)")
    assert "from 1 to 65535" in line


def test_a_runpath_that_makes_the_socket_too_long_is_told_of_the_socket(file: Path) -> None:
    line = problem(file, f"RUNPATH = /{'r' * 100}")

    assert "SOCKET" in line
    assert "RUNPATH" in line
    assert "107" in line


def test_only_the_value_that_counts_is_checked(file: Path) -> None:
    assert load(file, "TIMER = never", BUTTERVOLUME_TIMER="5").timer == 5
    assert "BUTTERVOLUME_TIMER" in problem(file, "TIMER = 5", BUTTERVOLUME_TIMER="never")


def test_the_first_bad_value_is_told_not_all_of_the_environment(file: Path) -> None:
    line = problem(file, BUTTERVOLUME_TIMER="x", BUTTERVOLUME_SOCKET="/s", SECRET="tell nobody")

    assert "tell nobody" not in line
    assert "/s" not in line


@pytest.mark.parametrize(
    ("volumes", "snapshots"),
    [("/b", "/b"), ("/b/", "/b"), ("/b", "/b/s"), ("/b/s/v", "/b/s"), ("/", "/s"), ("/v", "/x/..")],
)
def test_volumes_and_snapshots_must_be_apart(file: Path, volumes: str, snapshots: str) -> None:
    line = problem(file, f"VOLUMES_PATH = {volumes}\nSNAPSHOTS_PATH = {snapshots}")

    assert "VOLUMES_PATH" in line
    assert "SNAPSHOTS_PATH" in line


def test_names_that_begin_alike_are_apart(file: Path) -> None:
    assert load(file, "VOLUMES_PATH = /b/v\nSNAPSHOTS_PATH = /b/v-snapshots")


def test_unknown_keys_are_warnings_naming_key_and_place(file: Path) -> None:
    loaded = load(file, "TIMMER = 5\n[other]\nx = 1", BUTTERVOLUME_SOKCET="/s", OTHER="1")

    assert loaded.timer == 60
    assert len(loaded.warnings) == 3
    warnings = "\n".join(loaded.warnings)
    assert f"{file}: unknown key TIMMER" in warnings
    assert "[other]" in warnings
    assert "environment: unknown key BUTTERVOLUME_SOKCET" in warnings


def test_a_good_configuration_has_no_warnings(file: Path) -> None:
    assert load(file, "timer = 5", BUTTERVOLUME_LOGLEVEL="DEBUG", SSH_PORT="22").warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        b"TIMER = 5\n",
        b"[DEFAULT]\nTIMER\n",
        b"[DEFAULT]\nTIMER = 5\nTIMER = 6\n",
        b"\xff\xfe\x00",
        b"[DEFAULT\n",
        b"{}",
    ],
)
def test_a_file_that_is_no_configuration_stops_with_its_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)

    with pytest.raises(ConfigError) as error:
        config.load({}, file)

    assert str(file) in str(error.value)
    assert "[DEFAULT]" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_in_the_place_of_the_file_stops_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        config.load({}, tmp_path)


def test_an_empty_file_and_one_with_a_byte_order_mark_are_fine(file: Path) -> None:
    file.write_bytes(b"")
    assert config.load({}, file).timer == 60

    file.write_bytes("\ufeff[DEFAULT]\nTIMER = 5\n".encode())
    assert config.load({}, file).timer == 5


def test_the_configuration_cannot_change_under_anybody(file: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        load(file).timer = 5  # type: ignore[misc]


_FOLLOWING = {
    "SOCKET": "/run/docker/plugins/btrfs.sock",
    "HISTORY": "/etc/buttervolume/history.sqlite",
    "NODE": "",
}
"""The defaults that follow from other keys."""


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the example is not written yet")
def test_the_example_is_a_configuration_and_holds_every_key_with_its_default(file: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    everything = "\n".join(line.removeprefix("#").strip() for line in text.splitlines())

    assert config.load({}, EXAMPLE) == config.load({}, file)
    for key, (default, _) in config._KEYS.items():
        if key != config.SSH_PORT:
            wanted = default or _FOLLOWING.get(key, "")
            assert _mentions(everything, key, wanted), f"{key} with its default is not in it"


def _mentions(text: str, key: str, default: str) -> bool:
    """Whether a line sets the key to its default."""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() == key:
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(f"[DEFAULT]\n{line}")
            return value.strip().replace("%%", "%") in (default, "$RUNPATH/plugins/btrfs.sock")
    return False


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "192.0.2.7:80", "[2001:db8::1]:80"])
def test_a_page_that_others_can_reach_needs_a_token(file: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="WEB_TOKEN"):
        load(file, "", BUTTERVOLUME_WEB=address)
    assert load(file, "", BUTTERVOLUME_WEB=address, BUTTERVOLUME_WEB_TOKEN="x").web is not None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:9178", "http://127.0.0.1:9178/"),
        ("[::1]:9178", "http://[::1]:9178/"),
        ("unix:/run/page.sock", "unix:/run/page.sock"),
    ],
)
def test_a_page_for_this_machine_alone_needs_none(file: Path, text: str, shown: str) -> None:
    assert str(load(file, "", BUTTERVOLUME_WEB=text).web) == shown


def test_no_message_shows_the_token(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, "", BUTTERVOLUME_WEB_TOKEN="geheim\x07")
    assert "geheim" not in str(error.value)
    with pytest.raises(ConfigError, match="NOTIFY = …") as error:
        load(file, "", BUTTERVOLUME_NOTIFY="geheim")
    assert "geheim" not in str(error.value)


# Whatever somebody writes


KEYS = [key for key in config._KEYS if key != "SSH_PORT"]
LINES = st.one_of(
    st.builds("{} = {}".format, st.sampled_from(KEYS), st.text(max_size=20)),
    st.sampled_from(["[DEFAULT]", "[other]", "[", "]", " x", "=", ": :", "%", ";", "[DEFAULT"]),
    st.text(max_size=30),
)
FILES = st.one_of(
    st.lists(LINES, max_size=8).map(lambda lines: "\n".join(["[DEFAULT]", *lines])),
    st.text(max_size=200),
).map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=200)
DIRECTIVES = st.sampled_from([f"%{c}" for c in "YmdHMSfyjbBaApIwWUVGuzZcxX%sE1-"])
FORMATS = st.lists(DIRECTIVES | st.text(max_size=3), max_size=10).map("".join)


def load_or_one_line(environ: dict[str, str], file: Path) -> config.Config | None:
    """The configuration, or None after an error that a user can read as one line."""
    try:
        return config.load(environ, file)
    except ConfigError as error:
        shown = shortened(str(error))
        assert shown.isprintable()
        assert len(shown.encode()) <= 2048
        return None


@given(content=FILES)
def test_any_file_is_a_configuration_or_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.ini"
    file.write_bytes(content)

    load_or_one_line({}, file)


@given(key=st.sampled_from(KEYS), value=st.text(st.characters()) | FORMATS)
def test_any_value_is_a_setting_or_one_line(key: str, value: str) -> None:
    found = load_or_one_line({f"BUTTERVOLUME_{key}": value}, Path("/nonexistent"))

    if found is not None and key == "DTFORMAT":
        moment = datetime(2026, 11, 26, 12, 34, 56, 789)
        text = moment.strftime(found.dtformat)
        back = datetime.strptime(text, found.dtformat)
        assert back.replace(microsecond=0) == moment.replace(microsecond=0)
        assert not set("/@\0") & set(text)


@given(dtformat=FORMATS)
def test_any_date_format_is_good_or_told(dtformat: str) -> None:
    load_or_one_line({"BUTTERVOLUME_DTFORMAT": dtformat}, Path("/nonexistent"))


@pytest.mark.parametrize("dtformat", ["%Y-%m-%dT%H:%M:%S %Y", "%d%d%Y%m%H%M%S", "%Y%m%d%T%H%M%S"])
def test_a_repeated_directive_is_told(file: Path, dtformat: str) -> None:
    with pytest.raises(ConfigError, match="DTFORMAT"):
        load(file, f"DTFORMAT = {dtformat}")


@pytest.mark.parametrize("key", ["VOLUMES_PATH", "SNAPSHOTS_PATH", "SCHEDULE", "RUNPATH"])
@pytest.mark.parametrize("value", ["/a/" + "x" * 256, "/" + "ü" * 128, "/x" * 2500])
def test_a_path_that_no_file_can_have_is_told(file: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match="255 in each part"):
        load(file, f"{key} = {value}")


def test_who_may_not_read_the_file_is_told_to_be_root() -> None:
    closed = create_autospec(Path, instance=True)
    closed.open.side_effect = PermissionError(13, "Permission denied")

    with pytest.raises(ConfigError, match=r"permission denied; run this as root$"):
        config.load({}, closed)
