"""Volumes on a real BTRFS: made whole, found by a look, removed with all that is in them."""

import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from buttervolume.errors import (
    BadName,
    BadOption,
    NoSuchVolume,
    NotAVolume,
    OperationFailed,
    VolumeBusy,
    VolumesUnavailable,
)
from buttervolume.store.options import Options, parse_options
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs as kernel
from buttervolume.system import command, files, nested
from tests.btrfs.harness import (
    Place,
    Store,
    btrfs,
    entries,
    is_copied_on_write,
    nested_in,
    put,
    subvolume,
)
from tests.support.filesystem import loop_btrfs

BTRFS_IOC_SUBVOL_CREATE = 0x5000940E  # linux/btrfs.h
ODD_NAMES = [
    "my old volume",
    "-rf",
    "--help",
    "größe",
    "日本語",
    "n" * 200,
    "50%",
    "$(touch x)",
    "a'b\"c\\d",
    "*",
    "~",
    "a,b;c|d&e",
    "_underscore",
    "emoji-😀",
]


@pytest.fixture
def volumes(store: Store) -> Volumes:
    return store.volumes


def create(volumes: Volumes, name: str, **options: str) -> Path:
    volumes.create(name, parse_options(options))
    return volumes.mountpoint(name)


def flags(path: Path) -> str:
    """The flags of a file as lsattr shows them, such as C for no copy-on-write."""
    listed = subprocess.run(
        ["lsattr", "-d", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return listed.split()[0].replace("-", "")


def is_compressed(path: Path) -> bool:
    """Whether the extents of a file are compressed, as filefrag tells (FIEMAP's `encoded`)."""
    os.sync()
    extents = subprocess.run(
        ["filefrag", "-v", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return "encoded" in extents


def write_zeros(path: Path) -> Path:
    path.write_bytes(b"compress me " * 100_000)
    with path.open("rb") as file:
        os.fsync(file)
    return path


@contextmanager
def counted_commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The commands that are run in the block."""
    commands: list[list[str]] = []
    real = command.run

    def run(argv: list[str]) -> str:
        commands.append(argv)
        return real(argv)

    with monkeypatch.context() as patch:
        patch.setattr(command, "run", run)
        yield commands


# Options


def test_a_volume_without_options_writes_in_place(volumes: Volumes) -> None:
    path = create(volumes, "db")
    write_zeros(path / "table")
    (path / "directory").mkdir()
    (path / "directory/deep").write_text("x")

    assert "C" in flags(path)
    assert "C" in flags(path / "table")
    assert "C" in flags(path / "directory/deep")
    assert not is_compressed(path / "table")
    assert not is_copied_on_write(path)
    assert list(path.iterdir()), "and it can be written to"


def test_copyonwrite_true_leaves_the_files_to_copy_on_write(volumes: Volumes) -> None:
    path = create(volumes, "logs", copyonwrite="true")
    write_zeros(path / "log")

    assert "C" not in flags(path)
    assert "C" not in flags(path / "log")
    assert not is_compressed(path / "log")
    assert is_copied_on_write(path)


@pytest.mark.parametrize(
    ("compression", "algorithm"),
    [("true", "zstd"), ("zstd", "zstd"), ("zlib", "zlib"), ("lzo", "lzo")],
)
@pytest.mark.parametrize("more", [{}, {"copyonwrite": "true"}])
def test_compression_really_compresses(
    volumes: Volumes, compression: str, algorithm: str, more: dict[str, str]
) -> None:
    path = create(volumes, "logs", compression=compression, **more)
    write_zeros(path / "log")
    (path / "directory").mkdir()
    write_zeros(path / "directory/deep")

    assert btrfs("property", "get", path, "compression").strip() == f"compression={algorithm}"
    assert "C" not in flags(path), "compression turns copy-on-write on"
    assert is_compressed(path / "log")
    assert is_compressed(path / "directory/deep")
    assert (path / "log").read_bytes() == b"compress me " * 100_000


def test_options_that_say_no_are_the_default(volumes: Volumes) -> None:
    path = create(volumes, "db", compression="false", copyonwrite="false")

    assert "C" in flags(path)
    assert btrfs("property", "get", path, "compression") == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "red"}, ["'colour'", "copyonwrite", "compression", "from", "keep"]),
        ({"Compression": "zstd"}, ["'Compression'", "copyonwrite", "compression"]),
        ({"": ""}, ["copyonwrite", "compression"]),
        ({"copyonwrite": "yes"}, ["copyonwrite", "yes", "true", "false"]),
        ({"copyonwrite": None}, ["copyonwrite", "quotes"]),
        ({"copyonwrite": True}, ["copyonwrite", "quotes"]),
        ({"copyonwrite": []}, ["copyonwrite", "quotes"]),
        ({"compression": "gzip"}, ["compression", "gzip", "true", "zlib", "lzo", "zstd", "false"]),
        ({"compression": "zstd:3"}, ["compression", "zstd:3", "zlib", "lzo", "zstd", "false"]),
        ({"compression": "zstd", "copyonwrite": "false"}, ["copyonwrite", "compression"]),
        ({"compression": "true", "copyonwrite": "false"}, ["copyonwrite", "compression"]),
    ],
)
def test_an_option_that_is_not_possible_lists_what_is(
    options: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_options(options)

    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("key", ["copyonwrite", "size", "keep"])
@pytest.mark.parametrize("text", ["a\nb", "\ud800", "\x1b[2J", "\0"])
def test_the_message_about_an_option_is_one_printable_line(key: str, text: str) -> None:
    with pytest.raises(BadOption) as refusal:
        parse_options({key: text} if key == "copyonwrite" else {text: "x"})

    assert str(refusal.value).isprintable()


# Create


def test_a_new_volume_is_an_empty_subvolume_under_its_name(store: Store) -> None:
    path = create(store.volumes, "db")

    assert path == store.place.volumes / "db"
    assert path.stat().st_ino == 256
    assert list(path.iterdir()) == []
    assert store.place.own_names() == []


def test_an_existing_volume_is_left_as_it_is(volumes: Volumes) -> None:
    path = create(volumes, "db")
    (path / "file").write_text("mine")
    before = path.stat()

    again = create(volumes, "db", compression="zstd")

    assert again == path
    assert (path / "file").read_text() == "mine"
    assert "C" in flags(path), "its options are untouched, too"
    assert path.stat() == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_creating_an_odd_volume_of_an_older_version_finds_it(store: Store, name: str) -> None:
    subvolume(store.place.volumes / name, {"file": "mine"})

    store.volumes.create(name, Options())

    assert (store.place.volumes / name / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_new_volume_gets_no_odd_name(store: Store, name: str) -> None:
    before = store.place.tree()

    with pytest.raises(BadName):
        store.volumes.create(name, Options())

    assert store.place.tree() == before


def test_creating_runs_one_command_whatever_is_there(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        create(volumes, f"old{number}")

    with counted_commands(monkeypatch) as commands:
        create(volumes, "new", compression="zstd")
        create(volumes, "other")

    assert [argv[:3] for argv in commands] == [["btrfs", "subvolume", "create"]] * 2


@pytest.mark.parametrize(
    ("kind", "target"), [("directory", ""), ("file", ""), ("link", "/nowhere"), ("link", "/etc")]
)
def test_what_stands_in_the_way_of_a_volume_is_named_and_stays(
    store: Store, kind: str, target: str
) -> None:
    obstacle = store.place.volumes / "db"
    put(obstacle, kind, target)
    before = store.place.tree()

    with pytest.raises(NotAVolume, match=f"{obstacle} is in the way"):
        store.volumes.create("db", Options())

    assert store.place.tree() == before


def test_a_volume_that_cannot_be_finished_is_not_left_half_made(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(kernel.Directory, "set_compression", fail)

    with pytest.raises(OperationFailed, match=r"create volume db: .*Operation not supported"):
        create(store.volumes, "db", compression="zstd")

    assert store.volumes.list() == []
    assert entries(store.place.volumes) == []


def test_fifty_at_once_of_one_name_make_one_volume(store: Store) -> None:
    with ThreadPoolExecutor(50) as pool:
        for future in [pool.submit(create, store.volumes, "db") for _ in range(50)]:
            future.result()

    assert [name for name, _ in store.volumes.list()] == ["db"]
    assert entries(store.place.volumes) == ["db"]


def test_fifty_at_once_of_different_names_make_fifty_volumes(store: Store) -> None:
    names = [f"db{number:02}" for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        for future in [pool.submit(create, store.volumes, name) for name in names]:
            future.result()

    assert [name for name, _ in store.volumes.list()] == names
    assert entries(store.place.volumes) == names


# List


def test_without_volumes_the_list_is_empty(volumes: Volumes) -> None:
    assert volumes.list() == []


def test_only_subvolumes_with_safe_names_are_volumes(store: Store) -> None:
    volumes = store.place.volumes
    for name in ("b", "a", "Ä", "my old volume"):
        subvolume(volumes / name)
    subvolume(volumes / ".hidden")
    subvolume(volumes / ".buttervolume-create-123")
    subvolume(volumes / "a@b")
    subvolume(volumes / "two\nlines")
    os.mkdir(os.fsencode(volumes / "not-utf8-") + b"\xff")
    btrfs("subvolume", "create", os.fsdecode(os.fsencode(volumes / "sub-") + b"\xff"))
    (volumes / "directory").mkdir()
    subvolume(volumes / "directory/inner")
    (volumes / "file").write_text("")
    (volumes / "link").symlink_to("a")
    (volumes / "outward").symlink_to(store.place.snapshots)
    (volumes / "dangling").symlink_to("nowhere")
    os.mkfifo(volumes / "fifo")

    assert store.volumes.list() == [
        (name, volumes / name) for name in ("a", "b", "my old volume", "Ä")
    ]


@pytest.mark.parametrize("name", ["link", "directory", "file", "nothing", "directory/inner"])
def test_links_and_directories_are_no_volumes_for_anybody(store: Store, name: str) -> None:
    volumes = store.place.volumes
    subvolume(volumes / "real", {"file": "mine"})
    (volumes / "link").symlink_to("real")
    (volumes / "directory").mkdir()
    subvolume(volumes / "directory/inner")
    (volumes / "file").write_text("mine")
    before = store.place.tree()

    asks: list[Callable[[str], object]] = [
        store.volumes.get,
        store.volumes.mountpoint,
        store.volumes.remove,
        store.snapshots.take,
        lambda name: store.contents.clone(name, "copy"),
    ]
    for ask in asks:
        with pytest.raises((NoSuchVolume, BadName)):
            ask(name)

    assert store.place.tree() == before


def test_questions_run_no_command(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    create(volumes, "db")

    with counted_commands(monkeypatch) as commands:
        volumes.list()
        volumes.get("db")
        volumes.mountpoint("db")
        volumes.exists("other")
        volumes.check_available()

    assert commands == []


def test_the_list_bears_volumes_that_come_and_go(volumes: Volumes) -> None:
    create(volumes, "stays")
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            create(volumes, "comes")
            volumes.remove("comes")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        lists = [[name for name, _ in volumes.list()] for _ in range(500)]
    finally:
        done.set()
        changer.join(60)

    assert all(names in (["stays"], ["comes", "stays"]) for names in lists)


# Get


def test_a_volume_tells_when_it_was_made_whatever_happens_in_it(volumes: Volumes) -> None:
    before = datetime.now().astimezone() - timedelta(seconds=1)
    path = create(volumes, "db", copyonwrite="true")
    first = volumes.get("db").created

    (path / "file").write_text("x")
    path.chmod(0o700)
    os.utime(path, (0, 0))
    btrfs("property", "set", path, "compression", "zstd")

    assert first is not None
    assert before <= first <= datetime.now().astimezone()
    assert first.tzinfo is not None
    assert volumes.get("db").created == first


def test_an_unknown_volume_is_called_so(volumes: Volumes) -> None:
    for ask in (volumes.get, volumes.mountpoint, volumes.remove):
        with pytest.raises(NoSuchVolume, match=r"^nothing: no such volume$"):
            ask("nothing")


def test_a_volume_whose_properties_cannot_be_read_is_still_there(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(volumes, "db")

    def fail(_: kernel.Directory) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(kernel.Directory, "copy_on_write", fail)
    volume = volumes.get("db")

    assert (volume.mountpoint, volume.copy_on_write) == (path, None)


def test_a_gone_filesystem_is_no_gone_volume(tmp_path: Path) -> None:
    with loop_btrfs(tmp_path, size="256M") as mount_point:
        place = Place.make(mount_point / "place")
        volumes = Volumes(place.volumes)
        create(volumes, "db")
        for vanish, come_back in (
            (
                ["mount", "-t", "tmpfs", "tmpfs", str(place.volumes)],
                ["umount", str(place.volumes)],
            ),
            (
                ["mv", str(place.volumes), f"{place.volumes}-away"],
                ["mv", f"{place.volumes}-away", str(place.volumes)],
            ),
        ):
            subprocess.run(vanish, check=True)
            with pytest.raises(VolumesUnavailable):
                volumes.check_available()
            for ask in (volumes.get, volumes.mountpoint, volumes.remove):
                with pytest.raises(VolumesUnavailable, match=str(place.volumes)):
                    ask("db")
            subprocess.run(come_back, check=True)
            volumes.check_available()
            assert volumes.get("db").name == "db"


def test_the_same_filesystem_mounted_again_is_as_good_as_before(tmp_path: Path) -> None:
    with loop_btrfs(tmp_path, size="256M") as mount_point:
        inner = mount_point / "inner"
        place = Place.make(inner)
        volumes = Volumes(place.volumes)
        create(volumes, "db")
        btrfs("subvolume", "snapshot", mount_point, mount_point / "whole")
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(mount_point)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

        subprocess.run(["mount", "-o", "subvolid=5", device, str(inner)], check=True)
        try:
            with pytest.raises(VolumesUnavailable):  # the names lead elsewhere
                volumes.check_available()
        finally:
            subprocess.run(["umount", str(inner)], check=True)
        subprocess.run(["mount", "--bind", str(inner), str(inner)], check=True)
        try:
            volumes.check_available()
            assert [name for name, _ in volumes.list()] == ["db"]
        finally:
            subprocess.run(["umount", str(inner)], check=True)


# Remove


def test_a_removed_volume_is_gone(store: Store) -> None:
    path = create(store.volumes, "db")
    (path / "file").write_text("x")

    store.volumes.remove("db")

    assert store.volumes.list() == []
    assert entries(store.place.volumes) == []
    assert not path.exists()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_volume_of_an_older_version_can_be_used_and_removed(store: Store, name: str) -> None:
    path = subvolume(store.place.volumes / name, {"file": "old"})
    subvolume(path / "-nested inside")

    assert store.volumes.get(name).mountpoint == path
    assert (name, path) in store.volumes.list()
    snapshot = store.snapshots.take(name)
    assert snapshot.left_out == ("-nested inside",)
    (path / "file").write_text("new")
    store.contents.restore(snapshot.name, force=True)
    assert (path / "file").read_text() == "old"
    store.contents.clone(name, "copy")
    store.volumes.remove(name)

    assert [name for name, _ in store.volumes.list()] == ["copy"]
    assert store.place.own_names() == []


def test_nested_subvolumes_go_with_their_volume_at_every_depth(store: Store) -> None:
    path = create(store.volumes, "db")
    other = create(store.volumes, "other")
    (other / "file").write_text("mine")
    deep = path
    for level in range(6):
        deep = deep / f"directory {level}"
        deep.mkdir()
        for name in ("plain", "-dash", "new\nline", "sibling"):
            subvolume(deep / name, {"file": "x"})
        deep = deep / "plain"
    subvolume(path / "at the top")
    subvolume(path / "at the top/.hidden")
    subvolume(Path(os.fsdecode(os.fsencode(path / "not utf-8 ") + b"\xff")))
    (deep / "to other").symlink_to(other)
    (path / "to root").symlink_to("/")
    (path / "up").symlink_to("..")
    (path / "at the top" / "to snapshots").symlink_to(store.place.snapshots)
    before = {key: value for key, value in store.place.tree().items() if not within(key, path)}

    store.volumes.remove("db")

    assert store.place.tree() == before
    assert (other / "file").read_text() == "mine"


def within(path: str, directory: Path) -> bool:
    return Path(path).is_relative_to(directory)


def test_more_nested_subvolumes_than_one_answer_of_the_kernel_holds(store: Store) -> None:
    path = create(store.volumes, "db")
    wanted = [f"n{number:03}" for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: btrfs("subvolume", "create", path / name), wanted))

    assert sorted(filter(None, nested_in(path))) == wanted
    store.volumes.remove("db")

    assert entries(store.place.volumes) == []


def test_no_depth_of_nesting_is_too_much(volumes: Volumes) -> None:
    """Whoever may write into a volume may nest subvolumes in it."""
    path = create(volumes, "db")
    inside = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1200):
        request = bytearray(struct.pack("=q4088s", 0, b"n"))
        fcntl.ioctl(inside, BTRFS_IOC_SUBVOL_CREATE, request)
        deeper = os.open("n", os.O_RDONLY | os.O_DIRECTORY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(inside)

    assert len(nested_in(path)) == 1200


def test_a_read_only_volume_is_removed_with_read_only_ones_in_it(store: Store) -> None:
    path = create(store.volumes, "db")
    subvolume(path / "nested", {"file": "x"})
    subvolume(path / "nested/in it")
    for readonly in (path / "nested/in it", path / "nested", path):
        btrfs("property", "set", "-ts", readonly, "ro", "true")

    store.volumes.remove("db")

    assert entries(store.place.volumes) == []


def test_a_read_only_volume_is_removed(store: Store) -> None:
    path = create(store.volumes, "db")
    btrfs("property", "set", "-ts", path, "ro", "true")

    store.volumes.remove("db")

    assert entries(store.place.volumes) == []


@pytest.mark.parametrize("obstacle", ["mounted on", "immutable", "read-only filesystem"])
def test_a_volume_that_cannot_be_removed_says_why_and_stays(tmp_path: Path, obstacle: str) -> None:
    with loop_btrfs(tmp_path, size="256M") as mount_point:
        place = Place.make(mount_point / "place")
        volumes = Volumes(place.volumes)
        path = create(volumes, "db")
        (path / "file").write_text("mine")
        block, release = {
            "mounted on": (["mount", "--bind", str(path), str(path)], ["umount", str(path)]),
            "immutable": (["chattr", "+i", str(path)], ["chattr", "-i", str(path)]),
            "read-only filesystem": (
                ["mount", "-o", "remount,ro", str(mount_point)],
                ["mount", "-o", "remount,rw", str(mount_point)],
            ),
        }[obstacle]
        subprocess.run(block, check=True)
        try:
            with pytest.raises(OperationFailed, match="cannot remove volume db: "):
                volumes.remove("db")
        finally:
            subprocess.run(release, check=True)

        assert (path / "file").read_text() == "mine"
        assert [name for name, _ in volumes.list()] == ["db"]
        assert place.own_names() == []
        volumes.remove("db")


def test_what_is_mounted_on_a_nested_subvolume_goes_with_it(store: Store) -> None:
    path = create(store.volumes, "db")
    inner = subvolume(path / "nested")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)

    assert store.snapshots.take("db").left_out == ("nested",)
    store.volumes.remove("db")

    assert entries(store.place.volumes) == []
    assert f"{path}/" not in Path("/proc/self/mounts").read_text()


def test_nested_subvolumes_that_come_and_go_disturb_no_snapshot(store: Store) -> None:
    path = create(store.volumes, "db")
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            subvolume(path / "comes")
            subvolume(path / "comes/inner")
            btrfs("subvolume", "delete", path / "comes/inner", path / "comes")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        found = {tuple(nested_in(path)) for _ in range(3000)}
    finally:
        done.set()
        changer.join(60)

    assert found == {(), ("comes",), ("comes", "comes/inner")}


def test_a_volume_with_open_files_is_removed(store: Store) -> None:
    path = create(store.volumes, "db")
    with (path / "file").open("w") as file:
        store.volumes.remove("db")
        file.write("into the void")

    assert entries(store.place.volumes) == []


def test_a_volume_that_is_synchronized_is_not_removed(store: Store) -> None:
    path = create(store.volumes, "db")

    with store.volumes.synchronized.hold("db"), pytest.raises(VolumeBusy, match="db: "):
        store.volumes.remove("db")

    assert path.is_dir()
    store.volumes.remove("db")


def test_when_the_deletion_fails_the_volume_is_there_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(store.volumes, "db")
    (path / "file").write_text("mine")

    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    synced: list[bool] = []

    def sync(directory: Path) -> None:
        synced.append(directory == path.parent and path.exists())

    with monkeypatch.context() as patch:
        patch.setattr(nested, "delete_tree", fail)
        patch.setattr(files, "sync_directory", sync)
        with pytest.raises(OperationFailed, match=r"remove volume db: .*Input/output error"):
            store.volumes.remove("db")

    assert (path / "file").read_text() == "mine"
    assert synced[-1:] == [True], "on the disk, too: else the sweep after a power cut takes it"
    assert store.place.own_names() == []


def test_that_there_is_one_already_is_on_the_disk_before_it_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker asks again when the daemon that has made it was killed before it could say so."""
    create(store.volumes, "db")
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)

    store.contents.create("db", parse_options({}))
    store.contents.create("db", parse_options({"from": "db"}))

    assert synced == [store.place.volumes] * 2


def test_removing_at_once_succeeds_once(store: Store) -> None:
    create(store.volumes, "db")

    def remove() -> bool:
        try:
            store.volumes.remove("db")
        except NoSuchVolume:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(remove) for _ in range(8)]]

    assert sorted(results) == [False] * 7 + [True]


# What the daemon leaves behind


def test_the_sweep_takes_what_is_the_daemons_and_nothing_else(store: Store) -> None:
    volumes = store.place.volumes
    create(store.volumes, "db")
    left = subvolume(volumes / ".buttervolume-restore-0123", {"file": "x"})
    subvolume(left / "nested")
    subvolume(volumes / ".buttervolume-create-0123")
    (volumes / ".buttervolume-remove-45").mkdir()
    (volumes / ".buttervolume-remove-45/file").write_text("x")
    (volumes / ".buttervolume-file").write_text("x")
    (volumes / ".buttervolume-link").symlink_to(volumes / "db")
    (volumes / ".buttervolume-lock").write_text("")
    subvolume(volumes / ".hidden", {"file": "mine"})
    (volumes / ".directory").mkdir()
    subvolume(store.place.snapshots / ".buttervolume-mine")

    store.volumes.sweep(store.volumes.leftovers())

    assert entries(volumes) == [".buttervolume-lock", ".directory", ".hidden", "db"]
    assert (volumes / ".hidden/file").read_text() == "mine"
    assert store.place.snapshot_names() == [".buttervolume-mine"]


# Mounts, as advice


def test_mounts_are_remembered_by_user_and_repeated_without_harm(volumes: Volumes) -> None:
    create(volumes, "db")

    volumes.remember_mount("db", "one")
    volumes.remember_mount("db", "one")
    volumes.remember_mount("db", "two")
    volumes.remember_unmount("db", "one")
    assert volumes.is_mounted("db")
    volumes.remember_unmount("db", "unknown")
    assert volumes.is_mounted("db")
    volumes.remember_unmount("db", "two")
    volumes.remember_unmount("db", "two")

    assert not volumes.is_mounted("db")


def test_a_removed_volume_is_forgotten_as_mounted(volumes: Volumes) -> None:
    create(volumes, "db")
    volumes.remember_mount("db", "one")

    volumes.remove("db")
    create(volumes, "db")

    assert not volumes.is_mounted("db")
