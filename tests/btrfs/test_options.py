"""The options of a new volume: checked as a whole, done as a whole or not at all."""

import fcntl
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from buttervolume.errors import (
    BadOption,
    NoSuchSnapshot,
    NoSuchVolume,
    OperationFailed,
    QuotasOff,
)
from buttervolume.follow.charter import Charter
from buttervolume.follow.machine import Epoch, How
from buttervolume.follow.member import Member, set_charter
from buttervolume.jobs.options import split_jobs
from buttervolume.store import contents
from buttervolume.store.options import OPTIONS, Options, parse_options
from buttervolume.store.removed import Removed
from buttervolume.store.snapshots import Taken
from buttervolume.system import btrfs as kernel
from buttervolume.system import quota
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import (
    DATE_FORMAT,
    Daemon,
    Place,
    Store,
    btrfs,
    entries,
    is_copied_on_write,
    subvolume,
)
from tests.support.filesystem import loop_btrfs
from tests.support.wait import wait_until


def make(store: Store, name: str, **options: str) -> Path:
    renamed = {key.removesuffix("_"): value for key, value in options.items()}
    store.contents.create(name, parse_options(renamed))
    return store.volumes.mountpoint(name)


def attribute(path: Path, name: str) -> str | None:
    try:
        return os.getxattr(path, f"trusted.buttervolume.{name}").decode()
    except OSError:
        return None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("500M", 500 << 20),
        ("500m", 500 << 20),
        ("20G", 20 << 30),
        ("20GiB", 20 << 30),
        ("2gb", 2 << 30),
        ("1T", 1 << 40),
        ("2048K", 2 << 20),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert parse_options({"size": text}).size == size


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"copyonwrite": "TRUE"}, Options(copy_on_write=True)),
        ({"copyonwrite": "False"}, Options(copy_on_write=False)),
        ({"compression": "ZSTD"}, Options(copy_on_write=True, compression="zstd")),
        ({"compression": "False", "copyonwrite": ""}, Options(compression="")),
        ({"from": "Db@Latest"}, Options(source="Db@Latest")),
        ({"keep": "2W"}, Options(keep="2w")),
        ({"keep": "0"}, Options(keep="0")),
        ({"uid": "0", "gid": "4294967294"}, Options(uid=0, gid=(1 << 32) - 2)),
        ({"mode": "0750"}, Options(mode=0o750)),
        ({option.name: "" for option in OPTIONS}, Options()),
        ({}, Options()),
    ],
)  # fmt: skip
def test_what_is_possible(options: dict[str, object], wanted: Options) -> None:
    assert parse_options(options) == wanted


@pytest.mark.parametrize(
    "options",
    [
        *({"size": text} for text in ("0", "1", "-5G", "5X", "1.5G", "9" * 30, "٣M", "G")),
        *({"uid": text} for text in ("root", "-1", "4294967295", "٣", "1e3")),
        *({"gid": text} for text in ("wheel", "99999999999")),
        *({"mode": text} for text in ("rwx", "888", "10000", "-1", "0o755")),
        *({"keep": text} for text in ("1", "forever", "-1d", "1d2h", "9" * 9 + "y")),
        *({"from": text} for text in ("../db", "a/b", ".hidden", "db@", "@latest", "a@b@c@d")),
        {"From": "db"},
        {"size": 5},
        {"keep": None},
        {"copyonwrite": True},
    ],
)
def test_what_is_not_possible_is_said_with_what_is(options: dict[str, object]) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_options(options)

    assert "valid" in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("value", [None, True, 5, 1.5, ["60"], {"a": None}])
@pytest.mark.parametrize("key", ["keep", "copyonwrite", "snapshot", "purge:1h:1d"])
def test_a_value_that_is_no_text_is_refused_in_the_words_of_json(key: str, value: object) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_options(split_jobs("db", {key: value})[1])

    assert f"{key}={json.dumps(value)} " in str(refusal.value)


