"""Names: what may be made, what may be referred to, and that neither leaves its directory."""

import os

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from buttervolume import names
from buttervolume.errors import BadName
from buttervolume.names import SnapshotName

UNSAFE = [
    "",
    ".",
    "..",
    ".hidden",
    ".buttervolume-lock",
    "a/b",
    "/etc/passwd",
    "../v",
    "a@b/../../volumes/v",
    "nul\0",
    "new\nline",
    "tab\t",
    "escape\x1b[31m",
    "delete\x7f",
    "c1\x9b31m",
    "surrogate\ud800",
    "x" * 256,
    "ü" * 128,
]
ODD_BUT_SAFE = [
    "my volume",
    "-leading-dash",
    "größe",
    "日本",
    "a" * 255,
    "50%",
    "$(id)",
    "a'b\"c",
    "*",
]
GOOD_NEW = ["a", "0", "db", "my_db-2.old", "A" * 128, "deadbeef" * 8]


@pytest.mark.parametrize("name", GOOD_NEW)
def test_a_plain_name_may_be_made(name: str) -> None:
    assert names.check_new_volume(name) == name


@pytest.mark.parametrize(
    "name",
    [*UNSAFE, *ODD_BUT_SAFE, "A" * 129, "_a", "-a", "a@b", "name@1", "a b", "a\n", "é", "٣"],
)
def test_a_name_that_some_tool_stumbles_over_is_not_made(name: str) -> None:
    with pytest.raises(BadName) as refusal:
        names.check_new_volume(name)

    assert repr(name) in str(refusal.value)
    assert names.NEW_VOLUME_RULE in str(refusal.value)


@pytest.mark.parametrize("name", [*GOOD_NEW, *ODD_BUT_SAFE])
def test_whatever_an_older_version_has_made_may_be_referred_to(name: str) -> None:
    assert names.is_volume_reference(name)
    assert names.check_volume_reference(name) == name


@pytest.mark.parametrize("name", [*UNSAFE, "a@b", "@", "a@"])
def test_an_unsafe_name_refers_to_nothing(name: str) -> None:
    assert not names.is_volume_reference(name)
    with pytest.raises(BadName, match="is not allowed as the name of a volume"):
        names.check_volume_reference(name)


@pytest.mark.parametrize("name", [name for name in UNSAFE if name])
def test_the_message_about_a_bad_name_is_one_printable_line(name: str) -> None:
    with pytest.raises(BadName) as refusal:
        names.check_volume_reference(name)

    assert str(refusal.value).isprintable()


@given(st.text())
def test_no_reference_ever_leaves_its_directory(name: str) -> None:
    assume(names.is_volume_reference(name))

    assert os.path.dirname(os.path.normpath(f"/volumes/{name}")) == "/volumes"
    assert len(os.fsencode(name)) <= 255


@given(st.text(alphabet=st.sampled_from("a.@/\0\n- é"), max_size=12))
def test_no_snapshot_name_ever_leaves_its_directory(name: str) -> None:
    try:
        parsed = names.parse_snapshot(name)
    except BadName:
        return

    assert os.path.dirname(os.path.normpath(f"/snapshots/{parsed}")) == "/snapshots"
    assert str(parsed) == name


@pytest.mark.parametrize("host", ["a", "10.0.0.1", "backup.example.org", "nas_2", "h" * 98])
def test_any_alias_of_the_ssh_configuration_is_a_host(host: str) -> None:
    assert names.check_host(host) == host


@pytest.mark.parametrize(
    "host", ["", "h" * 99, "-oProxyCommand=id", ".a", "a b", "a@b", "a/b", "a;b", "::1", "a\n", "é"]
)
def test_what_ssh_could_take_for_something_else_is_no_host(host: str) -> None:
    with pytest.raises(BadName, match="is not allowed as the name of a host"):
        names.check_host(host)


def test_a_snapshot_name_has_a_volume_and_a_date() -> None:
    parsed = names.parse_snapshot("my db@2026-01-02T03:04:05.000006")

    assert parsed == SnapshotName("my db", "2026-01-02T03:04:05.000006")
    assert not parsed.is_marker


def test_a_marker_has_a_host_too_and_leads_to_its_snapshot() -> None:
    parsed = names.parse_snapshot("db@2026@nas")

    assert parsed == SnapshotName("db", "2026", "nas")
    assert parsed.is_marker
    assert parsed.snapshot == SnapshotName("db", "2026")
    assert parsed.snapshot.marker("nas") == parsed


@pytest.mark.parametrize(
    "name", [*UNSAFE, "db", "@", "db@", "@date", "a@b@c@d", "a@@c", "a@b@", ".a@b", "a@b\n", "a@/b"]
)
def test_anything_else_is_no_snapshot(name: str) -> None:
    with pytest.raises(BadName, match="is not allowed as the name of a snapshot"):
        names.parse_snapshot(name)


@given(
    st.from_regex(r"[a-z -][a-zé .-]{0,9}", fullmatch=True),
    st.from_regex(r"[0-9T:. ]{1,9}", fullmatch=True),
    st.none() | st.from_regex(r"[a-z0-9._-]{1,9}", fullmatch=True),
)
def test_a_snapshot_name_survives_writing_and_reading(
    volume: str, date: str, host: str | None
) -> None:
    name = SnapshotName(volume, date, host)

    assert names.parse_snapshot(str(name)) == name


def test_a_snapshot_name_that_no_file_can_have_is_refused_with_the_reason() -> None:
    assert len(str(names.new_snapshot("v" * 128, "2026-01-02T03:04:05.000006", "h" * 98))) <= 255

    with pytest.raises(BadName, match="longer than 255 bytes"):
        names.new_snapshot("v" * 250, "2026-01-02T03:04:05.000006")
    with pytest.raises(BadName, match="longer than 255 bytes"):
        names.new_snapshot("ü" * 120, "2026-01-02T03:04:05.000006")


def test_a_note_beside_a_copy_fits_whatever_the_copy_s_name() -> None:
    assert names.receiving_note("db@2026") == ".buttervolume-receiving-db@2026"
    notes = {names.receiving_note("é" * length) for length in range(1, 128)}
    assert len(notes) == 127
    assert all(len(note.encode()) <= 255 for note in notes)
    assert names.receiving_note("\udcff@1").startswith(".buttervolume-receiving-")