def test_a_volume_from_a_volume_has_its_content_now(store: Store) -> None:
    path = make(store, "db", compression="zstd", keep="2h")
    (path / "file").write_text("now")
    subvolume(path / "nested")

    made = store.contents.create("copy", parse_options({"from": "db"}))

    copy = store.volumes.mountpoint("copy")
    assert made.left_out == ("nested",)
    assert (copy / "file").read_text() == "now"
    (copy / "file").write_text("writable")
    assert (path / "file").read_text() == "now"
    assert btrfs("property", "get", copy, "compression").strip() == "compression=zstd"
    assert attribute(copy, "keep") == "2h"


@pytest.mark.parametrize("source", ["db@latest", "db@2", "whole"])
def test_a_volume_from_a_snapshot(store: Store, source: str) -> None:
    path = make(store, "db")
    (path / "file").write_text("then")
    whole = store.snapshots.take("db").name
    (path / "file").write_text("now")

    copy = make(store, "copy", from_=whole if source == "whole" else source, mode="0700", uid="7")

    assert (copy / "file").read_text() == "then"
    assert not is_copied_on_write(copy)
    status = copy.stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o700, 7)
    assert (path / "file").read_text() == "now"


def written(path: Path) -> tuple[bool, str]:
    """How new files are written: by copy-on-write, and with which compression."""
    compression = btrfs("property", "get", path, "compression").strip()
    return is_copied_on_write(path), compression.removeprefix("compression=")


ORIGINS: dict[str, dict[str, str]] = {
    "plain": {},
    "copied": {"copyonwrite": "true"},
    "compressed": {"compression": "zlib"},
}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"plain": (False, ""), "copied": (True, ""), "compressed": (True, "zlib")}),
        ({"copyonwrite": "false"}, (False, "")),
        ({"copyonwrite": "false", "compression": "false"}, (False, "")),
        ({"copyonwrite": "true", "compression": "false"}, (True, "")),
        ({"compression": "lzo"}, (True, "lzo")),
        ({"copyonwrite": "true", "compression": "zstd"}, (True, "zstd")),
        (
            {"copyonwrite": "true"},
            {"plain": (True, ""), "copied": (True, ""), "compressed": (True, "zlib")},
        ),
        (
            {"compression": "false"},
            {"plain": (False, ""), "copied": (True, ""), "compressed": (True, "")},
        ),
    ],
)
def test_a_copy_is_written_as_it_is_asked_for_else_as_its_origin(
    store: Store, options: dict[str, str], wanted: object
) -> None:
    for origin, its in ORIGINS.items():
        make(store, origin, **its)

        copy = make(store, f"of-{origin}", from_=origin, **options)

        assert written(copy) == (wanted[origin] if isinstance(wanted, dict) else wanted), origin
        (copy / "file").write_bytes(bytes(10_000))


def compress_by_property(path: Path) -> None:
    btrfs("property", "set", path, "compression", "zstd")


def compress_by_flag(path: Path) -> None:
    subprocess.run(["chattr", "+c", path], check=True)


@pytest.mark.parametrize("compress", [compress_by_property, compress_by_flag])
def test_below_a_compressed_directory_a_volume_is_as_its_options_say(
    store: Store, compress: Callable[[Path], None]
) -> None:
    compress(store.place.volumes)

    assert written(make(store, "db")) == (False, "")
    assert written(make(store, "logs", compression="lzo")) == (True, "lzo")
    assert written(make(store, "copied", copyonwrite="true", compression="false")) == (True, "")
    assert "c" not in flags_of(make(store, "explicit", compression="false"))


def flags_of(path: Path) -> str:
    """The flags that chattr(1) knows."""
    return subprocess.run(
        ["lsattr", "-d", path], check=True, capture_output=True, text=True
    ).stdout.split()[0]


def test_what_a_volume_is_to_come_from_must_exist_unless_it_is_there(store: Store) -> None:
    before = store.place.tree()
    for source, error in (("db", NoSuchVolume), ("db@2026", NoSuchSnapshot)):
        with pytest.raises(error):
            store.contents.create("copy", parse_options({"from": source}))
    assert store.place.tree() == before

    store.contents.create("copy", Options())
    store.contents.create("copy", parse_options({"from": "db"}))


def test_owner_and_mode_are_those_asked_for(store: Store) -> None:
    status = make(store, "db", uid="1000", gid="1001", mode="2770").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1000, 1001, 0o2770)
    status = make(store, "other", gid="5").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 5, 0o755)


def test_options_of_a_volume_that_is_there_are_checked_and_do_nothing(store: Store) -> None:
    path = make(store, "db")
    before = path.stat()

    make(store, "db", keep="5d", uid="1000", mode="0700")
    with pytest.raises(BadOption):
        make(store, "db", keep="nonsense")

    assert path.stat() == before
    assert attribute(path, "keep") is None


def test_a_restore_keeps_the_attributes_of_the_volume(store: Store) -> None:
    path = make(store, "db", keep="2h")
    snapshot = store.snapshots.take("db").name
    os.setxattr(path, "trusted.buttervolume.keep", b"3d")

    store.contents.restore(snapshot)
    assert attribute(path, "keep") == "3d"
    os.removexattr(path, "trusted.buttervolume.keep")
    store.contents.restore(snapshot)
    assert attribute(path, "keep") is None
    store.contents.restore(snapshot, "copy")
    assert attribute(store.volumes.mountpoint("copy"), "keep") == "2h"


def test_without_quotas_a_size_is_refused_and_nothing_is_made(store: Store) -> None:
    before = store.place.tree()

    with pytest.raises(QuotasOff, match="btrfs quota enable"):
        make(store, "db", size="1G")

    assert store.place.tree() == before


def has_simple_quotas() -> bool:
    argv = ["btrfs", "quota", "enable", "--help"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "--simple" in shown.stdout + shown.stderr


@pytest.fixture(
    params=[
        "old",
        pytest.param(
            "simple",
            marks=pytest.mark.skipif(not has_simple_quotas(), reason="btrfs-progs know none"),
        ),
    ]
)
def limited(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store on a filesystem with quotas."""
    with loop_btrfs(tmp_path, size="512M") as mount_point:
        kind = ["--simple"] if request.param == "simple" else []
        btrfs("quota", "enable", *kind, mount_point)
        yield Store.make(Place.make(mount_point / "place"))


def groups(store: Store) -> list[str]:
    """The numbers of the quota groups of subvolumes."""
    btrfs("subvolume", "sync", store.place.directory)
    btrfs("filesystem", "sync", store.place.directory)
    lines = btrfs("qgroup", "show", store.place.directory).splitlines()
    return [line.split()[0] for line in lines if line.startswith("0/")]


def fits(path: Path, size: int) -> bool:
    try:
        with (path / f"file{size}").open("wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    finally:
        (path / f"file{size}").unlink(missing_ok=True)
    return True


def test_a_size_is_a_limit_that_stays_with_copies(limited: Store) -> None:
    store = limited
    path = make(store, "db", size="20M")
    snapshot = store.snapshots.take("db").name
    assert fits(path, 5 << 20)
    assert not fits(path, 40 << 20)

    store.contents.clone("db", "copy")
    store.contents.restore(snapshot)
    make(store, "smaller", from_="db", size="10M")

    for name in ("db", "copy"):
        assert not fits(store.volumes.mountpoint(name), 40 << 20), name
    assert not fits(store.volumes.mountpoint("smaller"), 15 << 20)
    assert fits(make(store, "free"), 40 << 20)


def test_a_restore_keeps_the_size_of_the_volume_and_brings_none(limited: Store) -> None:
    store = limited
    make(store, "small", size="20M")
    snapshot = store.snapshots.take("small").name
    free, large = make(store, "free"), make(store, "large", size="60M")

    for name in ("free", "large"):
        store.contents.restore(snapshot, name)

    assert fits(free, 100 << 20)
    assert fits(large, 40 << 20)
    assert not fits(large, 100 << 20)


def test_a_full_volume_can_be_copied_restored_and_had_back(
    limited: Store, request: pytest.FixtureRequest
) -> None:
    """It takes not even an attribute, and neither does a snapshot of it, which inherits the limit;
    to restore it is the way out. Simple quotas count what a copy shares for its origin only."""
    store = limited
    is_counted_in_copies = request.node.callspec.params["limited"] == "old"
    path = make(store, "db", size="20M", keep="2d")
    (path / "file").write_text("good")
    before = store.snapshots.take("db").name
    fill(path)
    full = store.snapshots.take("db").name

    store.contents.clone("db", "copy")
    make(store, "larger", from_="db", size="60M", mode="0700")
    make(store, "again", from_=full)
    for name in ("copy", "again"):
        assert fits(store.volumes.mountpoint(name), 5 << 20) is not is_counted_in_copies, name
    assert fits(store.volumes.mountpoint("larger"), 5 << 20)

    backup = store.contents.restore(before).backup
    assert entries(path) == ["file"]
    assert fits(path, 5 << 20)
    assert not fits(path, 40 << 20)
    store.contents.restore("db", undo=True)
    assert fits(path, 5 << 20) is not is_counted_in_copies, "it is full again"
    assert backup in store.place.snapshot_names()

    removed = Removed(store.volumes, DATE_FORMAT, timedelta(hours=1))
    removed.remove("db")
    removed.bring_back("db", "back")
    assert fits(store.volumes.mountpoint("back"), 5 << 20) is not is_counted_in_copies
    store.volumes.remove("back")


def test_a_full_volume_that_follows_its_service_can_be_snapshotted(limited: Store) -> None:
    path = make(limited, "db", size="20M")
    os.setxattr(path, "trusted.buttervolume.follow", b'{"seq":1}')
    fill(path)

    taken = limited.snapshots.take("db").name
    with limited.volumes.mutexes.hold("db"):
        fork = limited.snapshots.take_held("db", fork=True).name

    held = {name: attribute(limited.place.snapshots / name, "follow") for name in (taken, fork)}
    assert held == {taken: '{"seq":2}', fork: '{"seq":3}'}
    assert limited.catalog.forks("db") == (fork,)
    assert not fits(path, 5 << 20)


def test_a_full_volume_that_follows_its_service_changes_hands(
    limited: Store, tmp_path: Path
) -> None:
    store = limited
    path = make(store, "db", size="20M")
    member = Member("ann", store.volumes, store.catalog, store.snapshots, tmp_path / "follow")
    terms = Charter(("ann", "bob"))
    member.found("db", terms)
    fill(path)

    line = (Epoch("abcd", "ann", None, How.FIRST),)
    member.publish("db", line, None, terms)
    member.change("db", replace(member.charter("db") or terms, every=7))
    copy = member.copy("db")

    assert copy.version.line == line
    assert member.charter("db") == replace(terms, every=7, line=line, seq=copy.version.seq)
    assert not fits(path, 40 << 20), "it has its limit as before"


def fill(path: Path) -> None:
    """Write until nothing more can be written, not even a name."""
    with suppress(OSError), (path / "large").open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    with suppress(OSError):
        for number in range(1 << 20):
            (path / f"small{number}").write_bytes(os.urandom(4096))
    with pytest.raises(OSError, match="quota"):
        os.setxattr(path, "user.one", b"more")


CHARTER = Charter(("ann", "bob"), line=(Epoch("aaaa", "ann", None, How.FIRST),), seq=7)


def number_of(path: Path) -> int:
    """That of the last snapshot of a followed volume."""
    return Charter.load(os.getxattr(path, "trusted.buttervolume.follow")).seq


def test_a_followed_volume_that_is_read_only_can_be_given_other_terms(store: Store) -> None:
    """Its container may have made it so."""
    path = make(store, "db")
    set_charter(path, CHARTER)
    btrfs("property", "set", path, "ro", "true")

    set_charter(path, replace(CHARTER, seq=20))

    assert number_of(path) == 20
    assert kernel.info(path).readonly


def test_a_restore_gives_no_number_of_a_snapshot_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy may be there before the backup has its number, if that waits for its turn."""
    path = make(store, "db")
    set_charter(path, CHARTER)
    snapshot = store.snapshots.take("db").name
    is_copied = threading.Event()
    copy, take_held = contents.copy, store.snapshots.take_held

    def copy_first(*arguments: Path, **more: Path) -> None:
        copy(*arguments, **more)
        is_copied.set()

    def take_then(volume: str, *, backup: bool) -> Taken:
        assert is_copied.wait(60)
        return take_held(volume, backup=backup)

    monkeypatch.setattr(contents, "copy", copy_first)
    monkeypatch.setattr(store.snapshots, "take_held", take_then)

    backup = store.contents.restore(snapshot).backup

    assert number_of(path) == number_of(store.place.snapshots / str(backup)) == CHARTER.seq + 2


def test_no_group_is_left_of_what_is_gone(limited: Store) -> None:
    store = limited
    before = groups(store)
    for name in ("one", "two"):
        path = make(store, name, size="20M")
        subvolume(path / "nested")
        store.snapshots.take(name)
        store.contents.restore(name, force=True)
    for name, _ in store.volumes.list():
        store.volumes.remove(name)
    for snapshot in store.place.snapshot_names():
        store.snapshots.remove(snapshot)

    def only_what_was() -> bool:
        left = groups(store)
        with kernel.opened(store.place.volumes) as directory:
            quota.clear_stale(directory)
        return left == before

    wait_until(only_what_was, what="the groups to go")


def test_a_volume_that_cannot_be_limited_is_not_made(
    limited: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = limited
    before = groups(store)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OperationFailed):
        make(store, "db", size="20M", mode="0700")

    assert store.volumes.list() == []
    wait_until(lambda: groups(store) == before, what="its group to go")


def test_what_quotas_count_is_told_of_removed_volumes(limited: Store) -> None:
    path = make(limited, "db")
    (path / "file").write_bytes(os.urandom(3 << 20))
    os.sync()

    with kernel.opened(path) as root:
        size = quota.referenced(root)

    assert size is not None
    assert 3 << 20 <= size <= 5 << 20


def test_a_create_that_fails_leaves_neither_volume_nor_row(daemon: Daemon) -> None:
    for options in (
        {"snapshot": "60", "size": "1G"},
        {"snapshot": "60", "from": "nothing"},
        {"snapshot": "60", "keep": "nonsense"},
        {"snapshot": "never", "keep": "1d"},
    ):
        assert daemon.refused("Create", Name="db", Opts=options)
    assert daemon.names() == []
    assert daemon.call("Schedule.List")["Schedule"] == []

    daemon.call("Create", Name="db", Opts={"snapshot": "60", "keep": "1d", "mode": "0700"})
    assert len(daemon.call("Schedule.List")["Schedule"]) == 1
    daemon.call("Create", Name="copy", Opts={"from": "db"})
    assert daemon.names() == ["copy", "db"]


def test_a_name_that_no_new_volume_can_have_is_in_no_schedule_for_a_moment(daemon: Daemon) -> None:
    """It could be a pattern, and jobs of all volumes."""
    daemon.call("Create", Name="db", Opts={"snapshot": "60"})
    schedule = daemon.directory / "schedule.csv"
    before = schedule.stat().st_mtime_ns

    for name in ("*", "d*", "a b", "é"):
        assert "name of a new volume" in daemon.refused("Create", Name=name, Opts={"purge:1m": "1"})

    assert schedule.stat().st_mtime_ns == before


def test_a_volume_that_is_to_follow_its_service_is_never_a_plain_one(
    start_daemon: StartDaemon, place: Place
) -> None:
    """Docker asks for it once: if it were there without, it would be mounted on two hosts."""
    daemon = start_daemon(BUTTERVOLUME_NODE="ann")
    directory = daemon.directory / "follow"
    directory.mkdir()
    with (directory / "db.lock").open("w") as lock:  # as another member does that looks for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon.call("Create", Name="db", Opts={"follow": "ann:bob", "every": "7", "keep": "2d"})

    charter = json.loads(attribute(place.volumes / "db", "follow") or "")
    assert (charter["members"], charter["every"]) == (["ann", "bob"], 7)
    assert attribute(place.volumes / "db", "keep") == "2d"
    assert daemon.call("Get", Name="db")["Volume"]["Status"]["Epoch"] == 0


def test_a_pattern_whose_ages_do_not_ascend_is_spelled_out_wherever_it_is_declared(
    daemon: Daemon,
) -> None:
    for name in ("new", "new", "other"):
        answer = daemon.call("Create", Name=name, Opts={"purge:48h:20d:6m": "60", "snapshot": "60"})
        assert "it means 6m:48h:20d" in answer["Warning"]

    assert "Warning" not in daemon.call("Create", Name="plain", Opts={"purge:6h:20d": "60"})
